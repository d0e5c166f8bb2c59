"""Intervals at 95 % hold the truth in 95 of 100 simulated fits.

The fast form of each test makes few fits and allows what a binomial law allows with probability 1e-4; the slow
one makes 4,000 and allows 1.5 %. Run this file for the table of the documentation.
"""

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import binom

from nlsq_nb import Model, curve_fit, fit_many

LEVEL = 0.95
# model, truth, x, standard deviation, method: profiles where the model bends over the interval
CASES = {
    "line": ("a + b*x", [1.0, 2.0], np.linspace(0, 1, 10), 0.5, "wald"),
    "decay": ("a*exp(-b*x) + c", [3.0, 1.5, 0.5], np.linspace(0, 4, 60), 0.05, "wald"),
    "peak": ("h*exp(-((x - c)/w)**2) + d", [4.0, 0.4, 0.8, 1.0], np.linspace(-3, 3, 40), 0.2, "wald"),
    "saturation": ("Vm*x/(K + x)", [210.0, 0.065], np.repeat([0.02, 0.06, 0.11, 0.22, 0.56, 1.1], 2), 20.0, "profile"),
    "growth": ("a*(1 - exp(-b*x))", [20.0, 0.5], np.linspace(0.3, 3, 12), 1.0, "profile"),
}


def coverage(case: str, count: int, *, method: str | None = None) -> np.ndarray:
    """The share of fits whose interval holds the true value, for each parameter."""
    text, truth, x, noise, usual = CASES[case]
    model = Model(text)
    rng = np.random.default_rng(sum(map(ord, case)))
    y = model(x, *truth) + noise * rng.normal(size=(count, len(x)))
    if (method or usual) == "wald":
        fits = fit_many(model, x, y, p0=truth)
        half = stdtrit(fits.dof, 0.5 + 0.5 * LEVEL) * fits.perr
        return np.mean(np.abs(fits.popt - truth) <= half, axis=0)
    found = [curve_fit(model, x, row, p0=truth).confidence_intervals(LEVEL, "profile") for row in y]
    return np.mean([(f.lower <= truth) & (truth <= f.upper) for f in found], axis=0)


@pytest.mark.parametrize("case", CASES)
def test_coverage_of_few_fits(case):
    count = 2000 if CASES[case][-1] == "wald" else 40
    low, high = binom.ppf([1e-4, 1 - 1e-4], count, LEVEL) / count
    share = coverage(case, count)
    assert np.all((low <= share) & (share <= high)), share


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_coverage(case):
    np.testing.assert_allclose(coverage(case, 4000), LEVEL, atol=0.015)


if __name__ == "__main__":
    for name in CASES:
        for method in ("wald", "profile"):
            share = coverage(name, 4000, method=method)
            print(name, method, *(f"{100 * s:.1f}" for s in share))  # noqa: T201
