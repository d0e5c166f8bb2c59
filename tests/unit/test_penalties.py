"""The variance of groups of parameters, as sums that add to those of the data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb.core.penalties import group_variance, largest_strength
from nlsq_nb.core.sums import NormalSums

GROUPS = [[(0, 5)], [(0, 2), (2, 5)], [(1, 4), (2, 5)], [(3, 4)]]


@pytest.mark.parametrize("groups", GROUPS)
def test_value(groups):
    theta = np.array([1.0, 4.0, -2.0, 0.5, 3.0])
    wanted = 0.3 * 100 * sum(np.var(theta[lo:hi]) for lo, hi in groups)
    assert group_variance(theta, groups, 0.3, 100).sse == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("groups", GROUPS)
def test_derivatives_are_those_of_the_value(groups):
    rng = np.random.default_rng(3)
    theta, step, identity = rng.normal(size=5), 1e-3, np.eye(5)

    def sse(point):
        return group_variance(point, groups, 0.7, 40).sse

    found = group_variance(theta, groups, 0.7, 40)
    # central differences are exact for a quadratic form, but for rounding
    gradient = [(sse(theta + step * e) - sse(theta - step * e)) / (2 * step) for e in identity]
    np.testing.assert_allclose(found.jtr, -0.5 * np.array(gradient), atol=1e-9)
    turned = [
        (group_variance(theta + step * e, groups, 0.7, 40).jtr - group_variance(theta - step * e, groups, 0.7, 40).jtr)
        / (2 * step)
        for e in identity
    ]
    np.testing.assert_allclose(found.jtj, -np.array(turned), atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_one_step_solves_a_linear_model(seed, strength):
    """Sums add up, and the Gauss–Newton step of the total is the minimum of the penalised problem."""
    rng = np.random.default_rng(seed)
    groups, n, p = [(0, 3), (3, 5)], 30, 5
    a, y, theta = rng.normal(size=(n, p)), rng.normal(size=n), rng.normal(size=p)
    r = y - a @ theta
    data = NormalSums.from_arrays(float(r @ r), a.T @ r, a.T @ a, n)
    total = data + group_variance(theta, groups, strength, n)
    assert total.n_rows == n
    found = theta + np.linalg.solve(total.jtj, total.jtr)
    # the same by rows added to A: √(λ n/m) (θ − mean) for each member
    extra = np.zeros((p, p))
    for lo, hi in groups:
        m = hi - lo
        extra[lo:hi, lo:hi] = np.sqrt(strength * n / m) * (np.eye(m) - 1.0 / m)
    wanted = np.linalg.lstsq(np.vstack([a, extra]), np.concatenate([y, np.zeros(p)]))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-9)


def test_equal_members_cost_nothing():
    found = group_variance(np.full(4, 7.25), [(0, 4)], 1.0, 1000)
    assert found.sse == 0.0
    assert not found.jtr.any()
    np.testing.assert_allclose(found.jtj @ np.ones(4), 0.0, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from([1e-15, 1e-9, 1e-3, 1.0]))
def test_rounding_of_the_mean_pulls_no_group_to_one_side(seed, m, apart):
    """Else the pull, times λ, moves the whole group where the data are weak beside the penalty."""
    theta = 1.7 + apart * np.random.default_rng(seed).normal(size=m)
    pull = group_variance(theta, [(0, m)], 1.0, m).jtr
    # of θ, 1.7, rounding would leave some 1e-16
    assert abs(pull.sum()) <= 4 * m * np.finfo(float).eps * np.abs(pull).sum()


def test_the_largest_strength_is_that_of_the_weakest_group():
    curvature = np.array([1.0, 4.0, 0.0, 9.0, 0.0])
    assert largest_strength(curvature, [(0, 2)]) == 4e10
    assert largest_strength(curvature, [(0, 1), (2, 4)]) == 1e10
    assert largest_strength(curvature, [(4, 5)]) == np.inf
