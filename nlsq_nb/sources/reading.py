"""Columns of any real dtype, read as chunks of the storage dtype."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.sources.rows import Buffers
from nlsq_nb.sources.weights import GroupIndex, weights_from_sigma

__all__ = ["Columns", "ColumnsReader", "ViewsReader", "mappings"]

Floats = NDArray[np.float64]
Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """All rows, as they are stored.

    Attributes
    ----------
    x, y : tuple of ndarray
        Variables and outputs, each (n,).
    sigma : tuple of ndarray or None
        Standard deviations per output.
    groups : GroupIndex or None
        The group of each row.
    dtype : numpy.dtype
        What chunks are made of, float64 or float32.
    files : tuple of mmap
        Files that columns are mapped from.
    """

    x: Arrays
    y: Arrays
    sigma: Arrays | None
    groups: GroupIndex | None
    dtype: np.dtype[Any]
    files: tuple[mmap.mmap, ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of rows n."""
        return len(self.y[0])

    def weights(self, values: Floats | None, rows: slice) -> list[Floats] | None:
        """Weights of some rows, per output.

        Parameters
        ----------
        values : ndarray or None
            Weights of the groups.
        rows : slice
            Which rows.

        Returns
        -------
        list of ndarray, or None
            float64; None means all ones.
        """
        sigma = self.sigma
        base = None if sigma is None else [weights_from_sigma(s[rows]) for s in sigma]
        if values is None or self.groups is None:
            return base
        group = self.groups.weights(values, rows)
        return [group] * len(self.y) if base is None else [w * group for w in base]


class ColumnsReader:
    """One pass over columns; what must be converted goes into buffers that chunks share.

    Parameters
    ----------
    columns : Columns
        The rows.
    step : int
        Rows per chunk.
    values : ndarray or None
        Group weights of this pass.
    """

    def __init__(self, columns: Columns, step: int, values: Floats | None) -> None:
        self._columns = columns
        self._step = step
        self._values = values
        self._buffers = Buffers(min(step, columns.n_rows), columns.dtype)

    def rows(self, k: int) -> tuple[int, int]:
        """First row of chunk k and one past its last."""
        return k * self._step, min((k + 1) * self._step, self._columns.n_rows)

    def read(self, k: int) -> Chunk:
        """Chunk k, valid until the next one is read."""
        return self.read_rows(*self.rows(k))

    def read_rows(self, lo: int, hi: int) -> Chunk:
        """Some rows, no more than a chunk has; valid until others are read."""
        self._forget()
        rows, columns = slice(lo, hi), self._columns
        x = self._take(columns.x, rows, 0)
        y = self._take(columns.y, rows, len(x))
        w = columns.weights(self._values, rows)
        if w is None:
            return Chunk(lo, x, y)
        return Chunk(lo, x, y, self._take(w, slice(0, hi - lo), len(x) + len(y)))

    def release(self) -> None:
        """Let the buffers go."""
        self._buffers.clear()

    def close(self) -> None:
        """The pass is over."""
        self._forget()

    def _forget(self) -> None:
        """Let the pages of mapped files out of the resident memory: a few rows may have brought a megabyte."""
        for file in self._columns.files:
            if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
                file.madvise(mmap.MADV_DONTNEED)

    def _take(self, columns: Sequence[NDArray[Any]], rows: slice, first: int) -> Arrays:
        """Some rows, in views where the storage allows it; buffers are numbered from `first`."""
        return tuple(self._buffers.ready(c[rows], first + k) for k, c in enumerate(columns))


class ViewsReader:
    """One pass over chunks that are at hand.

    Parameters
    ----------
    chunks : sequence of Chunk
        All of them, in order.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks

    def rows(self, k: int) -> tuple[int, int]:
        """First row of chunk k and one past its last."""
        chunk = self._chunks[k]
        return chunk.start, chunk.start + chunk.n_rows

    def read(self, k: int) -> Chunk:
        """Chunk k."""
        return self._chunks[k]

    def release(self) -> None:
        """Nothing was copied."""


def mappings(column: NDArray[Any]) -> Iterator[mmap.mmap]:
    """The file that a column is mapped from.

    Parameters
    ----------
    column : ndarray
        Any column.

    Yields
    ------
    mmap.mmap
        At most one, of a `numpy.memmap`. None for a copy-on-write map: letting its pages go would
        undo what was written.
    """
    base: Any = column
    shared = False
    while isinstance(base, np.ndarray):
        shared = shared or (isinstance(base, np.memmap) and base.mode != "c")
        base = base.base
    if shared and isinstance(base, mmap.mmap):
        yield base
