"""What kind of stationary point a compiled small fit is at: `phases.stationary`."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import EPS, is_conditioned
from nlsq_nb.backends.small.boxed import step_at
from nlsq_nb.backends.small.layout import (
    BOUNDED,
    CEILING,
    DELTA,
    HERE,
    LOWER,
    NORMS,
    ORDER,
    PLACE,
    ROWS,
    SCALES,
    SIGNAL,
    SSE,
    STEPS,
    TOL,
    UPPER,
    G,
    H,
    L,
    M,
    P,
)
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.points import move

__all__ = ["is_beside", "is_held", "is_regular", "is_spent", "sees_all"]

LEAST, NOTHING, SINGULAR = 1.4916681462400413e-154, 64.0 * EPS, 1e-14  # as there and in core.linsolve
SPENT = 1e-18  # as phases.trial


@native
def is_regular(task: Ints, w: Floats) -> bool:
    """Whether all parameters are determined at the current point."""
    p = task[P]
    for k in range(p):
        if not w[task[HERE] + task[H] + k * (p + 1)] > 0.0:
            return False
    return is_conditioned(w, task[HERE] + task[L], p, p, 1.0 / (p * SINGULAR))


@native
def sees_all(task: Ints, w: Floats) -> bool:
    """Whether the model feels every parameter at the current point; see `stationary.seen_parameters`."""
    here = task[HERE]
    for i in range(task[P]):
        k, size = task[ORDER + i], w[here + task[NORMS] + i]
        felt = size * max(abs(w[here + k]), w[task[SCALES] + k])
        if size < LEAST or (i >= task[M] and not felt > NOTHING * math.sqrt(w[SIGNAL])):
            return False
    return True


@native
def is_spent(task: Ints, w: Floats) -> bool:
    """Whether the residuals are what rounding of the parameters leaves; see `trial.is_spent`."""
    here, term = task[HERE], 0.0
    if task[ROWS] > task[P]:
        return False
    for i in range(task[P]):
        term = max(term, abs(w[here + task[ORDER + i]]) * w[here + task[NORMS] + i])
    bar = 8.0 * EPS * term
    return bool(w[SSE] <= SPENT * w[SIGNAL] and w[SSE] <= bar * bar)


@native
def is_held(task: Ints, w: Floats) -> bool:
    """Whether residuals and a column are not orthogonal because a bound is in the way; see `stationary_reason`."""
    here = task[HERE]
    for i in range(task[P] if task[BOUNDED] != 0 else 0):
        k = task[ORDER + i]
        pull = w[here + task[G] + k]
        wall = w[task[UPPER] + k] if pull > 0.0 else w[task[LOWER] + k]
        if math.isfinite(wall) and abs(pull) > w[TOL] * w[here + task[NORMS] + i] * math.sqrt(w[SSE]):
            return True
    return False


@native
def is_beside(task: Ints, w: Floats) -> bool:
    """Whether one more step would end on a bound that the current point is next to."""
    here, place = task[HERE], task[PLACE]
    if w[STEPS] >= task[CEILING] or not step_at(task, w, here, math.inf):
        return False
    move(task, w, here, task[DELTA], 1.0, place)
    for k in range(task[P]):
        arrived = w[place + k] == w[task[LOWER] + k] or w[place + k] == w[task[UPPER] + k]
        if arrived and w[place + k] != w[here + k]:
            return True
    return False
