"""The memory of the warm-up of a compiled small fit, and directions from it: `core.lbfgs`."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import dot, norm
from nlsq_nb.backends.small.layout import (
    BENDS,
    CLIP,
    DOWN,
    HERE,
    KEPT,
    LOWER,
    MEMORY,
    ORDER,
    PAIRS,
    S_PAIRS,
    SCALES,
    SHARES,
    SLOPE,
    STEEP,
    UPPER,
    WAY,
    Y_PAIRS,
    M,
    P,
)
from nlsq_nb.backends.small.native import Floats, Ints, native

__all__ = ["direction", "look_down", "remember"]

CURVATURE = 1e-10  # as there


@native
def direction(task: Ints, w: Floats) -> None:
    """`core.lbfgs.direction` of the clipped gradient."""
    p, gradient, way, count = task[P], task[DOWN], task[WAY], int(w[PAIRS])
    steps, yields, bends, shares = task[S_PAIRS], task[Y_PAIRS], task[BENDS], task[SHARES]
    shrink = w[CLIP] / w[STEEP] if w[STEEP] > w[CLIP] else 1.0
    for k in range(p):
        w[way + k] = -w[gradient + k] * shrink
    for i in range(count - 1, -1, -1):
        w[shares + i] = dot(w, steps + i * p, way, p) / w[bends + i]
        for k in range(p):
            w[way + k] -= w[shares + i] * w[yields + i * p + k]
    last = yields + (count - 1) * p
    size = w[bends + count - 1] / dot(w, last, last, p)
    for k in range(p):
        w[way + k] *= size
    for i in range(count):
        share = w[shares + i] - dot(w, yields + i * p, way, p) / w[bends + i]
        for k in range(p):
            w[way + k] += share * w[steps + i * p + k]
    for k in range(p):
        if w[gradient + k] == 0.0:
            w[way + k] = 0.0


@native
def remember(task: Ints, w: Floats) -> None:
    """`core.lbfgs.remember` of the way from the current point to what was found."""
    p, old, new, capacity, count = task[P], task[HERE], task[KEPT], task[MEMORY], int(w[PAIRS])
    steps, yields, bends = task[S_PAIRS], task[Y_PAIRS], task[BENDS]
    s, y = steps + count * p, yields + count * p
    for k in range(p):
        w[s + k] = 0.0
        w[y + k] = w[new + task[SLOPE] + k] - w[old + task[SLOPE] + k]
    for i in range(task[M], p):
        k = task[ORDER + i]
        w[s + k] = (w[new + k] - w[old + k]) / w[task[SCALES] + k]
    bend = dot(w, s, y, p)
    if not bend > CURVATURE * math.sqrt(dot(w, s, s, p) * dot(w, y, y, p)):
        return
    w[bends + count] = bend
    if count < capacity:
        w[PAIRS] = count + 1
        return
    for i in range(capacity * p):  # the oldest gives way
        w[steps + i] = w[steps + p + i]
        w[yields + i] = w[yields + p + i]
    for i in range(capacity):
        w[bends + i] = w[bends + i + 1]


@native
def look_down(task: Ints, w: Floats) -> None:
    """`core.lbfgs.projected_gradient` of the current point, and its norm."""
    here, down = task[HERE], task[DOWN]
    for k in range(task[P]):
        slope = w[here + task[SLOPE] + k]
        held = w[here + k] <= w[task[LOWER] + k] if slope > 0.0 else w[here + k] >= w[task[UPPER] + k]
        w[down + k] = 0.0 if held else slope
    w[STEEP] = norm(w, down, task[P])
