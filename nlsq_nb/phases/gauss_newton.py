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

from nlsq_nb.core.linsolve import (
    column_norms,
    length,
    principal,
    rounding_error,
    weak_directions,
)
from nlsq_nb.core.quadratic import Quadratic, quadratic
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.trust_region import Step, next_radius
from nlsq_nb.core.varpro import eliminable, has_room, room_within, schur
from nlsq_nb.events import Event, StepDone
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.protocols import Objective

__all__ = ["GaussNewton"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)
_ACCEPT = 1e-4  # least share of the predicted reduction that a trial must bring
_POLISH = 0.1  # relative gain in sse beyond which relaxed linear parameters are worth a pass
_SILENT = 1e-8  # y that is all zero has no scale: this share of the first sse stands for it
_PROBES = 3  # looks around in one fit
_MOVES = 8  # directions of one look: its passes must not grow with the parameters
_PROBE = 0.03  # relative change of a parameter that a probe makes


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
    """

    max_iterations: int
    tol: float
    initial_radius: float
    ridge: float

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """Take the sums at the start, give the linear parameters their best values, judge."""
        sums = state.sums
        if sums is None or sums.order < 2:
            sums = objective(state.theta, 2)
        linear = eliminable(sums.jtj, state.separable)
        state = replace(
            state,
            sums=sums,
            signal=state.signal or _SILENT * sums.sse,
            linear=linear,
            iteration=0,
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

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """One trial, or the look around that a singular stationary point needs."""
        before = state
        if state.doubtful:
            state, trial_sse, reach = self._probe(state, objective)
        else:
            state, trial_sse, reach = self._trial(state, objective)
        slope = before.normalizer.scales * _sums(before).jtr
        event = StepDone(
            iteration=state.iteration,
            limit=self.max_iterations,
            sse=_sums(state).sse,
            grad_norm=length(slope),
            reduction=_sums(before).sse - trial_sse,
            radius=reach,
            accepted=state.sums is not before.sums,
            theta=tuple(state.theta.tolist()),
        )
        return state, [event]

    def _trial(self, state: FitState, objective: Objective) -> tuple[FitState, float, float]:
        """Solve the subproblem, evaluate, accept or shrink; also the trial's sse and Δ in z."""
        solved, sums = self._solved(state), _sums(state)
        radius = state.radius if math.isfinite(state.radius) else self._first_radius(state, solved)
        step = solved.step(_scale(state), radius)
        theta = _move(state, step.delta)
        at = self._settle(state, theta, objective(theta, 2), objective, trial=True)
        actual = state.relaxed - at.relaxed if at.solved is not None else -math.inf
        # the point itself must not be worse, however good its relaxed linear parameters would be
        better = actual > _ACCEPT * step.predicted
        accepted = better and at.sums.sse <= sums.sse
        if not better and at.solved is not None and abs(actual) <= (noise := _noise(state)):
            # only linear parameters moved, or the cost cannot tell the points apart any more and
            # the gradient still can
            offset = _relative(at.solved.gain(_scale(state)), at.sums)
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
            scale=np.maximum(_scale(state), solved.norms()),
            iteration=state.iteration + 1,
            radius=radius,
        )
        if state.linear is state.separable and solved.is_eliminable():
            return state
        linear = eliminable(at.sums.jtj, state.separable)
        if np.array_equal(linear, state.linear):
            return state
        state = replace(state, linear=linear, radius=math.inf)
        return self._take(state, self._settle(state, state.theta, at.sums, objective))

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
        return self._quadratic(state, state.theta, _sums(state))

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
        are worth one more pass when the linear ones are far off, and when without it a trial
        would be worse than the state's point although its relaxed sse is better.
        """
        if not sums.is_finite:
            return _Point(theta, sums, sums.sse, None)
        solved = self._quadratic(state, theta, sums)
        gain = solved.relaxed_gain
        least = max(sums.sse - gain, 0.0)
        here = _Point(theta, sums, least, solved)
        worse = trial and sums.sse > _sums(state).sse
        if True not in state.linear.tolist() or not (worse or gain > _POLISH * least):
            return here
        if trial and least >= state.relaxed:
            doubt = 4.0 * sums.sse * rounding_error(principal(sums.jtj, state.linear))
            if least >= state.relaxed + doubt:  # hopeless
                return here
        nearer = _move(replace(state, theta=theta), solved.relax().delta)
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
        start, noise, reach = _sums(state).sse, _noise(state), 0.0
        state = replace(state, probes=state.probes + 1, iteration=state.iteration + 1)
        best = state
        for move in _weak_moves(state, self.ridge):
            reach = max(reach, length(move / state.normalizer.scales))
            ahead = self._look(state, move, objective)
            behind = self._look(state, -move, objective)
            found = [best, ahead, behind]
            bend = _sums(ahead).sse + _sums(behind).sse - 2.0 * start
            if math.isfinite(bend) and bend > noise:
                vertex = 0.5 * (_sums(behind).sse - _sums(ahead).sse) / bend
                found.append(self._look(state, vertex * move, objective))
            best = min(found, key=lambda s: _sums(s).sse if _sums(s).is_finite else math.inf)
            if _sums(best).sse < start - noise:
                norms = self._solved(best).norms()
                state = replace(best, scale=norms, radius=math.inf, settled=False)
                return self._judge(state), _sums(state).sse, reach
        return self._judge(replace(state, settled=True)), _sums(best).sse, reach

    def _look(self, state: FitState, move: Floats, objective: Objective) -> FitState:
        """The point at a distance, with the linear parameters at their best there."""
        theta = np.clip(state.theta + move, state.lower, state.upper)
        sums = objective(theta, 2)
        if not np.any(move[state.separable]):
            state = replace(state, linear=eliminable(sums.jtj, state.separable))
        at = self._settle(state, theta, sums, objective)
        return replace(state, theta=at.theta, sums=at.sums, relaxed=at.relaxed)

    def _first_radius(self, state: FitState, solved: Quadratic) -> float:
        """The D-norm of a step along the full one, `initial_radius` long in z."""
        full = solved.step(_scale(state), math.inf)
        # a parameter that starts at 0 has no scale that could limit it
        first = state.theta if state.first is None else state.first
        limited = ~state.linear & (first != 0.0)
        reach = length((full.delta / state.normalizer.scales)[limited])
        share = self.initial_radius / reach if reach > 0.0 else 1.0
        norm = length((_scale(state) * full.delta)[~state.linear])
        return max(share * norm, _TINY)

    def _is_settled(self, state: FitState) -> bool:
        """Whether a stationary point needs no further look around."""
        if state.settled or state.probes >= _PROBES or self._solved(state).is_regular():
            return True
        return not _weak_moves(state, self.ridge)

    def _stationary(
        self, state: FitState, offset: float, gain: float, accepted: bool
    ) -> StopReason | None:
        """The convergence test that the point passes, if any."""
        if offset <= self.tol:
            seen = np.any(column_norms(_sums(state).jtj)[state.free])
            return StopReason.RELATIVE_OFFSET if seen else StopReason.FLAT
        if not accepted and gain <= _noise(state, cancelling=False):
            return StopReason.ROUNDING
        return None

    def _judge(
        self, state: FitState, trial: Step | None = None, accepted: bool = True
    ) -> FitState:
        """Set `offset` at the current point and `stop` when a test passes."""
        sums = _sums(state)
        if not sums.is_finite:
            return replace(state, stop=StopReason.STALLED)
        gain = abs(self._solved(state).gain(_scale(state)))
        offset = _relative(gain, sums)
        doubtful, stop = False, self._stationary(state, offset, gain, accepted)
        if True not in state.free.tolist():
            stop = StopReason.NOTHING_FREE
        elif sums.sse <= (8.0 * _EPS) ** 2 * state.signal:
            stop = StopReason.EXACT_FIT
        elif stop is not None:
            doubtful = not self._is_settled(state)
            stop = None if doubtful else stop
        elif not accepted and trial is not None and _is_stuck(state, trial):
            stop = StopReason.STALLED
        elif state.iteration >= self.max_iterations:
            stop = StopReason.MAX_ITERATIONS
        return replace(state, offset=offset, doubtful=doubtful, stop=stop)


def _is_stuck(state: FitState, trial: Step) -> bool:
    """Whether steps have become too short to change the parameters."""
    size = length((_scale(state) * state.theta)[state.free])
    return bool(np.all(_move(state, trial.delta) == state.theta) or state.radius <= _EPS * size)


def _sums(state: FitState) -> NormalSums:
    assert state.sums is not None
    return state.sums


def _scale(state: FitState) -> Floats:
    assert state.scale is not None
    return state.scale


def _relative(gain: float, sums: NormalSums) -> float:
    """The relative offset: how much of the residuals a full step would remove.

    A gain that rounding makes negative says as little as one of that size.
    """
    return math.sqrt(abs(gain) / sums.sse) if sums.sse > 0.0 else 0.0


def _noise(state: FitState, *, cancelling: bool = True) -> float:
    """Rounding error of the sse (Cauchy–Schwarz over the rows).

    A residual carries eps times the size of y or, when `cancelling` counts, of the linear terms
    that cancel to give it.
    """
    sums, scale = _sums(state), state.signal
    if cancelling:
        terms = (state.theta * column_norms(sums.jtj))[state.linear] ** 2
        scale = float(np.max(terms, initial=scale))
    return 4.0 * _EPS * math.sqrt(sums.sse) * math.sqrt(scale) + 4.0 * _EPS * sums.sse


def _move(state: FitState, delta: Floats) -> Floats:
    """θ + δ, exactly on a bound where the step reaches it."""
    room = room_within(state.lower, state.upper, state.theta)
    theta = state.theta + delta
    if room is None or has_room(room, state.free, delta):
        return theta
    theta = np.where(delta == room[0], state.lower, theta)
    theta = np.where(delta == room[1], state.upper, theta)
    return np.where(delta == 0.0, state.theta, np.clip(theta, state.lower, state.upper))


def _weak_moves(state: FitState, ridge: float) -> list[Floats]:
    """Moves by some per cent that JᵀJ does not see; none where it is regular.

    First those of the nonlinear parameters with the linear ones eliminated, then each parameter
    without any derivative, then those of all parameters together.
    """
    h, free = _sums(state).jtj, state.free
    norms = column_norms(h)
    silent = np.flatnonzero(free & ~state.separable & (norms == 0.0))
    if not len(silent) and not len(weak_directions(principal(h, free))):
        return []
    nonlinear = free & ~state.separable
    found = []
    if nonlinear.any():
        reduced = schur(h, state.separable, nonlinear, ridge)
        for part in weak_directions(reduced, at_least=1):
            found.append(np.zeros_like(state.theta))
            found[-1][nonlinear] = part
    for k in silent:
        found.append(np.zeros_like(state.theta))
        found[-1][k] = 1.0
    for part in weak_directions(principal(h, free)):
        found.append(np.zeros_like(state.theta))
        found[-1][free] = part
    size = np.where(state.theta != 0.0, np.abs(state.theta), state.normalizer.scales)
    largest = [float(np.max(np.abs(move) / size)) for move in found]
    scaled = zip(found, largest, strict=True)
    return [_PROBE / share * move for move, share in scaled if share][:_MOVES]
