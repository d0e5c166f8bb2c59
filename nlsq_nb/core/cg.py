"""Trust-region steps from products with JᵀWJ alone, for many parameters.

The subproblem is that of `trust_region`: min ½ δᵀHδ − gᵀδ with ‖Dδ‖ ≤ Δ and lower ≤ δ ≤ upper. Conjugate
gradients in the coordinates u = Dδ (Jacobi's preconditioner) follow a path along which ‖u‖ grows and
the quadratic falls, and stop on the sphere (Steihaug 1983, SIAM J. Numer. Anal. 20, 626; Toint 1981).
The residuals are kept orthogonal by force, since a product costs a pass over the data and a vector of
p numbers next to nothing.
Bounds: projected searches on ever smaller faces (Lin & Moré 1999, SIAM J. Optim. 9, 1100, §4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

__all__ = ["CgReason", "CgStep", "bounded_step", "conjugate_gradient", "estimate_norms"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Product = Callable[[Floats], Floats]
_EPS = float(np.finfo(np.float64).eps)
_DECREASE = 0.01  # least share of the linear gain that a projected step must bring
_HALVINGS = 4  # of a projected step before it ends at the first bound
_COARSE, _FINE = 2, 8  # products of a coarse and of the last round of probes: powers of two
_RUN = 32  # parameters after which the order shifts, lest equal places of long lists coincide
_ROUNDS = 8  # coarse rounds at most; each halves the exponents that are wrong
_NEAR = 16.0  # factor in H's diagonal up to which a coarse round counts as settled
_KEPT = 200  # residuals that later ones are made orthogonal to: vectors of p numbers
_LEAST = 0.25  # of its row's norm: the smallest diagonal element that is believed


class CgReason(Enum):
    """Why the conjugate gradients ended."""

    CONVERGED = "the residual of the linear system is below its tolerance"
    RADIUS = "the step reached the trust-region radius"
    LIMIT = "the iteration limit was reached"
    SINGULAR = "only directions without curvature are left"

    @property
    def full(self) -> bool:
        """Whether the step minimises the quadratic as far as it can be minimised."""
        return self in (CgReason.CONVERGED, CgReason.SINGULAR)


@dataclass(frozen=True, slots=True)
class CgStep:
    """A trial step.

    Attributes
    ----------
    delta : ndarray, shape (p,)
        Change of the parameters; zero where a parameter is held.
    norm : float
        ‖D delta‖.
    predicted : float
        Reduction of the sse that the quadratic model promises, 2 gᵀδ − δᵀHδ.
    iterations : int
        Products with H that it took.
    reason : CgReason
        Why it ended.
    residual : ndarray, shape (p,)
        g − H delta, as the recurrence has it; of the parameters that are held too.
    """

    delta: Floats
    norm: float
    predicted: float
    iterations: int
    reason: CgReason
    residual: Floats


def conjugate_gradient(
    matvec: Product,
    g: Floats,
    scale: Floats,
    radius: float,
    *,
    rtol: float,
    atol: float,
    max_iterations: int,
) -> CgStep:
    """Solve H δ = g inside the trust region, without bounds.

    Parameters
    ----------
    matvec : callable
        v ↦ H v, H symmetric positive semi-definite.
    g : ndarray, shape (p,)
        JᵀWr.
    scale : ndarray, shape (p,)
        D, about the column norms; a parameter with scale 0 is held.
    radius : float
        Δ > 0; inf for no limit.
    rtol, atol : float
        It ends when ‖D⁻¹(g − Hδ)‖ ≤ max(rtol ‖D⁻¹g‖, atol); atol has the units of √sse.
    max_iterations : int
        Largest number of products.

    Returns
    -------
    CgStep
        Where H is singular, the part of the solution of least norm that has been reached.
    """
    inverse = np.divide(1.0, scale, out=np.zeros_like(g), where=scale > 0.0)
    u, residual = np.zeros_like(g), g
    down = inverse * residual
    way, rho = down, float(down @ down)
    target = max(rtol * np.sqrt(rho), atol)
    past = np.empty((min(max_iterations, _KEPT), len(g)))
    predicted = largest = 0.0
    reason, k = CgReason.CONVERGED, 0
    while np.sqrt(rho) > target:
        if k >= max_iterations:
            reason = CgReason.LIMIT
            break
        if k < len(past):
            past[k] = down / np.sqrt(rho)
        image = matvec(inverse * way)
        k += 1
        bend, square = float(way @ (inverse * image)), float(way @ way)
        # g lies in the range of H: a direction without curvature is rounding, not a way down
        if not np.isfinite(bend) or bend <= _EPS * largest * square:
            reason = CgReason.SINGULAR
            break
        largest = max(largest, bend / square)
        share, along = rho / bend, float(u @ way)
        left = max(radius**2 - float(u @ u), 0.0)
        if share * (2.0 * along + share * square) >= left:
            share = left / (along + np.sqrt(along**2 + square * left))
            reason = CgReason.RADIUS
        u = u + share * way
        predicted += share * (2.0 * rho - share * bend)
        residual = residual - share * image
        if reason is CgReason.RADIUS:
            break
        down = inverse * residual
        down = down - past[:k].T @ (past[:k] @ down)
        before, rho = rho, float(down @ down)
        way = down + (rho / before) * way
    return CgStep(inverse * u, float(np.linalg.norm(u)), predicted, k, reason, residual)


def bounded_step(
    matvec: Product,
    g: Floats,
    scale: Floats,
    radius: float,
    room: tuple[Floats, Floats],
    *,
    rtol: float,
    atol: float,
    max_iterations: int,
) -> CgStep:
    """The same within bounds: conjugate gradients on a face, projection, the next smaller face.

    When a face is solved, the parameters that the quadratic pulls off their bounds are released.

    Parameters
    ----------
    matvec, g, scale, radius
        As in `conjugate_gradient`.
    room : tuple of ndarray
        Lowest and highest delta that the bounds allow, lower ≤ 0 ≤ upper; equal ones hold it.
    rtol, atol : float
        As in `conjugate_gradient`, over the parameters that are not held.
    max_iterations : int
        Largest number of products, those of the projected searches aside.

    Returns
    -------
    CgStep
        `delta` equals `room` exactly where it reaches it.
    """
    lower, upper = room
    movable = (scale > 0.0) & (lower < upper)
    now = CgStep(np.zeros_like(g), 0.0, 0.0, 0, CgReason.CONVERGED, g)
    face = movable & ~_outward(now, room)
    target = max(rtol * _norm(g, scale, face), atol)
    while True:
        if _norm(now.residual, scale, face) <= target or now.reason is CgReason.SINGULAR:
            released = movable & ~face & ~_outward(now, room)
            if _norm(now.residual, scale, released) <= target:
                return now
            face = face | released
        left = max_iterations - now.iterations
        if left <= 0:
            return replace(now, reason=CgReason.LIMIT)
        part = conjugate_gradient(
            matvec,
            now.residual,
            np.where(face, scale, 0.0),
            radius - now.norm,
            rtol=0.0,
            atol=target,
            max_iterations=left,
        )
        way, goal = part.delta, now.delta + part.delta
        now = replace(now, iterations=now.iterations + part.iterations, reason=part.reason)
        if ((goal >= lower) & (goal <= upper)).all():
            gain = now.predicted + part.predicted
            now = replace(now, delta=goal, predicted=gain, residual=part.residual)
        else:
            now = replace(_project(matvec, now, way, room), reason=CgReason.CONVERGED)
            face = face & (now.delta > lower) & (now.delta < upper)
        now = replace(now, norm=float(np.linalg.norm(scale * now.delta)))
        if now.norm >= (1.0 - 1e-9) * radius:
            return replace(now, reason=CgReason.RADIUS)
        if now.reason in (CgReason.RADIUS, CgReason.LIMIT):
            return now


def _project(matvec: Product, now: CgStep, way: Floats, room: tuple[Floats, Floats]) -> CgStep:
    """Go along the projection of a path of descent onto the bounds as far as the quadratic falls."""
    lower, upper = room
    with np.errstate(divide="ignore", invalid="ignore"):
        to_bound = np.where(way > 0.0, upper - now.delta, lower - now.delta) / way
    ahead = to_bound[(way != 0.0) & (to_bound > 0.0)]
    first = min(1.0, float(np.min(ahead, initial=1.0)))
    shares = [share for share in 0.5 ** np.arange(_HALVINGS + 1) if share > first]
    used = now.iterations
    for share in [*shares, first]:  # up to the first bound the path is straight, and falls
        goal = np.clip(now.delta + share * way, lower, upper)
        if share == first:  # rounding must not leave the parameter that ends it beside its bound
            reached = (way != 0.0) & (to_bound <= first)
            goal = np.where(reached, np.where(way > 0.0, upper, lower), goal)
        move = goal - now.delta
        image = matvec(move)
        used += 1
        slope = float(now.residual @ move)
        gain = 2.0 * slope - float(move @ image)
        if gain >= 2.0 * _DECREASE * slope > 0.0:
            break
    else:  # a parameter that stays on its bound leaves a way on which the minimum is nearer
        bend = float(move @ image)
        share = float(np.clip(slope / bend, 0.0, 1.0)) if bend > 0.0 else 0.0
        goal = goal if share == 1.0 else now.delta + share * move
        image, gain = share * image, share * (2.0 * slope - share * bend)
    return replace(
        now,
        delta=goal,
        predicted=now.predicted + gain,
        iterations=used,
        residual=now.residual - image,
    )


def _outward(now: CgStep, room: tuple[Floats, Floats]) -> Mask:
    """The parameters on a bound that the quadratic pulls beyond it."""
    pull = now.residual
    return np.asarray(
        ((now.delta == room[0]) & (pull < 0.0)) | ((now.delta == room[1]) & (pull > 0.0))
    )


def _norm(g: Floats, scale: Floats, of: Mask) -> float:
    """‖D⁻¹g‖ over some parameters."""
    return float(np.linalg.norm(g[of] / scale[of]))


def estimate_norms(matvec: Product, start: Floats, used: Mask) -> Floats:
    """Column norms of √W J, the roots of H's diagonal, from some products with H.

    With the signs s and D the norms so far, the rows of D⁻¹HD⁻¹ s are as long as those of D⁻¹HD⁻¹
    in the mean. Scaling by the square root of that until it is near 1 (Bradley & Murray 2011,
    arXiv:1110.2805) takes out differences of many orders, under which the diagonal would drown.
    The last round then averages s ∘ (D⁻¹HD⁻¹ s) over rows of a Hadamard matrix (Bekas,
    Kokiopoulou & Saad 2007, Appl. Numer. Math. 57, 1214): exact where parameters 8 or more places
    apart do not overlap, as in a sum of localised terms listed one after the other, and otherwise
    off by the overlaps with random signs, up to a factor of about 4. That is enough for a
    preconditioner and for the shape of a trust region.

    Parameters
    ----------
    matvec : callable
        v ↦ H v.
    start : ndarray, shape (p,)
        A first guess > 0 in the right units.
    used : ndarray of bool, shape (p,)
        The parameters to estimate.

    Returns
    -------
    ndarray, shape (p,)
        Norms; 0 at parameters that are not used or without influence. The price is 10 products
        from a good guess, 8 and two for each halving of the wrong exponents from a bad one, at
        most 24. The signs are always the same.
    """
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), len(start))
    norms = np.where(used, start, 0.0)
    for _ in range(_ROUNDS):
        rows, _ = _probe(matvec, norms, signs, _COARSE)
        norms = norms * np.sqrt(np.where(rows > 0.0, rows, 1.0))
        wrong = rows[rows > 0.0]
        if not len(wrong) or (wrong.max() <= _NEAR and wrong.min() >= 1.0 / _NEAR):
            break
    rows, diagonal = _probe(matvec, norms, signs, _FINE)
    return norms * np.sqrt(np.maximum(diagonal, _LEAST * rows))


def _probe(
    matvec: Product, norms: Floats, signs: Floats, count: int
) -> tuple[Floats, Floats]:
    """Row norms and diagonal of D⁻¹HD⁻¹, from `count` products; zero where D is."""
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
    places = np.arange(len(norms))
    places = (places + places // _RUN) % count
    squares, diagonal = np.zeros_like(norms), np.zeros_like(norms)
    from scipy.linalg import hadamard  # slow to import

    for row in hadamard(count):
        v = signs * row[places]
        image = inverse * matvec(inverse * v)
        squares += image * image
        diagonal += v * image
    return np.sqrt(squares / count), diagonal / count
