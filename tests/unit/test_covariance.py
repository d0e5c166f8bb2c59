"""The covariance from JᵀWJ: exact where the data determine the parameters, infinite and named where they do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb.core.covariance import covariance

seeds = st.integers(0, 2**32 - 1)


def random_jacobian(seed, p):
    return np.random.default_rng(seed).normal(size=(p + 10, p))


def everything(p):
    return np.ones(p, dtype=bool)


@given(seed=seeds, p=st.integers(1, 8), variance=st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_inverse(seed, p, variance):
    jac = random_jacobian(seed, p)
    found = covariance(jac.T @ jac, everything(p), variance)
    expected = variance * np.linalg.inv(jac.T @ jac)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())
    assert not found.undetermined.any()
    np.testing.assert_allclose(found.matrix, found.matrix.T, rtol=1e-12, atol=1e-14 * np.abs(expected).max())


@given(seed=seeds, p=st.integers(1, 8))
@settings(deadline=None)
def test_units_do_not_matter(seed, p):
    jac = random_jacobian(seed, p)
    units = 10.0 ** np.random.default_rng(seed + 1).uniform(-12, 12, p)
    plain = covariance(jac.T @ jac, everything(p), 1.0)
    scaled = covariance((jac / units).T @ (jac / units), everything(p), 1.0)
    errors = np.sqrt(np.diag(plain.matrix))
    found = scaled.matrix / np.outer(units, units) / np.outer(errors, errors)
    np.testing.assert_allclose(found, plain.matrix / np.outer(errors, errors), rtol=1e-8, atol=1e-9)
    assert scaled.condition == pytest.approx(plain.condition, rel=1e-6)
    assert not scaled.undetermined.any()


@given(seed=seeds, p=st.integers(3, 8))
@settings(deadline=None)
def test_dependent_columns_are_named(seed, p):
    jac = random_jacobian(seed, p)
    jac[:, 2] = 3.0 * jac[:, 0]
    found = covariance(jac.T @ jac, everything(p), 2.0)
    expected = np.isin(np.arange(p), [0, 2])
    np.testing.assert_array_equal(found.undetermined, expected)
    assert np.isinf(np.diag(found.matrix)[expected]).all()
    # The others are determined as well as if one of the two were fixed.
    keep = np.delete(np.arange(p), 2)
    rest = covariance(jac[:, keep].T @ jac[:, keep], everything(p - 1), 2.0)
    others = np.flatnonzero(~expected)
    np.testing.assert_allclose(
        found.matrix[np.ix_(others, others)], rest.matrix[1:, 1:], rtol=1e-5, atol=1e-7 * np.abs(rest.matrix).max()
    )


@pytest.mark.parametrize("units", [1.0, 1e12, 1e-12])
def test_rank_deficiency_is_seen_in_any_units(units):
    jac = random_jacobian(7, 4)
    jac[:, 3] = jac[:, 1] + jac[:, 2]
    jac[:, 1] *= units
    found = covariance(jac.T @ jac, everything(4), 1.0)
    assert found.undetermined.tolist() == [False, True, True, True]


def test_parameter_without_influence():
    jac = random_jacobian(1, 3)
    jac[:, 1] = 0.0
    found = covariance(jac.T @ jac, everything(3), 1.0)
    assert found.undetermined.tolist() == [False, True, False]
    assert np.isinf(found.matrix[1]).all()
    rest = np.linalg.inv(jac[:, [0, 2]].T @ jac[:, [0, 2]])
    np.testing.assert_allclose(found.matrix[np.ix_([0, 2], [0, 2])], rest, rtol=1e-10)


def test_fixed_parameters_have_no_variance():
    jac = random_jacobian(2, 3)
    free = np.array([True, False, True])
    found = covariance(jac.T @ jac, free, 1.0)
    assert not found.matrix[1].any()
    assert not found.matrix[:, 1].any()
    assert not found.undetermined.any()
    rest = np.linalg.inv(jac[:, [0, 2]].T @ jac[:, [0, 2]])
    np.testing.assert_allclose(found.matrix[np.ix_([0, 2], [0, 2])], rest, rtol=1e-10)


def test_no_degrees_of_freedom():
    jac = random_jacobian(3, 3)
    found = covariance(jac.T @ jac, np.array([True, True, False]), np.inf)
    assert found.undetermined.tolist() == [True, True, False]
    assert np.isinf(found.matrix[:2, :2]).all()
    assert not found.matrix[2].any()


def test_nothing_free():
    found = covariance(np.eye(2), np.zeros(2, dtype=bool), 1.0)
    np.testing.assert_array_equal(found.matrix, np.zeros((2, 2)))


def test_nearly_dependent_columns_give_large_errors_not_small_ones():
    # The original's pseudo-inverse cut-off returned 1.9e-4 where 2e4 is true.
    jac = random_jacobian(4, 2)
    for size in (1e-3, 1e-5, 1e-6):
        close = jac.copy()
        close[:, 1] = jac[:, 0] + size * jac[:, 1]
        errors = np.sqrt(np.diag(covariance(close.T @ close, everything(2), 1.0).matrix))
        # From the QR factors, without squaring the condition.
        inverse = np.linalg.inv(np.linalg.qr(close)[1])
        np.testing.assert_allclose(errors, np.linalg.norm(inverse, axis=1), rtol=1e-2)
        assert errors.min() > 0.05 / size


def test_parameters_that_are_not_seen_are_undetermined():
    jac = random_jacobian(3, 4)
    seen = np.array([True, False, True, True])
    found = covariance(jac.T @ jac, everything(4), 2.0, seen)
    np.testing.assert_array_equal(found.undetermined, ~seen)
    assert np.isinf(found.matrix[1, 1])
    rest = np.linalg.inv(jac[:, seen].T @ jac[:, seen])
    np.testing.assert_allclose(found.matrix[np.ix_(seen, seen)], 2.0 * rest, rtol=1e-9)
    fixed = np.array([True, True, False, True])
    assert covariance(jac.T @ jac, fixed, 2.0, seen & fixed).matrix[2, 2] == 0.0


@pytest.mark.parametrize("share", [1e-3, 1e-5, 0.0])
def test_a_small_part_in_an_undetermined_direction_is_one(share):
    # (1, share, -1, 0) is a direction without curvature: an exact zero times any share of it is infinite
    jac = random_jacobian(5, 4)
    jac[:, 2] = jac[:, 0] + share * jac[:, 1]
    found = covariance(jac.T @ jac, everything(4), 1.0)
    np.testing.assert_array_equal(found.undetermined, [True, share > 0.0, True, False])
