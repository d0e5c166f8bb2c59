"""Independent variables as a tuple of columns, whatever shape the user holds them in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.layout import BLOCK
from nlsq_nb.errors import DataError

__all__ = [
    "ALL_OMITTED",
    "in_blocks",
    "is_on_device",
    "is_table",
    "numeric",
    "require_finite_column",
    "split_columns",
    "split_grouped",
    "split_outputs",
    "storage_dtype",
    "table_names",
]

ALL_OMITTED = "nan_policy='omit' leaves no row: every row has a non-finite value"
"""What is said wherever rows may be left out."""

_SCAN = 64 * BLOCK  # rows looked at at once: small temporaries

_DEVICES = {2, 13}  # DLPack's kinds of CUDA memory: kDLCUDA, kDLCUDAManaged


def is_on_device(*values: Any) -> bool:
    """Whether some of the data are arrays on a CUDA device.

    Parameters
    ----------
    *values : Any
        Arrays, sequences or mappings of arrays.

    Returns
    -------
    bool
        True for objects with `__cuda_array_interface__`, or with DLPack on such a device, also in a
        sequence or a mapping.
    """
    for value in values:
        if isinstance(value, np.ndarray) or value is None:
            continue
        if _has_interface(value):
            return True
        if hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in _DEVICES:
            return True
        if isinstance(value, Mapping):
            parts = list(value.values())
        elif isinstance(value, (list, tuple)) and value and not np.isscalar(value[0]):
            parts = [part for part in value if not isinstance(part, (list, tuple))]
        else:
            continue
        if is_on_device(*parts):
            return True
    return False


def _has_interface(value: Any) -> bool:
    try:
        return hasattr(value, "__cuda_array_interface__")
    except RuntimeError:  # PyTorch, for a tensor that requires a gradient: whoever reads it says so
        return True


def numeric(values: Any, field: str) -> NDArray[Any]:
    """An array of real numbers, not copied when it already is one.

    Parameters
    ----------
    values : array_like
        What the user gave.
    field : str
        Its name, for messages.

    Returns
    -------
    ndarray
        Of any real dtype and byte order: whoever reads it converts it, a whole file need not be
        held for that.

    Raises
    ------
    DataError
        When the values are not real numbers, or some are masked.
    """
    if type(values) is np.ndarray and values.dtype.kind in "fiub":
        return values
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            row = int(np.flatnonzero(np.ma.getmaskarray(values).ravel())[0])
            raise DataError(
                f"{field} is masked, first at position {row}; drop the masked rows first"
            )
        values = values.data
    array = _as_array(values, field)
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except OverflowError:
            raise DataError(f"{field} holds integers beyond the range of float64; rescale them") from None
        except (ValueError, TypeError):
            raise DataError(
                f"{field} has dtype object and holds something other than real numbers"
            ) from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{field} has dtype {array.dtype}; real numbers are needed")
    return array


def _as_array(values: Any, field: str) -> NDArray[Any]:
    if values is None:
        raise DataError(f"{field} is missing (None); give an array of numbers")
    if isinstance(values, (Iterator, AbstractSet)):
        kind = type(values).__name__
        raise DataError(f"{field} is a {kind}, which has no length or no order; give list(...) of it")
    if is_on_device(values):
        raise DataError(
            f"{field} is on a GPU, where it is not read here: copy it to the host, or give xdata and ydata there too"
        )
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{field} is not a regular array of numbers: {error}") from None


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
    if is_table(x):
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
        return (array if array.ndim else array.reshape(1),)
    if array.ndim == 2 and array.shape[0] == k:
        return tuple(array)
    if array.ndim == 2 and array.shape[1] == k:
        return tuple(array.T)
    raise DataError(
        f"{field} has shape {array.shape}; the model's {k} variables {list(names)} need ({k}, n)"
    )


def split_grouped(
    x: Any, names: Sequence[str], rows: int, field: str = "xdata"
) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
    """The column that says which group a row belongs to, and the independent variables.

    Parameters
    ----------
    x : array_like or mapping
        As `split_columns` takes it: then the first column is both group and variable. With one
        column more, (k+1, n), (n, k+1) or a sequence of k+1 arrays, the first is the group alone.
        The group of a mapping is its first column, whether or not it is a variable.
    names : sequence of str, length k
        The variables.
    rows : int
        Number of rows n; tells (k+1, n) from (n, k).
    field : str
        Name for messages.

    Returns
    -------
    ndarray, tuple of ndarray
        The groups (n,) and k columns.

    Raises
    ------
    DataError
        When the shape does not fit the variables.
    """
    wide = len(names) + 1
    if is_table(x):
        columns, first = split_columns(x, names, field), next(iter(x))
        groups = numeric(x[first], f"{field}[{first!r}]").ravel()
        return _same_length([groups, *columns], field, [str(first), *names])[0], columns
    several = isinstance(x, (list, tuple)) and len(x) == wide
    if several and np.ndim(x[0]) == 1 and len(x[0]) == rows:
        parts = [numeric(c, f"{field}[{i}]") for i, c in enumerate(x)]
        groups, *rest = _same_length(parts, field, ["group", *names])
        return groups, tuple(rest)
    if not (isinstance(x, (list, tuple)) and len(x) == len(names) > 1):
        x = numeric(x, field)
        if x.shape == (wide, rows):
            return x[0], tuple(x[1:])
        if x.shape == (rows, wide):
            return x[:, 0], tuple(x.T[1:])
    columns = split_columns(x, names, field)
    return columns[0], columns


def split_outputs(y: Any, n_outputs: int) -> NDArray[Any]:
    """The observations of all outputs.

    Parameters
    ----------
    y : array_like
        What the user gave.
    n_outputs : int
        Outputs m of the model.

    Returns
    -------
    ndarray
        (n,), or (m, n) for m > 1.

    Raises
    ------
    DataError
        For another shape.
    """
    outputs = numeric(y, "ydata")
    if n_outputs == 1 and outputs.ndim == 0:
        outputs = outputs.reshape(1)
    wanted = 1 if n_outputs == 1 else 2
    if outputs.ndim != wanted or (wanted == 2 and outputs.shape[0] != n_outputs):
        shape = "(n,)" if n_outputs == 1 else f"({n_outputs}, n)"
        raise DataError(f"ydata has shape {outputs.shape}; the model needs {shape}")
    return outputs


def is_table(x: Any) -> bool:
    """Whether columns go by name.

    Parameters
    ----------
    x : Any
        Independent variables as given.

    Returns
    -------
    bool
        True for mappings and data frames.
    """
    return not isinstance(x, np.ndarray) and (isinstance(x, Mapping) or hasattr(x, "columns"))


def table_names(x: Any) -> tuple[str, ...]:
    """Names of the columns.

    Parameters
    ----------
    x : mapping or data frame
        An xarray Dataset counts its coordinates too.

    Returns
    -------
    tuple of str
        In order.
    """
    is_data_set = isinstance(x, Mapping) and hasattr(x, "data_vars")
    return tuple(str(key) for key in (getattr(x, "variables", x) if is_data_set else x))


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


def storage_dtype(dtypes: Iterable[np.dtype[Any]], precision: str) -> np.dtype[Any]:
    """What columns are stored as.

    Parameters
    ----------
    dtypes : iterable of numpy.dtype
        Of x and y.
    precision : {"float64", "float32", "auto"}
        As configured.

    Returns
    -------
    numpy.dtype
        float32 when asked for, or under auto when all columns are; else float64.
    """
    single = precision == "float32" or (
        precision == "auto" and all(d.kind == "f" and d.itemsize == 4 for d in dtypes)
    )
    return np.dtype(np.float32 if single else np.float64)


def in_blocks(column: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut a chunk's column into the blocks of the grid.

    Parameters
    ----------
    column : ndarray, shape (rows,)
        Starts on a block boundary.

    Yields
    ------
    ndarray, shape (blocks, BLOCK) or (1, rest)
        Views of many blocks at a time, then of what is left of the last one.
    """
    for lo in range(0, len(column), _SCAN):
        part = column[lo : lo + _SCAN]
        whole = len(part) // BLOCK * BLOCK
        if whole:
            yield part[:whole].reshape(-1, BLOCK)
        if whole < len(part):
            yield part[whole:].reshape(1, -1)


def require_finite_column(label: str, column: NDArray[Any], start: int) -> None:
    """Refuse values that are not finite.

    Parameters
    ----------
    label : str
        What to call the column.
    column : ndarray
        Some rows of it.
    start : int
        Number of the first of them.

    Raises
    ------
    DataError
        Names the first such value and its row.
    """
    if math.isfinite(np.add.reduce(column)):  # one non-finite value would show in the sum
        return
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{label} contains a non-finite value, {column[row]} at row {start + row}; remove such "
            "rows or pass nan_policy='omit'"
        )
