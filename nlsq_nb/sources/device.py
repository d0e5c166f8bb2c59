"""Columns that live on a device, as a source; they are never copied to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK

__all__ = ["DeviceSource"]

Columns = tuple[Any, ...]


class DeviceSource:
    """Rows on a device.

    Parameters
    ----------
    x, y : tuple of columns
        Variables and outputs; columns can be cut into consecutive rows, and have `get()`.
    w : tuple of columns or None
        Weights.
    dtype : numpy.dtype
        Storage dtype of all of them.
    n_omitted : int
        Rows that were dropped.
    chunk_rows : int
        Rows per chunk, rounded up to whole blocks, with `resident="loop"`.
    resident : {"auto", "scan", "loop"}
        One chunk, that is, one launch per pass, or chunks of `chunk_rows` rows.

    Attributes
    ----------
    dtype : numpy.dtype
        Storage dtype.
    n_omitted : int
        Rows that were dropped.
    """

    revision = 0

    def __init__(
        self,
        x: Columns,
        y: Columns,
        w: Columns | None,
        dtype: np.dtype[Any],
        *,
        n_omitted: int = 0,
        chunk_rows: int,
        resident: str,
    ) -> None:
        self._whole = Chunk(0, x, y, w, lasting=True)
        self.dtype, self.n_omitted = dtype, n_omitted
        self._step = -(-(chunk_rows if resident == "loop" else self.n_rows) // BLOCK) * BLOCK

    @property
    def n_rows(self) -> int:
        """Number of rows n."""
        return self._whole.n_rows

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass."""
        return -(-self.n_rows // self._step)

    def whole(self) -> Chunk:
        """All rows in one chunk."""
        return self._whole

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order; see `Source.chunks`."""
        return (self.read(k) for k in range(self.n_chunks))

    # -- its own reader ----------------------------------------------------------------------
    def reader(self) -> DeviceSource:
        """One pass, whose chunks can be read again."""
        return self

    def rows(self, k: int) -> tuple[int, int]:
        """First row of chunk k and one past its last."""
        return k * self._step, min((k + 1) * self._step, self.n_rows)

    def read(self, k: int) -> Chunk:
        """Chunk k, on the device."""
        lo, hi = self.rows(k)
        x, y, w = self._whole.x, self._whole.y, self._whole.w
        own = None if w is None else tuple(c[lo:hi] for c in w)
        return Chunk(lo, tuple(c[lo:hi] for c in x), tuple(c[lo:hi] for c in y), own, lasting=True)

    def read_rows(self, lo: int, hi: int) -> Chunk:
        """Some rows, copied to the host: those of a sample."""
        return self._whole.host(slice(lo, hi))

    def release(self) -> None:
        """No read buffers are held."""
