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

from nlsq_nb.core.linsolve import column_norms, rounding_error, weak_directions
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.trust_region import Step, next_radius
from nlsq_nb.core.varpro import reduced_norms, reduced_step, relax, schur
from nlsq_nb.events import Event, StepDone
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.protocols import Objective

__all__ = ["GaussNewton"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_ACCEPT = 1e-4  # least share of the predicted reduction that a trial must bring
_POLISH = 0.1  # relative gain in sse beyond which relaxed linear parameters are worth a pass
_TRUSTED = 1e-6  # relative error up to which the linear parameters are solved for apart
_SILENT = 1e-8  # y that is all zero has no scale: this share of the first sse stands for it
_PROBES = 3  # looks around in one fit
_MOVES = 8  # directions of one look: its passes must not grow with the parameters
_PROBE = 0.03  # relative change of a parameter that a probe makes


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
        signal = state.signal or _SILENT * sums.sse
        state = replace(state, sums=sums, signal=signal, iteration=0, stop=None)
        state = self._relax(replace(state, linear=_eliminated(state)), objective)
        state = replace(state, scale=self._norms(_sums(state), state.linear))
        return self._judge(state), []

    def stop(self, state: FitState) -> StopReason | None:
        """Why the phase is over, or None."""
        return state.stop

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """One trial, or the look around that a singular stationary point needs."""
        before = state
        if state.doubtful:
            state, trial_sse, reach = self._probe(state, objective)
        else:
            state, trial_sse, reach = self._trial(state, objective)
        event = StepDone(
            iteration=state.iteration,
            limit=self.max_iterations,
            sse=_sums(state).sse,
            grad_norm=float(np.linalg.norm(before.normalizer.scales * _sums(before).jtr)),
            reduction=_sums(before).sse - trial_sse,
            radius=reach,
            accepted=state.sums is not before.sums,
            theta=tuple(map(float, state.theta)),
        )
        return state, [event]

    def _trial(self, state: FitState, objective: Objective) -> tuple[FitState, float, float]:
        """Solve the subproblem, evaluate, accept or shrink; also the trial's sse and Δ in z."""
        radius = state.radius if np.isfinite(state.radius) else self._first_radius(state)
        step = self._solve(state, radius)
        theta = _move(state, step.delta)
        moved = replace(state, theta=theta, sums=objective(theta, 2))
        moved = self._relax(moved, objective, state)
        trial = _sums(moved)
        actual = state.relaxed - moved.relaxed if trial.is_finite else -np.inf
        # the point itself must not be worse, however good its relaxed linear parameters would be
        better = actual > _ACCEPT * step.predicted
        accepted = better and trial.sse <= _sums(state).sse
        if not better and abs(actual) <= (noise := _noise(state)):
            # only linear parameters moved, or the cost cannot tell the points apart any more and
            # the gradient still can
            accepted = trial.sse < _sums(state).sse - noise or self._offset(moved) < state.offset
        length = float(np.linalg.norm((step.delta / state.normalizer.scales)[~state.linear]))
        reach = radius * length / step.norm if step.norm > 0.0 else radius
        radius = next_radius(radius, step, max(actual, 0.0) if accepted else actual)
        if accepted:
            norms = self._norms(trial, state.linear)
            state = replace(moved, scale=np.maximum(_scale(state), norms))
        state = replace(state, iteration=state.iteration + 1, radius=radius)
        if accepted and np.any(_eliminated(state) != state.linear):
            state = self._relax(replace(state, linear=_eliminated(state)), objective)
            state = replace(state, radius=np.inf, scale=self._norms(_sums(state), state.linear))
        return self._judge(state, step, accepted), trial.sse, reach

    def _norms(self, sums: NormalSums, linear: NDArray[np.bool_]) -> Floats:
        return reduced_norms(sums.jtj, linear, self.ridge)

    def _relax(
        self, state: FitState, objective: Objective, before: FitState | None = None
    ) -> FitState:
        """Note the sse with the linear parameters at their best, and move them if that matters.

        The derivatives by the nonlinear parameters are proportional to the linear ones, so they
        are worth one more pass when the linear ones are far off, and when without it the point
        would be worse than the one before although its relaxed sse is better.
        """
        sums = _sums(state)
        if not sums.is_finite or not state.linear.any():
            return replace(state, relaxed=sums.sse)
        best = relax(sums.jtj, sums.jtr, state.linear, _room(state), self.ridge)
        least = max(sums.sse - best.predicted, 0.0)
        state = replace(state, relaxed=least)
        doubt = 4.0 * sums.sse * rounding_error(sums.jtj[np.ix_(state.linear, state.linear)])
        hopeless = before is not None and least >= before.relaxed + doubt
        worse = before is not None and sums.sse > _sums(before).sse
        if hopeless or (not worse and best.predicted <= _POLISH * least):
            return state
        theta = _move(state, best.delta)
        new = objective(theta, 2)
        if not new.is_finite or new.sse > sums.sse:
            return replace(state, relaxed=sums.sse)  # too ill-conditioned to be believed
        rest = relax(new.jtj, new.jtr, state.linear, _room(replace(state, theta=theta)), self.ridge)
        return replace(state, theta=theta, sums=new, relaxed=max(new.sse - rest.predicted, 0.0))

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
            reach = max(reach, float(np.linalg.norm(move / state.normalizer.scales)))
            ahead = self._look(state, move, objective)
            behind = self._look(state, -move, objective)
            found = [best, ahead, behind]
            bend = _sums(ahead).sse + _sums(behind).sse - 2.0 * start
            if np.isfinite(bend) and bend > noise:
                vertex = 0.5 * (_sums(behind).sse - _sums(ahead).sse) / bend
                found.append(self._look(state, vertex * move, objective))
            best = min(found, key=lambda s: _sums(s).sse if _sums(s).is_finite else np.inf)
            if _sums(best).sse < start - noise:
                norms = self._norms(_sums(best), best.linear)
                state = replace(best, scale=norms, radius=np.inf, settled=False)
                return self._judge(state), _sums(state).sse, reach
        return self._judge(replace(state, settled=True)), _sums(best).sse, reach

    def _look(self, state: FitState, move: Floats, objective: Objective) -> FitState:
        """The point at a distance, with the linear parameters at their best there."""
        theta = np.clip(state.theta + move, state.lower, state.upper)
        moved = replace(state, theta=theta, sums=objective(theta, 2))
        linear = _eliminated(moved) if not np.any(move[state.separable]) else state.linear
        return self._relax(replace(moved, linear=linear), objective)

    def _first_radius(self, state: FitState) -> float:
        """The D-norm of a step along the full one, `initial_radius` long in z."""
        full = self._solve(state, np.inf)
        # a parameter that starts at 0 has no scale that could limit it
        limited = ~state.linear & (state.theta != 0.0)
        length = float(np.linalg.norm((full.delta / state.normalizer.scales)[limited]))
        share = self.initial_radius / length if length > 0.0 else 1.0
        norm = float(np.linalg.norm((_scale(state) * full.delta)[~state.linear]))
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

    def _offset(self, state: FitState) -> float:
        """Relative offset at a point: how much of the residuals a full step would remove."""
        return _relative(self._full(state), _sums(state))

    def _is_settled(self, state: FitState) -> bool:
        """Whether a stationary point needs no further look around."""
        if state.settled or state.probes >= _PROBES:
            return True
        return not _weak_moves(state, self.ridge)

    def _stationary(self, state: FitState, full: Step, accepted: bool) -> StopReason | None:
        """The convergence test that the point passes, if any."""
        if state.offset <= self.tol:
            seen = np.any(column_norms(_sums(state).jtj)[state.free])
            return StopReason.RELATIVE_OFFSET if seen else StopReason.FLAT
        if not accepted and full.predicted <= _noise(state, cancelling=False):
            return StopReason.ROUNDING
        return None

    def _judge(
        self, state: FitState, trial: Step | None = None, accepted: bool = True
    ) -> FitState:
        """Set `offset` at the current point and `stop` when a test passes."""
        sums = _sums(state)
        if not sums.is_finite:
            return replace(state, stop=StopReason.STALLED)
        full = self._full(state)
        offset = _relative(full, sums)
        state = replace(state, offset=offset, doubtful=False)
        if not state.free.any():
            return replace(state, stop=StopReason.NOTHING_FREE)
        if sums.sse <= (8.0 * _EPS) ** 2 * state.signal:
            return replace(state, stop=StopReason.EXACT_FIT)
        reason = self._stationary(state, full, accepted)
        if reason is not None:
            settled = self._is_settled(state)
            return replace(state, stop=reason) if settled else replace(state, doubtful=True)
        if not accepted and trial is not None and _is_stuck(state, trial):
            return replace(state, stop=StopReason.STALLED)
        if state.iteration >= self.max_iterations:
            return replace(state, stop=StopReason.MAX_ITERATIONS)
        return state


def _is_stuck(state: FitState, trial: Step) -> bool:
    """Whether steps have become too short to change the parameters."""
    size = float(np.linalg.norm(_scale(state) * state.theta))
    return bool(np.all(_move(state, trial.delta) == state.theta) or state.radius <= _EPS * size)


def _sums(state: FitState) -> NormalSums:
    assert state.sums is not None
    return state.sums


def _scale(state: FitState) -> Floats:
    assert state.scale is not None
    return state.scale


def _relative(full: Step, sums: NormalSums) -> float:
    return float(np.sqrt(max(full.predicted, 0.0) / sums.sse)) if sums.sse > 0.0 else 0.0


def _eliminated(state: FitState) -> NDArray[np.bool_]:
    """The parameters to eliminate: none while their own system cannot be solved to some digits.

    Two nearly equal terms leave nothing but rounding in the Schur complement; an ordinary step of
    all parameters leads away from there.
    """
    found, sums = state.separable, _sums(state)
    if found.all() or not sums.is_finite:
        return found
    lost = rounding_error(sums.jtj[np.ix_(found, found)])
    return found if lost <= _TRUSTED else np.zeros_like(found)


def _room(state: FitState) -> tuple[Floats, Floats]:
    return state.lower - state.theta, state.upper - state.theta


def _noise(state: FitState, *, cancelling: bool = True) -> float:
    """Rounding error of the sse (Cauchy–Schwarz over the rows).

    A residual carries eps times the size of y or, when `cancelling` counts, of the linear terms
    that cancel to give it.
    """
    sums, scale = _sums(state), state.signal
    if cancelling:
        terms = (state.theta * column_norms(sums.jtj))[state.linear] ** 2
        scale = float(np.max(terms, initial=scale))
    return 4.0 * _EPS * float(np.sqrt(sums.sse) * np.sqrt(scale)) + 4.0 * _EPS * sums.sse


def _move(state: FitState, delta: Floats) -> Floats:
    """θ + δ, exactly on a bound where the step reaches it."""
    theta = state.theta + delta
    theta = np.where(delta == state.lower - state.theta, state.lower, theta)
    theta = np.where(delta == state.upper - state.theta, state.upper, theta)
    return np.where(delta == 0.0, state.theta, np.clip(theta, state.lower, state.upper))


def _weak_moves(state: FitState, ridge: float) -> list[Floats]:
    """Moves by some per cent that JᵀJ does not see; none where it is regular.

    First those of the nonlinear parameters with the linear ones eliminated, then each parameter
    without any derivative, then those of all parameters together.
    """
    h, free = _sums(state).jtj, state.free
    norms = column_norms(h)
    silent = np.flatnonzero(free & ~state.separable & (norms == 0.0))
    if not len(silent) and not len(weak_directions(h[np.ix_(free, free)])):
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
    for part in weak_directions(h[np.ix_(free, free)]):
        found.append(np.zeros_like(state.theta))
        found[-1][free] = part
    size = np.where(state.theta != 0.0, np.abs(state.theta), state.normalizer.scales)
    largest = [float(np.max(np.abs(move) / size)) for move in found]
    scaled = zip(found, largest, strict=True)
    return [_PROBE / length * move for move, length in scaled if length][:_MOVES]


