"""How far sums and columns are from what they should be, scaled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.sums import NormalSums

__all__ = ["TOLERANCE", "scaled_error", "sums_error"]

Floats = NDArray[np.float64]
TOLERANCE = 1e-13
"""Largest scaled error of a value, a derivative or a sum."""


def scaled_error(found: Floats, expected: Floats) -> float:
    """Largest error of columns, scaled by max(|value|, root mean square of the column).

    Parameters
    ----------
    found, expected : ndarray, shape (..., n)
        Columns along the last axis.

    Returns
    -------
    float
        0 for equal arrays; inf where only one of the two is finite.
    """
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    if not np.isfinite(found[~same]).all() or not np.isfinite(expected[~same]).all():
        return float("inf")
    finite = np.where(np.isfinite(expected), expected, 0.0)
    rms = np.sqrt(np.mean(finite**2, axis=-1, keepdims=True))
    scale = np.maximum(np.abs(finite), rms)
    error = np.where(same, 0.0, np.where(same, 0.0, found) - np.where(same, 0.0, expected))
    return float(np.max(np.abs(error) / np.where(scale == 0.0, 1.0, scale), initial=0.0))


def sums_error(found: NormalSums, expected: NormalSums) -> float:
    """Largest error of sums, scaled by the diagonal of the expected ones.

    Parameters
    ----------
    found : NormalSums
        Of any order.
    expected : NormalSums
        Of order 2.

    Returns
    -------
    float
        inf when the numbers of rows differ or a sum is not finite.
    """
    if found.n_rows != expected.n_rows or not found.is_finite:
        return float("inf")
    root = np.sqrt(np.diag(expected.jtj))
    size = np.sqrt(expected.sse)
    scales = np.concatenate([[size * size], size * root, np.outer(root, root)[np.triu_indices(len(root))]])
    scales[scales < np.finfo(np.float64).tiny] = 1.0  # a backend may flush subnormal products to zero
    count = len(found.packed)
    return float(np.max(np.abs(found.packed - expected.packed[:count]) / scales[:count]))
