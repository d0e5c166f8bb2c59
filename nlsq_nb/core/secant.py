"""What Gauss–Newton leaves out of the curvature of the sse, learnt from how gradients change.

JᵀWJ lacks Σ w r ∂²f. Where residuals are large steps with it converge linearly, or not within their limit; what
is missing shows in the gradients of successive points, which the sums hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["learnt"]

Floats = NDArray[np.float64]


def learnt(bend: Floats | None, step: Floats, change: Floats, jtj: Floats) -> Floats | None:
    """The missing part after a step, symmetric, that explains the change of the gradient.

    Dennis, Gay & Welsch 1981, ACM Trans. Math. Softw. 7, 348, eqs. 3.2 and 3.3, with the matrix of the new point in
    the place of its Jacobian.

    Parameters
    ----------
    bend : ndarray, shape (p, p), or None
        As it was known before; None for nothing.
    step : ndarray, shape (p,)
        From the old point to the new one.
    change : ndarray, shape (p,)
        Change of the gradient of half the sse.
    jtj : ndarray, shape (p, p)
        JᵀWJ at the new point.

    Returns
    -------
    ndarray, shape (p, p), or None
        As before where the step says nothing: where the sse is not convex along it.
    """
    along = float(change.dot(step))
    if not along > 0.0:
        return bend
    missing = change - jtj.dot(step)
    if bend is None:
        bend = np.zeros_like(jtj)
    known = float(step.dot(bend).dot(step))
    if known != 0.0:  # residuals have become smaller, or the curvature another
        bend = bend * min(1.0, abs(float(missing.dot(step)) / known))
    rest = missing - bend.dot(step)
    new = bend + (np.outer(rest, change) + np.outer(change, rest)) / along
    new -= float(rest.dot(step)) / along**2 * np.outer(change, change)
    return new if np.isfinite(new).all() else None
