"""Dask arrays as the columns of a fit: read here piece by piece, or where their blocks are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.errors import DataError, UnsupportedOption
from nlsq_nb.sources.ahead import Column, Rooms, StoredRows
from nlsq_nb.sources.rows import Buffers, Reading, RowFormat, storage_dtype
from nlsq_nb.sources.stream import StreamSource, chunk_length

__all__ = ["ComputedSource", "ComputedStore", "DaskArrays", "DaskField", "Piece", "PiecesStore", "is_dask"]

_CHUNK = 1 << 24  # bytes of a chunk that is computed here, of which two are held
Piece = tuple[int, NDArray[Any]]
"""Number of the first row of a block, and the block."""


def is_dask(value: Any) -> bool:
    """Whether something is a Dask array, or columns by name some of which are.

    Parameters
    ----------
    value : Any
        What a user gave.

    Returns
    -------
    bool
        False for other collections of Dask.
    """
    if isinstance(value, (list, tuple, Mapping)):
        return any(map(is_dask, value.values() if isinstance(value, Mapping) else value))
    return hasattr(value, "__dask_graph__") and hasattr(value, "to_delayed") and hasattr(value, "blocks")


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


class PiecesStore:
    """Rows in blocks that are at hand, some of them missing; see `Store`.

    Parameters
    ----------
    n_rows : int
        Rows of all blocks.
    pieces : sequence of list of (int, ndarray)
        For each field the first row of each block and the block, rising.
    row_axes : sequence of int
        Which axis of each field counts rows.
    """

    def __init__(self, n_rows: int, pieces: Sequence[list[Piece]], row_axes: Sequence[int]) -> None:
        self.n_rows = n_rows
        self._pieces = [
            [(first, block if axis == 0 else block.T) for first, block in field]
            for field, axis in zip(pieces, row_axes, strict=True)
        ]

    def open(self) -> None:
        """They are at hand."""

    def block(
        self, field: int, lo: int, hi: int, rooms: Rooms, *, in_place: bool = False  # noqa: ARG002 - they stay
    ) -> NDArray[Any]:
        """Some rows of a field; see `Store.block`."""
        parts = []
        for first, piece in self._pieces[field]:
            begin, end = max(lo, first), min(hi, first + len(piece))
            if begin < end:
                parts.append(piece[begin - first : end - first])
        if len(parts) == 1:
            return parts[0]
        room = rooms.get(field)
        if room is None or len(room) < hi - lo:
            room = rooms[field] = np.empty((hi - lo, *parts[0].shape[1:]), parts[0].dtype)
        np.concatenate(parts, out=room[: hi - lo])
        return room[: hi - lo]

    def check(self) -> None:
        """Nobody else writes to them."""

    def drop(self, lo: int, hi: int) -> None:
        """They stay."""

    def rest(self) -> None:
        """They stay."""

    def close(self) -> None:
        """Nothing is open."""


class ComputedStore:
    """Rows that Dask computes when they are asked for; see `Store`.

    Parameters
    ----------
    fields : sequence of DaskField
        Of one number of rows.
    client : distributed.Client or None
        Where they are computed; by Dask's own choice without one.
    """

    def __init__(self, fields: Sequence[DaskField], client: Any) -> None:
        self.fields = tuple(fields)
        self.n_rows = fields[0].n_rows
        self._client = client
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
        """
        import dask

        take, tasks = dask.delayed(_take, pure=False), list[Any]()
        wanted: list[list[list[tuple[int, int]]]] = []  # by field and range: the task and which of its results
        for number, of in enumerate(self.fields):
            cuts, places = _cut(of.edges, ranges)
            blocks = self._delayed_blocks(number)
            order = {block: len(tasks) + i for i, block in enumerate(cuts)}
            tasks += [take(blocks[block], slices, of.row_axis) for block, slices in cuts.items()]
            wanted.append([[(order[block], at) for block, at in parts] for parts in places])
        scheduler = {} if self._client is None else {"scheduler": self._client}
        found = dask.compute(*tasks, **scheduler)
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


@dataclass(frozen=True, slots=True)
class DaskArrays:
    """x, y and sigma of a fit as Dask arrays; see `Unread`.

    Attributes
    ----------
    x : dask.array.Array, or sequence or mapping of such
        (n,), (n, k) or (k, n), or columns in the model's order or by the names of variables.
    y : dask.array.Array
        (n,), or (m, n) for m outputs.
    sigma : dask.array.Array or float or None
        In the shape of y, or one number.
    client : distributed.Client or None
        Where what is read here is computed.
    """

    x: Any
    y: Any
    sigma: Any = None
    client: Any = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self._known(self.y, "ydata").shape[-1])

    def first(self) -> Any:
        """The x of the first row; see `Unread.first`."""
        fields: list[DaskField] = []
        columns = {name: self._add(fields, array, "xdata", self.n_rows) for name, array in self._parts()}
        (blocks,) = ComputedStore(fields, self.client).compute([(0, 1)])
        if isinstance(self.x, Mapping):
            return {name: blocks[f].reshape(1) for name, ((f, _), *_) in columns.items()}
        values = np.concatenate([block.reshape(-1) for block in blocks])
        return values if len(values) == 1 else values[:, np.newaxis]

    def gathered(self) -> tuple[Any, Any, Any]:
        """x, y and sigma in memory, of few rows.

        Returns
        -------
        tuple
            What `ArraySource` takes.
        """
        import dask

        for name, array in (*self._parts(), ("ydata", self.y)):
            self._known(array, name or "xdata")
        x = dict(self.x) if isinstance(self.x, Mapping) else self.x
        scheduler = {} if self.client is None else {"scheduler": self.client}
        return dask.compute(x, self.y, self.sigma, **scheduler)  # type: ignore[no-any-return]

    def open(self, reading: Reading) -> ComputedSource:
        """The rows, computed here chunk by chunk; see `Unread.open`."""
        form, columns, fields = self.layout(reading)
        row_bytes = sum(f.array.dtype.itemsize * len(f.columns) for f in fields)
        step = chunk_length(reading, row_bytes, _CHUNK)
        return ComputedSource(ComputedStore(fields, self.client), columns, form, step, reading)

    def layout(self, reading: Reading) -> tuple[RowFormat, list[Column], list[DaskField]]:
        """What the columns are, and in which of the arrays each is.

        Parameters
        ----------
        reading : Reading
            What the fit asks for.

        Returns
        -------
        form : RowFormat
            The columns of a row.
        columns : list of (int, int or None)
            For each column its field, and which column of that.
        fields : list of DaskField
            The arrays.

        Raises
        ------
        DataError
            When the shapes do not agree, or are not known.
        """
        if reading.omit:
            raise UnsupportedOption(
                "nan_policy='omit' of Dask arrays: drop the rows before, as in keep = da.isfinite(y); "
                "x, y = x[keep], y[keep], then compute_chunk_sizes() of both"
            )
        fields: list[DaskField] = []
        n = self.n_rows
        x = {name: self._add(fields, array, f"xdata {name!r}" if name else "xdata", n) for name, array in self._parts()}
        groups, chosen = _variables(x, isinstance(self.x, Mapping), reading)
        y = self._add(fields, self.y, "ydata", n)
        sigma = [] if self.sigma is None else self._add(fields, self._sigma(), "sigma", n)
        for name, found in (("ydata", y), ("sigma", sigma)):
            if len(found) != reading.n_outputs and (found or name == "ydata"):
                raise DataError(f"{name} has {len(found)} columns; the model has {reading.n_outputs} outputs")
        dtype = storage_dtype((fields[f].array.dtype for f, _ in (*chosen, *y)), reading.precision)
        form = RowFormat(len(chosen), len(y), bool(sigma), groups is not None, dtype)
        return form, [*chosen, *y, *sigma, *([] if groups is None else [groups])], fields

    def _parts(self) -> list[tuple[str, Any]]:
        """The arrays of x, each under a name."""
        if isinstance(self.x, Mapping):
            return list(self.x.items())
        if isinstance(self.x, (list, tuple)):
            return [(str(k), array) for k, array in enumerate(self.x)]
        return [("", self.x)]

    def _sigma(self) -> Any:
        if np.ndim(self.sigma) > 0:
            return self.sigma
        import dask.array as da

        return da.full(self.y.shape, float(self.sigma), chunks=self.y.chunks)

    def _add(self, fields: list[DaskField], array: Any, name: str, n: int) -> list[Column]:
        """Columns of an array, which becomes one of the fields."""
        known = self._known(array, name)
        if known.ndim not in {1, 2} or n not in known.shape or not all(known.shape):
            raise DataError(f"{name} has shape {known.shape}, ydata has {n} rows; (n,), (n, k) or (k, n) is needed")
        axis = 0 if known.shape[0] == n and known.ndim == 1 else max(k for k in (0, 1) if known.shape[k] == n)
        if known.ndim == 2 and len(known.chunks[1 - axis]) > 1:
            known = known.rechunk({1 - axis: -1})
        field = DaskField(known, axis)
        fields.append(field)
        return [(len(fields) - 1, k) for k in field.columns]

    @staticmethod
    def _known(array: Any, name: str) -> Any:
        """The array, if it can be read."""
        if isinstance(array, (list, tuple, Mapping)) or not is_dask(array):
            raise DataError(f"{name} is {type(array).__name__} where others are Dask arrays; give all of them as these")
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name} has dtype {array.dtype}; real numbers are needed")
        if any(np.isnan(size) for size in array.shape):
            raise DataError(f"{name} is a Dask array of unknown length; call its compute_chunk_sizes() before the fit")
        if 0 in array.shape:
            raise DataError(f"{name} must not be empty!")
        return array


def _variables(x: Mapping[str, list[Column]], named: bool, reading: Reading) -> tuple[Column | None, list[Column]]:
    """The column of the group, and those of the variables in the model's order."""
    names, grouped = reading.variables, reading.group_weights is not None
    columns = [column for some in x.values() for column in some]
    group = columns[0] if grouped else None
    if named:
        missing = [name for name in names if name not in x]
        if missing:
            raise DataError(f"xdata has no column {missing[0]!r}; the model needs {list(names)}")
        return group, [x[name][0] for name in names]
    if len(columns) == len(names):
        return group, columns
    if grouped and len(columns) == len(names) + 1:
        return group, columns[1:]
    raise DataError(f"xdata has {len(columns)} columns; the model has {len(names)} variables, {list(names)}")


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
