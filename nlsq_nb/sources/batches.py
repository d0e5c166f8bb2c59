"""Batches of rows as users give them: (x, y) or (x, y, sigma), in any number and of any length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.columns import (
    is_table,
    numeric,
    split_columns,
    split_grouped,
    split_outputs,
    storage_dtype,
    table_names,
)
from nlsq_nb.errors import DataError
from nlsq_nb.sources.rows import Reading, RowFormat
from nlsq_nb.sources.weights import checked_sigma

__all__ = ["BatchReader", "first_row", "parts_of"]

Arrays = tuple[NDArray[Any], ...]


def first_row(batch: Any) -> Any:
    """The x of the first row, from which the names of variables are read.

    Parameters
    ----------
    batch : tuple
        (x, y) or (x, y, sigma).

    Returns
    -------
    dict or ndarray
        Columns by name, or (1,) for one column, or (k, 1).

    Raises
    ------
    DataError
        When it is no batch.
    """
    x, y, _ = parts_of(batch)
    if is_table(x):
        return {name: np.atleast_1d(np.asarray(x[name]))[:1] for name in table_names(x)}
    columns = _columns(x, int(np.shape(y)[-1]) if np.ndim(y) else 1)
    found = np.stack([column[:1] for column in columns])
    return found[0] if len(found) == 1 else found


def parts_of(batch: Any) -> tuple[Any, Any, Any]:
    """x, y and sigma (or None) of a batch.

    Parameters
    ----------
    batch : Any
        What an iterator gave.

    Returns
    -------
    tuple
        Three parts.

    Raises
    ------
    DataError
        When it is no batch.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) not in {2, 3}:
        what = f"a batch must be (x, y) or (x, y, sigma), not a {type(batch).__name__}"
        raise DataError(f"{what}; one batch alone is given as [(x, y)]")
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None


class BatchReader:
    """Turns batches into columns, which must be alike in all of them.

    Parameters
    ----------
    reading : Reading
        What the fit asks for.
    first : tuple
        A batch, which says what all of them have.

    Attributes
    ----------
    form : RowFormat
        What the columns are.
    """

    def __init__(self, reading: Reading, first: Any) -> None:
        self._reading = reading
        has_sigma = parts_of(first)[2] is not None
        values, _, group = self._values(first)
        dtype = storage_dtype((c.dtype for c in values), reading.precision)
        n_vars = len(values) - reading.n_outputs
        self.form = RowFormat(n_vars, reading.n_outputs, has_sigma, group is not None, dtype)

    def columns(self, batches: Iterable[Any], omitted: list[int] | None = None) -> Iterator[Arrays]:
        """The columns of each batch.

        Parameters
        ----------
        batches : iterable of tuple
            Batches.
        omitted : list of int, optional
            Receives how many rows of each batch were left out.

        Yields
        ------
        tuple of ndarray
            In the order of the row format; any real dtype; batches without rows are skipped.

        Raises
        ------
        DataError
            Names the batch and its first row.
        """
        row = 0
        for number, batch in enumerate(batches):
            try:
                columns = self._read(batch)
            except DataError as error:
                raise DataError(f"batch {number}, from row {row} on: {error}") from None
            rows = len(columns[0])
            row += rows
            if self._reading.omit and rows:
                columns = self.form.finite(columns)
                if omitted is not None:
                    omitted.append(rows - len(columns[0]))
            if len(columns[0]):
                yield columns

    def _read(self, batch: Any) -> Arrays:
        values, sigma, group = self._values(batch)
        if (sigma is not None) != self.form.has_sigma:
            raise DataError("some batches have sigma and others have not; give it in all or in none")
        if self._reading.precision == "auto" and storage_dtype((c.dtype for c in values), "auto") != self.form.dtype:
            raise DataError(
                f"its dtype is not that of the first batch, {self.form.dtype}; set precision to "
                "float64 or float32"
            )
        columns = [*values, *(sigma or ()), *([] if group is None else [group])]
        return tuple(columns)

    def _values(self, batch: Any) -> tuple[Arrays, Arrays | None, NDArray[Any] | None]:
        """Columns of x and y, of sigma, and of the group."""
        reading = self._reading
        x, y, sigma = parts_of(batch)
        outputs = split_outputs(y, reading.n_outputs)
        rows = int(outputs.shape[-1])
        x = x if is_table(x) else _columns(x, rows)
        group = None
        if reading.group_weights is not None:
            group, columns = split_grouped(_bare(x), reading.variables, rows, "x")
        else:
            columns = split_columns(_bare(x), reading.variables, "x")
        if len(columns[0]) != rows:
            raise DataError(f"x has {len(columns[0])} rows but y has {rows}")
        ys = tuple(outputs) if outputs.ndim > 1 else (outputs,)
        if sigma is None or not rows:
            return (*columns, *ys), None if sigma is None else ys, group
        spread = checked_sigma(sigma, outputs.shape)
        return (*columns, *ys), tuple(spread) if spread.ndim > 1 else (spread,), group


def _columns(x: Any, rows: int) -> tuple[Any, ...]:
    """The columns of a batch's x: (rows,), (rows, k), or a sequence of k of them."""
    if isinstance(x, (tuple, list)) and x and all(np.ndim(c) == 1 and len(c) == rows for c in x):
        return tuple(numeric(c, f"x[{k}]") for k, c in enumerate(x))
    array = numeric(x, "x")
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim > 2 or len(array) != rows:
        raise DataError(
            f"x has shape {array.shape}; ({rows},) or ({rows}, k) is needed, one row for each of y"
        )
    return (array,) if array.ndim == 1 else tuple(array.T)


def _bare(x: Any) -> Any:
    """A single column as it is; `split_columns` takes a sequence of one for rows."""
    return x[0] if isinstance(x, tuple) and len(x) == 1 else x
