"""The sums of segments, added one after the other as `core.sums.add_segments` does."""

from __future__ import annotations

from nlsq_nb.backends.small.native import Floats, Ints, column_value, native

__all__ = ["fold", "fold_all", "fold_from"]

COUNT, SIZE, STATES = range(3)
"""What `task` has: the number of segments, of sums, and the address of the high and low sums of each in turn."""


@native
def advance(w: Floats, at: int, size: int, value: float, low: float) -> None:
    """One step of compensated summation: w[at] and, `size` further on, what rounding left out of it."""
    high = w[at]
    total = high + value
    rest = total - high
    w[at] = total
    w[at + size] += (high - (total - rest)) + (value - rest)
    w[at + size] += low


@native
def fold(w: Floats, state: int, part: int, size: int) -> None:
    """Add the sums of a segment, both in `w`."""
    for k in range(size):
        advance(w, state + k, size, w[part + k], w[part + size + k])


@native
def fold_from(first: int, task: Ints, w: Floats) -> None:
    """Add those of the segments from one on to the high and low sums that `w` begins with."""
    size = task[SIZE]
    part = 2 * first * size
    for _ in range(first, task[COUNT]):
        for k in range(size):
            advance(w, k, size, column_value(task, STATES, part + k), column_value(task, STATES, part + size + k))
        part += 2 * size


@native
def fold_all(task: Ints, w: Floats) -> int:
    """Add those of all segments; always 1."""
    fold_from(0, task, w)
    return 1
