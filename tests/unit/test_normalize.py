"""The affine map between physical and normalised parameters, for every strategy and every kind of bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_nb import ConfigError, ParameterNormalizer

STRATEGIES = ["auto", "bounds", "p0", "none"]
INF = np.inf
numbers = st.floats(-1e12, 1e12).filter(lambda v: v == 0.0 or abs(v) > 1e-12)


@st.composite
def problems(draw):
    """A start within bounds, some of which are infinite, equal or zero, and another point."""
    p = draw(st.integers(1, 5))
    rows = []
    for _ in range(p):
        low, start, high = sorted(draw(st.tuples(numbers, numbers, numbers)))
        rows.append((draw(st.sampled_from([low, -INF])), start, draw(st.sampled_from([high, INF])), draw(numbers)))
    return (np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(problem=problems())
def test_round_trip(strategy, problem):
    lower, start, upper, theta = problem
    normalizer = ParameterNormalizer(start, (lower, upper), strategy)
    size = np.abs(theta) + np.abs(normalizer.offsets)
    z = normalizer.normalize(theta)
    assert np.isfinite(z).all()
    assert (np.abs(normalizer.denormalize(z) - theta) <= 4e-16 * size).all()
    z = normalizer.normalize(start)
    assert (np.abs(normalizer.denormalize(z) - start) <= 4e-16 * (np.abs(start) + np.abs(normalizer.offsets))).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(problem=problems())
def test_bounds_keep_their_order_and_are_never_nan(strategy, problem):
    lower, start, upper, _ = problem
    normalizer = ParameterNormalizer(start, (lower, upper), strategy)
    low, high = normalizer.transform_bounds()
    assert not np.isnan(low).any()
    assert not np.isnan(high).any()
    assert (low <= high).all()
    np.testing.assert_array_equal(np.isfinite(low), np.isfinite(lower))
    np.testing.assert_array_equal(np.isfinite(high), np.isfinite(upper))
    assert (normalizer.scales > 0.0).all()
    assert np.isfinite(normalizer.scales).all()
    assert np.isfinite(normalizer.offsets).all()


def test_strategies():
    p0, bounds = [2.0, -4.0, 0.0, 5.0], ([0.0, -INF, 1.0, 3.0], [10.0, INF, INF, 3.0])
    for strategy in ("auto", "bounds"):
        n = ParameterNormalizer(p0, bounds, strategy)
        np.testing.assert_array_equal(n.scales, [10.0, 4.0, 1.0, 5.0])
        np.testing.assert_array_equal(n.offsets, [0.0, 0.0, 0.0, 0.0])
    n = ParameterNormalizer(p0, bounds, "p0")
    np.testing.assert_array_equal(n.scales, [2.0, 4.0, 1.0, 5.0])
    n = ParameterNormalizer(p0, bounds, "none")
    np.testing.assert_array_equal(n.scales, np.ones(4))
    for strategy in STRATEGIES:
        n = ParameterNormalizer(p0, strategy=strategy)
        assert n.transform_bounds() is None
        assert n.original_bounds is None


def test_box_becomes_the_unit_cube():
    n = ParameterNormalizer([3.0, 0.0], ([-5.0, -1.0], [5.0, 3.0]))
    np.testing.assert_array_equal(n.transform_bounds(), [[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(n.normalize([5.0, 1.0]), [1.0, 0.5])


@pytest.mark.parametrize("far", [1e16, 1e20, 1e100, 1e300, np.finfo(float).max])
def test_bounds_that_stand_for_none_are_no_scale(far):
    start, low, high = [3.0, 0.0, 1e-20, 1e17], [-far, 0.0, -1.0, 0.0], [far, far, 1.0, 1e20]
    free = ParameterNormalizer(start, ([-INF, -INF, -1.0, 0.0], [INF, INF, 1.0, 1e20]))
    n = ParameterNormalizer(start, (low, high))
    np.testing.assert_array_equal(n.scales, [3.0, 1.0, 2.0, 1e20])  # what is wide for its start alone still tells
    np.testing.assert_array_equal(n.scales, free.scales)
    np.testing.assert_array_equal(n.offsets, free.offsets)
    np.testing.assert_array_equal(n.original_bounds, (low, high))


def test_attributes():
    n = ParameterNormalizer([3.0, 0.5], (0.0, [6.0, INF]), "bounds")
    assert n.strategy == "bounds"
    assert n.n_params == 2
    np.testing.assert_array_equal(n.normalization_jacobian, np.diag([6.0, 0.5]))
    np.testing.assert_array_equal(n.original_bounds, [[0.0, 0.0], [6.0, INF]])


def test_unknown_strategy():
    with pytest.raises(ConfigError, match="normalization_strategy='magic'; choose one of auto, bounds, p0, none"):
        ParameterNormalizer([1.0], None, "magic")
