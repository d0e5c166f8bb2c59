"""What neighbouring residuals have in common, and whether rows are in order, in one pass over columns of float64."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.native import Floats, Ints, column_value, native

__all__ = ["COLUMNS", "IN_COMMON", "IN_ORDER", "ROWS", "WEIGHTED", "pattern"]

ROWS, WEIGHTED, COLUMNS = range(3)
"""What `task` has: the number of rows, whether there are weights, and the addresses of x, y, the model, and weights."""

IN_ORDER, IN_COMMON = range(2)
"""What `w` takes: 1 where x rises from row to row, else 0; and the number of `core.elsewhere.common_part`."""


@native
def residual(task: Ints, row: int) -> float:
    """√w (y − f) of a row."""
    r = column_value(task, COLUMNS + 1, row) - column_value(task, COLUMNS + 2, row)
    if task[WEIGHTED] != 0:
        r *= math.sqrt(column_value(task, COLUMNS + 3, row))
    return r


@native
def pattern(task: Ints, w: Floats) -> int:
    """Look at all rows; always 1."""
    rows = task[ROWS]
    rises = 1.0
    total = first = second = third = 0.0
    one = two = three = 0.0  # the residuals of the rows before
    for i in range(rows):
        if i > 0 and not column_value(task, COLUMNS, i) > column_value(task, COLUMNS, i - 1):
            rises = 0.0
        r = residual(task, i)
        total += r * r
        first += r * one
        second += r * two
        third += r * three
        three = two
        two = one
        one = r
    w[IN_ORDER] = rises
    w[IN_COMMON] = 0.0
    if rows > 6 and total > 0.0:
        first /= total
        second /= total
        third /= total
        w[IN_COMMON] = rows * (first * first + second * second + third * third)
    return 1
