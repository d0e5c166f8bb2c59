"""Arrays in memory as a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.columns import numeric, split_columns
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.errors import DataError
from nlsq_nb.sources.weights import weights_from_sigma

__all__ = ["ArraySource"]

_RESIDENT_ROWS = 1 << 22  # enough segments for any number of threads, small temporaries


class ArraySource:
    """Rows held in memory, one contiguous array per column.

    Parameters
    ----------
    x : array_like or mapping
        Independent variables; see `split_columns`.
    y : array_like
        (n,), or (m, n) for m outputs.
    sigma : array_like, optional
        Standard deviations: scalar or one per residual.
    variables : sequence of str
        Names of the independent variables.
    n_outputs : int
        m.
    precision : {"float64", "float32", "auto"}
        Storage dtype; auto keeps float32 data as they are.
    chunk_rows : int
        Rows per chunk, rounded up to whole blocks; at least `_RESIDENT_ROWS`, since nothing has to
        be read.
    omit : bool
        Drop rows with non-finite values instead of refusing them.

    Attributes
    ----------
    n_omitted : int
        Rows that were dropped.

    Raises
    ------
    DataError
        For shapes that disagree, empty data, wrong dtypes.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sigma: Any = None,
        *,
        variables: Sequence[str] = ("x",),
        n_outputs: int = 1,
        precision: str = "float64",
        chunk_rows: int = 1,
        omit: bool = False,
    ) -> None:
        outputs = numeric(y, "ydata")
        if n_outputs == 1:
            outputs = np.atleast_1d(outputs)
        wanted = 1 if n_outputs == 1 else 2
        if outputs.ndim != wanted or (wanted == 2 and outputs.shape[0] != n_outputs):
            shape = "(n,)" if n_outputs == 1 else f"({n_outputs}, n)"
            raise DataError(f"ydata has shape {outputs.shape}; the model needs {shape}")
        columns = split_columns(x, variables)
        rows = outputs.shape[-1]
        if rows == 0:
            raise DataError("`ydata` must not be empty!")
        if len(columns[0]) != rows:
            raise DataError(f"xdata has {len(columns[0])} rows but ydata has {rows}")
        weights = weights_from_sigma(sigma, outputs.shape)
        kinds = {c.dtype for c in columns} | {outputs.dtype}
        single = precision == "float32" or (precision == "auto" and kinds == {np.dtype("f4")})
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if single else np.float64)
        self._x = tuple(self._column(c) for c in columns)
        self._y = tuple(self._column(c) for c in np.atleast_2d(outputs))
        self._w = None if weights is None else tuple(map(self._column, np.atleast_2d(weights)))
        self.n_omitted = self._drop() if omit else 0
        self._step = -(-max(chunk_rows, _RESIDENT_ROWS) // BLOCK) * BLOCK

    def _column(self, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=self.dtype)

    def _drop(self) -> int:
        keep = np.logical_and.reduce([np.isfinite(c) for c in (*self._x, *self._y)])
        if keep.all():
            return 0
        before = self.n_rows
        self._x = tuple(c[keep] for c in self._x)
        self._y = tuple(c[keep] for c in self._y)
        self._w = None if self._w is None else tuple(c[keep] for c in self._w)
        if self.n_rows == 0:
            raise DataError("nan_policy='omit' leaves no row: every row has a non-finite value")
        return before - self.n_rows

    def root_weights(self) -> NDArray[np.float64]:
        """1/sigma per residual, in the shape of y without the omitted rows."""
        if self._w is None:
            return np.ones(())
        roots = np.sqrt(np.stack(self._w).astype(np.float64))
        return roots if len(self._y) > 1 else np.asarray(roots[0])

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass."""
        return -(-self.n_rows // self._step)

    @property
    def n_rows(self) -> int:
        """Number of rows n."""
        return len(self._y[0])

    def chunks(self) -> Iterator[Chunk]:
        """Views of the columns, chunk by chunk; see `Source.chunks`."""
        for lo in range(0, self.n_rows, self._step):
            rows = slice(lo, lo + self._step)
            w = None if self._w is None else tuple(c[rows] for c in self._w)
            yield Chunk(lo, tuple(c[rows] for c in self._x), tuple(c[rows] for c in self._y), w)
