"""What other libraries say of their arrays on a device: `__cuda_array_interface__`, or DLPack by way of CuPy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from nlsq_nb.backends.cuda.toolkit import toolkit
from nlsq_nb.errors import BackendUnavailable, DataError

__all__ = ["common_device", "interface_of", "split_interface"]


def interface_of(values: Any, field: str) -> dict[str, Any]:
    """The `__cuda_array_interface__` of an array on a device.

    Parameters
    ----------
    values : Any
        An object that has one, or `__dlpack__`.
    field : str
        Name for messages.

    Returns
    -------
    dict
        The interface, with the object that owns the memory as "owner".

    Raises
    ------
    BackendUnavailable
        For DLPack without CuPy.
    DataError
        For what is masked, is not real numbers of this machine, or does not give its memory away.
    """
    try:
        owner = values
        if not hasattr(values, "__cuda_array_interface__"):
            cupy: Any = sys.modules.get("cupy") or importlib.import_module("cupy")
            owner = cupy.from_dlpack(values)
        found = owner.__cuda_array_interface__
        dtype, _, _ = np.dtype(found["typestr"]), tuple(found["shape"]), int(found["data"][0])
    except ImportError:
        raise BackendUnavailable(
            "data that offer DLPack only are read by CuPy; install the extra: pip install 'nlsq_nb[gpu]'"
        ) from None
    except Exception as error:
        raise DataError(f"{field}, a {type(values).__name__}, does not give its memory away: {error}") from error
    if found.get("mask") is not None:
        raise DataError(f"{field} is masked; drop the masked rows first")
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise DataError(f"{field} has dtype {dtype}; real numbers of at most 64 bits are needed on a device")
    if not dtype.isnative:
        raise DataError(f"{field} has dtype {dtype}, which is not this machine's byte order; convert it first")
    return {**found, "owner": owner}


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
        For other dimensions.
    """
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
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


def common_device(columns: Sequence[tuple[str, Any]]) -> int:
    """The device that columns lie on; the current one if none does.

    Parameters
    ----------
    columns : sequence of (str, dict or ndarray)
        Names for messages, and interfaces or arrays on the host.

    Returns
    -------
    int
        Its number.

    Raises
    ------
    DataError
        When they lie on several, or not on a device at all.
    """
    found: dict[int, str] = {}
    for field, column in columns:
        if isinstance(column, dict) and column["shape"][0]:
            found.setdefault(_device_of(int(column["data"][0]), field), field)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise DataError(f"{first} is on device {one}, {second} on device {other}; copy one to where the other is")
    return next(iter(found), _current())


def _device_of(address: int, field: str) -> int:
    """The device of an address, as the driver knows it."""
    driver: Any = importlib.import_module("cuda.bindings.driver")
    ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    failed, number = driver.cuPointerGetAttribute(ordinal, address)
    if failed == driver.CUresult.CUDA_ERROR_INVALID_VALUE:
        raise DataError(f"{field} says that it lies at {address:#x}, which is not memory of a CUDA device")
    return _current() if int(failed) or int(number) < 0 else int(number)


def _current() -> int:
    return int(toolkit().cuda.get_current_device().id)
