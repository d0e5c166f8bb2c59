"""How time and memory grow with the data: fits in processes of their own."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from common import Floor, Report, arguments, brief, environment, in_turns, plot
from peers import OURS, PEERS, REFERENCE
from problems import DECAY

START = DECAY.starts[0]
FIRST = 1 << 17  # rows of the fit before: more than any sample, so that all code is loaded and compiled
OUTSIDE = 0.03  # how far from 1 the exponent may be
LIMIT = 100.0  # MB beyond the data
STATUS = Path("/proc/self/status")


def resident(field: str) -> float:
    """MB of memory now ("VmRSS") or at the most ("VmHWM")."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text("ascii").splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024
    import resource  # without /proc only the peak is known

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def forget_peak() -> None:
    """Let "VmHWM" begin anew where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return


def growth(name: str, n: int) -> float:
    """MB that one fit needs beside its data, in this process."""
    peer = next(peer for peer in PEERS if peer.name == name)
    x, y = DECAY.data(n, shuffled=True)
    peer.prepare(DECAY, x[:FIRST], y[:FIRST], START)()
    fit = peer.prepare(DECAY, x, y, START)
    forget_peak()
    before = resident("VmRSS")
    fit()
    return resident("VmHWM") - before


def durations(sizes: list[int], repeat: int) -> dict[str, Any]:
    """Median seconds and passes of fits to the first rows of one data set, all sizes in turns."""
    x, y = DECAY.data(max(sizes), shuffled=True)
    prepare = PEERS[0].prepare
    fits = {str(n): prepare(DECAY, x[:n], y[:n], START) for n in sizes}
    times = in_turns(fits, repeat)
    return {n: [statistics.median(times[n]), fit.passes()] for n, fit in fits.items()}


def apart(*what: object) -> Any:
    """The answer of this script in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--child", *map(str, what)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(kind: str, *what: str) -> None:
    warnings.simplefilter("ignore")
    if kind == "growth":
        print(json.dumps(growth(what[0], int(what[1]))))
    else:
        print(json.dumps(durations([int(n) for n in what[1:]], int(what[0]))))


def slope(sizes: list[int], times: list[float]) -> float:
    """Exponent of a power law through the points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def main() -> None:
    parser = arguments(__doc__, 5)
    default = [1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=default)
    parser.add_argument("--child", nargs="+", help=f"for {Path(__file__).name} itself")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if options.short:
        options.sizes, options.repeat = [150_000, 300_000], 2
    sizes = sorted(options.sizes)
    facts = (f"{DECAY.name}, p = {DECAY.p}", "float64", "default threads", "x in no order")
    report = Report("memory.py", environment(options, *facts))
    timed = apart("durations", options.repeat, *sizes)
    limit = next(peer.limit for peer in PEERS if peer.name == REFERENCE)
    cells, rows = [], report.rows.setdefault("memory", [])
    for n in sizes:
        took, passes = timed[str(n)]
        extra = apart("growth", OURS, n)
        scipys = apart("growth", REFERENCE, n) if n <= limit else None
        mb = 16 * n / 2**20
        rows.append({"n": n, "seconds": took, "passes": passes, "data_mb": mb, "extra_mb": extra, "scipy_mb": scipys})
        pace = f"{1e9 * took / n:.1f}"
        cells.append([
            f"{n:,}", brief(took), passes, pace, f"{mb:,.0f}", f"{extra:,.1f}", f"{scipys:,.0f}" if scipys else "–",
        ])  # fmt: skip
    heads = ("n", "fit", "passes", "ns/point", "data, MB", "beyond the data, MB", "the same of scipy lm, MB")
    report.table("memory", heads, cells)
    exponent = slope(sizes, [row["seconds"] for row in rows])
    span = f"from n = {sizes[0]:,} to {sizes[-1]:,}"
    report.remarks.append(f"time grows as n to the power {exponent:.3f} {span}")
    if not STATUS.exists():
        report.remarks.append("no /proc: memory is counted from the peak before the fit, so it may be too low")
    report.rows["growth"] = [{"exponent": exponent}]
    most = max(row["extra_mb"] for row in rows)
    report.floors = [
        Floor(f"distance of the exponent of time from 1, {span}", "<=", OUTSIDE, abs(exponent - 1.0)),
        Floor(f"memory beyond the data, up to n = {sizes[-1]:,}", "<=", LIMIT, most, " MB"),
    ]
    assert math.isfinite(exponent)
    line = [float(n) for n in sizes], [row["seconds"] for row in rows]
    plot(options.plot, "memory", ("points", "seconds for a whole fit"), {"nlsq_nb": line})
    report.finish(options)


if __name__ == "__main__":
    main()
