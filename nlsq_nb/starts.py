"""What a start is worth: its loss with the linear parameters at their best, and where a short fit from it ends."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.compiled import advance
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.varpro import eliminable, relax
from nlsq_nb.errors import NumericsError
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.plan import newton_phase

__all__ = ["reason_of", "reduced_sse", "short_fit"]

Floats = NDArray[np.float64]


def reduced_sse(state: FitState, part: DataObjective, theta: Floats, ridge: float) -> float:
    """The sse of a start with the linear parameters at their best.

    Parameters
    ----------
    state : FitState
        Of the fit, for its bounds and its linear parameters.
    part : DataObjective
        Over some rows.
    theta : ndarray, shape (p,)
        The start.
    ridge : float
        Relative ridge where the system of the linear parameters is numerically singular.

    Returns
    -------
    float
        inf where the model is not finite.
    """
    sums = part(theta, 2 if state.separable.any() else 0)
    if not sums.is_finite:
        return math.inf
    sse = sums.sse
    if state.separable.any():
        linear = eliminable(sums.jtj, state.separable)
        room = (state.lower - theta, state.upper - theta)
        sse -= relax(sums.jtj, sums.jtr, linear, room, ridge).predicted
    return max(sse, 0.0)


def short_fit(
    state: FitState, options: Groups, sample: DataObjective, at_most: int, tol: float = 0.0
) -> FitState:
    """Where a short fit from a start ends, in native code where that is possible.

    Parameters
    ----------
    state : FitState
        At the start.
    options : Groups
        Validated options.
    sample : DataObjective
        Over some rows.
    at_most : int
        Largest number of trials.
    tol : float
        Relative offset that is enough, where the options ask for less.

    Returns
    -------
    FitState
        The start itself, without sums, where none is possible.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C: the whole fit is meant.
    """
    phase = newton_phase(options, len(state.theta), at_most, max(tol, options.gauss_newton.tol))
    try:
        native = advance(phase, state, sample, tell=False)
        end = native[0] if native is not None else run(phase, state, sample, lambda _: None)
    except NumericsError:
        return state
    if end.stop is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    return end


def reason_of(end: FitState) -> str:
    """Why a short fit ended."""
    if end.stop is None:
        return "the model is not finite there"
    if end.stop is StopReason.MAX_ITERATIONS:
        return "a short fit has no more iterations"
    return str(end.stop.value)
