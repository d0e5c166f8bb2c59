"""What the residuals weigh: 1/σ² of each, times the weight of its group."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.core.chunk import Chunk, on_host
from nlsq_nb.core.columns import in_blocks, numeric
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.whitening import is_covariance
from nlsq_nb.errors import DataError, UnsupportedOption
from nlsq_nb.protocols import Source

__all__ = ["GroupIndex", "GroupWeights", "checked_sigma", "total_weight", "weight_parts", "weights_from_sigma"]

Floats = NDArray[np.float64]
_SCAN = 64 * BLOCK  # rows looked at at once: small temporaries


def checked_sigma(sigma: Any, shape: tuple[int, ...], first: int = 0) -> NDArray[Any]:
    """Standard deviations, one per residual, that have usable weights.

    Parameters
    ----------
    sigma : array_like
        Standard deviations: a scalar, or one per residual.
    shape : tuple of int
        Shape of y, (n,) or (m, n).
    first : int
        Index of the first row, for messages.

    Returns
    -------
    ndarray
        Of that shape, any real dtype; a view.

    Raises
    ------
    DataError
        For a wrong shape, or a sigma that is not positive and finite, naming the row.
    UnsupportedOption
        For a covariance matrix.
    """
    array = numeric(sigma, "sigma")
    if is_covariance(array, shape):
        raise UnsupportedOption(
            "sigma is a covariance matrix, which needs all rows at once; give x, y and sigma as arrays, or "
            "standard deviations, one per row"
        )
    if array.shape not in ((), (1,), shape):
        raise DataError(f"sigma has shape {array.shape}, ydata has shape {shape}; they must agree")
    extremes = np.array([array.min(), array.max()], dtype=np.float64)  # a nan shows in both
    if not (extremes[0] > 0.0 and extremes[1] < np.inf):
        wrong = np.atleast_1d(~(np.isfinite(array) & (array > 0)))
        at = tuple(np.argwhere(wrong)[0])
        place = f"row {first + at[-1]}" + (f" of output {at[0]}" if len(at) > 1 else "")
        value = np.atleast_1d(array)[at]
        raise DataError(f"sigma is {value} at {place}; it must be positive and finite")
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        heaviest, lightest = weights_from_sigma(extremes)
    if not (heaviest < np.inf and lightest > 0.0):
        limit = array.min() if heaviest == np.inf else array.max()
        row = int(np.argwhere(np.atleast_1d(array == limit))[0][-1])
        raise DataError(f"1/sigma**2 leaves the range of float64 at row {first + row}; rescale sigma and y")
    return array if array.shape == shape else np.broadcast_to(array, shape)


def weights_from_sigma(sigma: NDArray[Any]) -> Floats:
    """Weights 1/σ².

    Parameters
    ----------
    sigma : ndarray
        Standard deviations as `checked_sigma` gives them.

    Returns
    -------
    ndarray
        float64, the same shape.
    """
    return np.asarray(1.0 / np.square(sigma, dtype=np.float64))


def total_weight(source: Source) -> float:
    """Σ w over the residuals of a source.

    Parameters
    ----------
    source : Source
        The rows.

    Returns
    -------
    float
        The number of residuals where there are no weights; the bits do not depend on the chunks.
    """
    total = 0.0
    for chunk in source.chunks():
        for part in weight_parts(chunk):
            total += part
    return total


def weight_parts(chunk: Chunk) -> list[float]:
    """What `total_weight` adds up for a chunk, one term after the other.

    Parameters
    ----------
    chunk : Chunk
        Some rows.

    Returns
    -------
    list of float
        One number per block and output; one in all without weights.
    """
    if chunk.w is None:
        return [float(chunk.n_rows * len(chunk.y))]
    blocks = (w for column in chunk.w for w in in_blocks(on_host(column)))
    return [part for w in blocks for part in w.sum(axis=1, dtype=np.float64).tolist()]


class GroupWeights:
    """The current weight of each group of rows; may be changed while a fit runs.

    Parameters
    ----------
    values : array_like, shape (g,), optional
        Positive weights; all ones until some are set.
    """

    def __init__(self, values: ArrayLike | None = None) -> None:
        self._lock = threading.Lock()
        self._current: tuple[int, Floats | None] = (0, None)
        if values is not None:
            self.set(values)

    @property
    def current(self) -> tuple[int, Floats | None]:
        """The revision and its weights, which belong together; None before any are set."""
        return self._current

    @property
    def revision(self) -> int:
        """How often weights were set."""
        return self._current[0]

    @property
    def values(self) -> Floats | None:
        """The weights, read-only, or None before any are set."""
        return self._current[1]

    def set(self, values: ArrayLike) -> None:
        """Change the weights; passes that begin later see them.

        Parameters
        ----------
        values : array_like, shape (g,)
            Weight of group 0, 1, …; the number of groups may change too.

        Raises
        ------
        DataError
            When they are not 1-D, or one is not positive and finite, naming its index.
        """
        array = numeric(values, "residual_weights").astype(np.float64)
        if array.ndim != 1 or not len(array):
            raise DataError(
                f"residual_weights has shape {array.shape}; one weight per group, (g,), is needed"
            )
        wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0.0)))
        if len(wrong):
            k = int(wrong[0])
            raise DataError(f"residual_weights[{k}] is {array[k]}; it must be positive and finite")
        array.flags.writeable = False
        with self._lock:
            self._current = (self._current[0] + 1, array)


class GroupIndex:
    """The group of each row, as a column of the data says.

    Parameters
    ----------
    column : ndarray, shape (n,)
        Integers of any dtype, from 0.
    rows : sequence of int, length n, optional
        What to call each row in messages; its index by default.
    """

    def __init__(
        self, column: NDArray[Any], rows: NDArray[np.intp] | Sequence[int] | None = None
    ) -> None:
        self._column = column
        self._rows = rows
        self._groups: int | None = None

    def require(self, n_groups: int) -> None:
        """Check that every row belongs to a group.

        Parameters
        ----------
        n_groups : int
            Number of weights.

        Raises
        ------
        DataError
            Names the first row whose index is no integer, negative or too large, and the index.
        """
        if self._groups is None:
            self._groups = 1 + max(
                self._largest(lo) for lo in range(0, len(self._column), _SCAN)
            )
        if self._groups > n_groups:
            row = int(np.argmax(self._column >= n_groups))
            raise self._fault(row, f"there are {n_groups} residual weights, for 0 to {n_groups - 1}")

    def weights(self, values: Floats, rows: slice) -> Floats:
        """The group weight of some rows.

        Parameters
        ----------
        values : ndarray, shape (g,)
            Weights that `require` let pass.
        rows : slice
            Which rows.

        Returns
        -------
        ndarray
            One weight per row.
        """
        return values[self._column[rows].astype(np.intp, copy=False)]

    def _largest(self, lo: int) -> int:
        """The largest index of some rows, all of which are checked to be one."""
        part = self._column[lo : lo + _SCAN]
        with np.errstate(invalid="ignore"):
            wrong = np.flatnonzero(~((part >= 0) & (part == np.floor(part)) & np.isfinite(part)))
        if len(wrong):
            raise self._fault(lo + int(wrong[0]), "a whole number from 0 is needed")
        return int(part.max())

    def _fault(self, row: int, why: str) -> DataError:
        name = row if self._rows is None else int(self._rows[row])
        return DataError(
            f"the first column of xdata gives the group of a row for residual_weights, but it is "
            f"{self._column[row]} at row {name}; {why}"
        )
