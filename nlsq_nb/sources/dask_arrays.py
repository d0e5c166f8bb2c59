"""Dask arrays as the columns of a fit: read here piece by piece, or where their blocks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_nb.core.columns import storage_dtype
from nlsq_nb.errors import DataError, SourceError, UnsupportedOption
from nlsq_nb.sources.ahead import Column
from nlsq_nb.sources.dask_blocks import ComputedSource, ComputedStore, DaskField
from nlsq_nb.sources.rows import Reading, RowFormat
from nlsq_nb.sources.stream import chunk_length

__all__ = ["DaskArrays", "is_dask"]

_CHUNK = 1 << 24  # bytes of a chunk that is computed here, of which two are held


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
        try:
            (blocks,) = ComputedStore(fields, self.client).compute([(0, 1)])
        except OSError as error:
            raise _uncomputed(error) from error
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
        try:
            return dask.compute(x, self.y, self.sigma, **scheduler)  # type: ignore[no-any-return]
        except OSError as error:
            raise _uncomputed(error) from error

    def open(self, reading: Reading) -> ComputedSource:
        """The rows, computed here chunk by chunk; see `Unread.open`."""
        form, columns, fields = self.layout(reading)
        row_bytes = sum(f.array.dtype.itemsize * len(f.columns) for f in fields)
        step = chunk_length(reading, row_bytes, _CHUNK)
        return ComputedSource(ComputedStore(fields, self.client, reading.retries), columns, form, step, reading)

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


def _uncomputed(error: OSError) -> SourceError:
    return SourceError(f"the Dask arrays cannot be computed: {error}")


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
