"""Whole fits of the same rows from every kind of source: the same bits, in native code, for any threads and chunks."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from nlsq_nb import HDF5Source, curve_fit
from nlsq_nb.sources import hdf5_file

MODEL, P0 = "a*exp(-b*x) + c", [2.0, 1.0, 1.0]
N = 300_123
RNG = np.random.default_rng(21)
X = RNG.uniform(0.0, 4.0, N)
SIGMA = RNG.uniform(0.5, 2.0, N)
Y = 3.0 * np.exp(-1.2 * X) + 0.5 + SIGMA * RNG.normal(0.0, 0.1, N)
CHUNKS = (4_096, 10_000, 65_536, 1_000_000)
ROOT = Path(__file__).resolve().parents[2]


def bits(source, **how):
    found = curve_fit(MODEL, source, p0=P0, **how)
    assert found.success
    return found.popt.tobytes(), found.pcov.tobytes(), found.sse


@pytest.fixture(scope="module")
def expected():
    return bits((X, Y, SIGMA))


def batches(rows=7_777):
    for lo in range(0, N, rows):
        yield X[lo : lo + rows], Y[lo : lo + rows], SIGMA[lo : lo + rows]


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    """A function per kind, each of which makes a new source."""
    folder = tmp_path_factory.mktemp("rows")
    plain, packed = folder / "plain.h5", folder / "packed.h5"
    with h5py.File(plain, "w") as file:
        file["data/x"], file["data/y"], file["data/sigma"] = X, Y, SIGMA
    with h5py.File(packed, "w") as file:
        for name, column in (("x", X), ("y", Y), ("sigma", SIGMA)):
            file.create_dataset(name, data=column, chunks=(20_011,), compression="gzip", compression_opts=1)
    for name, column in (("x", X), ("y", Y), ("sigma", SIGMA)):
        np.save(folder / f"{name}.npy", column)
    return {
        "tuple": lambda: (X, Y, SIGMA),
        "memmap": lambda: tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "sigma")),
        "mapping": lambda: ({"x": X}, Y, SIGMA),
        "hdf5": lambda: HDF5Source(plain, sigma="data/sigma"),
        "packed": lambda: HDF5Source(packed, sigma="sigma"),
        "generator": batches,
        "function": lambda: batches,
    }


KINDS = ("tuple", "memmap", "mapping", "hdf5", "packed", "generator", "function")


@pytest.mark.parametrize("kind", KINDS)
def test_sources_and_threads_change_no_bit(kind, makers, expected):
    for threads in (1, 2, 4):
        assert bits(makers[kind](), n_threads=threads) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_no_bit(kind, makers, expected):
    for rows in CHUNKS:
        assert bits(makers[kind](), chunk_size=rows, loop_strategy="loop") == expected


def test_reading_in_place_changes_no_bit(makers, expected, monkeypatch):
    monkeypatch.setattr(hdf5_file, "_MAP_FROM", 0)
    for rows in CHUNKS:
        assert bits(makers["hdf5"](), chunk_size=rows, loop_strategy="loop") == expected


def test_long_passes_of_streams_tell_their_progress(makers, caplog, monkeypatch):
    monkeypatch.setattr("nlsq_nb.sources.retrying.PERIOD", 0.0)
    with caplog.at_level("INFO", logger="nlsq_nb.fit"):
        curve_fit(MODEL, makers["packed"](), p0=P0, chunk_size=65_536, loop_strategy="loop", verbose=1)
    lines = [record.getMessage() for record in caplog.records if "rows/s" in record.getMessage()]
    assert any("65,536 of 300,123 rows (21%)" in line and " left" in line for line in lines)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("kind", "points"), [("function", 100_000_000), ("file", 25_000_000)])
def test_memory_does_not_grow_with_the_rows(kind, points, tmp_path):
    """200 MB over the imports, for 1.6 GB of rows from a generator and 0.4 GB in a file."""
    code = "import sys; sys.path.insert(0, 'bench'); import memory; from pathlib import Path; "
    path = tmp_path / "rows.h5"

    def run(command):
        asked = [sys.executable, "-c", code + command]
        return subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    run("memory.streamed('function', 1_000_000, '')")  # compiles
    if kind == "file":
        run(f"memory.write_file(Path({str(path)!r}), {points})")
    assert float(run(f"print(memory.streamed({kind!r}, {points}, {str(path)!r})[0])")) < 200.0
