"""CPU seconds of processes that import, or import and fit: with a kernel from disk, and without one."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from common import Floor, Report, arguments, environment

DATA = """
import numpy as np
x = np.linspace(0.0, 40.0, 500)
"""
DECAY = DATA + """from nlsq_nb import curve_fit
y = 5.0 * np.exp(-0.5 * x) + 1.0 + np.random.default_rng(42).normal(0.0, 0.1, 500)
assert curve_fit("a*exp(-b*x) + c", x, y, p0=[1.0, 0.1, 5.0]).success
"""
PEAKS = DATA + """from nlsq_nb import curve_fit
start = np.array([3.0, 5.0, 2.0, 4.0, 15.0, 3.0, 2.0, 25.0, 4.0, 5.0, 33.0, 2.0, 0.5])
y = sum(a * np.exp(-((x - b) ** 2) / c) for a, b, c in start[:-1].reshape(4, 3))
y = y + 0.5 + np.random.default_rng(42).normal(0.0, 0.05, 500)
text = " + ".join(f"a{i}*exp(-(x - b{i})**2/c{i})" for i in range(4)) + " + d"
assert curve_fit(text, x, y, p0=1.02 * start).success
"""
SCIPY = DATA + """from scipy.optimize import curve_fit
y = 5.0 * np.exp(-0.5 * x) + 1.0 + np.random.default_rng(42).normal(0.0, 0.1, 500)
curve_fit(lambda x, a, b, c: a * np.exp(-b * x) + c, x, y, p0=[1.0, 0.1, 5.0])
"""
IMPORT, CACHED, FRESH = "import nlsq_nb", "fit of 3 parameters, kernel cached", "fit of 3 parameters, no kernel"
# what runs, and whether its folder of compiled kernels is empty
PROCESSES = {
    "python": ("", False),
    "import numpy": ("import numpy", False),
    "import numba": ("import numba", False),
    IMPORT: ("import nlsq_nb", False),
    "from nlsq_nb import curve_fit": ("from nlsq_nb import curve_fit", False),
    CACHED: (DECAY, False),
    "fit of 13 parameters, kernel cached": (PEAKS, False),
    "scipy curve_fit, 3 parameters": (SCIPY, False),
    FRESH: (DECAY, True),
    "fit of 13 parameters, no kernel": (PEAKS, True),
}


def cpu_seconds(code: str, kernels: str, bytecode: str) -> float:
    """User and system time of a process."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT"}
    variables = {key: value for key, value in os.environ.items() if key not in dropped}
    # byte code is compiled once for all, as an installation does it
    variables |= {"NLSQ_NB_CACHE": kernels, "PYTHONPYCACHEPREFIX": bytecode}
    before = os.times()
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def measure(repeat: int) -> dict[str, list[float]]:
    """CPU seconds of every process in `repeat` rounds, after one that fills the caches."""
    times: dict[str, list[float]] = {name: [] for name in PROCESSES}
    with tempfile.TemporaryDirectory() as kernels, tempfile.TemporaryDirectory() as bytecode:
        for turn in range(repeat + 1):
            for process, (code, fresh) in PROCESSES.items():
                with tempfile.TemporaryDirectory() as nothing:
                    spent = cpu_seconds(code, nothing if fresh else kernels, bytecode)
                if turn:
                    times[process].append(spent)
    return times


def main() -> None:
    options = arguments(__doc__, 9).parse_args()
    if options.short:
        options.repeat = 1
    report = Report("startup.py", environment(options))
    times = measure(options.repeat)
    middle = {process: statistics.median(spent) for process, spent in times.items()}
    report.rows["startup"] = [{"process": process, "seconds": spent} for process, spent in times.items()]
    cells = [(process, f"{middle[process]:.2f}", f"{min(times[process]):.2f}") for process in PROCESSES]
    report.table("startup", ("process", "CPU seconds, median", "least"), cells)
    report.floors = [
        Floor(IMPORT, "<=", 0.35, middle[IMPORT], " s of CPU"),
        Floor(f"a process with a {CACHED}", "<=", 1.0, middle[CACHED], " s of CPU"),
        Floor(f"a process with a {FRESH}", "<=", 4.0, middle[FRESH], " s of CPU"),
    ]
    report.finish(options)


if __name__ == "__main__":
    main()
