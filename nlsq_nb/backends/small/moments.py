"""Moments of y, and whether x is finite, in one pass over columns of float64."""

from __future__ import annotations

from nlsq_nb.backends.small.native import Floats, Ints, column_value, native

__all__ = ["ABOVE", "ABOVE_TWICE", "CENTRE", "COLUMNS", "ODD", "WEIGHT", "moments"]

ROWS, INPUTS, OUTPUTS, WEIGHTED, COLUMNS = range(5)
"""What `task` has: numbers of rows, of columns of x and of y, whether there are weights, and all addresses."""

CENTRE, ABOVE_TWICE, ABOVE, WEIGHT, ODD = range(5)
"""What `w` has: c, then what is found: Σ w (y − c)², Σ w (y − c), Σ w, and Σ 0·x, which is nan unless x is finite."""

PIECE = 128  # rows that are summed one after the other: the error grows with their number


@native
def odd(task: Ints) -> float:
    """Σ 0·x over all columns of x."""
    found = 0.0
    for k in range(task[INPUTS]):
        for i in range(task[ROWS]):
            found += 0.0 * column_value(task, COLUMNS + k, i)
    return found


@native
def add(task: Ints, w: Floats, y: int, v: int) -> None:
    """Add the moments of a column of y, whose weights are in column v; v = 0 for ones."""
    rows, c = task[ROWS], w[CENTRE]
    for lo in range(0, rows, PIECE):
        twice = above = weight = 0.0
        for i in range(lo, min(lo + PIECE, rows)):
            d = column_value(task, y, i) - c
            if v > 0:
                share = column_value(task, v, i)
                twice += share * d * d
                above += share * d
                weight += share
            else:
                twice += d * d
                above += d
                weight += 1.0
        w[ABOVE_TWICE] += twice
        w[ABOVE] += above
        w[WEIGHT] += weight


@native
def moments(task: Ints, w: Floats) -> int:
    """Sum over all residuals; always 1."""
    w[ABOVE_TWICE] = w[ABOVE] = w[WEIGHT] = 0.0
    w[ODD] = odd(task)
    first = COLUMNS + task[INPUTS]
    for k in range(task[OUTPUTS]):
        y = first + k
        add(task, w, y, y + task[OUTPUTS] if task[WEIGHTED] != 0 else 0)
    return 1
