"""HDF5 files that point elsewhere, promise more than they hold, or are damaged: refused by name, nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from nlsq_nb import HDF5Source, SourceError, curve_fit
from nlsq_nb.sources import hdf5_checks, hdf5_file
from nlsq_nb.sources.tables import read_table

N = 600
X = np.linspace(0.0, 4.0, N)
Y = 3.0 * np.exp(-1.2 * X) + 0.5
CHILD = Path(__file__).with_name("mutated_hdf5.py")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.h5"


def elsewhere(path):
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["x"] = X
    path.with_name("raw.bin").write_bytes(X.tobytes())


def external_link(file, path):
    file["x"] = h5py.ExternalLink("other.h5", "/x")


def soft_link(file, path):
    file["real"] = X
    file["x"] = h5py.SoftLink("/real")


def soft_group(file, path):
    file["real/x"] = X
    file["data"] = h5py.SoftLink("/real")


def external_storage(file, path):
    file.create_dataset("x", (N,), "f8", external=[(str(path.with_name("raw.bin")), 0, 8 * N)])


def virtual(file, path):
    layout = h5py.VirtualLayout((N,), "f8")
    layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "x", shape=(N,))
    file.create_virtual_dataset("x", layout)


def never_written(file, path):
    file.create_dataset("x", (N,), "f8")


def never_written_huge(file, path):
    file.create_dataset("x", (1 << 50,), "f8")


def bomb(file, path):
    file.create_dataset("x", (1 << 40,), "f8", chunks=(1 << 20,), compression="gzip")[:5] = 1.0


def hole(file, path):
    data = file.create_dataset("x", (N,), "f8", chunks=(100,), compression="gzip")
    data[:150] = X[:150]


def huge_chunk(file, path):
    file.create_dataset("x", data=X, chunks=(1 << 14,), maxshape=(None,), compression="gzip")


def plug_in(file, path):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((100,))
    made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((N,))
    h5py.Dataset(h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, space, made))[:] = X


def a_group(file, path):
    file["x/deeper"] = X


def nothing(file, path):
    file["z"] = X


def strings(file, path):
    file["x"] = [b"one"] * N


def objects(file, path):
    file.create_dataset("x", data=["one"] * N, dtype=h5py.string_dtype())


def complex_numbers(file, path):
    file["x"] = X.astype(complex)


def compound(file, path):
    file["x"] = np.zeros(N, [("a", "f8")])


def a_single_value(file, path):
    file["x"] = 1.5


def an_empty_one(file, path):
    file["x"] = h5py.Empty("f8")


REFUSED = {
    external_link: "soft or external link",
    soft_link: "soft or external link",
    soft_group: "soft or external link",
    external_storage: "stored in other files",
    virtual: "stored in other files",
    never_written: "0 are said to be stored",
    never_written_huge: "0 are said to be stored",
    bomb: "more than any compression explains",
    hole: "4 of its 6 chunks were never written",
    huge_chunk: "its chunks are 131072 bytes each",
    plug_in: "its filter 32015 needs a plug-in",
    a_group: "/x is not a data set",
    nothing: "/x does not exist",
    strings: "real numbers are needed",
    objects: "real numbers are needed",
    complex_numbers: "real numbers are needed",
    compound: "real numbers are needed",
    a_single_value: "it is a single value",
    an_empty_one: "it is empty",
}
MINE = (external_link, soft_link, soft_group, external_storage, virtual, never_written, hole, huge_chunk)
TABLES = (external_link, soft_link, external_storage, virtual, never_written_huge, bomb, plug_in, strings)


def made(write, path):
    elsewhere(path)
    with h5py.File(path, "w") as file:
        write(file, path)
        file["y"] = Y


@pytest.mark.parametrize("write", REFUSED, ids=lambda f: f.__name__)
def test_what_is_not_plain_data_is_refused(write, path, monkeypatch):
    made(write, path)
    if write is huge_chunk:
        monkeypatch.setattr(hdf5_checks, "_CHUNK", 1 << 16)
    with pytest.raises(SourceError, match=REFUSED[write]) as caught:
        curve_fit("a*exp(-b*x) + c", path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("write", MINE, ids=lambda f: f.__name__)
def test_a_trusted_file_may(write, path):
    made(write, path)
    found = HDF5Source(path, trusted=True)
    assert found.first() == pytest.approx(0.0)
    if write in {external_link, soft_link, soft_group, external_storage, virtual, huge_chunk}:
        assert curve_fit("a*exp(-b*x) + c", found).popt == pytest.approx([3.0, 1.2, 0.5])


@pytest.mark.parametrize("write", TABLES, ids=lambda f: f.__name__)
def test_tables_refuse_the_same(write, path):
    made(write, path)
    assert "x" in read_table(str(path)).refused


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(SourceError, match="is not a file"):
        curve_fit("a*x", path)


@pytest.mark.parametrize("content", [b"", b"x, y\n1, 2\n", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_other_files_are_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(SourceError, match="as HDF5"):
        curve_fit("a*x", path)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_a_file_with_a_user_block(path, version, monkeypatch):
    monkeypatch.setattr(hdf5_file, "_MAP_FROM", 0)
    with h5py.File(path, "w", userblock_size=1024, libver=version) as file:
        file["deep/er/x"], file["y"] = X, Y
    with path.open("r+b") as file:
        file.write(b"a header of somebody else's".ljust(1024))
    assert curve_fit("a*exp(-b*x) + c", HDF5Source(path, "deep/er/x", "y")).popt == pytest.approx([3.0, 1.2, 0.5])


def test_a_file_that_was_cut_off(path):
    made(lambda file, path: file.create_dataset("x", data=X), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 509):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            curve_fit("a*exp(-b*x) + c", path)


def test_other_names_and_other_suffixes(tmp_path):
    path = tmp_path / "data.nxs"
    with h5py.File(path, "w") as file:
        file["entry/t"], file["entry/counts"] = X, Y
    with pytest.raises(SourceError, match=r"give HDF5Source\(path\)"):
        curve_fit("a*exp(-b*t) + c", path)
    found = curve_fit("a*exp(-b*t) + c", HDF5Source(path, {"t": "entry/t"}, "entry/counts"))
    assert found.popt == pytest.approx([3.0, 1.2, 0.5])
    with pytest.raises(SourceError, match="/data/y does not exist; /y does not exist"):
        curve_fit("a*x", HDF5Source(path, "entry/t"))


def read_mutated(folder, first, count, limit):
    """Let a process read mutated files; it may fail no other way than by an error of ours."""
    command = [sys.executable, "-X", "faulthandler", str(CHILD), str(folder), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"after file {lines[-1] if lines else first}:\n{done.stderr[-3000:]}"
    return int(lines[-1].removeprefix("read "))


def test_mutated_files(tmp_path):
    assert 10 < read_mutated(tmp_path, 0, 200, 120.0) < 190


@pytest.mark.slow
@pytest.mark.long
def test_many_mutated_files(tmp_path):
    assert read_mutated(tmp_path, 200, 5000, 1200.0) > 200
