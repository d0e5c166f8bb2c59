"""sigma → weights, once, at the source."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.columns import numeric
from nlsq_nb.errors import DataError, UnsupportedOption

__all__ = ["weights_from_sigma"]


def weights_from_sigma(sigma: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Weights 1/σ² of the residuals.

    Parameters
    ----------
    sigma : array_like or None
        Standard deviations: a scalar, or one per residual.
    shape : tuple of int
        Shape of y, (n,) or (m, n).

    Returns
    -------
    ndarray or None
        Weights of that shape; None for no sigma.

    Raises
    ------
    DataError
        For a wrong shape, or a sigma that is not positive and finite, naming the row.
    UnsupportedOption
        For a covariance matrix.
    """
    if sigma is None:
        return None
    array = numeric(sigma, "sigma").astype(np.float64)
    if array.ndim == 2 and array.shape != shape and array.shape[0] == array.shape[1]:
        raise UnsupportedOption(
            "sigma as a covariance matrix is not supported; give standard deviations, one per row"
        )
    if array.shape not in ((), (1,), shape):
        raise DataError(f"sigma has shape {array.shape}, ydata has shape {shape}; they must agree")
    wrong = ~(np.isfinite(array) & (array > 0.0))
    if wrong.any():
        at = tuple(np.argwhere(np.atleast_1d(wrong))[0])
        place = f"row {at[-1]}" + (f" of output {at[0]}" if len(at) > 1 else "")
        value = np.atleast_1d(array)[at]
        raise DataError(f"sigma is {value} at {place}; it must be positive and finite")
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        weights = np.broadcast_to(1.0 / array**2, shape).copy()
    if not np.isfinite(weights).all() or not (weights > 0.0).all():
        row = int(np.argwhere(~(np.isfinite(weights) & (weights > 0.0)))[0][-1])
        raise DataError(f"1/sigma**2 leaves the range of float64 at row {row}; rescale sigma and y")
    return weights
