"""Algebra of a compiled small fit: factors and trust-region steps in one flat array, without allocation.

`core.factor` and `core.trust_region` for well-conditioned systems; `boxed` has what bounds need.
Everything is in one array because compiled functions of many small ones take ten times as long to
compile.
"""

from __future__ import annotations

import math

from nlsq_nb.backends.small.layout import (
    BOUNDED,
    DAMPING,
    DELTA,
    FALL,
    INVERSE,
    LENGTH,
    NORMS,
    ORDER,
    PREDICTED,
    SCALE,
    WORK,
    G,
    H,
    L,
    M,
    P,
    U,
    Y,
)
from nlsq_nb.backends.small.native import Floats, Ints, native

__all__ = [
    "EPS",
    "SLACK",
    "backward",
    "cholesky",
    "dot",
    "factorize",
    "forward",
    "full_step",
    "inverse_trace",
    "invert",
    "is_conditioned",
    "limited_step",
    "norm",
    "reduced_norms",
    "relax",
    "shifted",
    "step_of",
]

EPS = 2.220446049250313e-16
PIVOT = 1e-4  # as core.factor: below, half of the digits left after elimination are rounding errors
SLACK = 1.1  # as core.trust_region
# vectors of p numbers in the work space, before two matrices
Q, RIGHT, FULL, OUTER, INNER, MOVED, SIZES, SQUARES, SLOPES, SCALED = range(10)


@native
def dot(w: Floats, a: int, b: int, n: int) -> float:
    """Σ a b."""
    total = 0.0
    for k in range(n):
        total += w[a + k] * w[b + k]
    return total


@native
def norm(w: Floats, a: int, n: int) -> float:
    """Euclidean length."""
    return math.sqrt(dot(w, a, a, n))


@native
def cholesky(w: Floats, a: int, n: int, least: float) -> bool:
    """The lower factor in place of the lower triangle; False where a pivot is not above `least`."""
    for j in range(n):
        for i in range(j, n):
            total = w[a + i * n + j] - dot(w, a + i * n, a + j * n, j)
            if i > j:
                w[a + i * n + j] = total / w[a + j * n + j]
                continue
            pivot = math.sqrt(total) if total > 0.0 else 0.0
            if not pivot > least:
                return False
            w[a + j * n + j] = pivot
    return True


@native
def forward(w: Floats, a: int, stride: int, n: int, v: int) -> None:
    """Solve L v = v in place."""
    for i in range(n):
        w[v + i] = (w[v + i] - dot(w, a + i * stride, v, i)) / w[a + i * stride + i]


@native
def backward(w: Floats, a: int, stride: int, n: int, v: int) -> None:
    """Solve Lᵀ v = v in place."""
    for i in range(n - 1, -1, -1):
        total = w[v + i]
        for k in range(i + 1, n):
            total -= w[a + k * stride + i] * w[v + k]
        w[v + i] = total / w[a + i * stride + i]


@native
def condition(w: Floats, a: int, stride: int, count: int) -> float:
    """Upper bound on the condition of the leading block from its pivots; see `Factor.condition`."""
    root = 1.0
    for i in range(count):
        root *= w[a + i * stride + i]
    if root * root > 0.0:
        return max(count, 1) * math.e / (root * root)
    return math.inf


@native
def inverse_trace(w: Floats, a: int, stride: int, count: int) -> float:
    """The trace of the inverse of the leading block: Σ over the columns of L⁻¹, made in the unused triangle.

    Its condition is at least this over `count`, and at most `count` times as much.
    """
    total = 0.0
    for j in range(count):
        first = 1.0 / w[a + j * stride + j]
        total += first * first
        for i in range(j + 1, count):
            left = w[a + i * stride + j] * first
            for k in range(j + 1, i):
                left += w[a + i * stride + k] * w[a + j * stride + k]
            w[a + j * stride + i] = -left / w[a + i * stride + i]
            total += w[a + j * stride + i] * w[a + j * stride + i]
    return total


@native
def is_conditioned(w: Floats, a: int, stride: int, count: int, limit: float) -> bool:
    """Whether the condition of the leading block is at most a limit."""
    return condition(w, a, stride, count) <= limit or count * inverse_trace(w, a, stride, count) <= limit


@native
def factorize(task: Ints, w: Floats, at: int, count: int) -> bool:
    """`core.factor.factorize` of a point for the first `count` parameters, in its own stretches.

    The factor has rows of `count` numbers. False where the general way is needed.
    """
    p, norms, y, u = task[P], at + task[NORMS], at + task[Y], at + task[U]
    g, h, lower = at + task[G], at + task[H], at + task[L]
    for i in range(count):
        square = w[h + task[ORDER + i] * (p + 1)]
        # beside an amplitude that is zero on its bound, a parameter without influence stays where it is
        inert = task[BOUNDED] != 0 and square == 0.0 and w[g + task[ORDER + i]] == 0.0
        if not (0.0 < square < math.inf or inert):
            return False
        w[norms + i] = 1.0 if inert else math.sqrt(square)
    for i in range(count):
        row = h + task[ORDER + i] * p
        for j in range(i):
            w[lower + i * count + j] = w[row + task[ORDER + j]] / (w[norms + i] * w[norms + j])
        w[lower + i * count + i] = 1.0
        w[y + i] = w[g + task[ORDER + i]] / w[norms + i]
    if not cholesky(w, lower, count, PIVOT):
        return False
    forward(w, lower, count, count, y)
    for i in range(count):
        w[u + i] = w[y + i]
    backward(w, lower, count, count, u)
    return True


@native
def relax(task: Ints, w: Floats, at: int, stride: int, y: int, change: int) -> float:
    """The step of the linear parameters to their best values; the reduction of the sse."""
    m, norms, lower, part = task[M], at + task[NORMS], at + task[L], task[WORK]
    for i in range(m):
        w[part + i] = w[y + i]
    backward(w, lower, stride, m, part)
    for i in range(m):
        w[change + task[ORDER + i]] = w[part + i] / w[norms + i]
    return dot(w, y, y, m)


@native
def reduced_norms(task: Ints, w: Floats, at: int, out: int) -> None:
    """Column norms with the linear parameters eliminated for the others; see `Factor.reduced_norms`."""
    p, m, norms, lower = task[P], task[M], at + task[NORMS], at + task[L]
    for i in range(p):
        size = 1.0 if w[at + task[H] + task[ORDER + i] * (p + 1)] > 0.0 else 0.0
        if 0 < m <= i:
            size *= norm(w, lower + i * p + m, i + 1 - m)
        w[out + task[ORDER + i]] = w[norms + i] * size


@native
def full_step(task: Ints, w: Floats, at: int, out: int) -> None:
    """δ of the full Gauss–Newton step."""
    for i in range(task[P]):
        w[out + task[ORDER + i]] = w[at + task[U] + i] / w[at + task[NORMS] + i]


@native
def step_of(task: Ints, w: Floats, at: int, radius: float) -> bool:
    """`Factor.step`: δ, and ‖Dδ‖, damping, slope and prediction among what is found; False to give up."""
    p, m, norms, y, u = task[P], task[M], at + task[NORMS], at + task[Y], at + task[U]
    if m == p:
        m, radius = 0, math.inf
    n, q, moved = p - m, task[WORK] + Q * p, task[WORK] + MOVED * p
    for i in range(n):
        w[q + i] = w[task[SCALE] + task[ORDER + m + i]] / w[norms + m + i]
        w[moved + i] = w[q + i] * w[u + m + i]
    w[LENGTH] = norm(w, moved, n)
    if w[LENGTH] <= SLACK * radius:
        gain = dot(w, y + m, y + m, n)
        full_step(task, w, at, task[DELTA])
        w[DAMPING], w[FALL], w[PREDICTED] = 0.0, gain, gain
        return True
    eliminate(task, w, at)
    w[DAMPING] = limited_step(task, w, n, radius)
    if w[DAMPING] < 0.0:
        return False
    put_together(task, w, at)
    return True


@native
def eliminate(task: Ints, w: Floats, at: int) -> None:
    """The system of the nonlinear parameters in coordinates where its diagonal is 1."""
    p, m, y, u = task[P], task[M], at + task[Y], at + task[U]
    n, work, lower = p - m, task[WORK], at + task[L]
    q, right, full, sizes, unit = work + Q * p, work + RIGHT * p, work + FULL * p, work + SIZES * p, work + 10 * p
    for i in range(n):
        row = lower + (m + i) * p + m
        size = norm(w, row, i + 1)
        w[sizes + i] = size
        w[right + i] = dot(w, row, y + m, i + 1) / size
        w[q + i] /= size
        w[full + i] = size * w[u + m + i]
        for j in range(i):
            product = dot(w, row, lower + (m + j) * p + m, j + 1)
            w[unit + i * n + j] = product / (size * w[sizes + j])


@native
def shifted(w: Floats, unit: int, squares: int, n: int, damping: float) -> bool:
    """The factor of unit + damping·diag(squares), behind it; False where it is not positive definite."""
    into = unit + n * n
    for i in range(n):
        for j in range(i):
            w[into + i * n + j] = w[unit + i * n + j]
        w[into + i * n + i] = 1.0 + damping * w[squares + i]
    return cholesky(w, into, n, 0.0)


@native
def limited_step(task: Ints, w: Floats, n: int, radius: float) -> float:
    """`core.trust_region.limited` of n parameters: u with ‖q·u‖ = radius to ten per cent; its damping, −1 if none."""
    p, work = task[P], task[WORK]
    q, right, full, u, unit = work + Q * p, work + RIGHT * p, work + FULL * p, work + OUTER * p, work + 10 * p
    squares, slope, scaled, lower = work + SQUARES * p, work + SLOPES * p, work + SCALED * p, unit + n * n
    for i in range(n):
        w[squares + i] = w[q + i] * w[q + i]
        w[scaled + i] = w[right + i] / w[q + i]
        w[slope + i] = w[q + i] * w[full + i]
    low, high = 0.0, norm(w, scaled, n) / radius
    damping = min(max(1e-3 * high, high * radius / max(norm(w, slope, n), radius)), high)
    for _ in range(30):
        if not shifted(w, unit, squares, n, damping):
            low, damping = damping, max(math.sqrt(damping * high), 10.0 * damping)
            continue
        for i in range(n):
            w[u + i] = w[right + i]
        forward(w, lower, n, n, u)
        backward(w, lower, n, n, u)
        for i in range(n):
            w[scaled + i] = w[q + i] * w[u + i]
            w[slope + i] = w[squares + i] * w[u + i]
        length = norm(w, scaled, n)
        if abs(length - radius) <= 0.1 * radius:
            return damping
        if length > radius:
            low = damping
        else:
            high = damping
        forward(w, lower, n, n, slope)
        fall = dot(w, slope, slope, n)
        damping += (length / radius - 1.0) * length * length / fall if fall > 0.0 else math.inf
        if not low < damping < high:
            damping = math.sqrt(max(low, 1e-3 * high) * high)
    return -1.0


@native
def put_together(task: Ints, w: Floats, at: int) -> None:
    """The step of all parameters from that of the nonlinear ones."""
    p, m, norms, y = task[P], task[M], at + task[NORMS], at + task[Y]
    n, work, lower, delta = p - m, task[WORK], at + task[L], task[DELTA]
    q, outer, inner, moved = work + Q * p, work + OUTER * p, work + INNER * p, work + MOVED * p
    for i in range(n):
        w[moved + i] = w[q + i] * w[outer + i]
    w[LENGTH] = norm(w, moved, n)
    for i in range(n):
        w[outer + i] /= w[work + SIZES * p + i]
        w[delta + task[ORDER + m + i]] = w[outer + i] / w[norms + m + i]
    for k in range(n):
        w[moved + k] = 0.0
        for i in range(k, n):
            w[moved + k] += w[outer + i] * w[lower + (m + i) * p + m + k]
    w[FALL] = dot(w, y + m, moved, n)
    w[PREDICTED] = 2.0 * w[FALL] - dot(w, moved, moved, n)
    for k in range(m):
        w[inner + k] = w[y + k]
        for i in range(n):
            w[inner + k] -= w[outer + i] * w[lower + (m + i) * p + k]
    backward(w, lower, p, m, inner)
    for k in range(m):
        w[delta + task[ORDER + k]] = w[inner + k] / w[norms + k]


@native
def invert(task: Ints, w: Floats, at: int) -> float:
    """The inverse of JᵀWJ at a factorised point; its condition in the 1-norm, all parameters scaled."""
    p, norms, lower, column = task[P], at + task[NORMS], at + task[L], task[WORK]
    sums, h, into, largest, longest = column + p, at + task[H], task[INVERSE], 0.0, 0.0
    for i in range(p):
        w[sums + i] = 0.0
    for i in range(p):
        for k in range(p):
            w[column + k] = 1.0 if k == i else 0.0
        forward(w, lower, p, p, column)
        backward(w, lower, p, p, column)
        size = 0.0
        for k in range(p):
            a, b, scale = task[ORDER + i], task[ORDER + k], w[norms + i] * w[norms + k]
            size += abs(w[h + a * p + b]) / scale
            if k < i:
                continue
            entry = w[column + k]
            w[into + a * p + b] = entry / scale
            w[into + b * p + a] = entry / scale
            w[sums + i] += abs(entry)
            if k > i:
                w[sums + k] += abs(entry)
        largest = max(largest, size)
    for i in range(p):
        longest = max(longest, w[sums + i])
    return largest * longest
