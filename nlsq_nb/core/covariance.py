"""Covariance of the parameters from JᵀWJ at the solution, or from the triangular factor of √W J.

Both ways are column-scaled, so units do not matter, and differ in how an inverse of the scaled matrix and
the directions it does not determine are had: from eigenvalues of JᵀWJ, which lose what lies below
1e-14 of the largest, or from singular values of R, which reach as far down with their squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core import lapack
from nlsq_nb.core.linsolve import SINGULAR, cholesky, column_norms, column_scaled, eigenvectors, principal
from nlsq_nb.core.tsqr import Triangle

__all__ = ["Covariance", "covariance", "covariance_of_inverse", "covariance_of_triangle", "sandwich"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Inverse = tuple[Floats, Mask, float]
"""Inverse over the determined directions, which parameters the others touch, condition."""

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

    def invert(used: Mask) -> Inverse:
        return _inverse(column_scaled(principal(h, used), norms[used]))

    return _over(norms, invert, free, variance, seen)


def covariance_of_inverse(inverse: Floats, condition: float, free: Mask, variance: float) -> Covariance:
    """σ²·H⁻¹ where H⁻¹ is known and every free parameter is determined.

    Parameters
    ----------
    inverse : ndarray, shape (p, p)
        H⁻¹.
    condition : float
        Of the column-scaled H.
    free : ndarray of bool, shape (p,)
        All of them.
    variance : float
        As for `covariance`.

    Returns
    -------
    Covariance
        As from `covariance`, to rounding.
    """
    weak = np.zeros(len(free), np.bool_)
    known = math.isfinite(variance)
    with np.errstate(over="ignore"):
        matrix = inverse * (variance if known else 1.0)
    if known and all(map(math.isfinite, matrix.diagonal().tolist())):
        return Covariance(matrix, weak, condition)
    return _marked(matrix, weak, free, variance, condition)


def covariance_of_triangle(
    triangle: Triangle, free: Mask, variance: float, seen: Mask | None = None
) -> Covariance:
    """σ²·(RᵀR)⁻¹ over the parameters that may move, without ever squaring R.

    Parameters
    ----------
    triangle : Triangle
        R of √W J at the solution.
    free : ndarray of bool, shape (p,)
        Parameters that are neither fixed nor left out.
    variance : float
        σ²: SSE/(n − p), or 1 for absolute sigma; inf when it cannot be estimated.
    seen : ndarray of bool, shape (p,), optional
        Parameters whose columns are more than rounding; the others are undetermined. By default all.

    Returns
    -------
    Covariance
        A direction counts as undetermined where the singular value of the scaled R is rounding of J:
        a condition of JᵀWJ of 1e24 still gives finite errors. `condition` is that of JᵀWJ.
    """

    def invert(used: Mask) -> Inverse:
        return _inverse_of_triangle(triangle.of(used))

    return _over(triangle.norms, invert, free, variance, seen)


def _over(
    norms: Floats, invert: Callable[[Mask], Inverse], free: Mask, variance: float, seen: Mask | None
) -> Covariance:
    """The covariance, once it is known how to invert the scaled matrix of some parameters."""
    used = free & (norms > 0.0) & np.isfinite(norms)
    if seen is not None:
        used &= seen
    if used.all():
        inverse, weak, condition = invert(used)
        matrix = _unscaled(inverse, norms, variance)
        if not weak.any() and np.isfinite(variance) and np.isfinite(matrix.diagonal()).all():
            return Covariance(matrix, weak, condition)
        return _marked(matrix, weak, free, variance, condition)
    matrix = np.zeros((len(norms), len(norms)))
    undetermined = free & ~used
    condition = 1.0
    if used.any():
        inverse, weak, condition = invert(used)
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


def _inverse(scaled: Floats) -> Inverse:
    """From a symmetric matrix with a unit diagonal."""
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
    # the curvature along the others may be as little as rounding leaves of nothing
    floor = len(values) * _EPS * values[-1]
    return _over_kept(values, vectors, keep, floor, floor / values[keep][0])


def _inverse_of_triangle(triangle: Triangle) -> Inverse:
    """From the triangular factor."""
    _, roots, vt, keep = triangle.decompose()
    if keep.all():
        inverse, _ = lapack.dtrtri(triangle.r / triangle.norms)
        return inverse @ inverse.T, np.zeros(len(roots), np.bool_), float((roots[0] / roots[-1]) ** 2)
    noise = len(roots) * triangle.rounding * roots[0]
    return _over_kept(roots**2, vt.T, keep, noise**2, noise / roots[keep][-1])


def _over_kept(values: Floats, vectors: Floats, keep: Mask, floor: float, blur: float) -> Inverse:
    """Without the directions that are not determined.

    `floor` is what rounding leaves of a curvature of zero, `blur` what it adds to a share of an eigenvector.
    """
    kept = vectors[:, keep]
    inverse = (kept / values[keep]) @ kept.T
    least = np.maximum(_ADDED * floor * inverse.diagonal(), (_SURE * blur) ** 2)
    weak = np.sum(vectors[:, ~keep] ** 2, axis=1) > least
    return inverse, weak, float(np.max(values) / np.min(values[keep]))


def _norm(matrix: Floats) -> float:
    """Largest column sum."""
    return float(np.maximum.reduce(np.add.reduce(np.abs(matrix))))
