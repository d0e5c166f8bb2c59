"""Confidence intervals, likelihood profiles and prediction bands."""

import pickle

import h5py
import numpy as np
import pytest
from scipy.special import ndtri, stdtrit

from nlsq_nb import (
    AdaptiveHybridStreamingOptimizer,
    ConvergenceWarning,
    DataError,
    HDF5Source,
    HybridStreamingConfig,
    Model,
    SourceError,
    UnsupportedOption,
    curve_fit,
)
from nlsq_nb.core.profile import Held, end_of_interval
from nlsq_nb.core.sums import NormalSums

RNG = np.random.default_rng(3)
X = np.linspace(0.0, 4.0, 60)
Y = 3 * np.exp(-1.5 * X) + 0.5 + 0.05 * RNG.normal(size=60)
DECAY = Model("a*exp(-b*x) + c")
# Puromycin, treated: Bates & Watts 1988, table A1.3
CONC = np.array([0.02, 0.02, 0.06, 0.06, 0.11, 0.11, 0.22, 0.22, 0.56, 0.56, 1.10, 1.10])
RATE = np.array([76.0, 47, 97, 107, 123, 139, 159, 152, 191, 201, 207, 200])
MICHAELIS = Model("Vm*x/(K + x)", params=("Vm", "K"))
# biochemical oxygen demand: the same, table A1.4
DAYS, DEMAND = np.array([1.0, 2, 3, 4, 5, 7]), np.array([8.3, 10.3, 19.0, 16.0, 15.6, 19.8])
PEAK_X = np.linspace(-3.0, 3.0, 25)
PEAK = np.round(4 * np.exp(-(((PEAK_X - 0.4) / 0.8) ** 2)) + 0.5 * np.sin(7.0 * np.arange(25)), 6)


def fit(model, x, y, **options):
    return curve_fit(model, x, y, backend="reference", **options)


# -- against other programs ------------------------------------------------------------------
# (model, x, y, sigma), parameter → interval at 95 %, digits: lmfit 1.3.4's conf_interval (F test); where sigma is
# given, MINOS of iminuit 2.33 with errordef χ²(1) at 95 %, from strategy 2
LOGISTIC = np.round(3 / (1 + np.exp(-1.5 * (PEAK_X - 0.5))) + 0.3 * np.sin(7.0 * np.arange(25)), 6)
INF = np.inf
PEERS = {
    "puromycin": (
        (MICHAELIS, CONC, RATE, None),
        {"Vm": (197.30193, 229.28906), "K": (0.046920342, 0.086156913)},
        2e-6,
    ),
    "three rates": (
        (MICHAELIS, CONC[:4], RATE[:4], None),
        {"Vm": (51.034201, INF), "K": (-0.0073115588, INF)},
        2e-6,
    ),
    "demand": (
        ("a*(1-exp(-b*x))", DAYS, DEMAND, None),
        {"a": (14.049364, 38.456198), "b": (0.13139775, 1.8081696)},
        2e-6,
    ),
    "logistic": (
        ("a/(1+exp(-b*(x-c)))", PEAK_X, LOGISTIC, None),
        {"a": (2.72526601, 3.3662757), "b": (1.11770113, 1.88700574), "c": (0.26128695, 0.79146506)},
        2e-6,
    ),
    "peak": (
        ("h*exp(-((x-c)/w)**2)+d", PEAK_X, PEAK, np.full(25, 0.5)),
        {"h": (3.27042, 4.523593), "c": (0.212067, 0.421733), "w": (0.6617046, 1.0012643), "d": (-0.254414, 0.297948)},
        3e-5,
    ),
}


@pytest.mark.parametrize("case", PEERS)
def test_profiles_agree_with_other_programs(case):
    (model, x, y, sigma), wanted, rtol = PEERS[case]
    start = {"h": 4.0, "c": 0.5, "w": 0.8} if case == "peak" else {"b": 1.0} if "b" in wanted else None
    result = fit(model, x, y, p0=start, sigma=sigma, absolute_sigma=sigma is not None)
    found = result.confidence_intervals(method="profile")
    for name, interval in wanted.items():
        np.testing.assert_allclose(found[name], interval, rtol=rtol)
        assert found.notes.get(name, "").startswith("open above") == np.isinf(interval[1])


def test_ends_are_where_the_sse_crosses_the_threshold():
    for absolute in (False, True):
        sigma = np.full(60, 0.05)
        result = fit(DECAY, X, Y, sigma=sigma, absolute_sigma=absolute)
        profile = result.profile("b", level=0.9)
        for end in profile.interval:
            a = np.column_stack([np.exp(-end * X), np.ones(60)]) / 0.05  # a and c are linear
            sse = float(np.linalg.lstsq(a, Y / 0.05)[1][0])
            t = ndtri(0.95) if absolute else stdtrit(57, 0.95)
            rise = t**2 * (1.0 if absolute else result.sse / 57)
            assert sse - result.sse == pytest.approx(rise, rel=1e-5)
            assert profile.threshold == pytest.approx(sse, rel=1e-6)
        assert profile.open == (False, False)
        assert profile.note == ""


def test_profile_of_a_linear_model_is_walds():
    result = fit("a + b*x", X, Y)
    wald, profile = result.confidence_intervals(), result.confidence_intervals(method="profile")
    np.testing.assert_allclose(profile.lower, wald.lower, rtol=1e-5)
    np.testing.assert_allclose(profile.upper, wald.upper, rtol=1e-5)
    half = stdtrit(58, 0.975) * result.perr[0]
    np.testing.assert_allclose(wald["a"], (result.popt[0] - half, result.popt[0] + half))
    assert dict(wald).keys() == {"a", "b"}
    assert "95 %" in repr(wald)
    with pytest.raises(KeyError):
        wald["z"]


# -- what is not plain -----------------------------------------------------------------------
def test_bounds_cut_intervals_and_say_so():
    result = fit(DECAY, X, Y, p0=[2, 1.5, 0.5], bounds={"b": (1.48, 1.55), "c": (0.5, 0.5)})
    for method in ("wald", "profile"):
        found = result.confidence_intervals(method=method)
        assert found["b"][0] == 1.48
        assert found["b"][1] <= 1.55
        assert found["c"] == (0.5, 0.5)
        assert "open" in found.notes["b"]
        assert found.notes["c"] == "fixed"
    assert result.profile("b").open[0]
    with pytest.raises(DataError, match="fixed"):
        result.profile("c")


def test_a_parameter_on_its_bound_has_one_end_there():
    result = fit(DECAY, X, Y, p0=[2, 1.7, 0.5], bounds={"b": (1.6, np.inf)})
    profile = result.profile("b")
    assert profile.interval[0] == 1.6
    assert profile.open == (True, False)
    assert 1.6 < profile.interval[1] < 1.8
    assert "stands on its bound" in profile.note


def test_others_keep_to_their_bounds_along_a_profile():
    result = fit(DECAY, X, Y, p0=[2, 1.5, 0.5], bounds={"c": (-np.inf, 0.505)})
    profile = result.profile("b", points=7)
    assert np.all(profile.theta[:, 2] <= 0.505)
    assert np.any(profile.theta[:, 2] == 0.505)
    assert len(profile.values) >= 8
    assert np.all(np.diff(profile.values) > 0)
    assert profile.sse.min() == pytest.approx(result.sse)


def test_undetermined_parameters_are_open():
    with pytest.warns(UserWarning, match="could not be estimated"):
        result = fit("(a + b)*x", X, Y, p0=[1, 1])
    assert result.confidence_intervals()["a"] == (-np.inf, np.inf)
    assert "not determined" in result.confidence_intervals().notes["a"]
    profile = result.profile("a")
    assert profile.interval == (-np.inf, np.inf)
    assert profile.open == (True, True)


def test_no_degrees_of_freedom_and_exact_data():
    few = fit("a + b*x", X[:2], Y[:2])
    assert few.profile("a").interval == (-np.inf, np.inf)
    exact = fit(DECAY, X, 3 * np.exp(-1.5 * X) + 0.5)
    profile = exact.profile("b")
    assert "rounding" in profile.note
    np.testing.assert_allclose(profile.interval, 1.5, rtol=1e-9)


def test_a_lower_sse_on_the_way_is_told():
    # two basins in b: the fit is stopped in the wrong one by its start
    x = np.linspace(0.0, 1.0, 40)
    y = np.sin(20 * x) + 0.02 * RNG.normal(size=40)
    result = fit("a*sin(b*x)", x, y, p0=[1, 30], method="trf", second_opinion=False)
    assert abs(result.popt[1] - 20) > 1
    with pytest.warns(ConvergenceWarning, match="lower sse"):
        profile = result.profile("b", level=0.9999)
    assert profile.better is not None
    assert np.isnan(profile.interval).all()


def test_several_outputs_and_float32():
    y = np.stack([Y, 2 * Y])
    both = fit(Model(["a*exp(-b*x)+c", "2*(a*exp(-b*x)+c)"]), X, y)
    one = both.profile("b").interval
    assert one[0] < both.popt[1] < one[1]
    single = fit(DECAY, X, Y, precision="float32")
    np.testing.assert_allclose(single.profile("b").interval, fit(DECAY, X, Y).profile("b").interval, rtol=1e-4)


def test_data_read_in_chunks_give_the_same_bits(tmp_path):
    x = np.linspace(0.0, 4.0, 10_000)
    y = 3 * np.exp(-1.5 * x) + 0.5 + 0.1 * np.random.default_rng(0).normal(size=10_000)
    interval = curve_fit(DECAY, x, y).profile("b").interval
    parts = curve_fit(DECAY, x, y, loop_strategy="loop", chunk_size=4096)
    assert parts.profile("b").interval == interval
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["x"], file["y"] = x, y
    optimizer = AdaptiveHybridStreamingOptimizer(HybridStreamingConfig(verbose=0, chunk_size=4096))
    stored = optimizer.fit(HDF5Source(tmp_path / "rows.h5"), DECAY, [1, 1, 1])
    assert stored.profile("b").interval == interval
    again = optimizer.fit(lambda: iter([(x[:5000], y[:5000]), (x[5000:], y[5000:])]), DECAY, [1, 1, 1])
    assert again.profile("b").interval == interval
    once = optimizer.fit(iter([(x, y)]), DECAY, [1, 1, 1])
    with pytest.raises(SourceError, match="fresh iterator"):
        once.profile("b")


def test_refuses():
    result = fit(DECAY, X, Y)
    with pytest.raises(DataError, match="level"):
        result.confidence_intervals(95)
    with pytest.raises(UnsupportedOption, match="bootstrap"):
        result.confidence_intervals(method="bootstrap")
    with pytest.raises(DataError, match="'z'"):
        result.profile("z")
    for points in (-1, 2.5, "many"):
        with pytest.raises(DataError, match="points="):
            result.profile("b", points=points)
    with pytest.raises(DataError, match="stayed"):
        pickle.loads(pickle.dumps(result)).profile("b")
    y = Y.copy()
    changed = fit(DECAY, X, y)
    y += X
    with pytest.raises(DataError, match="changed since"):
        changed.profile("b")


def test_the_model_ends_within_the_interval():
    # no square root of b − 1 below 1
    x = np.linspace(1.0, 2.0, 12)
    y = 2 * x + 0.1 * x**2 + 0.2 * np.cos(9 * x)
    result = fit("a*x + sqrt(b - 1)*x**2", x, y, p0=[2, 1.01])
    profile = result.profile("b")
    assert profile.interval[0] == pytest.approx(1.0, abs=1e-6)
    assert profile.open == (True, False)
    assert "not finite beyond" in profile.note


# -- the search for an end -------------------------------------------------------------------
def along(sse, slope):
    """The profile of a model of one parameter as a fit with it held."""

    def held(theta, k):
        value = float(theta[0])
        sums = NormalSums.from_arrays(sse(value), np.array([-0.5 * slope(value)]), np.ones((1, 1)))
        return Held(np.array([value]), sums, converged=True)

    return held


def test_a_ridge_between_is_not_jumped_over():
    # rises to 2 at 1, falls to 0.5 beyond: the end is on the near side
    fitted = along(lambda v: 2 * v**2 * np.exp(1 - v**2), lambda v: (4 * v - 4 * v**3) * np.exp(1 - v**2))
    end = end_of_interval(fitted, fitted(np.zeros(1), 0), 0, 1, 1.0, 2.5, np.inf)
    assert 0.0 < end.value < 1.0
    assert 2 * end.value**2 * np.exp(1 - end.value**2) == pytest.approx(1.0, rel=1e-5)


def test_a_low_ridge_is_passed():
    fitted = along(lambda v: v**2 / 9 + 0.5 * np.sin(2 * v) ** 2, lambda v: 2 * v / 9 + np.sin(4 * v))
    end = end_of_interval(fitted, fitted(np.zeros(1), 0), 0, -1, 1.0, 1.4, -np.inf)
    assert end.open == ""
    assert fitted(np.array([end.value]), 0).sums.sse == pytest.approx(1.0, rel=1e-5)


# -- predictions -----------------------------------------------------------------------------
def test_bands_follow_the_delta_method():
    result = fit(DECAY, X, Y)
    jac = DECAY.jacobian(X, *result.popt)
    error = np.sqrt(np.einsum("np,pq,nq->n", jac, result.pcov, jac))
    t = stdtrit(57, 0.975)
    values, lower, upper = result.predict(X, 0.95)
    np.testing.assert_array_equal(values, result.predict(X))
    np.testing.assert_allclose(upper - values, t * error, rtol=1e-9)
    np.testing.assert_allclose(values - lower, t * error, rtol=1e-9)
    wide = result.predict(X, 0.95, kind="prediction")
    np.testing.assert_allclose(wide.upper - values, t * np.hypot(error, np.sqrt(result.reduced_chi2)), rtol=1e-9)


def test_bands_of_weighted_fits_want_sigma():
    sigma = 0.05 + 0.01 * X
    result = fit(DECAY, X, Y, sigma=sigma, absolute_sigma=True)
    with pytest.raises(DataError, match="give sigma"):
        result.predict(X, 0.95, kind="prediction")
    with pytest.raises(DataError, match="prediction"):
        result.predict(X, 0.95, sigma=sigma)
    near = result.predict(X, 0.95)
    far = result.predict(X, 0.95, kind="prediction", sigma=sigma)
    error = (near.upper - near.values) / ndtri(0.975)
    np.testing.assert_allclose(far.upper - far.values, ndtri(0.975) * np.hypot(error, sigma), rtol=1e-9)
    with pytest.raises(UnsupportedOption, match="tolerance"):
        result.predict(X, 0.95, kind="tolerance")
    for wrong in (-1.0, np.nan, np.inf, [1.0, 2.0], "wide", 1j):
        with pytest.raises(DataError, match="sigma"):
            result.predict(X, 0.95, kind="prediction", sigma=wrong)


def test_bands_of_several_outputs_and_undetermined_parameters():
    two = fit(Model(["a*exp(-b*x)", "a + c*x"]), X, np.stack([Y, Y]), p0=[3, 1, 0])
    band = two.predict(X, 0.95)
    assert band.values.shape == band.lower.shape == (2, 60)
    with pytest.warns(UserWarning, match="could not be estimated"):
        weak = fit(Model("a + (b + c)*x"), X, Y, p0=[1, 1, 1])
    _, lower, upper = weak.predict([0.0, 1.0], 0.95)
    assert np.isfinite([lower[0], upper[0]]).all()
    assert (lower[1], upper[1]) == (-np.inf, np.inf)
