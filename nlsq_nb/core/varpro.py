"""Variable projection on the sums: the parameters that enter linearly are eliminated.

At a point (α, c) of a model linear in c, one pass gives H and g; the best c for this α and its cost
follow without another pass, since the cost is exactly quadratic in c. A Gauss–Newton step on the
reduced functional of α uses the Schur complement of H (Golub & Pereyra 1973, SIAM J. Numer. Anal. 10,
413; Kaufman 1975, BIT 15, 49: the term with the derivative of the projector is dropped).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.bounds import Room, has_room
from nlsq_nb.core.factor import Factor, factorize, split
from nlsq_nb.core.linsolve import (
    column_norms,
    column_scaled,
    principal,
    rounding_error,
    solve_positive,
)
from nlsq_nb.core.trust_region import Step, trust_region_step

__all__ = ["TRUSTED", "eliminable", "linear_factor", "reduced_norms", "reduced_step", "relax", "schur"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TRUSTED = 1e-6
"""Relative rounding error up to which the linear parameters are solved for apart."""


def eliminable(h: Floats, separable: Mask) -> Mask:
    """The parameters to eliminate: none while their own system cannot be solved to some digits.

    Two nearly equal terms leave nothing but rounding in the Schur complement; an ordinary step of
    all parameters leads away from there.

    Parameters
    ----------
    h : ndarray, shape (p, p)
        JᵀWJ.
    separable : ndarray of bool, shape (p,)
        The linear parameters.

    Returns
    -------
    ndarray of bool, shape (p,)
        `separable` itself, or no parameter.
    """
    known = separable.tolist()
    if all(known) or not any(known):
        return separable
    # one row is regular, and sums that are not finite say nothing
    if sum(known) == 1 or not np.isfinite(h).all():
        return separable
    lost = rounding_error(h[separable][:, separable])
    return separable if lost <= TRUSTED else np.zeros_like(separable)


def linear_factor(h: Floats, g: Floats, linear: Mask) -> Factor | None:
    """The factor of the linear parameters' own system; see `factorize`.

    Parameters
    ----------
    h, g : ndarray, shape (p, p) and (p,)
        JᵀWJ and JᵀWr.
    linear : ndarray of bool, shape (p,)
        The linear parameters.

    Returns
    -------
    Factor or None
        None where it is ill-conditioned.
    """
    return factorize(h, g, split(linear, linear))


def relax(
    h: Floats,
    g: Floats,
    linear: Mask,
    room: Room | None,
    ridge: float,
    factor: Factor | None = None,
) -> Step:
    """The best change of the linear parameters alone, within their bounds.

    Parameters
    ----------
    h, g : ndarray, shape (p, p) and (p,)
        JᵀWJ and JᵀWr.
    linear : ndarray of bool, shape (p,)
        The linear parameters.
    room : tuple of ndarray, or None
        Lowest and highest change that the bounds allow; None without bounds.
    ridge : float
        Relative ridge where their block is numerically singular.
    factor : Factor, optional
        From `linear_factor`, where it is known.

    Returns
    -------
    Step
        `delta` (p,), zero at the others; `predicted` is the exact reduction of the sse.
    """
    if True not in linear.tolist():
        return Step(np.zeros_like(g), 0.0, 0.0, 0.0, 0.0)
    factor = factor or linear_factor(h, g, linear)
    if factor is not None:
        best = factor.relaxed()
        if has_room(room, linear, best.delta):
            return best
    if room is None:
        unlimited = np.full_like(g, math.inf)
        room = (-unlimited, unlimited)
    delta = np.zeros_like(g)
    part = trust_region_step(
        principal(h, linear),
        g[linear],
        column_norms(h)[linear],
        math.inf,
        (room[0][linear], room[1][linear]),
        ridge,
    )
    delta[linear] = part.delta
    return Step(delta, part.norm, part.damping, part.slope, part.predicted)


def reduced_step(
    h: Floats,
    g: Floats,
    scale: Floats,
    radius: float,
    room: Room,
    ridge: float,
    linear: Mask,
) -> Step:
    """A step whose trust region limits the nonlinear parameters only.

    Parameters
    ----------
    h, g : ndarray, shape (p, p) and (p,)
        JᵀWJ and JᵀWr.
    scale : ndarray, shape (p,)
        D; its entries at linear parameters are not used.
    radius : float
        Δ; inf for the full Gauss–Newton step of all parameters.
    room : tuple of ndarray
        Lowest and highest change that the bounds allow.
    ridge : float
        Relative ridge where the matrix is numerically singular.
    linear : ndarray of bool, shape (p,)
        The linear parameters; with none this is `trust_region_step`.

    Returns
    -------
    Step
        `norm` is ‖Dδ‖ over the nonlinear parameters; `slope` and `predicted` count from the point
        whose linear parameters are relaxed already.
    """
    if not linear.any() or linear.all():  # a linear model is its own quadratic: no radius needed
        limit = math.inf if linear.all() else radius
        return trust_region_step(h, g, scale, limit, room, ridge)
    start = relax(h, g, linear, room, ridge)
    moved = g - h @ start.delta  # the gradient vector after relaxing
    left = (room[0] - start.delta, room[1] - start.delta)
    inner = linear & (left[0] < 0.0) & (left[1] > 0.0)  # linear ones that no bound holds
    outer = ~linear
    reduced = schur(h, inner, outer, ridge)
    part = trust_region_step(
        reduced, moved[outer], scale[outer], radius, (left[0][outer], left[1][outer]), ridge
    )
    delta = np.zeros_like(g)
    delta[outer] = part.delta
    follow = relax(h, moved - h @ delta, linear, left, ridge)
    delta = delta + follow.delta
    predicted = float(2.0 * moved @ delta - delta @ h @ delta)
    total = np.clip(start.delta + delta, *room)
    # what reached its bound in the second part stands exactly on it
    total = np.where(delta == left[0], room[0], np.where(delta == left[1], room[1], total))
    return Step(total, part.norm, part.damping, float(moved @ delta), predicted)


def reduced_norms(h: Floats, linear: Mask, ridge: float) -> Floats:
    """Column norms of the reduced Jacobian of the nonlinear parameters, of J for the linear ones.

    Parameters
    ----------
    h : ndarray, shape (p, p)
        JᵀWJ.
    linear : ndarray of bool, shape (p,)
        The linear parameters.
    ridge : float
        Relative ridge where their block is numerically singular.

    Returns
    -------
    ndarray, shape (p,)
        Norms ≥ 0.
    """
    norms = column_norms(h)
    if linear.any() and not linear.all():
        norms[~linear] = column_norms(schur(h, linear, ~linear, ridge))
    return norms


def schur(h: Floats, inner: Mask, outer: Mask, ridge: float) -> Floats:
    """The Schur complement H_oo − H_oi H_ii⁻¹ H_io, with the inner block column-scaled.

    Parameters
    ----------
    h : ndarray, shape (p, p)
        JᵀWJ.
    inner, outer : ndarray of bool, shape (p,)
        Parameters to eliminate and to keep.
    ridge : float
        Relative ridge where the inner block is numerically singular.

    Returns
    -------
    ndarray
        Symmetric, one row per kept parameter; its diagonal stays above rounding level.
    """
    block = h[outer][:, outer]
    norms = column_norms(h)
    inner = inner & (norms > 0.0)
    if not inner.any():
        return block
    scaled = column_scaled(h[inner][:, inner], norms[inner])
    coupling = h[inner][:, outer] / norms[inner][:, None]
    solved = np.column_stack([solve_positive(scaled, column, ridge)[0] for column in coupling.T])
    reduced = block - coupling.T @ solved
    reduced = 0.5 * (reduced + reduced.T)
    floor = len(norms) * np.finfo(np.float64).eps * np.diagonal(block)
    np.fill_diagonal(reduced, np.maximum(np.diagonal(reduced), floor))
    return reduced
