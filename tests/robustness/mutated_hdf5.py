"""Reads mutated HDF5 files, in a process of its own: `mutated_hdf5.py FOLDER FIRST COUNT`.

Prints one line per file before it is read, so that the parent knows which one ended the process. FOLDER/decoys
holds files that the seeds point at by links, external storage and virtual data sets; opening one is a fault.
"""

import ctypes
import faulthandler
import os
import sys
from pathlib import Path

import h5py
import numpy as np

from nlsq_nb.errors import NlsqError
from nlsq_nb.sources.hdf5 import HDF5Source
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.rows import Reading

N = 600
OPENED = 0x20  # IN_OPEN
LIMIT = 30.0  # seconds for one file


def decoys(folder):
    folder.mkdir()
    with h5py.File(folder / "other.h5", "w") as file:
        file["x"] = np.arange(float(N))
    (folder / "raw.bin").write_bytes(bytes(8 * N))


def seeds(folder):  # noqa: C901 - one function per layout
    """Small files of every layout, some of which point outside."""
    x = np.linspace(0.0, 4.0, N)
    away = folder / "decoys"

    def contiguous(file):
        file["data/x"], file["data/y"] = x, np.exp(-x)

    def chunked(file):
        file.create_dataset("x", data=x, chunks=(64,), maxshape=(None,))
        file.create_dataset("y", data=np.exp(-x), chunks=(100,), compression="gzip", shuffle=True, fletcher32=True)

    def grouped(file):
        for k in range(20):
            file.create_group(f"data/g{k}/deep").attrs["note"] = "x" * k
        file["data/x"] = np.stack([x, x], axis=1).astype(np.float32)
        file.create_dataset("data/y", data=x.astype(np.int16), compression="lzf", chunks=(50,))

    def linked(file):
        file["data/x"] = h5py.ExternalLink(str(away / "other.h5"), "/x")
        file["data/y"] = h5py.SoftLink("/data/x")

    def external(file):
        file["y"] = x
        file.create_dataset("x", (N,), "f8", external=[(str(away / "raw.bin"), 0, 8 * N)])

    def virtual(file):
        layout = h5py.VirtualLayout((N,), "f8")
        layout[:] = h5py.VirtualSource(str(away / "other.h5"), "x", shape=(N,))
        file.create_virtual_dataset("x", layout)
        file["y"] = x

    def mixed(file):
        contiguous(file)
        linked_to = file.create_group("links")
        linked_to["a"] = h5py.ExternalLink(str(away / "other.h5"), "/x")
        file.create_dataset("raw", (N,), "f8", external=[(str(away / "raw.bin"), 0, 8 * N)])

    found = []
    for write in (contiguous, chunked, grouped, linked, external, virtual, mixed):
        for version in ("earliest", "latest"):
            path = folder / f"{write.__name__}-{version}.h5"
            with h5py.File(path, "w", libver=version) as file:
                write(file)
            found.append(path.read_bytes())
    return found


def mutated(original, rng):
    """Bytes flipped, set, copied, cut off; mostly where HDF5 keeps its structures."""
    data = bytearray(original)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(len(data)) if rng.random() < 0.4 else rng.integers(min(4096, len(data))))
        kind = rng.integers(6)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            width = int(rng.choice([2, 4, 8]))
            value = int(rng.choice([0, 1, 2**15, 2**31 - 1, 2**62, 2**63 - 1])) % 2 ** (8 * width)
            data[at : at + width] = value.to_bytes(width, "little")
        elif kind == 3:
            length = int(rng.integers(1, 64))
            source = int(rng.integers(len(data)))
            data[at : at + length] = data[source : source + length]
        elif kind == 4:
            data[at : at + 8] = int(rng.integers(len(data))).to_bytes(8, "little")
        elif rng.random() < 0.3:
            del data[max(at, 100) :]
    return bytes(data)


def watch(folder):
    """A descriptor that is told of every file opened in the folder; None where there is no inotify."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(fd, str(folder).encode(), OPENED)
    except (OSError, AttributeError):
        return None
    return fd


def opened(fd):
    try:
        return fd is not None and bool(os.read(fd, 4096))
    except BlockingIOError:
        return False


def attempt(path):
    """Read all of a file as a fit does."""
    source = HDF5Source(path)
    source.first()
    found = source.open(Reading(("x",), chunk_rows=1, resident="loop"))
    try:
        for chunk in RetryingSource(found).chunks():
            assert chunk.n_rows <= 4096
    finally:
        found.close()


def main():
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    decoys(folder / "decoys")
    originals = seeds(folder)
    fd = watch(folder / "decoys")
    os.open(folder / "decoys" / "raw.bin", os.O_RDONLY)
    assert fd is None or opened(fd), "the watch does not see what it should"
    path, read = folder / "mutated.h5", 0
    for number in range(first, first + count):
        rng = np.random.default_rng([7, number])
        path.write_bytes(mutated(originals[number % len(originals)], rng))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        try:
            attempt(path)
            read += 1
        except NlsqError:
            pass
        faulthandler.cancel_dump_traceback_later()
        assert not opened(fd), f"file {number} had a file outside opened"
    sys.stdout.write(f"read {read}\n")


if __name__ == "__main__":
    main()
