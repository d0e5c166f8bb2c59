"""Independent variables as a tuple of columns, whatever shape the user holds them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.errors import DataError

__all__ = ["numeric", "split_columns"]


def numeric(values: Any, field: str) -> NDArray[Any]:
    """An array of real numbers in native byte order, not copied when it already is one.

    Parameters
    ----------
    values : array_like
        What the user gave.
    field : str
        Its name, for messages.

    Returns
    -------
    ndarray
        float64 or float32.

    Raises
    ------
    DataError
        When the values are not real numbers, or some are masked.
    """
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            row = int(np.flatnonzero(np.ma.getmaskarray(values).ravel())[0])
            raise DataError(
                f"{field} is masked, first at position {row}; drop the masked rows first"
            )
        values = values.data
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{field} is not a regular array of numbers: {error}") from None
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (ValueError, TypeError):
            raise DataError(
                f"{field} has dtype object and holds something other than real numbers"
            ) from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{field} has dtype {array.dtype}; real numbers are needed")
    if array.dtype in (np.float64, np.float32) and array.dtype.isnative:
        return array
    kept = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize == 4 else np.float64
    return array.astype(kept)


def split_columns(x: Any, names: Sequence[str], field: str = "xdata") -> tuple[NDArray[Any], ...]:
    """One 1-D array per independent variable.

    Parameters
    ----------
    x : array_like or mapping
        (n,) for one variable; (k, n) as SciPy has it, (n, k) where that is the only reading, a
        sequence of k arrays, or a mapping (data frame) with a column per variable name.
    names : sequence of str, length k
        The variables.
    field : str
        Name for messages.

    Returns
    -------
    tuple of ndarray, length k
        Columns of equal length.

    Raises
    ------
    DataError
        When the shape does not fit the variables, with both named.
    """
    k = len(names)
    if isinstance(x, Mapping) or hasattr(x, "columns"):
        missing = [name for name in names if name not in x]
        if missing:
            raise DataError(f"{field} has no column {missing[0]!r}; the model needs {list(names)}")
        return _same_length([numeric(x[n], f"{field}[{n!r}]").ravel() for n in names], field, names)
    if isinstance(x, (list, tuple)) and len(x) == k > 1:
        return _same_length([numeric(c, f"{field}[{i}]") for i, c in enumerate(x)], field, names)
    array = numeric(x, field)
    if k == 1:
        if array.ndim == 2 and 1 in array.shape:
            array = array.reshape(-1)
        if array.ndim > 1:
            raise DataError(
                f"{field} has shape {array.shape} but the model has one variable {names[0]!r}"
            )
        return (np.atleast_1d(array),)
    if array.ndim == 2 and array.shape[0] == k:
        return tuple(array)
    if array.ndim == 2 and array.shape[1] == k:
        return tuple(array.T)
    raise DataError(
        f"{field} has shape {array.shape}; the model's {k} variables {list(names)} need ({k}, n)"
    )


def _same_length(
    columns: list[NDArray[Any]], field: str, names: Sequence[str]
) -> tuple[NDArray[Any], ...]:
    for name, column in zip(names, columns, strict=True):
        if column.ndim != 1 or len(column) != len(columns[0]):
            raise DataError(
                f"{field} column {name!r} has shape {column.shape}, "
                f"column {names[0]!r} has shape {columns[0].shape}"
            )
    return tuple(columns)
