"""Phase 2: streaming Gauss–Newton with a Levenberg–Marquardt trust region.

One pass per trial gives cost, gradient and JᵀWJ together. All tests are scale-free. The main one is
the relative offset of Bates & Watts (1981, Technometrics 23, 179): the sine of the angle between
the residuals and the tangent plane, √(predicted reduction of a full step / sse); it does not change
under any linear change of parameters, and says how far the point is from the optimum in units of
the standard errors. A rejected trial never counts as converged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.linsolve import column_norms
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.trust_region import Step, next_radius, trust_region_step
from nlsq_nb.core.varpro import reduced_norms, reduced_step, relax
from nlsq_nb.events import Event, StepDone, SumsComputed
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.protocols import Objective

__all__ = ["GaussNewton"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_ACCEPT = 1e-4  # least share of the predicted reduction that a trial must bring
_POLISH = 0.1  # relative gain in sse beyond which relaxed linear parameters are worth a pass


@dataclass(frozen=True, slots=True)
class GaussNewton:
    """The phase.

    Attributes
    ----------
    max_iterations : int
        Largest number of trials.
    tol : float
        Relative offset below which the fit has converged.
    initial_radius : float
        Length of the longest first step, in normalised parameters.
    ridge : float
        Relative ridge where JᵀWJ is numerically singular.
    """

    max_iterations: int
    tol: float
    initial_radius: float
    ridge: float

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """Take the sums at the start, give the linear parameters their best values, judge."""
        sums = state.sums or objective(state.theta, 2)
        events: list[Event] = [SumsComputed(sums.n_rows, sums.sse)]
        state = replace(state, sums=sums, iteration=0, stop=None)
        state = self._polish(state, objective)
        state = replace(state, scale=self._norms(_sums(state), state.linear))
        return self._judge(state), events

    def stop(self, state: FitState) -> StopReason | None:
        """Why the phase is over, or None."""
        return state.stop

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """One trial: solve the subproblem, evaluate, accept or shrink."""
        sums, scale = _sums(state), _scale(state)
        radius = state.radius
        if not np.isfinite(radius):
            radius = self._first_radius(state)
        trial = self._solve(state, radius)
        theta = _move(state, trial.delta)
        new = objective(theta, 2)
        moved = replace(state, theta=theta, sums=new)
        actual = self._gain(state, moved)
        if actual > _ACCEPT * trial.predicted:
            moved = self._polish(moved, objective)
            actual = self._gain(state, moved)
        accepted = actual > _ACCEPT * trial.predicted
        if not accepted and abs(actual) <= _noise(state):
            # the cost cannot tell the points apart any more; the gradient still can
            accepted = _offset(new, state) < state.offset
        used = radius
        radius = next_radius(radius, trial, max(actual, 0.0) if accepted else actual)
        unit = float(np.linalg.norm((trial.delta / state.normalizer.scales)[~state.linear]))
        if accepted:
            state = moved
            state = replace(state, scale=np.maximum(scale, self._norms(_sums(state), state.linear)))
        state = replace(state, iteration=state.iteration + 1, radius=radius)
        state = self._judge(state, trial, accepted)
        event = StepDone(
            state.iteration,
            self.max_iterations,
            _sums(state).sse,
            float(np.linalg.norm(sums.jtr)),
            sums.sse - (_sums(state) if accepted else new).sse,
            used * unit / trial.norm if trial.norm > 0.0 else used,
            accepted,
            tuple(map(float, state.theta)),
        )
        return state, [event]

    def _norms(self, sums: NormalSums, linear: NDArray[np.bool_]) -> Floats:
        return reduced_norms(sums.jtj, linear, self.ridge)

    def _gain(self, state: FitState, moved: FitState) -> float:
        """Reduction of the sse with the linear parameters at their best in both points."""
        if not _sums(moved).is_finite:
            return -np.inf
        return self._relaxed_sse(state) - self._relaxed_sse(moved)

    def _relaxed_sse(self, state: FitState) -> float:
        """The sse once the linear parameters are at their best, without another pass."""
        sse = _sums(state).sse
        return max(sse - self._relax(state).predicted, 0.0)

    def _relax(self, state: FitState) -> Step:
        sums = _sums(state)
        return relax(sums.jtj, sums.jtr, state.linear, _room(state), self.ridge)

    def _polish(self, state: FitState, objective: Objective) -> FitState:
        """Move the linear parameters to their best values when that matters for the next step.

        The derivatives by the nonlinear parameters are proportional to the linear ones, so they
        are worth one more pass when the linear ones are far off.
        """
        if not _sums(state).is_finite or not state.linear.any():
            return state
        best = self._relax(state)
        if best.predicted <= _POLISH * (_sums(state).sse - best.predicted):
            return state
        theta = _move(state, best.delta)
        sums = objective(theta, 2)
        if not sums.is_finite or sums.sse > _sums(state).sse:
            return state
        return replace(state, theta=theta, sums=sums)

    def _first_radius(self, state: FitState) -> float:
        """The D-norm of a step along the full one, `initial_radius` long in z."""
        full = self._solve(state, np.inf)
        limited = ~state.linear
        length = float(np.linalg.norm((full.delta / state.normalizer.scales)[limited]))
        share = self.initial_radius / length if length > 0.0 else 1.0
        norm = float(np.linalg.norm((_scale(state) * full.delta)[limited]))
        return max(share * norm, float(np.finfo(np.float64).tiny))

    def _solve(self, state: FitState, radius: float) -> Step:
        """The subproblem over the parameters that are not fixed."""
        sums, free, room = _sums(state), state.free, _room(state)
        part = reduced_step(
            sums.jtj[np.ix_(free, free)],
            sums.jtr[free],
            _scale(state)[free],
            radius,
            (room[0][free], room[1][free]),
            self.ridge,
            state.linear[free],
        )
        delta = np.zeros_like(state.theta)
        delta[free] = part.delta
        return replace(part, delta=delta)

    def _full(self, state: FitState) -> Step:
        """The Gauss–Newton step of all free parameters together, for the tests."""
        return self._solve(replace(state, linear=np.zeros_like(state.linear)), np.inf)

    def _judge(
        self, state: FitState, trial: Step | None = None, accepted: bool = True
    ) -> FitState:
        """Set `offset` at the current point and `stop` when a test passes."""
        sums = _sums(state)
        if not sums.is_finite:
            return replace(state, stop=StopReason.STALLED)
        full = self._full(state)
        offset = float(np.sqrt(max(full.predicted, 0.0) / sums.sse)) if sums.sse > 0.0 else 0.0
        state = replace(state, offset=offset)
        if not np.any(full.delta) and not np.any(column_norms(sums.jtj)[state.free]):
            return replace(state, stop=StopReason.NOTHING_FREE)
        if sums.sse <= (8.0 * _EPS) ** 2 * state.signal:
            return replace(state, stop=StopReason.EXACT_FIT)
        if offset <= self.tol:
            return replace(state, stop=StopReason.RELATIVE_OFFSET)
        if not accepted and trial is not None:
            if full.predicted <= _noise(state):
                return replace(state, stop=StopReason.ROUNDING)
            if np.all(_move(state, trial.delta) == state.theta) or state.radius <= _EPS * float(
                np.linalg.norm(_scale(state) * state.theta)
            ):
                return replace(state, stop=StopReason.STALLED)
        if state.iteration >= self.max_iterations:
            return replace(state, stop=StopReason.MAX_ITERATIONS)
        return state


def _sums(state: FitState) -> NormalSums:
    assert state.sums is not None
    return state.sums


def _scale(state: FitState) -> Floats:
    assert state.scale is not None
    return state.scale


def _room(state: FitState) -> tuple[Floats, Floats]:
    return state.lower - state.theta, state.upper - state.theta


def _noise(state: FitState) -> float:
    """Rounding error of the sse: residuals carry eps·|y| each (Cauchy–Schwarz over the rows)."""
    sse = _sums(state).sse
    return 4.0 * _EPS * float(np.sqrt(sse * state.signal)) + 4.0 * _EPS * sse


def _move(state: FitState, delta: Floats) -> Floats:
    """θ + δ, exactly on a bound where the step reaches it."""
    theta = state.theta + delta
    theta = np.where(delta == state.lower - state.theta, state.lower, theta)
    theta = np.where(delta == state.upper - state.theta, state.upper, theta)
    return np.where(delta == 0.0, state.theta, np.clip(theta, state.lower, state.upper))


def _offset(sums: NormalSums, state: FitState) -> float:
    """Relative offset at a trial point, bounds aside."""
    free = state.free
    h, g = sums.jtj[np.ix_(free, free)], sums.jtr[free]
    unlimited = (np.full(len(g), -np.inf), np.full(len(g), np.inf))
    full = trust_region_step(h, g, column_norms(h), np.inf, unlimited, 0.0)
    return float(np.sqrt(max(full.predicted, 0.0) / sums.sse)) if sums.sse > 0.0 else 0.0
