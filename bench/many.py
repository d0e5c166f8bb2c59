"""CPU time of many small fits: `fit_many`, a loop over `curve_fit`, SciPy; microseconds per fit.

Run: python bench/many.py
"""

import time

import numpy as np
from scipy.optimize import curve_fit as scipy_fit

from nlsq_nb import Model, curve_fit, fit_many

POINTS, SETS, LOOPED, ROUNDS = 60, 10_000, 200, 5


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def main():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, POINTS)
    truth = np.column_stack([rng.uniform(1, 5, SETS), rng.uniform(0.5, 3, SETS), rng.uniform(0, 1, SETS)])
    y = np.stack([decay(x, *t) for t in truth]) + 0.05 * rng.normal(size=(SETS, POINTS))
    model, p0 = Model("a*exp(-b*x) + c"), [1, 1, 1]
    ways = {
        "fit_many": (SETS, lambda: fit_many(model, x, y, p0=p0)),
        "curve_fit": (LOOPED, lambda: [curve_fit(model, x, row, p0=p0) for row in y[:LOOPED]]),
        "scipy": (LOOPED, lambda: [scipy_fit(decay, x, row, p0=p0) for row in y[:LOOPED]]),
    }
    took = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (count, run) in ways.items():  # interleaved: the machine may be shared
            begin = time.process_time()
            run()
            took[name].append(1e6 * (time.process_time() - begin) / count)
    least = min(took["fit_many"])
    for name, times in took.items():
        print(f"{name:10} {min(times):8.1f} µs {min(times) / least:6.1f}")


if __name__ == "__main__":
    main()
