"""What the columns of a stream of rows are, and how some rows of them become a chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.sources.weights import GroupIndex, GroupWeights, checked_sigma, weights_from_sigma

__all__ = ["PERIOD", "Buffers", "Reading", "RowFormat", "in_frames", "is_ready"]

Floats = NDArray[np.float64]
Arrays = tuple[NDArray[Any], ...]


PERIOD = 1.0
"""Seconds between reports of how far a reading is."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a fit asks of the rows that it reads.

    Attributes
    ----------
    variables : tuple of str
        Names of the independent variables.
    n_outputs : int
        Outputs m of the model.
    precision : {"float64", "float32", "auto"}
        Storage dtype; auto keeps float32 data as they are.
    chunk_rows : int
        Rows per chunk, rounded up to whole blocks.
    resident : {"auto", "scan", "loop"}
        loop takes `chunk_rows` at its word; otherwise it is the least, and chunks are large enough
        that what each costs once does not count.
    omit : bool
        Leave out rows with non-finite values.
    group_weights : GroupWeights or None
        Weights per group; the first column of x says which group a row belongs to.
    retries : int
        How often an iterator that fails while its rows are counted is begun anew.
    tell : callable or None
        `tell(rows, seconds)` is called once a second while rows are counted, or kept in a file.
    """

    variables: tuple[str, ...]
    n_outputs: int = 1
    precision: str = "float64"
    chunk_rows: int = 1
    resident: str = "auto"
    omit: bool = False
    group_weights: GroupWeights | None = None
    retries: int = 0
    tell: Callable[[int, float], None] | None = None

    def told(self, pieces: Iterable[Arrays]) -> Iterator[Arrays]:
        """Pieces of columns as they are, while who waits hears how many rows they had.

        Parameters
        ----------
        pieces : iterable of tuple of ndarray
            Columns.

        Yields
        ------
        tuple of ndarray
            Each of them.
        """
        rows, begin = 0, time.perf_counter()
        last = begin
        for columns in pieces:
            yield columns
            rows, now = rows + len(columns[0]), time.perf_counter()
            if self.tell is not None and now - last >= PERIOD:
                last = now
                self.tell(rows, now - begin)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The columns of a row: x, then y, then sigma of each output, then the group.

    Attributes
    ----------
    n_vars, n_outputs : int
        Columns of x and of y.
    has_sigma, has_group : bool
        Whether the others are there.
    dtype : numpy.dtype
        What x, y and weights are stored as, float64 or float32.
    """

    n_vars: int
    n_outputs: int
    has_sigma: bool
    has_group: bool
    dtype: np.dtype[Any]

    @property
    def n_values(self) -> int:
        """Columns of x and y."""
        return self.n_vars + self.n_outputs

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """What each column can be kept as without changing a bit of the chunks."""
        wide = np.dtype(np.float64)
        others = self.n_outputs * self.has_sigma + self.has_group
        return (self.dtype,) * self.n_values + (wide,) * others

    def chunk(
        self, start: int, columns: Sequence[NDArray[Any]], groups: Floats | None, buffers: Buffers
    ) -> Chunk:
        """Some rows as a chunk.

        Parameters
        ----------
        start : int
            Index of the first row.
        columns : sequence of ndarray
            The columns of those rows, any real dtype.
        groups : ndarray or None
            Weights of the groups.
        buffers : Buffers
            Where converted columns go.

        Returns
        -------
        Chunk
            Views where the columns allow it.

        Raises
        ------
        DataError
            For a sigma or a group that cannot be used, naming the row.
        """
        ready = [buffers.ready(c, k) for k, c in enumerate(columns[: self.n_values])]
        x, y = tuple(ready[: self.n_vars]), tuple(ready[self.n_vars :])
        w = self._weights(start, columns[self.n_values :], groups)
        if w is None:
            return Chunk(start, x, y)
        return Chunk(start, x, y, tuple(buffers.ready(c, self.n_values + k) for k, c in enumerate(w)))

    def finite(self, columns: Arrays) -> Arrays:
        """The rows whose x, y and group are finite as they are stored.

        Parameters
        ----------
        columns : tuple of ndarray
            Some rows.

        Returns
        -------
        tuple of ndarray
            The same columns where all are.
        """
        keep = np.ones(len(columns[0]), dtype=bool)
        with np.errstate(over="ignore", invalid="ignore"):
            for column in columns[: self.n_values]:
                keep &= np.isfinite(column.astype(self.dtype, copy=False))
            if self.has_group:
                keep &= np.isfinite(columns[-1])
        return columns if keep.all() else tuple(column[keep] for column in columns)

    def _weights(
        self, start: int, columns: Sequence[NDArray[Any]], groups: Floats | None
    ) -> list[Floats] | None:
        base = None
        if self.has_sigma:
            sigmas = [checked_sigma(c, c.shape, start) for c in columns[: self.n_outputs]]
            base = [weights_from_sigma(s) for s in sigmas]
        if groups is None or not self.has_group:
            return base
        index = GroupIndex(columns[-1], range(start, start + len(columns[-1])))
        index.require(len(groups))
        group = index.weights(groups, slice(None))
        return [group] * self.n_outputs if base is None else [w * group for w in base]


class Buffers:
    """Room for converted columns, allocated when it is first needed.

    Parameters
    ----------
    rows : int
        Rows of the longest chunk.
    dtype : numpy.dtype
        What columns are converted to.
    """

    def __init__(self, rows: int, dtype: np.dtype[Any]) -> None:
        self._rows = rows
        self._dtype = dtype
        self._held: dict[int, NDArray[Any]] = {}

    def ready(self, column: NDArray[Any], number: int) -> NDArray[Any]:
        """The column as a kernel can read it.

        Parameters
        ----------
        column : ndarray
            Some rows of a column.
        number : int
            Of the buffer that may be used.

        Returns
        -------
        ndarray
            The column itself, or its values in the buffer.
        """
        if is_ready(column, self._dtype):
            return column
        held = self._held.get(number)
        if held is None:
            held = self._held[number] = np.empty(self._rows, self._dtype)
        out = held[: len(column)]
        with np.errstate(over="ignore"):
            np.copyto(out, column, casting="unsafe")
        return out

    def clear(self) -> None:
        """Let them go."""
        self._held.clear()


def is_ready(column: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether a kernel can read the column as it is.

    Parameters
    ----------
    column : ndarray
        Any column.
    dtype : numpy.dtype
        Storage dtype.

    Returns
    -------
    bool
        True for an aligned contiguous column of that dtype.
    """
    flags = column.flags
    return column.dtype == dtype and flags.c_contiguous and flags.aligned


def in_frames(
    parts: Iterable[Sequence[NDArray[Any]]], dtypes: Sequence[np.dtype[Any]], step: int
) -> Generator[Arrays, None, None]:
    """Pieces of any length as pieces of one length.

    Parameters
    ----------
    parts : iterable of sequence of ndarray
        Consecutive rows, column by column.
    dtypes : sequence of numpy.dtype
        What each column is converted to.
    step : int
        Rows of a frame.

    Yields
    ------
    tuple of ndarray
        Columns of `step` rows, of fewer at the end, in buffers that the next frame reuses.
    """
    rooms, filled = [np.empty(step, d) for d in dtypes], 0
    for columns in parts:
        done, rows = 0, len(columns[0])
        while done < rows:
            take = min(step - filled, rows - done)
            with np.errstate(over="ignore"):
                for room, column in zip(rooms, columns, strict=True):
                    np.copyto(room[filled : filled + take], column[done : done + take], casting="unsafe")
            filled, done = filled + take, done + take
            if filled == step:
                yield tuple(rooms)
                filled = 0
    if filled:
        yield tuple(room[:filled] for room in rooms)
