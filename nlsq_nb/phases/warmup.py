"""Phase 1: L-BFGS on the mean squared error in normalised parameters, behind four defence layers.

It runs on a sample of the data when they are many. In a separable model it minimises the functional
of the nonlinear parameters alone (`loss`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.bounds import room_within
from nlsq_nb.core.lbfgs import Pairs, clip_norm, direction, projected_gradient, remember
from nlsq_nb.core.linesearch import SEARCHES, Trial
from nlsq_nb.core.varpro import eliminable
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
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.loss import Loss, relaxed
from nlsq_nb.phases.setup import on_sample
from nlsq_nb.phases.state import FitState, StopReason, WarmupPoint, WarmupState, WarmupStop
from nlsq_nb.phases.switching import Switching
from nlsq_nb.protocols import Objective, Phase

__all__ = ["Judged", "Warmup"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_SAME = 1.0 + 1e-9


@dataclass(frozen=True, slots=True)
class Judged:
    """What layers 1 and 2 make of a start.

    Attributes
    ----------
    state : FitState
        With the sums at the start; `stop` is set where no iteration follows.
    events : list of Event
        What they have to tell.
    relative_loss : float
        MSE of the start over the variance of y.
    mode : str
        Tier of the first step; empty for a warm start.
    linear : ndarray of bool, shape (p,)
        Parameters to eliminate.
    """

    state: FitState
    events: list[Event]
    relative_loss: float
    mode: str
    linear: NDArray[np.bool_]


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
    mean_square : float
        Σ w y² / Σ w of all data, which stands for the variance of constant y.
    refine : Phase or None
        What follows on the sample before all data are looked at: the early steps of Gauss–Newton.
    """

    switching: Switching
    defense: Defense
    variance: float
    memory: int
    line_search: str
    gradient_clip: float | None
    ridge: float
    order: int = 2
    mean_square: float = 1.0
    refine: Phase[FitState] | None = None

    @property
    def unit(self) -> float:
        """What losses are measured in, so that products of gradients neither overflow nor underflow."""
        return self.variance or self.mean_square or 1.0

    def judge(self, state: FitState, objective: Objective) -> Judged:
        """Layers 1 and 2: judge the start, on all data, as it was given.

        Parameters
        ----------
        state : FitState
            At the start.
        objective : Objective
            Over all rows.

        Returns
        -------
        Judged
            Its state has a `stop` where no iteration follows.
        """
        sums = state.sums or objective(state.theta, self.order)
        # of several starts this may be another than the one that was given
        given_sse = sums.sse if math.isinf(state.first_sse) else state.first_sse
        state = replace(state, sums=sums, first_sse=given_sse, iteration=0, stop=None, warmup=None)
        relative = relative_loss(given_sse / objective.weight, self.variance)
        events: list[Event] = [WarmupStarted()]
        if is_warm_start(relative, threshold := self.defense.warm_start):
            assert threshold is not None
            events.append(WarmStartDetected(relative, threshold))
            return Judged(replace(state, stop=WarmupStop.WARM_START), events, relative, "", state.separable)
        mode = step_mode(relative, self.defense.adapts_step)
        events.append(StepModeChosen(mode, relative))
        linear = state.separable
        if True in linear.tolist():
            linear = eliminable(sums.jtj, linear)
        if self.switching.limit == 0:
            state = replace(state, stop=WarmupStop.NOT_ASKED)
        elif not np.any(state.free & ~linear):
            state = replace(state, stop=WarmupStop.NOTHING_NONLINEAR)
        return Judged(state, events, relative, mode, linear)

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """Judge the start, then relax the linear parameters."""
        judged = self.judge(state, objective)
        state, events, linear = judged.state, judged.events, judged.linear
        if state.stop is not None:
            return state, events
        sample, sums = objective.sample, state.sums
        assert sums is not None
        loss = self._loss(state, sample, linear)
        given = sample is objective
        point = loss.settled(loss.point(state.theta, sums)) if given else loss.at(state.theta)
        state = replace(state, warmup=WarmupState(judged.relative_loss, judged.mode, linear, point, point))
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
        return replace(state, theta=relaxed(state, point), sums=None)

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """One iteration: direction, clip (layer 4), line search, guard (layer 3), switching."""
        warmup, longest = _warmup_of(state), self.defense.max_step
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
        loss = self._loss(state, objective.sample, warmup.linear)
        found = SEARCHES[self.line_search](loss.along(warmup.point, way), start, reach)
        clips = warmup.clips + clipped
        if found is None:
            state, more = self._without_step(state, objective, start, clips)
        else:
            length = found.t * _norm(way)
            state, more = self._accept(
                state, objective, found, pairs=pairs, clips=clips, length=length
            )
        return state, events + more

    def _direction(self, warmup: WarmupState, gradient: Floats) -> tuple[Floats, Pairs]:
        """The L-BFGS direction; without memory, steepest descent of the tier's length."""
        if warmup.pairs:
            aim = direction(clip_norm(gradient, self.gradient_clip), warmup.pairs)
            if 0.0 in gradient.tolist():  # parameters that are held, or eliminated, stay
                aim = np.where(gradient == 0.0, 0.0, aim)
            if aim.dot(gradient) < 0.0:
                return aim, warmup.pairs
        first = getattr(self.defense.sizes, warmup.mode)
        return gradient * (-first / _norm(gradient)), ()

    def _loss(self, state: FitState, sample: Objective, linear: NDArray[np.bool_]) -> Loss:
        return Loss(state, sample, linear, self.unit, self.ridge)

    def _accept(
        self,
        state: FitState,
        objective: Objective,
        found: Trial,
        *,
        pairs: Pairs,
        clips: int,
        length: float,
    ) -> tuple[FitState, list[Event]]:
        """Take the trial, learn its curvature, and ask the guard and the criteria."""
        warmup, events = _warmup_of(state), list[Event]()
        old, new, least = warmup.point, found.point, warmup.best.loss
        s = (new.theta - old.theta) / state.normalizer.scales
        if True in warmup.linear.tolist():
            s = np.where(warmup.linear, 0.0, s)
        pairs = remember(pairs, s, new.gradient - old.gradient, self.memory)
        full, iteration = len(pairs) == self.memory, state.iteration + 1
        if full and not warmup.filled:
            events.append(HistoryFilled(iteration))
        warmup = replace(
            warmup,
            point=new,
            best=new if new.loss < least else warmup.best,
            pairs=pairs,
            calm=self.switching.calm(warmup.calm, old.loss, new.loss),
            clips=clips,
            stuck=False,
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
        warmup, iteration = _warmup_of(state), state.iteration + 1
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
        """Hand over the best point; of a sample, once it is refined there and seen on all data."""
        warmup, sample = _warmup_of(state), objective.sample
        end = warmup.point if self.defense.cost_tolerance is None else warmup.best
        if sample is objective:
            sums = end.sums if end.sums.order >= self.order else None
            return replace(state, theta=end.theta, sums=sums, stop=reason), []
        theta = relaxed(state, end)
        if self.refine is not None:
            refined = run(self.refine, on_sample(state, theta, objective), sample, lambda _: None)
            if refined.stop is StopReason.INTERRUPTED:
                raise KeyboardInterrupt
            if refined.stop is not None and refined.stop.success:
                theta = refined.theta
        return self.check(state, theta, objective, reason)

    def check(
        self, state: FitState, theta: Floats, objective: Objective, reason: WarmupStop
    ) -> tuple[FitState, list[Event]]:
        """Layer 3 on all data: hand over a point that a sample led to, or the start if that is better.

        Parameters
        ----------
        state : FitState
            With the sums at the start, and the warm-up's own state.
        theta : ndarray, shape (p,)
            The point.
        objective : Objective
            Over all rows.
        reason : WarmupStop
            Why the warm-up is over.

        Returns
        -------
        tuple of (FitState, list of Event)
            The end of the phase.
        """
        start = state.sums
        assert start is not None
        # linear parameters that suit the sample may be far off for all data
        whole = self._loss(state, objective, _warmup_of(state).linear)
        least, ended = whole.point(state.theta, start).loss, whole.at(theta, self.order)
        guarded = self.defense.cost_tolerance is not None
        if not ended.sums.is_finite or (guarded and ended.loss > least):
            rise = _rise(ended.loss, least)
            if cost_rose(rise, 1.0, tolerance := self.defense.cost_tolerance):
                assert tolerance is not None
                tripped = CostGuardTripped(rise, tolerance, state.iteration)
                return replace(state, stop=WarmupStop.COST_GUARD), [tripped]
            return replace(state, stop=reason), []
        return replace(state, theta=ended.theta, sums=ended.sums, stop=reason), []

    def _told(
        self, state: FitState, objective: Objective, gradient_norm: float, length: float
    ) -> WarmupStepDone:
        point = _warmup_of(state).point
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
        return self.switching.verdict(iteration, calm, norm), norm


def _warmup_of(state: FitState) -> WarmupState:
    assert state.warmup is not None
    return state.warmup


def _rise(loss: float, best: float) -> float:
    """The ratio of two losses; those at rounding level are equal."""
    return max(loss, _EPS**2) / max(best, _EPS**2)


def _gradient(state: FitState, point: WarmupPoint) -> Floats:
    """The gradient without what bounds forbid."""
    room = room_within(state.lower, state.upper, point.theta)
    return point.gradient if room is None else projected_gradient(point.gradient, room)


def _norm(vector: Floats) -> float:
    return math.hypot(*vector.tolist())
