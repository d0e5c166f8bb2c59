"""Steps of a compiled small fit where bounds are in the way: `core.trust_region` and `core.varpro` in general.

The parameters that a system is about are consecutive in the order of elimination. What it is told and
what it answers stands by parameter in the space BOX: right-hand side, room, D, δ; its matrix behind.
"""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import (
    EPS,
    FULL,
    OUTER,
    RIGHT,
    SIZES,
    SLACK,
    SQUARES,
    Q,
    backward,
    cholesky,
    dot,
    forward,
    full_step,
    limited_step,
    norm,
    shifted,
    step_of,
)
from nlsq_nb.backends.small.layout import (
    BOX,
    BOXED,
    CHANGE,
    DAMPING,
    DELTA,
    FALL,
    LENGTH,
    LOWER,
    NORMS,
    ORDER,
    PREDICTED,
    SCALE,
    UPPER,
    WORK,
    G,
    H,
    M,
    P,
    Y,
)
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.points import has_room

__all__ = ["gain_at", "lands", "relax_within", "step_at"]

PULL, LOW, HIGH, SIZE, STEP, TARGET, FREE, REST, MATRIX = range(9)
UNKNOWN, FAILED = -1.0, -2.0
INWARD = 1e-14  # as core.trust_region


@native
def make_room(task: Ints, w: Floats, at: int, share: float) -> None:
    """Right-hand side and room behind a share of the change of a point; no δ yet."""
    p, box, h = task[P], task[BOX], at + task[H]
    for k in range(p):
        first, pull = share * w[at + task[CHANGE] + k], w[at + task[G] + k]
        if share != 0.0:
            pull -= dot(w, h + k * p, at + task[CHANGE], p)
        w[box + PULL * p + k] = w[box + REST * p + k] = pull
        w[box + LOW * p + k] = w[task[LOWER] + k] - w[at + k] - first
        w[box + HIGH * p + k] = w[task[UPPER] + k] - w[at + k] - first
        w[box + STEP * p + k] = 0.0


@native
def take_block(task: Ints, w: Floats, at: int, first: int, n: int) -> None:
    """The matrix of some parameters as it is."""
    p, h, matrix = task[P], at + task[H], task[BOX] + MATRIX * task[P]
    for i in range(n):
        for j in range(n):
            w[matrix + i * n + j] = w[h + task[ORDER + first + i] * p + task[ORDER + first + j]]


@native
def count_free(task: Ints, w: Floats, first: int, n: int) -> int:
    """How many parameters are free; the others are to stay where they are."""
    p, box, count = task[P], task[BOX], 0
    for i in range(n):
        k = task[ORDER + first + i]
        w[box + TARGET * p + k] = 0.0
        if w[box + FREE * p + k] != 0.0:
            count += 1
        else:
            w[box + TARGET * p + k] = w[box + STEP * p + k]
    return count


@native
def gather(task: Ints, w: Floats, first: int, n: int, count: int) -> None:
    """The system of the free parameters in coordinates where its diagonal is 1."""
    p, box, work, a = task[P], task[BOX], task[WORK], 0
    free, target, matrix = box + FREE * p, box + TARGET * p, box + MATRIX * p
    q, sizes, unit = work + Q * p, work + SIZES * p, work + 10 * p
    for i in range(n):
        k = task[ORDER + first + i]
        if w[free + k] == 0.0:
            continue
        size, total, b = math.sqrt(w[matrix + i * n + i]), w[box + PULL * p + k], 0
        for j in range(n):
            other = task[ORDER + first + j]
            if w[free + other] == 0.0:
                total -= w[matrix + i * n + j] * w[target + other]
            elif j < i:
                w[unit + a * count + b] = w[matrix + i * n + j] / (size * w[sizes + b])
                b += 1
        w[sizes + a], w[work + RIGHT * p + a], w[q + a] = size, total / size, w[box + SIZE * p + k] / size
        w[work + SQUARES * p + a] = w[q + a] * w[q + a]
        a += 1


@native
def aim_at(task: Ints, w: Floats, first: int, n: int, radius: float, damping: float) -> float:
    """The minimum over the free parameters, the others where they are: TARGET; its damping, or FAILED."""
    p, box, work = task[P], task[BOX], task[WORK]
    count, found, outer, unit = count_free(task, w, first, n), work + FULL * p, work + OUTER * p, work + 10 * p
    gather(task, w, first, n, count)
    if not shifted(w, unit, work + SQUARES * p, count, max(damping, 0.0)):
        return FAILED
    for i in range(count):
        w[found + i] = w[work + RIGHT * p + i]
    forward(w, unit + count * count, count, count, found)
    backward(w, unit + count * count, count, count, found)
    if damping == UNKNOWN:
        damping = 0.0
        for i in range(count):
            w[outer + i] = w[work + Q * p + i] * w[found + i]
        if norm(w, outer, count) > SLACK * radius:
            found, damping = outer, limited_step(task, w, count, radius)
    a = 0
    for i in range(n):
        k = task[ORDER + first + i]
        if w[box + FREE * p + k] != 0.0:
            w[box + TARGET * p + k] = w[found + a] / w[work + SIZES * p + a]
            a += 1
    return damping if damping >= 0.0 else FAILED


@native
def is_stopped(task: Ints, w: Floats, first: int, n: int) -> bool:
    """Go to the target, or as far as bounds allow: what stops it there is not free from now on."""
    p, box, stop, least, wall = task[P], task[BOX], -1, math.inf, 0.0
    step, target, outside = box + STEP * p, box + TARGET * p, False
    for i in range(n):
        k = task[ORDER + first + i]
        low, high, way = w[box + LOW * p + k], w[box + HIGH * p + k], w[target + k] - w[step + k]
        outside = outside or w[target + k] < low or w[target + k] > high
        if way != 0.0:
            limit = high if way > 0.0 else low
            share = (limit - w[step + k]) / way
            if share < least:
                least, stop, wall = share, k, limit
    outside = outside and stop >= 0
    for i in range(n):
        k = task[ORDER + first + i]
        w[step + k] = w[step + k] + least * (w[target + k] - w[step + k]) if outside else w[target + k]
    if outside:
        w[step + stop] = wall
        w[box + FREE * p + stop] = 0.0
    return outside


@native
def release(task: Ints, w: Floats, first: int, n: int, damping: float) -> bool:
    """Free the held parameter that is drawn inwards most, if any is."""
    p, box, worst, most, total = task[P], task[BOX], -1, 0.0, 0.0
    step, matrix = box + STEP * p, box + MATRIX * p
    for i in range(n):
        k = task[ORDER + first + i]
        size, low, high = w[box + SIZE * p + k], w[box + LOW * p + k], w[box + HIGH * p + k]
        unit = size if size > 0.0 else 1.0
        force = w[box + PULL * p + k]
        total += (force / unit) * (force / unit)
        if w[box + FREE * p + k] != 0.0 or not (low < high and w[matrix + i * (n + 1)] > 0.0):
            continue
        for j in range(n):
            force -= w[matrix + i * n + j] * w[step + task[ORDER + first + j]]
        force -= damping * size * size * w[step + k]
        inward = force / unit if w[step + k] == low else 0.0
        if w[step + k] == high:
            inward = -force / unit
        if inward > most:
            worst, most = k, inward
    if worst < 0 or most <= INWARD * math.sqrt(total):
        return False
    w[box + FREE * p + worst] = 1.0
    return True


@native
def solve_box(task: Ints, w: Floats, first: int, n: int, radius: float) -> float:
    """`core.trust_region.trust_region_step`: δ as STEP; its damping, or FAILED."""
    p, box, damping = task[P], task[BOX], UNKNOWN
    for i in range(n):
        k = task[ORDER + first + i]
        pull, low, high = w[box + PULL * p + k], w[box + LOW * p + k], w[box + HIGH * p + k]
        held = (low == 0.0 and pull < 0.0) or (high == 0.0 and pull > 0.0) or not low < high
        held = held or not w[box + MATRIX * p + i * (n + 1)] > 0.0
        w[box + FREE * p + k] = 0.0 if held else 1.0
        w[box + STEP * p + k] = 0.0
    for _ in range(3 * n + 3):
        damping = aim_at(task, w, first, n, radius, damping)
        if damping == FAILED:
            return FAILED
        if is_stopped(task, w, first, n):
            continue
        if not release(task, w, first, n, damping):
            break
    return damping


@native
def gain_of(task: Ints, w: Floats, at: int, step: int, pull: int) -> float:
    """2 gᵀδ − δᵀHδ."""
    p, slope, bend = task[P], 0.0, 0.0
    for k in range(p):
        slope += w[pull + k] * w[step + k]
        bend += w[step + k] * dot(w, at + task[H] + k * p, step, p)
    return 2.0 * slope - bend


@native
def relax_within(task: Ints, w: Floats, at: int) -> float:
    """The change of the linear parameters to their best values within bounds; what it takes off the sse, or FAILED."""
    p, m, box = task[P], task[M], task[BOX]
    make_room(task, w, at, 0.0)
    for i in range(m):
        w[box + SIZE * p + task[ORDER + i]] = w[at + task[NORMS] + i]
    take_block(task, w, at, 0, m)
    if solve_box(task, w, 0, m, math.inf) == FAILED:
        return FAILED
    for k in range(p):
        w[at + task[CHANGE] + k] = w[box + STEP * p + k]
    return max(gain_of(task, w, at, box + STEP * p, box + REST * p), 0.0)


@native
def lands(task: Ints, w: Floats, at: int) -> bool:
    """Whether relaxing a solved point brings a linear parameter to a bound; see `phases.gauss_newton`."""
    for i in range(task[M] if w[at + task[BOXED]] != 0.0 else 0):
        k = task[ORDER + i]
        step, low, high = w[at + task[CHANGE] + k], w[task[LOWER] + k] - w[at + k], w[task[UPPER] + k] - w[at + k]
        if step == low < 0.0 or step == high > 0.0:
            return True
    return False


@native
def gain_at(task: Ints, w: Floats, at: int) -> float:
    """`Quadratic.gain`: what a full step from a solved point would take off the sse, or FAILED."""
    p, box = task[P], task[BOX]
    if w[at + task[BOXED]] == 0.0:
        full_step(task, w, at, task[WORK])
        if has_room(task, w, at, task[WORK], p):
            return dot(w, at + task[Y], at + task[Y], p)
    make_room(task, w, at, 0.0)
    for k in range(p):
        w[box + SIZE * p + k] = w[task[SCALE] + k]
    take_block(task, w, at, 0, p)
    if solve_box(task, w, 0, p, math.inf) == FAILED:
        return FAILED
    return abs(gain_of(task, w, at, box + STEP * p, box + REST * p))


@native
def step_at(task: Ints, w: Floats, at: int, radius: float) -> bool:
    """`Quadratic.step`: δ, and ‖Dδ‖, damping, slope and prediction among what is found; False to give up."""
    if w[at + task[BOXED]] == 0.0:
        if not step_of(task, w, at, radius):
            return False
        if has_room(task, w, at, task[DELTA], task[P]):
            return True
    return step_within(task, w, at, radius)


@native
def step_within(task: Ints, w: Floats, at: int, radius: float) -> bool:
    """`core.varpro.reduced_step`."""
    p, m, box, delta = task[P], task[M], task[BOX], task[DELTA]
    if m == p:
        m, radius = 0, math.inf
    make_room(task, w, at, 1.0 if m > 0 else 0.0)
    for k in range(p):
        w[box + SIZE * p + k] = w[task[SCALE] + k]
        w[delta + k] = 0.0
    take_block(task, w, at, m, p - m)
    if m > 0 and not reduce(task, w, at):
        return False
    w[DAMPING] = solve_box(task, w, m, p - m, radius)
    if w[DAMPING] == FAILED:
        return False
    total = 0.0
    for i in range(m, p):
        k = task[ORDER + i]
        w[delta + k] = w[box + STEP * p + k]
        total += w[task[SCALE] + k] * w[delta + k] * (w[task[SCALE] + k] * w[delta + k])
    w[LENGTH] = math.sqrt(total)
    if m > 0 and not follow_within(task, w, at):
        return False
    w[FALL] = dot(w, box + REST * p, delta, p)
    w[PREDICTED] = gain_of(task, w, at, delta, box + REST * p)
    for k in range(p):
        first = w[at + task[CHANGE] + k] if m > 0 else 0.0
        low, high = w[task[LOWER] + k] - w[at + k], w[task[UPPER] + k] - w[at + k]
        there = min(max(first + w[delta + k], low), high)
        if w[delta + k] == w[box + LOW * p + k]:
            there = low
        elif w[delta + k] == w[box + HIGH * p + k]:
            there = high
        w[delta + k] = there
    return True


@native
def follow_within(task: Ints, w: Floats, at: int) -> bool:
    """Add to δ the linear parameters at their best behind it, within bounds; False to give up."""
    p, m, box, delta = task[P], task[M], task[BOX], task[DELTA]
    for i in range(m):
        k = task[ORDER + i]
        w[box + PULL * p + k] -= dot(w, at + task[H] + k * p, delta, p)
        w[box + SIZE * p + k] = w[at + task[NORMS] + i]
    take_block(task, w, at, 0, m)
    if solve_box(task, w, 0, m, math.inf) == FAILED:
        return False
    for i in range(m):
        w[delta + task[ORDER + i]] = w[box + STEP * p + task[ORDER + i]]
    return True


@native
def reduce(task: Ints, w: Floats, at: int) -> bool:
    """Eliminate from the matrix of the others the linear parameters that no bound holds: `core.varpro.schur`."""
    p, m, box, work, count = task[P], task[M], task[BOX], task[WORK], 0
    h, matrix, lower, sizes, n = at + task[H], box + MATRIX * p, work + 10 * p, work + SIZES * p, p - m
    inner, rows = box + FREE * p, work + 10 * p + p * p
    for i in range(m):
        k = task[ORDER + i]
        if w[box + LOW * p + k] < 0.0 and w[box + HIGH * p + k] > 0.0 and w[h + k * (p + 1)] > 0.0:
            w[inner + count] = k
            count += 1
    for i in range(count):
        row = int(w[inner + i])
        w[sizes + i] = math.sqrt(w[h + row * (p + 1)])
        for j in range(i):
            w[lower + i * count + j] = w[h + row * p + int(w[inner + j])] / (w[sizes + i] * w[sizes + j])
        w[lower + i * count + i] = 1.0
    if not cholesky(w, lower, count, 0.0):
        return False
    for i in range(n):
        k = task[ORDER + m + i]
        for j in range(count):
            w[rows + i * count + j] = w[h + k * p + int(w[inner + j])] / w[sizes + j]
        forward(w, lower, count, count, rows + i * count)
        for j in range(i + 1):
            left = w[matrix + i * n + j] - dot(w, rows + i * count, rows + j * count, count)
            if i == j:
                left = max(left, p * EPS * w[matrix + i * n + i])
            w[matrix + i * n + j] = w[matrix + j * n + i] = left
    return True
