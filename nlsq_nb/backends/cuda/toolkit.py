"""Which CUDA compiler there is: numba-cuda, or its successor numba-cuda-mlir, behind one name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from nlsq_nb.backends.cuda.native import Launcher
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.targets.cuda_common import COMMON, IMPORTS
from nlsq_nb.errors import BackendUnavailable

__all__ = ["DeviceFull", "Toolkit", "as_users", "empty", "free_memory", "on_device_number", "pinned", "toolkit"]

_INSTALL = "install the extra: pip install 'nlsq_nb[gpu]'"
_CHOICES = (  # what is installed, what is imported, what generated text imports
    ("numba_cuda", "numba", IMPORTS),
    (
        "numba_cuda_mlir",
        "numba_cuda_mlir",
        "from numba_cuda_mlir import cuda\nfrom numba_cuda_mlir.types import float64",
    ),
)


class DeviceFull(BackendUnavailable):
    """Memory that was asked for is not to be had."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA compiler.

    Attributes
    ----------
    installed, package : str
        What it is called, and where it is imported from.
    cuda : module
        `numba.cuda`, or what has its names.
    imports : str
        The lines that generated text begins with to be compiled by it.
    """

    installed: str
    package: str
    cuda: Any
    imports: str

    def load(self, text: str, injected: dict[str, Any] | None = None) -> ModuleType:
        """Generated text as a module of this compiler's kernels.

        Parameters
        ----------
        text : str
            From `codegen`.
        injected : dict, optional
            See `codegen.module.load`.

        Returns
        -------
        module
            Its functions are dispatchers.
        """
        return load(text.replace(IMPORTS, self.imports), injected)

    @property
    def common(self) -> ModuleType:
        """The kernels that no model shows in."""
        return self.load(COMMON)

    def configured(self, kernel: Any, blocks: int, threads: int, stream: Any) -> Launcher:
        """A kernel with its launch configuration."""
        return Launcher(self, kernel, blocks, threads, stream)


@cache
def toolkit() -> Toolkit:
    """The CUDA compiler of this process.

    Returns
    -------
    Toolkit
        numba-cuda, or numba-cuda-mlir where that is not installed.

    Raises
    ------
    BackendUnavailable
        When neither is installed, or there is no driver or no device; says which.
    """
    reasons = []
    for installed, package, imports in _CHOICES:
        if importlib.util.find_spec(installed) is None:
            continue
        try:
            cuda = importlib.import_module(f"{package}.cuda")
            if cuda.is_available():
                return Toolkit(installed, package, cuda, imports)
            reasons.append(f"{installed}: {_why_not(cuda)}")
        except Exception as error:  # noqa: BLE001 - half-installed, or an import that was interrupted
            reasons.append(f"{installed} cannot be imported: {error}")
    if not reasons:
        raise BackendUnavailable(f"backend='cuda' needs numba-cuda, which is not installed; {_INSTALL}")
    raise BackendUnavailable(
        f"backend='cuda' needs an NVIDIA driver and a device ({'; '.join(reasons)}); "
        "Model.source('cuda') shows the kernels without one"
    )


def _why_not(cuda: Any) -> str:
    """What the driver says."""
    try:
        error = cuda.cuda_error()
        return str(error).strip().splitlines()[0] if error else f"{len(cuda.gpus)} devices found"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
        return str(error).strip().splitlines()[0] or type(error).__name__


@contextmanager
def on_device_number(number: int) -> Iterator[None]:
    """Make a device the current one, for the compiler and for CuPy."""
    cupy = sys.modules.get("cupy")
    with toolkit().cuda.gpus[number]:
        if cupy is None:
            yield
        else:
            with cupy.cuda.Device(number):
                yield


def empty(size: int, dtype: Any) -> Any:
    """Uninitialised memory on the current device, wrapped for kernels.

    CuPy allocates it where the process has CuPy: two pools would take memory from each other.

    Parameters
    ----------
    size : int
        Number of elements.
    dtype : dtype_like
        Of each.

    Returns
    -------
    device array, shape (size,)
        Keeps its memory.

    Raises
    ------
    DeviceFull
        When the device has no memory left.
    """
    cuda, cupy = toolkit().cuda, sys.modules.get("cupy")
    if cupy is None:
        return _allocated(lambda: cuda.device_array(size, dtype), size, dtype, "the device")
    memory = _allocated(lambda: cupy.empty(size, dtype), size, dtype, "the device")
    return cuda.as_cuda_array(memory, sync=False)


def free_memory() -> int:
    """Bytes that `empty` may find on the current device, also those that CuPy keeps for later.

    Returns
    -------
    int
        In one piece or in several.
    """
    free, _ = toolkit().cuda.current_context().get_memory_info()
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return int(free)
    pool = cupy.get_default_memory_pool()
    return int(free) + int(pool.free_bytes())


def pinned(size: int, dtype: Any) -> Any:
    """Uninitialised memory of the host that a device copies from and to on its own.

    Parameters
    ----------
    size : int
        Number of elements.
    dtype : dtype_like
        Of each.

    Returns
    -------
    ndarray, shape (size,)
        Keeps its memory.

    Raises
    ------
    DeviceFull
        When the host cannot lock so much.
    """
    return _allocated(lambda: toolkit().cuda.pinned_array(size, dtype), size, dtype, "the host for transfers")


def _allocated(allocate: Callable[[], Any], size: int, dtype: Any, where: str) -> Any:
    """What a library allocates; being full is one error, whosever it is."""
    try:
        return allocate()
    except Exception as error:
        if not (isinstance(error, MemoryError) or "OUT_OF_MEMORY" in str(error)):
            raise
        raise DeviceFull(
            f"no memory is left on {where} for {size * np.dtype(dtype).itemsize} bytes; free some, or copy the data "
            "to the host and use backend='cpu'"
        ) from error


def as_users(array: Any, shape: tuple[int, ...]) -> Any:
    """What a user gets: CuPy's array where the process has CuPy, the compiler's own else; not copied.

    Parameters
    ----------
    array : device array
        From `empty`, flat.
    shape : tuple of int
        Its shape.

    Returns
    -------
    array on the device
        Of that shape.
    """
    cupy = sys.modules.get("cupy")
    return (array if cupy is None else cupy.asarray(array)).reshape(shape)
