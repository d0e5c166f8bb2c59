"""Penalties on the parameters, as the sums that they add to those of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.sums import NormalSums

__all__ = ["group_variance"]

Floats = NDArray[np.float64]


def group_variance(
    theta: Floats, groups: Sequence[tuple[int, int]], strength: float, n: int
) -> NormalSums:
    """λ·n·Σ Var(θ[start:end]): draws the parameters of a group towards their mean.

    With C = I − 11ᵀ/m the variance of the m members is θᵀCθ/m, an exact quadratic form, so the
    Gauss–Newton step is as exact for it as it is for a linear model.

    Parameters
    ----------
    theta : ndarray, shape (p,)
        Parameters, physical units.
    groups : sequence of (int, int)
        First member and one past the last, 0 ≤ start < end ≤ p; groups may overlap.
    strength : float
        λ.
    n : int
        Number of residuals, so that λ means the same for any amount of data.

    Returns
    -------
    NormalSums
        Order 2, no rows: sse the penalty, jtr minus half its gradient, jtj half its Hessian.
    """
    p = len(theta)
    sse, jtr, jtj = 0.0, np.zeros(p), np.zeros((p, p))
    for start, end in groups:
        members, m = slice(start, end), end - start
        apart = theta[members] - np.mean(theta[members])
        factor = strength * n / m
        sse += factor * float(apart @ apart)
        jtr[members] -= factor * apart
        jtj[members, members] += factor * (np.eye(m) - 1.0 / m)
    return NormalSums.from_arrays(sse, jtr, jtj)
