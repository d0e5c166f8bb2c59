"""The CPU backend: generated nogil kernels over the block grid, threads over segments."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.entries import Bound, bind, kernel_entry
from nlsq_nb.backends.objects import Entry
from nlsq_nb.backends.reference import ReferenceBackend, ReferenceKernel, block_triangle
from nlsq_nb.backends.small import compiled, compiled_run, fold_segments
from nlsq_nb.backends.team import Team, free_team, give_back
from nlsq_nb.codegen.functions import ARITY
from nlsq_nb.codegen.ir import AnyProgram, OpaqueProgram, PointProgram, Program
from nlsq_nb.core.chunk import Chunk, Resident, address_of
from nlsq_nb.core.compensated import total_of
from nlsq_nb.core.layout import BLOCK, RESIDENT_ROWS, SHARED_ROWS, sums_size
from nlsq_nb.core.losses import LEAST_SQUARES, Loss
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.core.tsqr import TriangleAccumulator

__all__ = ["CpuBackend", "CpuKernel", "available_cores"]

Floats = NDArray[np.float64]
_INLINE = 1e-4  # seconds of work; handing a share to another thread and back takes about half of it
_AT_ONCE = 1e-2  # seconds of one thread: native code that makes longer passes has to look for Ctrl-C in between
_STATES = 1 << 24  # bytes of sums of segments held at a time
_PER_OPERATION = 1e-10  # seconds of one thread, vectorised
_TRIANGLES = 256  # blocks whose triangles are held at a time
_PER_TRIANGLE = 2e-4  # seconds of one thread, or more
_CALL = 15  # operations in a transcendental function


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
    """A program whose entry points are compiled, or loaded from disk, when first needed.

    Attributes
    ----------
    program : Program or PointProgram
        What they compute.
    dtype : numpy.dtype
        Storage dtype of the columns; sums are float64 always.
    loss : Loss
        What weighs the residuals.
    """

    program: Program | PointProgram
    dtype: np.dtype[Any]
    loss: Loss = LEAST_SQUARES
    _operations: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Count what the body of a point computes."""
        if isinstance(self.program, PointProgram):
            count = _CALL
        else:
            count = sum(_CALL if i.op in ARITY else 1 for i in self.program.body)
        if self.loss.is_robust:
            count += _CALL
        object.__setattr__(self, "_operations", count)

    def entry(self, name: str, chunk: Chunk, *rest: Any) -> Bound:
        """An entry point of the generated module, compiled for the chunk's columns and bound to them.

        Parameters
        ----------
        name : {"sums0", "sums1", "sums2", "matvec", "rows"}
            Which one.
        chunk : Chunk
            Gives the columns, and whether there are weights.
        *rest : ndarray
            See `entries.bind`.

        Returns
        -------
        callable
            `entry(lo, hi, theta, state)` over rows of the chunk.
        """
        return bind(self.program, name, chunk, self.dtype, *rest, loss=self.loss)

    def seconds_per_row(self, order: int) -> float:
        """Roughly what one row of a pass costs one thread; libm and hand-written code cost more."""
        size = sums_size(self.program.n_params, order)
        return _PER_OPERATION * (size + self._operations)


@lru_cache(maxsize=256)
def _kernel(program: Program | PointProgram, dtype: np.dtype[Any], loss: Loss) -> CpuKernel:
    return CpuKernel(program, dtype, loss)


@lru_cache(maxsize=256)
def _sums(kernel: CpuKernel, weighted: bool) -> Entry:
    loss = kernel.loss.kind
    return kernel_entry(kernel.program, "sums2", kernel.dtype.name, weighted=weighted, loss=loss)


class CpuBackend:
    """Reduces chunks on the host.

    Parameters
    ----------
    n_threads : int, optional
        Threads; by default the cores available. Any number gives the same bits.
    """

    name = "cpu"

    def __init__(self, n_threads: int | None = None) -> None:
        self._asked = n_threads
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._lock = threading.Lock()
        self._own = threading.local()
        self._numpy = ReferenceBackend()

    @cached_property
    def n_threads(self) -> int:
        """Threads of a long pass."""
        return self._asked or available_cores()

    def compile(
        self, program: AnyProgram, dtype: Any, loss: Loss = LEAST_SQUARES
    ) -> CpuKernel | ReferenceKernel:
        """Make a kernel; NumPy functions are called as they are. See `Backend.compile`."""
        if isinstance(program, OpaqueProgram):
            return self._numpy.compile(program, dtype, loss)
        return _kernel(program, np.dtype(dtype), loss)

    def put(self, chunk: Chunk, dtype: Any) -> Chunk:
        """The chunk as contiguous columns of the storage dtype; see `Backend.put`."""
        stored = np.dtype(dtype)
        for column in (*chunk.x, *chunk.y, *(chunk.w or ())):
            if column.dtype != stored or not column.flags.c_contiguous:
                return self._numpy.put(chunk, dtype)
        return chunk

    def reduce(
        self, kernel: Any, chunk: Chunk, theta: Floats, order: int, into: Accumulator
    ) -> None:
        """Add the chunk's sums; see `Backend.reduce`."""
        if isinstance(kernel, ReferenceKernel):
            self._numpy.reduce(kernel, chunk, theta, order, into)
            return
        theta = np.array(theta, dtype=np.float64)  # writable and contiguous, whoever holds it
        sums = kernel.entry(f"sums{order}", chunk)
        pieces = into.pieces(chunk.n_rows)
        at_once = max(self.n_threads, _STATES // into.open.nbytes)
        for begin in range(0, len(pieces), at_once):
            some = pieces[begin : begin + at_once]
            states = into.new_state(begin == 0, len(some))
            rows = some[-1][1] - some[0][0]
            seconds = rows * kernel.seconds_per_row(order)
            self._fold(sums, some, theta, states, seconds)
            into.add(states, rows, fold_segments)

    def matvec(self, kernel: Any, chunk: Chunk, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over the chunk; see `Backend.matvec`."""
        if isinstance(kernel, ReferenceKernel):
            return self._numpy.matvec(kernel, chunk, theta, v)
        theta, v = (np.array(a, dtype=np.float64) for a in (theta, v))
        product = kernel.entry("matvec", chunk, v)
        pieces = Accumulator(1, 0).pieces(chunk.n_rows)
        states = np.zeros((2 * len(pieces), len(theta)))
        seconds = chunk.n_rows * kernel.seconds_per_row(1)
        self._fold(product, pieces, theta, states, seconds)
        running = np.zeros((4, len(theta)))
        fold_segments(running, 0, states)
        product_sums: Floats = total_of(running, len(pieces)).sum(axis=0)
        return product_sums

    def triangularize(
        self, kernel: Any, chunk: Chunk, theta: Floats, into: TriangleAccumulator
    ) -> None:
        """Add the triangles of the chunk's blocks; see `Backend.triangularize`.

        NumPy evaluates them: that takes less time than LAPACK, and no kernel has to be compiled.
        """
        if isinstance(kernel, ReferenceKernel):
            self._numpy.triangularize(kernel, chunk, theta, into)
            return
        blocks = range(0, chunk.n_rows, BLOCK)
        for begin in range(0, len(blocks), _TRIANGLES):
            some = blocks[begin : begin + _TRIANGLES]
            found: list[Any] = [None] * len(some)

            def work(k: int, some: range = some, found: list[Any] = found) -> None:
                found[k] = block_triangle(kernel.program, chunk, some[k], theta)

            self._spread(work, len(some), len(some) * _PER_TRIANGLE)
            into.add(found)

    def rows(self, program: AnyProgram, name: str, chunk: Chunk, theta: Floats) -> Floats:
        """Values or residuals of each row, by NumPy; see `Backend.rows`."""
        return self._numpy.rows(program, name, chunk, theta)

    def resident(self, kernel: Any, chunk: Chunk) -> Resident | None:
        """The chunk for the phases in native code; see `Backend.resident`."""
        if not isinstance(kernel, CpuKernel):
            return None
        led = self._led(kernel, chunk) if chunk.n_rows > SHARED_ROWS else None
        if led is not None or chunk.n_rows > RESIDENT_ROWS:
            return led
        entry = _sums(kernel, chunk.w is not None)
        columns = (*chunk.x, *chunk.y, *(chunk.w or ()))
        if kernel.loss.is_robust:
            columns = (*columns, kernel.loss.numbers())
        places = tuple([address_of(c) for c in columns])
        return Resident(entry.address, places, chunk.n_rows, (entry, columns))

    def _led(self, kernel: CpuKernel, chunk: Chunk) -> Resident | None:
        """The same of more rows, which threads share while they are at hand."""
        team, whole, program = self._team, compiled("run_whole"), kernel.program
        if team is None or whole is None or isinstance(program, PointProgram):
            return None
        if chunk.n_rows * kernel.seconds_per_row(2) > _AT_ONCE:
            return None
        work, pieces = kernel.entry("sums2", chunk), Accumulator(1, 0).pieces(chunk.n_rows)
        place, kept = team.plan(work, pieces, min(self.n_threads, len(pieces)) - 1)
        return Resident(whole.address, (place,), chunk.n_rows, (whole, kept), chunk.n_rows)

    def release(self) -> None:
        """End the threads; see `Backend.release`."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def in_use(self) -> AbstractContextManager[None]:
        """Keep threads at hand between passes: to start them takes as long as a short one; see `Backend.in_use`."""
        if self._team is not None or self.n_threads < 2 or compiled_run() is None:
            return nullcontext()
        return _InUse(self._own, stays=self.n_threads <= available_cores())

    @property
    def _team(self) -> Team | None:
        """What this thread has at hand."""
        use = getattr(self._own, "use", _nothing)()
        return None if use is None else use.team

    def _fold(self, work: Bound, pieces: list[tuple[int, int]], theta: Floats, states: Floats, seconds: float) -> None:
        """Fold pieces into their states: in threads if it takes so long that they pay."""
        threads = min(self.n_threads, len(pieces))
        if threads <= 1 or seconds < _INLINE or compiled_run() is None:
            _fold_alone(work, pieces, theta, states)
            return
        own = self._team
        team = own or free_team()
        team.run(work, pieces, theta, states, threads - 1)
        if own is None:
            give_back(team)

    def _spread(self, work: Callable[[int], None], count: int, seconds: float) -> None:
        """Do `work(k)` for all k of range(count): in threads if it takes so long that they pay."""
        threads, waiting = min(self.n_threads, count), deque(range(count))

        def run() -> None:
            while waiting:
                try:
                    k = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                work(k)

        futures = list[Future[None]]()
        try:
            try:
                with suppress(RuntimeError):  # no thread can be started: one is enough
                    for _ in range(threads - 1 if seconds >= _INLINE else 0):
                        futures.append(self._threads().submit(run))
                run()
            finally:
                waiting.clear()
                for future in futures:
                    if not future.cancel():
                        future.result()
        except BaseException:
            self._pool = None  # what a signal has raised may have left a lock locked, in `submit` or `result`
            raise

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            process = os.getpid()
            if self._pool is None or self._process != process:  # threads do not survive a fork
                self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="nlsq_nb")
                self._process = process
            return self._pool


def _nothing() -> None:
    """Stands for what is not referred to."""


class _InUse:
    """Threads at hand, as long as this is entered; where a signal keeps it from being left, as long as it lives."""

    def __init__(self, own: threading.local, *, stays: bool) -> None:
        self._own, self._stays = own, stays
        self.team: Team | None = None

    def __enter__(self) -> None:
        self.team = free_team()
        self.team.stay(stays=self._stays)
        self._own.use = weakref.ref(self)

    def __exit__(self, *_: object) -> None:
        team, self.team = self.team, None
        if team is not None:
            give_back(team)


def _fold_alone(work: Bound, pieces: list[tuple[int, int]], theta: Floats, states: Floats) -> None:
    """Fold pieces into their states, in as few calls as the grid allows."""
    first = 0
    if len(pieces) > 1:  # the first may be the rest of a segment: not on the kernel's grid
        work(*pieces[0], theta, states[:2])
        first = 1
    work(pieces[first][0], pieces[-1][1], theta, states[2 * first :])
