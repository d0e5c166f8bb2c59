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
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.trust_region import Step, next_radius
from nlsq_nb.events import Event, StepDone
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.protocols import Objective

__all__ = ["ConjugateGradient"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_ACCEPT = 1e-4  # least share of the predicted reduction that a trial must bring
_SILENT = 1e-8  # y that is all zero has no scale: this share of the first sse stands for it
_LOOSE = 0.1  # relative residual of the steps that are far from the optimum
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
            signal=state.signal or _SILENT * sums.sse,
            relaxed=sums.sse,
            linear=np.zeros_like(state.free),
            scale=None,
            radius=float("inf"),
            offset=float("inf"),
            iteration=0,
            stop=None,
        )
        return replace(state, stop=_finished(state)), []

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
        state = replace(state, offset=_relative(trial, _sums(state)))
        if trial.reason.full and state.offset <= self.tol:
            seen = np.any(_scale(state)[state.free])
            stop = StopReason.RELATIVE_OFFSET if seen else StopReason.FLAT
            return replace(state, stop=stop), []
        if state.iteration >= self.max_iterations:
            return replace(state, stop=StopReason.MAX_ITERATIONS), []
        after, reduction = self._try(state, trial, objective)
        accepted = after.sums is not state.sums
        in_z = float(np.linalg.norm(trial.delta / state.normalizer.scales))
        event = StepDone(
            iteration=after.iteration,
            limit=self.max_iterations,
            sse=_sums(after).sse,
            grad_norm=float(np.linalg.norm(state.normalizer.scales * _sums(state).jtr)),
            reduction=reduction,
            radius=state.radius * (in_z / trial.norm if trial.norm > 0.0 else 1.0),
            accepted=accepted,
            theta=tuple(map(float, after.theta)),
        )
        if accepted:
            after = replace(after, stop=_finished(after))
            return self._refresh(after, state, trial, objective), [event]
        return self._doubt(after, trial, objective), [event]

    def _plan(self, state: FitState, objective: Objective) -> tuple[FitState, CgStep]:
        """The trial step and its radius; solved thoroughly where it promises next to nothing."""
        trial: CgStep | None = None
        if not np.isfinite(state.radius):
            trial = self._solve(state, objective, np.inf)
            if trial.norm > 0.0:  # else the start solves its system as well as was asked
                state = replace(state, radius=self._first_radius(state, trial))
            if trial.norm > state.radius:
                trial = None
        trial = trial or self._solve(state, objective, state.radius)
        if trial.reason is not CgReason.RADIUS and _relative(trial, _sums(state)) <= self.tol:
            trial = self._solve(state, objective, state.radius, thorough=True)
        return state, trial

    def _try(
        self, state: FitState, trial: CgStep, objective: Objective
    ) -> tuple[FitState, float]:
        """Evaluate the trial, accept it or shrink the radius; also the reduction it brought."""
        theta = _move(state, trial.delta)
        sums, old = objective(theta, 1), _sums(state)
        actual = old.sse - sums.sse if sums.is_finite else -np.inf
        accepted = actual > 0.0 and actual > _ACCEPT * trial.predicted
        moved = replace(state, theta=theta, sums=sums, relaxed=sums.sse)
        if not accepted and abs(actual) <= _noise(state):
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
        if trial.predicted <= (noise := _noise(state)):
            full = self._solve(state, objective, np.inf, thorough=True)
            offset = _relative(full, _sums(state))
            resolved = full.reason.full and full.predicted <= noise
            stop = StopReason.ROUNDING if resolved else StopReason.STALLED
            return replace(state, offset=offset, stop=stop)
        size = float(np.linalg.norm(_scale(state) * state.theta))
        stuck = np.all(_move(state, trial.delta) == state.theta) or state.radius <= _EPS * size
        return replace(state, stop=StopReason.STALLED) if stuck else state

    def _refresh(
        self, state: FitState, before: FitState, trial: CgStep, objective: Objective
    ) -> FitState:
        """Measure the column norms anew where they may have changed much.

        That is, while steps are limited by the radius, of which they decide the shape, where the
        sse is much lower than before, and where a column has appeared that was zero.
        """
        scale, sums = _scale(state), _sums(state)
        limited = trial.reason is CgReason.RADIUS
        elsewhere = sums.sse <= _ELSEWHERE * _sums(before).sse
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
            _sums(state).jtr,
            _scale(state),
            radius,
            (state.lower - state.theta, state.upper - state.theta),
            rtol=rtol,
            atol=0.0 if thorough else self.atol * float(np.sqrt(_sums(state).sse)),
            max_iterations=limit,
        )

    def _first_radius(self, state: FitState, full: CgStep) -> float:
        """The D-norm of a step along the full one, `initial_radius` long in z."""
        # a parameter that starts at 0 has no scale that could limit it
        limited = state.theta != 0.0
        length = float(np.linalg.norm((full.delta / state.normalizer.scales)[limited]))
        share = self.initial_radius / length if length > 0.0 else 1.0
        return max(share * full.norm, float(np.finfo(np.float64).tiny))


def _finished(state: FitState) -> StopReason | None:
    """What the sums alone decide."""
    sums = _sums(state)
    if not sums.is_finite:
        return StopReason.STALLED
    if not state.free.any():
        return StopReason.NOTHING_FREE
    if sums.sse <= (8.0 * _EPS) ** 2 * state.signal:
        return StopReason.EXACT_FIT
    return None


def _sums(state: FitState) -> NormalSums:
    assert state.sums is not None
    return state.sums


def _scale(state: FitState) -> Floats:
    assert state.scale is not None
    return state.scale


def _relative(trial: CgStep, sums: NormalSums) -> float:
    return float(np.sqrt(max(trial.predicted, 0.0) / sums.sse)) if sums.sse > 0.0 else 0.0


def _slope(state: FitState) -> float:
    """‖D⁻¹g‖ over the parameters that may move along −gradient."""
    g, scale = _sums(state).jtr, _scale(state)
    inward = ~((state.theta == state.lower) & (g < 0.0)) & ~((state.theta == state.upper) & (g > 0.0))
    used = inward & (scale > 0.0)
    return float(np.linalg.norm(g[used] / scale[used]))


def _noise(state: FitState) -> float:
    """Rounding error of the sse (Cauchy–Schwarz): a residual carries eps times the size of y."""
    sse = _sums(state).sse
    return 4.0 * _EPS * (float(np.sqrt(sse) * np.sqrt(state.signal)) + sse)


def _move(state: FitState, delta: Floats) -> Floats:
    """θ + δ, exactly on a bound where the step reaches it."""
    theta = state.theta + delta
    theta = np.where(delta == state.lower - state.theta, state.lower, theta)
    theta = np.where(delta == state.upper - state.theta, state.upper, theta)
    return np.where(delta == 0.0, state.theta, np.clip(theta, state.lower, state.upper))
