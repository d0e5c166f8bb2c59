"""Whole fits against SciPy: median times of the same work in alternating rounds."""

import argparse
import statistics
import time

import numpy as np
from scipy import optimize

from nlsq_nb import Model, curve_fit

P0 = (1.0, 0.1, 5.0)


def values(x, a, b, c):
    return a * np.exp(-b * x) + c


def jacobian(x, a, b, c):
    e = np.exp(-b * x)
    return np.stack([e, -a * x * e, np.ones_like(x)], axis=1)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    model = Model("a*exp(-b*x) + c")
    print("exponential, p = 3, float64, p0 (1, .1, 5); median seconds")
    print(f"{'n':>9} {'scipy lm':>10} {'nlsq_nb':>10} {'1 thread':>10} {'ratio':>7} {'passes':>7}")
    for n in options.sizes:
        x = np.linspace(0, 10, n)
        y = values(x, 5.0, 0.5, 1.0) + np.random.default_rng(n).normal(0, 0.1, n)
        peers = [
            lambda x=x, y=y: optimize.curve_fit(values, x, y, p0=P0, jac=jacobian),
            lambda x=x, y=y: curve_fit(model, x, y, p0=P0),
            lambda x=x, y=y: curve_fit(model, x, y, p0=P0, n_threads=1),
        ]
        for peer in peers:
            peer()
        rounds = [[seconds(peer) for peer in peers] for _ in range(options.repeat)]
        times = [statistics.median(column) for column in zip(*rounds, strict=True)]
        passes = curve_fit(model, x, y, p0=P0).nfev
        print(f"{n:>9} {times[0]:>10.4f} {times[1]:>10.4f} {times[2]:>10.4f} {times[0] / times[1]:>6.1f}x {passes:>7}")


if __name__ == "__main__":
    main()
