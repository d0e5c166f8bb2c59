"""Points and changes within bounds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Room", "has_room", "moved", "room_within", "widths"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Room = tuple[Floats, Floats]
"""Lowest and highest change of each parameter, lower ≤ 0 ≤ upper."""

_ABSURD = 2.0**52  # sizes of a start; with a wider scale the start has no digit left
_NEAR = 4.0 * float(np.finfo(np.float64).eps)  # rounding of a sum of two or three numbers


def has_room(room: Room | None, mask: Mask, delta: Floats | None = None) -> bool:
    """Whether a change of some parameters stays clear of their bounds.

    Parameters
    ----------
    room : tuple of ndarray, or None
        Lowest and highest change that the bounds allow; None without bounds.
    mask : ndarray of bool, shape (p,)
        The parameters that are asked about.
    delta : ndarray, shape (p,), optional
        The change; by default none.

    Returns
    -------
    bool
        False when one of them stands on a bound or beyond.
    """
    if room is None:
        return True
    change = [0.0] * len(mask) if delta is None else delta.tolist()
    columns = zip(mask.tolist(), room[0].tolist(), change, room[1].tolist(), strict=True)
    return all(low < value < high for asked, low, value, high in columns if asked)


def room_within(lower: Floats, upper: Floats, theta: Floats) -> Room | None:
    """The changes that the bounds allow.

    Parameters
    ----------
    lower, upper : ndarray, shape (p,)
        Bounds, ±inf where there are none.
    theta : ndarray, shape (p,)
        The point, within them.

    Returns
    -------
    tuple of ndarray, or None
        Lowest and highest change; None when there is no bound at all.
    """
    if max(lower.tolist()) == -math.inf and min(upper.tolist()) == math.inf:
        return None
    return lower - theta, upper - theta


def moved(theta: Floats, delta: Floats, lower: Floats, upper: Floats) -> Floats:
    """θ + δ within the bounds, exactly on a bound that the step reaches up to rounding.

    Beside a bound by one unit in the last place, a parameter would count as one that may still
    move towards it.

    Parameters
    ----------
    theta : ndarray, shape (p,)
        The point, within the bounds.
    delta : ndarray, shape (p,)
        The change; where it is zero the parameter keeps its value.
    lower, upper : ndarray, shape (p,)
        Bounds, ±inf where there are none.

    Returns
    -------
    ndarray, shape (p,)
        A new point within the bounds.
    """
    there = theta + delta
    if room_within(lower, upper, theta) is None:
        return there
    slack = _NEAR * (np.abs(theta) + np.abs(there))
    there = np.where((delta < 0.0) & (there <= lower + slack), lower, there)
    return np.where((delta > 0.0) & (there >= upper - slack), upper, there)


def widths(start: Floats, lower: Floats, upper: Floats) -> tuple[Floats, Mask]:
    """How far bounds are apart, and where that says how large a parameter may be.

    A bound of ±1e300 is one that means none: as a scale it would freeze the parameter.

    Parameters
    ----------
    start : ndarray, shape (p,)
        p0.
    lower, upper : ndarray, shape (p,)
        Bounds, ±inf where there are none.

    Returns
    -------
    ndarray, shape (p,)
        upper − lower.
    ndarray of bool, shape (p,)
        Whether it is positive and at most 2⁵² times the start, or 2⁵² where the start is below 1.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        width, most = upper - lower, _ABSURD * np.maximum(np.abs(start), 1.0)
    return width, (width > 0.0) & (width <= most) & np.isfinite(width)
