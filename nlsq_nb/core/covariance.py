"""Covariance of the parameters from JᵀWJ at the solution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from nlsq_nb.core.linsolve import SINGULAR, column_norms

__all__ = ["Covariance", "covariance"]

Floats = NDArray[np.float64]
_SHARE = 1e-4  # squared share of an undetermined direction that makes a parameter undetermined


@dataclass(frozen=True, slots=True)
class Covariance:
    """What the curvature says about the parameters.

    Attributes
    ----------
    matrix : ndarray, shape (p, p)
        pcov; inf on the diagonal of undetermined parameters, 0 for fixed ones.
    undetermined : ndarray of bool, shape (p,)
        Parameters that take part in a direction the data do not determine.
    condition : float
        Condition number of the column-scaled JᵀWJ of the determined directions.
    """

    matrix: Floats
    undetermined: NDArray[np.bool_]
    condition: float


def covariance(h: Floats, free: NDArray[np.bool_], variance: float) -> Covariance:
    """σ²·H⁻¹ over the parameters that may move, column-scaled before it is inverted.

    Parameters
    ----------
    h : ndarray, shape (p, p)
        JᵀWJ at the solution.
    free : ndarray of bool, shape (p,)
        Parameters that are neither fixed nor left out.
    variance : float
        σ²: SSE/(n − p), or 1 for absolute sigma; inf when it cannot be estimated.

    Returns
    -------
    Covariance
        Rank deficiency shows as infinite variances, never as small ones.
    """
    p = len(h)
    matrix = np.zeros((p, p))
    undetermined = np.zeros(p, dtype=np.bool_)
    norms = column_norms(h)
    used = free & (norms > 0.0) & np.isfinite(norms)
    undetermined[free & ~used] = True
    condition = 1.0
    if used.any():
        scaled = h[np.ix_(used, used)] / np.outer(norms[used], norms[used])
        np.fill_diagonal(scaled, 1.0)
        inverse, weak, condition = _inverse(scaled)
        undetermined[np.flatnonzero(used)[weak]] = True
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            block = inverse / norms[used][:, None] / norms[used][None, :]
            matrix[np.ix_(used, used)] = block * (variance if np.isfinite(variance) else 1.0)
    undetermined |= ~np.isfinite(np.diagonal(matrix))
    if not np.isfinite(variance):
        undetermined = undetermined | free
    matrix[undetermined, :] = np.nan
    matrix[:, undetermined] = np.nan
    matrix[np.ix_(undetermined, ~free)] = 0.0
    matrix[np.ix_(~free, undetermined)] = 0.0
    # SciPy marks what it cannot estimate by inf, off the diagonal as well
    matrix[np.isnan(matrix)] = np.inf
    return Covariance(matrix, undetermined, condition)


def _inverse(scaled: Floats) -> tuple[Floats, NDArray[np.bool_], float]:
    """Inverse over the determined directions, which parameters the others touch, condition."""
    values, vectors = linalg.eigh(scaled, check_finite=False)
    keep = values > len(values) * SINGULAR * values[-1]
    weak = np.sum(vectors[:, ~keep] ** 2, axis=1) > _SHARE
    condition = float(values[-1] / values[keep][0])
    if keep.all():
        # Cholesky keeps each variance's own relative accuracy
        try:
            factor = linalg.cho_factor(scaled, lower=True, check_finite=False)
            return linalg.cho_solve(factor, np.eye(len(values))), weak, condition
        except linalg.LinAlgError:
            pass
    kept = vectors[:, keep]
    return (kept / values[keep]) @ kept.T, weak, condition
