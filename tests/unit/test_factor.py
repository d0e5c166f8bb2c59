"""One factor gives what the general routines give: relaxed and full steps, reduced norms, limited steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb.core.bounds import room_within
from nlsq_nb.core.factor import factorize, split
from nlsq_nb.core.linsolve import column_norms, column_scaled, weak_directions
from nlsq_nb.core.quadratic import quadratic
from nlsq_nb.core.trust_region import trust_region_step
from nlsq_nb.core.varpro import eliminable, reduced_step

INF = np.inf
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 7)


def random_problem(seed, p, spread=2.0):
    """J, residuals, and which parameters are linear and free."""
    rng = np.random.default_rng(seed)
    jac = rng.normal(size=(p + 8, p)) * 10.0 ** rng.uniform(-spread, spread, p)
    free = rng.random(p) < 0.8
    free[rng.integers(p)] = True
    linear = free & (rng.random(p) < 0.5)
    return jac, rng.normal(size=p + 8), linear, free, rng


def projected(jac, linear):
    """Columns without their part in the span of the linear ones."""
    if not linear.any():
        return jac
    basis, _ = np.linalg.qr(jac[:, linear])
    return jac - basis @ (basis.T @ jac)


@given(seed=seeds, p=sizes)
@settings(deadline=None, max_examples=150)
def test_steps_and_norms_are_those_of_least_squares(seed, p):
    jac, r, linear, free, _ = random_problem(seed, p)
    factor = factorize(jac.T @ jac, jac.T @ r, split(linear, free))
    best = np.zeros(p)
    best[free] = np.linalg.lstsq(jac[:, free], r, rcond=None)[0]
    sizes_ = np.linalg.norm(jac, axis=0)
    np.testing.assert_allclose(factor.delta * sizes_, best * sizes_, rtol=1e-7, atol=1e-9)
    assert r @ r - factor.gain == pytest.approx(np.sum((r - jac @ best) ** 2), rel=1e-8)

    alone = np.zeros(p)
    if linear.any():
        alone[linear] = np.linalg.lstsq(jac[:, linear], r, rcond=None)[0]
    relaxed = factor.relaxed()
    np.testing.assert_allclose(relaxed.delta * sizes_, alone * sizes_, rtol=1e-7, atol=1e-9)
    assert relaxed.predicted == factor.relaxed_gain()
    assert r @ r - relaxed.predicted == pytest.approx(np.sum((r - jac @ alone) ** 2), rel=1e-8)

    norms = factor.reduced_norms()
    nonlinear = free & ~linear
    expected = np.linalg.norm(projected(jac, linear), axis=0)
    np.testing.assert_allclose(norms[nonlinear], expected[nonlinear], rtol=1e-8)
    np.testing.assert_allclose(norms[linear], sizes_[linear], rtol=1e-12)
    assert not norms[~free].any()


@given(seed=seeds, p=sizes, radius=st.floats(1e-3, 10.0), fraction=st.floats(1.0, 3.0))
@settings(deadline=None, max_examples=200)
def test_limited_step_is_that_of_the_reduced_problem(seed, p, radius, fraction):
    jac, r, linear, free, _ = random_problem(seed, p)
    h, g = jac.T @ jac, jac.T @ r
    factor = factorize(h, g, split(linear, free))
    scale = np.where(free, fraction * factor.reduced_norms(), 1.0)
    found = factor.step(scale, radius)
    unlimited = np.full(free.sum(), INF)
    block = h[np.ix_(free, free)]
    wanted = reduced_step(block, g[free], scale[free], radius, (-unlimited, unlimited), 0.0, linear[free])
    size = column_norms(h)[free]
    np.testing.assert_allclose(found.delta[free] * size, wanted.delta * size, rtol=1e-5, atol=1e-7)
    for name in ("norm", "damping", "slope", "predicted"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-5, abs=1e-8), name
    assert not found.delta[~free].any()


@given(seed=seeds, p=sizes)
@settings(deadline=None, max_examples=100)
def test_condition_is_a_bound_from_above(seed, p):
    jac, r, linear, free, _ = random_problem(seed, p)
    h = jac.T @ jac
    order = split(linear, free)
    factor = factorize(h, jac.T @ r, order)
    for count in range(1, len(order.order) + 1):
        first = order.order[:count]
        block = h[np.ix_(first, first)]
        assert factor.condition(count) >= np.linalg.cond(column_scaled(block, column_norms(block))) * (1 - 1e-9)


def test_same_masks_share_a_split():
    mask = np.array([True, False, True])
    assert split(mask, np.ones(3, bool)) is split(mask.copy(), np.ones(3, bool))
    assert split(mask, np.ones(3, bool)).order.tolist() == [0, 2, 1]
    assert split(mask, mask).order.tolist() == [0, 2]


@pytest.mark.parametrize("bad", ["dependent", "silent", "nan", "inf", "nothing free"])
def test_no_factor_where_the_general_way_is_needed(bad):
    jac, r, _, _, _ = random_problem(5, 3)
    free = np.ones(3, bool)
    if bad == "dependent":
        jac[:, 2] = 2.0 * jac[:, 0]
    elif bad == "silent":
        jac[:, 1] = 0.0
    h = jac.T @ jac
    if bad in ("nan", "inf"):
        h[1, 1] = float(bad)
    elif bad == "nothing free":
        free[:] = False
    assert factorize(h, jac.T @ r, split(np.zeros(3, bool), free)) is None


def boxed(seed, p):
    jac, r, linear, free, rng = random_problem(seed, p)
    h, g = jac.T @ jac, jac.T @ r
    full = np.abs(np.linalg.solve(h, g)) + 1e-6
    lower, upper = -full * rng.uniform(0, 3, p), full * rng.uniform(0, 3, p)
    for k in range(p):
        lower[k] = rng.choice([-INF, 0.0, lower[k]])
        upper[k] = rng.choice([INF, upper[k]])
    lower[~free] = upper[~free] = 0.0
    return h, g, (lower, upper), linear, free


@given(seed=seeds, p=st.integers(1, 5), radius=st.sampled_from([0.01, 0.3, 3.0, INF]))
@settings(deadline=None, max_examples=200)
def test_quadratic_agrees_with_the_general_way_within_bounds(seed, p, radius):
    h, g, room, linear, free = boxed(seed, p)
    around = quadratic(h, g, room, linear, free, 0.0)
    scale = np.where(free, around.norms(), 0.0)
    step = around.step(scale, radius)
    assert (step.delta >= room[0]).all()
    assert (step.delta <= room[1]).all()
    inner = (room[0][free], room[1][free])
    block = h[np.ix_(free, free)]
    wanted = reduced_step(block, g[free], scale[free], radius, inner, 0.0, linear[free])
    size = column_norms(h)[free]
    np.testing.assert_allclose(step.delta[free] * size, wanted.delta * size, rtol=1e-5, atol=1e-7)
    assert step.predicted == pytest.approx(wanted.predicted, rel=1e-5, abs=1e-8)
    full = trust_region_step(block, g[free], scale[free], INF, inner, 0.0)
    assert around.gain(scale) == pytest.approx(full.predicted, rel=1e-7, abs=1e-9)
    assert around.relaxed_gain == pytest.approx(around.relax().predicted, rel=1e-9, abs=1e-12)


def test_bounds_that_do_not_act_change_nothing():
    jac, r, linear, free, _ = random_problem(8, 4)
    h, g = jac.T @ jac, jac.T @ r
    wide = (np.full(4, -1e9), np.full(4, 1e9))
    scale = np.sqrt(np.diag(h))
    for radius in (0.1, INF):
        far = quadratic(h, g, wide, linear, free, 0.0).step(scale, radius)
        none = quadratic(h, g, None, linear, free, 0.0).step(scale, radius)
        np.testing.assert_array_equal(far.delta, none.delta)


def test_room_is_none_without_any_bound():
    theta = np.array([1.0, 2.0])
    assert room_within(np.full(2, -INF), np.full(2, INF), theta) is None
    lower, upper = room_within(np.array([-INF, 0.0]), np.full(2, INF), theta)
    np.testing.assert_array_equal(lower, [-INF, -2.0])
    np.testing.assert_array_equal(upper, [INF, INF])


def nearly_dependent(size):
    jac = np.random.default_rng(3).normal(size=(20, 3))
    jac[:, 1] = jac[:, 0] + size * jac[:, 1]
    return jac


@pytest.mark.parametrize("size", [10.0**-k for k in range(9)])
def test_what_the_factor_shows_at_once_is_true(size):
    jac = nearly_dependent(size)
    h, linear = jac.T @ jac, np.array([True, True, False])
    around = quadratic(h, jac.T @ np.arange(20.0), None, linear, np.ones(3, bool), 0.0)
    if size == 1.0:
        assert around.is_eliminable()
        assert around.is_regular()
    if around.is_eliminable():
        assert eliminable(h, linear) is linear
    if around.is_regular():
        assert not weak_directions(h)


def test_linear_parameters_are_not_eliminated_where_they_coincide():
    linear = np.array([True, True, False])
    jac = nearly_dependent(1e-6)
    assert not eliminable(jac.T @ jac, linear).any()
    jac = nearly_dependent(1e-2)
    assert eliminable(jac.T @ jac, linear) is linear
    # a linear model is solved as a whole, and sums that are not finite say nothing
    everything = np.ones(3, bool)
    assert eliminable(nearly_dependent(0.0).T @ nearly_dependent(0.0), everything) is everything
    assert eliminable(np.full((3, 3), np.nan), linear) is linear
