"""The sums of segments, added in sections as `core.compensated.add_in_sections` does."""

from __future__ import annotations

from nlsq_nb.backends.small.native import Floats, Ints, column_value, native
from nlsq_nb.core.compensated import PER_SECTION

__all__ = ["close_section", "fold", "fold_all", "fold_sections"]

COUNT, SIZE, STATES, BEGUN, BEFORE = range(5)
"""What `task` has: the number of segments, of sums, and the address of the high and low sums of each in turn; how many
segments of their section, and sections, came before."""


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
def close_section(w: Floats, size: int, before: int) -> None:
    """Add the section that `w` begins with to those before it, which follow; there may be none."""
    for k in range(size):
        if before == 0:
            w[2 * size + k] = w[k]
            w[3 * size + k] = w[size + k]
        else:
            advance(w, 2 * size + k, size, w[k], w[size + k])


@native
def fold_sections(task: Ints, w: Floats, begun: int, before: int) -> int:
    """Add all segments to the high and low sums of sections; how many of the last one there are, 0 if it is complete.

    `begun` segments of the section that `w` begins with are there, and sections `before` it.
    """
    size, part, inside, sections = task[SIZE], 0, begun, before
    for _ in range(task[COUNT]):
        for k in range(size):
            value, low = column_value(task, STATES, part + k), column_value(task, STATES, part + size + k)
            if inside == 0:  # not zeros plus the first, which would lose the sign of a zero
                w[k] = value
                w[size + k] = low
            else:
                advance(w, k, size, value, low)
        part += 2 * size
        inside += 1
        if inside == PER_SECTION:
            close_section(w, size, sections)
            sections += 1
            inside = 0
    return inside


@native
def fold_all(task: Ints, w: Floats) -> int:
    """Add those of all segments; always 1."""
    fold_sections(task, w, task[BEGUN], task[BEFORE])
    return 1
