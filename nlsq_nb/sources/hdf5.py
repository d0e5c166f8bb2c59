"""`HDF5Source`: data sets of an HDF5 file as the columns of a fit, read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.columns import storage_dtype
from nlsq_nb.errors import DataError, SourceError
from nlsq_nb.sources.ahead import Column, Rooms, StoredRows
from nlsq_nb.sources.hdf5_file import Field, HDF5Fields
from nlsq_nb.sources.iterated import IteratedRows
from nlsq_nb.sources.rows import Reading, RowFormat
from nlsq_nb.sources.stream import StreamSource, chunk_length

__all__ = ["HDF5Source"]

_CHUNK = 1 << 24  # bytes of a chunk that is copied, of which two are held
_MAPPED = 7 << 23  # and of one that is read in place: each costs as much as a megabyte of rows


@dataclass(frozen=True, slots=True)
class HDF5Source:
    """Data in an HDF5 file, for `curve_fit(model, HDF5Source(…))`; a path alone means the defaults.

    Whatever the layout (contiguous, chunked, compressed), the number type and the byte order, the same
    rows give the same bits as arrays do. Memory does not depend on the number of rows.

    Parameters
    ----------
    path : str or Path
        The file; it is opened for reading only.
    x : str, sequence of str, or mapping
        Path of the data set of the independent variables, (n,), (n, k) or (k, n); or one data set per
        variable, in the model's order or by name. "/data/x" stands for "/x" too.
    y : str or sequence of str
        Observations, (n,), or (m, n) or (n, m), or one data set per output.
    sigma : str or sequence of str, optional
        Standard deviations, in the shape of y.
    trusted : bool
        Whether the file is ours: then soft and external links, values in other files, filters from plug-ins,
        chunks of any size and parts that were never written (HDF5 fills them in) are allowed.
    """

    path: str | Path
    x: str | Sequence[str] | Mapping[str, str] = "/data/x"
    y: str | Sequence[str] = "/data/y"
    sigma: str | Sequence[str] | None = None
    trusted: bool = False

    def first(self) -> Any:
        """The x of the first row, from which the names of variables are read.

        Returns
        -------
        dict or ndarray
            Columns by name, or (1,) for one column, or (k, 1).

        Raises
        ------
        SourceError
            When the file cannot be read or is not to be trusted.
        DataError
            When the shapes do not agree.
        """
        fields = self._fields()
        try:
            x, *_ = self._columns(fields)
            values = [c.copy() for c in StoredRows(fields, x).columns_at(0, 1, {})]
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error
        finally:
            fields.close()
        if isinstance(self.x, Mapping):
            return dict(zip(self.x, values, strict=True))
        return values[0] if len(values) == 1 else np.stack(values)

    def open(self, reading: Reading) -> StreamSource:
        """The rows of the file.

        Parameters
        ----------
        reading : Reading
            What the fit asks for.

        Returns
        -------
        StreamSource
            Holds the file open until it is closed.

        Raises
        ------
        SourceError
            When the file cannot be read or is not to be trusted.
        DataError
            When the shapes do not agree.
        """
        fields = self._fields()
        try:
            return self._source(fields, reading)
        except BaseException:
            fields.close()
            raise

    def _fields(self) -> HDF5Fields:
        names = [*_listed(self._x_paths()), *_listed(self.y), *_listed(self.sigma)]
        return HDF5Fields(self.path, [_spellings(name) for name in names], self.trusted)

    def _x_paths(self) -> Any:
        return list(self.x.values()) if isinstance(self.x, Mapping) else self.x

    def _columns(self, fields: HDF5Fields) -> tuple[list[Column], list[Column], list[Column]]:
        """Columns of x, y and sigma."""
        ends = list(accumulate(len(_listed(part)) for part in (self._x_paths(), self.y, self.sigma)))
        every = [_columns_of(number, field) for number, field in enumerate(fields.fields)]
        x, y, sigma = (list(chain(*every[lo:hi])) for lo, hi in zip([0, *ends], ends, strict=False))
        if isinstance(self.x, Mapping) and len(x) != len(self.x):
            raise DataError(f"{self.path}: a data set of x that has a name must have one column")
        return x, y, sigma

    def _source(self, fields: HDF5Fields, reading: Reading) -> StreamSource:
        x, y, sigma = self._columns(fields)
        for name, found in (("y", y), ("sigma", sigma)):
            if len(found) != reading.n_outputs and (found or name == "y"):
                raise DataError(
                    f"{self.path}: {name} has {len(found)} columns; the model has {reading.n_outputs} outputs"
                )
        x, group = self._by_variable(x, reading)
        dtype = storage_dtype((fields.fields[f].dtype for f, _ in (*x, *y)), reading.precision)
        form = RowFormat(len(x), len(y), bool(sigma), group is not None, dtype)
        rows = StoredRows(fields, [*x, *y, *sigma, *([] if group is None else [group])])
        in_place = fields.is_mapped and all(f.dtype == dtype for f in fields.fields)  # else they are copied too
        step = chunk_length(reading, fields.row_bytes, _MAPPED if in_place else _CHUNK)
        if not reading.omit:
            return StreamSource(rows, form, step, reading)
        # what is kept moves up, so that it stands on the grid as if it were alone
        kept = IteratedRows(partial(_finite, rows, form, step), form, step, reading, rows.close)
        return StreamSource(kept, form, step, reading)

    def _by_variable(self, x: list[Column], reading: Reading) -> tuple[list[Column], Column | None]:
        """The columns of the variables, and that of the group."""
        names, grouped = reading.variables, reading.group_weights is not None
        if isinstance(self.x, Mapping):
            missing = [name for name in names if name not in self.x]
            if missing:
                raise DataError(f"HDF5Source: x has no {missing[0]!r}; the model needs {list(names)}")
            by_name = dict(zip(self.x, x, strict=True))
            return [by_name[name] for name in names], x[0] if grouped else None
        if len(x) == len(names):
            return x, x[0] if grouped else None
        if grouped and len(x) == len(names) + 1:
            return x[1:], x[0]
        raise DataError(
            f"{self.path}: x has {len(x)} columns; the model has {len(names)} variables, {list(names)}"
        )


def _finite(
    rows: StoredRows, form: RowFormat, step: int, omitted: list[int] | None
) -> Iterator[tuple[NDArray[Any], ...]]:
    """The columns of the rows whose values are finite, a chunk at a time."""
    rooms: Rooms = {}
    rows.store.open()
    for lo in range(0, rows.n_rows, step):
        hi = min(lo + step, rows.n_rows)
        columns = rows.columns_at(lo, hi, rooms)
        kept = form.finite(columns)
        rows.store.drop(lo, hi)
        if omitted is not None:
            omitted.append(hi - lo - len(kept[0]))
        yield kept


def _listed(paths: Any) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def _spellings(path: str) -> list[str]:
    """The path, and where the default one may be instead."""
    return [path, path.removeprefix("/data")] if path in {"/data/x", "/data/y"} else [path]


def _columns_of(number: int, field: Field) -> list[Column]:
    return [(number, None)] if field.width is None else [(number, k) for k in range(field.width)]
