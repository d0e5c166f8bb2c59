"""A pass on a Dask cluster of this machine against the same pass in this process, and what a worker's death costs."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from common import Report, arguments, environment, ratio

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.layout import RESIDENT_ROWS
from nlsq_nb.engines import lines
from nlsq_nb.engines.dask import DaskCluster
from nlsq_nb.engines.spread import engine_over, spread
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.dask_arrays import DaskArrays
from nlsq_nb.sources.hdf5 import HDF5Source
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.rows import Reading

MODEL = Model("a*exp(-b*x) + c")
THETA = np.array([3.0, 1.5, 0.5])
ARRAYS, FILE, HELD = "arrays, this process", "file, this process", "blocks held by workers"


def seconds(work: Any, repeat: int) -> list[float]:
    found = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return found


def written(folder: str, n: int) -> Path:
    """A file of n rows, made a piece at a time."""
    path, step = Path(folder) / "rows.h5", 1 << 22
    with h5py.File(path, "w") as file:
        x, y = (file.create_dataset(name, (n,), np.float64) for name in "xy")
        for lo in range(0, n, step):
            part = np.random.default_rng(lo).uniform(0.0, 4.0, min(step, n - lo))
            x[lo : lo + step], y[lo : lo + step] = part, MODEL(part, *THETA)
    return path


def spread_evenly(client: Any, n: int) -> Any:
    """x and y of n rows in some twenty blocks, as many on each worker."""
    import dask.array as da

    workers, columns = sorted(client.nthreads()), []
    for k, worker in enumerate(workers):
        rows = n * (k + 1) // len(workers) - n * k // len(workers)
        x = da.random.default_rng(k).uniform(0.0, 4.0, rows, chunks=-(-len(workers) * rows // 20))
        columns.append(client.persist([x, 3.0 * da.exp(-1.5 * x) + 0.5], workers=[worker]))
    return client.persist([da.concatenate(parts) for parts in zip(*columns, strict=True)])


def own_seconds() -> list[float]:
    """What each part took this worker since it was asked last, from the call that arrives to the answer that leaves."""
    seat: Any = vars(lines)["_Seat"]
    if not hasattr(seat, "seconds"):
        seat.seconds, plain = [], seat.answer

        def answer(self: Any, message: Any) -> bytes:
            begin = time.perf_counter()
            found: bytes = plain(self, message)
            seat.seconds.append(time.perf_counter() - begin)
            return found

        seat.answer = answer
    found, seat.seconds = seat.seconds, []
    return found


def main() -> None:
    from distributed import Client, LocalCluster

    options = arguments(__doc__, 7, rows=40_000_000, workers=2).parse_args()
    n = 1_000_000 if options.short else options.rows
    report = Report("cluster.py", environment(options, f"{n:.0e} rows", f"{options.workers} workers of one thread"))
    backend, reading = get_backend("cpu", options.workers), Reading(("x",))
    shape = {"n_workers": options.workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with tempfile.TemporaryDirectory() as folder, LocalCluster(**shape) as cluster, Client(cluster) as client:
        data = HDF5Source(written(folder, n))
        held = DaskArrays(*spread_evenly(client, n), client=client)
        places = {
            ARRAYS: ArraySource(*client.gather(client.compute([held.x * 1.0, held.y * 1.0]))),
            FILE: data.open(reading),
            "file, cluster": spread(data, reading, DaskCluster(client)),
            HELD: spread(held, reading, DaskCluster(client)),
        }
        few = HDF5Source(written(tempfile.mkdtemp(dir=folder), RESIDENT_ROWS + 1))  # fewer would be read here
        places["a pass of hardly any rows, cluster"] = spread(few, reading, DaskCluster(client))
        engines = {name: engine_over(backend, MODEL.program, RetryingSource(rows)) for name, rows in places.items()}
        for engine in engines.values():
            engine.run(THETA, 2)
        times: dict[str, list[float]] = {name: [] for name in engines}
        shares: dict[str, list[float]] = {name: [] for name in engines}
        client.run(own_seconds)
        for _ in range(options.repeat):
            for name, engine in engines.items():
                times[name] += seconds(lambda engine=engine: engine.run(THETA, 2), 1)
                own = list(chain(*client.run(own_seconds).values()))
                shares[name] += [times[name][-1] / max(own)] if own else []
        rows = report.rows["dask"] = []
        for name, some in times.items():
            share = ratio(times, name, ARRAYS if name in {ARRAYS, HELD} else FILE)
            row = {"pass": name, "seconds": statistics.median(some), "least": min(some), "ratio": share}
            rows.append(row | {"of part": statistics.median(shares[name]) if shares[name] else None})
        victim = next(iter(client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        (late,) = seconds(lambda: engines["file, cluster"].run(THETA, 2), 1)
        name = "file, cluster, a worker killed before"
        row = {"pass": name, "seconds": late, "least": late, "ratio": late / statistics.median(times[FILE])}
        rows.append(row | {"of part": None})
    report.table(
        "dask",
        ("a pass", "seconds, median", "least", "of the same rows in this process", "of the slowest worker's part"),
        (
            (r["pass"], f"{r['seconds']:.3f}", f"{r['least']:.3f}", f"{r['ratio']:.2f}",
             "" if r["of part"] is None else f"{r['of part']:.2f}")
            for r in rows
        ),
    )
    report.finish(options)


if __name__ == "__main__":
    main()
