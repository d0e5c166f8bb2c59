"""Points of a compiled small fit: measuring them, moving between them, staying clear of bounds."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import EPS
from nlsq_nb.backends.small.folding import fold
from nlsq_nb.backends.small.layout import (
    BOUNDED,
    BROKEN,
    CHANGE,
    DONE,
    FIRST_SSE,
    GIVEN,
    GIVEN_SSE,
    KERNEL,
    LOWER,
    ONE,
    ORDER,
    PASSES,
    RECORD,
    RESULTS,
    ROWS,
    SIZE,
    SPAN,
    SSE,
    SUMS,
    TABLE,
    TAKEN_UP,
    UPPER,
    G,
    H,
    P,
)
from nlsq_nb.backends.small.native import Floats, Ints, call_kernel, native

__all__ = ["clear", "copy_point", "enter", "has_room", "is_inside", "measure", "move"]

NEAR = 4.0 * EPS  # as core.bounds


@native
def copy_point(task: Ints, w: Floats, source: int, target: int) -> None:
    """Make a point another one."""
    for k in range(task[RECORD]):
        w[target + k] = w[source + k]


@native
def unpack(task: Ints, w: Floats, at: int) -> float:
    """Fill g and H of a point from its sums: the sse; inf where anything is not finite."""
    p, g, h, state, size = task[P], at + task[G], at + task[H], at + task[SUMS], task[SIZE]
    for k in range(size):
        if not math.isfinite(w[state + k] + w[state + size + k]):
            return math.inf
    packed = state + 1 + p
    for i in range(p):
        w[g + i] = w[state + 1 + i] + w[state + size + 1 + i]
        for j in range(i, p):
            total = w[packed] + w[packed + size]
            w[h + i * p + j] = total
            w[h + j * p + i] = total
            packed += 1
    return float(w[state] + w[state + size])


@native
def measure(task: Ints, w: Floats, at: int) -> float:
    """One pass of order 2: the sse, with g and H filled; inf where anything is not finite, and once a pass failed."""
    if w[BROKEN] > 0.0:
        return math.inf
    rows, state, size = task[ROWS], at + task[SUMS], task[SIZE]
    part = state + 2 * size
    w[PASSES] += 1.0
    lo, span = 0, task[SPAN]
    while lo < rows:
        into = part if lo > 0 else state
        for k in range(2 * size):
            w[into + k] = 0.0
        if call_kernel(task[KERNEL], lo, min(lo + span, rows), task, task[TABLE], w, at, into) != task[DONE]:
            w[BROKEN] = 1.0
            return math.inf
        if lo > 0:
            fold(w, state, part, size)
        lo += span
    return unpack(task, w, at)


@native
def move(task: Ints, w: Floats, source: int, change: int, share: float, target: int) -> None:
    """`core.bounds.moved` by a share of a change."""
    for k in range(task[P]):
        step = share * w[change + k]
        there = w[source + k] + step
        if task[BOUNDED] != 0:
            low, high, slack = w[task[LOWER] + k], w[task[UPPER] + k], NEAR * (abs(w[source + k]) + abs(there))
            if step < 0.0 and there <= low + slack:
                there = low
            elif step > 0.0 and there >= high - slack:
                there = high
        w[target + k] = there


@native
def has_room(task: Ints, w: Floats, at: int, change: int, count: int) -> bool:
    """Whether a change of the first parameters in the order stays clear of their bounds."""
    for i in range(count if task[BOUNDED] != 0 else 0):
        k = task[ORDER + i]
        if not w[task[LOWER] + k] - w[at + k] < w[change + k] < w[task[UPPER] + k] - w[at + k]:
            return False
    return True


@native
def is_inside(task: Ints, w: Floats, at: int) -> bool:
    """Whether a point is on no bound."""
    for k in range(task[P] if task[BOUNDED] != 0 else 0):
        if w[at + k] == w[task[LOWER] + k] or w[at + k] == w[task[UPPER] + k]:
            return False
    return True


@native
def clear(task: Ints, w: Floats, at: int) -> None:
    """Take back the change of a point: it stands where it was measured."""
    for k in range(task[P]):
        w[at + task[CHANGE] + k] = 0.0


@native
def enter(task: Ints, w: Floats) -> bool:
    """Measure the start unless its sums are given; False to give up."""
    one = task[ONE]
    for k in range(RESULTS if task[GIVEN] != TAKEN_UP else 0):
        w[k] = 0.0
    for k in range(task[P]):
        if not w[task[LOWER] + k] <= w[one + k] <= w[task[UPPER] + k]:
            return False
    w[SSE] = unpack(task, w, one) if task[GIVEN] != 0 else measure(task, w, one)
    w[FIRST_SSE] = w[GIVEN_SSE] if math.isfinite(w[GIVEN_SSE]) else w[SSE]
    return math.isfinite(w[SSE])
