"""Solving symmetric positive systems in column-scaled coordinates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

__all__ = ["SINGULAR", "column_norms", "rounding_error", "solve_positive", "weak_directions"]

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
    return np.sqrt(np.maximum(np.diagonal(matrix), 0.0))


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
    try:
        factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
        if np.min(np.diagonal(factor[0])) > np.sqrt(len(right) * _EPS):
            u = linalg.cho_solve(factor, right, check_finite=False)
            return u + linalg.cho_solve(factor, right - matrix @ u, check_finite=False), True
    except linalg.LinAlgError:
        pass
    values, vectors = linalg.eigh(matrix, check_finite=False)
    keep = values > len(right) * _EPS * max(values[-1], _EPS)
    inverse = np.zeros_like(values)
    inverse[keep] = 1.0 / (values[keep] + ridge * values[-1])
    return vectors @ (inverse * (vectors.T @ right)), False


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
    scaled = matrix[np.ix_(used, used)] / np.outer(norms[used], norms[used])
    values = linalg.eigvalsh(scaled, check_finite=False)
    return float(min(1.0, _EPS * values[-1] / max(values[0], _EPS * values[-1])))


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
    scaled = matrix[np.ix_(used, used)] / np.outer(norms[used], norms[used])
    values, vectors = linalg.eigh(scaled, check_finite=False)
    count = max(at_least, int(np.sum(values <= len(values) * SINGULAR * values[-1])))
    found = []
    for k in range(min(count, len(values))):
        found.append(np.zeros_like(norms))
        found[-1][used] = vectors[:, k] / norms[used]
    return found
