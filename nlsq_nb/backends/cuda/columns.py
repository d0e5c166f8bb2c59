"""Arrays that live on a device, as columns that kernels read without further conversion."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.cuda.toolkit import empty, on_device_number, toolkit
from nlsq_nb.codegen.targets.cuda_common import BLOCKS, THREADS
from nlsq_nb.core.columns import is_on_device, is_table, numeric
from nlsq_nb.errors import BackendUnavailable, DataError

__all__ = ["DeviceColumn", "DeviceRows", "interface_of", "put_column", "read_rows", "split_interface", "to_host"]

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


def interface_of(values: Any) -> dict[str, Any]:
    """The `__cuda_array_interface__` of an array on a device.

    Parameters
    ----------
    values : Any
        An object that has one, or `__dlpack__`.

    Returns
    -------
    dict
        The interface, with the object that owns the memory as "owner".

    Raises
    ------
    BackendUnavailable
        For DLPack without CuPy.
    """
    if not hasattr(values, "__cuda_array_interface__"):
        try:
            cupy = sys.modules.get("cupy") or __import__("cupy")
        except ImportError:
            raise BackendUnavailable(
                "data that offer DLPack only are read by CuPy; install the extra: pip install 'nlsq_nb[gpu]'"
            ) from None
        values = cupy.from_dlpack(values)
    return {**values.__cuda_array_interface__, "owner": values}


def split_interface(interface: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The rows of a two-dimensional array, or the array itself.

    Parameters
    ----------
    interface : dict
        From `interface_of`.
    field : str
        Name for messages.

    Returns
    -------
    list of dict
        Interfaces of one-dimensional arrays.

    Raises
    ------
    DataError
        For other dimensions, or what is not real numbers.
    """
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    if dtype.kind not in "fiub":
        raise DataError(f"{field} has dtype {dtype}; real numbers are needed")
    if len(shape) == 1:
        return [interface]
    if len(shape) != 2:
        raise DataError(f"{field} has shape {shape}; one or two dimensions are needed")
    strides = interface.get("strides") or (shape[1] * dtype.itemsize, dtype.itemsize)
    address, readonly = interface["data"]
    return [
        {
            **interface,
            "shape": shape[1:],
            "strides": strides[1:],
            "data": (address + k * strides[0], readonly),
        }
        for k in range(shape[0])
    ]


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
        blocks = min(BLOCKS, -(-n // THREADS))
        toolkit().configured(toolkit().common.convert, blocks, THREADS, stream)(array, target, n)
        array = target
        stream.synchronize()  # the source may go once the copy is made
    return DeviceColumn(array, device, 0, n)


def _uploaded(values: NDArray[Any], dtype: np.dtype[Any], stream: Any) -> Any:
    """A copy of host data on the current device, through pinned memory."""
    array = empty(len(values), dtype)
    pinned = toolkit().cuda.pinned_array(min(_PINNED, len(values)), dtype)
    for lo in range(0, len(values), _PINNED):
        part = values[lo : lo + _PINNED]
        with np.errstate(over="ignore"):
            np.copyto(pinned[: len(part)], part, casting="unsafe")
        array[lo : lo + len(part)].copy_to_device(pinned[: len(part)], stream=stream)
        stream.synchronize()
    return array


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
    """

    x: tuple[Any, ...]
    y: tuple[Any, ...]
    w: tuple[Any, ...] | None
    dtype: np.dtype[Any]


def read_rows(
    x: Any, y: Any, weights: Callable[[tuple[int, ...]], Any], names: Sequence[str], n_outputs: int, precision: str
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

    Returns
    -------
    DeviceRows
        Arrays that are contiguous and of the storage dtype are not copied.

    Raises
    ------
    DataError
        For shapes that disagree, and what is not real numbers.
    """
    outputs = _parts(y, n_outputs, "ydata")
    rows = _length(outputs[0])
    columns = _variables(x, names, rows)
    for field, part in (("xdata", columns), ("ydata", outputs)):
        for column in part:
            if _length(column) != rows:
                raise DataError(f"{field} has {_length(column)} rows but ydata has {rows}")
    if rows == 0:
        raise DataError("`ydata` must not be empty!")
    kinds = {_dtype(c) for c in (*columns, *outputs)}
    single = precision == "float32" or (precision == "auto" and kinds == {np.dtype(np.float32)})
    dtype = np.dtype(np.float32 if single else np.float64)
    found = weights((rows,) if n_outputs == 1 else (n_outputs, rows))
    with on_device_number(_device_of(columns + outputs)):
        stream = toolkit().cuda.stream()
        xs, ys = (tuple(put_column(c, dtype, stream) for c in part) for part in (columns, outputs))
        ws = None if found is None else tuple(put_column(w, dtype, stream) for w in np.atleast_2d(found))
        stream.synchronize()  # what the arrays' own streams had still to do is done
    return DeviceRows(xs, ys, ws, dtype)


def to_host(values: Any, field: str) -> Any:
    """A copy on the host of what lies on a device; anything else as it is."""
    if not is_on_device(values):
        return values
    interface = interface_of(values)
    dtype = np.dtype(interface["typestr"])
    with on_device_number(_device_of([interface])):
        stream = toolkit().cuda.stream()
        parts = [put_column(part, dtype, stream).get() for part in split_interface(interface, field)]
    return parts[0] if len(interface["shape"]) == 1 else np.stack(parts)


def _parts(values: Any, count: int, field: str) -> list[Any]:
    """The rows of an array: `count` of them, or one that is flat."""
    wanted = "(n,)" if count == 1 else f"({count}, n)"
    if not is_on_device(values):
        array = numeric(values, field)
        parts: list[Any] = list(array) if array.ndim == 2 else [array]
    elif isinstance(values, (list, tuple)):
        parts = [_flat(v, f"{field}[{k}]") for k, v in enumerate(values)]
    else:
        parts = split_interface(interface_of(values), field)
    if len(parts) != count:
        raise DataError(f"{field} has {len(parts)} rows; the model needs {wanted}")
    return parts


def _variables(x: Any, names: Sequence[str], rows: int) -> list[Any]:
    """One column per variable, whatever holds them."""
    k = len(names)
    if is_table(x):
        missing = [name for name in names if name not in x]
        if missing:
            raise DataError(f"xdata has no column {missing[0]!r}; the model needs {list(names)}")
        return [_flat(x[name], f"xdata[{name!r}]") for name in names]
    if isinstance(x, (list, tuple)) or not is_on_device(x):
        return _parts(x, k, "xdata")
    interface = interface_of(x)
    shape = tuple(interface["shape"])
    if len(shape) == 2 and shape != (k, rows) and shape[1] == k:
        size = np.dtype(interface["typestr"]).itemsize
        strides = interface.get("strides") or (k * size, size)
        interface |= {"shape": shape[::-1], "strides": tuple(strides)[::-1]}
    return _parts_of(interface, k)


def _parts_of(interface: dict[str, Any], k: int) -> list[Any]:
    parts = split_interface(interface, "xdata")
    if len(parts) != k:
        raise DataError(f"xdata has shape {tuple(interface['shape'])}; the model's {k} variables need ({k}, n)")
    return list(parts)


def _flat(values: Any, field: str) -> Any:
    """One column: an interface, or an array of the host."""
    if not is_on_device(values):
        return numeric(values, field).ravel()
    (part,) = _parts(values, 1, field)
    return part


def _length(column: Any) -> int:
    return int(column["shape"][0]) if isinstance(column, dict) else len(column)


def _dtype(column: Any) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(column["typestr"]) if isinstance(column, dict) else column.dtype
    return found


def _device_of(columns: Sequence[Any]) -> int:
    """The device that data lie on: CuPy's arrays know it, others are taken to be on the current one."""
    for column in columns:
        number = getattr(getattr(column.get("owner"), "device", None), "id", None) if isinstance(column, dict) else None
        if number is not None:
            return int(number)
    return int(toolkit().cuda.get_current_device().id)
