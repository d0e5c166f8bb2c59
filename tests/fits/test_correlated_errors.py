"""sigma as a covariance matrix: what SciPy finds, and clear errors for what is none."""

import warnings

import numpy as np
import pytest
from scipy.optimize import curve_fit as scipy_fit

from nlsq_nb import AdaptiveHybridStreamingOptimizer, Model, curve_fit
from nlsq_nb.errors import DataError, UnsupportedOption

X = np.linspace(0.0, 5.0, 80)
TRUE = (3.0, 0.8, 0.5)
P0 = [1.0, 0.3, 0.0]
TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
TEXT = "a*exp(-b*x) + c"


def model(x, a, b, c):
    return a * np.exp(-b * x) + c


def correlated(n, seed=0, spread=0.1):
    """An exponentially decaying correlation with unequal variances, and errors of that law."""
    rng = np.random.default_rng(seed)
    sd = spread * rng.uniform(0.5, 2.0, n)
    index = np.arange(n)
    sigma = sd[:, None] * sd * 0.7 ** np.abs(index[:, None] - index)
    return sigma, np.linalg.cholesky(sigma) @ rng.normal(size=n)


SIGMA, ERRORS = correlated(len(X))
Y = model(X, *TRUE) + ERRORS


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, [10.0, 10.0, 0.3])])
@pytest.mark.parametrize("method", ["auto", "qr"])
def test_agrees_with_scipy(absolute, bounds, method):
    given = {"p0": [1.0, 0.3, 0.1], "sigma": SIGMA, "absolute_sigma": absolute, "bounds": bounds}
    ours = curve_fit(TEXT, X, Y, covariance_method=method, **given)
    popt, pcov = scipy_fit(model, X, Y, method="trf", x_scale="jac", jac=jacobian, **TIGHT, **given)
    assert ours.success
    np.testing.assert_allclose(ours.popt, popt, rtol=1e-8)
    if np.isinf(bounds[1]).all():  # SciPy's pcov on an active bound is that of a point beside it
        np.testing.assert_allclose(ours.pcov, pcov, rtol=1e-7)
        np.testing.assert_allclose(ours.perr, np.sqrt(np.diag(pcov)), rtol=1e-8)
    rest = np.linalg.solve(np.linalg.cholesky(SIGMA), Y - model(X, *ours.popt))
    assert ours.sse == pytest.approx(rest @ rest, rel=1e-12)


def jacobian(x, a, b, c):
    e = np.exp(-b * x)
    return np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


def test_a_diagonal_matrix_is_standard_deviations():
    sd = np.sqrt(np.diag(SIGMA))
    matrix, vector = (curve_fit(TEXT, X, Y, P0, sigma=s, absolute_sigma=True) for s in (np.diag(sd**2), sd))
    np.testing.assert_allclose(matrix.popt, vector.popt, rtol=1e-9)
    np.testing.assert_allclose(matrix.pcov, vector.pcov, rtol=1e-8)
    for name in ("sse", "spread", "r_squared", "dof"):
        assert matrix[name] == pytest.approx(vector[name], rel=1e-10)


def test_infodict_has_whitened_residuals():
    _, _, info, _, ier = curve_fit(TEXT, X, Y, P0, sigma=SIGMA, full_output=True)
    ours = curve_fit(TEXT, X, Y, P0, sigma=SIGMA)
    _, _, theirs, _, _ = scipy_fit(model, X, Y, ours.popt, SIGMA, full_output=True)
    np.testing.assert_allclose(info["fvec"], theirs["fvec"], atol=1e-6)
    assert ier == 1
    np.testing.assert_allclose(ours.fun, Y - model(X, *ours.popt), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.concatenate(list(ours.residual_chunks())), ours.fun)


@pytest.mark.parametrize(
    "given",
    [
        {"f": Model.from_callable(model, jac=jacobian)},
        {"f": Model.from_callable(model, jac="3-point")},
        {"separable": False},
        {"method": "lm"},
        {"backend": "reference"},
        {"enable_multistart": True, "n_starts": 4},
        {"cg_param_threshold": 1},
        {"warmup_sample_size": 10},
    ],
    ids=lambda given: next(iter(given)),
)
def test_every_way_to_the_same_answer(given):
    expected = curve_fit(TEXT, X, Y, P0, sigma=SIGMA)
    found = curve_fit(**({"f": TEXT, "xdata": X, "ydata": Y, "p0": P0, "sigma": SIGMA} | given))
    assert found.success
    assert found.streaming_diagnostics["sample_passes"] == 0
    np.testing.assert_allclose(found.popt, expected.popt, rtol=1e-6)
    np.testing.assert_allclose(found.perr, expected.perr, rtol=1e-5)


def test_several_outputs_are_correlated_output_by_output():
    texts, x = ["a*exp(-b*x)", "a*x + b"], np.linspace(0.0, 2.0, 30)
    sigma, errors = correlated(60, seed=4)
    clean = np.array([1.5 * np.exp(-0.7 * x), 1.5 * x + 0.7])
    y = clean + errors.reshape(2, 30)
    found = curve_fit(texts, x, y, [1.0, 1.0], sigma=sigma, absolute_sigma=True)

    def stacked(_, a, b):
        return np.concatenate([a * np.exp(-b * x), a * x + b])

    popt, pcov = scipy_fit(stacked, np.arange(60.0), y.ravel(), [1.0, 1.0], sigma, absolute_sigma=True, **TIGHT)
    np.testing.assert_allclose(found.popt, popt, rtol=1e-7)
    np.testing.assert_allclose(found.pcov, pcov, rtol=1e-5)


def test_ill_conditioned():
    columns = np.stack([np.ones_like(X), X + 1e5, (X + 1e5) ** 2], axis=1)
    y = columns @ [1.0, 1e-3, 1e-6] + ERRORS
    found = curve_fit("a + b*x + c*x**2", X + 1e5, y, [1.0, 1.0, 1.0], sigma=SIGMA, absolute_sigma=True)
    r = np.linalg.qr(np.linalg.solve(np.linalg.cholesky(SIGMA), columns), mode="r")
    np.testing.assert_allclose(found.perr, np.linalg.norm(np.linalg.inv(r), axis=1), rtol=1e-4)
    assert found.streaming_diagnostics["phase_history"][-1]["method"] == "qr"


def test_rows_that_are_left_out():
    x, y = X.copy(), Y.copy()
    x[3], y[40] = np.nan, np.inf
    keep = np.isfinite(x) & np.isfinite(y)
    found = curve_fit(TEXT, x, y, P0, sigma=SIGMA, nan_policy="omit")
    expected = curve_fit(TEXT, x[keep], y[keep], P0, sigma=SIGMA[keep][:, keep])
    np.testing.assert_array_equal(found.popt, expected.popt)
    np.testing.assert_array_equal(found.pcov, expected.pcov)


def test_penalty():
    groups = {"enable_group_variance_regularization": True, "group_variance_indices": [(0, 2)]}
    sd = np.sqrt(np.diag(SIGMA))
    matrix, vector = (curve_fit(TEXT, X, Y, P0, sigma=s, **groups) for s in (np.diag(sd**2), sd))
    np.testing.assert_allclose(matrix.popt, vector.popt, rtol=1e-8)
    np.testing.assert_allclose(matrix.perr, vector.perr, rtol=1e-8)


def test_optimizer():
    result = AdaptiveHybridStreamingOptimizer().fit((X, Y, SIGMA), TEXT, P0, verbose=0)
    np.testing.assert_array_equal(result.popt, curve_fit(TEXT, X, Y, P0, sigma=SIGMA).popt)


def test_checkpoints_belong_to_their_matrix(tmp_path):
    options = {"checkpoint_dir": tmp_path, "checkpoint_frequency": 1}
    expected = curve_fit(TEXT, X, Y, P0, sigma=SIGMA, **options)
    last = max(tmp_path.glob("*phase2*.h5"), key=lambda path: path.stat().st_mtime)
    resumed = curve_fit(TEXT, X, Y, P0, sigma=SIGMA, resume_from_checkpoint=last)
    np.testing.assert_array_equal(resumed.popt, expected.popt)
    with pytest.raises(Exception, match="data"):
        curve_fit(TEXT, X, Y, P0, sigma=SIGMA * 1.5, resume_from_checkpoint=last)


def skewed():
    matrix = SIGMA.copy()
    matrix[2, 7] *= 1.01
    return matrix


def indefinite():
    matrix = SIGMA.copy()
    matrix[5] = matrix[:, 5] = 0.0
    matrix[5, 5] = 1.0
    matrix[5, 6] = matrix[6, 5] = 2.0
    return matrix


def with_value(value, *at):
    matrix = SIGMA.copy()
    matrix[at] = value
    return matrix


@pytest.mark.parametrize(
    ("sigma", "text"),
    [
        (skewed(), r"sigma is not symmetric: \[2, 7\] is .*, \[7, 2\] is "),
        (indefinite(), "`sigma` must be positive definite: the covariance matrix has no Cholesky factor from row 6 on"),
        (np.ones((80, 80)), "no Cholesky factor from row 1 on"),
        (with_value(0.0, 4, 4), "the variance in row 4 of the covariance matrix is 0"),
        (with_value(-1.0, 4, 4), "the variance in row 4 of the covariance matrix is -1"),
        (with_value(np.nan, 9, 3), "not finite in row 9"),
        (with_value(np.inf, 9, 3), "not finite in row 9"),
        (np.eye(79), r"sigma has shape \(79, 79\), ydata has shape \(80,\).*needs \(80, 80\)"),
        (SIGMA[:, :79], r"sigma has shape \(80, 79\), ydata has shape \(80,\)"),
        (SIGMA[None], r"sigma has shape \(1, 80, 80\), ydata has shape \(80,\)"),
        (SIGMA.astype(complex), "sigma has dtype complex128"),
    ],
)
def test_what_is_no_covariance_matrix(sigma, text):
    with pytest.raises(DataError, match=text):
        curve_fit(TEXT, X, Y, P0, sigma=sigma)


def test_group_weights_go_into_the_matrix():
    table = np.stack([np.zeros_like(X), X], axis=1)
    with pytest.raises(UnsupportedOption, match="put the weights into the matrix"):
        curve_fit(TEXT, table, Y, P0, sigma=SIGMA, enable_residual_weighting=True, residual_weights=[1.0])


@pytest.mark.parametrize("data", [lambda: iter([(X, Y, SIGMA)]), lambda: lambda: iter([(X, Y, SIGMA)])])
def test_batches_are_not_whitened(data):
    with pytest.raises(UnsupportedOption, match="needs all rows at once; give x, y and sigma as arrays"):
        AdaptiveHybridStreamingOptimizer().fit(data(), Model(TEXT), P0, verbose=0)


def test_correlation_is_no_doubt():
    # the residuals themselves show a pattern, the whitened ones none
    found = curve_fit(TEXT, X, Y, P0, sigma=SIGMA)
    assert found.streaming_diagnostics["second_opinions"] == []
    assert curve_fit(TEXT, X, Y, P0).streaming_diagnostics["second_opinions"]


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy"])
def test_robust_losses_are_of_the_whitened_residuals(loss):
    y = Y.copy()
    y[::9] += 2.0
    found = curve_fit(TEXT, X, y, P0, sigma=SIGMA, loss=loss, f_scale=1.5)
    expected, _ = scipy_fit(model, X, y, found.popt, SIGMA, method="trf", loss=loss, f_scale=1.5, **TIGHT)
    assert found.success
    np.testing.assert_allclose(found.popt, expected, rtol=1e-5)


def test_lists_and_other_dtypes_are_read():
    expected = curve_fit(TEXT, X, Y, P0, sigma=SIGMA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sigma in (SIGMA.tolist(), np.asfortranarray(SIGMA), SIGMA.astype(">f8")):
            np.testing.assert_array_equal(curve_fit(TEXT, X, Y, P0, sigma=sigma).popt, expected.popt)
