"""Which CUDA compiler there is: numba-cuda, or its successor numba-cuda-mlir, behind one name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from nlsq_nb.backends.cuda.native import Launcher
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.targets.cuda_common import COMMON, IMPORTS
from nlsq_nb.errors import BackendUnavailable

__all__ = ["Toolkit", "as_users", "empty", "is_out_of_memory", "on_device_number", "toolkit"]

_INSTALL = "install the extra: pip install 'nlsq_nb[gpu]'"
_CHOICES = (  # what is installed, what is imported, what generated text imports
    ("numba_cuda", "numba", IMPORTS),
    (
        "numba_cuda_mlir",
        "numba_cuda_mlir",
        "from numba_cuda_mlir import cuda\nfrom numba_cuda_mlir.types import float64",
    ),
)


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
        except ImportError as error:
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
    """
    cuda, cupy = toolkit().cuda, sys.modules.get("cupy")
    if cupy is None:
        return cuda.device_array(size, dtype)
    return cuda.as_cuda_array(cupy.empty(size, dtype), sync=False)


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed because the device is full.

    Parameters
    ----------
    error : BaseException
        Of any library.

    Returns
    -------
    bool
        False for any other failure.
    """
    return isinstance(error, MemoryError) or "OUT_OF_MEMORY" in str(error)
