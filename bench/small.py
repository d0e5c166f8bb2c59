"""Small fits, kernel already compiled: what the four phases and the whole call take, and bounds, against SciPy."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Floor, Report, arguments, cores, environment
from problems import DECAY
from scipy import optimize

from nlsq_nb import Model, curve_fit

STARTS = ((5.1, 0.505, 0.99), (4.5, 0.45, 1.1), (6.0, 0.4, 1.3), (1.0, 0.1, 5.0), (10.0, 0.1, 5.0))
PHASES = ("normalization_setup", "lbfgs_warmup", "gauss_newton", "denormalization_covariance")
FLOOR = 1.5  # times as fast as scipy from the poor start (1, .1, 5)


def function(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    return a * np.exp(-b * x) + c


def jacobian(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    e = np.exp(-b * x)
    return np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = work()
    return found, 1e3 * (time.perf_counter() - start)


def measure(model: Any, x: np.ndarray, y: np.ndarray, p0: tuple[float, ...]) -> dict[str, float]:
    """Milliseconds of each phase, their sum, our call and SciPy's, and our passes."""
    result, ours = timed(lambda: curve_fit(model, x, y, p0=p0))
    (popt, _), scipys = timed(lambda: optimize.curve_fit(function, x, y, p0=p0, jac=jacobian, method="lm"))
    assert np.allclose(popt, result.popt, rtol=1e-5), "the two ended in different places"
    timings = result.streaming_diagnostics["phase_timings"]
    phases = {name: 1e3 * timings.get(name, math.nan) for name in PHASES}
    whole = math.fsum(value for value in phases.values() if not math.isnan(value))
    return {"passes": result.nfev, **phases, "phases": whole, "call": ours, "scipy": scipys, "ratio": scipys / ours}


def bump(x: np.ndarray, a: float, m: float, s: float, c: float) -> np.ndarray:
    return a * np.exp(-(((x - m) / s) ** 2)) + c


def bump_jacobian(x: np.ndarray, a: float, m: float, s: float, c: float) -> np.ndarray:
    z = (x - m) / s
    e = np.exp(-(z**2))
    return np.stack([e, 2 * a * e * z / s, 2 * a * e * z**2 / s, np.ones_like(x)], axis=1)


BUMP = (Model("a*exp(-((x - m)/s)**2) + c"), bump, bump_jacobian, (5.0, 4.0, 1.4, 1.0), (4.0, 3.0, 2.0, 0.5))
FALL = (DECAY.model, function, jacobian, DECAY.truth, (1.0, 0.9, 2.0))
BOUNDED = {
    "exponential, bounds far away": (FALL, ((0, 0, 0), (10, 2, 5))),
    "exponential, offset ends on its bound": (FALL, ((0, 0, 1.2), (10, 2, 5))),
    "exponential, rate ends on its bound": (FALL, ((0, 0.7, 0), (10, 2, 5))),
    "peak, width ends on its bound": (BUMP, ((0, 0, 1.8, 0), (10, 10, 5, 5))),
}


def within_bounds(problem: Any, bounds: Any, n: int, repeat: int) -> dict[str, float]:
    """Milliseconds of a fit within bounds, ours and of SciPy's trf, in turns."""
    model, f, jac, truth, p0 = problem
    x = np.linspace(0, 10, n)
    y = f(x, *truth) + np.random.RandomState(42).normal(0, 0.1, n)
    ours, scipys = [], []
    for turn in range(repeat + 1):
        result, mine = timed(lambda: curve_fit(model, x, y, p0=p0, bounds=bounds))
        (popt, _), other = timed(lambda: optimize.curve_fit(f, x, y, p0=p0, jac=jac, bounds=bounds))
        assert float(((y - f(x, *popt)) ** 2).sum()) >= result.sse * (1 - 1e-9), "SciPy found something lower"
        if turn:  # the first compiles, or loads
            ours.append(mine)
            scipys.append(other)
    share = statistics.median(b / a for a, b in zip(ours, scipys, strict=True))
    return {"call": statistics.median(ours), "scipy": statistics.median(scipys), "ratio": share}


def main() -> None:
    options = arguments(__doc__, 200, n=500).parse_args()
    if options.short:
        options.repeat = 5
    # the data of the documented anchors
    x = np.linspace(0, 10, options.n)
    y = function(x, *DECAY.truth) + np.random.RandomState(42).normal(0, 0.1, options.n)
    model = DECAY.model
    measure(model, x, y, STARTS[0])  # compiles, or loads what an earlier process compiled
    rounds = [[measure(model, x, y, p0) for p0 in STARTS] for _ in range(options.repeat)]
    facts = (f"{DECAY.name}, n = {options.n}, p = 3", "float64", "default configuration", f"{cores()} threads")
    report = Report("small.py", environment(options, *facts))
    report.remarks.append(f"median milliseconds of {options.repeat} fits; scipy: lm with the same derivatives")
    rows = report.rows["small"] = [
        {"p0": p0, **{key: statistics.median(turn[key] for turn in turns) for key in turns[0]}}
        for p0, turns in zip(STARTS, zip(*rounds, strict=True), strict=True)
    ]
    heads = ("p0", "passes", "setup", "warm-up", "GN", "cov", "four phases", "call", "scipy", "scipy/call")
    cells = (
        [", ".join(map(str, row["p0"])), f"{row['passes']:.0f}"]
        + [f"{row[key]:.2f}" for key in (*PHASES, "phases", "call", "scipy")]
        + [f"{row['ratio']:.2f}×"]
        for row in rows
    )
    report.table("small", heads, cells)
    bounded = report.rows["bounds"] = [
        {"problem": name, **within_bounds(*given, options.n, options.repeat)} for name, given in BOUNDED.items()
    ]
    cells = ([r["problem"], f"{r['call']:.2f}", f"{r['scipy']:.2f}", f"{r['ratio']:.1f}×"] for r in bounded)
    report.table("bounds", ("within bounds", "call", "scipy trf", "scipy/call"), cells)
    poor = next(row for row in rows if row["p0"] == DECAY.starts[0])
    what = f"whole fit, n = {options.n}, in one process with scipy lm"
    report.floors = [Floor(what, ">=", FLOOR, poor["ratio"], "×")]
    report.finish(options)


if __name__ == "__main__":
    main()
