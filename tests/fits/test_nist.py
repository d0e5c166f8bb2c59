"""All 38 runs of the NIST StRD data sets through curve_fit, default settings, against the certified numbers.

`pytest -s tests/fits/test_nist.py` prints the digits that each run reaches.
"""

import sys
import warnings

import numpy as np
import pytest

from nlsq_nb import Model, curve_fit

from .nist import FOLDER, MODELS, digits, problem

PARAMETER_DIGITS = 6.0
DEVIATION_DIGITS = 6.0
SSE_DIGITS = 6.0
MEDIAN_DIGITS = 9.5  # of the parameters

# What falls short of the above, and the digits it reaches at least. The residuals of Lanczos1 are at the rounding level
# of its 14-digit data: its sum of squares, 1.4e-25, has no digit that double precision can promise.
SHORTFALL = {
    ("Lanczos1", 1): {"deviations": 2.0, "sse": None},
    ("Lanczos1", 2): {"deviations": 2.0, "sse": None},
}

RUNS = [(name, start) for name in MODELS for start in (1, 2)]


@pytest.fixture(scope="module")
def table():
    """Collects a line per run and shows them at the end (seen with -s)."""
    lines = []
    yield lines
    reached = [float(line.split()[2]) for line in lines]
    if len(reached) == len(RUNS):
        assert np.median(reached) >= MEDIAN_DIGITS
    head = f"{'run':<12} {'values':>6} {'deviations':>10} {'sse':>6} {'iterations':>10} {'passes':>6}"
    sys.stdout.write("\n" + "\n".join([head, *lines]) + "\n")


def test_every_file_has_a_model():
    assert sorted(MODELS) == sorted(path.stem for path in FOLDER.glob("*.dat"))
    assert len(RUNS) == 38
    assert len(SHORTFALL) <= 2


@pytest.mark.parametrize("name", MODELS)
def test_certified_numbers_belong_to_the_model(name):
    # Guards the parser and the texts: the certified values give the certified sum of squares.
    p = problem(name)
    assert len(p.y) == p.dof + len(p.params)
    residuals = p.y - Model(p.model, x=p.variables, params=p.params)(p.x, *p.values)
    if name != "Lanczos1":
        assert digits(residuals @ residuals, p.rss) > 5.0


@pytest.mark.parametrize(("name", "start"), RUNS)
def test_certified_digits(name, start, table):
    p = problem(name)
    result = curve_fit(Model(p.model, x=p.variables, params=p.params), p.x, p.y, p.starts[start - 1])
    index = max(p.labellings(), key=lambda order: digits(result.popt[order], p.values))
    values = digits(result.popt[index], p.values)
    deviations = digits(result.perr[index], p.deviations)
    sse = digits(result.sse, p.rss)
    table.append(
        f"{name + ' ' + str(start):<12} {values:6.1f} {deviations:10.1f} {sse:6.1f} {result.nit:10} {result.nfev:6}"
    )

    assert result.success, result.message
    assert result.dof == p.dof
    allowed = {"deviations": DEVIATION_DIGITS, "sse": SSE_DIGITS} | SHORTFALL.get((name, start), {})
    assert values >= PARAMETER_DIGITS
    assert deviations >= allowed["deviations"]
    assert allowed["sse"] is None or sse >= allowed["sse"]
    assert np.isfinite(result.pcov).all()


@pytest.mark.parametrize(("name", "start"), SHORTFALL)
def test_shortfall_is_still_needed(name, start):
    # An entry that the library has outgrown must leave the table.
    p = problem(name)
    result = curve_fit(Model(p.model, x=p.variables, params=p.params), p.x, p.y, p.starts[start - 1])
    index = max(p.labellings(), key=lambda order: digits(result.popt[order], p.values))
    assert digits(result.perr[index], p.deviations) < DEVIATION_DIGITS


@pytest.mark.parametrize(("name", "start"), RUNS)
def test_starts_whose_linear_parameters_are_1(name, start):
    p = problem(name)
    model = Model(p.model, x=p.variables, params=p.params)
    begin = [1.0 if n in model.linear_params else v for n, v in zip(p.params, p.starts[start - 1], strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = curve_fit(model, p.x, p.y, begin)
    assert result.success, result.message
    assert max(digits(result.popt[order], p.values) for order in p.labellings()) >= PARAMETER_DIGITS
