"""Small fits, kernel already compiled: what the four phases and the whole call take, against SciPy."""

import argparse
import os
import platform
import statistics
import time

import numba
import numpy as np
import scipy
from scipy import optimize

import nlsq_nb
from nlsq_nb import Model, curve_fit

STARTS = ((5.1, 0.505, 0.99), (4.5, 0.45, 1.1), (6.0, 0.4, 1.3), (1.0, 0.1, 5.0), (10.0, 0.1, 5.0))
PHASES = ("normalization_setup", "lbfgs_warmup", "gauss_newton", "denormalization_covariance")


def values(x, a, b, c):
    return a * np.exp(-b * x) + c


def jacobian(x, a, b, c):
    e = np.exp(-b * x)
    return np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


def timed(work):
    start = time.perf_counter()
    found = work()
    return found, 1e3 * (time.perf_counter() - start)


def measure(model, x, y, p0):
    """Milliseconds of each phase, their sum, our call and SciPy's, and our passes."""
    result, ours = timed(lambda: curve_fit(model, x, y, p0=p0))
    (popt, _), scipys = timed(lambda: optimize.curve_fit(values, x, y, p0=p0, jac=jacobian, method="lm"))
    assert np.allclose(popt, result.popt, rtol=1e-5), "the two ended in different places"
    phases = [1e3 * result.streaming_diagnostics["phase_timings"][name] for name in PHASES]
    return [*phases, sum(phases), ours, scipys, result.nfev]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=200, help="fits per start")
    parser.add_argument("--n", type=int, default=500, help="points")
    options = parser.parse_args()
    x = np.linspace(0, 10, options.n)
    y = values(x, 5.0, 0.5, 1.0) + np.random.RandomState(42).normal(0, 0.1, options.n)
    model = Model("a*exp(-b*x) + c")
    measure(model, x, y, STARTS[0])  # compiles, or loads what an earlier process compiled
    rounds = [[measure(model, x, y, p0) for p0 in STARTS] for _ in range(options.repeat)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"exponential, n = {options.n}, p = 3, {x.dtype}, default configuration, {cores} threads")
    print(
        f"nlsq_nb {nlsq_nb.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, Numba {numba.__version__}, {platform.machine()}"
    )
    print(f"median milliseconds of {options.repeat} fits; scipy: curve_fit with lm and the same derivatives")
    heads = ("setup", "warm-up", "GN", "cov", "phases", "call", "scipy")
    print(f"{'p0':>18} {'passes':>6} " + " ".join(f"{head:>7}" for head in heads) + "  scipy/call")
    for p0, rows in zip(STARTS, zip(*rounds, strict=True), strict=True):
        *times, passes = (statistics.median(column) for column in zip(*rows, strict=True))
        cells = " ".join(f"{value:>7.3f}" for value in times)
        print(f"{', '.join(map(str, p0)):>18} {passes:>6.0f} {cells} {times[-1] / times[-2]:>10.2f}x")


if __name__ == "__main__":
    main()
