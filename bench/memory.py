"""How time and memory grow with the data, in memory and streamed: fits in processes of their own."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Floor, Report, arguments, brief, environment, in_turns, plot, ratio
from peers import OURS, PEERS, REFERENCE
from problems import DECAY

START = DECAY.starts[0]
FIRST = 1 << 17  # rows of the fit before: more than any sample, so that all code is loaded and compiled
OUTSIDE = 0.03  # how far from 1 the exponent may be
LIMIT = 100.0  # MB beyond the data
STREAMED = 200.0  # MB over what the imports need, whatever the number of rows
SHARE = 0.8  # of the speed of a pass over arrays that one over a file in the page cache must have
BATCH = 1_000_000
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
    times = in_turns(fits, repeat, least=0.1)  # the first fit after one of other rows finds caches full of these
    return {n: [statistics.median(times[n]), fit.passes()] for n, fit in fits.items()}


def apart(*what: object) -> Any:
    """The answer of this script in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--child", *map(str, what)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def batches(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows made as they are asked for; the noise is one array, begun elsewhere in every batch."""
    noise = np.random.default_rng(3).normal(0.0, 0.1, BATCH)
    value, theta = DECAY.functions(np)[0], np.array(DECAY.truth)
    for k, lo in enumerate(range(0, n, BATCH)):
        rows = min(BATCH, n - lo)
        x = np.arange(lo, lo + rows) * (DECAY.span[1] / n)
        yield x, value(x, theta) + np.roll(noise, 7919 * k)[:rows]


def write_file(path: Path, n: int) -> None:
    """The same rows in two data sets, each in one piece."""
    import h5py

    with h5py.File(path, "w") as file:
        x, y = (file.create_dataset(f"data/{name}", (n,), "f8") for name in "xy")
        for k, (some, values) in enumerate(batches(n)):
            x[k * BATCH : k * BATCH + len(some)] = some
            y[k * BATCH : k * BATCH + len(some)] = values


def streamed(kind: str, n: int, path: str) -> list[float]:
    """MB over the imports, seconds and passes of one fit to rows that are not in memory, in this process."""
    from nlsq_nb import curve_fit

    source = path if kind == "file" else lambda: batches(n)
    forget_peak()
    before, begin = resident("VmRSS"), time.perf_counter()
    found = curve_fit(DECAY.text, source, p0=START)
    took = time.perf_counter() - begin
    assert found.success
    assert found.n_points == n
    return [resident("VmHWM") - before, took, found.nfev]


def speed(n: int, path: str, repeat: int) -> list[float]:
    """Seconds of a pass over the file and over arrays, in turns, and their ratio round by round."""
    from nlsq_nb import HDF5Source
    from nlsq_nb.backends import get_backend
    from nlsq_nb.engines.local import LocalEngine
    from nlsq_nb.sources.arrays import ArraySource
    from nlsq_nb.sources.retrying import RetryingSource
    from nlsq_nb.sources.rows import Reading

    x, y = (np.concatenate(parts) for parts in zip(*batches(n), strict=True))
    backend, model, theta = get_backend("cpu"), DECAY.model, np.array(START)
    kernel = backend.compile(model.program, np.float64)
    sources = {"file": HDF5Source(path).open(Reading(model.x)), "arrays": ArraySource(x, y)}
    engines = {name: LocalEngine(backend, kernel, RetryingSource(source)) for name, source in sources.items()}
    sums = {name: engine.run(theta, 2).packed.tobytes() for name, engine in engines.items()}
    assert sums["file"] == sums["arrays"]
    times = in_turns({name: lambda e=engine: e.run(theta, 2) for name, engine in engines.items()}, repeat)
    return [*(statistics.median(times[name]) for name in ("file", "arrays")), ratio(times, "arrays", "file")]


def streams(options: argparse.Namespace, report: Report) -> None:
    """The tables of rows that are not in memory."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        path = Path(folder) / "rows.h5"
        cells, rows = [], report.rows.setdefault("streams", [])
        apart("streamed", "function", BATCH, "")  # compiles
        for kind, what, n in (
            ("function", "function that returns a generator", options.points),
            ("file", "HDF5 file, in one piece", options.rows),
        ):
            if kind == "file":
                write_file(path, n)
            grown, took, passes = apart("streamed", kind, n, path)
            rows.append({"source": kind, "n": n, "extra_mb": grown, "seconds": took, "passes": passes})
            cells.append([what, f"{n:,}", f"{grown:,.0f}", brief(took), passes])
            report.floors.append(Floor(f"memory over the imports, {what}, n = {n:,}", "<=", STREAMED, grown, " MB"))
        report.table("streams", ("source", "n", "over the imports, MB", "fit", "passes"), cells)
        few = min(options.rows, 20_000_000)
        write_file(path, few)
        file, arrays, share = apart("speed", few, path, max(3, options.repeat))
        report.rows["pass"] = [{"n": few, "file": file, "arrays": arrays, "ratio": share}]
        report.remarks.append(
            f"a pass over {few:,} rows: {brief(file)} from a file in the page cache, {brief(arrays)} from arrays"
        )
        what = f"speed of a pass over a file of {few:,} rows, of that over arrays"
        report.floors.append(Floor(what, ">=", SHARE, share))


def child(kind: str, *what: str) -> None:
    warnings.simplefilter("ignore")
    if kind == "streamed":
        print(json.dumps(streamed(what[0], int(what[1]), what[2])))
    elif kind == "speed":
        print(json.dumps(speed(int(what[0]), what[1], int(what[2]))))
    elif kind == "growth":
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
    parser.add_argument("--points", type=int, default=1_000_000_000, help="rows of the generator")
    parser.add_argument("--rows", type=int, default=250_000_000, help="rows of the file")
    parser.add_argument("--folder", help="where the file of 16 bytes per row is written")
    parser.add_argument("--child", nargs="+", help=f"for {Path(__file__).name} itself")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if options.short:
        options.sizes, options.repeat = [150_000, 300_000], 2
        options.points = options.rows = 5_000_000
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
    streams(options, report)
    line = [float(n) for n in sizes], [row["seconds"] for row in rows]
    plot(options.plot, "memory", ("points", "seconds for a whole fit"), {"nlsq_nb": line})
    report.finish(options)


if __name__ == "__main__":
    main()
