"""Robust losses: how much a residual costs, and what it weighs in the sums.

The cost is ½ Σ f² ρ(w r²/f²), f being `f_scale` (SciPy's `least_squares`; Huber & Ronchetti 2009, *Robust
Statistics*, ch. 7). With z = w r²/f² one pass gives, in the places of Σ w r², JᵀWr and JᵀWJ,

- Σ f² ρ(z): twice the cost;
- Σ w ρ'(z) r J: minus the gradient of the cost;
- Σ w h J Jᵀ, where h is what the loss leaves of the curvature, ψ' = ρ' + 2 z ρ'' (Triggs et al. 1999,
  "Bundle adjustment", §4.3), but at least `FLOOR` times the weight ρ' of iteratively reweighted least
  squares. The matrix is thus positive semidefinite, and no longer than 1/FLOOR is a step compared with
  one that is sure to lower the cost of a linear model.

`Loss.part` chooses another matrix for the covariance. Every ρ grows like z near 0, so that a large f_scale
is least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOOR", "LEAST_SQUARES", "LOSSES", "Loss", "rho", "weigh"]

Floats = NDArray[np.float64]

LOSSES = ("linear", "huber", "soft_l1", "cauchy", "arctan", "tukey")
"""The losses by name; all but the last are SciPy's."""

FLOOR = 0.1
"""Least ratio of h to ρ'. On 36 fits with 20 % of outliers 1 (plain reweighting) takes up to a third more passes
for the same fit, less than 0.1 no fewer."""

_NONE = -1e300  # a floor that is none


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss, its scale, and what the matrix of the sums is to hold.

    Attributes
    ----------
    kind : str
        One of `LOSSES`.
    f_scale : float
        Residual, over sigma, from which on a point counts less; of no meaning for "linear".
    part : {"steps", "bread", "meat"}
        Matrix: Σ w h J Jᵀ for the steps, Σ w ψ' J Jᵀ without a floor, or Σ w (ρ'²w r²) J Jᵀ, the scatter of the
        gradient.
    """

    kind: str = "linear"
    f_scale: float = 1.0
    part: str = "steps"

    @property
    def is_robust(self) -> bool:
        """Whether it is another than least squares."""
        return self.kind != "linear"

    @property
    def redescends(self) -> bool:
        """Whether ρ is not convex in r, so that where a fit begins decides where it ends."""
        return self.kind in ("cauchy", "arctan", "tukey")

    @property
    def saturates(self) -> bool:
        """Whether a residual that is large enough has no slope at all."""
        return self.kind == "tukey"

    def numbers(self) -> Floats:
        """What kernels need to know beside the kind, which is in their text.

        Returns
        -------
        ndarray, shape (5,)
            f², 1/f², and a, floor, b of the matrix's a·max(ψ', floor·ρ') + b·ρ'²w r².
        """
        square = self.f_scale * self.f_scale
        part = {"steps": (1.0, FLOOR, 0.0), "bread": (1.0, _NONE, 0.0), "meat": (0.0, FLOOR, 1.0)}
        return np.array([square, 1.0 / square, *part[self.part]])


LEAST_SQUARES = Loss()
"""No robust loss."""


def rho(kind: str, z: Floats) -> tuple[Floats, Floats, Floats]:
    """ρ, ρ' and ρ'' of a loss.

    Parameters
    ----------
    kind : str
        One of `LOSSES`:

        - linear: z
        - huber: z up to 1, 2√z − 1 beyond
        - soft_l1: 2(√(1 + z) − 1)
        - cauchy: log(1 + z)
        - arctan: arctan z
        - tukey: (1 − (1 − z)³)/3 up to 1, 1/3 beyond (biweight: c is f_scale)
    z : ndarray
        w r²/f², ≥ 0.

    Returns
    -------
    tuple of ndarray
        Values and two derivatives; nan where z is.
    """
    if kind == "linear":
        return z, np.ones(z.shape), np.zeros(z.shape)
    if kind == "huber":
        far, root = z > 1.0, np.sqrt(np.where(z <= 1.0, 1.0, z))
        return np.where(far, 2.0 * root - 1.0, z), 1.0 / root, np.where(far, -0.5 / root**3, 0.0)
    if kind == "soft_l1":
        root = np.sqrt(1.0 + z)
        return 2.0 * z / (1.0 + root), 1.0 / root, -0.5 / root**3
    if kind == "cauchy":
        return np.log1p(z), 1.0 / (1.0 + z), -1.0 / (1.0 + z) ** 2
    if kind == "arctan":
        return np.arctan(z), 1.0 / (1.0 + z * z), -2.0 * z / (1.0 + z * z) ** 2
    near = np.where(z > 1.0, 1.0, z)
    left = 1.0 - near
    return near * (1.0 - near * (1.0 - near / 3.0)), left * left, -2.0 * left


def weigh(loss: Loss, r: Floats, w: Floats) -> tuple[Floats, Floats, Floats]:
    """What residuals contribute under a loss.

    Parameters
    ----------
    loss : Loss
        The loss.
    r, w : ndarray
        Residuals and weights of the same shape.

    Returns
    -------
    tuple of ndarray
        f²ρ, which stands for w r²; wρ'r, for w r; and the weight of J Jᵀ, for w. The first is not finite where
        the residual is not, though ρ may have an end.
    """
    if not loss.is_robust:
        return w * r * r, w * r, w
    square, inverse, a, floor, b = loss.numbers().tolist()
    z = w * r * r * inverse
    value, slope, curve = rho(loss.kind, z)
    bend = slope + 2.0 * z * curve
    push = slope * w * r
    h = a * np.where(bend > floor * slope, bend, floor * slope) + b * push * (slope * r)
    return square * value + 0.0 * r, push, w * h
