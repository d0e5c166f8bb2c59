"""The matrix-free phase reaches the optimum of dense Gauss–Newton for many parameters."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.errors import StopFit
from nlsq_nb.phases.conjugate_gradient import ConjugateGradient
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import StopReason

INF = np.inf
AGREEMENT = 1e-8
TIGHT = 1e-11  # tolerance for comparisons: the point itself is then known to rounding


class ArrayObjective:
    """Sums of a model given as NumPy functions; counts the passes and refuses JᵀJ where it may not be formed."""

    weight, revision = 1.0, 0

    def __init__(self, f, jac, y, *, dense=False):
        self.f, self.jac, self.y, self.dense = f, jac, y, dense
        self.sample = self
        self.n_params = 0
        self.evaluations = self.products = 0
        self.at, self.columns = None, None

    def __call__(self, theta, order):
        assert order < 2 or self.dense
        self.evaluations += 1
        with np.errstate(all="ignore"):
            r, jac = self.y - self.f(theta), self.jac(theta)
            if order == 2:
                return NormalSums.from_arrays(r @ r, jac.T @ r, jac.T @ jac)
            packed = np.concatenate([[r @ r], jac.T @ r if order else []])
        return NormalSums(len(r), len(theta), order, packed, np.zeros_like(packed))

    def matvec(self, theta, v):
        self.products += 1
        if self.at is not theta:
            self.at, self.columns = theta, self.jac(theta)
        return self.columns.T @ (self.columns @ v)


def peaks(terms, width=0.7, noise=0.02, seed=0):
    """A row of overlapping Gaussian peaks (a, b, c each), a start some per cent off, and noise; p = 3·terms."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, terms, 12 * terms)[:, None]

    def f(theta):
        a, b, c = theta.reshape(-1, 3).T
        return np.sum(a * np.exp(-(((x - b) / c) ** 2)), axis=1)

    def jac(theta):
        a, b, c = theta.reshape(-1, 3).T
        u = (x - b) / c
        e = np.exp(-u * u)
        return np.stack([e, 2 * a * e * u / c, 2 * a * e * u * u / c], axis=2).reshape(len(x), -1)

    place = np.arange(terms) + 0.5 + rng.uniform(-0.1, 0.1, terms)
    truth = np.stack([rng.uniform(0.5, 2, terms), place, width * rng.uniform(0.35, 0.55, terms)], axis=1)
    start = truth * [[1, 0, 1]] * rng.uniform(0.9, 1.1, truth.shape) + truth * [[0, 1, 0]]
    start[:, 1] += rng.uniform(-0.15, 0.15, terms)
    return f, jac, f(truth.ravel()) + noise * rng.normal(size=len(x)), start.ravel()


def spline(p, noise=0.05):
    """log-intensities of overlapping hats: nonlinear and banded, all parameters start at 0."""
    rng = np.random.default_rng(1)
    x = np.linspace(0, p - 1, 6 * p)[:, None]
    hats = np.maximum(1.0 - np.abs(x - np.arange(p)) / 1.5, 0.0)

    def f(theta):
        return np.exp(hats @ theta)

    def jac(theta):
        return f(theta)[:, None] * hats

    return f, jac, f(np.sin(np.arange(p) / 5)) + noise * rng.normal(size=len(x)), np.zeros(p)


def start_state(y, start, bounds=None, strategy="auto"):
    p = len(start)
    room = bounds or (np.full(p, -INF), np.full(p, INF))
    return setup(start, room, tuple(f"p{k}" for k in range(p)), (), float(y @ y), strategy)


def conjugate(max_iterations=100, tol=TIGHT, cg_max_iterations=100, rtol=1e-4, atol=1e-14):
    return ConjugateGradient(max_iterations, tol, 1.0, cg_max_iterations, rtol, atol)


def fit(phase, problem, bounds=None, strategy="auto"):
    f, jac, y, start = problem
    objective, events = ArrayObjective(f, jac, y, dense=isinstance(phase, GaussNewton)), []
    state = run(phase, start_state(y, start, bounds, strategy), objective, events.append)
    return state, objective, events


def dense(problem, bounds=None):
    state, _, _ = fit(GaussNewton(100, TIGHT, 1.0, 1e-10), problem, bounds)
    assert state.stop.success
    return state.theta


def assert_same(found, expected, tolerance=AGREEMENT):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("problem", "trials", "products"),
    [
        (peaks(14), 12, 250),
        (peaks(40), 15, 320),
        pytest.param(peaks(100), 15, 380, marks=pytest.mark.slow),
        (peaks(40, 1.0), 22, 1800),
        (spline(60), 20, 500),
    ],
    ids=["42 peak parameters", "120", "300", "120, wide", "60 spline coefficients"],
)
def test_optimum_of_dense_gauss_newton(problem, trials, products):
    state, objective, _ = fit(conjugate(), problem)
    assert state.stop.success
    assert_same(state.theta, dense(problem))
    assert state.iteration <= trials
    assert objective.products <= products
    assert objective.evaluations == state.iteration + 1


def test_default_tolerances_suffice():
    state, _, _ = fit(conjugate(tol=1e-8, atol=1e-10), peaks(40))
    assert state.stop is StopReason.RELATIVE_OFFSET
    assert_same(state.theta, dense(peaks(40)))


def test_events_tell_every_trial():
    state, _, events = fit(conjugate(), peaks(14))
    assert [e.iteration for e in events] == list(range(1, state.iteration + 1))
    assert events[-1].sse == state.sums.sse
    sse = [e.sse for e in events]
    noise = 1e-13 * sse[-1]
    assert all(b <= a + noise for a, b in pairwise(sse))
    assert all(e.accepted or e.sse == before.sse for before, e in pairwise(events))
    assert events[0].radius == pytest.approx(1.0)


def test_active_bounds_are_exact():
    problem = peaks(20)
    free = dense(problem)
    lower, upper = np.full(60, -INF), np.full(60, INF)
    upper[0::6] = 0.9 * free[0::6]
    lower[2::9] = 1.05 * free[2::9]
    lower[1::3] = free[1::3] - 0.5
    problem = (*problem[:3], np.clip(problem[3], lower, upper))
    state, _, _ = fit(conjugate(), problem, (lower, upper))
    expected = dense(problem, (lower, upper))
    assert state.stop.success
    assert_same(state.theta, expected)
    held = (expected == lower) | (expected == upper)
    assert held.sum() >= 10
    np.testing.assert_array_equal(state.theta[held], expected[held])


def test_start_on_a_bound_leaves_it():
    problem = peaks(20)
    lower = np.where(np.arange(60) % 3 == 1, problem[3], -INF)
    lower[1::6] -= 1.0
    inside = (lower, np.full(60, INF))
    state, _, _ = fit(conjugate(), problem, inside)
    assert_same(state.theta, dense(problem, inside))
    assert np.any(state.theta[4::6] > lower[4::6])
    assert np.any(state.theta[4::6] == lower[4::6])


def test_fixed_parameters_stay():
    problem = peaks(20)
    lower, upper = np.full(60, -INF), np.full(60, INF)
    lower[::7] = upper[::7] = problem[3][::7]
    state, _, _ = fit(conjugate(), problem, (lower, upper))
    np.testing.assert_array_equal(state.theta[::7], problem[3][::7])
    assert_same(state.theta, dense(problem, (lower, upper)))


@pytest.mark.parametrize("strategy", ["p0", "none"])
def test_badly_scaled_parameters(strategy):
    f, jac, y, start = peaks(20)
    size = 10.0 ** np.random.default_rng(3).uniform(-6, 6, 60)
    scaled = (lambda t: f(t / size), lambda t: jac(t / size) / size, y, start * size)
    state, objective, _ = fit(conjugate(), scaled, strategy=strategy)
    assert state.stop.success
    np.testing.assert_allclose(state.theta / size, dense((f, jac, y, start)), rtol=AGREEMENT)
    assert objective.products <= 400


@pytest.mark.parametrize("unit", [2.0**-30, 2.0**30])
def test_units_of_y_change_nothing(unit):
    f, jac, y, start = peaks(14)
    plain, one, _ = fit(conjugate(), (f, jac, y, start))
    state, other, _ = fit(conjugate(), (lambda t: unit * f(t), lambda t: unit * jac(t), unit * y, start))
    np.testing.assert_array_equal(state.theta, plain.theta)
    assert (other.products, state.stop) == (one.products, plain.stop)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 0.0, 30.0])
@pytest.mark.parametrize("term", [0, 7])
def test_start_with_one_amplitude_far_off(term, factor):
    problem = peaks(20)
    problem[3][3 * term] *= factor
    state, _, _ = fit(conjugate(), problem)
    assert state.stop.success
    found = np.where(np.arange(60) % 3 == 2, np.abs(state.theta), state.theta)  # widths count by their squares
    assert_same(found, dense(peaks(20)))


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_iteration_limit_is_a_failure(limit):
    state, objective, events = fit(conjugate(limit), peaks(14))
    assert state.stop is StopReason.MAX_ITERATIONS
    assert not state.stop.success
    assert len(events) == limit == objective.evaluations - 1
    _, _, y, start = peaks(14)
    assert state.sums.sse < np.sum((y - peaks(14)[0](start)) ** 2)


def test_single_products_still_converge():
    state, objective, _ = fit(conjugate(500, cg_max_iterations=1), peaks(14))
    assert state.stop.success
    assert_same(state.theta, dense(peaks(14)))
    assert 20 <= state.iteration <= 150
    assert objective.products <= state.iteration + 150  # the checks of the last points may take more


def test_truncated_steps_are_not_taken_for_converged():
    problem = peaks(40, 1.0)
    state, _, _ = fit(conjugate(300, tol=1e-8, cg_max_iterations=10), problem)
    assert state.stop.success
    assert_same(state.theta, dense(problem), 1e-6)


def test_relative_tolerance_trades_products_for_trials():
    found = [fit(conjugate(300, rtol=rtol), peaks(40, 1.0))[:2] for rtol in (0.3, 1e-2, 1e-6)]
    trials = [state.iteration for state, _ in found]
    each = [objective.products / state.iteration for state, objective in found]
    assert trials[0] > trials[1] >= trials[2]
    assert each[0] < each[1] < each[2]
    for state, _ in found:
        assert state.stop.success
        assert_same(state.theta, found[2][0].theta)


def test_absolute_tolerance_ends_the_solves_early():
    loose = fit(conjugate(tol=1e-8, atol=1e-3), peaks(40, 1.0))
    tight = fit(conjugate(tol=1e-8, atol=1e-12), peaks(40, 1.0))
    assert loose[0].stop.success
    assert loose[1].products != tight[1].products
    assert_same(loose[0].theta, tight[0].theta, 1e-6)


def test_unused_and_redundant_parameters():
    f, jac, y, start = peaks(14)
    more = np.append(start, [0.1, 1.0])

    def merge(t):
        return np.append(t[0] + t[42], t[1:42])

    def wide(t):
        columns = jac(merge(t))
        return np.hstack([columns, columns[:, :1], np.zeros((len(y), 1))])

    state, _, _ = fit(conjugate(), (lambda t: f(merge(t)), wide, y, more))
    assert state.stop.success
    assert state.theta[43] == 1.0
    assert_same(merge(state.theta), dense((f, jac, y, start)))


def test_at_the_optimum_nothing_moves():
    problem = peaks(14)
    best = dense(problem)
    state, objective, events = fit(conjugate(tol=1e-8), (*problem[:3], best))
    assert state.stop is StopReason.RELATIVE_OFFSET
    np.testing.assert_array_equal(state.theta, best)
    assert objective.evaluations == 1
    assert not events


def test_exact_data():
    state, _, _ = fit(conjugate(), peaks(14, noise=0.0))
    assert state.stop is StopReason.EXACT_FIT


def test_model_without_influence_is_flat():
    _, jac, y, start = peaks(14)
    state, _, _ = fit(conjugate(), (lambda t: 0.0 * y, lambda t: 0.0 * jac(t), y, start))
    assert state.stop is StopReason.FLAT


def test_everything_fixed():
    problem = peaks(14)
    state, objective, _ = fit(conjugate(), problem, (problem[3], problem[3]))
    assert state.stop is StopReason.NOTHING_FREE
    assert objective.products == 0


def test_non_finite_trials_are_rejected():
    f, jac, y, start = peaks(14)
    calls = []

    def breaks(theta):
        calls.append(theta)
        return f(theta) * (np.nan if len(calls) in (2, 4) else 1.0)

    state, _, events = fit(conjugate(), (breaks, jac, y, start))
    assert [e.accepted for e in events[:3]] == [False, True, False]
    assert state.stop.success
    assert_same(state.theta, dense((f, jac, y, start)))


def test_stopped_by_an_observer():
    f, jac, y, start = peaks(14)
    seen = []

    def emit(event):
        seen.append(event)
        if len(seen) == 3:
            raise StopFit

    state = run(conjugate(), start_state(y, start), ArrayObjective(f, jac, y), emit)
    assert state.stop is StopReason.CALLBACK
    assert tuple(state.theta) == seen[-1].theta


def test_sums_of_an_earlier_phase_are_used():
    f, jac, y, start = peaks(14)
    objective = ArrayObjective(f, jac, y)
    before = replace(start_state(y, start), sums=objective(start, 1), radius=3.0, scale=np.ones(42))
    state, _ = conjugate().init(before, objective)
    assert objective.evaluations == 1
    assert state.scale is None
    assert state.normalizer.scales is before.normalizer.scales
    assert isinstance(state.normalizer, ParameterNormalizer)
    again, _ = conjugate().init(replace(before, sums=objective(start, 0)), objective)
    assert again.sums.order == 1
