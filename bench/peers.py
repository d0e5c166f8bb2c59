"""Other programs that fit the same data, each behind one function, in a process of its own.

A peer is imported only in its own process, so that its threads, its allocator and its memory disturb
nobody. The data are made before the processes are forked, so all of them share one copy.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import cores, seconds
from problems import PROBLEMS, Problem

Fit = Callable[[], Any]  # runs one fit and returns its parameters
SLOW, FEW = 3.0, 3  # a fit of so many seconds gets so many rounds
PAUSE = 0.05  # seconds after which the idle threads of numerical libraries have stopped spinning


@dataclass(frozen=True)
class Peer:
    """How a program is asked for a fit.

    `prepare(problem, x, y, p0)` does what a user does once (imports, jit, settings) and returns
    the fit. Above `limit` points it takes too long or too much memory to be waited for.
    """

    name: str
    prepare: Callable[[Problem, np.ndarray, np.ndarray, tuple[float, ...]], Fit]
    limit: int
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


def nlsq_nb_on(threads: int | None) -> Callable[..., Fit]:
    def prepare(problem: Problem, x: np.ndarray, y: np.ndarray, p0: tuple[float, ...]) -> Fit:
        from nlsq_nb import curve_fit

        model, passes, options = problem.model, 0, {} if threads is None else {"n_threads": threads}

        def fit():
            nonlocal passes
            result = curve_fit(model, x, y, p0=p0, **options)
            passes = result.nfev
            return result.popt

        fit.passes = lambda: passes
        return fit

    return prepare


def scipy_by(method: str, analytic: bool) -> Callable[..., Fit]:
    def prepare(problem: Problem, x: np.ndarray, y: np.ndarray, p0: tuple[float, ...]) -> Fit:
        from scipy.optimize import curve_fit

        value, columns = problem.functions(np)

        def function(x, *theta):
            return value(x, theta)

        def jacobian(x, *theta):
            # each method gets the layout that it is faster with
            J = np.empty((len(x), len(theta)), order="C" if method == "lm" else "F")
            columns(x, theta, J.T)
            return J

        jac = jacobian if analytic else None
        return lambda: curve_fit(function, x, y, p0=p0, jac=jac, method=method)[0]

    return prepare


def lmfit(problem: Problem, x: np.ndarray, y: np.ndarray, p0: tuple[float, ...]) -> Fit:
    import lmfit

    value, _ = problem.functions(np)
    names = problem.model.params

    def residuals(params):
        return value(x, list(params.valuesdict().values())) - y

    def fit():
        params = lmfit.create_params(**dict(zip(names, p0, strict=True)))
        found = lmfit.minimize(residuals, params, method="leastsq")
        return list(found.params.valuesdict().values())

    return fit


def iminuit(problem: Problem, x: np.ndarray, y: np.ndarray, p0: tuple[float, ...]) -> Fit:
    """χ² and its gradient in one compiled loop each, on all cores where there are enough points."""
    import numba
    from iminuit import Minuit

    value, columns = (numba.njit(inline="always")(f) for f in problem.functions(math))
    parts, p, weight, parallel = 16 * cores(), problem.p, problem.noise**-2, len(x) >= 100_000

    @numba.njit(parallel=parallel, fastmath=True)
    def chi2(x, y, theta):
        sums = np.zeros(parts)
        for k in numba.prange(parts):
            total = 0.0
            for i in range(k * len(x) // parts, (k + 1) * len(x) // parts):
                total += (y[i] - value(x[i], theta)) ** 2
            sums[k] = total
        return weight * sums.sum()

    @numba.njit(parallel=parallel, fastmath=True)
    def gradient(x, y, theta):
        sums = np.zeros((parts, p))
        for k in numba.prange(parts):
            total, out = np.zeros(p), np.zeros(p)
            for i in range(k * len(x) // parts, (k + 1) * len(x) // parts):
                r = y[i] - value(x[i], theta)
                columns(x[i], theta, out)
                for j in range(p):
                    total[j] += out[j] * r
            sums[k] = total
        return -2.0 * weight * sums.sum(axis=0)

    def fit():
        minuit = Minuit(lambda theta: chi2(x, y, theta), np.array(p0), grad=lambda theta: gradient(x, y, theta))
        minuit.errordef = Minuit.LEAST_SQUARES
        minuit.tol = 0.01
        minuit.migrad()
        return np.array(minuit.values)

    return fit


def nlsq(problem: Problem, x: np.ndarray, y: np.ndarray, p0: tuple[float, ...]) -> Fit:
    import nlsq  # before jax, which it switches to float64
    from jax import numpy as jnp

    logging.disable()  # it logs every iteration
    value, _ = problem.functions(jnp)
    fitter = nlsq.CurveFit()

    def function(x, *theta):
        return value(x, theta)

    def fit():
        popt, _ = fitter.curve_fit(function, x, y, p0=p0)
        return np.asarray(popt)

    return fit


def optimistix(problem: Problem, x: np.ndarray, y: np.ndarray, p0: tuple[float, ...]) -> Fit:
    import jax

    jax.config.update("jax_enable_x64", val=True)
    import optimistix
    from jax import numpy as jnp

    value, _ = problem.functions(jnp)
    solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)

    @jax.jit
    def solve(theta, x, y):
        found = optimistix.least_squares(
            lambda theta, data: value(data[0], theta) - data[1],
            solver,
            theta,
            args=(x, y),
            max_steps=1000,
            throw=False,
        )
        return found.value

    start = jnp.asarray(p0)
    return lambda: np.asarray(solve(start, jnp.asarray(x), jnp.asarray(y)))


OURS, OURS_ALONE, REFERENCE = "nlsq_nb", "nlsq_nb, 1 thread", "scipy lm"
PEERS = (
    Peer(OURS, nlsq_nb_on(None), 10**9),
    Peer(OURS_ALONE, nlsq_nb_on(1), 10**9),
    Peer(REFERENCE, scipy_by("lm", analytic=True), 10**7),
    Peer("scipy lm, numeric J", scipy_by("lm", analytic=False), 10**7),
    Peer("scipy trf", scipy_by("trf", analytic=True), 10**6),
    Peer("lmfit", lmfit, 10**7, ("lmfit",)),
    Peer("iminuit + Numba", iminuit, 10**7, ("iminuit",)),
    Peer("nlsq (jax)", nlsq, 10**6, ("nlsq", "jax")),
    Peer("optimistix (jax)", optimistix, 10**7, ("optimistix", "jax")),
)


# -- processes -------------------------------------------------------------------------------
@dataclass
class Timed:
    """What a peer did with one data set."""

    sse: float = math.nan
    times: list[float] = field(default_factory=list)  # one per round
    passes: int | None = None
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else math.nan


def serve(pipe: Any, name: str, title: str, arrays: tuple[np.ndarray, np.ndarray], p0: Any) -> None:
    """A peer's process: prepares, fits once outside of the timing, then as often as it is told."""
    peer = next(peer for peer in PEERS if peer.name == name)
    problem = next(problem for problem in PROBLEMS if problem.name == title)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")  # a peer may try what overflows
    try:
        fit = peer.prepare(problem, *arrays, p0)
        begin = time.perf_counter()
        theta = fit()
        once = time.perf_counter() - begin
        passes = fit.passes() if hasattr(fit, "passes") else None
        # what takes seconds is not run once more to learn how long it takes without compilation
        once = once if once > SLOW else seconds(fit)
        pipe.send((problem.sse(*arrays, theta), passes, once))
        while count := pipe.recv():
            if count > 1:
                fit()  # another process has had the caches since
            pipe.send(statistics.median(seconds(fit) for _ in range(count)))
    except Exception as error:  # noqa: BLE001 - one peer's fault must not end the others' run
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def compete(
    peers: list[Peer], problem: Problem, n: int, p0: tuple[float, ...], repeat: int, *, least: float = 0.1
) -> dict[str, Timed]:
    """Whole fits in turns: only one process works at a time."""
    arrays = problem.data(n)
    # fork shares the arrays; where it is not to be had, each process gets a copy
    way = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(way)
    found, pipes, counts, processes = {peer.name: Timed() for peer in peers}, {}, {}, []
    for peer in peers:
        ours, theirs = context.Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # nothing runs in this process's threads
            process = context.Process(target=serve, args=(theirs, peer.name, problem.name, arrays, p0))
            process.start()
        processes.append(process)
        theirs.close()
        first = ours.recv()
        if isinstance(first, str):
            found[peer.name].failure = first
            continue
        timed = found[peer.name]
        timed.sse, timed.passes, once = first
        counts[peer.name], pipes[peer.name] = max(1, min(100, math.ceil(least / once))), ours
    slow = {name for name, count in counts.items() if count == 1}
    for turn in range(repeat):
        for name, pipe in pipes.items():
            if name in slow and turn >= FEW and found[name].median > SLOW:
                continue
            time.sleep(PAUSE)
            pipe.send(counts[name])
            found[name].times.append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(0)
    for process in processes:
        process.join()
    return found


def advantage(slow: Timed, fast: Timed) -> float:
    """How many times faster `fast` is: the median over the rounds that both took part in."""
    pairs = list(zip(slow.times, fast.times, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else math.nan
