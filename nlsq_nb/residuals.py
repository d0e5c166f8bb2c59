"""Residuals of a finished fit, all at once or chunk by chunk, where the rows are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.core.whitening import Whitening
from nlsq_nb.errors import DataError
from nlsq_nb.models.symbolic import Model
from nlsq_nb.protocols import Backend
from nlsq_nb.sources.retrying import RetryingSource

__all__ = ["Residuals"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Residuals:
    """y − f at the solution.

    Attributes
    ----------
    model : Model
        The model.
    source : RetryingSource
        The rows.
    theta : ndarray, shape (p,)
        The solution.
    sse : float
        Σ w r² that the fit found, penalties left out.
    signal : float
        Σ w y².
    backend : Backend
        Computes them.
    whitening : Whitening or None
        Of a covariance matrix as sigma.
    """

    model: Model
    source: RetryingSource
    theta: Floats
    sse: float
    signal: float
    backend: Backend
    whitening: Whitening | None = None

    def chunks(self) -> Iterator[Any]:
        """Residuals of some consecutive rows at a time, in row order.

        Yields
        ------
        ndarray, or array on a device
            (rows,), or (m, rows) for m outputs; float64, unweighted.
        """
        with self.source.in_use():
            for chunk in self.source.chunks():
                yield self._shaped(self._of(chunk))

    def all(self) -> Any:
        """The residuals of all rows.

        Returns
        -------
        ndarray, or array on a device
            The shape of y.

        Raises
        ------
        DataError
            When they do not give the sse of the fit: the arrays were changed since; and for data that
            are not in memory.
        """
        if getattr(self.source.inner, "is_streamed", False):
            raise DataError("the data are not in memory: take result.residual_chunks() instead of result.fun")
        whole = getattr(self.source.inner, "whole", None)
        if whole is not None:  # rows on a device: their sse is found there too
            chunk, kernel = whole(), self.backend.compile(self.model.program, self.source.dtype)
            into = Accumulator(self.model.n_params, 0)
            self.backend.reduce(kernel, self.backend.put(chunk, self.source.dtype), self.theta, 0, into)
            self._require_unchanged(into.result().sse)
            return self._shaped(self._of(chunk))
        found, parts = 0.0, []
        for chunk in self.source.chunks():
            parts.append(self._of(chunk))
            w = 1.0 if chunk.w is None else np.stack(chunk.w)
            with np.errstate(under="ignore"):
                found += float(np.sum(w * parts[-1] ** 2))
        joined = np.concatenate(parts, axis=1)
        if self.whitening is not None:
            found = float(np.sum(self.whitening.apply(joined.ravel()) ** 2))
        self._require_unchanged(found)
        return self._shaped(joined)

    def drawn(self, at_most: int) -> tuple[Floats, Floats, Floats]:
        """Some rows for a picture, evenly spaced.

        Parameters
        ----------
        at_most : int
            How many.

        Returns
        -------
        tuple of ndarray
            x (k, rows), y (m, rows) and the residuals (m, rows), float64.
        """
        step, parts = -(-self.source.n_rows // at_most), []
        with self.source.in_use():
            for each in self.source.chunks():
                chunk = each.host()
                rows = slice(-chunk.start % step, None, step)
                x, y = (tuple(c[rows].astype(np.float64) for c in part) for part in (chunk.x, chunk.y))
                parts.append((np.stack(x), np.stack(y), self._of(Chunk(chunk.start, x, y))))
        joined = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
        return joined[0], joined[1], joined[2]

    def _require_unchanged(self, sse: float) -> None:
        lost = self.source.n_rows * sys.float_info.min  # squares below it are none to some
        if not np.isclose(sse, self.sse, rtol=1e-6, atol=1e-12 * self.sse + 1e-20 * self.signal + lost):
            raise DataError(
                f"the residuals do not give the sse of the fit ({sse:g} instead of {self.sse:g}): "
                "either the arrays were changed since, or the model function treats rows together"
            )

    def _of(self, chunk: Chunk) -> Any:
        return self.backend.rows(self.model.program, "residuals", chunk, self.theta)

    def _shaped(self, rows: Any) -> Any:
        return rows if self.model.n_outputs > 1 else rows[0]
