"""Algebra of a compiled small fit: factors and trust-region steps in one flat array, without allocation.

The plain region of `core.factor` and `core.trust_region`: well-conditioned systems, no bound in the
way. All vectors and matrices (rows by rows) are stretches of one array `w`, named by their offsets:
compiled functions of many small arrays take ten times as long to compile.
"""

from __future__ import annotations

import math

from nlsq_nb.backends.small.native import Floats, Ints, native

__all__ = ["cholesky", "condition", "dot", "factorize", "norm", "reduced_norms", "relax", "step_of"]

PIVOT = 1e-4  # as core.factor: below, half of the digits left after elimination are rounding errors
SLACK = 1.1  # as core.trust_region


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
    """v ← L⁻¹v."""
    for i in range(n):
        w[v + i] = (w[v + i] - dot(w, a + i * stride, v, i)) / w[a + i * stride + i]


@native
def backward(w: Floats, a: int, stride: int, n: int, v: int) -> None:
    """v ← L⁻ᵀv."""
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
def factorize(w: Floats, at: int, p: int, order: Ints, count: int) -> bool:
    """`core.factor.factorize` of a point for the parameters order[:count], in its own stretches.

    The factor has rows of `count` numbers. False where the general way is needed.
    """
    norms, y, u, g, h = at + 3 * p, at + 4 * p, at + 5 * p, at + 6 * p, at + 7 * p
    lower = h + p * p
    for i in range(count):
        square = w[h + order[i] * p + order[i]]
        if not 0.0 < square < math.inf:
            return False
        w[norms + i] = math.sqrt(square)
    for i in range(count):
        for j in range(i):
            w[lower + i * count + j] = w[h + order[i] * p + order[j]] / (w[norms + i] * w[norms + j])
        w[lower + i * count + i] = 1.0
        w[y + i] = w[g + order[i]] / w[norms + i]
    if not cholesky(w, lower, count, PIVOT):
        return False
    forward(w, lower, count, count, y)
    for i in range(count):
        w[u + i] = w[y + i]
    backward(w, lower, count, count, u)
    return True


@native
def relax(
    w: Floats, lower: int, stride: int, norms: int, y: int, m: int, order: Ints, change: int,
    spare: int
) -> float:
    """The step of the first m parameters to their best values; the reduction of the sse."""
    for i in range(m):
        w[spare + i] = w[y + i]
    backward(w, lower, stride, m, spare)
    for i in range(m):
        w[change + order[i]] = w[spare + i] / w[norms + i]
    return dot(w, y, y, m)


@native
def reduced_norms(
    w: Floats, lower: int, norms: int, m: int, count: int, order: Ints, out: int
) -> None:
    """Column norms with the first m parameters eliminated for the others."""
    for i in range(count):
        size = 1.0
        if m != 0 and m != count and i >= m:
            size = norm(w, lower + i * count + m, i + 1 - m)
        w[out + order[i]] = w[norms + i] * size


@native
def shifted(w: Floats, unit: int, squares: int, n: int, damping: float, into: int) -> bool:
    """The factor of unit + damping·diag(squares); False where it is not positive definite."""
    for i in range(n):
        for j in range(i):
            w[into + i * n + j] = w[unit + i * n + j]
        w[into + i * n + i] = 1.0 + damping * w[squares + i]
    return cholesky(w, into, n, 0.0)


@native
def limited_step(
    w: Floats, unit: int, right: int, q: int, n: int, radius: float, full: int, u: int, spare: int
) -> float:
    """`core.trust_region.limited`: u with ‖q·u‖ = radius to ten per cent; its damping, −1 if none.

    `spare` is space for n (n + 3) numbers.
    """
    squares, slope, scaled, lower = spare, spare + n, spare + 2 * n, spare + 3 * n
    for i in range(n):
        w[squares + i] = w[q + i] * w[q + i]
        w[scaled + i] = w[right + i] / w[q + i]
        w[slope + i] = w[q + i] * w[full + i]
    low, high = 0.0, norm(w, scaled, n) / radius
    damping = min(max(1e-3 * high, high * radius / max(norm(w, slope, n), radius)), high)
    for _ in range(30):
        if not shifted(w, unit, squares, n, damping, lower):
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
def step_of(
    w: Floats, at: int, p: int, m: int, count: int, order: Ints, scale: int, radius: float,
    delta: int, found: int, spare: int
) -> bool:
    """`Factor.step`: δ, and ‖Dδ‖, damping, slope and prediction in `found`; False to give up."""
    norms, y, u, lower = at + 3 * p, at + 4 * p, at + 5 * p, at + 7 * p + p * p
    if m == count:
        m, radius = 0, math.inf
    n = count - m
    q, right, full, outer, moved = spare, spare + p, spare + 2 * p, spare + 3 * p, spare + 4 * p
    size, inner, schur, rest = spare + 5 * p, spare + 6 * p, spare + 7 * p, spare + 7 * p + p * p
    for i in range(n):
        w[q + i] = w[scale + order[m + i]] / w[norms + m + i]
        w[moved + i] = w[q + i] * w[u + m + i]
    length, gain = norm(w, moved, n), dot(w, y + m, y + m, n)
    if length <= SLACK * radius:
        for i in range(count):
            w[delta + order[i]] = w[u + i] / w[norms + i]
        w[found], w[found + 1], w[found + 2], w[found + 3] = length, 0.0, gain, gain
        return True
    for i in range(n):
        row = lower + (m + i) * count + m
        w[size + i] = norm(w, row, i + 1)
        w[right + i] = dot(w, row, y + m, i + 1) / w[size + i]
        w[q + i] /= w[size + i]
        w[full + i] = w[size + i] * w[u + m + i]
        for j in range(i):
            product = dot(w, row, lower + (m + j) * count + m, j + 1)
            w[schur + i * n + j] = product / (w[size + i] * w[size + j])
    damping = limited_step(w, schur, right, q, n, radius, full, outer, rest)
    if damping < 0.0:
        return False
    for i in range(n):
        w[moved + i] = w[q + i] * w[outer + i]
    length = norm(w, moved, n)
    for i in range(n):
        w[outer + i] /= w[size + i]
    for k in range(n):
        w[moved + k] = 0.0
        for i in range(k, n):
            w[moved + k] += w[outer + i] * w[lower + (m + i) * count + m + k]
    slope, square = dot(w, y + m, moved, n), dot(w, moved, moved, n)
    for k in range(m):
        w[inner + k] = w[y + k]
        for i in range(n):
            w[inner + k] -= w[outer + i] * w[lower + (m + i) * count + k]
    backward(w, lower, count, m, inner)
    for k in range(m):
        w[delta + order[k]] = w[inner + k] / w[norms + k]
    for i in range(n):
        w[delta + order[m + i]] = w[outer + i] / w[norms + m + i]
    w[found], w[found + 1], w[found + 2], w[found + 3] = length, damping, slope, 2.0 * slope - square
    return True
