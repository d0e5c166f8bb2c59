"""Rows in blocks that are at hand, some of them missing: read where they lie, if a kernel can."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import SEGMENT
from nlsq_nb.sources.ahead import Column
from nlsq_nb.sources.rows import Buffers, RowFormat, is_ready

__all__ = ["Piece", "PiecesSource"]

Floats = NDArray[np.float64]
Piece = tuple[int, NDArray[Any]]
"""Number of the first row of a block, and the block."""

_COPIED = 1 << 18  # rows that are copied at a time: a column of them stays in the cache


class PiecesSource:
    """The rows of blocks in chunks, which are parts of blocks as they lie in memory where that is possible.

    Rows of several blocks, of another dtype or not contiguous, and those with weights, go through
    buffers, a few at a time. Chunks begin with segments, so that their bits are those of any others.

    Parameters
    ----------
    n_rows : int
        Rows of all blocks.
    pieces : sequence of list of (int, ndarray)
        For each field the first row of each block and the block, in any order.
    row_axes : sequence of int
        Which axis of each field counts rows.
    columns : sequence of (int, int or None)
        In which field each column is, and which column of that.
    form : RowFormat
        What the columns are.
    groups : ndarray or None
        Weights of the groups.

    Attributes
    ----------
    step : int
        Rows of what is counted by `chunks`.
    """

    step = SEGMENT

    def __init__(
        self,
        n_rows: int,
        pieces: Sequence[list[Piece]],
        row_axes: Sequence[int],
        columns: Sequence[Column],
        form: RowFormat,
        groups: Floats | None,
    ) -> None:
        self.n_rows = n_rows
        self._pieces = [
            sorted(((first, block if axis == 0 else block.T) for first, block in field), key=_first)
            for field, axis in zip(pieces, row_axes, strict=True)
        ]
        self._columns = tuple(columns)
        self._form = form
        self._groups = groups
        self._buffers = Buffers(min(_COPIED, n_rows), form.dtype)
        self._rooms: dict[int, NDArray[Any]] = {}

    def chunks(self, first: int, stop: int) -> Iterator[Chunk]:
        """Some rows.

        Parameters
        ----------
        first, stop : int
            Segment to begin with, and one past the last.

        Yields
        ------
        Chunk
            Valid until the next one.
        """
        lo, hi = first * SEGMENT, min(stop * SEGMENT, self.n_rows)
        whole = self._in_place(lo, hi)
        if whole is not None:
            yield self._form.chunk(lo, whole, self._groups, self._buffers)
            return
        for at in range(lo, hi, _COPIED):
            end = min(at + _COPIED, hi)
            blocks = [self._rows(field, at, end) for field in range(len(self._pieces))]
            yield self._form.chunk(at, self._of(blocks), self._groups, self._buffers)

    def close(self) -> None:
        """Nothing is open."""

    def _of(self, blocks: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The columns of rows of the fields."""
        return [blocks[f] if k is None else blocks[f][:, k] for f, k in self._columns]

    def _in_place(self, lo: int, hi: int) -> list[NDArray[Any]] | None:
        """Columns that a kernel can read where they are, without weights."""
        if len(self._columns) > self._form.n_values:
            return None
        parts = [self._parts(field, lo, hi) for field in range(len(self._pieces))]
        if any(len(some) > 1 for some in parts):
            return None
        columns = self._of([some[0] for some in parts])
        return columns if all(is_ready(c, self._form.dtype) for c in columns) else None

    def _parts(self, field: int, lo: int, hi: int) -> list[NDArray[Any]]:
        """Where some rows of a field are, in order."""
        parts, pieces = [], self._pieces[field]
        for first, piece in pieces[max(0, bisect_right(pieces, lo, key=_first) - 1) :]:
            if first >= hi:
                break
            begin, end = max(lo, first), min(hi, first + len(piece))
            if begin < end:
                parts.append(piece[begin - first : end - first])
        return parts

    def _rows(self, field: int, lo: int, hi: int) -> NDArray[Any]:
        """Some rows of a field, in one array."""
        parts = self._parts(field, lo, hi)
        if len(parts) == 1:
            return parts[0]
        room = self._rooms.get(field)
        if room is None:
            rows = min(_COPIED, self.n_rows)
            room = self._rooms[field] = np.empty((rows, *parts[0].shape[1:]), parts[0].dtype)
        np.concatenate(parts, out=room[: hi - lo])
        return room[: hi - lo]


def _first(piece: Piece) -> int:
    return piece[0]
