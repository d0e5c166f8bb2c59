"""`CudaBackend`: data that stay are put on the devices once, others are streamed through them."""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.cuda.columns import DeviceColumn, put_column, read_variables
from nlsq_nb.backends.cuda.devices import Device
from nlsq_nb.backends.cuda.kernels import CudaKernel, block_count, compile_program
from nlsq_nb.backends.cuda.passes import PIECE, Part, Pass
from nlsq_nb.backends.cuda.toolkit import DeviceFull, as_users, empty, free_memory, on_device_number, toolkit
from nlsq_nb.backends.reference import ReferenceBackend
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.losses import LEAST_SQUARES, Loss
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.core.tsqr import TriangleAccumulator
from nlsq_nb.errors import BackendUnavailable

__all__ = ["CudaBackend"]

Floats = NDArray[np.float64]
_log = logging.getLogger("nlsq_nb.backends")
_TRIANGLES = 64  # blocks that are copied to the host at a time
_SHARE = 0.8  # of what is free, for data that stay


@dataclass(frozen=True, slots=True)
class _Placed(Chunk):
    """A chunk that lies on devices."""

    parts: tuple[Part, ...] = ()


class _Devices(dict[int, Device]):
    """Devices by number, made when they are first used."""

    def __missing__(self, number: int) -> Device:
        self[number] = Device(number)
        return self[number]


class CudaBackend:
    """Reduces chunks on CUDA devices.

    Parameters
    ----------
    multi_device : bool
        Use all visible devices; rows that come from the host are divided among them.
    memory : int, optional
        Bytes per device that may be taken for data; four fifths of what is free by default. What
        does not fit is streamed in every pass.

    Raises
    ------
    BackendUnavailable
        When there is no CUDA compiler, driver or device.
    """

    name = "cuda"

    def __init__(self, *, multi_device: bool = False, memory: int | None = None) -> None:
        cuda = toolkit().cuda
        try:
            first = int(cuda.get_current_device().id)
        except Exception as error:
            raise BackendUnavailable(
                f"this process cannot use a CUDA device ({error}); a process that was forked from one that uses "
                "CUDA cannot: start it with 'spawn'"
            ) from error
        self._numbers = list(range(len(cuda.gpus))) if multi_device else [first]
        self._memory = memory
        self._own = threading.local()
        self._numpy: Any = ReferenceBackend()
        self._placed: dict[tuple[int, ...], tuple[Part, ...] | None] = {}
        self._held = 0
        self._lock = threading.Lock()

    def compile(
        self, program: AnyProgram, dtype: Any, loss: Loss = LEAST_SQUARES
    ) -> CudaKernel:
        """Make a kernel; see `Backend.compile`."""
        return compile_program(program, dtype, loss)

    def put(self, chunk: Chunk, dtype: Any) -> Chunk:
        """The chunk on the devices, if it stays as it is and fits; else itself. See `Backend.put`."""
        if not chunk.is_on_host:
            return self._there(chunk)
        if isinstance(chunk, _Placed) or not chunk.lasting:
            return chunk
        columns: tuple[Any, ...] = (*chunk.x, *chunk.y, *(chunk.w or ()))
        key = (*(id(c) for c in columns), np.dtype(dtype).num)
        with self._lock:
            if key not in self._placed:
                self._placed[key] = self._place(chunk, np.dtype(dtype))
                weakref.finalize(columns[0], self._forget, key)
            parts = self._placed[key]
        return chunk if parts is None else _Placed(chunk.start, chunk.x, chunk.y, chunk.w, parts=parts)

    def reduce(
        self, kernel: CudaKernel, chunk: Chunk, theta: Floats, order: int, into: Accumulator
    ) -> None:
        """Begin to add the chunk's sums, which `into` fetches in the end; see `Backend.reduce`."""
        work = into.deferred
        if work is None:
            work = self._pass(kernel, theta, order)
        into.defer(work, chunk.n_rows)
        self._give(work, chunk)

    def matvec(self, kernel: CudaKernel, chunk: Chunk, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over the chunk; see `Backend.matvec`."""
        work = self._pass(kernel, np.concatenate([theta, v]), None)
        self._give(work, chunk)
        high, low = work.collect()
        return high + low

    def triangularize(
        self, kernel: CudaKernel, chunk: Chunk, theta: Floats, into: TriangleAccumulator
    ) -> None:
        """Add the triangles of the chunk's blocks, by NumPy on the host; see `Backend.triangularize`."""
        step = _TRIANGLES * BLOCK
        for lo in range(0, chunk.n_rows, step):
            self._numpy.triangularize(kernel, chunk.host(slice(lo, lo + step)), theta, into)

    def resident(self, kernel: CudaKernel, chunk: Chunk) -> None:
        """No native code of the host runs on a device; see `Backend.resident`."""

    def in_use(self) -> AbstractContextManager[None]:
        """A device is at hand; see `Backend.in_use`."""
        return nullcontext()

    def release(self) -> None:
        """Free streams, buffers and the copies of data; see `Backend.release`."""
        with self._lock:
            self._placed.clear()
            self._held = 0
        for device in self._devices.values():
            device.release()
        self._own.devices = None

    def rows(self, program: AnyProgram, name: str, chunk: Chunk, theta: Floats) -> Any:
        """Numbers of each row, where the rows are; see `Backend.rows`. A "jacobian" is of shape (m, p, rows)."""
        if chunk.is_on_host:
            return self._numpy.rows(program, name, chunk, theta)
        kernel = self.compile(program, chunk.y[0].dtype)
        (part,) = self._there(chunk).parts
        shape = (program.n_outputs, *((program.n_params,) if name == "jacobian" else ()), part.rows)
        with on_device_number(part.device):
            device = self._devices[part.device]
            device.settle()
            out = empty(math.prod(shape), np.float64)
            used = program.n_vars + (program.n_outputs if name == "residuals" else 0)
            launch = device.lanes[0].launcher(kernel.single(name), block_count(part.rows))
            launch(*part.columns[:used], part.begin, part.rows, device.upload(np.asarray(theta)), out)
            device.await_sums()
            return as_users(out, shape)

    def values(self, program: AnyProgram, x: Any, names: Sequence[str], theta: Floats) -> Any:
        """Model values at rows that have no observations.

        Parameters
        ----------
        program : Program or PointProgram
            The model.
        x : array or sequence or mapping of arrays
            Independent variables on a device.
        names : sequence of str
            Theirs.
        theta : ndarray, shape (p,)
            Where.

        Returns
        -------
        array on the device, shape (m, rows)
            float64.
        """
        columns: tuple[Any, ...] = read_variables(x, names)
        return self.rows(program, "values", Chunk(0, columns, columns[:1]), theta)

    # -- parts ----------------------------------------------------------------------------------
    @property
    def _devices(self) -> _Devices:
        """The devices of this thread: streams and buffers are for one pass at a time."""
        known: _Devices | None = getattr(self._own, "devices", None)
        if known is None:
            known = self._own.devices = _Devices()
        return known

    def _there(self, chunk: Chunk) -> _Placed:
        """A chunk whose columns lie on a device."""
        columns: tuple[Any, ...] = (*chunk.x, *chunk.y, *(chunk.w or ()))
        first: DeviceColumn = columns[0]
        part = Part(first.device, tuple(c.array for c in columns), first.begin, chunk.n_rows)
        return _Placed(chunk.start, chunk.x, chunk.y, chunk.w, parts=(part,))

    def _pass(self, kernel: CudaKernel, theta: Floats, order: int | None) -> Pass:
        at = np.asarray(theta, dtype=np.float64)
        if kernel.loss.is_robust:
            at = np.concatenate([at, kernel.loss.numbers()])
        return Pass(self._devices, self._numbers, kernel, at, order, self._piece_rows)

    def _give(self, work: Pass, chunk: Chunk) -> None:
        """Add a chunk to a pass."""
        if isinstance(chunk, _Placed):
            work.add_parts(chunk.parts, weighted=chunk.w is not None)
        else:
            work.add_chunk(chunk)

    def _piece_rows(self, device: Device, bytes_per_row: int) -> int:
        """Rows of a streamed piece."""
        return device.piece_rows(bytes_per_row, PIECE, self._budget(device.number))

    def _budget(self, number: int) -> int:
        """Bytes that data may take on a device now."""
        with on_device_number(number):
            available = int(_SHARE * free_memory())
        return available if self._memory is None else max(0, min(available, self._memory - self._held))

    def _place(self, chunk: Chunk, dtype: np.dtype[Any]) -> tuple[Part, ...] | None:
        """Copy a chunk to the devices, a share of the rows each; None when it does not fit."""
        columns = (*chunk.x, *chunk.y, *(chunk.w or ()))
        share = -(-chunk.n_rows // len(self._numbers))
        size = share * len(columns) * dtype.itemsize
        if size > min(self._budget(number) for number in self._numbers):
            _log.info("data of %d bytes per device are streamed: its memory is not enough for them", size)
            return None
        parts = []
        try:
            for k, number in enumerate(self._numbers):
                rows = slice(k * share, min((k + 1) * share, chunk.n_rows))
                if rows.start >= rows.stop:
                    break
                with on_device_number(number):
                    stream = self._devices[number].lanes[0].stream
                    put = tuple(put_column(np.asarray(c)[rows], dtype, stream).array for c in columns)
                parts.append(Part(number, put, 0, rows.stop - rows.start))
        except DeviceFull as error:
            _log.info("the device is full: data are streamed in every pass (%s)", error)
            return None
        self._held += size
        return tuple(parts)

    def _forget(self, key: tuple[int, ...]) -> None:
        """Let copies of data go whose original is gone."""
        parts = self._placed.pop(key, None)
        if parts is not None:
            self._held -= sum(c.nbytes for c in parts[0].columns)
