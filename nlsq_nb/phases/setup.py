"""Phase 0: the first state of a fit, in normalised parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.errors import DataError
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.protocols import Objective

__all__ = ["better", "depart", "on_sample", "restart", "setup"]

Floats = NDArray[np.float64]


def setup(
    theta: Floats,
    bounds: tuple[Floats, Floats],
    names: tuple[str, ...],
    linear: tuple[str, ...],
    signal: float,
    strategy: str,
) -> FitState:
    """Check the start against the bounds and normalise it.

    Parameters
    ----------
    theta : ndarray, shape (p,)
        Starting point, physical units.
    bounds : tuple of ndarray, each (p,)
        Lower and upper bounds, ±inf for none.
    names : tuple of str, length p
        Parameter names.
    linear : tuple of str
        Parameters to eliminate by variable projection.
    signal : float
        Σ w y².
    strategy : str
        Normalisation strategy.

    Returns
    -------
    FitState
        Ready for the next phase; fixed parameters (lower == upper) are not free.

    Raises
    ------
    DataError
        When the start is outside or not finite, naming the parameter.
    """
    lower, upper = bounds
    each = zip(names, theta.tolist(), lower.tolist(), upper.tolist(), strict=True)
    for name, start, low, high in each:
        if not math.isfinite(start):
            raise DataError(f"p0 of parameter {name!r} is {start}; give a finite start")
        if not low <= start <= high:
            raise DataError(
                f"`x0` is infeasible: p0 of parameter {name!r} is {start}, outside its bounds [{low}, {high}]"
            )
    free = lower < upper
    separable = free & _among(names, linear)
    return FitState(
        theta=theta,
        normalizer=ParameterNormalizer(theta, bounds, strategy),
        lower=lower,
        upper=upper,
        free=free,
        separable=separable,
        linear=separable,
        signal=signal,
        first=theta,
    )


@lru_cache(maxsize=64)
def _among(names: tuple[str, ...], some: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which names are among some; an array that fits share."""
    found = np.array([name in some for name in names])
    found.setflags(write=False)
    return found


def restart(state: FitState, theta: Floats) -> FitState:
    """The first state of a fit of the same problem from another start.

    Parameters
    ----------
    state : FitState
        From `setup`.
    theta : ndarray, shape (p,)
        The other start, within the bounds.

    Returns
    -------
    FitState
        Normalised at the other start.
    """
    old = state.normalizer
    bounds = (state.lower, state.upper)
    normalizer = ParameterNormalizer(theta, bounds, old.strategy)
    return FitState(
        theta=theta,
        normalizer=normalizer,
        lower=state.lower,
        upper=state.upper,
        free=state.free,
        separable=state.separable,
        linear=state.separable,
        signal=state.signal,
        first=theta,
        f_scale=state.f_scale,
    )


def depart(answer: FitState, theta: Floats) -> FitState:
    """The state in which a fit that had an answer goes on elsewhere.

    Parameters
    ----------
    answer : FitState
        The end of phase 2.
    theta : ndarray, shape (p,)
        Where to go on, within the bounds.

    Returns
    -------
    FitState
        With the answer as its `before`, and one opinion more.
    """
    return replace(
        restart(answer, theta),
        normalizer=answer.normalizer,
        first=answer.first,
        first_sse=answer.first_sse,
        warmup=answer.warmup,
        before=replace(answer, warmup=None),
        opinions=answer.opinions + 1,
    )


def better(before: FitState, after: FitState) -> FitState:
    """Which answer a fit keeps that went on elsewhere.

    Parameters
    ----------
    before : FitState
        The answer that was doubted, measured on all data.
    after : FitState
        Where the fit ended instead, measured on the same.

    Returns
    -------
    FitState
        The lower one, unless it has not converged and the other has; with the trials of both, and
        stopped where the fit was stopped.
    """
    assert before.sums is not None
    assert after.sums is not None
    assert before.stop is not None
    assert after.stop is not None
    lower = after.sums.sse < before.sums.sse
    taken = lower and (after.stop.success or not before.stop.success)
    stopped = after.stop in (StopReason.CALLBACK, StopReason.INTERRUPTED)
    taken = lower if stopped else taken
    chosen = replace(after, before=None) if taken else replace(before, warmup=after.warmup)
    return replace(
        chosen,
        iteration=before.iteration + after.iteration,
        stop=after.stop if stopped else chosen.stop,
        opinions=after.opinions,
    )


def on_sample(state: FitState, theta: Floats, objective: Objective) -> FitState:
    """The state from which the sample's own fit is refined.

    Parameters
    ----------
    state : FitState
        Of the warm-up.
    theta : ndarray, shape (p,)
        Where it ended.
    objective : Objective
        Over all rows.

    Returns
    -------
    FitState
        Without sums, and with the sample's share of Σ w y².
    """
    signal = state.signal * objective.sample.weight / objective.weight
    return replace(state, theta=theta, sums=None, signal=signal, warmup=None, stop=None, iteration=0)
