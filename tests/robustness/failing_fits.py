"""Fits of which one call of the C library fails: run by test_failing_calls.py with failing_calls.c preloaded."""

import ctypes
import errno
import gc
import itertools
import json
import sys
import tempfile
import threading
import warnings
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from nlsq_nb import curve_fit
from nlsq_nb.errors import NlsqError
from nlsq_nb.observe.checkpoint_image import open_image
from nlsq_nb.sources import hdf5_file

CALLS = {
    "open": (1, errno.EMFILE),
    "read": (2, errno.EIO),
    "write": (4, errno.ENOSPC),
    "fsync": (8, errno.EIO),
    "rename": (16, errno.EACCES),
    "allocate": (32, errno.ENOMEM),
    "map": (64, errno.ENOMEM),
    "stat": (128, errno.EIO),
}
N = 6 * 4096 + 100
RNG = np.random.default_rng(3)
X = RNG.uniform(0.0, 4.0, N)
Y = 3.0 * np.exp(-1.2 * X) + 0.5 + RNG.normal(0.0, 0.1, N)


def batches():
    for lo in range(0, N, 1_000):
        yield X[lo : lo + 1_000], Y[lo : lo + 1_000]


def prepared(folder):
    """A function for each kind, which makes a source."""
    for name, column in (("x", X), ("y", Y)):
        column.tofile(folder / name)
    with h5py.File(folder / "plain.h5", "w") as plain, h5py.File(folder / "packed.h5", "w") as packed:
        for name, column in (("x", X), ("y", Y)):
            plain[name] = column
            packed.create_dataset(name, data=column, chunks=(4096,), compression="lzf")

    def from_files():
        with (folder / "x").open("rb") as x, (folder / "y").open("rb") as y:
            while part := x.read(8_000):
                yield np.frombuffer(part), np.frombuffer(y.read(8_000))

    return {
        "arrays": lambda: (X, Y),
        "memmap": lambda: tuple(np.memmap(folder / name, np.float64, "r") for name in "xy"),
        "file": lambda: folder / "plain.h5",
        "in place": lambda: folder / "plain.h5",
        "packed": lambda: folder / "packed.h5",
        "generator": batches,
        "function": lambda: from_files,
    }


def held(temporary):
    """Open files, threads and temporary files."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), list(temporary.iterdir())


def whole(checkpoints):
    """Nothing but readable checkpoints is there; removes them."""
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        assert path.name.startswith("checkpoint_"), path
        open_image(path.read_bytes())
        path.unlink()


def main(folder, kind, name, every):
    library, (mask, code) = ctypes.CDLL(None), CALLS[name]
    make, checkpoints, temporary = prepared(folder)[kind], folder / "checkpoints", folder / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    if kind == "in place":
        hdf5_file._MAP_FROM = 0
    told = (NlsqError, MemoryError) if name == "allocate" else NlsqError
    how = {"chunk_size": 4096, "loop_strategy": "loop", "n_threads": 2, "checkpoint_dir": checkpoints}

    def fit(source):
        found = curve_fit("a*exp(-b*x) + c", source, p0=[2.0, 1.0, 1.0], checkpoint_frequency=1, **how)
        return found.popt.tobytes(), found.pcov.tobytes(), found.sse

    expected = fit(make())
    whole(checkpoints)
    before, outcomes = held(temporary), Counter()
    for n in itertools.count(1) if every else itertools.accumulate(itertools.count(1), lambda at, k: at + 1 + k // 2):
        source = make()
        library.failing_arm(mask, n, code)
        try:
            found = fit(source)
            count = library.failing_disarm()
            assert found == expected, n
            outcomes["same bits"] += 1
        except told as error:
            count = library.failing_disarm()
            outcomes[type(error).__name__] += 1
        del source
        assert held(temporary) == before, n
        whole(checkpoints)
        if count < n:
            break
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], every=sys.argv[4] == "every")
