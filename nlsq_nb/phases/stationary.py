"""What a stationary point is worth: which parameters are seen there, what holds it, where JᵀJ is blind."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.linsolve import column_norms, principal, weak_directions
from nlsq_nb.core.varpro import schur
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.trial import sums_of

__all__ = ["is_blind", "seen_parameters", "stationary_reason", "weak_moves"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_NOTHING = 64.0 * float(np.finfo(np.float64).eps)  # share of y: an amplitude of rounding times its rate
_LEAST = math.sqrt(float(np.finfo(np.float64).tiny))  # squares of less lose digits, or are zero
_MOVES = 8  # directions of one look: its passes must not grow with the parameters
_PROBE = 0.03  # relative change of a parameter that a probe makes


def seen_parameters(state: FitState, norms: Floats) -> Mask:
    """The free parameters that the model feels by more than rounding.

    A column of J counts as zero where its squares underflow, and where changing the parameter by
    all of its own size would change the model by less than the rounding of y. A parameter that
    enters linearly has no size of its own: its column tells all.

    Parameters
    ----------
    state : FitState
        Gives point, scales and the size of y.
    norms : ndarray, shape (p,)
        Column norms of √W J.

    Returns
    -------
    ndarray of bool, shape (p,)
        False at fixed parameters.
    """
    size = np.maximum(np.abs(state.theta), state.normalizer.scales)
    felt = state.separable | (norms * size > _NOTHING * math.sqrt(state.signal))
    seen: Mask = state.free & (norms >= _LEAST) & felt
    return seen


def stationary_reason(state: FitState, norms: Floats, tol: float) -> StopReason:
    """Why a point at which a full step within the bounds gains next to nothing is one.

    Parameters
    ----------
    state : FitState
        At the point.
    norms : ndarray, shape (p,)
        Column norms of √W J, without any elimination.
    tol : float
        Cosine between residuals and a column from which on the column is no part of the reason.

    Returns
    -------
    StopReason
        FLAT, PARTLY_FLAT, BOUNDED or RELATIVE_OFFSET.
    """
    seen, sums = seen_parameters(state, norms), sums_of(state)
    kinds = seen.tolist()
    if True not in kinds:
        return StopReason.FLAT
    for k, (lower, upper) in enumerate(zip(state.lower.tolist(), state.upper.tolist(), strict=True)):
        pull = float(sums.jtr[k])
        wall = upper if pull > 0.0 else lower
        if kinds[k] and math.isfinite(wall) and abs(pull) > tol * float(norms[k]) * math.sqrt(sums.sse):
            return StopReason.BOUNDED
    return StopReason.RELATIVE_OFFSET if kinds == state.free.tolist() else StopReason.PARTLY_FLAT


def is_blind(state: FitState) -> bool:
    """Whether an answer is held by a bound where the model does not feel every free parameter.

    An amplitude that has no room below zero makes any term stationary whatever its other
    parameters are, the best ones or not.

    Parameters
    ----------
    state : FitState
        The end of phase 2.

    Returns
    -------
    bool
        False where no JᵀWJ is known.
    """
    sums = sums_of(state)
    if state.stop is not StopReason.BOUNDED or sums.order < 2:
        return False
    seen = seen_parameters(state, column_norms(sums.jtj))
    return bool((seen != state.free).any())


def weak_moves(state: FitState, ridge: float) -> list[Floats]:
    """Moves by some per cent that JᵀJ does not see; none where it is regular.

    First those of the nonlinear parameters with the linear ones eliminated, then each parameter
    without any derivative, then those of all parameters together.

    Parameters
    ----------
    state : FitState
        At a stationary point, with sums of order 2.
    ridge : float
        Relative ridge where the system of the linear parameters is numerically singular.

    Returns
    -------
    list of ndarray, each (p,)
        Physical units.
    """
    h, free = sums_of(state).jtj, state.free
    norms = column_norms(h)
    silent = np.flatnonzero(free & ~state.separable & (norms == 0.0))
    together = weak_directions(principal(h, free))
    if not len(silent) and not together:
        return []
    nonlinear = free & ~state.separable
    found: list[Floats] = []
    if nonlinear.any():
        reduced = schur(h, state.separable, nonlinear, ridge)
        found += [_spread(part, nonlinear) for part in weak_directions(reduced, at_least=1)]
    found += [np.eye(1, len(norms), k)[0] for k in silent.tolist()]
    found += [_spread(part, free) for part in together]
    size = np.where(state.theta != 0.0, np.abs(state.theta), state.normalizer.scales)
    largest = [float(np.max(np.abs(way) / size)) for way in found]
    scaled = zip(found, largest, strict=True)
    return [_PROBE / share * way for way, share in scaled if share][:_MOVES]


def _spread(part: Floats, mask: Mask) -> Floats:
    """A vector of some parameters as one of all, zero at the others."""
    whole = np.zeros(len(mask))
    whole[mask] = part
    return whole
