"""Every source keeps what `SourceTests` asks for."""

import fcntl

import h5py
import numpy as np
import pytest

from nlsq_nb.sources import hdf5_file, mapped, spool
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.hdf5 import HDF5Source
from nlsq_nb.sources.iterated import FreshIterators, OneIterator
from nlsq_nb.sources.rows import Reading
from nlsq_nb.testing import SourceTests

NAMES = ("x", "t")
TAKE = mapped.Lease.take


def reading(chunk_rows):
    return Reading(NAMES, chunk_rows=chunk_rows, resident="loop")


def cut(x, y, sigma, rows=7_001):
    """Batches of that many rows, one of none among them."""
    for lo in range(0, len(y), rows):
        part = slice(lo, lo + rows)
        yield (np.stack([c[part] for c in x], axis=1), y[part], *([] if sigma is None else [sigma[part]]))
        yield (np.empty((0, 2)), np.empty(0), *([] if sigma is None else [np.empty(0)]))


class TestArrays(SourceTests):
    def source(self, x, y, sigma, chunk_rows):
        return ArraySource(x, y, sigma, variables=NAMES, chunk_rows=chunk_rows, resident="loop")


class InFolder(SourceTests):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        self.path = tmp_path / "rows.h5"
        self.monkeypatch = monkeypatch


class TestMappedArrays(InFolder):
    def source(self, x, y, sigma, chunk_rows):
        def mapped(column, name):
            np.save(self.path.with_name(name), column)
            return np.load(self.path.with_name(name), mmap_mode="r")

        columns = tuple(mapped(c, f"{k}.npy") for k, c in enumerate((*x, y)))
        spread = None if sigma is None else mapped(sigma, "sigma.npy")
        return ArraySource(columns[:2], columns[2], spread, variables=NAMES, chunk_rows=chunk_rows, resident="loop")


class HDF5(InFolder):
    """A layout writes the columns and says where they are."""

    def write(self, file, x, y, sigma):
        raise NotImplementedError

    def source(self, x, y, sigma, chunk_rows):
        with h5py.File(self.path, "w") as file:
            names = self.write(file, x, y, sigma)
        if sigma is None:
            names.pop("sigma", None)
        return HDF5Source(self.path, **names).open(reading(chunk_rows))


class TestHDF5(HDF5):
    def write(self, file, x, y, sigma):
        file["data/x"] = np.stack(x, axis=1)
        file["data/y"] = y
        if sigma is not None:
            file["data/sigma"] = sigma
        return {"sigma": "/data/sigma"}


class TestHDF5InPlace(HDF5):
    """One data set per column, in one piece, which is read where it lies."""

    def write(self, file, x, y, sigma):
        self.monkeypatch.setattr(hdf5_file, "_MAP_FROM", 0)
        file["x"], file["t"], file["y"] = *x, y
        if sigma is not None:
            file["sigma"] = sigma
        return {"x": ("x", "t"), "sigma": "sigma"}

    def source(self, x, y, sigma, chunk_rows):
        found = super().source(x, y, sigma, chunk_rows)
        assert found._rows.store.is_mapped or not hasattr(fcntl, "F_SETLEASE")
        return found


class TestHDF5AsSciPyHasIt(TestHDF5InPlace):
    def write(self, file, x, y, sigma):
        names = super().write(file, x, y, sigma)
        file["both"] = np.stack(x)
        return names | {"x": "both"}


class TestHDF5WithoutLease(TestHDF5InPlace):
    """Somebody opens the file for writing while it is read in place."""

    def source(self, x, y, sigma, chunk_rows):
        self.monkeypatch.setattr(mapped.Lease, "take", TAKE)
        found = super().source(x, y, sigma, chunk_rows)
        self.monkeypatch.setattr(mapped.Lease, "take", lambda lease: False)
        return found


class TestHDF5Compressed(HDF5):
    def write(self, file, x, y, sigma):
        how = {"chunks": (5_003,), "compression": "gzip", "compression_opts": 1, "shuffle": True}
        file.create_dataset("data/x", data=np.stack(x, axis=1), chunks=(1_009, 1), compression="lzf")
        file.create_dataset("y", data=y, fletcher32=True, **how)
        if sigma is not None:
            file.create_dataset("sigma", data=sigma, **how)
        return {"sigma": "sigma"}


class TestHDF5BigEndian(HDF5):
    def write(self, file, x, y, sigma):
        file.create_dataset("data/x", data=np.stack(x, axis=1), dtype=">f8")
        file.create_dataset("data/y", data=y, dtype=">f8", chunks=(50_000,))
        if sigma is not None:
            file.create_dataset("data/sigma", data=sigma, dtype=">f8")
        return {"sigma": "data/sigma"}


class TestSpooled(SourceTests):
    def source(self, x, y, sigma, chunk_rows):
        return OneIterator(cut(x, y, sigma)).open(reading(chunk_rows))


class TestSpooledWithoutMap(InFolder):
    def source(self, x, y, sigma, chunk_rows):
        def refused(fd):
            raise OSError("no maps here")

        self.monkeypatch.setattr(spool, "MappedFile", refused)
        return OneIterator(cut(x, y, sigma)).open(reading(chunk_rows))


class TestFreshIterators(SourceTests):
    def source(self, x, y, sigma, chunk_rows):
        return FreshIterators(lambda: cut(x, y, sigma)).open(reading(chunk_rows))


class TestBatchesByName(SourceTests):
    def source(self, x, y, sigma, chunk_rows):
        def batches():
            for (both, *rest) in cut(x, y, sigma, 30_000):
                yield ({"t": both[:, 1], "x": both[:, 0], "other": both[:, 0]}, *rest)

        return FreshIterators(batches).open(reading(chunk_rows))


class TestWithoutReader(SourceTests):
    """A source of somebody else's, with what the protocol asks for and no more."""

    def source(self, x, y, sigma, chunk_rows):
        inner = ArraySource(x, y, sigma, variables=NAMES, chunk_rows=chunk_rows, resident="loop")

        class Plain:
            n_rows, n_chunks, dtype, revision = inner.n_rows, inner.n_chunks, inner.dtype, 0
            chunks = inner.chunks

        return Plain()
