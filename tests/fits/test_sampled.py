"""Warm-ups on a sample: native and step by step they take the same passes over all data and end alike.

Native code warms up on a quarter of the sample, so that its steps there are a few more or less.
"""

import numpy as np
import pytest

from nlsq_nb import curve_fit

N = 150_000
X = np.linspace(0.0, 10.0, N)
Y = 5.0 * np.exp(-0.5 * X) + 1.0 + np.random.default_rng(0).normal(0.0, 0.1, N)
CASES = {
    "poor": ([1.0, 0.1, 5.0], {}),
    "all parameters": ([1.0, 0.1, 5.0], {"separable": False}),
    "warm": ([5.0, 0.5, 1.0], {}),
    "another line search": ([1.0, 0.1, 0.5], {"lbfgs_line_search": "strong_wolfe"}),
    "on a bound": ([1.0, 0.1, 0.5], {"bounds": ([0.0, 0.0, 0.0], [2.0, 5.0, 5.0])}),
    "fixed": ([1.0, 0.1, 1.0], {"bounds": ([0.0, 0.0, 1.0], [10.0, 5.0, 1.0])}),
    "float32": ([1.0, 0.1, 5.0], {"precision": "float32"}),
    "refined without the guard": ([1.0, 0.1, 5.0], {"enable_cost_guard": False}),
}


def watch(*_):
    """A callback keeps a fit out of native code."""


@pytest.mark.parametrize("name", CASES)
def test_native_and_stepwise_sampled_fits_agree(name):
    p0, options = CASES[name]
    native = curve_fit("a*exp(-b*x) + c", X, Y, p0, **options)
    steps = curve_fit("a*exp(-b*x) + c", X, Y, p0, callback=watch, **options)
    assert native.status is steps.status
    assert native.nfev == steps.nfev
    few, many = (result.streaming_diagnostics["phase_iterations"] for result in (native, steps))
    assert few["gauss_newton"] == many["gauss_newton"]
    assert few["lbfgs_warmup"] == pytest.approx(many["lbfgs_warmup"], rel=0.1)
    one, other = (result.streaming_diagnostics["telemetry"].export_metrics() for result in (native, steps))
    assert one.keys() == other.keys()
    assert all(one[name] == pytest.approx(other[name], rel=0.1) for name in one)
    np.testing.assert_allclose(native.popt, steps.popt, rtol=1e-9)
    np.testing.assert_allclose(native.perr, steps.perr, rtol=1e-9)


@pytest.mark.parametrize("p0", [[1.0, 0.1, 5.0], [10.0, 0.1, 5.0], [6.0, 0.4, 1.3], [5.0, 0.5, 1.0]])
def test_few_passes_over_all_data(p0):
    result = curve_fit("a*exp(-b*x) + c", X, Y, p0)
    assert result.success
    assert result.nfev <= 6
    assert result.popt == pytest.approx([5.0, 0.5, 1.0], rel=1e-2)


def test_the_refined_sample_is_what_all_data_begin_with():
    result = curve_fit("a*exp(-b*x) + c", X, Y, [1.0, 0.1, 5.0])
    assert result.streaming_diagnostics["sample_passes"] > 40
    assert result.streaming_diagnostics["phase_iterations"]["gauss_newton"] <= 3


def test_a_sample_that_misleads_is_judged_on_all_rows():
    """It misses the narrow line, so that its warm-up ends at the hump below; layer 3 sees that."""
    x = np.arange(50_000.0)
    line = 150.0 * np.exp(-(((x - 27_500.0) / 20.0) ** 2))
    hump = 3.0 * np.exp(-(((x - 25_000.0) / 7_500.0) ** 2))
    y = 2.0 + line + hump + np.random.default_rng(0).normal(0.0, 1.0, x.size)
    for options in ({}, {"callback": watch}):
        result = curve_fit(
            "h*exp(-((x - m)/w)**2) + c", x, y, [1.0, 27_520.0, 26.0, 1.0],
            warmup_sample_size=5000, second_opinion=False, **options,
        )  # fmt: skip
        assert result.streaming_diagnostics["telemetry"].layer3_cost_guard_triggers == 1
        assert result.params["m"]["value"] == pytest.approx(27_500.0, abs=1.0)
