"""Many fits in one call agree with as many calls."""

import warnings

import numpy as np
import pytest

from nlsq_nb import ConvergenceWarning, DataError, Model, UnsupportedOption, curve_fit, fit_many

RNG = np.random.default_rng(0)
X = np.linspace(0.0, 4.0, 40)
K = 700  # more than native code fills at once
TRUTH = np.column_stack([RNG.uniform(1, 5, K), RNG.uniform(0.5, 3, K), RNG.uniform(0, 1, K)])
Y = TRUTH[:, :1] * np.exp(-TRUTH[:, 1:2] * X) + TRUTH[:, 2:] + 0.05 * RNG.normal(size=(K, 40))
DECAY = Model("a*exp(-b*x) + c")
SOME = [0, 1, 255, 256, 699]


def agrees(fits, k, single):
    np.testing.assert_allclose(fits.popt[k], single.popt, rtol=1e-5)
    np.testing.assert_allclose(fits.pcov[k], single.pcov, rtol=1e-5, atol=1e-12)
    assert fits.sse[k] == pytest.approx(single.sse, rel=1e-12)
    assert fits.success[k] == single.success
    assert fits.dof == single.dof


@pytest.mark.parametrize("threads", [1, 2])
def test_same_as_one_by_one(threads):
    fits = fit_many(DECAY, X, Y, n_threads=threads)
    assert len(fits) == K
    assert fits.success.all()
    assert not fits.failures
    for k in SOME:
        agrees(fits, k, curve_fit(DECAY, X, Y[k]))
    popt, pcov = fits
    assert popt is fits.popt
    np.testing.assert_array_equal(fits.perr, np.sqrt(np.diagonal(pcov, axis1=1, axis2=2)))
    np.testing.assert_allclose(fits.reduced_chi2, fits.sse / 37)
    assert "700 converged" in repr(fits)


def test_threads_give_the_same_bits():
    one, two = (fit_many(DECAY, X, Y, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.popt, two.popt)
    np.testing.assert_array_equal(one.pcov, two.pcov)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_weights(each, absolute):
    sigma = 0.05 + 0.02 * X
    given = np.outer(np.linspace(1, 2, 20), sigma) if each else sigma
    fits = fit_many(DECAY, X, Y[:20], sigma=given, absolute_sigma=absolute)
    for k in (0, 19):
        mine = given[k] if each else given
        agrees(fits, k, curve_fit(DECAY, X, Y[k], sigma=mine, absolute_sigma=absolute))


def test_starts_bounds_and_fixed_parameters():
    starts = TRUTH[:20] * 1.1
    agrees(fit_many(DECAY, X, Y[:20], p0=starts), 7, curve_fit(DECAY, X, Y[7], p0=starts[7]))
    bounds = {"b": (1.0, 2.0)}  # in the way of some
    fits = fit_many(DECAY, X, Y[:20], bounds=bounds)
    assert (fits.popt[:, 1] == 2.0).any()
    for k in range(20):
        single = curve_fit(DECAY, X, Y[k], bounds=bounds)
        agrees(fits, k, single)
        if single.popt[1] == 2.0:  # a fit of its own, with all four phases
            assert fits.nfev[k] == single.nfev
    fixed = {"c": (0.5, 0.5)}
    agrees(fit_many(DECAY, X, Y[:3], bounds=fixed), 2, curve_fit(DECAY, X, Y[2], bounds=fixed))


def test_other_models_and_backends():
    two = Model(["a*exp(-b*x)", "a + b*x"])
    y = np.stack([Y[:5], Y[5:10]], axis=1)
    agrees(fit_many(two, X, y, p0=[1, 1]), 4, curve_fit(two, X, y[4], p0=[1, 1]))
    called = Model.from_callable(lambda x, a, b: a * np.exp(-b * x), jac="3-point")
    agrees(fit_many(called, X, Y[:3], p0=[2, 1]), 2, curve_fit(called, X, Y[2], p0=[2, 1]))
    agrees(fit_many(DECAY, X, Y[:3], backend="reference"), 1, curve_fit(DECAY, X, Y[1]))
    single = Y[:3].astype(np.float32)
    agrees(fit_many(DECAY, X, single, precision="float32"), 1, curve_fit(DECAY, X, single[1], precision="float32"))


def test_one_bad_set_does_not_spoil_the_others():
    y = Y[:6].copy()
    y[2, 5] = np.nan
    y[4] = 0.3 * np.sin(40 * X)
    starts = np.tile([1.0, 1.0, 0.0], (6, 1))
    starts[5, 1] = np.inf
    with pytest.warns(ConvergenceWarning, match="of 6 fits did not converge: 2, "):
        fits = fit_many(DECAY, X, y, p0=starts)
    assert "row 5" in fits.failures[2]
    assert "'b'" in fits.failures[5]
    assert np.isnan(fits.popt[[2, 5]]).all()
    assert fits.status[2] is None
    assert fits.success[[0, 1, 3]].all()
    assert fits.success[4] == (4 not in fits.failures)


@pytest.mark.parametrize(("unit", "what"), [(1e-200, "underflow"), (1e200, "overflow")])
def test_a_set_whose_squares_leave_the_range_is_named(unit, what):
    with pytest.warns(ConvergenceWarning, match="1 of 3 fits did not converge: 1;"):
        fits = fit_many(DECAY, X, Y[:3] * np.array([[1.0], [unit], [0.0]]))
    assert what in fits.failures[1]
    assert np.isnan(fits.popt[1]).all()
    assert fits.success[[0, 2]].all()


def test_undetermined_parameters_have_infinite_errors():
    fits = fit_many("(a + b)*x", X, Y[:3], p0=[1, 1])
    assert np.isinf(fits.perr).all()


def test_the_filters_of_warnings_are_left_alone(monkeypatch):
    """They belong to all threads; what one thread puts back, another may have changed."""

    def touched(*args, **named):
        raise AssertionError("the filters were changed")

    def fits():
        weak = fit_many("a*b*x", X, Y[:2], p0=[1, 1])  # one by one
        return weak, curve_fit("a*exp(-b*x) + c*1", X, Y[0])

    fits()  # Numba, which compiles the kernels, does touch them
    with monkeypatch.context() as patch:
        patch.setattr(warnings, "catch_warnings", touched)
        weak, alone = fits()
    assert np.isinf(weak.perr).all()
    assert alone.success


def test_refuses():
    with pytest.raises(DataError, match="ydata"):
        fit_many(DECAY, X, Y[0])
    with pytest.raises(DataError, match="rows"):
        fit_many(DECAY, X, Y[:3], p0=np.ones((2, 3)))
    with pytest.raises(DataError, match="p0 has 2 values"):
        fit_many(DECAY, X, Y[:3], p0=[1, 2])
    with pytest.raises(DataError, match="sigma"):
        fit_many(DECAY, X, Y[:3], sigma=np.ones(3))
    with pytest.raises(DataError, match="xdata"):
        fit_many(DECAY, np.where(X > 3, np.nan, X), Y[:3])
    with pytest.raises(UnsupportedOption, match="curve_fit"):
        fit_many(DECAY, X, Y[:3], enable_residual_weighting=True, residual_weights=[1.0])
    with pytest.raises(TypeError, match="no_such"):
        fit_many(DECAY, X, Y[:3], no_such=1)
