"""Phase 1: L-BFGS on the mean squared error in normalised parameters, behind four defence layers.

It runs on a sample of the data when they are many. In a separable model it minimises the functional
of the nonlinear parameters alone: a pass gives the best linear ones and the loss that they lead to,
and since ∂loss/∂c = 0 there, the gradient is that by the nonlinear ones at fixed c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.lbfgs import clip_norm, direction, projected_gradient, remember
from nlsq_nb.core.linesearch import SEARCHES, Evaluate, Trial
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.varpro import eliminable, relax
from nlsq_nb.events import (
    CostGuardTripped,
    Event,
    HistoryFilled,
    LineSearchFailed,
    StepClipped,
    StepModeChosen,
    WarmStartDetected,
    WarmupStarted,
    WarmupStepDone,
)
from nlsq_nb.phases.defense import (
    Defense,
    clip_step,
    cost_rose,
    is_warm_start,
    relative_loss,
    step_mode,
)
from nlsq_nb.phases.state import FitState, WarmupPoint, WarmupState, WarmupStop
from nlsq_nb.phases.switching import Switching
from nlsq_nb.protocols import Objective

__all__ = ["Warmup"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_SETTLED = 1e-2  # relative gain of relaxed linear parameters that spoils the gradient taken before


@dataclass(frozen=True, slots=True)
class Warmup:
    """The phase.

    Attributes
    ----------
    switching : Switching
        What may end it.
    defense : Defense
        The layers that are on.
    variance : float
        Σ w (y − mean)² / Σ w of all data.
    memory : int
        Pairs that L-BFGS remembers.
    line_search : str
        A key of `SEARCHES`.
    gradient_clip : float or None
        Longest gradient, in the units of the loss, that makes a direction.
    ridge : float
        Relative ridge where the system of the linear parameters is numerically singular.
    order : int
        Order of the sums that phase 2 begins with: 2, or 1 where it is matrix-free.
    """

    switching: Switching
    defense: Defense
    variance: float
    memory: int
    line_search: str
    gradient_clip: float | None
    ridge: float
    order: int = 2

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """Judge the start as it was given (layers 1 and 2), then relax the linear parameters."""
        sums = state.sums or objective(state.theta, self.order)
        state = replace(state, sums=sums, first_sse=sums.sse, iteration=0, stop=None, warmup=None)
        relative = relative_loss(sums.sse / objective.weight, self.variance)
        events: list[Event] = [WarmupStarted()]
        if is_warm_start(relative, threshold := self.defense.warm_start):
            assert threshold is not None
            events.append(WarmStartDetected(relative, threshold))
            return replace(state, stop=WarmupStop.WARM_START), events
        mode = step_mode(relative, self.defense.adapts_step)
        events.append(StepModeChosen(mode, relative))
        linear = state.separable
        if linear.any():
            linear = eliminable(sums.jtj, linear)
        if self.switching.limit == 0:
            return replace(state, stop=WarmupStop.NOT_ASKED), events
        if not np.any(state.free & ~linear):
            return replace(state, stop=WarmupStop.NOTHING_NONLINEAR), events
        sample = objective.sample
        given = sums if sample is objective else sample(state.theta, 2 if linear.any() else 1)
        point = self._settle(state, sample, self._point(state, state.theta, given, sample, linear), linear)
        warmup = WarmupState(relative, mode, linear, point, point)
        state = replace(state, warmup=warmup)
        reason = self.switching.verdict(0, 0, _norm(_gradient(state, point)), self._unit(state))
        if reason is not None:
            state, more = self._finish(state, objective, reason)
            events += more
        return state, events

    def stop(self, state: FitState) -> WarmupStop | None:
        """Why the phase is over, or None."""
        assert not state.stop or isinstance(state.stop, WarmupStop)
        return state.stop

    def best(self, state: FitState) -> FitState:
        """The state at the best point, for a fit that is stopped here."""
        if state.warmup is None:
            return state
        point = state.warmup.best
        return replace(state, theta=point.theta + point.change, sums=None)

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """One iteration: direction, clip (layer 4), line search, guard (layer 3), switching."""
        warmup, sample = _warmup(state), objective.sample
        gradient = _gradient(state, warmup.point)
        aim, warmup = self._direction(warmup, gradient)
        way, asked, clipped = clip_step(aim, longest := self.defense.max_step)
        events: list[Event] = []
        if clipped:
            assert longest is not None
            events.append(StepClipped(asked, longest))
            warmup = replace(warmup, clips=warmup.clips + 1)
        reach = math.inf if longest is None else longest / min(asked, longest)
        state = replace(state, iteration=state.iteration + 1, warmup=warmup)
        start = Trial(0.0, warmup.point.loss, float(gradient @ way), warmup.point)
        found = SEARCHES[self.line_search](self._along(state, sample, way), start, reach)
        if found is None:
            state, more = self._without_step(state, objective, start)
        else:
            state, more = self._accept(state, objective, found, way)
        return state, events + more

    def _direction(self, warmup: WarmupState, gradient: Floats) -> tuple[Floats, WarmupState]:
        """The L-BFGS direction; without memory, steepest descent of the tier's length."""
        if warmup.pairs:
            aim = direction(clip_norm(gradient, self.gradient_clip), warmup.pairs)
            aim = np.where(gradient == 0.0, 0.0, aim)  # parameters held by bounds stay
            if float(aim @ gradient) < 0.0:
                return aim, warmup
        first = getattr(self.defense.sizes, warmup.mode)
        return gradient * (-first / _norm(gradient)), replace(warmup, pairs=())

    def _along(self, state: FitState, sample: Objective, way: Floats) -> Evaluate:
        """The loss along `way`, bounds by projection, linear parameters following."""
        warmup = _warmup(state)
        here, linear = warmup.point, warmup.linear
        sums, scales = here.sums, state.normalizer.scales
        base = here.theta + here.change

        def evaluate(t: float) -> Trial:
            wanted = base + t * scales * way
            theta = np.clip(wanted, state.lower, state.upper)
            if linear.any():
                change = theta - here.theta
                room = (state.lower - theta, state.upper - theta)
                follow = relax(sums.jtj, sums.jtr - sums.jtj @ change, linear, room, self.ridge)
                theta = np.clip(theta + follow.delta, state.lower, state.upper)
            new = sample(theta, 2 if linear.any() else 1)
            point = self._settle(state, sample, self._point(state, theta, new, sample, linear), linear)
            kept = np.where(wanted == np.clip(wanted, state.lower, state.upper), way, 0.0)
            return Trial(t, point.loss, float(point.gradient @ kept), point)

        return evaluate

    def _point(
        self,
        state: FitState,
        theta: Floats,
        sums: NormalSums,
        sample: Objective,
        linear: NDArray[np.bool_],
    ) -> WarmupPoint:
        """Loss and gradient from the sums, the linear parameters relaxed."""
        change = np.zeros_like(theta)
        if not sums.is_finite:
            return WarmupPoint(theta, sums, change, math.inf, change)
        sse, jtr = sums.sse, sums.jtr
        if linear.any():
            best = relax(sums.jtj, jtr, linear, (state.lower - theta, state.upper - theta), self.ridge)
            change, jtr = best.delta, jtr - sums.jtj @ best.delta
            sse = max(sse - best.predicted, 0.0)
        moves = state.free & ~linear
        gradient = np.where(moves, -2.0 / sample.weight * state.normalizer.scales * jtr, 0.0)
        return WarmupPoint(theta, sums, change, sse / sample.weight, gradient)

    def _settle(
        self, state: FitState, sample: Objective, point: WarmupPoint, linear: NDArray[np.bool_]
    ) -> WarmupPoint:
        """The point measured anew where its linear parameters were far from their best values."""
        if math.isinf(point.loss) or not linear.any():
            return point
        if point.sums.sse - point.loss * sample.weight <= _SETTLED * point.sums.sse:
            return point
        theta = np.clip(point.theta + point.change, state.lower, state.upper)
        new = self._point(state, theta, sample(theta, 2), sample, linear)
        return new if new.sums.is_finite and new.sums.sse <= point.sums.sse else point

    def _accept(
        self, state: FitState, objective: Objective, found: Trial, way: Floats
    ) -> tuple[FitState, list[Event]]:
        """Take the trial, learn its curvature, and ask the guard and the criteria."""
        warmup, events = _warmup(state), list[Event]()
        old, new = warmup.point, found.point
        s = np.where(warmup.linear, 0.0, (new.theta - old.theta) / state.normalizer.scales)
        pairs = remember(warmup.pairs, s, new.gradient - old.gradient, self.memory)
        full = len(pairs) == self.memory
        if full and not warmup.filled:
            events.append(HistoryFilled(state.iteration))
        least = warmup.best.loss
        warmup = replace(
            warmup,
            point=new,
            best=new if new.loss < least else warmup.best,
            pairs=pairs,
            calm=self.switching.calm(warmup.calm, old.loss, new.loss),
            stuck=False,
            filled=full or warmup.filled,
        )
        state = replace(state, warmup=warmup)
        norm = _norm(_gradient(state, new))
        told = self._told(state, objective, norm, found.t * _norm(way))
        if cost_rose(new.loss, least, tolerance := self.defense.cost_tolerance):
            assert tolerance is not None
            events.append(CostGuardTripped(new.loss / least, tolerance, state.iteration))
            reason: WarmupStop | None = WarmupStop.COST_GUARD
        else:
            reason = self.switching.verdict(state.iteration, warmup.calm, norm, self._unit(state))
        if reason is not None:
            state, more = self._finish(state, objective, reason)
            events += more
        # last, since the callback may end the fit on it
        return state, [*events, told]

    def _without_step(
        self, state: FitState, objective: Objective, start: Trial
    ) -> tuple[FitState, list[Event]]:
        """Forget the memory and try steepest descent once; then give up."""
        warmup = _warmup(state)
        if abs(start.slope) <= 8.0 * _EPS * start.value:
            return self._finish(state, objective, WarmupStop.ROUNDING)
        kind = "L-BFGS" if warmup.pairs else "steepest-descent"
        events: list[Event] = [
            LineSearchFailed(state.iteration, f"no decrease of the loss along the {kind} direction")
        ]
        again = bool(warmup.pairs) and not warmup.stuck
        state = replace(
            state, warmup=replace(warmup, pairs=(), stuck=True, failures=warmup.failures + 1)
        )
        told = self._told(state, objective, _norm(_gradient(state, warmup.point)), 0.0)
        if not again or state.iteration >= self.switching.ceiling:
            state, more = self._finish(state, objective, WarmupStop.NO_STEP)
            events += more
        return state, [*events, told]

    def _finish(
        self, state: FitState, objective: Objective, reason: WarmupStop
    ) -> tuple[FitState, list[Event]]:
        """Hand over the best point, after a look at all data where only a sample was seen."""
        warmup, start = _warmup(state), state.sums
        assert start is not None
        end = warmup.point if self.defense.cost_tolerance is None else warmup.best
        if objective.sample is objective:
            sums = end.sums if end.sums.order >= self.order else None
            return replace(state, theta=end.theta, sums=sums, stop=reason), []
        theta = np.clip(end.theta + end.change, state.lower, state.upper)
        sums = objective(theta, self.order)
        least = self._point(state, state.theta, start, objective, warmup.linear).loss
        loss = self._point(state, theta, sums, objective, warmup.linear).loss
        guarded = self.defense.cost_tolerance is not None
        if not sums.is_finite or (guarded and loss > least):
            if cost_rose(loss, least, tolerance := self.defense.cost_tolerance):
                assert tolerance is not None
                tripped = CostGuardTripped(loss / least, tolerance, state.iteration)
                return replace(state, stop=WarmupStop.COST_GUARD), [tripped]
            return replace(state, stop=reason), []
        return replace(state, theta=theta, sums=sums, stop=reason), []

    def _told(
        self, state: FitState, objective: Objective, gradient_norm: float, length: float
    ) -> WarmupStepDone:
        point = _warmup(state).point
        return WarmupStepDone(
            iteration=state.iteration,
            limit=self.switching.ceiling,
            sse=point.loss * objective.weight,
            grad_norm=gradient_norm,
            step_norm=length,
            theta=tuple((point.theta + point.change).tolist()),
        )

    def _unit(self, state: FitState) -> float:
        """The variance of y, or the loss at p0 where y is constant."""
        if self.variance > 0.0:
            return self.variance
        return _warmup(state).point.loss


def _warmup(state: FitState) -> WarmupState:
    assert state.warmup is not None
    return state.warmup


def _gradient(state: FitState, point: WarmupPoint) -> Floats:
    """The gradient without what bounds forbid."""
    return projected_gradient(point.gradient, (state.lower - point.theta, state.upper - point.theta))


def _norm(vector: Floats) -> float:
    return math.sqrt(float(vector @ vector))
