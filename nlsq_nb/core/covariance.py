"""Covariance of the parameters from JᵀWJ at the solution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core import lapack
from nlsq_nb.core.linsolve import SINGULAR, cholesky, column_norms, column_scaled, eigenvectors

__all__ = ["Covariance", "covariance", "sandwich"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_PLAIN = 1e10  # condition up to which no direction can be undetermined
_ADDED = 1e-2  # variance from an undetermined direction, relative to the rest, that is not negligible
_SURE = 10.0  # units of rounding from which on a share of an eigenvector is one


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
        Condition number of the column-scaled JᵀWJ of the determined directions: in the 1-norm up to
        1e10, beyond that the ratio of its eigenvalues.
    """

    matrix: Floats
    undetermined: NDArray[np.bool_]
    condition: float


def covariance(
    h: Floats,
    free: NDArray[np.bool_],
    variance: float,
    seen: NDArray[np.bool_] | None = None,
) -> Covariance:
    """σ²·H⁻¹ over the parameters that may move, column-scaled before it is inverted.

    Parameters
    ----------
    h : ndarray, shape (p, p)
        JᵀWJ at the solution.
    free : ndarray of bool, shape (p,)
        Parameters that are neither fixed nor left out.
    variance : float
        σ²: SSE/(n − p), or 1 for absolute sigma; inf when it cannot be estimated.
    seen : ndarray of bool, shape (p,), optional
        Parameters whose columns are more than rounding; the others are undetermined. By default all.

    Returns
    -------
    Covariance
        Rank deficiency shows as infinite variances, never as small ones.
    """
    norms = column_norms(h)
    used = free & (norms > 0.0) & np.isfinite(norms)
    if seen is not None:
        used &= seen
    if used.all():
        inverse, weak, condition = _inverse(column_scaled(h, norms))
        matrix = _unscaled(inverse, norms, variance)
        if not weak.any() and np.isfinite(variance) and np.isfinite(matrix.diagonal()).all():
            return Covariance(matrix, weak, condition)
        return _marked(matrix, weak, free, variance, condition)
    matrix = np.zeros_like(h)
    undetermined = free & ~used
    condition = 1.0
    if used.any():
        inverse, weak, condition = _inverse(column_scaled(h[used][:, used], norms[used]))
        undetermined[np.flatnonzero(used)[weak]] = True
        matrix[np.ix_(used, used)] = _unscaled(inverse, norms[used], variance)
    return _marked(matrix, undetermined, free, variance, condition)


def sandwich(
    bread: Floats,
    meat: Floats,
    free: NDArray[np.bool_],
    factor: float,
    seen: NDArray[np.bool_] | None = None,
) -> Covariance:
    """A⁻¹ M A⁻¹: the covariance of an M-estimate (Huber 1967; White 1980, Econometrica 48, 817).

    Parameters
    ----------
    bread : ndarray, shape (p, p)
        A = Σ w ψ' J Jᵀ, positive semidefinite.
    meat : ndarray, shape (p, p)
        M = Σ w ψ² J Jᵀ, the scatter of the gradient.
    free : ndarray of bool, shape (p,)
        Parameters that are neither fixed nor left out.
    factor : float
        n/(n − p), which makes up for the residuals' being those of the fit; inf without degrees of freedom.
    seen : ndarray of bool, shape (p,), optional
        As for `covariance`.

    Returns
    -------
    Covariance
        Marked as that of A.
    """
    found = covariance(bread, free, 1.0 if np.isfinite(factor) else factor, seen)
    known = np.flatnonzero(free & ~found.undetermined)
    block = np.ix_(known, known)
    inverse, matrix = found.matrix[block], found.matrix.copy()
    matrix[block] = factor * (inverse @ meat[block] @ inverse)
    return Covariance(matrix, found.undetermined, found.condition)


def _unscaled(inverse: Floats, norms: Floats, variance: float) -> Floats:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        block = inverse / norms[:, None] / norms
        return block * (variance if np.isfinite(variance) else 1.0)


def _marked(
    matrix: Floats,
    undetermined: NDArray[np.bool_],
    free: NDArray[np.bool_],
    variance: float,
    condition: float,
) -> Covariance:
    """With infinite variances for what is not determined, zero for what is fixed."""
    undetermined = undetermined | ~np.isfinite(matrix.diagonal())
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
    # Cholesky keeps each variance's own relative accuracy
    lower = cholesky(scaled)
    if lower is not None:
        inverse, _ = lapack.dpotrs(lower, np.eye(len(lower)), lower=1)
        condition = _norm(scaled) * _norm(inverse)
        if condition < _PLAIN:
            return inverse, np.zeros(len(lower), np.bool_), condition
    values, vectors = eigenvectors(scaled)
    keep = values > len(values) * SINGULAR * values[-1]
    if keep.all() and lower is not None:
        return inverse, np.zeros(len(values), np.bool_), float(values[-1] / values[0])
    kept = vectors[:, keep]
    inverse = (kept / values[keep]) @ kept.T
    # the curvature along the others may be as little as rounding leaves of nothing
    floor, gap = len(values) * _EPS * values[-1], values[keep][0]
    least = np.maximum(_ADDED * floor * inverse.diagonal(), (_SURE * floor / gap) ** 2)
    weak = np.sum(vectors[:, ~keep] ** 2, axis=1) > least
    return inverse, weak, float(values[-1] / gap)


def _norm(matrix: Floats) -> float:
    """Largest column sum."""
    return float(np.maximum.reduce(np.add.reduce(np.abs(matrix))))
