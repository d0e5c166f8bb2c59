"""The units of x, y and θ do not matter: the same iterations in both phases, and the rescaled answer."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from nlsq_nb import Model, curve_fit

UNITS = [pair for pair in product((1e-9, 1.0, 1e9), repeat=2) if pair != (1.0, 1.0)]  # of x and of y
ROWS = 200


@dataclass(frozen=True)
class Curve:
    """A model, a poor start, and the powers of the units of x and y that its parameters carry."""

    model: Model
    truth: tuple[float, ...]
    start: tuple[float, ...]
    powers: tuple[tuple[int, int], ...]
    span: tuple[float, float]

    def data(self, rows=ROWS):
        rng = np.random.default_rng(17)
        x = np.linspace(*self.span, rows)
        y = self.model(x, *self.truth)
        return x, y + 0.05 * np.ptp(y) * rng.normal(size=rows)

    def units(self, u, v):
        return np.array([u**i * v**j for i, j in self.powers])


CURVES = {
    "decay": Curve(
        Model("a*exp(-b*x) + c"), (5.0, 1.3, 1.0), (1.0, 0.3, 3.0), ((0, 1), (-1, 0), (0, 1)), (0.0, 4.0)
    ),
    "gaussian": Curve(
        Model("a*exp(-(x - m)**2/(2*s**2)) + c"),
        (4.0, 1.5, 0.9, 1.0),
        (2.0, 1.0, 1.5, 0.5),
        ((0, 1), (1, 0), (1, 0), (0, 1)),
        (-3.0, 6.0),
    ),
    "saturation": Curve(Model("v*x/(k + x)"), (8.0, 1.4), (3.0, 6.0), ((0, 1), (1, 0)), (0.1, 10.0)),
}
POWER = Model("a*x**b")


def facts(result):
    """What no unit may change."""
    d, telemetry = result.streaming_diagnostics, result.streaming_diagnostics["telemetry"]
    return (
        d["phase_iterations"],
        d["phase_history"][1]["reason"],
        result.status,
        telemetry.export_metrics(),
    )


def fit(curve, data, u, v, **options):
    x, y = data
    units = curve.units(u, v)
    options = dict(options)
    if "bounds" in options:
        options["bounds"] = tuple(np.array(side) * units for side in options["bounds"])
    if "sigma" in options:
        options["sigma"] = options["sigma"] * v
    return curve_fit(curve.model, x * u, y * v, np.array(curve.start) * units, **options)


def same_but_for_units(curve, data, u, v, **options):
    one, other = fit(curve, data, 1.0, 1.0, **options), fit(curve, data, u, v, **options)
    assert one.success
    assert facts(other) == facts(one)
    units = curve.units(u, v)
    np.testing.assert_allclose(other.popt, one.popt * units, rtol=1e-9)
    np.testing.assert_allclose(other.perr, one.perr * units, rtol=1e-7)
    weight = 1.0 if "sigma" in options else v * v
    assert other.sse == pytest.approx(one.sse * weight, rel=1e-9)
    assert other.r_squared == pytest.approx(one.r_squared, rel=1e-9)
    return one


@pytest.mark.parametrize("separable", ["auto", False])
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(("u", "v"), UNITS)
def test_units_change_nothing(name, u, v, separable):
    curve = CURVES[name]
    one = same_but_for_units(curve, curve.data(), u, v, separable=separable)
    assert all(one.streaming_diagnostics["phase_iterations"].values())  # both phases had work to do


@pytest.mark.parametrize("separable", ["auto", False])
@pytest.mark.parametrize(("u", "v"), [(1e-9, 1e9), (1e9, 1e-9), (1e9, 1e9), (1e-9, 1e-9)])
def test_units_change_nothing_with_bounds_and_sigma(u, v, separable):
    curve = CURVES["decay"]
    options = {"bounds": ([0.5, 0.1, 1.2], [50.0, 9.0, 9.0]), "sigma": np.linspace(0.5, 2.0, ROWS)}
    one = same_but_for_units(curve, curve.data(), u, v, separable=separable, **options)
    assert one.active_mask.tolist() == [0, 0, -1]  # the optimum is on a bound


@pytest.mark.parametrize("options", [{"method": "lm"}, {"cg_param_threshold": 2, "separable": False}])
@pytest.mark.parametrize(("u", "v"), [(1e-9, 1e9), (1e9, 1e-9)])
def test_units_change_nothing_on_the_other_routes(u, v, options):
    same_but_for_units(CURVES["gaussian"], CURVES["gaussian"].data(), u, v, **options)


@pytest.mark.parametrize("separable", ["auto", False])
@pytest.mark.parametrize("name", ["decay", "gaussian"])
@pytest.mark.parametrize(("u", "v"), [(1e-9, 1e9), (1e9, 1e-9), (1.0, 1e-9), (1e9, 1.0)])
def test_units_change_nothing_for_sampled_warmups(name, u, v, separable):
    curve = CURVES[name]
    data = curve.data(20_000)
    one = same_but_for_units(curve, data, u, v, separable=separable, warmup_sample_size=1000)
    assert one.streaming_diagnostics["sample_passes"] > 0


@pytest.mark.parametrize("v", [1e-9, 1e9])
@pytest.mark.parametrize("separable", ["auto", False])
def test_a_power_law_in_other_units_of_y(v, separable):
    curve = Curve(POWER, (1.7, 1.6), (1.0, 1.0), ((0, 1), (0, 0)), (0.2, 5.0))
    same_but_for_units(curve, curve.data(), 1.0, v, separable=separable)


@pytest.mark.parametrize(("u", "v"), UNITS)
def test_a_power_law_in_other_units_of_x(u, v):
    """Where the exponent is free the unit of its factor follows it, so only the exponent has a path of its own."""
    curve = Curve(POWER, (1.7, 1.6), (1.0, 1.0), ((0, 1), (0, 0)), (0.2, 5.0))
    x, y = curve.data()
    one = curve_fit(POWER, x, y, [1.0, 1.0])
    other = curve_fit(POWER, x * u, y * v, [v / u, 1.0])
    assert facts(other) == facts(one)
    a, b = one.popt
    np.testing.assert_allclose(other.popt[1], b, rtol=1e-9)
    np.testing.assert_allclose(other.popt[0] * u ** other.popt[1] / v, a, rtol=1e-9)
    assert other.sse == pytest.approx(one.sse * v * v, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e9, 1e12])
def test_small_values_are_no_warm_start(scale):
    """y of order 1e-9 has a small mean square; that alone says nothing of the start."""
    curve = CURVES["decay"]
    result = fit(curve, curve.data(), 1.0, scale)
    telemetry = result.streaming_diagnostics["telemetry"]
    assert telemetry.layer1_warm_start_triggers == 0
    assert telemetry.layer2_lr_mode_counts["exploration"] + telemetry.layer2_lr_mode_counts["careful"] == 1
