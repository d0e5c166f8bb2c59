"""Phase 2: streaming Gauss–Newton with a Levenberg–Marquardt trust region.

One pass per trial gives cost, gradient and JᵀWJ together. All tests are scale-free. The main one is
the relative offset of Bates & Watts (1981, Technometrics 23, 179): the sine of the angle between
the residuals and the tangent plane, √(predicted reduction of a full step / sse); it does not change
under any linear change of parameters, and says how far the point is from the optimum in units of
the standard errors. A rejected trial never counts as converged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.bounds import room_within
from nlsq_nb.core.layout import SEGMENT
from nlsq_nb.core.linsolve import column_norms, length, principal, rounding_error
from nlsq_nb.core.quadratic import Quadratic, quadratic
from nlsq_nb.core.secant import learnt
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.trust_region import Step, next_radius
from nlsq_nb.core.varpro import eliminable
from nlsq_nb.events import Event, StepDone
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.stationary import stationary_reason, weak_moves
from nlsq_nb.phases.trial import (
    ACCEPT,
    SILENT,
    first_radius,
    is_spent,
    is_stuck,
    move,
    reason_by_sums,
    relative_offset,
    rounding_of,
    scale_of,
    sums_of,
)
from nlsq_nb.protocols import Objective

__all__ = ["LATE", "GaussNewton"]

Floats = NDArray[np.float64]
LATE = 40
"""Trials from which on the curvature that JᵀWJ lacks is learnt, where no parameter is eliminated."""

_POLISH = 0.1  # relative gain in sse beyond which relaxed linear parameters are worth a pass
_PROBES = 3  # looks around in one fit
_POLISHED = 1e-11  # relative offset from which on a further step shows in no digit
_FEW = 8 * SEGMENT  # rows up to which that step costs next to nothing


@dataclass(frozen=True, slots=True)
class _Point:
    """A candidate: where, its sums, the sse with the linear parameters at their best.

    `solved` is None where the sums are not finite.
    """

    theta: Floats
    sums: NormalSums
    relaxed: float
    solved: Quadratic | None


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
    eliminates : bool
        Whether linear parameters are eliminated: not where the cost is no quadratic in them.
    """

    max_iterations: int
    tol: float
    initial_radius: float
    ridge: float
    eliminates: bool = True

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """Take the sums at the start, give the linear parameters their best values, judge."""
        sums = state.sums
        if sums is None or sums.order < 2:
            sums = objective(state.theta, 2)
        linear = self._eliminable(state, sums)
        state = replace(
            state,
            sums=sums,
            signal=state.signal or SILENT * sums.sse,
            linear=linear,
            iteration=0,
            bend=None,
            stop=None,
        )
        state = self._take(state, self._settle(state, state.theta, sums, objective))
        return self._judge(state), []

    def stop(self, state: FitState) -> StopReason | None:
        """Why the phase is over, or None."""
        return state.stop if isinstance(state.stop, StopReason) else None

    def best(self, state: FitState) -> FitState:
        """The state itself: a worse trial never becomes the current point."""
        return state

    def judged(self, state: FitState) -> FitState:
        """The state at a point that was accepted elsewhere, its offset still that of the point before."""
        return self._judge(state)

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """One trial, or the look around that a singular stationary point needs."""
        before = state
        if state.doubtful:
            state, trial_sse, reach = self._probe(state, objective)
        else:
            state, trial_sse, reach = self._trial(state, objective)
        slope = before.normalizer.scales * sums_of(before).jtr
        event = StepDone(
            iteration=state.iteration,
            limit=self.max_iterations,
            sse=sums_of(state).sse,
            grad_norm=length(slope),
            reduction=sums_of(before).sse - trial_sse,
            radius=reach,
            accepted=state.sums is not before.sums,
            theta=tuple(state.theta.tolist()),
        )
        return state, [event]

    def _trial(self, state: FitState, objective: Objective) -> tuple[FitState, float, float]:
        """Solve the subproblem, evaluate, accept or shrink; also the trial's sse and Δ in z."""
        solved, sums = self._bent(state), sums_of(state)
        radius = state.radius if math.isfinite(state.radius) else self._first_radius(state, solved)
        step = solved.step(scale_of(state), radius)
        theta = move(state, step.delta)
        at = self._settle(state, theta, objective(theta, 2), objective, trial=True)
        actual = state.relaxed - at.relaxed if at.solved is not None else -math.inf
        # the point itself must not be worse, however good its relaxed linear parameters would be
        better = actual > ACCEPT * step.predicted
        accepted = better and at.sums.sse <= sums.sse
        if not better and at.solved is not None and abs(actual) <= (noise := rounding_of(state)):
            # only linear parameters moved, or the cost cannot tell the points apart any more and
            # the gradient still can
            offset = relative_offset(at.solved.gain(scale_of(state)), at.sums)
            accepted = at.sums.sse < sums.sse - noise or offset < state.offset
        moved = length((step.delta / state.normalizer.scales)[~state.linear])
        reach = radius * moved / step.norm if step.norm > 0.0 else radius
        radius = next_radius(radius, step, max(actual, 0.0) if accepted else actual)
        tried = state.iteration + 1
        if accepted and at.solved is not None:
            state = self._accept(state, at, at.solved, radius, objective)
        else:
            state = replace(state, iteration=tried, radius=radius)
        return self._judge(state, step, accepted), at.sums.sse, reach

    def _accept(
        self, state: FitState, at: _Point, solved: Quadratic, radius: float, objective: Objective
    ) -> FitState:
        """The state at an accepted trial, with the parameters that may be eliminated there."""
        state = replace(
            state,
            theta=at.theta,
            sums=at.sums,
            relaxed=at.relaxed,
            scale=np.maximum(scale_of(state), solved.norms()),
            iteration=state.iteration + 1,
            radius=radius,
            bend=self._learnt(state, at),
        )
        if state.linear is state.separable and solved.is_eliminable():
            return state
        linear = self._eliminable(state, at.sums)
        if np.array_equal(linear, state.linear):
            return state
        state = replace(state, linear=linear, radius=math.inf)
        return self._take(state, self._settle(state, state.theta, at.sums, objective))

    def _eliminable(self, state: FitState, sums: NormalSums) -> NDArray[np.bool_]:
        """The parameters to eliminate at a point of these sums."""
        return eliminable(sums.jtj, state.separable) if self.eliminates else np.zeros_like(state.separable)

    def _take(self, state: FitState, at: _Point) -> FitState:
        """The state at a point where the trust region starts anew."""
        return replace(
            state,
            theta=at.theta,
            sums=at.sums,
            relaxed=at.relaxed,
            scale=state.scale if at.solved is None else at.solved.norms(),
        )

    def _quadratic(self, state: FitState, theta: Floats, sums: NormalSums) -> Quadratic:
        """The quadratic at a point, worked out once for its sums and the parameters to eliminate."""
        known: Quadratic | None = sums.derived.get("quadratic")
        if known is None or known.linear is not state.linear:
            room = room_within(state.lower, state.upper, theta)
            args = (sums.jtj, sums.jtr, room, state.linear, state.free, self.ridge)
            known = sums.derived["quadratic"] = quadratic(*args)
        return known

    def _solved(self, state: FitState) -> Quadratic:
        return self._quadratic(state, state.theta, sums_of(state))

    def _bent(self, state: FitState) -> Quadratic:
        """The quadratic that steps are taken with: with what is known of the rest of the curvature, if it is convex."""
        solved = self._solved(state)
        if state.bend is None:
            return solved
        args = (solved.g, solved.room, solved.linear, solved.free, self.ridge)
        bent = quadratic(solved.h + state.bend, *args)
        return solved if bent.factor is None else bent

    def _learnt(self, state: FitState, at: _Point) -> Floats | None:
        """What is known of that after a step from the state's point."""
        if state.iteration + 1 < LATE or True in state.linear.tolist():
            return None
        change = sums_of(state).jtr - at.sums.jtr
        return learnt(state.bend, at.theta - state.theta, change, at.sums.jtj)

    def _settle(
        self,
        state: FitState,
        theta: Floats,
        sums: NormalSums,
        objective: Objective,
        *,
        trial: bool = False,
    ) -> _Point:
        """Note the sse with the linear parameters at their best, and move them if that matters.

        The derivatives by the nonlinear parameters are proportional to the linear ones, so they
        are worth one more pass when the linear ones are far off or come to a bound, where that
        may be zero, and when without it a trial would be worse than the state's point although its
        relaxed sse is better.
        """
        if not sums.is_finite:
            return _Point(theta, sums, sums.sse, None)
        solved = self._quadratic(state, theta, sums)
        gain = solved.relaxed_gain
        least = max(sums.sse - gain, 0.0)
        here = _Point(theta, sums, least, solved)
        # beyond convergence rounding alone makes a trial worse
        worse = trial and state.offset > self.tol and sums.sse > sums_of(state).sse
        if True not in state.linear.tolist() or not (worse or gain > _POLISH * least or _lands(solved)):
            return here
        if trial and least >= state.relaxed:
            doubt = 4.0 * sums.sse * rounding_error(principal(sums.jtj, state.linear))
            if least >= state.relaxed + doubt:  # hopeless
                return here
        nearer = move(replace(state, theta=theta), solved.relax().delta)
        new = objective(nearer, 2)
        if not new.is_finite or new.sse > sums.sse:
            return _Point(theta, sums, sums.sse, solved)  # too ill-conditioned to be believed
        rest = self._quadratic(state, nearer, new)
        return _Point(nearer, new, max(new.sse - rest.relaxed_gain, 0.0), rest)

    def _probe(self, state: FitState, objective: Objective) -> tuple[FitState, float, float]:
        """Look to both sides of a stationary point where JᵀJ is singular.

        Where two terms of a model coincide, or a derivative vanishes by symmetry, the sse is
        stationary whether the point is a minimum or a saddle; where columns are nearly collinear,
        rounding hides a slope. The sse itself tells: to either side, and at the vertex of the
        parabola through the three. Where parameters are redundant nothing changes, and the point
        stands.
        """
        start, noise, reach = sums_of(state).sse, rounding_of(state), 0.0
        state = replace(state, probes=state.probes + 1, iteration=state.iteration + 1)
        best = state
        for way in weak_moves(state, self.ridge):
            reach = max(reach, length(way / state.normalizer.scales))
            ahead = self._look(state, way, objective)
            behind = self._look(state, -way, objective)
            found = [best, ahead, behind]
            bend = sums_of(ahead).sse + sums_of(behind).sse - 2.0 * start
            if math.isfinite(bend) and bend > noise:
                vertex = 0.5 * (sums_of(behind).sse - sums_of(ahead).sse) / bend
                found.append(self._look(state, vertex * way, objective))
            best = min(found, key=lambda s: sums_of(s).sse if sums_of(s).is_finite else math.inf)
            if sums_of(best).sse < start - noise:
                norms = self._solved(best).norms()
                state = replace(best, scale=norms, radius=math.inf, settled=False)
                return self._judge(state), sums_of(state).sse, reach
        return self._judge(replace(state, settled=True)), sums_of(best).sse, reach

    def _look(self, state: FitState, way: Floats, objective: Objective) -> FitState:
        """The point at a distance, with the linear parameters at their best there."""
        theta = move(state, way)
        sums = objective(theta, 2)
        if not np.any(way[state.separable]):
            state = replace(state, linear=self._eliminable(state, sums))
        at = self._settle(state, theta, sums, objective)
        return replace(state, theta=at.theta, sums=at.sums, relaxed=at.relaxed)

    def _first_radius(self, state: FitState, solved: Quadratic) -> float:
        full = solved.step(scale_of(state), math.inf)
        norm = length((scale_of(state) * full.delta)[~state.linear])
        return first_radius(state, full.delta, norm, self.initial_radius)

    def _is_settled(self, state: FitState) -> bool:
        """Whether a stationary point needs no further look around."""
        if state.settled or state.probes >= _PROBES:
            return True
        return self._solved(state).is_regular() or not weak_moves(state, self.ridge)

    def _is_beside(self, state: FitState) -> bool:
        """Whether one more step would end on a bound that the point is next to."""
        if state.iteration >= self.max_iterations:
            return False
        there = move(state, self._solved(state).step(scale_of(state), math.inf).delta)
        arrived = (there == state.lower) | (there == state.upper)
        return bool((arrived & (there != state.theta)).any())

    def _stationary(
        self, state: FitState, offset: float, gain: float, accepted: bool
    ) -> StopReason | None:
        """The convergence test that the point passes, if any."""
        if offset <= self.tol:
            if accepted and self._is_rough(state, offset):
                return None
            return stationary_reason(state, column_norms(sums_of(state).jtj), self.tol)
        if not accepted and gain <= rounding_of(state, cancelling=False):
            return StopReason.ROUNDING
        # as long as trials are accepted rounding may still become less
        last = not accepted or state.iteration >= self.max_iterations
        return StopReason.ROUNDING if last and is_spent(state) else None

    def _is_rough(self, state: FitState, offset: float) -> bool:
        """Whether one more step brings digits for little: the first point that steps led to, of few rows."""
        first = self.tol < state.offset < math.inf and state.iteration < self.max_iterations
        return first and offset > _POLISHED and sums_of(state).n_rows <= _FEW

    def _judge(
        self, state: FitState, trial: Step | None = None, accepted: bool = True
    ) -> FitState:
        """Set `offset` at the current point and `stop` when a test passes."""
        sums = sums_of(state)
        if not sums.is_finite:
            return replace(state, stop=StopReason.STALLED)
        gain = abs(self._solved(state).gain(scale_of(state)))
        offset = relative_offset(gain, sums)
        doubtful, stop = False, reason_by_sums(state)
        if stop is None and (stop := self._stationary(state, offset, gain, accepted)) is not None:
            doubtful = not self._is_settled(state)
            if doubtful or (accepted and stop is StopReason.BOUNDED and self._is_beside(state)):
                stop = None
        elif stop is None and not accepted and trial is not None and is_stuck(state, trial.delta):
            stop = StopReason.STALLED
        elif stop is None and state.iteration >= self.max_iterations:
            stop = StopReason.MAX_ITERATIONS
        return replace(state, offset=offset, doubtful=doubtful, stop=stop)


def _lands(solved: Quadratic) -> bool:
    """Whether relaxing brings a linear parameter to a bound."""
    if solved.room is None or solved.factor is not None:
        return False
    delta = solved.relax().delta
    return bool(((delta != 0.0) & ((delta == solved.room[0]) | (delta == solved.room[1]))).any())
