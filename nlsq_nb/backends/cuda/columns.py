"""Arrays that live on a device, as columns that kernels read without further conversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.cuda.interfaces import common_device, interface_of, split_interface
from nlsq_nb.backends.cuda.toolkit import empty, on_device_number, pinned, toolkit
from nlsq_nb.codegen.targets.cuda_common import BLOCKS, THREADS
from nlsq_nb.core.columns import ALL_OMITTED, is_on_device, is_table, numeric, storage_dtype
from nlsq_nb.errors import DataError

__all__ = ["DeviceColumn", "DeviceRows", "put_column", "read_rows", "read_variables", "to_host"]

_PINNED = 1 << 20  # rows that are copied at a time


class DeviceColumn:
    """Some consecutive rows of one column on a device; never copied to the host by accident.

    Parameters
    ----------
    array : device array, shape (n,)
        Wrapped for kernels, contiguous.
    device : int
        Where it is.
    begin, end : int
        Which rows of it.
    """

    __slots__ = ("array", "begin", "device", "end")

    def __init__(self, array: Any, device: int, begin: int, end: int) -> None:
        self.array, self.device, self.begin, self.end = array, device, begin, end

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        found: np.dtype[Any] = np.dtype(self.array.dtype)
        return found

    @property
    def shape(self) -> tuple[int]:
        """(rows,)."""
        return (self.end - self.begin,)

    def __len__(self) -> int:
        """Number of rows."""
        return self.end - self.begin

    def __getitem__(self, rows: slice) -> DeviceColumn:
        """Consecutive rows, as a view."""
        lo, hi, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("a column on a device is cut into consecutive rows only")
        return DeviceColumn(self.array, self.device, self.begin + lo, self.begin + max(lo, hi))

    def __array__(self, *args: Any, **named: Any) -> NDArray[Any]:
        """Refused: n-sized data do not leave the device unasked."""
        raise TypeError("a column on a device is not converted to NumPy implicitly; use get()")

    def get(self) -> NDArray[Any]:
        """A copy on the host."""
        out = np.empty(len(self), self.dtype)
        if len(self):
            with on_device_number(self.device):
                self.array[self.begin : self.end].copy_to_host(out)
        return out


def put_column(values: Any, dtype: np.dtype[Any], stream: Any) -> DeviceColumn:
    """A column of the storage dtype on a device: wrapped as it is, converted there, or copied from the host.

    Parameters
    ----------
    values : dict or ndarray
        One-dimensional: an interface from `split_interface`, or an array on the host.
    dtype : numpy.dtype
        Storage dtype.
    stream : stream
        Of the current device, on which it will be read; work of the array's own stream comes first.

    Returns
    -------
    DeviceColumn
        All rows.
    """
    cuda = toolkit().cuda
    device = int(cuda.get_current_device().id)
    if isinstance(values, np.ndarray):
        return DeviceColumn(_uploaded(values, dtype, stream), device, 0, len(values))
    n, found = int(values["shape"][0]), np.dtype(values["typestr"])
    described = {key: values[key] for key in ("shape", "typestr", "data", "version")}
    strides = values.get("strides")
    described["strides"] = None if strides is None or tuple(strides) == (found.itemsize,) else tuple(strides)
    array = cuda.from_cuda_array_interface(described, owner=values["owner"], sync=False)
    if values.get("stream"):
        event = cuda.event(timing=False)
        event.record(cuda.external_stream(int(values["stream"])))
        event.wait(stream)
    if n and (found != dtype or described["strides"] is not None):
        target = empty(n, dtype)
        _launch("convert", n, stream, array, target)
        array = target
        stream.synchronize()  # the source may go once the copy is made
    return DeviceColumn(array, device, 0, n)


def _uploaded(values: NDArray[Any], dtype: np.dtype[Any], stream: Any) -> Any:
    """A copy of host data on the current device, through pinned memory."""
    array = empty(len(values), dtype)
    locked = pinned(min(_PINNED, len(values)), dtype)
    for lo in range(0, len(values), _PINNED):
        part = values[lo : lo + _PINNED]
        with np.errstate(over="ignore"):
            np.copyto(locked[: len(part)], part, casting="unsafe")
        array[lo : lo + len(part)].copy_to_device(locked[: len(part)], stream=stream)
        stream.synchronize()
    return array


def _launch(kernel: str, n: int, stream: Any, *arguments: Any) -> None:
    """Run one of the common kernels over n rows."""
    blocks = min(BLOCKS, -(-n // THREADS))
    toolkit().configured(getattr(toolkit().common, kernel), blocks, THREADS, stream)(*arguments, n)


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Columns on one device.

    Attributes
    ----------
    x, y : tuple of DeviceColumn
        Variables and outputs; a `Chunk` takes them as its columns.
    w : tuple of DeviceColumn or None
        Weights.
    dtype : numpy.dtype
        Storage dtype of all of them.
    n_omitted : int
        Rows that were left out.
    """

    x: tuple[Any, ...]
    y: tuple[Any, ...]
    w: tuple[Any, ...] | None
    dtype: np.dtype[Any]
    n_omitted: int = 0


def read_rows(
    x: Any,
    y: Any,
    weights: Callable[[tuple[int, ...]], Any],
    names: Sequence[str],
    n_outputs: int,
    precision: str,
    *,
    omit: bool,
) -> DeviceRows:
    """Data of which some lie on a device, as columns there.

    Parameters
    ----------
    x : array or sequence or mapping of arrays
        As `split_columns` takes them, on the device or on the host.
    y : array
        (n,), or (m, n).
    weights : callable
        Shape of y → the weights on the host, in that shape, or None.
    names : sequence of str
        The independent variables.
    n_outputs : int
        m.
    precision : {"float64", "float32", "auto"}
        Storage dtype; auto keeps float32 data as they are.
    omit : bool
        Drop rows with non-finite values.

    Returns
    -------
    DeviceRows
        Arrays that are contiguous and of the storage dtype are not copied, if no row is dropped.

    Raises
    ------
    DataError
        For shapes that disagree, what is not real numbers, and data on several devices.
    DeviceFull
        When a copy finds no room.
    """
    outputs = _parts(y, n_outputs, "ydata")
    rows = _length(outputs[0])
    columns = _variables(x, names)
    if rows == 0:
        raise DataError("`ydata` must not be empty!")
    _require_length(columns, "xdata", rows, "ydata")
    _require_length(outputs, "ydata", rows, "ydata")
    dtype = _storage_dtype((*columns, *outputs), precision)
    found = weights((rows,) if n_outputs == 1 else (n_outputs, rows))
    with on_device_number(common_device([*(("xdata", c) for c in columns), *(("ydata", c) for c in outputs)])):
        stream = toolkit().cuda.stream()
        put = [put_column(c, dtype, stream) for c in (*columns, *outputs)]
        keep = _finite(put, stream) if omit else None
        if keep is not None:
            put = _picked(put, keep, stream)
        spread = () if found is None else np.atleast_2d(found)
        ws = tuple(put_column(w if keep is None else w[keep], dtype, stream) for w in spread)
        stream.synchronize()  # what the arrays' own streams had still to do is done
    xs, ys = tuple(put[: len(columns)]), tuple(put[len(columns) :])
    return DeviceRows(xs, ys, ws or None, dtype, 0 if keep is None else rows - len(keep))


def read_variables(x: Any, names: Sequence[str]) -> tuple[DeviceColumn, ...]:
    """Independent variables alone, of which some lie on a device, as columns there.

    Parameters
    ----------
    x : array or sequence or mapping of arrays
        As for `read_rows`.
    names : sequence of str
        The independent variables.

    Returns
    -------
    tuple of DeviceColumn
        One per variable.

    Raises
    ------
    DataError, DeviceFull
        As `read_rows`.
    """
    columns = _variables(x, names)
    _require_length(columns, "x", _length(columns[0]), f"x[{names[0]!r}]")
    dtype = _storage_dtype(columns, "auto")
    with on_device_number(common_device(list(zip(names, columns, strict=True)))):
        stream = toolkit().cuda.stream()
        found = tuple(put_column(c, dtype, stream) for c in columns)
        stream.synchronize()
    return found


def _finite(columns: Sequence[DeviceColumn], stream: Any) -> NDArray[np.int64] | None:
    """The rows that are finite in all columns; None for all of them. A byte of each comes to the host."""
    rows = len(columns[0])
    marks, locked = empty(rows, np.int8), pinned(rows, np.int8)
    for number, column in enumerate(columns):
        _launch("mark", rows, stream, column.array, int(number == 0), marks)
    marks.copy_to_host(locked, stream=stream)
    stream.synchronize()
    keep = np.flatnonzero(locked)
    if not len(keep):
        raise DataError(ALL_OMITTED)
    return None if len(keep) == rows else keep


def _picked(columns: Sequence[DeviceColumn], keep: NDArray[np.int64], stream: Any) -> list[DeviceColumn]:
    """Some rows of columns, copied on the device."""
    rows, found = _uploaded(keep, np.dtype(np.int64), stream), []
    for column in columns:
        target = empty(len(keep), column.dtype)
        _launch("pick", len(keep), stream, column.array, rows, target)
        found.append(DeviceColumn(target, column.device, 0, len(keep)))
    stream.synchronize()  # the columns may go once the copies are made
    return found


def to_host(values: Any, field: str) -> Any:
    """A copy on the host of what lies on a device; anything else as it is."""
    if not is_on_device(values):
        return values
    if isinstance(values, (list, tuple)):
        return [to_host(part, f"{field}[{k}]") for k, part in enumerate(values)]
    interface = interface_of(values, field)
    dtype, parts = np.dtype(interface["typestr"]), split_interface(interface, field)
    with on_device_number(common_device([(field, part) for part in parts])):
        stream = toolkit().cuda.stream()
        copies = [put_column(part, dtype, stream).get() for part in parts]
    return copies[0] if len(interface["shape"]) == 1 else np.stack(copies)


def _parts(values: Any, count: int, field: str) -> list[Any]:
    """The rows of an array: `count` of them, or one that is flat."""
    wanted = "(n,)" if count == 1 else f"({count}, n)"
    if not is_on_device(values):
        array = numeric(values, field)
        parts: list[Any] = list(array) if array.ndim == 2 else [array]
    elif isinstance(values, (list, tuple)):
        parts = [_flat(v, f"{field}[{k}]") for k, v in enumerate(values)]
    else:
        parts = split_interface(interface_of(values, field), field)
    if len(parts) != count:
        raise DataError(f"{field} has {len(parts)} rows; the model needs {wanted}")
    return parts


def _variables(x: Any, names: Sequence[str]) -> list[Any]:
    """One column per variable, whatever holds them."""
    k = len(names)
    if is_table(x):
        missing = [name for name in names if name not in x]
        if missing:
            raise DataError(f"xdata has no column {missing[0]!r}; the model needs {list(names)}")
        return [_flat(x[name], f"xdata[{name!r}]") for name in names]
    if isinstance(x, (list, tuple)) or not is_on_device(x):
        return _parts(x, k, "xdata")
    interface = interface_of(x, "xdata")
    shape = tuple(interface["shape"])
    if len(shape) == 2 and shape[0] != k and shape[1] == k:
        size = np.dtype(interface["typestr"]).itemsize
        strides = interface.get("strides") or (k * size, size)
        interface |= {"shape": shape[::-1], "strides": tuple(strides)[::-1]}
    parts: list[Any] = [*split_interface(interface, "xdata")]
    if len(parts) != k:
        raise DataError(f"xdata has shape {shape}; the model's {k} variables need ({k}, n)")
    return parts


def _flat(values: Any, field: str) -> Any:
    """One column: an interface, or an array of the host."""
    if not is_on_device(values):
        return numeric(values, field).ravel()
    (part,) = _parts(values, 1, field)
    return part


def _length(column: Any) -> int:
    return int(column["shape"][0]) if isinstance(column, dict) else len(column)


def _require_length(columns: Sequence[Any], field: str, rows: int, other: str) -> None:
    for column in columns:
        if _length(column) != rows:
            raise DataError(f"{field} has {_length(column)} rows but {other} has {rows}")


def _storage_dtype(columns: Sequence[Any], precision: str) -> np.dtype[Any]:
    """What columns are stored as."""
    return storage_dtype((np.dtype(c["typestr"]) if isinstance(c, dict) else c.dtype for c in columns), precision)
