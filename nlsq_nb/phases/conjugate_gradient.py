"""Phase 2 for many parameters: inexact Newton steps without ever forming JᵀWJ.

A trial solves the trust-region subproblem by conjugate gradients, one pass per product with JᵀWJ,
and costs one more pass for cost and gradient at the new point. Memory is vectors of p numbers, some
200 at most. The system is solved the more exactly the smaller the relative offset of the point
before (forcing terms: Dembo, Eisenstat & Steihaug 1982, SIAM J. Numer. Anal. 19, 400).

Tests and conventions are those of `gauss_newton`. The relative offset needs the full step, and a
truncated one promises less than that; so before a point counts as converged its linear system is
solved anew, to the square of the relative tolerance and with p products if need be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.cg import CgReason, CgStep, bounded_step, estimate_norms
from nlsq_nb.core.trust_region import Step, next_radius
from nlsq_nb.events import Event, StepDone
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.stationary import stationary_reason
from nlsq_nb.phases.trial import (
    ACCEPT,
    SILENT,
    first_radius,
    is_stuck,
    move,
    reason_by_sums,
    relative_offset,
    rounding_of,
    scale_of,
    sums_of,
)
from nlsq_nb.protocols import Objective

__all__ = ["ConjugateGradient"]

Floats = NDArray[np.float64]
_LOOSE = 0.1  # relative residual of the steps that are far from the optimum
_ROUGH = 4.0  # factor by which estimated column norms may be off
_ELSEWHERE = 0.1  # share of the sse left after a step at which the columns are measured anew


@dataclass(frozen=True, slots=True)
class ConjugateGradient:
    """The phase.

    Attributes
    ----------
    max_iterations : int
        Largest number of trials.
    tol : float
        Relative offset below which the fit has converged.
    initial_radius : float
        Length of the longest first step, in normalised parameters.
    cg_max_iterations : int
        Largest number of products for a trial step; the check of a converged point is not limited
        by it.
    rtol : float
        A trial's linear system is solved to this residual, relative to the gradient, both in
        units of the column norms; less exactly while the point is far from the optimum.
    atol : float
        Or to this residual relative to √sse, where that is the larger one.
    """

    max_iterations: int
    tol: float
    initial_radius: float
    cg_max_iterations: int
    rtol: float
    atol: float

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """Take the sums at the start; the column norms wait for the first step."""
        sums = state.sums
        if sums is None or sums.order < 1:
            sums = objective(state.theta, 1)
        state = replace(
            state,
            sums=sums,
            signal=state.signal or SILENT * sums.sse,
            relaxed=sums.sse,
            linear=np.zeros_like(state.free),
            scale=None,
            radius=float("inf"),
            offset=float("inf"),
            iteration=0,
            stop=None,
        )
        return replace(state, stop=reason_by_sums(state)), []

    def stop(self, state: FitState) -> StopReason | None:
        """Why the phase is over, or None."""
        return state.stop if isinstance(state.stop, StopReason) else None

    def best(self, state: FitState) -> FitState:
        """The state itself: a worse trial never becomes the current point."""
        return state

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """One trial, or the verdict that none is needed; a verdict has no event."""
        if state.scale is None:
            scale = self._measure(state, objective, 1.0 / state.normalizer.scales)
            state = replace(state, scale=scale)
        state, trial = self._plan(state, objective)
        state = replace(state, offset=relative_offset(trial.predicted, sums_of(state)))
        if trial.reason.full and state.offset <= self.tol:
            reason = stationary_reason(state, scale_of(state), _ROUGH * self.tol)
            return replace(state, stop=reason), []
        if state.iteration >= self.max_iterations:
            return replace(state, stop=StopReason.MAX_ITERATIONS), []
        after, reduction = self._try(state, trial, objective)
        accepted = after.sums is not state.sums
        in_z = float(np.linalg.norm(trial.delta / state.normalizer.scales))
        event = StepDone(
            iteration=after.iteration,
            limit=self.max_iterations,
            sse=sums_of(after).sse,
            grad_norm=float(np.linalg.norm(state.normalizer.scales * sums_of(state).jtr)),
            reduction=reduction,
            radius=state.radius * (in_z / trial.norm if trial.norm > 0.0 else 1.0),
            accepted=accepted,
            theta=tuple(map(float, after.theta)),
        )
        if accepted:
            after = replace(after, stop=reason_by_sums(after))
            return self._refresh(after, state, trial, objective), [event]
        return self._doubt(after, trial, objective), [event]

    def _plan(self, state: FitState, objective: Objective) -> tuple[FitState, CgStep]:
        """The trial step and its radius; solved thoroughly where it promises next to nothing."""
        trial: CgStep | None = None
        if not np.isfinite(state.radius):
            trial = self._solve(state, objective, np.inf)
            if trial.norm > 0.0:  # else the start solves its system as well as was asked
                reach = first_radius(state, trial.delta, trial.norm, self.initial_radius)
                state = replace(state, radius=reach)
            if trial.norm > state.radius:
                trial = None
        trial = trial or self._solve(state, objective, state.radius)
        offset = relative_offset(trial.predicted, sums_of(state))
        if trial.reason is not CgReason.RADIUS and offset <= self.tol:
            trial = self._solve(state, objective, state.radius, thorough=True)
        return state, trial

    def _try(
        self, state: FitState, trial: CgStep, objective: Objective
    ) -> tuple[FitState, float]:
        """Evaluate the trial, accept it or shrink the radius; also the reduction it brought."""
        theta = move(state, trial.delta)
        sums, old = objective(theta, 1), sums_of(state)
        actual = old.sse - sums.sse if sums.is_finite else -np.inf
        accepted = actual > 0.0 and actual > ACCEPT * trial.predicted
        moved = replace(state, theta=theta, sums=sums, relaxed=sums.sse)
        if not accepted and abs(actual) <= rounding_of(state):
            # the cost cannot tell the points apart any more; the gradient still can
            accepted = _slope(moved) < _slope(state)
        # λ is unknown on the sphere and 0 inside; what counts is whether it is 0
        damping = 1.0 if trial.reason is CgReason.RADIUS else 0.0
        slope = float(old.jtr @ trial.delta)
        step = Step(trial.delta, trial.norm, damping, slope, trial.predicted)
        radius = next_radius(state.radius, step, max(actual, 0.0) if accepted else actual)
        after = moved if accepted else state
        after = replace(after, iteration=state.iteration + 1, radius=radius)
        return after, old.sse - sums.sse

    def _doubt(self, state: FitState, trial: CgStep, objective: Objective) -> FitState:
        """What a rejected trial says of the point: nothing to gain, no way on, or nothing."""
        if trial.predicted <= (noise := rounding_of(state)):
            full = self._solve(state, objective, np.inf, thorough=True)
            offset = relative_offset(full.predicted, sums_of(state))
            resolved = full.reason.full and full.predicted <= noise
            stop = StopReason.ROUNDING if resolved else StopReason.STALLED
            return replace(state, offset=offset, stop=stop)
        return replace(state, stop=StopReason.STALLED) if is_stuck(state, trial.delta) else state

    def _refresh(
        self, state: FitState, before: FitState, trial: CgStep, objective: Objective
    ) -> FitState:
        """Measure the column norms anew where they may have changed much.

        That is, while steps are limited by the radius, of which they decide the shape, where the
        sse is much lower than before, and where a column has appeared that was zero.
        """
        scale, sums = scale_of(state), sums_of(state)
        limited = trial.reason is CgReason.RADIUS
        elsewhere = sums.sse <= _ELSEWHERE * sums_of(before).sse
        appeared = bool(np.any(state.free & (scale == 0.0) & (sums.jtr != 0.0)))
        if state.stop is not None or not (limited or elsewhere or appeared):
            return state
        guess = np.where(scale > 0.0, scale, 1.0 / state.normalizer.scales)
        new = self._measure(state, objective, guess)
        # the radius keeps the length that it has along the last step
        length = float(np.linalg.norm(new * trial.delta))
        share = length / trial.norm if length > 0.0 and trial.norm > 0.0 else 1.0
        return replace(state, scale=new, radius=state.radius * share)

    def _measure(self, state: FitState, objective: Objective, guess: Floats) -> Floats:
        return estimate_norms(lambda v: objective.matvec(state.theta, v), guess, state.free)

    def _solve(
        self, state: FitState, objective: Objective, radius: float, *, thorough: bool = False
    ) -> CgStep:
        """The subproblem over the parameters that are not fixed."""
        limit, rtol = self.cg_max_iterations, max(self.rtol, _LOOSE * min(1.0, state.offset))
        if thorough:
            limit, rtol = max(limit, len(state.theta)), min(self.rtol, 1.0) ** 2
        return bounded_step(
            lambda v: objective.matvec(state.theta, v),
            sums_of(state).jtr,
            scale_of(state),
            radius,
            (state.lower - state.theta, state.upper - state.theta),
            rtol=rtol,
            atol=0.0 if thorough else self.atol * float(np.sqrt(sums_of(state).sse)),
            max_iterations=limit,
        )


def _slope(state: FitState) -> float:
    """‖D⁻¹g‖ over the parameters that may move along −gradient."""
    g, scale = sums_of(state).jtr, scale_of(state)
    inward = ~((state.theta == state.lower) & (g < 0.0)) & ~((state.theta == state.upper) & (g > 0.0))
    used = inward & (scale > 0.0)
    return float(np.linalg.norm(g[used] / scale[used]))
