"""What a device is given for a pass: two streams, and in each of them its own buffers.

Buffers are made when they are first needed; `release` gives them back. Pinned memory is written again only when
the event after its last copy has passed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.cuda.toolkit import empty, on_device_number, pinned, toolkit
from nlsq_nb.codegen.targets.cuda_common import THREADS

__all__ = ["Device", "Lane"]

Floats = NDArray[np.float64]
_SMALLEST = 1 << 12  # rows below which a piece is not worth a copy


class Lane:
    """A stream of a device, and the buffers of the work in it."""

    def __init__(self) -> None:
        cuda = toolkit().cuda
        self.stream = cuda.stream()
        self._copied = cuda.event(timing=False)
        self._order = cuda.event(timing=False)
        self._buffers: dict[tuple[str, int], Any] = {}
        self._launchers: dict[tuple[Any, int], Any] = {}
        self._staged: list[tuple[Any, Any]] = []  # pinned and on the device, a pair per column

    def launcher(self, kernel: Any, blocks: int) -> Any:
        """A kernel with its launch configuration in this stream, made once."""
        known = self._launchers.get((kernel, blocks))
        if known is None:
            known = toolkit().configured(kernel, blocks, THREADS, self.stream)
            self._launchers[kernel, blocks] = known
        return known

    def buffer(self, name: str, size: int) -> Any:
        """Memory of so many float64 under a name, the same for every pass."""
        known = self._buffers.get((name, size))
        if known is None:
            known = self._buffers[name, size] = empty(size, np.float64)
        return known

    def follow(self, other: Lane) -> None:
        """Go on only after what the other lane has been given until now."""
        self._order.record(other.stream)
        self._order.wait(self.stream)

    def stage(self, columns: list[NDArray[Any]], dtype: np.dtype[Any]) -> list[Any]:
        """Copy columns of a piece to the device, through pinned memory, in the lane's stream.

        Parameters
        ----------
        columns : list of ndarray
            Of equal length.
        dtype : numpy.dtype
            What they are stored as.

        Returns
        -------
        list of device array
            At least as long as the columns.
        """
        rows = len(columns[0])
        self._reserve(len(columns), rows, dtype)
        self.await_copies()
        found = []
        with np.errstate(over="ignore"):
            for column, (locked, device) in zip(columns, self._staged, strict=False):
                np.copyto(locked[:rows], column, casting="unsafe")
                whole = rows == len(locked)
                target = device if whole else device[:rows]
                target.copy_to_device(locked if whole else locked[:rows], stream=self.stream)
                found.append(device)
        self._copied.record(self.stream)
        return found

    def await_copies(self) -> None:
        """Wait until the pinned memory has been read."""
        self._copied.synchronize()

    def _reserve(self, count: int, rows: int, dtype: np.dtype[Any]) -> None:
        """Have pinned and device memory for so many columns."""
        if len(self._staged) >= count:
            locked, _ = self._staged[0]
            if len(locked) >= rows and locked.dtype == dtype:
                return
        self.stream.synchronize()
        self._staged = []
        self._staged = [(pinned(rows, dtype), empty(rows, dtype)) for _ in range(count)]

    def release(self) -> None:
        """Give the buffers back once the work is done."""
        self.stream.synchronize()
        self._buffers.clear()
        self._staged = []


class Device:
    """One device, for one pass at a time.

    Parameters
    ----------
    number : int
        Which.

    Attributes
    ----------
    lanes : list of Lane
        Two: while one computes, the other copies.
    busy : bool
        Whether a pass has begun whose sums nobody has fetched.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.busy = False
        self._pinned: dict[tuple[str, int], Any] = {}
        self._pieces: dict[int, int] = {}
        self._partials: dict[int, tuple[Any, Any, Any]] = {}
        with on_device_number(number):
            self.lanes = [Lane(), Lane()]

    def settle(self) -> None:
        """Wait for what a pass that was given up has left behind."""
        if self.busy:
            for lane in self.lanes:
                lane.stream.synchronize()
        self.busy = True

    def await_sums(self) -> None:
        """Wait until the first lane, and what it followed, is done: the pass is over."""
        with on_device_number(self.number):
            self.lanes[0].stream.synchronize()
        self.busy = False

    def piece_rows(self, bytes_per_row: int, wanted: int, budget: int) -> int:
        """Rows of a piece of streamed data, so that both lanes hold one within a budget of bytes."""
        known = self._pieces.get(bytes_per_row)
        if known is None:
            known = max(_SMALLEST, min(wanted, budget // (2 * bytes_per_row)))
            self._pieces[bytes_per_row] = known
        return known

    def shorten_pieces(self, bytes_per_row: int) -> bool:
        """Halve the pieces, whose memory was not to be had although it seemed free; False if they are the smallest."""
        known = self._pieces[bytes_per_row]
        self._pieces[bytes_per_row] = max(_SMALLEST, known // 2)
        return known > _SMALLEST

    def upload(self, values: Floats) -> Any:
        """Send a few numbers, the parameters, in the first lane."""
        locked = self.pinned("theta", len(values))
        target = self.lanes[0].buffer("theta", len(values))
        locked[:] = values
        target.copy_to_device(locked, stream=self.lanes[0].stream)
        return target

    def partials(self, length: int) -> tuple[Any, Any, Any]:
        """Where the lanes leave their sums: both together, the first half, the second."""
        known = self._partials.get(length)
        if known is None:
            whole = empty(2 * length, np.float64)
            known = self._partials[length] = (whole, whole[:length], whole[length:])
        return known

    def pinned(self, name: str, size: int) -> Any:
        """Pinned memory of so many float64 under a name."""
        known = self._pinned.get((name, size))
        if known is None:
            known = self._pinned[name, size] = pinned(size, np.float64)
        return known

    def release(self) -> None:
        """Give everything back."""
        with on_device_number(self.number):
            for lane in self.lanes:
                lane.release()
            self._partials.clear()
            self._pinned.clear()
        self._pieces.clear()
