"""A pass on this machine: chunk after chunk through one backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk, Resident
from nlsq_nb.core.compensated import add_compensated
from nlsq_nb.core.layout import RESIDENT_ROWS
from nlsq_nb.core.losses import Loss
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.core.tsqr import EPS, Triangle, TriangleAccumulator
from nlsq_nb.protocols import Backend, Kernel, Source
from nlsq_nb.sources.sample import sample
from nlsq_nb.sources.weights import total_weight

__all__ = ["LocalEngine"]

Floats = NDArray[np.float64]


class LocalEngine:
    """Reduces a source with a kernel.

    Parameters
    ----------
    backend : Backend
        Where chunks are reduced; its threads share the segments of a chunk.
    kernel : Kernel
        From `backend.compile`.
    source : Source
        The rows; a `RetryingSource` where reading may fail.

    Attributes
    ----------
    source : Source
        As given.
    """

    def __init__(
        self,
        backend: Backend,
        kernel: Kernel,
        source: Source,
    ) -> None:
        self._backend: Any = backend
        self._kernel = kernel
        self.source = source

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

    def triangle(self, theta: Floats, extra: Floats | None = None) -> Triangle:
        """R of √W [J | r] over all rows; see `Engine.triangle`."""
        program = self._kernel.program
        into = TriangleAccumulator(program.n_params, getattr(program, "rounding", EPS))
        for chunk in self._chunks():
            self._backend.triangularize(self._kernel, chunk, theta, into)
        return into.result(extra)

    def weight(self) -> float:
        """Σ w over the residuals; see `total_weight`."""
        return total_weight(self.source)

    def resident(self) -> Resident | None:
        """All rows in one chunk for native code, if they are few or there already; see `Engine.resident`."""
        source = self.source
        if source.n_rows > RESIDENT_ROWS and not (source.n_chunks == 1 and getattr(source, "is_held", False)):
            return None
        if source.n_chunks > 1:
            source = sample(source, [(0, source.n_rows)])
        chunk = next(iter(source.chunks()))
        if chunk.n_rows != self.source.n_rows:  # some could not be read
            return None
        found: Resident | None = self._backend.resident(
            self._kernel, self._backend.put(chunk, self._kernel.dtype)
        )
        return found

    def under(self, loss: Loss) -> LocalEngine:
        """The engine over the same rows with another loss; see `Engine.under`."""
        kernel = self._backend.compile(self._kernel.program, self._kernel.dtype, loss)
        return LocalEngine(self._backend, kernel, self.source)

    def _chunks(self) -> Iterator[Chunk]:
        """The chunks of a pass where the kernel can read them."""
        for chunk in self.source.chunks():
            yield self._backend.put(chunk, self._kernel.dtype)
