"""A pass on this machine: chunk after chunk through one backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.protocols import Backend, Kernel, Source

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
        The rows.
    """

    def __init__(self, backend: Backend, kernel: Kernel, source: Source) -> None:
        self._backend: Any = backend
        self._kernel = kernel
        self._source = source

    def run(self, theta: Floats, order: int) -> NormalSums:
        """The sums over all rows; see `Engine.run`."""
        into = Accumulator(self._kernel.program.n_params, order)
        for chunk in self._source.chunks():
            ready = self._backend.put(chunk, self._kernel.dtype)
            self._backend.reduce(self._kernel, ready, theta, order, into)
        return into.result()
