"""Penalties on the parameters, as the sums that they add to those of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.sums import NormalSums

__all__ = ["GroupVariance", "group_variance", "largest_strength"]

Floats = NDArray[np.float64]
_STIFFEST = 1e10  # times the curvature of the data: leaves 6 digits of that beside the penalty's


@dataclass(frozen=True, slots=True)
class GroupVariance:
    """λ·n·Σ Var(θ[start:end]) as something to add to the data.

    Attributes
    ----------
    groups : sequence of (int, int)
        First member and one past the last.
    strength : float
        λ.
    n : int
        Number of rows.
    """

    groups: Sequence[tuple[int, int]]
    strength: float
    n: int

    def __call__(self, theta: Floats) -> NormalSums:
        """What it adds to the sums; see `group_variance`."""
        return group_variance(theta, self.groups, self.strength, self.n)

    def rows(self, theta: Floats) -> Floats:
        """The same as rows of [J | r], whose sums it would be.

        Parameters
        ----------
        theta : ndarray, shape (p,)
            Parameters, physical units.

        Returns
        -------
        ndarray, shape (k, p + 1)
            One row per member of a group.
        """
        found = [np.zeros((0, len(theta) + 1))]
        for start, end in self.groups:
            m = end - start
            part = np.zeros((m, len(theta) + 1))
            part[:, start:end] = np.eye(m) - 1.0 / m
            part[:, -1] = np.mean(theta[start:end]) - theta[start:end]
            found.append(math.sqrt(self.strength * self.n / m) * part)
        return np.concatenate(found)


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
        # the mean is rounded; what is left of it would pull all members to one side
        apart -= math.fsum(apart.tolist()) / m
        factor = strength * n / m
        sse += factor * float(apart @ apart)
        jtr[members] -= factor * apart
        jtj[members, members] += factor * (np.eye(m) - 1.0 / m)
    return NormalSums.from_arrays(sse, jtr, jtj)


def largest_strength(curvature: Floats, groups: Sequence[tuple[int, int]]) -> float:
    """The largest λ beside which float64 still carries what the data say of a group's mean.

    JᵀWJ along the mean of a group is that of the data alone; rounding of the penalty's λ·n in its
    elements takes eps·λ·n of it away. Members are equal to ten digits by then.

    Parameters
    ----------
    curvature : ndarray, shape (p,)
        Mean of w (∂f/∂θ)² over the residuals.
    groups : sequence of (int, int)
        As in `group_variance`.

    Returns
    -------
    float
        inf where the data say nothing of any group.
    """
    known = [float(np.max(curvature[start:end])) for start, end in groups]
    return min((_STIFFEST * value for value in known if value > 0.0), default=math.inf)
