"""As much of CuPy as tests need, in the stand-in driver's memory, and stricter than CuPy.

What would copy between host and device unasked raises, also where CuPy would merely wait: conversion to NumPy,
float(), bool(), iteration, indexing of one element.
"""

from __future__ import annotations

import ctypes
import sys
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from .driver import Driver, Transfer

__all__ = ["Exported", "ImplicitTransfer", "make_cupy"]


_OF_THE_SHAPE = {np.ndim, np.shape, np.size}


class ImplicitTransfer(TypeError):
    """Something would have moved between host and device unasked."""


class Exported:
    """An array of another library: DLPack on a CUDA device and nothing else."""

    def __init__(self, held: Any) -> None:
        self.held, self.shape = held, held.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        """A CUDA device."""
        return 2, 0

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("the stand-in takes what is held")


def make_cupy(driver: Driver) -> types.ModuleType:  # noqa: C901 - one class and the module around it
    """A module that passes for cupy on a stand-in driver.

    Parameters
    ----------
    driver : Driver
        Whose memory its arrays lie in; full, it raises OutOfMemoryError.

    Returns
    -------
    module
        Not yet in `sys.modules`.
    """
    cupy = types.ModuleType("cupy")
    cupy.__spec__ = ModuleSpec("cupy", None)  # numba-cuda-mlir looks for it

    class OutOfMemoryError(MemoryError):
        """The device is full."""

    class ndarray:  # noqa: N801 - CuPy's name
        """An array on the device that was current when it was made."""

        def __init__(self, shape: Any, dtype: Any = float, pointer: int | None = None, owner: Any = None) -> None:
            self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
            self.dtype = np.dtype(dtype)
            self.strides = np.empty(self.shape, self.dtype).strides
            self.size, self.ndim = int(np.prod(self.shape, dtype=int)), len(self.shape)
            self.nbytes = self.size * self.dtype.itemsize
            self.owner = self  # nothing is to be freed
            found = driver.allocate(max(self.nbytes, 1)) if pointer is None else pointer
            if found is None:
                raise OutOfMemoryError(f"{self.nbytes} bytes")
            self.pointer, self.owner = found, owner
            self.device = types.SimpleNamespace(id=driver.device)

        def __del__(self) -> None:
            if self.owner is None and not sys.is_finalizing():
                driver.free(self.pointer)

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            contiguous = self.strides == np.empty(self.shape, self.dtype).strides
            return {
                "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 3,
                "stream": 1, "strides": None if contiguous else self.strides,
            }  # fmt: skip

        def _view(self) -> Any:
            """The memory as NumPy sees it, only while the device works."""
            span = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + self.dtype.itemsize
            memory = (ctypes.c_char * span).from_address(self.pointer)
            return np.ndarray(self.shape, self.dtype, memory, strides=self.strides)

        def get(self) -> Any:
            """A copy on the host."""
            driver.ledger.append(Transfer("DtoH", self.nbytes, "sync", driver.device))
            driver.drain_all()
            if not self.size:
                return np.empty(self.shape, self.dtype)
            with driver:
                return np.array(self._view())

        def reshape(self, shape: Any) -> ndarray:
            """A view of another shape."""
            return ndarray(shape, self.dtype, self.pointer, self)

        @property
        def T(self) -> ndarray:  # noqa: N802 - NumPy's name
            """The transpose, a view."""
            out = ndarray(self.shape[::-1], self.dtype, self.pointer, self)
            out.strides = self.strides[::-1]
            return out

        def __len__(self) -> int:
            return self.shape[0]

        def __getitem__(self, key: Any) -> ndarray:
            with driver:
                view = self._view()[key]
            if not isinstance(view, np.ndarray):
                raise ImplicitTransfer("one element of an array on the device")
            out = ndarray(view.shape, view.dtype, view.__array_interface__["data"][0], self)
            out.strides = view.strides
            return out

        def _refuse(self, *args: Any, **named: Any) -> Any:
            raise ImplicitTransfer("an array on the device was to be converted implicitly")

        def __array_function__(self, function: Any, types: Any, args: Any, named: Any) -> Any:
            if function in _OF_THE_SHAPE:
                return function(np.broadcast_to(0.0, self.shape), *args[1:], **named)
            return self._refuse()

        __array__ = __array_ufunc__ = __float__ = __int__ = __bool__ = __index__ = _refuse
        __iter__ = __add__ = __sub__ = __mul__ = tolist = item = _refuse

    def asarray(values: Any, dtype: Any = None) -> Any:
        if isinstance(values, ndarray):
            return values
        if hasattr(values, "__cuda_array_interface__"):
            interface = values.__cuda_array_interface__
            return ndarray(interface["shape"], interface["typestr"], interface["data"][0], values)
        array = np.ascontiguousarray(values, dtype)
        out = ndarray(array.shape, array.dtype)
        driver.ledger.append(Transfer("HtoD", array.nbytes, "sync", driver.device))
        if array.size:
            with driver:
                out._view()[...] = array
        return out

    @contextmanager
    def device(number: int) -> Any:
        driver.contexts.append(number)
        try:
            yield
        finally:
            driver.contexts.pop()

    cupy.ndarray, cupy.asarray, cupy.array, cupy.empty = ndarray, asarray, asarray, ndarray
    cupy.from_dlpack = lambda values: values.held
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: driver.pooled)
    cupy.cuda = types.SimpleNamespace(
        Device=device, memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    )
    return cupy
