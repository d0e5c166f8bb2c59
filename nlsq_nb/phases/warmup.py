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

from nlsq_nb.core.lbfgs import Pairs, clip_norm, direction, projected_gradient, remember
from nlsq_nb.core.linesearch import SEARCHES, Evaluate, Trial
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.varpro import eliminable, relax, room_within
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
_SAME = 1.0 + 1e-9
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
        Longest gradient, in `unit`, that makes a direction.
    ridge : float
        Relative ridge where the system of the linear parameters is numerically singular.
    order : int
        Order of the sums that phase 2 begins with: 2, or 1 where it is matrix-free.
    unit : float
        What losses are measured in, so that products of gradients neither overflow nor underflow.
    """

    switching: Switching
    defense: Defense
    variance: float
    memory: int
    line_search: str
    gradient_clip: float | None
    ridge: float
    order: int = 2
    unit: float = 1.0

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
        reason, _ = self._verdict(state, point, 0, 0)
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
        warmup, longest = _warmup(state), self.defense.max_step
        gradient = _gradient(state, warmup.point)
        if not _norm(gradient):  # nowhere to go, whatever the criteria are
            return self._finish(state, objective, WarmupStop.GRADIENT)
        aim, pairs = self._direction(warmup, gradient)
        way, asked, clipped = clip_step(aim, longest)
        if not asked:
            return self._finish(state, objective, WarmupStop.ROUNDING)
        events: list[Event] = [StepClipped(asked, longest)] if clipped and longest else []
        reach = math.inf if longest is None else max(longest / asked, 1.0)
        if reach < _SAME:  # rounding left nothing to try between the two lengths
            reach = 1.0
        start = Trial(0.0, warmup.point.loss, float(gradient.dot(way)), warmup.point)
        along = self._along(state, objective.sample, way)
        found = SEARCHES[self.line_search](along, start, reach)
        clips = warmup.clips + clipped
        if found is None:
            state, more = self._without_step(state, objective, start, clips)
        else:
            state, more = self._accept(state, objective, found, (pairs, clips, found.t * _norm(way)))
        return state, events + more

    def _direction(self, warmup: WarmupState, gradient: Floats) -> tuple[Floats, Pairs]:
        """The L-BFGS direction; without memory, steepest descent of the tier's length."""
        if warmup.pairs:
            aim = direction(clip_norm(gradient, self.gradient_clip), warmup.pairs)
            aim = np.where(gradient == 0.0, 0.0, aim)  # parameters held by bounds stay
            if aim.dot(gradient) < 0.0:
                return aim, warmup.pairs
        first = getattr(self.defense.sizes, warmup.mode)
        return gradient * (-first / _norm(gradient)), ()

    def _along(self, state: FitState, sample: Objective, way: Floats) -> Evaluate:
        """The loss along `way`, bounds by projection, linear parameters following."""
        warmup = _warmup(state)
        here, linear = warmup.point, warmup.linear
        base, move = here.theta + here.change, state.normalizer.scales * way
        right = -(here.sums.jtj @ move) if linear.any() else move
        if linear.any() and np.isfinite(right).all():  # what keeps them at their best to first order
            unlimited = (np.full_like(base, -np.inf), np.full_like(base, np.inf))
            move = move + relax(here.sums.jtj, right, linear, unlimited, self.ridge).delta
        order = 2 if linear.any() else 1
        bounded = _room(state, base) is not None

        def evaluate(t: float) -> Trial:
            theta, kept = base + t * move, way
            if bounded:
                wanted, theta = theta, np.clip(theta, state.lower, state.upper)
                kept = np.where(wanted == theta, way, 0.0)
            point = self._point(state, theta, sample(theta, order), sample, linear)
            point = self._settle(state, sample, point, linear)
            return Trial(t, point.loss, float(point.gradient.dot(kept)), point)

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
        whole = sample.weight * self.unit
        gradient = np.where(moves, -2.0 / whole * state.normalizer.scales * jtr, 0.0)
        return WarmupPoint(theta, sums, change, sse / whole, gradient)

    def _settle(
        self, state: FitState, sample: Objective, point: WarmupPoint, linear: NDArray[np.bool_]
    ) -> WarmupPoint:
        """The point measured anew where its linear parameters were far from their best values.

        What is solved for is believed only as far as a measurement bears it out: nearly equal terms
        leave nothing but rounding errors in the system, and a loss near zero that is not there.
        """
        if math.isinf(point.loss) or not linear.any() or self._is_settled(point, sample):
            return point
        theta = np.clip(point.theta + point.change, state.lower, state.upper)
        new = self._point(state, theta, sample(theta, 2), sample, linear)
        if not new.sums.is_finite or new.sums.sse > point.sums.sse:
            new = point
        if self._is_settled(new, sample):
            return new
        measured = new.sums.sse / (sample.weight * self.unit)
        return replace(new, change=np.zeros_like(theta), loss=measured)

    def _is_settled(self, point: WarmupPoint, sample: Objective) -> bool:
        """Whether the linear parameters are near their best values already."""
        gain = point.sums.sse - point.loss * sample.weight * self.unit
        return gain <= _SETTLED * point.sums.sse

    def _accept(
        self,
        state: FitState,
        objective: Objective,
        found: Trial,
        path: tuple[Pairs, int, float],
    ) -> tuple[FitState, list[Event]]:
        """Take the trial, learn its curvature, and ask the guard and the criteria."""
        (known, clips, length), warmup, events = path, _warmup(state), list[Event]()
        old, new, least = warmup.point, found.point, warmup.best.loss
        s = np.where(warmup.linear, 0.0, (new.theta - old.theta) / state.normalizer.scales)
        pairs = remember(known, s, new.gradient - old.gradient, self.memory)
        full, iteration = len(pairs) == self.memory, state.iteration + 1
        if full and not warmup.filled:
            events.append(HistoryFilled(iteration))
        warmup = WarmupState(
            relative_loss=warmup.relative_loss,
            mode=warmup.mode,
            linear=warmup.linear,
            point=new,
            best=new if new.loss < least else warmup.best,
            pairs=pairs,
            calm=self.switching.calm(warmup.calm, old.loss, new.loss),
            clips=clips,
            failures=warmup.failures,
            filled=full or warmup.filled,
        )
        state = replace(state, iteration=iteration, warmup=warmup)
        reason, norm = self._verdict(state, new, iteration, warmup.calm)
        told = self._told(state, objective, norm, length)
        rise = _rise(new.loss, least)
        if cost_rose(rise, 1.0, tolerance := self.defense.cost_tolerance):
            assert tolerance is not None
            events.append(CostGuardTripped(rise, tolerance, iteration))
            reason = WarmupStop.COST_GUARD
        if reason is not None:
            state, more = self._finish(state, objective, reason)
            events += more
        # last, since the callback may end the fit on it
        return state, [*events, told]

    def _without_step(
        self, state: FitState, objective: Objective, start: Trial, clips: int
    ) -> tuple[FitState, list[Event]]:
        """Forget the memory and try steepest descent once; then give up."""
        warmup, iteration = _warmup(state), state.iteration + 1
        if abs(start.slope) <= 8.0 * _EPS * start.value:
            warmup = replace(warmup, clips=clips)
            state = replace(state, iteration=iteration, warmup=warmup)
            return self._finish(state, objective, WarmupStop.ROUNDING)
        kind = "L-BFGS" if warmup.pairs else "steepest-descent"
        events: list[Event] = [
            LineSearchFailed(iteration, f"no decrease of the loss along the {kind} direction")
        ]
        again = bool(warmup.pairs) and not warmup.stuck
        failures = warmup.failures + 1
        warmup = replace(warmup, pairs=(), stuck=True, failures=failures, clips=clips)
        state = replace(state, iteration=iteration, warmup=warmup)
        told = self._told(state, objective, _norm(_gradient(state, warmup.point)), 0.0)
        if not again or iteration >= self.switching.ceiling:
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
        least = self._point(state, state.theta, start, objective, warmup.linear).loss
        ended = self._point(state, theta, objective(theta, self.order), objective, warmup.linear)
        # linear parameters that suit the sample may be far off for all data
        ended = self._settle(state, objective, ended, warmup.linear)
        theta, sums, loss = ended.theta, ended.sums, ended.loss
        guarded = self.defense.cost_tolerance is not None
        if not sums.is_finite or (guarded and loss > least):
            rise = _rise(loss, least)
            if cost_rose(rise, 1.0, tolerance := self.defense.cost_tolerance):
                assert tolerance is not None
                tripped = CostGuardTripped(rise, tolerance, state.iteration)
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
            sse=point.loss * self.unit * objective.weight,
            grad_norm=gradient_norm * self.unit,
            step_norm=length,
            theta=tuple((point.theta + point.change).tolist()),
        )

    def _verdict(
        self, state: FitState, point: WarmupPoint, iteration: int, calm: int
    ) -> tuple[WarmupStop | None, float]:
        """What the criteria say at a point, and the norm of its gradient."""
        norm = _norm(_gradient(state, point))
        limit = self.variance / self.unit if self.variance > 0.0 else 1.0
        return self.switching.verdict(iteration, calm, norm, limit), norm


def _warmup(state: FitState) -> WarmupState:
    assert state.warmup is not None
    return state.warmup


def _rise(loss: float, best: float) -> float:
    """The ratio of two losses; those at rounding level are equal."""
    return max(loss, _EPS**2) / max(best, _EPS**2)


def _room(state: FitState, theta: Floats) -> tuple[Floats, Floats] | None:
    return room_within(state.lower, state.upper, theta)


def _gradient(state: FitState, point: WarmupPoint) -> Floats:
    """The gradient without what bounds forbid."""
    room = _room(state, point.theta)
    return point.gradient if room is None else projected_gradient(point.gradient, room)


def _norm(vector: Floats) -> float:
    return math.hypot(*vector.tolist())
