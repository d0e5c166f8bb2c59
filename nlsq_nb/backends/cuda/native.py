"""Kernels as machine code: compiled for the types of their arguments, kept on disk, launched.

What is kept follows the rules of `backends.objects`: its name is a SHA-256 of everything that decides the code, and
only a file that is this user's own and intact is read. A process that finds all its kernels compiles nothing.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from nlsq_nb.backends.objects import Code, kept_code
from nlsq_nb.errors import BackendUnavailable, ModelError

__all__ = ["Launcher", "machine_code"]

Compute = tuple[int, int]


class Launcher:
    """A kernel in a stream, with its launch configuration.

    Parameters
    ----------
    tools : Toolkit
        The compiler.
    kernel : dispatcher
        Of a generated module.
    blocks, threads : int
        Of the grid.
    stream : stream
        Of the current device.
    """

    __slots__ = ("_compute", "_config", "_flat", "_kernel", "_launch", "_stream", "_tools")

    def __init__(self, tools: Any, kernel: Any, blocks: int, threads: int, stream: Any) -> None:
        core: Any = importlib.import_module("cuda.core")
        self._tools, self._kernel = tools, kernel
        self._flat = _ARGUMENTS[tools.package]
        self._launch = core.launch
        self._config = core.LaunchConfig(grid=blocks, block=threads)
        self._stream = core.Stream.from_handle(int(getattr(stream.handle, "value", stream.handle) or 0))
        self._compute: Compute = tuple(tools.cuda.get_current_device().compute_capability)

    def __call__(self, *arguments: Any) -> None:
        """Launch it: one-dimensional arrays on the device, and integers."""
        kinds = tuple("" if isinstance(a, int) else _kind(a) for a in arguments)
        native = _native(self._tools, self._kernel, kinds, self._compute)
        flat: list[int] = []
        for argument in arguments:
            flat += [argument] if isinstance(argument, int) else self._flat(argument)
        self._launch(self._stream, self._config, native, *flat)


def _kind(array: Any) -> str:
    """Dtype of an array, and "strided" where elements do not lie side by side."""
    dtype = np.dtype(array.dtype)
    return dtype.name if array.strides == (dtype.itemsize,) else f"{dtype.name} strided"


def _address(array: Any) -> int:
    return int(array.__cuda_array_interface__["data"][0])


def _as_struct(array: Any) -> list[int]:
    """numba-cuda's array: owner, parent, items, bytes of one, address, shape, strides."""
    return [0, 0, array.size, array.dtype.itemsize, _address(array), array.shape[0], array.strides[0]]


def _as_memref(array: Any) -> list[int]:
    """numba-cuda-mlir's array: allocated and aligned address, offset, shape, strides in elements."""
    address = _address(array)
    return [address, address, 0, array.shape[0], array.strides[0] // array.dtype.itemsize]


_ARGUMENTS: dict[str, Callable[[Any], list[int]]] = {"numba": _as_struct, "numba_cuda_mlir": _as_memref}


@lru_cache(maxsize=1024)
def _native(tools: Any, kernel: Any, kinds: tuple[str, ...], compute: Compute) -> Any:
    """A kernel for some types of arguments, ready to be launched on devices of a compute capability."""
    function = kernel.py_func
    module = function.__globals__
    parts = [module["__name__"], function.__name__, kinds, compute, _versions(tools.installed)]
    # the module's name is a digest of its text, which holds everything but functions that were handed in
    key = None if "point" in module else json.dumps(parts)

    def compile_it() -> Code:
        types = importlib.import_module(f"{tools.package}.types")
        signature = types.void(*(_type(types, kind) for kind in kinds))
        try:
            ptx, _ = tools.cuda.compile(function, signature, cc=compute, device=False, abi="numba", output="ptx")
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            if "point" in module:
                raise ModelError(f"point or jac_point cannot be compiled for a GPU: {first}") from error
            raise BackendUnavailable(
                f"{tools.installed} cannot compile {function.__name__} ({type(error).__name__}: {first}); numba-cuda "
                "needs NumPy < 2.5, numba-cuda-mlir does not"
            ) from error
        found = re.search(r"\.visible\s+\.entry\s+([\w$.]+)", ptx)
        assert found is not None
        return Code(machine_code(ptx, compute), (found[1],))

    code = kept_code(key, function.__name__, compile_it)
    core: Any = importlib.import_module("cuda.core")
    return core.ObjectCode.from_cubin(code.image).get_kernel(code.needs[0])


def _versions(compiler: str) -> list[str]:
    """What is installed of that which makes machine code; "" for the rest."""
    parts = ["nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12"]
    found = []
    for name in (compiler, "cuda-core", *parts):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found


def _type(types: Any, kind: str) -> Any:
    """The compiler's type of an argument."""
    if not kind:
        return types.int64
    name, _, strided = kind.partition(" ")
    return types.Array(getattr(types, {"bool": "boolean"}.get(name, name)), 1, "A" if strided else "C")


def machine_code(ptx: str, compute: Compute) -> bytes:
    """PTX as machine code of a device.

    Parameters
    ----------
    ptx : str
        Of one kernel.
    compute : (int, int)
        Compute capability.

    Returns
    -------
    bytes
        An ELF file.
    """
    core: Any = importlib.import_module("cuda.core")
    options = core.LinkerOptions(arch=f"sm_{compute[0]}{compute[1]}")
    linker = core.Linker(core.ObjectCode.from_ptx(ptx.encode()), options=options)
    return bytes(linker.link("cubin").code)
