"""The warm-up alone, on small objectives in plain NumPy: how it ends, what it touches, what changes its path."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from nlsq_nb import events
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.phases.defense import Defense, StepSizes
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import WarmupStop
from nlsq_nb.phases.switching import Switching
from nlsq_nb.phases.warmup import Warmup

ALL = ("plateau", "gradient", "max_iter")
NAMES = ("a", "b", "c")
X = np.linspace(0.0, 4.0, 60)
TRUTH = np.array([5.0, 1.3, 1.0])
FREE = (np.full(3, -np.inf), np.full(3, np.inf))
POOR = [1.0, 0.1, 3.0]
CLOSE = [4.6, 1.2, 1.1]


def decay(theta, x=X):
    a, b, c = theta
    e = np.exp(-b * x)
    return a * e + c, np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


Y = decay(TRUTH)[0] + 0.05 * np.sin(40.0 * X)


class Curve:
    """An objective: notes every point at which it was asked; `over`, when given, is what its sample sees."""

    n_params, revision = 3, 0

    def __init__(self, y=Y, over=None, model=decay):
        self.y, self.model, self._over = y, model, over
        self.w = np.ones_like(y)
        self.asked, self.orders = [], []

    @property
    def weight(self):
        return float(self.w.sum())

    @property
    def sample(self):
        return self if self._over is None else self._over

    @property
    def variance(self):
        mean = np.average(self.y, weights=self.w)
        return float(np.average((self.y - mean) ** 2, weights=self.w))

    def reweigh(self, w):
        self.w, self.revision = w, self.revision + 1

    def __call__(self, theta, order):
        self.asked.append(theta.copy())
        self.orders.append(order)
        f, j = self.model(theta)
        r = self.y - f
        sums = NormalSums.from_arrays(float(r @ (self.w * r)), j.T @ (self.w * r), j.T @ (j * self.w[:, None]), len(r))
        return sums + NormalSums.zero(3, order)  # no more than was asked for

    def matvec(self, theta, v):
        j = self.model(theta)[1]
        return j.T @ (self.w * (j @ v))

    def mse(self, theta):
        return float(np.average((self.y - self.model(theta)[0]) ** 2, weights=self.w))


def phase(objective, criteria=ALL, early=200, limit=500, plateau=1e-4, gradient=1e-3, **changes):
    """A warm-up without layers, except for what `changes` say."""
    layers = {
        "warm_start": None,
        "adapts_step": True,
        "sizes": StepSizes(refinement=1.0, careful=0.5, exploration=0.1, fixed=0.2),
        "cost_tolerance": None,
        "max_step": None,
    }
    rest = {
        "variance": objective.variance,
        "memory": 10,
        "line_search": "wolfe",
        "gradient_clip": None,
        "ridge": 1e-10,
    }
    for name, value in changes.items():
        (layers if name in layers else rest)[name] = value
    return Warmup(Switching(early, limit, plateau, gradient, criteria), Defense(**layers), **rest)


def start(p0=POOR, bounds=FREE, linear=()):
    return setup(np.array(p0, float), tuple(np.array(b, float) for b in bounds), NAMES, linear, float(Y @ Y), "p0")


def warm(objective, state=None, **changes):
    """The last state and everything that was emitted."""
    told = []
    return run(phase(objective, **changes), state or start(), objective, told.append), told


def path(told):
    return [e.theta for e in told if isinstance(e, events.WarmupStepDone)]


def kinds(told):
    return [type(e) for e in told]


# -- how it ends -----------------------------------------------------------------------------
class Breaking(Curve):
    """Not finite any more after some calls."""

    calls = 6

    def __call__(self, theta, order):
        sums = super().__call__(theta, order)
        return sums if len(self.asked) <= self.calls else NormalSums.from_arrays(np.nan, sums.jtr, np.eye(3))


def polynomial(theta):
    """Linear in everything."""
    a, b, c = theta
    return a * X + b * X**2 + c, np.stack([X, X**2, np.ones_like(X)], axis=1)


TO_THE_END = {"criteria": ("max_iter",)}
ENDS = {
    WarmupStop.WARM_START: (Curve, start(CLOSE), {"warm_start": 0.1}),
    WarmupStop.NOT_ASKED: (Curve, start(), {"early": 0, "limit": 0}),
    WarmupStop.NOTHING_NONLINEAR: (lambda: Curve(model=polynomial), start(linear=NAMES), {}),
    WarmupStop.PLATEAU: (Curve, start(), {"criteria": ("plateau",), "plateau": 0.5}),
    WarmupStop.GRADIENT: (Curve, start(), {"criteria": ("gradient",)}),
    WarmupStop.MAX_ITERATIONS: (Curve, start(), {"early": 3, "limit": 3}),
    WarmupStop.COST_GUARD: (lambda: Curve(over=Curve(Y[::-1])), start(CLOSE), {"cost_tolerance": 0.05}),
    WarmupStop.NO_STEP: (Breaking, start(), {}),
    WarmupStop.ROUNDING: (Curve, start(CLOSE), {**TO_THE_END, "line_search": "strong_wolfe"}),
}


@pytest.mark.parametrize("reason", list(WarmupStop), ids=lambda r: r.name)
def test_every_reason_is_reached(reason):
    make, state, changes = ENDS[reason]
    end, told = warm(make(), state, **changes)
    assert end.stop is reason
    assert kinds(told)[0] is events.WarmupStarted
    assert kinds(told).count(events.WarmupStarted) == 1
    assert (events.WarmStartDetected in kinds(told)) == (reason is WarmupStop.WARM_START)
    assert (events.StepModeChosen in kinds(told)) == (reason is not WarmupStop.WARM_START)
    assert (events.CostGuardTripped in kinds(told)) == (reason is WarmupStop.COST_GUARD)
    assert (events.LineSearchFailed in kinds(told)) or reason is not WarmupStop.NO_STEP
    steps = [e.iteration for e in told if isinstance(e, events.WarmupStepDone)]
    assert steps == list(range(1, len(steps) + 1))
    if reason in (WarmupStop.WARM_START, WarmupStop.NOT_ASKED, WarmupStop.NOTHING_NONLINEAR):
        assert (end.iteration, steps) == (0, [])
        np.testing.assert_array_equal(end.theta, state.theta)


@pytest.mark.parametrize("reason", [WarmupStop.WARM_START, WarmupStop.NOT_ASKED])
def test_a_skipped_warmup_costs_one_pass_which_is_handed_on(reason):
    _, state, changes = ENDS[reason]
    objective = Curve()
    end, _ = warm(objective, state, **changes)
    assert objective.orders == [2]
    assert end.sums.order == 2
    assert end.first_sse == end.sums.sse == pytest.approx(60 * objective.mse(state.theta))


def test_a_converged_start_ends_at_once():
    objective = Curve()
    settled, _ = warm(objective, start(TRUTH), criteria=("max_iter",))
    objective = Curve()
    end, told = warm(objective, start(settled.theta))
    assert end.stop is WarmupStop.GRADIENT
    assert (end.iteration, len(objective.asked)) == (0, 1)
    assert path(told) == []
    np.testing.assert_array_equal(end.theta, settled.theta)


def test_a_converged_warmup_does_not_idle():
    end, told = warm(Curve())
    assert end.stop in (WarmupStop.GRADIENT, WarmupStop.PLATEAU)
    assert 3 < end.iteration < 100
    assert len(path(told)) == end.iteration
    _, j = decay(end.theta)
    residuals = Y - decay(end.theta)[0]
    gradient = -2.0 / 60 * np.array(POOR) * (j.T @ residuals)
    if end.stop is WarmupStop.GRADIENT:
        assert np.linalg.norm(gradient) < 1e-3 * np.var(Y)


def test_constant_y_has_no_variance_to_measure_the_gradient_by():
    objective = Curve(np.full(60, 2.0))
    assert objective.variance == 0.0
    end, told = warm(objective)
    mode = next(e for e in told if isinstance(e, events.StepModeChosen))
    assert (mode.mode, mode.relative_loss) == ("exploration", np.inf)
    assert objective.mse(end.theta) < 0.05 * objective.mse(POOR)


def test_failures_forget_the_memory_and_try_once_more():
    objective = Breaking()
    end, told = warm(objective)
    failed = [e for e in told if isinstance(e, events.LineSearchFailed)]
    assert end.stop is WarmupStop.NO_STEP
    assert [e.iteration for e in failed] == [end.iteration - 1, end.iteration]
    assert ["L-BFGS" in e.reason for e in failed] == [True, False]
    assert end.warmup.failures == 2
    accepted = path(told)
    assert accepted[-1] == accepted[-2] == accepted[-3] == tuple(end.theta)


@pytest.mark.parametrize("line_search", ["wolfe", "strong_wolfe", "backtracking"])
@pytest.mark.parametrize("linear", [(), ("a", "c")])
@pytest.mark.parametrize("p0", [CLOSE, [2.0, 0.5, 0.5]])
def test_nothing_idles_at_rounding_level(line_search, linear, p0):
    objective = Curve()
    end, told = warm(objective, start(p0, linear=linear), line_search=line_search, early=80, limit=80, **TO_THE_END)
    assert end.stop in (WarmupStop.ROUNDING, WarmupStop.NO_STEP)
    assert len(objective.asked) < 300
    points = path(told)
    assert sum(one == other for one, other in pairwise(points)) <= 2  # what failed


@pytest.mark.parametrize("line_search", ["wolfe", "strong_wolfe", "backtracking"])
def test_a_step_that_does_not_move_is_no_step(line_search):
    class Island(Curve):
        """Not finite but at the start."""

        def __call__(self, theta, order):
            sums = super().__call__(theta, order)
            return sums if np.array_equal(theta, POOR) else NormalSums.from_arrays(np.nan, sums.jtr, np.eye(3))

    end, told = warm(Island(), line_search=line_search)
    assert end.stop is WarmupStop.NO_STEP
    assert kinds(told).count(events.LineSearchFailed) == end.warmup.failures == 1
    np.testing.assert_array_equal(end.theta, POOR)


# -- the first step and the layers ------------------------------------------------------------
@pytest.mark.parametrize(
    ("relative", "adapts", "mode", "size"),
    [(0.05, True, "refinement", 1.0), (0.5, True, "careful", 0.5), (5.0, True, "exploration", 0.1),
     (5.0, False, "fixed", 0.2)],
)  # fmt: skip
def test_the_tier_sets_the_first_trial(relative, adapts, mode, size):
    objective = Curve()
    state = start()
    variance = objective.mse(POOR) / relative
    end, told = warm(objective, state, variance=variance, adapts_step=adapts)
    chosen = next(e for e in told if isinstance(e, events.StepModeChosen))
    assert (chosen.mode, end.warmup.mode) == (mode, mode)
    assert chosen.relative_loss == end.warmup.relative_loss == pytest.approx(relative)
    first = (objective.asked[1] - objective.asked[0]) / state.normalizer.scales
    assert np.linalg.norm(first) == pytest.approx(size)
    gradient = (decay(POOR)[1].T @ (Y - decay(POOR)[0])) * state.normalizer.scales
    np.testing.assert_allclose(first, size * gradient / np.linalg.norm(gradient), rtol=1e-9)


@pytest.mark.parametrize("line_search", ["wolfe", "strong_wolfe", "backtracking"])
def test_no_step_is_longer_than_layer_4_allows(line_search):
    objective, state = Curve(), start()
    end, told = warm(objective, state, max_step=0.05, line_search=line_search)
    points = np.array([POOR, *path(told)]) / state.normalizer.scales
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert lengths.max() <= 0.05 * (1 + 1e-9)
    said = [e.step_norm for e in told if isinstance(e, events.WarmupStepDone)]
    np.testing.assert_allclose(said, lengths, rtol=1e-6, atol=1e-12)
    clips = [e for e in told if isinstance(e, events.StepClipped)]
    assert len(clips) == end.warmup.clips > 10
    assert all(e.original_norm > e.max_norm == 0.05 for e in clips)
    # trials too: none lies farther from the point where it began
    at = 0
    for asked in np.array(objective.asked[1:]) / state.normalizer.scales:
        while np.linalg.norm(asked - points[at]) > 0.05 * (1 + 1e-9):
            at += 1  # the next iteration has begun
    assert at <= end.iteration


@pytest.mark.parametrize("line_search", ["wolfe", "strong_wolfe", "backtracking"])
def test_a_first_step_of_the_longest_length_is_not_tried_twice(line_search):
    """Rounding makes it a little shorter than allowed as often as not; there is nothing between the two."""
    for first in np.geomspace(0.02, 0.5, 25):
        objective = Curve()
        sizes = StepSizes(first, first, first, first)
        warm(objective, max_step=first, sizes=sizes, line_search=line_search, early=1, limit=1)
        asked = np.array(objective.asked[1:])
        assert (np.abs(np.diff(asked, axis=0)).max(axis=1) > 1e-9).all(), first


def test_losses_are_in_units_of_the_variance_or_of_the_mean_square_of_constant_y():
    assert phase(Curve()).unit == Curve().variance
    assert phase(Curve(), variance=0.0, mean_square=4.0).unit == 4.0
    assert phase(Curve(), variance=0.0, mean_square=0.0).unit == 1.0  # y is zero


def test_without_layer_4_nothing_is_clipped():
    end, told = warm(Curve())
    assert events.StepClipped not in kinds(told)
    assert end.warmup.clips == 0


def test_the_history_is_full_once():
    for memory in (1, 2, 4):
        end, told = warm(Curve(), max_step=0.05, memory=memory)
        filled = [e.iteration for e in told if isinstance(e, events.HistoryFilled)]
        assert len(filled) == 1
        assert memory <= filled[0] <= end.iteration
        assert len(end.warmup.pairs) == memory
    end, told = warm(Curve(), memory=1000)
    assert events.HistoryFilled not in kinds(told)
    assert 1 <= len(end.warmup.pairs) <= end.iteration


# -- what changes the path ---------------------------------------------------------------------
CHANGES = [
    {"line_search": "strong_wolfe"},
    {"line_search": "backtracking"},
    {"memory": 1},
    {"memory": 3},
    {"gradient_clip": 1e-3},
    {"max_step": 0.1},
    {"adapts_step": False},
    {"sizes": StepSizes(1.0, 0.5, 0.02, 0.2)},
]


def test_the_path_changes_with_every_choice_and_with_nothing_else():
    options = {"gradient": 1e-9, "plateau": 1e-12}
    plain = path(warm(Curve(), **options)[1])
    assert plain == path(warm(Curve(), **options)[1])
    paths = [plain] + [path(warm(Curve(), **(options | change))[1]) for change in CHANGES]
    for k, one in enumerate(paths):
        for other in paths[:k]:
            assert one != other
    for one in paths:
        assert Curve().mse(one[-1]) < 1e-2 * Curve().mse(POOR)


def test_a_long_gradient_is_not_clipped():
    plain, _ = warm(Curve())
    clipped, _ = warm(Curve(), gradient_clip=1e9)
    assert plain.theta.tobytes() == clipped.theta.tobytes()


# -- the best point ------------------------------------------------------------------------------
@pytest.mark.parametrize("linear", [(), ("a", "c")])
def test_the_best_point_is_kept_and_handed_over(linear):
    objective = Curve()
    room = phase(objective, cost_tolerance=0.05)
    state, _ = room.init(start(linear=linear), objective)
    least = np.inf
    while room.stop(state) is None:
        state, told = room.step(state, objective)
        least = min(least, state.warmup.point.loss)
        assert state.warmup.best.loss == least
        best = room.best(state)
        assert objective.mse(best.theta) == pytest.approx(least * room.unit, rel=1e-9)
        assert best.sums is None
    # the linear parameters follow in phase 2
    end = state.theta + state.warmup.best.change
    assert objective.mse(end) == pytest.approx(least * room.unit, rel=1e-9)
    assert state.sums is None or state.sums.sse == pytest.approx(60 * objective.mse(state.theta))
    del told


@pytest.mark.parametrize(("tolerance", "trips"), [(0.05, True), (1.0, False), (None, False)])
def test_a_loss_above_the_best_one_ends_it_there(tolerance, trips):
    objective = Curve()
    room = phase(objective, cost_tolerance=tolerance, limit=2, early=2)
    state, _ = room.init(start(), objective)
    point = state.warmup.point
    lower = replace(point, theta=np.array([1.5, 0.2, 2.5]), loss=point.loss / 1.5)
    state = replace(state, warmup=replace(state.warmup, best=lower))
    state, told = room.step(state, objective)
    found = [e for e in told if isinstance(e, events.CostGuardTripped)]
    assert state.warmup.point.loss > lower.loss * 1.05
    assert bool(found) is trips
    assert (state.stop is WarmupStop.COST_GUARD) is trips
    if trips:
        assert found[0].cost_ratio == pytest.approx(state.warmup.point.loss / lower.loss)
        assert (found[0].tolerance, found[0].iteration) == (0.05, 1)
        np.testing.assert_array_equal(state.theta, lower.theta)
    assert isinstance(told[-1], events.WarmupStepDone)  # a callback that stops the fit loses nothing


# -- bounds ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("linear", [(), ("a", "c")])
@pytest.mark.parametrize("line_search", ["wolfe", "strong_wolfe", "backtracking"])
@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ([0.5, 0.05, 2.0], [3.0, 0.9, 3.5]),  # the optimum is outside in every direction
        ([1.0, 0.1, 3.0], [9.0, 9.0, 9.0]),  # the start is in a corner
        ([-np.inf, -np.inf, -np.inf], [1.0, np.inf, np.inf]),
        ([-np.inf, 0.05, 2.9999], [4.0, np.inf, np.inf]),
    ],
)
def test_no_point_outside_the_bounds_is_evaluated(lower, upper, line_search, linear):
    objective = Curve()
    state = start(bounds=(lower, upper), linear=linear)
    end, told = warm(objective, state, line_search=line_search, max_step=0.5)
    asked = np.array(objective.asked)
    assert (asked >= lower).all()
    assert (asked <= upper).all()
    told = np.array(path(told)).reshape(-1, 3)
    assert (told >= np.array(lower) - 1e-12).all()
    assert (told <= np.array(upper) + 1e-12).all()
    assert objective.mse(end.theta) <= objective.mse(state.theta)
    best = end.theta if end.warmup is None else np.clip(end.theta + end.warmup.best.change, lower, upper)
    assert objective.mse(best) <= objective.mse(state.theta)


@pytest.mark.parametrize("linear", [(), ("a", "c")])
@pytest.mark.parametrize("fixed", [(0,), (1,), (2,), (0, 2), (0, 1), (1, 2), (0, 1, 2)])
def test_fixed_parameters_never_move(fixed, linear):
    bounds = np.array(FREE)
    for k in fixed:
        bounds[:, k] = POOR[k]
    objective = Curve()
    end, told = warm(objective, start(bounds=bounds, linear=linear))
    asked = np.array([*objective.asked, *path(told), end.theta])
    for k in fixed:
        assert (asked[:, k] == POOR[k]).all()
    if len(fixed) == 3 or (linear and 1 in fixed):
        assert end.stop is WarmupStop.NOTHING_NONLINEAR
    else:
        assert end.iteration > 0


# -- separable models --------------------------------------------------------------------------------
def test_the_gradient_is_that_of_the_reduced_functional():
    objective = Curve()
    room = phase(objective)

    def reduced(b):
        j = decay([1.0, b, 1.0])[1][:, [0, 2]]
        best, *_ = np.linalg.lstsq(j, Y, rcond=None)
        return np.mean((Y - j @ best) ** 2) / room.unit

    for b in (0.3, 1.0, 2.0):
        # from starts whose linear parameters are far off, and from ones that are not
        for a, c in ((1.0, 3.0), (1e3, -1e3), (5.0, 1.0)):
            state, _ = room.init(start([a, b, c], linear=("a", "c")), objective)
            point = state.warmup.point
            assert point.loss == pytest.approx(reduced(b), rel=1e-6)
            slope = (reduced(b * (1 + 1e-6)) - reduced(b * (1 - 1e-6))) / 2e-6  # by z = b/|p0|
            assert point.gradient[1] == pytest.approx(slope, rel=1e-4)
            assert point.gradient[0] == point.gradient[2] == 0.0


def test_layers_1_and_2_judge_the_start_as_it_was_given():
    far = start([50.0, 1.3, -20.0], linear=("a", "c"))
    end, told = warm(Curve(), far, warm_start=0.01)
    mode = next(e for e in told if isinstance(e, events.StepModeChosen))
    assert mode.mode == "exploration"
    assert mode.relative_loss == pytest.approx(Curve().mse(far.theta) / np.var(Y))
    # although with the linear parameters at their best there is nothing to be done
    assert (end.stop, end.iteration) == (WarmupStop.GRADIENT, 0)


# -- samples -----------------------------------------------------------------------------------------
def disagreeing(guard, p0=CLOSE, **changes):
    full = Curve(over=Curve(Y[::-1]))
    end, told = warm(full, start(p0), cost_tolerance=guard, **changes)
    return full, end, told


def test_the_full_data_have_the_last_word():
    full, end, told = disagreeing(0.05)
    tripped = next(e for e in told if isinstance(e, events.CostGuardTripped))
    assert end.stop is WarmupStop.COST_GUARD
    np.testing.assert_array_equal(end.theta, CLOSE)
    assert end.sums.sse == end.first_sse == pytest.approx(60 * full.mse(CLOSE))
    assert tripped.iteration == end.iteration > 0
    assert tripped.cost_ratio == pytest.approx(full.mse(path(told)[-1]) / full.mse(CLOSE))
    assert len(full.asked) == 2  # at the start and at the end: the rest was seen on the sample
    assert len(full.sample.asked) > 2


def test_without_the_guard_the_sample_is_believed():
    full, end, told = disagreeing(None)
    assert end.stop not in (None, WarmupStop.COST_GUARD)
    assert events.CostGuardTripped not in kinds(told)
    assert full.mse(end.theta) > full.mse(CLOSE)
    assert full.sample.mse(end.theta) < full.sample.mse(CLOSE)
    np.testing.assert_allclose(end.theta, path(told)[-1], rtol=1e-15)
    assert end.sums.sse == pytest.approx(60 * full.mse(end.theta))


def test_a_rise_within_the_tolerance_is_no_trip_but_is_not_kept_either():
    full = Curve(over=Curve(Y + 0.02))
    settled, _ = warm(Curve(), start(TRUTH), criteria=("max_iter",), limit=30, early=30)
    ratio = full.mse(settled.theta + np.array([0.0, 0.0, 0.02])) / full.mse(settled.theta)
    assert 1.1 < ratio < 1.9
    end, told = warm(full, start(settled.theta), cost_tolerance=1.0, gradient=1e-9, plateau=1e-12)
    assert end.iteration > 0
    assert events.CostGuardTripped not in kinds(told)
    assert end.stop is not WarmupStop.COST_GUARD
    np.testing.assert_array_equal(end.theta, settled.theta)


@pytest.mark.parametrize("guard", [0.05, None])
def test_a_point_where_the_full_data_are_not_finite_is_not_taken(guard):
    class Holed(Curve):
        def __call__(self, theta, order):
            sums = super().__call__(theta, order)
            return sums if len(self.asked) == 1 else NormalSums.from_arrays(np.inf, sums.jtr, np.eye(3))

    full = Holed(over=Curve())
    end, told = warm(full, cost_tolerance=guard)
    assert end.iteration > 0
    np.testing.assert_array_equal(end.theta, POOR)
    assert end.sums.sse == end.first_sse
    assert (end.stop is WarmupStop.COST_GUARD) is (guard is not None)
    assert (events.CostGuardTripped in kinds(told)) is (guard is not None)


def test_a_good_sample_carries_the_warmup():
    full = Curve(over=Curve(Y[::2], model=lambda t: decay(t, X[::2])))
    end, told = warm(full, cost_tolerance=0.05)
    assert end.stop is WarmupStop.GRADIENT
    assert len(full.asked) == 2
    assert full.mse(end.theta) < 1e-2 * full.mse(POOR)
    assert end.sums.sse == pytest.approx(60 * full.mse(end.theta))
    # what is told is the estimate for all data
    last = [e for e in told if isinstance(e, events.WarmupStepDone)][-1]
    assert last.sse == pytest.approx(full.sample.mse(end.theta) * full.weight, rel=1e-9)


# -- weights that change --------------------------------------------------------------------------------
def test_changed_weights_begin_it_anew_at_its_best_point():
    objective = Curve()
    heavy = np.where(X < 1.0, 100.0, 1.0)
    told = []

    def emit(event):
        told.append(event)
        if isinstance(event, events.WarmupStepDone) and event.iteration == 3:
            objective.reweigh(heavy)

    end = run(phase(objective), start(), objective, emit)
    steps = [e for e in told if isinstance(e, events.WarmupStepDone)]
    assert [e.iteration for e in steps] == list(range(1, end.iteration + 1))
    assert end.iteration > 3
    asked = [tuple(theta) for theta in objective.asked]
    assert asked.count(steps[2].theta) == 2  # measured again where it stood, under the new weights
    assert end.first_sse == pytest.approx(objective.weight * objective.mse(steps[2].theta))
    assert kinds(told).count(events.WarmupStarted) == 1
    assert steps[-1].sse == pytest.approx(objective.weight * objective.mse(end.theta), rel=1e-9)
    assert objective.mse(end.theta) < objective.mse(steps[2].theta)


def test_weights_weigh_in_loss_and_gradient():
    objective = Curve()
    objective.w = np.linspace(0.5, 3.0, 60)
    room = phase(objective)
    state, _ = room.init(start(), objective)
    point = state.warmup.point
    assert point.loss * room.unit == pytest.approx(objective.mse(POOR))
    for k in range(3):
        step = np.zeros(3)
        step[k] = 1e-6 * POOR[k]
        slope = (objective.mse(POOR + step) - objective.mse(POOR - step)) / 2e-6
        assert point.gradient[k] * room.unit == pytest.approx(slope, rel=1e-5)
