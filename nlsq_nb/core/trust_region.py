"""The Levenberg–Marquardt step on the sums, within a trust region and bounds.

The subproblem is min ½ δᵀHδ − gᵀδ subject to ‖Dδ‖ ≤ Δ and lower ≤ δ ≤ upper, solved in coordinates
where H has a unit diagonal. D holds the largest column norms met so far (Moré 1978, "The
Levenberg–Marquardt algorithm: implementation and theory", §6), so a badly scaled parameter is
rescaled by the data instead of by its starting value. The damping comes from the secular equation
1/Δ = 1/‖Dδ(λ)‖ by Newton's method (Hebden; Moré §5). Bounds are an active set on the damped quadratic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core import lapack
from nlsq_nb.core.linsolve import cholesky, column_norms, column_scaled, length, principal, solve_positive

__all__ = ["SLACK", "Step", "limited", "next_radius", "trust_region_step"]

SLACK = 1.1
"""A full step up to this many times Δ is taken as it is (Moré 1978, §5)."""

Floats = NDArray[np.float64]
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Step:
    """A trial step.

    Attributes
    ----------
    delta : ndarray, shape (p,)
        Change of the parameters; zero where a parameter is held.
    norm : float
        ‖D delta‖.
    damping : float
        λ; zero for a full Gauss–Newton step.
    slope : float
        gᵀ delta: half the rate at which the sse falls at the start of the step.
    predicted : float
        Reduction of the sse that the quadratic model promises.
    """

    delta: Floats
    norm: float
    damping: float
    slope: float
    predicted: float


def trust_region_step(
    h: Floats, g: Floats, scale: Floats, radius: float, room: tuple[Floats, Floats], ridge: float
) -> Step:
    """Solve the subproblem by a primal active-set method on the damped quadratic.

    Parameters
    ----------
    h : ndarray, shape (p, p)
        JᵀWJ of the parameters that may move.
    g : ndarray, shape (p,)
        JᵀWr.
    scale : ndarray, shape (p,)
        D, ≥ the column norms.
    radius : float
        Δ > 0; inf for a full step.
    room : tuple of ndarray
        Lowest and highest delta that the bounds allow, lower ≤ 0 ≤ upper.
    ridge : float
        Relative ridge on a numerically singular system.

    Returns
    -------
    Step
        The trial step; parameters without influence (zero column) stay.
    """
    lower, upper = room
    useful = (column_norms(h) > 0.0) & (lower < upper)
    if useful.all() and not (np.isfinite(lower).any() or np.isfinite(upper).any()):
        delta, lam = _unbounded(h, g, scale, radius, ridge, None)
        return _step(h, g, scale, delta, lam)
    free = useful & ~((lower == 0.0) & (g < 0.0)) & ~((upper == 0.0) & (g > 0.0))
    delta = np.zeros_like(g)
    damping: float | None = None
    for _ in range(3 * len(g) + 3):
        target = np.where(free, 0.0, delta)
        right = g - h.dot(target) if target.any() else g
        target[free], damping = _unbounded(principal(h, free), right[free], scale[free], radius, ridge, damping)
        if ((target < lower) | (target > upper)).any():  # hold the parameter that its bound stops first
            delta = _stopped(delta, target, room, free)
            continue
        delta = target
        held = useful & ~free
        if not held.any():
            break
        unit = np.where(scale > 0.0, scale, 1.0)
        pull = g - h.dot(delta) - damping * scale**2 * delta  # multipliers of the held parameters
        inward = np.where(delta == upper, -pull, np.where(delta == lower, pull, 0.0))
        inward = np.where(held, inward / unit, 0.0)
        worst = int(inward.argmax())
        if inward[worst] <= 1e-14 * length(g / unit):
            break
        free[worst] = True
    return _step(h, g, scale, delta, damping or 0.0)


def _stopped(delta: Floats, target: Floats, room: tuple[Floats, Floats], free: NDArray[np.bool_]) -> Floats:
    """As far on the way to a target as the bounds allow; what stops it there is not free from now on."""
    way = target - delta
    limit = np.where(way > 0.0, room[1], room[0])
    share = np.divide(limit - delta, way, out=np.full_like(way, np.inf), where=way != 0.0)
    stop = int(share.argmin())
    delta = delta + share[stop] * way
    delta[stop] = limit[stop]
    free[stop] = False
    return delta


def _step(h: Floats, g: Floats, scale: Floats, delta: Floats, damping: float) -> Step:
    slope, reach = float(g.dot(delta)), scale * delta
    norm = math.sqrt(reach.dot(reach))
    return Step(delta, norm, damping, slope, 2.0 * slope - float(delta.dot(h.dot(delta))))


def _unbounded(
    h: Floats, g: Floats, scale: Floats, radius: float, ridge: float, damping: float | None
) -> tuple[Floats, float]:
    """Step and λ without bounds; a given λ is used as it is."""
    if not len(g):
        return g, damping or 0.0
    norms = column_norms(h)
    unit, right, q = column_scaled(h, norms), g / norms, scale / norms
    if damping:
        return _damped(unit, right, q * q, damping) / norms, damping
    u, _ = solve_positive(unit, right, ridge)
    if damping == 0.0 or length(q * u) <= SLACK * radius:
        return u / norms, 0.0
    u, damping = limited(unit, right, q, radius, u)
    return u / norms, damping


def _shifted(unit: Floats, squares: Floats, damping: float) -> Floats | None:
    """The lower Cholesky factor of the damped matrix; None where it is not positive definite."""
    shifted = unit.copy()
    shifted.ravel()[:: len(squares) + 1] += damping * squares
    return cholesky(shifted)


def _damped(unit: Floats, right: Floats, squares: Floats, damping: float) -> Floats:
    """The step for λ; the scaled gradient, to which it tends, where rounding spoils the matrix."""
    lower = _shifted(unit, squares, damping)
    if lower is not None:
        return np.asarray(lapack.dpotrs(lower, right, lower=1)[0])
    u = right / (damping * squares)
    return u if np.isfinite(u).all() else np.zeros_like(right)


def limited(
    unit: Floats, right: Floats, q: Floats, radius: float, full: Floats
) -> tuple[Floats, float]:
    """The step u and λ with ‖q·u(λ)‖ = radius to ten per cent, safeguarded Newton.

    Parameters
    ----------
    unit : ndarray, shape (p, p)
        Matrix with a unit diagonal.
    right : ndarray, shape (p,)
        Right-hand side.
    q : ndarray, shape (p,)
        D in these coordinates.
    radius : float
        Δ > 0, less than ‖q·full‖.
    full : ndarray, shape (p,)
        The undamped solution.

    Returns
    -------
    tuple of (ndarray, float)
        u and λ > 0.
    """
    squares = q * q
    first = length(right / q) / radius
    low, high = 0.0, first
    damping = max(1e-3 * high, high * radius / max(length(q * full), radius))
    damping = min(damping, high)
    for _ in range(30):
        lower = _shifted(unit, squares, damping)
        if lower is None:  # still singular: more damping
            low, damping = damping, max(math.sqrt(damping * high), 10.0 * damping)
            continue
        u = lapack.dpotrs(lower, right, lower=1)[0]
        norm = length(q * u)
        if abs(norm - radius) <= 0.1 * radius:
            return u, damping
        low, high = (damping, high) if norm > radius else (low, damping)
        slope, _ = lapack.dtrtrs(lower, squares * u, lower=1)
        fall = float(slope.dot(slope))
        damping += (norm / radius - 1.0) * norm * norm / fall if fall > 0.0 else math.inf
        if not low < damping < high:
            damping = math.sqrt(max(low, 1e-3 * high) * high)
    if _shifted(unit, squares, damping) is None:
        damping = first
    return _damped(unit, right, squares, damping), damping


def next_radius(radius: float, step: Step, actual: float) -> float:
    """The radius after a trial (Moré 1978, §4, as in MINPACK's lmder).

    Parameters
    ----------
    radius : float
        Radius of the trial.
    step : Step
        The trial step.
    actual : float
        Reduction of the sse that the trial brought; −inf for a non-finite trial.

    Returns
    -------
    float
        The new radius.
    """
    ratio = actual / step.predicted if step.predicted > 0.0 else -math.inf
    if ratio <= 0.25:
        # minimum of the parabola through the old cost, its slope and the new cost
        curved = step.slope - 0.5 * actual
        shrink = 0.5 if actual >= 0.0 else 0.5 * step.slope / curved
        reach = min(radius, 10.0 * step.norm) if step.norm > 0.0 else radius
        return max(min(max(shrink, 0.1), 0.5) * reach, _TINY)
    if step.norm > 0.0 and (step.damping == 0.0 or ratio >= 0.75):
        return 2.0 * step.norm
    return radius
