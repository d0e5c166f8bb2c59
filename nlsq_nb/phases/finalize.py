"""Phase 3: uncertainties of the solution in physical units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.covariance import Covariance, covariance
from nlsq_nb.core.linsolve import column_norms
from nlsq_nb.phases.state import FitState
from nlsq_nb.phases.stationary import seen_parameters
from nlsq_nb.phases.trial import sums_of

__all__ = ["Outcome", "finalize"]

Floats = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


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
    """

    state: FitState
    covariance: Covariance
    active: NDArray[np.int_]
    dof: int
    sse: float


def finalize(state: FitState, n_residuals: int, absolute_sigma: bool, penalty: float) -> Outcome:
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

    Returns
    -------
    Outcome
        With infinite variances where there are no degrees of freedom.
    """
    assert state.sums is not None
    # p counts every parameter, fixed ones aside, as degrees of freedom are counted elsewhere
    dof = n_residuals - int(state.free.sum())
    sse = max(state.sums.sse - penalty, 0.0)
    # an sse of 0 is one below the rounding of y: it makes no undetermined parameter exact
    scatter = max(sse, _EPS**2 * state.signal)
    variance = 1.0 if absolute_sigma else (scatter / dof if dof > 0 else np.inf)
    at_lower = (state.theta == state.lower) & state.free
    at_upper = (state.theta == state.upper) & state.free
    return Outcome(
        state,
        _covariance(state, variance) if state.sums.order > 1 else _unknown(state),
        at_upper.astype(int) - at_lower.astype(int),
        dof,
        sse,
    )


def _covariance(state: FitState, variance: float) -> Covariance:
    h = sums_of(state).jtj
    return covariance(h, state.free, variance, seen_parameters(state, column_norms(h)))


def _unknown(state: FitState) -> Covariance:
    """No covariance: too many parameters for JᵀWJ; nothing says that they are undetermined."""
    p = len(state.theta)
    matrix = np.full((p, p), np.inf)
    matrix[~state.free, :] = matrix[:, ~state.free] = 0.0
    return Covariance(matrix, np.zeros(p, dtype=bool), np.nan)
