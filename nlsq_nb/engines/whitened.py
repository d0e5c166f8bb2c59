"""A pass over data whose errors are correlated: all rows at once, whitened, then summed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Resident
from nlsq_nb.core.losses import LEAST_SQUARES, Loss, weigh
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.tsqr import EPS, Triangle, TriangleAccumulator, triangle_of
from nlsq_nb.core.whitening import Whitening
from nlsq_nb.errors import SourceError
from nlsq_nb.protocols import Source
from nlsq_nb.sources.weights import total_weight

__all__ = ["WhitenedEngine"]

Floats = NDArray[np.float64]


class WhitenedEngine:
    """Reduces a source by way of its whitened residuals and Jacobian.

    Parameters
    ----------
    program : AnyProgram
        The model.
    source : Source
        The rows; all of them in memory.
    whitening : Whitening
        Of the residuals.
    loss : Loss
        Of the whitened residuals; by default least squares.

    Attributes
    ----------
    source : Source
        As given.
    """

    def __init__(
        self, program: AnyProgram, source: Source, whitening: Whitening, loss: Loss = LEAST_SQUARES
    ) -> None:
        self._program = program
        self._whitening = whitening
        self._loss = loss
        self.source = source

    def run(self, theta: Floats, order: int) -> NormalSums:
        """The sums over all rows; see `Engine.run`."""
        rows = self._rows(theta, derivatives=order > 0)
        jac, r = rows[:, :-1], rows[:, -1]
        with np.errstate(all="ignore"):
            cost, push, h = weigh(self._loss, r, np.ones_like(r))
            parts = [np.array([np.sum(cost)])]
            if order > 0:
                parts.append(jac.T @ push)
            if order > 1:
                parts.append((jac.T @ (h[:, np.newaxis] * jac))[np.triu_indices(jac.shape[1])])
        high = np.concatenate(parts)
        return NormalSums(self.source.n_rows, self._program.n_params, order, high, np.zeros_like(high))

    def matvec(self, theta: Floats, v: Floats) -> Floats:
        """JᵀΣ⁻¹J·v; see `Engine.matvec`."""
        rows = self._rows(theta, derivatives=True)
        jac, r = rows[:, :-1], rows[:, -1]
        with np.errstate(all="ignore"):
            _, _, h = weigh(self._loss, r, np.ones_like(r))
        return np.asarray(jac.T @ (h * (jac @ v)))

    def under(self, loss: Loss) -> WhitenedEngine:
        """The engine over the same rows with another loss; see `Engine.under`."""
        return WhitenedEngine(self._program, self.source, self._whitening, loss)

    def triangle(self, theta: Floats, extra: Floats | None = None) -> Triangle:
        """R of L⁻¹[J | r]; see `Engine.triangle`."""
        rounding = getattr(self._program, "rounding", EPS)
        into = TriangleAccumulator(self._program.n_params, rounding)
        into.add([triangle_of(self._rows(theta, derivatives=True))])
        return into.result(extra)

    def weight(self) -> float:
        """Σ w over the residuals; see `total_weight`."""
        return total_weight(self.source)

    def resident(self) -> Resident | None:
        """Never: native code sums row by row; see `Engine.resident`."""
        return None

    def _rows(self, theta: Floats, *, derivatives: bool) -> Floats:
        """L⁻¹[J | r] as a matrix, (N, p + 1), or (N, 1) without derivatives."""
        parts = []
        for chunk in self.source.chunks():
            columns = tuple(c.astype(np.float64, copy=False) for c in chunk.x)
            with np.errstate(all="ignore"):
                r = np.stack(chunk.y).astype(np.float64) - evaluate(self._program, "values", columns, theta)
            part = r[:, np.newaxis]
            if derivatives:
                part = np.concatenate([evaluate(self._program, "derivatives", columns, theta), part], axis=1)
            parts.append(part)
        whole = np.moveaxis(np.concatenate(parts, axis=2), 1, 2)  # outputs, rows, columns
        rows = whole.reshape(-1, whole.shape[2])
        if len(rows) != len(self._whitening.lower):
            raise SourceError(
                f"{len(rows)} residuals can be read of {len(self._whitening.lower)} that the covariance matrix "
                "sigma is about; none may be left out"
            )
        return self._whitening.apply(rows)
