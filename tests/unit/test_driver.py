"""The one loop: what is emitted and saved when, how a phase is stopped, and what changed weights do to it."""

from dataclasses import replace

import numpy as np
import pytest

from nlsq_nb import events
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.errors import StopFit
from nlsq_nb.phases.conjugate_gradient import ConjugateGradient
from nlsq_nb.phases.defense import Defense, StepSizes
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import StopReason, WarmupStop
from nlsq_nb.phases.switching import Switching
from nlsq_nb.phases.warmup import Warmup

X = np.linspace(0.0, 4.0, 40)
Y = 5.0 * np.exp(-1.3 * X) + 1.0 + 0.05 * np.sin(40.0 * X)
P0 = np.array([1.0, 0.1, 3.0])
STEPS = (events.StepDone, events.WarmupStepDone)


class Decay:
    """a·exp(−b·x) + c in plain NumPy, with weights that may change."""

    n_params, revision = 3, 0

    def __init__(self):
        self.w = np.ones_like(X)
        self.asked = []

    @property
    def weight(self):
        return float(self.w.sum())

    @property
    def sample(self):
        return self

    def reweigh(self, w):
        self.w, self.revision = w, self.revision + 1

    def _parts(self, theta):
        e = np.exp(-theta[1] * X)
        return Y - theta[0] * e - theta[2], np.stack([e, -theta[0] * X * e, np.ones_like(e)], axis=1)

    def __call__(self, theta, order):
        self.asked.append(theta.copy())
        r, j = self._parts(theta)
        return NormalSums.from_arrays(float(r @ (self.w * r)), j.T @ (self.w * r), j.T @ (j * self.w[:, None]), len(r))

    def matvec(self, theta, v):
        j = self._parts(theta)[1]
        return j.T @ (self.w * (j @ v))

    def sse(self, theta):
        r = self._parts(theta)[0]
        return float(r @ (self.w * r))


LAYERS = Defense(None, True, StepSizes(1.0, 0.5, 0.1, 0.1), 0.05, 0.1)  # noqa: FBT003 - adapts_step
SWITCHING = Switching(200, 500, 1e-6, 1e-6, ("plateau", "gradient", "max_iter"))
WARMUP = Warmup(SWITCHING, LAYERS, float(np.var(Y)), 10, "wolfe", None, 0.0)
NEWTON = GaussNewton(max_iterations=100, tol=1e-8, initial_radius=0.3, ridge=1e-10)
CONJUGATE = ConjugateGradient(100, 1e-8, 0.3, 100, 1e-6, 1e-12)
PHASES = {"warmup": WARMUP, "newton": NEWTON, "conjugate": CONJUGATE}
each_phase = pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)


def start():
    free = (np.full(3, -np.inf), np.full(3, np.inf))
    return setup(P0, free, ("a", "b", "c"), (), float(Y @ Y), "auto")


def point(state):
    """Where a state stands, the warm-up's included."""
    return state.theta if state.warmup is None or state.stop else state.warmup.point.theta


@each_phase
def test_events_and_states_come_in_order(phase):
    log = []
    end = run(phase, start(), Decay(), log.append, save=log.append)
    assert phase.stop(end) is end.stop is not None
    told = [e for e in log if isinstance(e, STEPS)]
    assert [e.iteration for e in told] == list(range(1, end.iteration + 1))
    saved = [s for s in log if not isinstance(s, events.Event)]
    assert saved[-1] == end or saved[-1].iteration == end.iteration
    # each state is saved before its events are told: a checkpoint is never behind the callback
    for event in told:
        before = [s for s in log[: log.index(event)] if not isinstance(s, events.Event)]
        assert before[-1].iteration == event.iteration
        np.testing.assert_allclose(point(before[-1]), event.theta, rtol=1e-15)


@each_phase
@pytest.mark.parametrize("at", [1, 2, 3])
def test_stop_fit_keeps_the_best_point_so_far(phase, at):
    objective, told = Decay(), []

    def emit(event):
        if isinstance(event, STEPS):
            told.append(event)
            if event.iteration == at:
                raise StopFit

    end = run(phase, start(), objective, emit)
    assert end.stop is StopReason.CALLBACK
    assert not end.stop.success
    assert len(told) == at
    best = min([P0, *(np.array(e.theta) for e in told)], key=objective.sse)
    np.testing.assert_array_equal(end.theta, best)


@each_phase
def test_ctrl_c_keeps_the_best_point_so_far(phase):
    class Interrupted(Decay):
        def __call__(self, theta, order):
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().__call__(theta, order)

    objective, told = Interrupted(), []
    end = run(phase, start(), objective, told.append)
    assert end.stop is StopReason.INTERRUPTED
    reached = [P0, *(np.array(e.theta) for e in told if isinstance(e, STEPS))]
    np.testing.assert_array_equal(end.theta, min(reached, key=objective.sse))
    assert objective.sse(end.theta) < objective.sse(P0)


@each_phase
def test_ctrl_c_before_the_first_point_is_passed_on(phase):
    class Interrupted(Decay):
        def __call__(self, theta, order):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(phase, start(), Interrupted(), lambda _: None)


@each_phase
def test_other_exceptions_are_passed_on(phase):
    def emit(event):
        if isinstance(event, STEPS):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(phase, start(), Decay(), emit)


@each_phase
def test_a_resumed_phase_goes_on_without_beginning_anew(phase):
    states, whole = [], []
    end = run(phase, start(), Decay(), whole.append, save=states.append)
    for state in [states[0], *states[1 : -1 : max(1, len(states) // 6)]]:
        objective, rest = Decay(), []
        again = run(phase, state, objective, rest.append, resumed=True)
        assert again.theta.tobytes() == end.theta.tobytes()
        assert again.stop is end.stop
        assert again.sums is None or again.sums.packed.tobytes() == end.sums.packed.tobytes()
        assert rest == whole[whole.index(rest[0]) :]
        assert events.WarmupStarted not in map(type, rest)
        assert next(e.iteration for e in rest if isinstance(e, STEPS)) == state.iteration + 1


@each_phase
def test_changed_weights_measure_the_best_point_again(phase):
    objective, told = Decay(), []
    heavy = np.where(X < 1.0, 50.0, 0.5)

    def emit(event):
        told.append(event)
        if isinstance(event, STEPS) and event.iteration == 2:
            objective.reweigh(heavy)
            objective.asked.clear()

    end = run(phase, start(), objective, emit)
    steps = [e for e in told if isinstance(e, STEPS)]
    assert [e.iteration for e in steps] == list(range(1, end.iteration + 1))
    assert end.iteration > 2
    np.testing.assert_array_equal(objective.asked[0], steps[1].theta)
    for step in steps[2:]:
        assert step.sse == pytest.approx(objective.sse(np.array(step.theta)), rel=1e-9)
    assert sum(isinstance(e, events.WarmupStarted) for e in told) == (phase is WARMUP)
    if phase is not WARMUP:
        fresh = Decay()
        fresh.w = heavy
        alone = run(phase, start(), fresh, lambda _: None)
        assert end.stop.success
        np.testing.assert_allclose(end.theta, alone.theta, rtol=1e-7)
        assert end.sums.sse == pytest.approx(fresh.sse(end.theta), rel=1e-12)


@pytest.mark.parametrize("limit", [3, 1])
@pytest.mark.parametrize("name", ["newton", "conjugate"])
def test_a_limit_that_was_reached_stays_reached(name, limit):
    phase = replace(PHASES[name], max_iterations=limit)
    objective = Decay()

    def emit(event):
        if isinstance(event, STEPS):
            objective.reweigh(np.linspace(1.0, 2.0 + event.iteration, len(X)))

    end = run(phase, start(), objective, emit)
    assert end.stop is StopReason.MAX_ITERATIONS
    assert end.iteration == limit
    assert end.sums.sse == pytest.approx(objective.sse(end.theta), rel=1e-12)  # under the last weights


def test_a_warmup_cap_that_was_reached_stays_reached():
    phase = replace(WARMUP, switching=Switching(2, 2, 1e-6, 1e-6, ("max_iter",)))
    objective = Decay()

    def emit(event):
        if isinstance(event, STEPS):
            objective.reweigh(np.linspace(1.0, 2.0 + event.iteration, len(X)))

    end = run(phase, start(), objective, emit)
    assert (end.stop, end.iteration) == (WarmupStop.MAX_ITERATIONS, 2)


def test_weights_that_change_at_the_end_reopen_a_converged_phase():
    objective, heavy = Decay(), np.where(X < 1.0, 50.0, 0.5)
    alone = run(NEWTON, start(), Decay(), lambda _: None)

    def emit(event):
        if isinstance(event, STEPS) and event.iteration == alone.iteration and objective.revision == 0:
            objective.reweigh(heavy)

    end = run(NEWTON, start(), objective, emit)
    assert end.iteration > alone.iteration
    assert end.stop.success
    fresh = Decay()
    fresh.w = heavy
    np.testing.assert_allclose(end.theta, run(NEWTON, start(), fresh, lambda _: None).theta, rtol=1e-7)
