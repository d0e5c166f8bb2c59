"""Some rows of a source, held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.errors import SourceError
from nlsq_nb.protocols import Source

__all__ = ["SampleSource", "ScatteredSource", "batches", "rows_of", "sample"]

_STEP = 1 << 22  # rows per chunk, as for arrays in memory
_APART = 10_000  # rows per run from which on finding runs is cheaper than a pass
_RUNS = 16  # runs of rows of which a batch consists, at least

Columns = tuple[NDArray[Any], ...]


class SampleSource:
    """Row ranges of another source.

    They are gathered when they are first needed, and again when its weights have changed or chunks of it
    could no longer be read: by one pass, or from where they are when they are far apart and the source has
    a method `runs`.

    Parameters
    ----------
    source : Source
        All rows.
    ranges : sequence of (int, int)
        First row and one past the last of each range; disjoint.
    """

    def __init__(self, source: Source, ranges: Sequence[tuple[int, int]]) -> None:
        self._source = source
        self._ranges = tuple(ranges)
        self._rows = rows_of(self._ranges)
        self._n_rows = len(self._rows)
        self._held: tuple[int, list[Chunk]] | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows that were drawn."""
        return self._n_rows

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass."""
        return -(-self.n_rows // _STEP)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored columns."""
        return self._source.dtype

    @property
    def revision(self) -> int:
        """That of the source."""
        return self._source.revision

    def chunks(self) -> Iterator[Chunk]:
        """The rows of the sample in order; see `Source.chunks`."""
        held, revision = self._held, self._source.revision
        if held is None or held[0] != revision:
            held = self._held = (revision, list(self._gathered(list(self._parts()))))
        return iter(held[1])

    def taker(self) -> Callable[[Chunk], None] | None:
        """What takes the rows from a pass over the source that somebody makes anyway.

        Returns
        -------
        callable or None
            To be given every chunk; the rows are held when it has seen the last. None where the rows are
            had without a pass.
        """
        if self._held is not None or (self._is_far and getattr(self._source, "can_jump", False)):
            return None
        parts, revision = list[Chunk](), self._source.revision

        def take(chunk: Chunk) -> None:
            parts.extend(self._cut(chunk))
            if chunk.start + chunk.n_rows == self._source.n_rows and self._source.revision == revision:
                self._held = (revision, list(self._gathered(parts)))

        return take

    def _gathered(self, parts: list[Chunk]) -> Iterator[Chunk]:
        """The rows as chunks."""
        if not parts:
            raise SourceError("none of the rows that were drawn as a sample can be read")
        if len(parts) == 1 and parts[0].n_rows <= _STEP:
            yield replace(parts[0], start=0, lasting=True)
            return
        x, y = _joined([part.x for part in parts]), _joined([part.y for part in parts])
        weights = [part.w for part in parts if part.w is not None]
        w = _joined(weights) if weights else None
        for lo in range(0, len(y[0]), _STEP):
            rows = slice(lo, lo + _STEP)
            own = None if w is None else tuple(c[rows] for c in w)
            yield Chunk(lo, tuple(c[rows] for c in x), tuple(c[rows] for c in y), own, lasting=True)

    @property
    def _n_runs(self) -> int:
        return len(self._ranges)

    def _runs(self) -> Sequence[tuple[int, int]]:
        """The rows as ranges, rising."""
        return sorted(self._ranges)

    def _parts(self) -> Iterator[Chunk]:
        """Copies of the rows of the sample, from where they are, or picked out of a pass."""
        runs = getattr(self._source, "runs", lambda ranges: None)(self._runs()) if self._is_far else None
        if runs is None:
            for chunk in self._source.chunks():
                yield from self._cut(chunk)
            return
        for run in runs:
            yield _copy(run)

    @property
    def _is_far(self) -> bool:
        """Whether the rows are so far apart that most of the others need not be read."""
        return self._n_runs * _APART < self._source.n_rows

    def _cut(self, chunk: Chunk) -> Iterator[Chunk]:
        """The rows of the sample in a chunk, if there are any."""
        rows = self._rows
        if chunk.n_rows < self._source.n_rows:
            lo, hi = rows.searchsorted((chunk.start, chunk.start + chunk.n_rows)).tolist()
            rows = rows[lo:hi] - chunk.start
        if len(rows):
            yield _picked(chunk.host(), rows)


@lru_cache(maxsize=4)
def rows_of(ranges: tuple[tuple[int, int], ...]) -> NDArray[np.int64]:
    """All rows of some ranges.

    Parameters
    ----------
    ranges : tuple of (int, int)
        First row and one past the last of each; disjoint.

    Returns
    -------
    ndarray of int64
        Rising; the same array for the same ranges.
    """
    bounds = np.array(sorted(ranges), dtype=np.int64).reshape(-1, 2)
    lengths = bounds[:, 1] - bounds[:, 0]
    before = np.cumsum(lengths) - lengths
    return np.repeat(bounds[:, 0] - before, lengths) + np.arange(int(lengths.sum()))


class ScatteredSource(SampleSource):
    """Single rows of another source, gathered as those of a sample.

    Parameters
    ----------
    source : Source
        All rows.
    rows : ndarray of int64
        Which ones, rising.
    """

    def __init__(self, source: Source, rows: NDArray[np.int64]) -> None:
        super().__init__(source, ())
        self._rows, self._n_rows = rows, len(rows)

    @property
    def _n_runs(self) -> int:
        return self._n_rows

    def _runs(self) -> Sequence[tuple[int, int]]:
        """Single rows."""
        return [(row, row + 1) for row in self._rows.tolist()]


def sample(source: Source, ranges: Sequence[tuple[int, int]]) -> SampleSource:
    """Some rows of a source as a source.

    Parameters
    ----------
    source : Source
        All rows.
    ranges : sequence of (int, int)
        First row and one past the last of each range; disjoint.

    Returns
    -------
    SampleSource
        The rows in their order, in memory, with the weights that they have in the source.
    """
    return SampleSource(source, ranges)


def batches(source: Source, n: int) -> list[SampleSource]:
    """Cut a source into pieces, each of which has rows from all over it.

    Parameters
    ----------
    source : Source
        Usually a sample.
    n : int
        Number of pieces; as many as there are rows at most.

    Returns
    -------
    list of SampleSource
        Every row is in one of them. Each is made of short runs of neighbouring rows.
    """
    rows = source.n_rows
    n = max(1, min(n, rows))
    run = min(max(1, rows // (_RUNS * n)), BLOCK)
    return [
        SampleSource(source, [(lo, min(lo + run, rows)) for lo in range(k * run, rows, n * run)])
        for k in range(n)
    ]


def _picked(chunk: Chunk, rows: NDArray[np.int64]) -> Chunk:
    """Some rows of a chunk, which outlive it."""
    w = None if chunk.w is None else tuple(c.take(rows) for c in chunk.w)
    return Chunk(chunk.start, tuple(c.take(rows) for c in chunk.x), tuple(c.take(rows) for c in chunk.y), w)


def _copy(chunk: Chunk) -> Chunk:
    """All rows of a chunk, which outlive it."""
    w = None if chunk.w is None else tuple(c.copy() for c in chunk.w)
    return Chunk(chunk.start, tuple(c.copy() for c in chunk.x), tuple(c.copy() for c in chunk.y), w)


def _joined(parts: Sequence[Columns]) -> Columns:
    """Pieces of columns, end to end."""
    return tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))
