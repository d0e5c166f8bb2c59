"""Moments of y by blocks, and whether x is finite, in one pass over columns of float64."""

from __future__ import annotations

from nlsq_nb.backends.small.native import Floats, Ints, column_value, native
from nlsq_nb.core.layout import BLOCK

__all__ = ["CENTRE", "COLUMNS", "FOUND", "ODD", "moments"]

ROWS, INPUTS, OUTPUTS, WEIGHTED, COLUMNS = range(5)
"""What `task` has: numbers of rows, of columns of x and of y, whether there are weights, and all addresses."""

CENTRE, ODD, FOUND = range(3)
"""What `w` has: c, then what is found: Σ 0·x, which is nan unless x is finite, and for each block of each output in
turn Σ w (y − c)², Σ w (y − c), Σ w."""

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
def add(task: Ints, w: Floats, y: int, v: int, begin: int, end: int, into: int) -> None:
    """Add the moments of some rows of a column of y, whose weights are in column v; v = 0 for ones."""
    c = w[CENTRE]
    twice = above = weight = 0.0
    for i in range(begin, end):
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
    w[into] += twice
    w[into + 1] += above
    w[into + 2] += weight


@native
def moments(task: Ints, w: Floats) -> int:
    """Sum over all residuals, block by block; always 1."""
    rows, first, into = task[ROWS], COLUMNS + task[INPUTS], FOUND
    w[ODD] = odd(task)
    for k in range(task[OUTPUTS]):
        y = first + k
        v = y + task[OUTPUTS] if task[WEIGHTED] != 0 else 0
        for block in range(0, rows, BLOCK):
            w[into] = w[into + 1] = w[into + 2] = 0.0
            for begin in range(block, min(block + BLOCK, rows), PIECE):
                add(task, w, y, v, begin, min(begin + PIECE, block + BLOCK, rows), into)
            into += 3
    return 1
