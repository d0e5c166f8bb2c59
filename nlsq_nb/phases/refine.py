"""What QR of J still has to say where JᵀWJ has lost digits: the last steps, and the factor for the covariance.

JᵀWJ has the square of J's condition. Beyond a scaled condition of 1e6 it gives errors to less than ten digits,
and steps that no longer lead to the optimum; both are had from the triangular factor of J instead, at
the price of some passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.bounds import has_room, room_within
from nlsq_nb.core.linsolve import column_norms, principal, rounding_error
from nlsq_nb.core.penalties import GroupVariance
from nlsq_nb.core.tsqr import EPS, Triangle
from nlsq_nb.phases.finalize import Outcome, finalize
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.stationary import seen_parameters
from nlsq_nb.phases.trial import is_spent, move, rounding_of, sums_of
from nlsq_nb.protocols import Objective

__all__ = ["ILL", "Ending", "conclude"]

Mask = NDArray[np.bool_]
ILL = 1e6
"""Scaled condition of JᵀWJ from which on "auto" factorises J."""

_STEPS = 5
_PROGRESS = 0.5  # of the relative offset: more is left by a step only where rounding decides
_NOTHING = 1e-13  # relative offset of a point that no step makes better
_NEAR = 1e-9  # relative offset up to which the factor is the same at both ends of the step
_LOST = (StopReason.STALLED, StopReason.MAX_ITERATIONS, StopReason.ROUNDING)
_STOPPED = (StopReason.CALLBACK, StopReason.INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Ending:
    """What the end of a fit goes by.

    Attributes
    ----------
    n_residuals : int
        Rows times outputs.
    absolute_sigma : bool
        Whether sigma is taken as it is.
    method : {"auto", "normal", "qr"}
        auto: J is factorised where the scaled condition of JᵀWJ exceeds 1e6 and the fit is not exact.
    tol : float
        Relative offset below which a fit has converged.
    penalty : callable, optional
        What the sse holds beside the data, as sums at theta.
    """

    n_residuals: int
    absolute_sigma: bool
    method: str
    tol: float
    penalty: GroupVariance | None = None

    def outcome(self, state: FitState, triangle: Triangle | None = None, steps: int = 0) -> Outcome:
        """The numbers of a fit that ends here; see `finalize`."""
        added = 0.0 if self.penalty is None else self.penalty(state.theta).sse
        return finalize(state, self.n_residuals, self.absolute_sigma, added, triangle, steps)


def conclude(state: FitState, objective: Callable[[], Objective], ending: Ending) -> Outcome:
    """Phase 3: the covariance at the solution, and the last steps where JᵀWJ has lost digits.

    Then J is factorised, and Gauss–Newton steps from its triangle are taken as long as they lead nearer and the
    sse does not rise by more than its rounding. Parameters on a bound stay there.

    Parameters
    ----------
    state : FitState
        The last state of phase 2.
    objective : callable
        Gives the objective over all rows, where it is needed.
    ending : Ending
        What to go by.

    Returns
    -------
    Outcome
        Of the state as it is where there is nothing to mend, and where the user stopped the fit.
    """
    outcome = ending.outcome(state)
    if state.stop in _STOPPED or not _is_asked(outcome, ending.method):
        return outcome
    try:
        return ending.outcome(*_refined(state, objective(), ending.tol))
    except KeyboardInterrupt:
        return ending.outcome(replace(state, stop=StopReason.INTERRUPTED))


def _refined(
    state: FitState, objective: Objective, tol: float
) -> tuple[FitState, Triangle | None, int]:
    """The state at the end, R of √W J there, and the number of steps; no triangle where it is not finite."""
    before = math.inf
    for steps in range(_STEPS + 1):
        triangle = objective.triangle(state.theta)
        moving = _moving(state, triangle)
        if not triangle.is_finite:
            return state, None, steps
        part = triangle.of(moving)
        state = _judged(replace(state, offset=part.offset), part, tol)
        last = part.offset <= _NOTHING or part.offset > _PROGRESS * before or steps == _STEPS
        nearer = None if last else _nearer(state, part, moving, objective)
        if nearer is None:
            return state, triangle, steps
        state, before = nearer, part.offset
        if before <= _NEAR:
            return state, triangle, steps + 1
    raise AssertionError("the last round returns")


def _judged(state: FitState, part: Triangle, tol: float) -> FitState:
    """The state, converged where it was JᵀWJ alone that could not show it."""
    if state.stop not in _LOST:
        return state
    if part.offset <= tol:
        return replace(state, stop=StopReason.RELATIVE_OFFSET)
    gain = float(part.z.dot(part.z))
    resolved = gain <= rounding_of(state, cancelling=False) or is_spent(state)
    return replace(state, stop=StopReason.ROUNDING) if resolved else state


def _is_asked(outcome: Outcome, method: str) -> bool:
    """Whether J is to be factorised."""
    state, found = outcome.state, outcome.covariance
    if method != "auto" or sums_of(state).order < 2:
        return method == "qr" and sums_of(state).order > 1
    # the errors of an exact fit are those of rounding, to no digit
    if state.stop is StopReason.EXACT_FIT or (found.condition <= ILL and not found.undetermined.any()):
        return False
    h = sums_of(state).jtj
    used = seen_parameters(state, column_norms(h))
    return bool(used.any()) and rounding_error(principal(h, used)) > ILL * EPS


def _moving(state: FitState, triangle: Triangle) -> Mask:
    """The parameters that a step may change: seen, and on no bound."""
    inside: Mask = (state.theta > state.lower) & (state.theta < state.upper)
    return seen_parameters(state, triangle.norms) & inside


def _nearer(state: FitState, part: Triangle, moving: Mask, objective: Objective) -> FitState | None:
    """The state after a full step; None where it leads out of the bounds or up."""
    delta = np.zeros_like(state.theta)
    delta[moving] = part.step()
    theta = move(state, delta)
    room = room_within(state.lower, state.upper, state.theta)
    if not has_room(room, moving, delta) or np.array_equal(theta, state.theta):
        return None
    sums = objective(theta, 2)
    if not sums.is_finite or sums.sse > sums_of(state).sse + rounding_of(state):
        return None
    return replace(state, theta=theta, sums=sums, relaxed=sums.sse)
