"""What the phases of a small fit are told of its data: a column of x, one of y, and weights."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.layout import (
    GIVEN_SIGNAL,
    ROWS,
    SPREAD,
    TABLE,
    UNIT,
    VARIANCE,
    WEIGHT,
    WEIGHTED,
)
from nlsq_nb.backends.small.moments import CENTRE, FOUND, PIECE, add
from nlsq_nb.backends.small.native import Floats, Ints, column_value, native
from nlsq_nb.core.layout import BLOCK

__all__ = ["survey"]

LEAST = 2.2250738585072014e-308  # signal of which squares lose no digits


@native
def lost(a: float, b: float) -> float:
    """What rounding takes off a + b."""
    total = a + b
    rest = total - a
    return (a - (total - rest)) + (b - rest)


@native
def survey(task: Ints, w: Floats) -> int:
    """Fill the settings as `scan.summarize` finds them; 0 where there is something to complain of."""
    rows, x, y = task[ROWS], task[TABLE], task[TABLE] + 1
    v = task[TABLE] + 2 if task[WEIGHTED] != 0 else 0
    odd = 0.0
    for i in range(rows):
        odd += 0.0 * column_value(task, x, i)
    c = column_value(task, y, 0)
    w[CENTRE] = c
    twice = above = weight = 0.0
    twice_low = above_low = weight_low = 0.0
    for block in range(0, rows, BLOCK):
        w[FOUND] = w[FOUND + 1] = w[FOUND + 2] = 0.0
        for begin in range(block, min(block + BLOCK, rows), PIECE):
            add(task, w, y, v, begin, min(begin + PIECE, block + BLOCK, rows), FOUND)
        twice_low += lost(twice, w[FOUND])
        above_low += lost(above, w[FOUND + 1])
        weight_low += lost(weight, w[FOUND + 2])
        twice += w[FOUND]
        above += w[FOUND + 1]
        weight += w[FOUND + 2]
    twice += twice_low
    above += above_low
    weight += weight_low
    signal = twice + 2.0 * c * above + c * c * weight
    if odd != 0.0 or not math.isfinite(signal) or signal < LEAST:
        return 0
    spread = max(twice - above * (above / weight), 0.0)
    unit = spread / weight if spread > 0.0 else signal / weight
    w[GIVEN_SIGNAL], w[WEIGHT] = signal, weight
    w[UNIT] = unit if unit > 0.0 else 1.0
    w[VARIANCE] = spread / weight
    w[SPREAD] = spread
    return 1
