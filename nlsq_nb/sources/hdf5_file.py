"""An HDF5 file as a store: opened with distrust, read in place or into buffers, and watched."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.errors import DataError, SourceError
from nlsq_nb.sources.ahead import Rooms
from nlsq_nb.sources.hdf5_checks import ABSENT, BROKEN, find, misdeed, unfit
from nlsq_nb.sources.mapped import Lease, MappedFile

__all__ = ["Field", "HDF5Fields", "changed", "state_of"]

_MAP_FROM = 1 << 26  # bytes of a file that is worth a map
_NAMED = "; name the data sets by HDF5Source(path, x=…, y=…)"
_OURS = " (a file of your own may be read by HDF5Source(path, trusted=True))"
_CACHE = 1 << 24  # bytes of decompressed chunks that HDF5 keeps, at least two chunks


@dataclass(frozen=True, slots=True)
class Field:
    """A data set.

    Attributes
    ----------
    path : str
        Where it is in the file.
    shape : tuple of int
        Its shape.
    dtype : numpy.dtype
        As stored.
    offset : int or None
        Byte of the file at which its values begin, if they are in one piece and of NumPy's format.
    row_axis : int
        Which axis counts rows.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None
    row_axis: int = 0

    @property
    def width(self) -> int | None:
        """Its columns; None for one without an axis of their own."""
        return None if len(self.shape) == 1 else self.shape[1 - self.row_axis]


class HDF5Fields:
    """Data sets with a common number of rows; see `Store`.

    Parameters
    ----------
    path : str or Path
        The file.
    names : sequence of sequence of str
        For each data set its path, and paths that stand for it where there is none of that name.
    trusted : bool
        Whether links, other files, plug-ins and holes are allowed.

    Attributes
    ----------
    fields : tuple of Field
        As they were when first seen.
    n_rows : int
        Rows of all of them.

    Raises
    ------
    SourceError
        When the file cannot be read, or is not to be trusted.
    DataError
        When the shapes do not agree.
    """

    def __init__(self, path: str | Path, names: Sequence[Sequence[str]], trusted: bool) -> None:
        self.path = str(path)
        self._trusted = trusted
        self._file: Any = None
        self._sets: list[Any] = []
        self._map: MappedFile | None = None
        self._lease: Lease | None = None
        self._seen: tuple[int, ...] = ()
        self._lock = threading.Lock()
        self._names: Sequence[Sequence[str]] = names
        self.fields: tuple[Field, ...] = ()
        self.open()
        try:
            self.n_rows, self.fields = _along_rows(self.path, self.fields)
        except BaseException:
            self.close()
            raise

    @property
    def row_bytes(self) -> int:
        """Bytes of a row over all fields."""
        return sum(f.dtype.itemsize * (f.width or 1) for f in self.fields)

    @property
    def is_mapped(self) -> bool:
        """Whether rows are read in place."""
        return self._map is not None

    def open(self) -> None:
        """Open the file, which must be what it was before; see `Store.open`."""
        with self._lock:
            if self._file is None:
                try:
                    self._open()
                except BaseException:
                    self._let_go()
                    raise

    def _open(self) -> None:
        import h5py

        try:
            if not Path(self.path).is_file():  # a pipe would wait for ever
                raise SourceError(f"{self.path} does not exist or is not a file")
            self._file = h5py.File(self.path, "r", driver="sec2" if os.name == "posix" else None)
        except BROKEN as error:
            raise SourceError(f"cannot read {self.path} as HDF5: {error}") from None
        try:
            seen = self._state()
            if self._seen and seen != self._seen:
                raise changed(self.path)
            with Path(self.path).open("rb") as raw:
                found = tuple(self._data_set(names, seen[2], raw) for names in self._names)
        except BROKEN as error:
            raise SourceError(f"cannot read {self.path} as HDF5: {error}") from None
        self._seen = seen
        self.fields = self.fields or found
        self._begin_map(seen[2])

    def _data_set(self, names: Sequence[str], file_bytes: int, raw: Any) -> Field:
        import h5py

        missing = []
        for name in names:
            if self._trusted:
                item = self._file.get(name)
                reason = "" if isinstance(item, h5py.Dataset) else f"/{name.strip('/')} {ABSENT}"
            else:
                item, reason = find(self._file, name, raw)
            missing.append(reason)
            if not reason.endswith(ABSENT):
                break
        if reason:
            hint = _NAMED if reason.endswith((ABSENT, "is not a data set")) else _OURS
            raise SourceError(f"{self.path}: {'; '.join(missing)}{hint}")
        if self._trusted:
            reason = "" if item.dtype.kind in "fiub" else unfit(item)
        else:
            reason = unfit(item) or misdeed(item, file_bytes)
        if reason:
            hint = "" if self._trusted or item.dtype.kind not in "fiub" else _OURS
            raise SourceError(f"{self.path}: data set {item.name} is refused: {reason}{hint}")
        item = _with_cache(item)
        self._sets.append(item)
        own = state_of(item.file.id.get_vfd_handle()) == self._state()  # a trusted link may lead elsewhere
        return Field(name, item.shape or (), item.dtype, _offset(item) if own else None)

    def _begin_map(self, size: int) -> None:
        """Read what is in one piece without HDF5; in place if faults of that are errors on this system."""
        if all(f.offset is None for f in self.fields) or not hasattr(os, "preadv"):
            return
        try:
            self._lease = Lease(self.path)
            if state_of(self._lease.fd) != self._seen:
                self._end_map()
            elif size >= _MAP_FROM and self._lease.take():
                self._map = MappedFile(self._lease.fd)
        except (OSError, ValueError):
            self._map = None
        self.rest()

    def _end_map(self) -> None:
        lease, self._lease, self._map = self._lease, None, None
        if lease is not None:
            lease.close()

    def block(
        self, field: int, lo: int, hi: int, rooms: Rooms, *, in_place: bool = False
    ) -> NDArray[Any]:
        """Some rows of a data set; see `Store.block`."""
        of, held, lease = self.fields[field], self._map, self._lease
        # without the lease somebody is writing, or waits to: then by reading
        if in_place and of.offset is not None and held is not None and lease is not None and lease.take():
            for start, length in _pieces(of, lo, hi):
                held.load(start, length)
            whole = held.array(of.shape, of.dtype, of.offset)
            return whole[lo:hi] if of.row_axis == 0 else whole[:, lo:hi].T
        return self._copied(field, lo, hi, rooms)

    def _copied(self, field: int, lo: int, hi: int, rooms: Rooms) -> NDArray[Any]:
        of, count = self.fields[field], hi - lo
        room = rooms.get(field)
        if room is None or room.shape[of.row_axis] < count:
            shape = list(of.shape)
            shape[of.row_axis] = count
            room = rooms[field] = np.empty(shape, of.dtype)
        ahead, lease = (slice(None),) * of.row_axis, self._lease
        target = (*ahead, slice(0, count))
        try:
            if of.offset is not None and lease is not None:
                lines = room[target] if of.row_axis else room[None, :count]
                for line, (start, _) in zip(lines, _pieces(of, lo, hi), strict=True):
                    _read_into(lease.fd, line, start)
            else:
                self._sets[field].read_direct(room, (*ahead, slice(lo, hi)), target)
        except BROKEN as error:
            raise OSError(f"{self.path}, data set {of.path}: {error}") from error
        return room[target] if of.row_axis == 0 else room[target].T

    def check(self) -> None:
        """Compare the file with what it was when it was opened; see `Store.check`."""
        try:
            same = self._state() == self._seen
        except ValueError as error:  # of h5py, when the file is closed
            raise OSError(f"{self.path}: {error}") from error
        if not same:
            raise changed(self.path)

    def drop(self, lo: int, hi: int) -> None:
        """See `Store.drop`."""
        held = self._map
        if held is None:
            return
        for of in self.fields:
            if of.offset is not None:
                for start, length in _pieces(of, lo, hi):
                    held.drop(start, length)

    def rest(self) -> None:
        """Let writers go on between passes; see `Store.rest`."""
        lease = self._lease
        if lease is not None:
            lease.release()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        self._end_map()
        self._sets.clear()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _state(self) -> tuple[int, ...]:
        lease = self._lease  # open on the same file; asking HDF5 takes ten times as long
        return state_of(self._file.id.get_vfd_handle() if lease is None else lease.fd)


def changed(path: str) -> SourceError:
    """The error for a file that is not what it was.

    Parameters
    ----------
    path : str
        Its path.

    Returns
    -------
    SourceError
        To be raised.
    """
    return SourceError(f"{path} was changed while it was being fitted; fit a copy, or when nobody writes to it")


def state_of(file: int | str) -> tuple[int, ...]:
    """What changes when somebody writes to a file or puts another in its place.

    Parameters
    ----------
    file : int or str
        A descriptor, or a path.

    Returns
    -------
    tuple of int
        Device, inode, size, and time of the last change in ns.

    Raises
    ------
    OSError
        When there is none.
    """
    now = os.stat(file)  # noqa: PTH116 - pathlib knows no descriptors
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _along_rows(path: str, fields: Sequence[Field]) -> tuple[int, tuple[Field, ...]]:
    """The number of rows, that of data sets with one axis, else the longest axis; and fields along them."""
    for field in fields:
        if len(field.shape) not in {1, 2} or not all(field.shape):
            raise DataError(f"{path}: data set {field.path} has shape {field.shape}; (n,) or (n, k) is needed")
    single = [field.shape[0] for field in fields if len(field.shape) == 1]
    rows = single[0] if single else max(fields[-1].shape)
    for field in fields:
        if rows not in field.shape:
            raise DataError(f"{path}: data set {field.path} has shape {field.shape}, others have {rows} rows")
    # of (n, n) the rows are along the last axis, as for arrays
    axes = [len(field.shape) - 1 - field.shape[::-1].index(rows) for field in fields]
    return rows, tuple(replace(field, row_axis=axis) for field, axis in zip(fields, axes, strict=True))


def _with_cache(item: Any) -> Any:
    """The data set with room for the chunks that a read touches: each is decompressed once."""
    import h5py

    if item.chunks is None:
        return item
    size = int(np.prod(item.chunks)) * item.dtype.itemsize
    file, name, access = item.file, item.name, h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(1009, max(_CACHE, 2 * size), 1.0)
    del item
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def _offset(item: Any) -> int | None:
    """Where values in one piece begin, if NumPy reads them as they are."""
    import h5py

    plain = item.id.get_type().equal(h5py.h5t.py_create(item.dtype))
    if item.external or item.is_virtual or not plain:
        return None
    offset = item.id.get_offset()
    return None if offset is None else int(offset)


def _read_into(fd: int, out: NDArray[Any], start: int) -> None:
    """Fill a contiguous array from a file."""
    left = memoryview(out.view(np.uint8).reshape(-1).data)
    while left:
        count = os.preadv(fd, [left], start)
        if not count:
            raise OSError("the file ends too early")
        left, start = left[count:], start + count


def _pieces(of: Field, lo: int, hi: int) -> list[tuple[int, int]]:
    """Offset and length of the bytes of some rows."""
    assert of.offset is not None
    size = of.dtype.itemsize
    if of.row_axis == 0:
        row = size * (of.width or 1)
        return [(of.offset + lo * row, (hi - lo) * row)]
    line = of.shape[1] * size
    return [(of.offset + k * line + lo * size, (hi - lo) * size) for k in range(of.shape[0])]
