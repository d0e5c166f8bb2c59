"""Solving symmetric positive systems in column-scaled coordinates.

LAPACK is called directly: on a few parameters scipy.linalg's wrappers cost ten times the work.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core import lapack

__all__ = [
    "SINGULAR",
    "cholesky",
    "column_norms",
    "column_scaled",
    "eigenvectors",
    "length",
    "principal",
    "rounding_error",
    "solve_positive",
    "weak_directions",
]

SINGULAR = 1e-14
"""Eigenvalues of a column-scaled JᵀJ below p times this share of the largest count as zero.

Rounding leaves a singular direction at a few 1e-16; well-posed published problems stay above 1e-11.
"""

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


def column_norms(matrix: Floats) -> Floats:
    """Square roots of the diagonal: the norms of J's columns when the matrix is JᵀJ.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        Symmetric, with a diagonal ≥ 0.

    Returns
    -------
    ndarray, shape (p,)
        Norms ≥ 0.
    """
    return np.sqrt(np.maximum(matrix.diagonal(), 0.0))


def column_scaled(matrix: Floats, norms: Floats) -> Floats:
    """The matrix with rows and columns divided by norms > 0; its diagonal is 1.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        Symmetric.
    norms : ndarray, shape (p,)
        Its column norms.

    Returns
    -------
    ndarray, shape (p, p)
        A new array.
    """
    scaled = matrix / (norms[:, None] * norms)
    scaled.flat[:: len(norms) + 1] = 1.0
    return scaled


def principal(matrix: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Rows and columns of some parameters.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        Any.
    mask : ndarray of bool, shape (p,)
        The parameters to keep.

    Returns
    -------
    ndarray
        The matrix itself when all are kept.
    """
    return matrix if mask.all() else matrix[mask][:, mask]


def cholesky(matrix: Floats, least: float = 0.0) -> Floats | None:
    """The lower Cholesky factor.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        Symmetric.
    least : float
        Pivots up to this count as zero.

    Returns
    -------
    ndarray or None
        Lower triangle, zeros above; None when the matrix is not positive definite or not finite.
    """
    lower: Floats
    lower, failed = lapack.dpotrf(matrix.T, lower=1)  # symmetric; LAPACK stores by columns
    # NaN passes LAPACK unseen and fails the comparison
    if failed or not all(pivot > least for pivot in lower.diagonal().tolist()):
        return None
    return lower


def eigenvectors(matrix: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, rising, and orthonormal eigenvectors as columns.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        Symmetric, finite.

    Returns
    -------
    tuple of ndarray
        Shapes (p,) and (p, p).

    Raises
    ------
    numpy.linalg.LinAlgError
        When the iteration does not converge.
    """
    values, vectors, failed = lapack.dsyevd(matrix.T)
    if failed:
        raise np.linalg.LinAlgError("the eigenvalues of a symmetric matrix did not converge")
    return values, vectors


def solve_positive(matrix: Floats, right: Floats, ridge: float = 0.0) -> tuple[Floats, bool]:
    """Solve `matrix @ u = right` for a matrix with a unit diagonal.

    Cholesky, with one step of iterative refinement; where that fails because the matrix is
    numerically singular, the minimum-norm solution over the eigenvalues above p·eps of the largest.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        Symmetric positive semi-definite, column-scaled.
    right : ndarray, shape (p,)
        Right-hand side.
    ridge : float
        Added to the kept eigenvalues of a singular matrix, relative to the largest.

    Returns
    -------
    tuple of (ndarray of shape (p,), bool)
        The solution, and whether the matrix was regular.
    """
    lower = cholesky(matrix, math.sqrt(len(right) * _EPS))
    if lower is not None:
        u, _ = lapack.dpotrs(lower, right, lower=1)
        rest, _ = lapack.dpotrs(lower, right - matrix.dot(u), lower=1)
        return u + rest, True
    values, vectors = eigenvectors(matrix)
    keep = values > len(right) * _EPS * max(values[-1], _EPS)
    inverse = np.zeros_like(values)
    inverse[keep] = 1.0 / (values[keep] + ridge * values[-1])
    return vectors @ (inverse * (vectors.T @ right)), False


def length(v: Floats) -> float:
    """Euclidean norm; cheaper than `numpy.linalg.norm` on a few numbers.

    Parameters
    ----------
    v : ndarray, shape (p,)
        Any vector.

    Returns
    -------
    float
        ‖v‖.
    """
    return math.sqrt(v.dot(v))


def rounding_error(matrix: Floats) -> float:
    """Relative rounding error of what is solved for with JᵀJ: eps times its scaled condition.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        JᵀWJ; parameters with a zero column are left out of account.

    Returns
    -------
    float
        Between eps and 1.
    """
    norms = column_norms(matrix)
    used = norms > 0.0
    if not used.any():
        return _EPS
    values, _, _ = lapack.dsyevd(_scaled_block(matrix, norms, used), compute_v=0)
    least, largest = float(values[0]), float(values[-1])
    return min(1.0, _EPS * largest / max(least, _EPS * largest))


def weak_directions(matrix: Floats, at_least: int = 0) -> list[Floats]:
    """The directions in which JᵀJ is numerically singular, weakest first.

    Parameters
    ----------
    matrix : ndarray, shape (p, p)
        JᵀWJ; parameters with a zero column are left out of account.
    at_least : int
        How many of the weakest directions to give even where it is regular.

    Returns
    -------
    list of ndarray, each (p,)
        Directions in the units of the parameters.
    """
    norms = column_norms(matrix)
    used = norms > 0.0
    if not used.any():
        return []
    values, vectors = eigenvectors(_scaled_block(matrix, norms, used))
    count = max(at_least, int(np.sum(values <= len(values) * SINGULAR * values[-1])))
    found = []
    for k in range(min(count, len(values))):
        found.append(np.zeros_like(norms))
        found[-1][used] = vectors[:, k] / norms[used]
    return found


def _scaled_block(matrix: Floats, norms: Floats, used: NDArray[np.bool_]) -> Floats:
    return column_scaled(principal(matrix, used), norms if used.all() else norms[used])
