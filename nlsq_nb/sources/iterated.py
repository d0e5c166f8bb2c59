"""Rows from iterators: a function that begins a fresh one for every pass, or one that can be read once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.columns import ALL_OMITTED
from nlsq_nb.errors import DataError, SourceError
from nlsq_nb.sources.ahead import StoredRows
from nlsq_nb.sources.batches import BatchReader, first_row
from nlsq_nb.sources.rows import Buffers, Reading, RowFormat, in_frames
from nlsq_nb.sources.spool import Spool
from nlsq_nb.sources.stream import StreamSource, chunk_length

__all__ = ["FreshIterators", "OneIterator"]

Floats = NDArray[np.float64]
Arrays = tuple[NDArray[Any], ...]
_CHUNK = 1 << 24  # bytes of a chunk
_BEGUN = 3  # times that a function is called for its first row, before a fit has options
_EVERY = 64  # rows, one of which goes into the fingerprint of a chunk


class OneIterator:
    """An iterator of batches, whose rows go to a temporary file when the fit begins.

    Parameters
    ----------
    batches : iterator of tuple
        (x, y) or (x, y, sigma).
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._first: list[Any] = []

    def first(self) -> Any:
        """The x of the first row; see `first_row`."""
        if not self._first:
            try:
                self._first = _one(self._batches)
            except OSError as error:
                raise _unreadable(error) from error
        return first_row(self._first[0])

    def open(self, reading: Reading) -> StreamSource:
        """Read all batches into a temporary file.

        Parameters
        ----------
        reading : Reading
            What the fit asks for.

        Returns
        -------
        StreamSource
            Over that file, which is gone when the source is closed.

        Raises
        ------
        DataError
            For a batch that cannot be used.
        SourceError
            When the iterator fails, or the file has no room.
        """
        with _ended(self._batches):
            self.first()
            reader = BatchReader(reading, self._first[0])
            form = reader.form
            omitted: list[int] = []
            step = chunk_length(reading, sum(d.itemsize for d in form.dtypes), _CHUNK)
            spool = Spool(form.dtypes, step)
            batches, self._first = chain(self._first, self._batches), []
            try:
                spool.write(reading.told(reader.columns(batches, omitted)))
            except OSError as error:
                raise SourceError(
                    f"the iterator failed after {spool.n_rows} or more rows, and it can be read only once: {error}"
                ) from error
        if not spool.n_rows:
            spool.close()
            raise _empty(sum(omitted))
        columns = [(k, None) for k in range(len(form.dtypes))]
        return StreamSource(StoredRows(spool, columns, sum(omitted)), form, step, reading)


class FreshIterators:
    """A function that returns an iterator of the same batches at every call.

    Parameters
    ----------
    begin : callable
        Without arguments.
    """

    def __init__(self, begin: Callable[[], Iterable[Any]]) -> None:
        self._begin = begin

    def first(self) -> Any:
        """The x of the first row; see `first_row`."""
        return first_row(self._first())

    def open(self, reading: Reading) -> StreamSource:
        """Count the rows in one pass, after which every other one must give the same.

        Parameters
        ----------
        reading : Reading
            What the fit asks for.

        Returns
        -------
        StreamSource
            Over iterators.

        Raises
        ------
        DataError
            For a batch that cannot be used.
        SourceError
            When an iterator fails.
        """
        reader = BatchReader(reading, self._first())
        step = chunk_length(reading, sum(d.itemsize for d in reader.form.dtypes), _CHUNK)
        begin = partial(self._columns, reader)
        rows = IteratedRows(begin, reader.form, step, reading)
        return StreamSource(rows, reader.form, step, reading)

    def _columns(self, reader: BatchReader, omitted: list[int] | None) -> Iterator[Arrays]:
        batches = _iterator(self._begin)
        with _ended(batches):
            yield from reader.columns(batches, omitted)

    def _first(self) -> Any:
        for _ in range(_BEGUN):
            try:
                batches = _iterator(self._begin)
                with _ended(batches):
                    return _one(batches)[0]
            except OSError as error:
                fault = error
        raise _unreadable(fault) from fault


class IteratedRows:
    """The rows of iterators; see `Rows`.

    Parameters
    ----------
    begin : callable
        Gives a fresh iterator of columns; takes a list for the rows that are left out of each
        piece, or None.
    form : RowFormat
        What the columns are.
    step : int
        Rows per chunk.
    reading : Reading
        How often counting them is begun anew, and who hears of it.
    end : callable, optional
        Lets go of what the iterators read.

    Attributes
    ----------
    n_rows, n_omitted : int
        Rows there are, and rows left out since a value is not finite.
    """

    n_rows: int
    n_omitted: int

    def __init__(
        self,
        begin: Callable[[list[int] | None], Iterator[Arrays]],
        form: RowFormat,
        step: int,
        reading: Reading,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._begin = begin
        self._form = form
        self._step = step
        self._end = end
        try:
            self._count_with(reading)
        except BaseException:
            end()
            raise

    def _count_with(self, reading: Reading) -> None:
        for attempt in range(reading.retries + 1):
            try:
                self._count(reading)
            except OSError as error:
                if attempt == reading.retries:
                    raise _unreadable(error) from error
            else:
                break
        if not self.n_rows:
            raise _empty(self.n_omitted)

    def _count(self, reading: Reading) -> None:
        """One pass that remembers what every later one must give."""
        omitted: list[int] = []
        self.n_rows, self._marks = 0, []
        with closing(self.parts(omitted)) as parts:
            for columns in reading.told(parts):
                self.n_rows += len(columns[0])
                self._marks.append(_mark(columns))
        self.n_omitted = sum(omitted)

    def reader(self, form: RowFormat, step: int, groups: Floats | None) -> IteratedReader:
        """Begin a pass; see `Rows.reader`."""
        return IteratedReader(self, form, step, groups)

    def close(self) -> None:
        """See `Rows.close`; an iterator ends with its pass."""
        self._end()

    def verify(self) -> None:
        """See `Rows.verify`; they are compared as they are read."""

    def check(self, k: int, columns: Arrays) -> None:
        """Compare a chunk with that of the first pass.

        Parameters
        ----------
        k : int
            Its number.
        columns : tuple of ndarray
            Its columns.

        Raises
        ------
        SourceError
            When they differ.
        """
        if k >= len(self._marks) or _mark(columns) != self._marks[k]:
            raise SourceError(
                f"chunk {k} is not the same as in the first pass: the function must return an iterator of "
                "the same batches at every call (a random generator needs a fixed seed in it)"
            )

    def parts(self, omitted: list[int] | None = None) -> Generator[Arrays, None, None]:
        """The rows in pieces of a chunk, from a fresh iterator, in buffers that the next piece reuses.

        Parameters
        ----------
        omitted : list of int, optional
            Receives how many rows of each batch were left out.

        Yields
        ------
        tuple of ndarray
            Columns.
        """
        columns = self._begin(omitted)
        with _ended(columns):
            yield from in_frames(columns, self._form.dtypes, self._step)


class IteratedReader:
    """One pass over iterators; going back begins a fresh one.

    Parameters
    ----------
    rows : IteratedRows
        All of them.
    form : RowFormat
        What their columns are.
    step : int
        Rows per chunk.
    groups : ndarray or None
        Group weights of this pass.
    """

    can_skip = False
    """An iterator that has failed does not go on behind the fault."""

    def __init__(self, rows: IteratedRows, form: RowFormat, step: int, groups: Floats | None) -> None:
        self._all = rows
        self._form = form
        self._step = step
        self._groups = groups
        self._buffers = Buffers(step, form.dtype)
        self._parts: Generator[Arrays, None, None] | None = None
        self._next = 0  # chunk that they give next

    def rows(self, k: int) -> tuple[int, int]:
        """First row of chunk k and one past its last."""
        return k * self._step, min((k + 1) * self._step, self._all.n_rows)

    def read(self, k: int) -> Chunk:
        """Chunk k, valid until the next one is read."""
        if self._parts is None or k < self._next:
            self.close()
            self._parts, self._next = self._all.parts(), 0
        try:
            while True:
                columns = next(self._parts)
                self._all.check(self._next, columns)
                self._next += 1
                if self._next > k:
                    break
            lo, hi = self.rows(k)
            if hi == self._all.n_rows and next(self._parts, None) is not None:
                self._all.check(k + 1, columns)
        except StopIteration:
            self._all.check(k, ())
        except OSError:
            self._parts = None
            raise
        return self._form.chunk(lo, columns, self._groups, self._buffers)

    def release(self) -> None:
        """Nothing: one chunk is all that is held."""

    def close(self) -> None:
        """End the iterator."""
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()


def _mark(columns: Arrays) -> tuple[int, int]:
    """Rows of a chunk, and a checksum of some of them: enough to tell other random numbers."""
    mark = 0
    for column in columns:
        mark = zlib.crc32(column[::_EVERY].tobytes(), mark)
    return len(columns[0]) if columns else 0, mark


def _iterator(begin: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    batches = begin()
    try:
        return iter(batches)
    except TypeError:
        raise SourceError(
            f"the data source is a function that returned a {type(batches).__name__}; it must return an "
            "iterator of batches (x, y) or (x, y, sigma)"
        ) from None


def _one(batches: Iterator[Any]) -> list[Any]:
    """The first batch that has rows."""
    for batch in batches:
        if np.size(batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else 1):
            return [batch]
    raise _empty(0)


@contextmanager
def _ended(batches: Any) -> Iterator[None]:
    """End a generator in any case, so that what it holds open is let go."""
    try:
        yield
    finally:
        end = getattr(batches, "close", None)
        if end is not None:
            end()


def _unreadable(error: OSError) -> SourceError:
    return SourceError(f"the iterator of the data source failed: {error}")


def _empty(omitted: int) -> DataError:
    if omitted:
        return DataError(ALL_OMITTED)
    return DataError("the iterator gave no rows; one that was read before has to be made anew")
