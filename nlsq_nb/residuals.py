"""Residuals of a finished fit, all at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.whitening import Whitening
from nlsq_nb.errors import DataError
from nlsq_nb.models.symbolic import Model
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
    whitening : Whitening or None
        Of a covariance matrix as sigma.
    """

    model: Model
    source: RetryingSource
    theta: Floats
    sse: float
    signal: float
    whitening: Whitening | None = None

    def chunks(self) -> Iterator[Floats]:
        """Residuals of some consecutive rows at a time, in row order.

        Yields
        ------
        ndarray
            (rows,), or (m, rows) for m outputs; float64, unweighted.
        """
        with closing(self.source):
            for chunk in self.source.chunks():
                part = self._of(chunk)
                yield part if self.model.n_outputs > 1 else part[0]

    def all(self) -> Floats:
        """The residuals of all rows.

        Returns
        -------
        ndarray
            The shape of y.

        Raises
        ------
        DataError
            When they do not give the sse of the fit: the arrays were changed since; and for data that
            are not in memory.
        """
        if getattr(self.source.inner, "is_streamed", False):
            raise DataError("the data are not in memory: take result.residual_chunks() instead of result.fun")
        found, parts = 0.0, []
        for chunk in self.source.chunks():
            parts.append(self._of(chunk))
            w = 1.0 if chunk.w is None else np.stack(chunk.w)
            found += float(np.sum(w * parts[-1] ** 2))
        joined = np.concatenate(parts, axis=1)
        if self.whitening is not None:
            found = float(np.sum(self.whitening.apply(joined.ravel()) ** 2))
        if not np.isclose(found, self.sse, rtol=1e-6, atol=1e-12 * self.sse + 1e-20 * self.signal):
            raise DataError(
                f"the residuals do not give the sse of the fit ({found:g} instead of {self.sse:g}): "
                "either the arrays were changed since, or the model function treats rows together"
            )
        return joined if self.model.n_outputs > 1 else joined[0]

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
        for chunk in self.source.chunks():
            rows = slice(-chunk.start % step, None, step)
            x, y = (tuple(c[rows].astype(np.float64) for c in part) for part in (chunk.x, chunk.y))
            some = Chunk(chunk.start, x, y)
            parts.append((np.stack(x), np.stack(y), self._of(some)))
        joined = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
        return joined[0], joined[1], joined[2]

    def _of(self, chunk: Chunk) -> Floats:
        columns = tuple(c.astype(np.float64, copy=False) for c in chunk.x)
        values = evaluate(self.model.program, "values", columns, self.theta)
        return np.asarray(np.stack(chunk.y) - values)
