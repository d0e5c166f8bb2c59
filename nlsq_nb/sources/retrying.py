"""Reading faults: a source that tries again, and leaves out what cannot be read if that is allowed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.errors import SourceError
from nlsq_nb.protocols import Source
from nlsq_nb.sources.rows import PERIOD

__all__ = ["Progress", "Reader", "RetryingSource", "close"]

Progress = Callable[[int, int, float], None]

_log = logging.getLogger("nlsq_nb.sources")


class Reader(Protocol):
    """One pass over a source, any chunk of which can be read again; what `source.reader()` gives."""

    def rows(self, k: int) -> tuple[int, int]:
        """First row of chunk k and one past its last."""

    def read(self, k: int) -> Chunk:
        """Chunk k, valid until the next one is read; raises OSError when that fails."""

    def release(self) -> None:
        """Let read buffers go."""


class RetryingSource:
    """The rows of another source, with reading faults dealt with.

    A source whose chunks can be read again has a method `reader()`, which begins a pass (`Reader`);
    the chunks of others are read once, and a fault ends the fit. A reader may have `read_rows(lo, hi)` to
    read rows within a chunk, `can_skip = False` when nothing can be read behind a fault, and `close()` to
    be told that the pass is over. A source with a method `held()` gives all chunks at once where it has them.

    Parameters
    ----------
    source : Source
        The rows.
    retries : int
        How often a chunk is read again after an OSError.
    min_success : float
        Share of the chunks that must be readable. Below 1, a chunk that stays unreadable is left
        out of this and every later pass.
    release_every : int
        Chunks between releases of the read buffers.

    Attributes
    ----------
    inner : Source
        The other source.
    on_progress : callable or None
        `on_progress(rows_done, n_rows, seconds)` is called once a second in passes that take longer.
    left_out : list of (int, (int, int))
        Chunks that are left out, each with its first row and one past its last.
    """

    def __init__(
        self,
        source: Source,
        *,
        retries: int = 0,
        min_success: float = 1.0,
        release_every: int = 10,
    ) -> None:
        self.inner = source
        self.on_progress: Progress | None = None
        self._reader: Callable[[], Reader] | None = getattr(source, "reader", None)
        self._held: Callable[[], Sequence[Chunk] | None] | None = getattr(source, "held", None)
        self._retries = retries
        self._min_success = min_success
        self._release_every = release_every
        self.left_out: list[tuple[int, tuple[int, int]]] = []
        self._users, self._lock = 0, threading.Lock()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """For who reads a finished fit's rows again; what was opened is closed behind the last one, in any thread."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self.close()

    @property
    def n_rows(self) -> int:
        """Number of rows, those that are left out included."""
        return self.inner.n_rows

    @property
    def n_chunks(self) -> int:
        """Number of chunks, those that are left out included."""
        return self.inner.n_chunks

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored columns."""
        return self.inner.dtype

    @property
    def revision(self) -> int:
        """Rises when weights change, and when a chunk is left out."""
        return self.inner.revision + len(self.left_out)

    def chunks(self, first: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """All rows that can be read, in order; see `Source.chunks`.

        Parameters
        ----------
        first : int
            Chunk to begin with, of a source whose chunks can be read again.
        stop : int, optional
            Chunk before which to end.

        Raises
        ------
        SourceError
            Names the chunk and its rows, when it cannot be read and may not be left out.
        """
        found = self._chunks(first, stop)
        return found if self.on_progress is None or first or stop is not None else self._told(found)

    def _chunks(self, first: int, stop: int | None) -> Iterator[Chunk]:
        held = None if self._held is None else self._held()
        if held is not None:  # nothing is read, so nothing can fail
            return iter(held if first == 0 and stop is None else held[first:stop])
        return self._read_once() if self._reader is None else self._read_all(self._reader(), first, stop)

    def _told(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The same chunks; who waits hears how far they are."""
        begin = told = time.perf_counter()
        try:
            for chunk in chunks:
                yield chunk
                now = time.perf_counter()
                if now - told >= PERIOD and self.on_progress is not None:
                    told = now
                    self.on_progress(chunk.start + chunk.n_rows, self.n_rows, now - begin)
        finally:
            close(chunks)

    def _read_all(self, reader: Reader, first: int, stop: int | None) -> Iterator[Chunk]:
        skipped = {k for k, _ in self.left_out} if self.left_out else ()
        if stop is not None and hasattr(reader, "limit"):
            reader.limit(stop)
        try:
            for k in range(first, self.n_chunks if stop is None else stop):
                if k not in skipped:
                    chunk = self._attempt(reader, k, partial(reader.read, k))
                    if chunk is not None:
                        yield chunk
                if (k + 1) % self._release_every == 0:
                    reader.release()
        finally:
            close(reader)

    def runs(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Chunk] | None:
        """Some rows without those between them.

        Parameters
        ----------
        ranges : sequence of (int, int)
            First row and one past the last of each range, rising.

        Returns
        -------
        iterator of Chunk, or None
            Each part of a range that lies in one chunk and can be read, valid until the next; None where
            a source is read from its beginning.
        """
        gathered = getattr(self.inner, "runs", None)
        if gathered is not None:  # of rows that are far away
            return self._at_once(partial(gathered, ranges))
        reader = None if self._reader is None else self._reader()
        read_rows = getattr(reader, "read_rows", None)
        if reader is None or read_rows is None:
            close(reader)
            return None
        return self._runs(reader, read_rows, ranges)

    @property
    def is_held(self) -> bool:
        """Whether all chunks are in memory as they are."""
        return self._held is not None and self._held() is not None

    @property
    def can_jump(self) -> bool:
        """Whether `runs` has something to give."""
        if hasattr(self.inner, "runs"):
            return True
        reader = None if self._reader is None else self._reader()
        try:
            return hasattr(reader, "read_rows")
        finally:
            close(reader)

    def _at_once(self, gathered: Callable[[], Iterator[Chunk]]) -> Iterator[Chunk] | None:
        """Rows that come together, or None after too many faults: a pass finds which chunk it is."""
        for attempt in range(self._retries + 1):
            try:
                return iter([*gathered()])
            except OSError as error:
                _log.info("the sample cannot be read (attempt %d): %s", attempt + 1, error)
        return None

    def _runs(
        self, reader: Reader, read_rows: Callable[[int, int], Chunk], ranges: Sequence[tuple[int, int]]
    ) -> Iterator[Chunk]:
        k, skipped = 0, {number for number, _ in self.left_out}
        try:
            for first, stop in ranges:
                at = first
                while at < stop:
                    while reader.rows(k)[1] <= at:
                        k += 1
                    end = min(stop, reader.rows(k)[1])
                    if k not in skipped:
                        chunk = self._attempt(reader, k, partial(read_rows, at, end))
                        if chunk is not None:
                            yield chunk
                        else:
                            skipped.add(k)
                    at = end
        finally:
            close(reader)

    def close(self) -> None:
        """Let go of what the source holds."""
        close(self.inner)

    def _read_once(self) -> Iterator[Chunk]:
        done, row = 0, 0
        try:
            for chunk in self.inner.chunks():
                yield chunk
                done, row = done + 1, chunk.start + chunk.n_rows
        except OSError as error:
            raise SourceError(
                f"chunk {done}, from row {row} on, cannot be read: {error}; this source cannot be read "
                "again, mend it and start anew"
            ) from error

    def _attempt(self, reader: Reader, k: int, read: Callable[[], Chunk]) -> Chunk | None:
        """What `read` reads of chunk k, or None when it had to be left out."""
        for attempt in range(self._retries + 1):
            try:
                return read()
            except OSError as error:
                fault = error
                _log.info("chunk %d cannot be read (attempt %d): %s", k, attempt + 1, error)
        self._leave_out(k, reader, fault)
        return None

    def _leave_out(self, k: int, reader: Reader, fault: OSError) -> None:
        lo, hi = reader.rows(k)
        what = f"chunk {k}, rows {lo} to {hi - 1}, cannot be read after {self._retries + 1} attempts: {fault}"
        if not getattr(reader, "can_skip", True):
            raise SourceError(f"{what}; what comes after it cannot be read either")
        if self._min_success >= 1.0:
            raise SourceError(f"{what}; mend the source, or allow chunks to be left out by min_success_rate")
        self.left_out.append((k, (lo, hi)))
        readable = self.n_chunks - len(self.left_out)
        if readable == 0 or readable < self._min_success * self.n_chunks:
            raise SourceError(
                f"{what}; only {readable} of {self.n_chunks} chunks can be read, less than "
                f"min_success_rate={self._min_success:g} asks for"
            )
        _log.warning("%s; it is left out of every pass", what)


def close(source: Any) -> None:
    """Let go of what a source or a reader holds, if it can be told so.

    Parameters
    ----------
    source : Any
        A source or a reader; `close()` is not part of their protocols.
    """
    action = getattr(source, "close", None)
    if action is not None:
        action()
