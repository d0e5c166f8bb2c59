"""Limited-memory BFGS directions (Nocedal 1980, Math. Comp. 35, 773) as functions of small vectors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pairs", "clip_norm", "direction", "projected_gradient", "remember"]

Floats = NDArray[np.float64]
Pairs = tuple[tuple[Floats, Floats, float], ...]
"""Steps s, gradient changes y and the curvatures sᵀy, oldest first."""

_CURVATURE = 1e-10  # least cosine of the angle between s and y that says something about curvature


def direction(gradient: Floats, pairs: Pairs) -> Floats:
    """−B⁻¹g by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4).

    Parameters
    ----------
    gradient : ndarray, shape (p,)
        Gradient of the loss.
    pairs : tuple of (ndarray, ndarray, float)
        The memory, oldest first; at least one pair.

    Returns
    -------
    ndarray, shape (p,)
        A descent direction whose natural length is 1.
    """
    q = -gradient
    shares = []
    for s, y, curvature in reversed(pairs):
        share = s.dot(q) / curvature
        shares.append(share)
        q -= share * y
    _, y, curvature = pairs[-1]
    q *= curvature / y.dot(y)  # the scale of the latest curvature
    for s, y, curvature in pairs:
        q += (shares.pop() - y.dot(q) / curvature) * s
    return q


def remember(pairs: Pairs, s: Floats, y: Floats, memory: int) -> Pairs:
    """The memory with one more pair, unless the pair would spoil its positive curvature.

    Parameters
    ----------
    pairs : tuple of (ndarray, ndarray, float)
        Oldest first.
    s, y : ndarray, shape (p,)
        Step and change of the gradient.
    memory : int
        Most pairs to keep.

    Returns
    -------
    tuple of (ndarray, ndarray, float)
        The same object when sᵀy ≤ ε‖s‖‖y‖ and the pair is skipped.
    """
    curvature = float(s.dot(y))
    if not curvature > _CURVATURE * math.sqrt(float(s.dot(s) * y.dot(y))):
        return pairs
    return (*pairs, (s, y, curvature))[-memory:]


def clip_norm(gradient: Floats, limit: float | None) -> Floats:
    """The gradient, shortened to a global norm.

    Parameters
    ----------
    gradient : ndarray, shape (p,)
        Any vector.
    limit : float or None
        Longest norm; None for no limit.

    Returns
    -------
    ndarray, shape (p,)
        Same direction.
    """
    norm = math.hypot(*gradient.tolist())
    return gradient if limit is None or norm <= limit else gradient * (limit / norm)


def projected_gradient(gradient: Floats, room: tuple[Floats, Floats]) -> Floats:
    """The gradient without the entries whose descent a bound forbids.

    Parameters
    ----------
    gradient : ndarray, shape (p,)
        Gradient of the loss.
    room : tuple of ndarray
        Lowest and highest change that the bounds allow, lower ≤ 0 ≤ upper.

    Returns
    -------
    ndarray, shape (p,)
        Zero where a parameter stands on a bound and descent points outwards.
    """
    held = ((room[0] >= 0.0) & (gradient > 0.0)) | ((room[1] <= 0.0) & (gradient < 0.0))
    return np.where(held, 0.0, gradient)
