"""One pass: launches over the pieces of the data, whose sums meet on the devices until they are asked for.

Per device and evaluation there are two small transfers: the parameters in, the sums out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.cuda.devices import Device, Lane
from nlsq_nb.backends.cuda.kernels import CudaKernel, block_count
from nlsq_nb.backends.cuda.toolkit import DeviceFull, on_device_number, toolkit
from nlsq_nb.codegen.targets.cuda_common import TILE
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.compensated import add_compensated
from nlsq_nb.core.layout import sums_size

__all__ = ["Part", "Pass"]

Floats = NDArray[np.float64]
PIECE = 1 << 20
"""Rows of a piece of streamed data."""

_SPACE = 1 << 23  # float64 of the stored Jacobian of a piece, where JᵀWJ is too large for registers
_SLICES = 64  # parts that such a piece is multiplied out in


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that lie on one device.

    Attributes
    ----------
    device : int
        Where.
    columns : tuple of device array
        x, y and w.
    begin, rows : int
        Which of their rows.
    """

    device: int
    columns: tuple[Any, ...]
    begin: int
    rows: int


@dataclass(slots=True)
class _Work:
    """What one device has been given in a pass."""

    device: Device
    theta: Any
    blocks: int
    partials: tuple[Any, Any, Any]
    begun: list[bool] = field(default_factory=lambda: [False, False])


class Pass:
    """A pass that has begun.

    Parameters
    ----------
    devices : mapping of int to Device
        By their numbers.
    numbers : sequence of int
        Those that streamed pieces go to in turn.
    kernel : CudaKernel
        What is summed.
    theta : ndarray
        Where, (p,); for a matvec v follows, then the numbers of a robust loss.
    order : int or None
        0, 1 or 2; None is a matvec.
    piece_rows : callable
        (device, bytes per row) → rows of a streamed piece.
    """

    def __init__(
        self,
        devices: dict[int, Device],
        numbers: Sequence[int],
        kernel: CudaKernel,
        theta: Floats,
        order: int | None,
        piece_rows: Callable[[Device, int], int],
    ) -> None:
        self._devices, self._numbers = devices, numbers
        self._kernel, self._theta = kernel, theta
        self._piece_rows = piece_rows
        p = kernel.program.n_params
        self._entry = "matvec" if order is None else f"sums{order}"
        self._size = p if order is None else sums_size(p, order)
        self._tiled = order == 2 and kernel.is_tiled
        self._work: dict[int, _Work] = {}
        self._pieces = 0

    def add_parts(self, parts: Sequence[Part], *, weighted: bool) -> None:
        """Take rows that lie on devices: one launch each, where the sums fit the registers.

        Parameters
        ----------
        parts : sequence of Part
            In row order.
        weighted : bool
            Whether the last columns are weights.
        """
        for part in parts:
            with on_device_number(part.device):
                work = self._begin(self._devices[part.device], 0, part.rows)
                self._launch(work, 0, part.columns, (part.begin, part.rows), weighted)

    def add_chunk(self, chunk: Chunk) -> None:
        """Take rows on the host: in pieces, to the devices and their two lanes in turn.

        Parameters
        ----------
        chunk : Chunk
            Valid until this returns.
        """
        columns = [*chunk.x, *chunk.y, *(chunk.w or ())]
        devices = [self._devices[number] for number in self._numbers]
        width = len(columns) * self._kernel.dtype.itemsize
        lo = 0
        while lo < chunk.n_rows:
            step = min(self._piece_rows(device, width) for device in devices)
            turn, which = divmod(self._pieces, len(devices))
            device, pieces, lane = devices[which], [column[lo : lo + step] for column in columns], turn % 2
            rows = len(pieces[0])
            with on_device_number(device.number):
                try:
                    work = self._begin(device, lane, min(step, chunk.n_rows))
                    staged = device.lanes[lane].stage(pieces, self._kernel.dtype)
                except DeviceFull:
                    if device.shorten_pieces(width):
                        continue  # nothing of this piece has been given to the device
                    raise
                self._launch(work, lane, tuple(staged), (0, rows), chunk.w is not None)
            self._pieces += 1
            lo += rows

    def collect(self) -> tuple[Floats, Floats]:
        """Wait for the sums.

        Returns
        -------
        tuple of ndarray
            High and low sums; devices are added in the order of their numbers.
        """
        found = []
        for number in sorted(self._work):
            with on_device_number(number):
                found.append((self._devices[number], self._finish(self._work[number])))
        high, low = np.zeros(self._size), np.zeros(self._size)
        for device, pinned in found:
            device.await_sums()
            high, low = add_compensated(high, low, pinned[: self._size])
            low = low + pinned[self._size :]
        self._work.clear()
        return high, low

    # -- launches -------------------------------------------------------------------------------
    def _begin(self, device: Device, lane: int, rows: int) -> _Work:
        """The state of a device in this pass; the parameters are sent before its first rows."""
        work = self._work.get(device.number)
        if work is None:
            device.settle()
            blocks = _SLICES if self._tiled else block_count(rows)
            partials = device.partials(2 * self._size * blocks)
            work = _Work(device, device.upload(self._theta), blocks, partials)
            self._work[device.number] = work
        if lane == 1 and not work.begun[1]:
            device.lanes[1].follow(device.lanes[0])
        return work

    def _launch(
        self, work: _Work, lane: int, columns: tuple[Any, ...], rows: tuple[int, int], weighted: bool
    ) -> None:
        """Add some rows to the sums of a lane."""
        where, partial = work.device.lanes[lane], work.partials[1 + lane]
        fresh = int(not work.begun[lane])
        work.begun[lane] = True
        if self._tiled:
            self._multiply(where, work, columns, rows, (partial, fresh), weighted)
            return
        if self._entry == "matvec" and not self._kernel.loss.is_robust:  # y is not read
            k, m = self._kernel.program.n_vars, self._kernel.program.n_outputs
            columns = columns[:k] + columns[k + m :]
        for kernel in self._kernel.sums(self._entry, weighted=weighted):
            where.launcher(kernel, work.blocks)(*columns, *rows, work.theta, partial, fresh)

    def _multiply(
        self,
        lane: Lane,
        work: _Work,
        columns: tuple[Any, ...],
        rows: tuple[int, int],
        target: tuple[Any, int],
        weighted: bool,
    ) -> None:
        """Store √w (J, r) of some rows at a time and multiply it out."""
        (begin, count), (partial, fresh) = rows, target
        p, m = self._kernel.program.n_params, self._kernel.program.n_outputs
        tiles = -(-(p + 1) // TILE)
        most = min(count, max(1, _SPACE // ((p + 1) * m)))
        space = lane.buffer("jacobian", (p + 1) * m * most)
        fill = lane.launcher(self._kernel.single("weighed", weighted=weighted), block_count(most))
        multiply = lane.launcher(toolkit().common.products, tiles * (tiles + 1) // 2 * work.blocks)
        for first, step in _steps(count, most):
            fill(*columns, begin + first, step, work.theta, space)
            multiply(space, p + 1, m * step, work.blocks, partial, fresh)
            fresh = 0

    def _finish(self, work: _Work) -> Any:
        """Add the partial sums of the lanes and send them; returns where they will be."""
        device, lane = work.device, work.device.lanes[0]
        if work.begun[1]:
            lane.follow(device.lanes[1])
        sums, pinned = lane.buffer("sums", 2 * self._size), device.pinned("sums", 2 * self._size)
        finish = lane.launcher(toolkit().common.finish, self._size)
        finish(work.partials[0], 1 + work.begun[1], work.blocks, self._size, sums)
        sums.copy_to_host(pinned, stream=lane.stream)
        return pinned


def _steps(count: int, step: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each piece of some rows."""
    for first in range(0, count, step):
        yield first, min(step, count - first)
