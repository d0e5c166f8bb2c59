"""What is asked of the data before a fit: moments, finite values, a model that takes rows one by one."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram, OpaqueProgram
from nlsq_nb.core.columns import in_blocks
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.errors import DataError, ModelError, NumericsError
from nlsq_nb.protocols import Source

__all__ = ["DataSummary", "require_finite", "require_rowwise", "summarize"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What one pass over the data alone tells.

    Attributes
    ----------
    n_rows : int
        Rows n.
    n_residuals : int
        n times the number of outputs.
    signal : float
        Σ w y².
    spread : float
        Σ w (y − mean)², the sse of a constant.
    weight : float
        Σ w.
    """

    n_rows: int
    n_residuals: int
    signal: float
    spread: float
    weight: float


def summarize(source: Source, variables: Sequence[str], check: bool) -> DataSummary:
    """Scan the data once.

    Parameters
    ----------
    source : Source
        The rows.
    variables : sequence of str
        Names of the independent variables, for messages.
    check : bool
        Whether non-finite values are refused.

    Returns
    -------
    DataSummary
        Counts and moments.

    Raises
    ------
    DataError
        Names the column and the first row with a non-finite value.
    """
    rows = residuals = 0
    moments = _Moments()
    labels = [f"xdata {name!r}" for name in variables] if len(variables) > 1 else ["xdata"]
    with np.errstate(all="ignore"):
        for chunk in source.chunks():
            if check:
                for label, column in zip(labels, chunk.x, strict=True):
                    _require_finite_column(label, column, chunk.start)
            for k, y in enumerate(chunk.y):
                moments.add(y, None if chunk.w is None else chunk.w[k])
                residuals += len(y)
            rows += chunk.n_rows
        if check and not math.isfinite(moments.signal):
            _require_finite_outputs(source)
        if moments.signal < sys.float_info.min and any(y.any() for c in source.chunks() for y in c.y):
            raise DataError("the squares of ydata (over sigma) underflow float64; rescale them")
    return DataSummary(rows, residuals, moments.signal, moments.spread, moments.weight)


class _Moments:
    """Σ w, Σ w y² and Σ w (y − mean)², merged block by block so that chunks do not show in the bits."""

    def __init__(self) -> None:
        self.signal = self.spread = 0.0
        self.weight = self._mean = 0.0

    def add(self, y: NDArray[Any], w: NDArray[Any] | None) -> None:
        """Take the rows of a chunk, which starts on a block boundary."""
        if w is None:
            for values in in_blocks(y):
                self._take(values.astype(np.float64, copy=False), None)
            return
        for values, weights in zip(in_blocks(y), in_blocks(w), strict=True):
            self._take(
                values.astype(np.float64, copy=False), weights.astype(np.float64, copy=False)
            )

    def _take(self, y: Floats, w: Floats | None) -> None:
        wy = y if w is None else w * y
        total = np.full(len(y), float(y.shape[1])) if w is None else w.sum(axis=1)
        mean = wy.sum(axis=1) / total
        apart = y - mean[:, None]
        spread = (apart**2 if w is None else w * apart**2).sum(axis=1)
        signal = (wy * y).sum(axis=1)
        for n, m, ss, s in zip(*(a.tolist() for a in (total, mean, spread, signal)), strict=True):
            # merging two groups of rows: Chan, Golub & LeVeque 1983, Am. Stat. 37, 242
            both = self.weight + n
            self.spread += ss + (m - self._mean) * (m - self._mean) * self.weight * n / both
            self._mean += (m - self._mean) * n / both
            self.weight = both
            self.signal += s


def _require_finite_outputs(source: Source) -> None:
    """Say why Σ w y² is not finite."""
    for chunk in source.chunks():
        for y in chunk.y:
            _require_finite_column("ydata", y, chunk.start)
    raise DataError("the sum of squares of ydata (over sigma) overflows float64; rescale them")


def _require_finite_column(label: str, column: NDArray[Any], start: int) -> None:
    if math.isfinite(column.sum()):  # one non-finite value would show in the sum
        return
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{label} contains a non-finite value, {column[row]} at row {start + row}; remove such "
            "rows or pass nan_policy='omit'"
        )


def require_rowwise(program: AnyProgram, source: Source, theta: Floats) -> None:
    """Refuse a NumPy function whose value at a row depends on other rows.

    Parameters
    ----------
    program : AnyProgram
        The model; only functions that are called as they are need the check.
    source : Source
        The rows; looked at when there is more than one block of them.
    theta : ndarray, shape (p,)
        The start.

    Raises
    ------
    ModelError
        When two blocks together give other values than one by one.
    """
    if not isinstance(program, OpaqueProgram) or source.n_rows <= BLOCK:
        return
    chunk = next(iter(source.chunks()))
    columns = tuple(c[: 2 * BLOCK].astype(np.float64, copy=False) for c in chunk.x)
    whole = program.values(columns, theta)
    parts = [
        program.values(tuple(c[rows] for c in columns), theta)
        for rows in (slice(0, BLOCK), slice(BLOCK, None))
        if len(columns[0][rows])
    ]
    apart = np.concatenate(parts, axis=1)
    if not np.allclose(whole, apart, rtol=1e-9, atol=0.0, equal_nan=True):
        raise ModelError(
            "the model function gives other values for all rows together than block by block (a "
            "mean, a sort, a cumulative sum?); compute what needs all rows before the fit"
        )


def require_finite(
    program: AnyProgram, source: Source, theta: Floats, params: Sequence[str]
) -> None:
    """Explain why the sums at the start are not finite.

    Parameters
    ----------
    program : AnyProgram
        The model.
    source : Source
        The rows.
    theta : ndarray, shape (p,)
        The start.
    params : sequence of str
        Parameter names.

    Raises
    ------
    NumericsError
        Names the first row where the model, a derivative or a square is not finite.
    """
    start = ", ".join(f"{name}={value:g}" for name, value in zip(params, theta, strict=True))
    for chunk in source.chunks():
        columns = tuple(c.astype(np.float64, copy=False) for c in chunk.x)
        f = evaluate(program, "values", columns, theta)
        jac = evaluate(program, "derivatives", columns, theta)
        data = np.isfinite(np.stack([*columns, *chunk.y])).all(axis=0)
        if not data.all():
            row = chunk.start + int(np.argmin(data))
            raise DataError(f"xdata or ydata is not finite at row {row}; remove it or use nan_policy")
        bad = np.flatnonzero(~np.isfinite(f).all(axis=0))
        if len(bad):
            row = int(bad[0])
            x = ", ".join(f"{c[row]:g}" for c in columns)
            raise NumericsError(
                f"the model is not finite at row {chunk.start + row} (x = {x}) for p0 {start}; "
                "choose another p0"
            )
        where = np.argwhere(~np.isfinite(jac))
        if len(where):
            _, k, row = (int(v) for v in where[np.argmin(where[:, 2])])
            x = ", ".join(f"{c[row]:g}" for c in columns)
            raise NumericsError(
                f"the derivative by parameter {params[k]!r} is not finite at row "
                f"{chunk.start + row} (x = {x}) for p0 {start}; choose another p0"
            )
    raise NumericsError(f"the sum of squares overflows for p0 {start}; choose another p0")
