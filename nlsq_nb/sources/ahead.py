"""Rows of a store that any can be read of, the next chunk while one is in use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.sources.rows import Buffers, RowFormat

__all__ = ["AheadReader", "Column", "Rooms", "Store", "StoredRows"]

Floats = NDArray[np.float64]
Column = tuple[int, int | None]
"""A field of a store, and which of its columns; None where it has one."""
Rooms = dict[int, NDArray[Any]]
"""Buffers by field, made and filled by a store that cannot show its rows in place."""


class Store(Protocol):
    """Fields of numbers outside the memory, any rows of which can be read."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    def open(self) -> None:
        """Be ready to read; nothing if it is."""

    def block(
        self, field: int, lo: int, hi: int, rooms: Rooms, *, in_place: bool = False
    ) -> NDArray[Any]:
        """Some rows of a field, (rows,) or (rows, k), any real dtype; raises OSError.

        They may be shown where they are if they are not kept beyond `drop` and `rest`.
        """

    def check(self) -> None:
        """Raise a SourceError when the rows are not what they were."""

    def drop(self, lo: int, hi: int) -> None:
        """These rows are not needed for now."""

    def rest(self) -> None:
        """A pass is over."""

    def close(self) -> None:
        """Let go of files."""


class StoredRows:
    """The rows of a store, with the thread that reads ahead; see `Rows`.

    Parameters
    ----------
    store : Store
        Where they are.
    columns : sequence of (int, int or None)
        Where each column of the row format is.
    n_omitted : int
        Rows that did not get into the store.
    """

    def __init__(self, store: Store, columns: Sequence[Column], n_omitted: int = 0) -> None:
        self.store = store
        self.columns = tuple(columns)
        self.n_omitted = n_omitted
        self._thread: ThreadPoolExecutor | None = None
        self._passes = 0
        self._lock = threading.Lock()

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.store.n_rows

    def reader(self, form: RowFormat, step: int, groups: Floats | None) -> AheadReader:
        """Begin a pass; see `Rows.reader`."""
        self.store.open()
        return AheadReader(self, form, min(step, self.n_rows), groups)

    def columns_at(
        self, lo: int, hi: int, rooms: Rooms, *, in_place: bool = False
    ) -> tuple[NDArray[Any], ...]:
        """Some rows of every column.

        Parameters
        ----------
        lo, hi : int
            First row and one past the last.
        rooms : dict
            Buffers of the caller.
        in_place : bool
            See `Store.block`.

        Returns
        -------
        tuple of ndarray
            Any real dtype, in place or in those buffers.

        Raises
        ------
        OSError
            When they cannot be read.
        SourceError
            When they are not what they were.
        """
        store, blocks = self.store, {}
        try:
            for field in dict.fromkeys(field for field, _ in self.columns):
                blocks[field] = store.block(field, lo, hi, rooms, in_place=in_place)
        except OSError:
            store.check()  # a file that has shrunk is not worth another attempt
            raise
        store.check()
        return tuple(blocks[f] if k is None else blocks[f][:, k] for f, k in self.columns)

    def verify(self) -> None:
        """Raise a SourceError when the rows are not what they were; see `Rows.verify`."""
        self.store.open()
        self.store.check()

    def begin(self) -> None:
        """A pass reads its first rows."""
        with self._lock:
            self._passes += 1

    def rest(self) -> None:
        """A pass is over; the store may rest when no other one is under way."""
        with self._lock:
            self._passes -= 1
            if not self._passes:
                self.store.rest()

    def read_ahead(self, fill: Callable[[int, int], Chunk], lo: int, hi: int) -> Future[Chunk]:
        """Have some rows read by the thread that does it for all passes."""
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="nlsq_nb-read")
            thread = self._thread
        try:
            return thread.submit(fill, lo, hi)
        except KeyboardInterrupt:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Begin another thread for what is read next: Ctrl-C may have left a lock of this one locked."""
        self._thread = None

    def close(self) -> None:
        """End the thread, close the store; a later pass begins them anew."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)
        self.store.close()


class AheadReader:
    """One pass over stored rows: one chunk is in use while the next is read into the other buffers.

    Parameters
    ----------
    rows : StoredRows
        All of them.
    form : RowFormat
        What their columns are.
    step : int
        Rows per chunk.
    groups : ndarray or None
        Group weights of this pass.
    """

    def __init__(self, rows: StoredRows, form: RowFormat, step: int, groups: Floats | None) -> None:
        self._all = rows
        self._form = form
        self._step = step
        self._groups = groups
        self._in_place = rows.n_rows > step  # a single chunk may be kept for many passes
        self._sides: list[tuple[Buffers, Rooms]] = [(Buffers(step, form.dtype), {}) for _ in range(2)]
        self._side = 0
        self._ahead: tuple[int, Future[Chunk]] | None = None
        self._shown: tuple[int, int] | None = None
        self._past: tuple[int, int] | None = None  # rows to be dropped; the thread does that too
        self._end = rows.n_rows
        self._begun = False

    def limit(self, stop: int) -> None:
        """Read nothing ahead from chunk `stop` on."""
        self._end = min(stop * self._step, self._all.n_rows)

    def rows(self, k: int) -> tuple[int, int]:
        """First row of chunk k and one past its last."""
        return k * self._step, min((k + 1) * self._step, self._all.n_rows)

    def read(self, k: int) -> Chunk:
        """Chunk k, valid until the next one is read."""
        if not self._begun:
            self._all.begin()
            self._begun = True
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != k:
            _settle(ahead)
            self._forget()
            ahead = self._begun_at(k)  # not here: h5py loses a Ctrl-C that strikes in what it calls
        try:
            chunk = ahead[1].result()
        except KeyboardInterrupt:
            self._all.abandon()
            raise
        self._past, self._shown = self._shown, self.rows(k)
        if self._shown[1] < self._end:
            self._ahead = self._begun_at(k + 1)
        return chunk

    def _begun_at(self, k: int) -> tuple[int, Future[Chunk]]:
        """Chunk k, which is being read."""
        return k, self._all.read_ahead(partial(self._fill, in_place=self._in_place), *self.rows(k))

    def read_rows(self, lo: int, hi: int) -> Chunk:
        """Some rows, no more than a chunk has; valid until others are read."""
        ahead, self._ahead = self._ahead, None
        _settle(ahead)
        self._forget()
        return self._fill(lo, hi, in_place=False)  # each run would leave a folio of the page cache mapped

    def release(self) -> None:
        """Nothing: two chunks are all that is held, and both are in use."""

    def close(self) -> None:
        """The pass is over, or given up."""
        ahead, self._ahead = self._ahead, None
        _settle(ahead)
        self._forget()
        if ahead is not None:
            self._all.store.drop(*self.rows(ahead[0]))
        if self._begun:
            self._begun = False
            self._all.rest()

    def _forget(self) -> None:
        self._drop_past()
        self._past, self._shown = self._shown, None
        self._drop_past()

    def _drop_past(self) -> None:
        past, self._past = self._past, None
        if past is not None:
            self._all.store.drop(*past)

    def _fill(self, lo: int, hi: int, *, in_place: bool) -> Chunk:
        """Read rows into the side that is not in use; runs in the thread, and here for a few rows, in turn."""
        self._drop_past()
        self._side = 1 - self._side
        buffers, rooms = self._sides[self._side]
        columns = self._all.columns_at(lo, hi, rooms, in_place=in_place)
        return self._form.chunk(lo, columns, self._groups, buffers)


def _settle(ahead: tuple[int, Future[Chunk]] | None) -> None:
    """Wait for what is read ahead in vain: its buffers are needed."""
    if ahead is not None and not ahead[1].cancel():
        ahead[1].exception()
