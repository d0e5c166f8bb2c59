"""Phase 3: uncertainties of the solution in physical units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.covariance import (
    Covariance,
    covariance,
    covariance_of_inverse,
    covariance_of_triangle,
    sandwich,
)
from nlsq_nb.core.linsolve import cholesky, column_norms, column_scaled, principal
from nlsq_nb.core.tsqr import Triangle
from nlsq_nb.phases.state import FitState
from nlsq_nb.phases.stationary import seen_parameters
from nlsq_nb.phases.trial import sums_of

__all__ = ["INVERSE", "Outcome", "Scatter", "finalize", "finalize_robust"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)

INVERSE = "inverse"
"""Where `NormalSums.derived` has (JᵀWJ)⁻¹ and the condition of the scaled JᵀWJ, if a phase has found them and no
parameter is fixed, on a bound, or undetermined."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The numbers of a finished fit.

    Attributes
    ----------
    state : FitState
        The last state.
    covariance : Covariance
        pcov and what is undetermined.
    active : ndarray of int, shape (p,)
        −1 on the lower bound, 1 on the upper, 0 inside, as SciPy's active_mask.
    dof : int
        Residuals minus free parameters.
    sse : float
        Σ w r² of the data alone.
    cost : float
        What was minimised, of the data alone: ½ sse, or ½ Σ f²ρ(w r²/f²).
    method : {"normal", "qr"}
        Whether the covariance comes from JᵀWJ or from J.
    corrections : int
        Last steps that were taken by QR.
    """

    state: FitState
    covariance: Covariance
    active: NDArray[np.int_]
    dof: int
    sse: float
    cost: float
    method: str = "normal"
    corrections: int = 0


@dataclass(frozen=True, slots=True)
class Scatter:
    """What the covariance of a robust fit is made of, besides the sums of its last step.

    Attributes
    ----------
    sse : float
        Σ w r² of the data alone.
    bread, meat : ndarray, shape (p, p), or None
        Σ w ψ' J Jᵀ with the curvature of penalties, and Σ w ψ² J Jᵀ of the data alone; None for so many
        parameters that there is no covariance.
    """

    sse: float
    bread: Floats | None
    meat: Floats | None


def finalize(
    state: FitState,
    n_residuals: int,
    absolute_sigma: bool,
    penalty: float,
    triangle: Triangle | None = None,
    corrections: int = 0,
) -> Outcome:
    """Covariance at the solution.

    The kernels work in physical parameters, so H needs no transform by S here; inverting it
    column-scaled gives the same numbers as S (S H S)⁻¹ S for any S.

    Parameters
    ----------
    state : FitState
        The last state of phase 2, with sums of order 2, or of order 1 where p is too large for a
        covariance: that is infinite then.
    n_residuals : int
        Rows times outputs.
    absolute_sigma : bool
        Whether sigma is taken as it is (σ² = 1) instead of σ² = SSE/(n − p).
    penalty : float
        What the sse of the state holds beside the data.
    triangle : Triangle, optional
        R of √W J, where JᵀWJ has lost digits.
    corrections : int
        Steps that were taken with it.

    Returns
    -------
    Outcome
        With infinite variances where there are no degrees of freedom.
    """
    # p counts every parameter, fixed ones aside, as degrees of freedom are counted elsewhere
    dof = n_residuals - state.free.tolist().count(True)
    sse = max(sums_of(state).sse - penalty, 0.0)
    # an sse of 0 is one below the rounding of y: it makes no undetermined parameter exact
    scatter = max(sse, _EPS**2 * state.signal)
    variance = 1.0 if absolute_sigma else (scatter / dof if dof > 0 else np.inf)
    known: tuple[Floats, float] | None = sums_of(state).derived.get(INVERSE)
    if known is not None and triangle is None:
        found = covariance_of_inverse(*known, state.free, variance)
        return Outcome(state, found, np.zeros(len(state.theta), np.int_), dof, sse, 0.5 * sse)
    found = _covariance(state, variance, triangle) if sums_of(state).order > 1 else _unknown(state)
    method = "normal" if triangle is None else "qr"
    return Outcome(state, found, _active(state), dof, sse, 0.5 * sse, method, corrections)


def finalize_robust(state: FitState, n_residuals: int, penalty: float, scatter: Scatter) -> Outcome:
    """Covariance at the solution under a robust loss: the sandwich n/(n − p) A⁻¹ M A⁻¹.

    The scatter of the residuals is in M, so that it needs no σ², whether sigma is absolute or not.

    Parameters
    ----------
    state : FitState
        The last state of phase 2.
    n_residuals : int
        Rows times outputs.
    penalty : float
        What the cost of the state holds beside the data, twice.
    scatter : Scatter
        At the solution.

    Returns
    -------
    Outcome
        As from `finalize`.
    """
    sums = sums_of(state)
    dof = n_residuals - int(state.free.sum())
    found = _unknown(state)
    if scatter.bread is not None and scatter.meat is not None:
        free, factor = state.free, n_residuals / dof if dof > 0 else np.inf
        norms = column_norms(sums.jtj)
        # where the curvature points down somewhere, as at a bound, that of the steps stands for it
        bread = scatter.bread if _is_definite(principal(scatter.bread, free & (norms > 0.0))) else sums.jtj
        found = sandwich(bread, scatter.meat, free, factor, seen_parameters(state, norms))
    return Outcome(state, found, _active(state), dof, scatter.sse, 0.5 * max(sums.sse - penalty, 0.0))


def _is_definite(matrix: Floats) -> bool:
    """Whether a symmetric matrix is positive definite; an empty one is."""
    if not (matrix.diagonal() > 0.0).all():
        return False
    return not len(matrix) or cholesky(column_scaled(matrix, column_norms(matrix))) is not None


def _active(state: FitState) -> NDArray[np.int_]:
    """−1 on the lower bound, 1 on the upper."""
    at_lower = (state.theta == state.lower) & state.free
    at_upper = (state.theta == state.upper) & state.free
    return np.asarray(at_upper.astype(int) - at_lower.astype(int))


def _covariance(state: FitState, variance: float, triangle: Triangle | None) -> Covariance:
    if triangle is not None:
        seen = seen_parameters(state, triangle.norms)
        return covariance_of_triangle(triangle, state.free, variance, seen)
    h = sums_of(state).jtj
    return covariance(h, state.free, variance, seen_parameters(state, column_norms(h)))


def _unknown(state: FitState) -> Covariance:
    """No covariance: too many parameters for JᵀWJ; nothing says that they are undetermined."""
    p = len(state.theta)
    matrix = np.full((p, p), np.inf)
    matrix[~state.free, :] = matrix[:, ~state.free] = 0.0
    return Covariance(matrix, np.zeros(p, dtype=bool), np.nan)
