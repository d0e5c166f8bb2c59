"""What both ways of phase 2 ask of a point and of a trial step."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.bounds import moved
from nlsq_nb.core.linsolve import column_norms, length
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.phases.state import FitState, StopReason

__all__ = [
    "ACCEPT",
    "SILENT",
    "first_radius",
    "is_spent",
    "is_stuck",
    "move",
    "reason_by_sums",
    "relative_offset",
    "rounding_of",
    "scale_of",
    "sums_of",
]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)
_NOTHING = 1e-18  # share of Σ w y² that rounding may leave where terms cancel

ACCEPT = 1e-4
"""Least share of the predicted reduction that a trial must bring."""

SILENT = 1e-8
"""y that is all zero has no scale: this share of the first sse stands for it."""


def sums_of(state: FitState) -> NormalSums:
    """The sums at the state's point."""
    assert state.sums is not None
    return state.sums


def scale_of(state: FitState) -> Floats:
    """D at the state's point."""
    assert state.scale is not None
    return state.scale


def relative_offset(gain: float, sums: NormalSums) -> float:
    """The relative offset: how much of the residuals a full step would remove.

    A gain that rounding makes negative says as little as one of that size.
    """
    return math.sqrt(abs(gain) / sums.sse) if sums.sse > 0.0 else 0.0


def rounding_of(state: FitState, *, cancelling: bool = True) -> float:
    """Rounding error of the sse (Cauchy–Schwarz over the rows).

    A residual carries eps times the size of y or, when `cancelling` counts, of the linear terms
    that cancel to give it.
    """
    sums, scale, linear = sums_of(state), state.signal, state.linear
    if cancelling and True in linear.tolist():
        terms = (state.theta * column_norms(sums.jtj))[linear] ** 2
        scale = float(np.max(terms, initial=scale))
    return 4.0 * _EPS * math.sqrt(sums.sse) * math.sqrt(scale) + 4.0 * _EPS * sums.sse


def move(state: FitState, delta: Floats) -> Floats:
    """θ + δ within the bounds; see `moved`."""
    return moved(state.theta, delta, state.lower, state.upper)


def is_stuck(state: FitState, delta: Floats) -> bool:
    """Whether steps have become too short to change the parameters."""
    size = length((scale_of(state) * state.theta)[state.free])
    return bool(np.all(move(state, delta) == state.theta) or state.radius <= _EPS * size)


def is_spent(state: FitState) -> bool:
    """Whether the residuals are what is left when the parameters, or terms that cancel, are rounded.

    Changing a parameter by one unit in its last place changes the residuals by eps |θ| times its column. With as many
    parameters as rows nothing else is left, and a full step would always remove all of it; where there are more rows,
    what it leaves tells.
    """
    sums = sums_of(state)
    if sums.n_rows > state.free.tolist().count(True) or sums.sse > _NOTHING * state.signal:
        return False
    terms = np.abs(state.theta) * column_norms(sums.jtj)
    return bool(sums.sse <= (8.0 * _EPS * float(terms.max())) ** 2)


def first_radius(state: FitState, delta: Floats, norm: float, longest: float) -> float:
    """The D-norm of a step along the full one δ of D-norm `norm`, `longest` long in z."""
    # a parameter that starts at 0 has no scale that could limit it
    first = state.theta if state.first is None else state.first
    limited = ~state.linear & (first != 0.0)
    reach = length((delta / state.normalizer.scales)[limited])
    return max((longest / reach if reach > 0.0 else 1.0) * norm, _TINY)


def reason_by_sums(state: FitState) -> StopReason | None:
    """What the sums alone decide."""
    sums = sums_of(state)
    if not sums.is_finite:
        return StopReason.STALLED
    if True not in state.free.tolist():
        return StopReason.NOTHING_FREE
    if sums.sse <= (8.0 * _EPS) ** 2 * state.signal:
        return StopReason.EXACT_FIT
    return None
