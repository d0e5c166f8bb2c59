"""A pass on this machine: chunk after chunk through one backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.sums import Accumulator, NormalSums, add_compensated
from nlsq_nb.protocols import Backend, Kernel, Source
from nlsq_nb.sources.retrying import RetryingSource

__all__ = ["LocalEngine"]

Floats = NDArray[np.float64]
_PERIOD = 1.0  # seconds between reports of progress


class LocalEngine:
    """Reduces a source with a kernel.

    Parameters
    ----------
    backend : Backend
        Where chunks are reduced; its threads share the segments of a chunk.
    kernel : Kernel
        From `backend.compile`.
    source : Source
        The rows. A `RetryingSource` is read as it is, so that all who read it leave out the same
        chunks; the next three are for others.
    retries : int
        How often a chunk is read again after an OSError.
    min_success : float
        Share of the chunks that must be readable; below 1, the others are left out of every pass.
    release_every : int
        Chunks between releases of the read buffers.
    on_progress : callable, optional
        `on_progress(rows_done, n_rows, seconds)`, at most once a second, in passes that take longer.

    Attributes
    ----------
    source : RetryingSource
        The rows as this engine reads them; what else looks at the data should read them here.
    """

    def __init__(
        self,
        backend: Backend,
        kernel: Kernel,
        source: Source,
        *,
        retries: int = 0,
        min_success: float = 1.0,
        release_every: int = 10,
        on_progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        self._backend: Any = backend
        self._kernel = kernel
        self._on_progress = on_progress
        if not isinstance(source, RetryingSource):
            source = RetryingSource(
                source, retries=retries, min_success=min_success, release_every=release_every
            )
        self.source = source

    @property
    def left_out(self) -> list[tuple[int, tuple[int, int]]]:
        """Chunks that could not be read, each with its first row and one past its last."""
        return self.source.left_out

    def run(self, theta: Floats, order: int) -> NormalSums:
        """The sums over all rows; see `Engine.run`."""
        into = Accumulator(self._kernel.program.n_params, order)
        for chunk in self._chunks():
            self._backend.reduce(self._kernel, chunk, theta, order, into)
        return into.result()

    def matvec(self, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over all rows; see `Engine.matvec`."""
        high, low = np.zeros(len(v)), np.zeros(len(v))
        for chunk in self._chunks():
            part = self._backend.matvec(self._kernel, chunk, theta, v)
            high, low = add_compensated(high, low, part)
        return high + low

    def _chunks(self) -> Iterator[Chunk]:
        """The chunks of a pass where the kernel can read them."""
        begin = told = time.perf_counter()
        for chunk in self.source.chunks():
            yield self._backend.put(chunk, self._kernel.dtype)
            now = time.perf_counter()
            if self._on_progress is not None and now - told >= _PERIOD:
                told = now
                self._on_progress(chunk.start + chunk.n_rows, self.source.n_rows, now - begin)
