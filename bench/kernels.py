"""One pass over resident data: points per second, against NumPy and against summing the same arrays."""

from __future__ import annotations

import os

# one thread of ours is compared with one thread of NumPy's
for _pool in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_pool] = "1"

import argparse  # noqa: E402
import statistics  # noqa: E402
from collections.abc import Callable  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from common import Floor, Report, arguments, cores, environment, in_turns, plot, ratio  # noqa: E402
from problems import DECAY, FOUR_GAUSSIANS, PROBLEMS, Problem, gaussian_text  # noqa: E402

from nlsq_nb import Model  # noqa: E402
from nlsq_nb.backends import get_backend  # noqa: E402
from nlsq_nb.engines.local import LocalEngine  # noqa: E402
from nlsq_nb.sources.arrays import ArraySource  # noqa: E402

MOST = 25  # parameters of the largest model
POOL = ThreadPoolExecutor(2)


def passes(model: Any, x: np.ndarray, y: np.ndarray, theta: Any, threads: int = 1) -> Callable[..., Any]:
    """`run(order)`: one pass over the arrays, as a fit makes it."""
    backend, at = get_backend("cpu", threads), np.asarray(theta, dtype=float)
    source = ArraySource(x, y, None, variables=model.x, n_outputs=model.n_outputs, precision=x.dtype.name)
    engine = LocalEngine(backend, backend.compile(model.program, x.dtype), source)
    return lambda order=2: engine.run(at, order)


Sums = tuple[float, np.ndarray, np.ndarray]


def numpy_pass(problem: Problem, x: np.ndarray, y: np.ndarray) -> Sums:
    """sse, JᵀR and JᵀJ as a function for SciPy is commonly written: J of shape (n, p), values apart."""
    value, columns = problem.functions(np)
    parts = np.empty((problem.p, len(x)))
    columns(x, problem.truth, parts)
    J = np.stack(list(parts), axis=1)
    r = y - value(x, problem.truth)
    return float(r @ r), J.T @ r, J.T @ J


def tuned_pass(problem: Problem, x: np.ndarray, y: np.ndarray) -> Sums:
    """The same as fast as NumPy can: J column by column, and no exp is taken twice."""
    _, columns = problem.functions(np)
    J = np.empty((problem.p, len(x)))
    columns(x, problem.truth, J)
    linear = np.zeros(problem.p)
    linear[list(problem.linear)] = np.asarray(problem.truth)[list(problem.linear)]
    r = y - linear @ J
    return float(r @ r), J @ r, J @ J.T


def measure(problem: Problem, n: int, repeat: int) -> dict[str, float]:
    """Figures of one model; ratios are medians over rounds."""
    x, y = problem.data(n)
    singles = x.astype(np.float32), y.astype(np.float32)
    model, theta = problem.model, problem.truth
    one, two = passes(model, x, y, theta), passes(model, x, y, theta, threads=2)
    half = passes(model, *singles, theta)
    check(problem, x[:1000], y[:1000])
    times = in_turns(
        {
            "sum": lambda: (x.sum(), y.sum()),
            "sum, two": lambda: list(POOL.map(np.sum, (x, y))),
            "numpy": lambda: numpy_pass(problem, x, y),
            "tuned": lambda: tuned_pass(problem, x, y),
            "one": one,
            "two": two,
            "order 0": lambda: one(0),
            "order 1": lambda: one(1),
            "float32": half,
        },
        repeat,
    )
    rates = {name: n / 1e6 / statistics.median(column) for name, column in times.items()}
    return {
        "p": problem.p,
        "rate": rates["one"],
        "fraction": ratio(times, "sum", "one"),
        "numpy": ratio(times, "numpy", "one"),
        "tuned": ratio(times, "tuned", "one"),
        "threads": ratio(times, "one", "two"),
        "memory": ratio(times, "sum", "sum, two"),
        "rate0": rates["order 0"],
        "rate1": rates["order 1"],
        "float32": ratio(times, "one", "float32"),
    }


def check(problem: Problem, x: np.ndarray, y: np.ndarray) -> None:
    """All three give the same sums."""
    sums = passes(problem.model, x, y, problem.truth)()
    for sse, jtr, jtj in (numpy_pass(problem, x, y), tuned_pass(problem, x, y)):
        assert np.isclose(sums.sse, sse)
        assert np.allclose(sums.jtr, jtr, rtol=1e-8, atol=1e-8 * np.abs(jtr).max())
        assert np.allclose(sums.jtj, jtj, rtol=1e-8, atol=1e-8 * np.abs(jtj).max())


def families(short: bool) -> dict[str, list[tuple[int, str, list[float]]]]:
    """Models of rising p: polynomials, which cost nothing but the sums, and Gaussians on an offset."""
    polynomials, peaks = [], []
    for p in (1, 4, 8) if short else (1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 16, 19, 22, MOST):
        text = f"c{p - 1}"
        for k in reversed(range(p - 1)):
            text = f"c{k} + x*({text})"
        polynomials.append((p, text, [0.1] * p))
    for count in (1, 2) if short else range(1, MOST // 3 + 1):
        theta = [v for k in range(count) for v in (1.0, -0.9 + 1.8 * k / count, 0.2)]
        peaks.append((3 * count + 1, gaussian_text(count, offset=True), [*theta, 0.5]))
    return {"polynomial": polynomials, "Gaussians + offset": peaks}


def by_parameters(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Nanoseconds per point of one pass of order 2 against p, one thread."""
    n = options.n // 10
    x = np.linspace(-1.0, 1.0, n)
    y = 1.0 + x
    rows = []
    for family, members in families(options.short).items():
        runs = {str(p): passes(Model(text), x, y, theta) for p, text, theta in members}
        times = in_turns(runs, max(options.repeat // 2, 2))
        rows += [
            {"family": family, "p": int(p), "ns": 1e9 * statistics.median(column) / n} for p, column in times.items()
        ]
    return rows


def cells(f: dict[str, float]) -> tuple[object, ...]:
    rates = (f"{f[rate]:.0f}" for rate in ("rate", "rate0", "rate1"))
    ratios = (f"{f['numpy']:.1f}×", f"{f['tuned']:.1f}×", f"{f['threads']:.2f}×", f"{f['memory']:.2f}×")
    ratios += (f"{f['float32']:.2f}×",)
    return f["p"], *rates, f"{100 * f['fraction']:.0f} %", *ratios


def main() -> None:
    options = arguments(__doc__, 9, n=10_000_000).parse_args()
    problems = PROBLEMS
    if options.short:
        options.n, options.repeat, problems = 50_000, 2, (DECAY, FOUR_GAUSSIANS)
    report = Report("kernels.py", environment(options, f"n = {options.n:,}", "float64 but where said", "1 thread"))
    found = {problem.name: measure(problem, options.n, options.repeat) for problem in problems}
    rates = ("Mpoint/s", "of order 0", "of order 1")
    ratios = ("of summing x and y", "× NumPy", "× tuned NumPy", "2 threads", "2 threads that sum", "float32 storage")
    heads = ("model", "p", *rates, *ratios)
    report.table("kernels", heads, ([name, *cells(figures)] for name, figures in found.items()))
    report.rows["kernels"] = [{"model": name, **figures} for name, figures in found.items()]
    small, large = found[DECAY.name], found[FOUR_GAUSSIANS.name]
    report.floors = [
        Floor("one pass, exponential, 1 thread: share of the speed of summing x and y", ">=", 0.35, small["fraction"]),
        Floor("the same against the NumPy pass", ">=", 8, small["numpy"], "×"),
        Floor("one pass, four Gaussians + offset, against NumPy", ">=", 9, large["numpy"], "×"),
        Floor("2 threads against 1, exponential", ">=", 1.7, small["threads"], "×"),
    ]
    if cores() < 2:
        report.remarks.append("fewer than two cores: the figure for 2 threads means nothing")
    rows = report.rows["parameters"] = by_parameters(options)
    ladder: dict[str, dict[int, float]] = {row["family"]: {} for row in rows}
    for row in rows:
        ladder[row["family"]][row["p"]] = row["ns"]
    every = sorted({row["p"] for row in rows})
    report.table(
        "parameters",
        ("p", *(f"{family}, ns/point" for family in ladder)),
        ((p, *(f"{ns[p]:.2f}" if p in ns else "" for ns in ladder.values())) for p in every),
    )
    plot(
        options.plot,
        "kernels",
        ("parameters", "ns per point, one pass of order 2, one thread"),
        {family: (list(map(float, ns)), list(ns.values())) for family, ns in ladder.items()},
        logarithmic=False,
    )
    report.finish(options)


if __name__ == "__main__":
    main()
