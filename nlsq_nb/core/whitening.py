"""Correlated errors: residuals and Jacobian in coordinates in which the errors are independent.

With Σ = L Lᵀ the residuals that count are L⁻¹r, and their derivatives −L⁻¹J (Golub & Van Loan, "Matrix
Computations", §4.2 and §6.1): as weights do, but across rows, so that all of them are needed at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core import lapack
from nlsq_nb.core.columns import numeric
from nlsq_nb.errors import DataError

__all__ = ["Whitening", "is_covariance", "whitening_from"]

Floats = NDArray[np.float64]
_SYMMETRIC = 1e-10  # asymmetry, relative to the two standard deviations, that rounding explains


@dataclass(frozen=True, slots=True)
class Whitening:
    """The Cholesky factor of the covariance of y.

    Attributes
    ----------
    lower : ndarray, shape (N, N)
        L, by columns in memory; N residuals, output after output, row after row.
    """

    lower: Floats

    def apply(self, values: Floats) -> Floats:
        """L⁻¹ times some columns.

        Parameters
        ----------
        values : ndarray, shape (N,) or (N, k)
            One row per residual.

        Returns
        -------
        ndarray
            The same shape; not finite where the values are not.
        """
        return np.asarray(lapack.dtrtrs(self.lower, values, lower=1)[0])


def is_covariance(sigma: Any, shape: tuple[int, ...]) -> bool:
    """Whether sigma is a square matrix rather than one standard deviation per residual.

    Parameters
    ----------
    sigma : array_like
        As given.
    shape : tuple of int
        Shape of y.

    Returns
    -------
    bool
        False where sigma has the shape of y.

    Raises
    ------
    DataError
        For what is no array of numbers.
    """
    found = numeric(sigma, "sigma").shape
    return len(found) == 2 and found != shape and found[0] == found[1]


def whitening_from(sigma: Any, shape: tuple[int, ...], keep: NDArray[np.bool_] | None = None) -> Whitening:
    """Factorise the covariance matrix of y.

    Parameters
    ----------
    sigma : array_like, shape (N, N)
        Symmetric, positive definite; N is the size of y, output after output for several.
    shape : tuple of int
        Shape of y, (n,) or (m, n).
    keep : ndarray of bool, shape (n,), optional
        The rows that are fitted, where some are left out.

    Returns
    -------
    Whitening
        Its Cholesky factor.

    Raises
    ------
    DataError
        For a wrong shape, values that are not finite, a matrix that is not symmetric or not positive
        definite, naming the row.
    """
    matrix = numeric(sigma, "sigma").astype(np.float64)
    size = int(np.prod(shape))
    if matrix.shape != (size, size):
        raise DataError(
            f"sigma has shape {matrix.shape}, ydata has shape {shape}; a covariance matrix needs "
            f"({size}, {size}), standard deviations need {shape}"
        )
    if keep is not None:
        kept = np.tile(keep, size // len(keep))
        matrix = matrix[kept][:, kept]
    _require_symmetric(matrix)
    lower, failed = lapack.dpotrf(matrix.T, lower=1)
    if failed or not np.isfinite(lower.diagonal()).all():
        raise DataError(
            f"`sigma` must be positive definite: the covariance matrix has no Cholesky factor from row {failed - 1} "
            "on, so that some errors are combinations of others; leave such rows out, or add what is known "
            "of independent errors to the diagonal"
        )
    return Whitening(lower)


def _require_symmetric(matrix: Floats) -> None:
    """Refuse what is no covariance matrix at first sight."""
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise DataError(f"sigma is not finite in row {int(np.argmin(finite))} of the covariance matrix")
    variances = matrix.diagonal()
    if not (variances > 0.0).all():
        row = int(np.argmin(variances > 0.0))
        raise DataError(
            f"`sigma` must be positive definite: the variance in row {row} of the covariance matrix is "
            f"{variances[row]:g}"
        )
    roots = np.sqrt(variances)
    apart = np.abs(matrix - matrix.T) > _SYMMETRIC * roots[:, None] * roots
    if apart.any():
        i, j = (int(k) for k in np.argwhere(apart)[0])
        raise DataError(
            f"sigma is not symmetric: [{i}, {j}] is {matrix[i, j]:g}, [{j}, {i}] is {matrix[j, i]:g}; a covariance "
            "matrix is needed"
        )
