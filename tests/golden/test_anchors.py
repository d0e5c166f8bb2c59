"""The anchored numbers of the specification: one data set, its answer from every start, its first step, its log."""

import logging
import re

import numpy as np
import pytest

from nlsq_nb import curve_fit

MODEL = "a*exp(-b*x) + c"
SSE = 4.788553
POPT = [4.97480136, 0.49754672, 1.00100807]
PERR = [0.01946782, 0.00422352, 0.00862452]
STARTS = [[5.1, 0.505, 0.99], [6.0, 0.4, 1.3], [1.0, 0.1, 5.0], [10.0, 0.1, 5.0], [4.5, 0.45, 1.1]]

NEAR = [5.00926178, 0.51909417, 0.98601432]
NEAR_SSE = 6.195290
NEAR_RELATIVE_LOSS = 8.1283e-03
AFTER_ONE_STEP = 4.789448
GRADIENT_NORM = 4.423933e01

NUMBER = r"-?\d\.\d{6}e[+-]\d{2}"
FIRST_LINE = "  Computing initial JTJ (1 chunks, 500 points)..."
ITERATION = re.compile(
    rf"  GN iter (?P<k>\d+)/100: cost=(?P<cost>{NUMBER}), grad_norm=(?P<grad>{NUMBER}), "
    rf"reduction=(?P<reduction>{NUMBER}), Δ=(?P<radius>\d+\.\d{{4}}), time=\d+\.\ds"
)


@pytest.fixture(scope="module")
def data():
    # The legacy generator, whose stream is frozen for ever.
    random = np.random.RandomState(42)
    x = np.linspace(0.0, 10.0, 500)
    return x, 5.0 * np.exp(-0.5 * x) + 1.0 + random.normal(0.0, 0.1, 500)


@pytest.mark.parametrize("separable", ["auto", False])
@pytest.mark.parametrize("start", STARTS)
def test_answer_from_every_start(data, start, separable):
    result = curve_fit(MODEL, *data, start, separable=separable)
    assert result.success
    assert result.sse == pytest.approx(SSE, abs=5.1e-7)
    np.testing.assert_allclose(result.popt, POPT, atol=1.1e-8, rtol=0)
    np.testing.assert_allclose(result.perr, PERR, atol=1.1e-8, rtol=0)
    assert result.dof == 497
    assert result.reduced_chi2 == pytest.approx(result.sse / 497)


def test_first_step_from_nearby(data):
    x, y = data
    a, b, c = NEAR
    residuals = y - (a * np.exp(-b * x) + c)
    sse = residuals @ residuals
    assert sse == pytest.approx(NEAR_SSE, abs=1e-6)  # p0 is printed to 8 decimals
    assert sse / len(x) / np.var(y) == pytest.approx(NEAR_RELATIVE_LOSS, abs=1e-7)
    told = []
    with pytest.warns(UserWarning, match="iteration limit"):
        result = curve_fit(
            MODEL,
            x,
            y,
            NEAR,
            separable=False,
            gauss_newton_max_iterations=1,
            callback=lambda *args: told.append(args),
        )
    assert result.sse == pytest.approx(AFTER_ONE_STEP, abs=1e-6)
    assert not result.success
    assert [(round(loss, 6), iteration) for _, loss, iteration in told] == [(AFTER_ONE_STEP, 1)]
    np.testing.assert_array_equal(told[0][0], result.popt)


def test_log_layout(data, capfd):
    x, y = data
    a, b, c = NEAR
    curve_fit(MODEL, x, y, NEAR, separable=False, verbose=1)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert "Phase 0: Normalization Setup" in lines
    assert "Phase 2: Streaming Gauss-Newton" in lines
    assert "Phase 3: Denormalization and Covariance" in lines
    start = lines.index(FIRST_LINE)
    first = ITERATION.fullmatch(lines[start + 1])
    assert first, lines[start + 1]
    assert first["k"] == "1"
    assert float(first["cost"]) == pytest.approx(AFTER_ONE_STEP, abs=1.1e-6)
    assert float(first["reduction"]) == pytest.approx(NEAR_SSE - AFTER_ONE_STEP, abs=2.1e-6)
    e = np.exp(-b * x)
    gradient = np.stack([e, -a * x * e, np.ones_like(x)]) @ (y - a * e - c)
    assert np.linalg.norm(gradient * NEAR) == pytest.approx(GRADIENT_NORM, rel=1e-6)  # in z = θ/|p0|
    assert float(first["grad"]) == pytest.approx(GRADIENT_NORM, rel=1e-6)
    assert first["radius"] == "1.0000"
    steps = [ITERATION.fullmatch(line) for line in lines if "GN iter" in line]
    assert all(steps)
    assert [int(step["k"]) for step in steps] == list(range(1, len(steps) + 1))
    costs = [float(step["cost"]) for step in steps]
    assert costs == sorted(costs, reverse=True)


def test_verbose_2_adds_the_parameters(data, capfd):
    curve_fit(MODEL, *data, NEAR, separable=False, verbose=2)
    lines = capfd.readouterr().err.splitlines()
    shown = [line for line in lines if line.startswith("    params: ")]
    assert len(shown) == sum("GN iter" in line for line in lines) > 0
    np.testing.assert_allclose([float(word) for word in shown[-1].split()[1:]], POPT, atol=1.1e-8)


def test_log_frequency_thins_the_lines(data, capfd):
    curve_fit(MODEL, *data, NEAR, separable=False, verbose=1, log_frequency=2)
    shown = [ITERATION.fullmatch(line)["k"] for line in capfd.readouterr().err.splitlines() if "GN iter" in line]
    assert shown
    assert all(int(k) % 2 == 0 for k in shown)


@pytest.mark.parametrize("options", [{}, {"verbose": 0}, {"verbose": 0, "bounds": (0, 10), "separable": False}])
def test_silence(data, capfd, options):
    curve_fit(MODEL, *data, NEAR, **options)
    assert capfd.readouterr() == ("", "")


def test_logging_is_left_as_it_was(data, capfd):
    logger = logging.getLogger("nlsq_nb")
    before = (logger.level, list(logger.handlers))
    curve_fit(MODEL, *data, NEAR, verbose=1)
    assert (logger.level, list(logger.handlers)) == before
    assert capfd.readouterr().err
    curve_fit(MODEL, *data, NEAR)
    assert capfd.readouterr().err == ""


def test_application_logging_is_used_when_there_is_one(data, caplog, capfd):
    with caplog.at_level(logging.INFO, logger="nlsq_nb"):
        curve_fit(MODEL, *data, NEAR, verbose=1)
    assert FIRST_LINE in [record.getMessage() for record in caplog.records]
    assert {record.name.split(".")[0] for record in caplog.records} == {"nlsq_nb"}
    assert capfd.readouterr().err == ""
