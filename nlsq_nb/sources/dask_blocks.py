"""Rows in blocks of Dask arrays, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.errors import SourceError
from nlsq_nb.sources.ahead import Column, Rooms, StoredRows
from nlsq_nb.sources.rows import Buffers, Reading, RowFormat
from nlsq_nb.sources.stream import StreamSource

__all__ = ["ComputedSource", "ComputedStore", "DaskField", "require_open"]


@dataclass(frozen=True, slots=True)
class DaskField:
    """A Dask array with one row per observation.

    Attributes
    ----------
    array : dask.array.Array
        (n,), (n, k) or (k, n), with one block across the columns.
    row_axis : int
        Which axis counts rows.
    """

    array: Any
    row_axis: int = 0

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.array.shape[self.row_axis])

    @property
    def columns(self) -> tuple[int | None, ...]:
        """Its columns; one None where they have no axis of their own."""
        return (None,) if self.array.ndim == 1 else tuple(range(self.array.shape[1 - self.row_axis]))

    @property
    def edges(self) -> list[int]:
        """First row of each block, and the number of rows."""
        return [0, *accumulate(self.array.chunks[self.row_axis])]


class ComputedStore:
    """Rows that Dask computes when they are asked for; see `Store`.

    Parameters
    ----------
    fields : sequence of DaskField
        Of one number of rows.
    client : distributed.Client or None
        Where they are computed; by Dask's own choice without one.
    retries : int
        How often a cluster tries again what has failed: asked once more, it may answer from memory.
    """

    def __init__(self, fields: Sequence[DaskField], client: Any, retries: int = 0) -> None:
        self.fields = tuple(fields)
        self.n_rows = fields[0].n_rows
        self._client = client
        self._scheduler = {} if client is None else {"scheduler": client, "retries": retries}
        self._held: tuple[tuple[int, int], list[NDArray[Any]]] | None = None
        self._delayed: list[list[Any]] | None = None

    def open(self) -> None:
        """Dask begins when it is asked to."""

    def block(
        self, field: int, lo: int, hi: int, rooms: Rooms, *, in_place: bool = False  # noqa: ARG002 - new each time
    ) -> NDArray[Any]:
        """Some rows of a field; see `Store.block`."""
        if self._held is None or self._held[0] != (lo, hi):
            (found,) = self.compute([(lo, hi)])
            self._held = (lo, hi), found
        return self._held[1][field]

    def compute(self, ranges: Sequence[tuple[int, int]]) -> list[list[NDArray[Any]]]:
        """Some rows of every field, in one computation.

        Parameters
        ----------
        ranges : sequence of (int, int)
            First row and one past the last of each range.

        Returns
        -------
        list of list of ndarray
            For each range the fields, with rows along the first axis.

        Raises
        ------
        SourceError
            When the client is closed.
        """
        import dask

        require_open(self._client)
        take, tasks = dask.delayed(_take, pure=False), list[Any]()
        wanted: list[list[list[tuple[int, int]]]] = []  # by field and range: the task and which of its results
        for number, of in enumerate(self.fields):
            cuts, places = _cut(of.edges, ranges)
            blocks = self._delayed_blocks(number)
            order = {block: len(tasks) + i for i, block in enumerate(cuts)}
            tasks += [take(blocks[block], slices, of.row_axis) for block, slices in cuts.items()]
            wanted.append([[(order[block], at) for block, at in parts] for parts in places])
        found = dask.compute(*tasks, **self._scheduler)
        return [
            [_joined([found[task][at] for task, at in wanted[number][k]]) for number in range(len(self.fields))]
            for k in range(len(ranges))
        ]

    def _delayed_blocks(self, number: int) -> list[Any]:
        """The blocks of a field, not computed."""
        if self._delayed is None:
            self._delayed = [np.ravel(of.array.to_delayed()).tolist() for of in self.fields]
        return self._delayed[number]

    def check(self) -> None:
        """A graph does not change."""

    def drop(self, lo: int, hi: int) -> None:
        """Let them go."""
        if self._held is not None and self._held[0] == (lo, hi):
            self._held = None

    def rest(self) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Let go of what was computed."""
        self._held = None


class ComputedSource(StreamSource):
    """Rows of Dask arrays, computed here.

    Parameters
    ----------
    store : ComputedStore
        Where they are.
    columns : sequence of (int, int or None)
        Where each column of the row format is.
    form : RowFormat
        What they are.
    step : int
        Rows per chunk, whole blocks.
    reading : Reading
        What the fit asks for.
    """

    def __init__(
        self, store: ComputedStore, columns: Sequence[Column], form: RowFormat, step: int, reading: Reading
    ) -> None:
        super().__init__(StoredRows(store, columns), form, step, reading)
        self._store, self._columns = store, tuple(columns)

    def runs(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Chunk]:
        """Some rows, in one computation.

        Parameters
        ----------
        ranges : sequence of (int, int)
            First row and one past the last of each range.

        Yields
        ------
        Chunk
            One for each range.
        """
        for (lo, hi), blocks in zip(ranges, self._store.compute(ranges), strict=True):
            parts = tuple(blocks[f] if k is None else blocks[f][:, k] for f, k in self._columns)
            yield self._form.chunk(lo, parts, self.group_values, Buffers(hi - lo, self.dtype))


def require_open(client: Any) -> None:
    """Check that a cluster can still be reached, as when a result is asked for residuals.

    Parameters
    ----------
    client : distributed.Client or None
        Speaks to its scheduler.

    Raises
    ------
    SourceError
        When it is closed.
    """
    if client is not None and client.status == "closed":
        raise SourceError("the Dask client of this fit is closed; fit again with one that is open")


def _cut(
    edges: Sequence[int], ranges: Sequence[tuple[int, int]]
) -> tuple[dict[int, list[tuple[int, int]]], list[list[tuple[int, int]]]]:
    """Rows wanted of each block, from its first one, and where each range finds its parts among them."""
    cuts: dict[int, list[tuple[int, int]]] = {}
    places = []
    for lo, hi in ranges:
        parts, block = [], int(np.searchsorted(edges, lo, side="right")) - 1
        while edges[block] < hi:
            first, end = max(lo, edges[block]), min(hi, edges[block + 1])
            if first < end:
                slices = cuts.setdefault(block, [])
                parts.append((block, len(slices)))
                slices.append((first - edges[block], end - edges[block]))
            block += 1
            if block == len(edges) - 1:
                break
        places.append(parts)
    return cuts, places


def _take(block: NDArray[Any], slices: list[tuple[int, int]], row_axis: int) -> list[NDArray[Any]]:
    """Some rows of a block, along the first axis; runs where the block is."""
    rows = block if row_axis == 0 else block.T
    return [rows[lo:hi] for lo, hi in slices]


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
