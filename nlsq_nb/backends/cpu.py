"""The CPU backend: generated nogil kernels over the block grid, threads over segments."""

from __future__ import annotations

import logging
import os
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.reference import ReferenceBackend, ReferenceKernel
from nlsq_nb.codegen.ir import AnyProgram, OpaqueProgram, PointProgram, Program
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.errors import ModelError

__all__ = ["CpuBackend", "CpuKernel", "available_cores"]

Floats = NDArray[np.float64]
_log = logging.getLogger("nlsq_nb.backends")


def available_cores() -> int:
    """Cores that this process may run on.

    Returns
    -------
    int
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class CpuKernel:
    """A program whose generated modules are loaded and compiled when first needed.

    Attributes
    ----------
    program : Program or PointProgram
        What they compute.
    dtype : numpy.dtype
        Storage dtype of the columns; sums are float64 always.
    """

    program: Program | PointProgram
    dtype: np.dtype[Any]
    _ready: dict[tuple[Any, ...], Callable[..., None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def module(self, *, weighted: bool) -> types.ModuleType:
        """The generated module for weighted or unweighted residuals."""
        return _module(self.program, weighted=weighted)

    def entry(self, name: str, chunk: Chunk, *rest: Any) -> Callable[..., None]:
        """An entry point of the generated module, compiled for the chunk's columns.

        Parameters
        ----------
        name : str
            "sums0", "sums1", "sums2" or "matvec".
        chunk : Chunk
            Gives the types of the columns, and whether there are weights.
        *rest : ndarray
            Arguments after the columns.

        Returns
        -------
        callable
            `entry(lo, hi, *rest)` over rows of the chunk.
        """
        columns = (*chunk.x, *chunk.y, *(chunk.w or ()))
        arrays = (*columns, *rest)
        # all that Numba tells arrays apart by
        kinds = (name, chunk.w is None, *[(a.dtype, a.ndim, a.flags.num) for a in arrays])
        function = self._ready.get(kinds)
        if function is None:
            function = self._ready[kinds] = self._compiled(name, chunk.w is not None, arrays)
        return lambda lo, hi, *tail: function(lo, hi, *columns, *tail)

    def _compiled(
        self, name: str, weighted: bool, arrays: tuple[NDArray[Any], ...]
    ) -> Callable[..., None]:
        """The entry point, called once."""
        module = self.module(weighted=weighted)
        try:
            # no rows: compiles, or loads from disk, before threads start
            getattr(module, name)(0, 0, *arrays)
        except Exception as error:
            if isinstance(self.program, PointProgram):
                first = str(error).strip().splitlines()[0]
                raise ModelError(f"point or jac_point cannot be compiled: {first}") from error
            if not module.CACHE:
                raise
            # Numba's files beside the module are damaged: do without them from now on
            _log.warning("the compiled kernel in %s cannot be loaded; compiling anew", module.__file__)
            module = _uncached(self.program, weighted=weighted)
        function: Callable[..., None] = getattr(module, name)
        return function


@lru_cache(maxsize=128)
def _module(program: Program | PointProgram, *, weighted: bool) -> types.ModuleType:
    """The generated module; a second fit of the same model costs one hash."""
    injected = None
    if isinstance(program, PointProgram):  # compiled so that the kernels can inline them
        from numba import njit

        compiled = njit(error_model="numpy")
        injected = {
            "point": compiled(program.point),
            "jac_point": compiled(program.jac_point),
        }
    return load(render(program, "cpu", weighted), injected)


@lru_cache(maxsize=128)
def _uncached(program: Program | PointProgram, *, weighted: bool) -> types.ModuleType:
    """The generated module apart from any file."""
    return load(render(program, "cpu", weighted), {})


class CpuBackend:
    """Reduces chunks on the host.

    Parameters
    ----------
    n_threads : int, optional
        Threads; by default the cores available. Any number gives the same bits.
    """

    name = "cpu"

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = n_threads or available_cores()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._numpy = ReferenceBackend()

    def compile(self, program: AnyProgram, dtype: Any) -> CpuKernel | ReferenceKernel:
        """Make a kernel; NumPy functions are called as they are. See `Backend.compile`."""
        if isinstance(program, OpaqueProgram):
            return self._numpy.compile(program, dtype)
        return CpuKernel(program, np.dtype(dtype))

    def put(self, chunk: Chunk, dtype: Any) -> Chunk:
        """The chunk as contiguous columns of the storage dtype; see `Backend.put`."""
        stored = np.dtype(dtype)
        columns = (*chunk.x, *chunk.y, *(chunk.w or ()))
        if all(c.dtype == stored and c.flags.c_contiguous for c in columns):
            return chunk
        return self._numpy.put(chunk, dtype)

    def reduce(
        self, kernel: Any, chunk: Chunk, theta: Floats, order: int, into: Accumulator
    ) -> None:
        """Add the chunk's sums; see `Backend.reduce`."""
        if isinstance(kernel, ReferenceKernel):
            self._numpy.reduce(kernel, chunk, theta, order, into)
            return
        pieces = into.pieces(chunk.n_rows)
        if len(pieces) == 1:
            state = into.new_state(first=True)
            kernel.entry(f"sums{order}", chunk, theta, state)(0, chunk.n_rows, theta, state)
            into.add(state, chunk.n_rows)
            return
        states = [into.new_state(first=index == 0) for index in range(len(pieces))]
        sums = kernel.entry(f"sums{order}", chunk, theta, into.open)

        def fold(share: slice) -> None:
            for (lo, hi), state in zip(pieces[share], states[share], strict=True):
                sums(lo, hi, theta, state)

        self._spread(fold, len(pieces))
        for (lo, hi), state in zip(pieces, states, strict=True):
            into.add(state, hi - lo)

    def matvec(self, kernel: Any, chunk: Chunk, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over the chunk; see `Backend.matvec`."""
        if isinstance(kernel, ReferenceKernel):
            return self._numpy.matvec(kernel, chunk, theta, v)
        state = np.zeros((2, len(theta)))
        kernel.entry("matvec", chunk, theta, v, state)(0, chunk.n_rows, theta, v, state)
        return np.asarray(state[0] + state[1])

    def release(self) -> None:
        """End the threads; see `Backend.release`."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _spread(self, work: Callable[[slice], None], count: int) -> None:
        """Run `work` on the slices of range(count), one per thread; inline for one."""
        threads = min(self.n_threads, count)
        if threads <= 1:
            work(slice(0, count))
            return
        bounds = np.linspace(0, count, threads + 1).astype(int)
        shares = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="nlsq_nb")
            pool = self._pool
        futures = [pool.submit(work, share) for share in shares[1:]]
        try:
            work(shares[0])
        finally:
            for future in futures:
                future.result()
