"""Ends of likelihood intervals: where the sse, minimised over all other parameters, has risen by so much.

With q(d) = √(rise at distance d / rise asked for) the end is at q = 1. q is a straight line for a linear
model, so Newton's method on q needs few fits (Bates & Watts 1988, Nonlinear Regression Analysis, §6.1.2); its
slope comes with the sums, since at a point where the other parameters are at their best the sse changes
with the held one θ_k by −2 (JᵀWr)_k alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.linsolve import column_norms
from nlsq_nb.core.sums import NormalSums

__all__ = ["End", "Held", "end_of_interval", "follow"]

Floats = NDArray[np.float64]
_EXACT = 1e-6  # of q: six digits of the length of the interval
_LEAP = 10.0  # longest step beyond what is known, in multiples of the distance so far
_FAR = 1e6  # in units of the first distance or of the value: where an open interval is given up
_FALLS = 1e-3  # least relative fall of q with the distance that is one
_RIDGE = 8  # looks for the top of a ridge
_MOST = 60  # fits for one end


class Held(NamedTuple):
    """A point at which one parameter is held and the others are at their best."""

    theta: Floats
    sums: NormalSums
    converged: bool


@dataclass(frozen=True, slots=True)
class End:
    """One end of an interval.

    Attributes
    ----------
    value : float
        Where; the bound or ±inf where the interval is open, nan where a lower sse was met.
    open : str
        Why the sse does not rise far enough, "" where it does.
    points : tuple of Held
        The fits that were made on the way.
    better : Held or None
        A point whose sse is below that of the supposed optimum.
    """

    value: float
    open: str
    points: tuple[Held, ...]
    better: Held | None = None


class _Look(NamedTuple):
    """The profile at a distance: q, inf where the model is not finite, and how q changes there."""

    distance: float
    point: Held
    q: float
    slope: float

    @property
    def falls(self) -> bool:
        """Whether it lies below the end and q falls outwards: a ridge is between it and the optimum."""
        return 0.0 < self.q < 1.0 and self.slope * self.distance < -_FALLS * self.q


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for one end; the attributes are the arguments of `end_of_interval`.

    Attributes
    ----------
    limit : float
        Where the bound is, as a distance.
    looks : list of _Look
        The optimum and what was looked at since.
    """

    fit: Callable[[Floats, int], Held]
    k: int
    side: int
    rise: float
    bound: float
    limit: float
    looks: list[_Look]

    def look(self, distance: float) -> _Look:
        """Fit at a distance, from what is known nearer to the optimum."""
        best = self.looks[0].point
        at = self.bound if distance >= self.limit else float(best.theta[self.k]) + self.side * distance
        inside = [known for known in self.looks if known.distance < distance and known.q < math.inf]
        near = max(inside, key=lambda known: known.distance).point
        found = self.fit(follow(near, self.k, at), self.k)
        if not found.sums.is_finite:  # where the others lead may be outside the model's domain
            start = near.theta.copy()
            start[self.k] = at
            found = self.fit(start, self.k)
        self.looks.append(_Look(distance, found, *self._height(found)))
        return self.looks[-1]

    def _height(self, found: Held) -> tuple[float, float]:
        """Q, negative where the sse is lower than the optimum's, and dq/dd."""
        if not found.sums.is_finite:
            return math.inf, 0.0
        risen = (found.sums.sse - self.looks[0].point.sums.sse) / self.rise
        q = math.copysign(math.sqrt(abs(risen)), risen)
        outward = -self.side * float(found.sums.jtr[self.k])
        return q, outward / (self.rise * q) if q > 0.0 else 0.0

    def narrowed(self, seen: _Look, low: float, high: float) -> tuple[float, float]:
        """The distances between which the end is, after a look between them."""
        if seen.q > 1.0:
            return low, seen.distance
        if seen.falls and (top := self._ridge(low, seen.distance)) < math.inf:
            return low, top
        return seen.distance, high

    def _ridge(self, low: float, far: float) -> float:
        """Where between two distances q is above 1; inf where the ridge is not so high."""
        for _ in range(_RIDGE):
            seen = self.look(0.5 * (low + far))
            if seen.q > 1.0:
                return seen.distance
            low, far = (seen.distance, far) if seen.slope > 0.0 else (low, seen.distance)
        return math.inf

    def edge(self, high: float) -> str:
        """Why q jumps over 1 at a distance."""
        ended = any(known.distance == high and known.q == math.inf for known in self.looks)
        return "the model is not finite beyond" if ended else ""

    def end(self, value: float, why: str = "", better: Held | None = None) -> End:
        """What was found."""
        return End(value, why, tuple(known.point for known in self.looks[1:]), better)


def follow(point: Held, k: int, value: float) -> Floats:
    """Where the other parameters go when θ_k goes to a value, to first order.

    Parameters
    ----------
    point : Held
        Sums of order 2 there.
    k : int
        The parameter that is moved.
    value : float
        To where.

    Returns
    -------
    ndarray, shape (p,)
        The others move by −H_oo⁻¹ H_ok per unit of θ_k, the direction that keeps ∂sse/∂θ_o at zero.
    """
    theta, h = point.theta.copy(), point.sums.jtj
    norms = column_norms(h)
    others = (norms > 0.0) & np.isfinite(norms) & (np.arange(len(theta)) != k)
    if others.any() and norms[k] > 0.0:
        scaled = h[np.ix_(others, others)] / (norms[others, None] * norms[others])
        right = h[others, k] / norms[others]
        way = np.linalg.lstsq(scaled, -right, rcond=1e-12)[0] / norms[others]
        moved = theta[others] + way * (value - theta[k])
        theta[others] = np.where(np.isfinite(moved), moved, theta[others])
    theta[k] = value
    return theta


def end_of_interval(
    fit: Callable[[Floats, int], Held],
    best: Held,
    k: int,
    side: int,
    rise: float,
    first: float,
    bound: float,
) -> End:
    """One end of the interval of a parameter.

    Parameters
    ----------
    fit : callable
        (theta, k) → Held: minimises over the other parameters from theta.
    best : Held
        The optimum, with its sums.
    k : int
        The parameter.
    side : {-1, 1}
        Lower or upper end.
    rise : float
        By how much the sse rises up to the end.
    first : float
        A guess of the distance, > 0.
    bound : float
        Bound of the parameter on that side, ±inf without.

    Returns
    -------
    End
        To six digits of the distance, or the reason for which there is none.
    """
    value = float(best.theta[k])
    limit = abs(bound - value)
    if limit == 0.0:
        return End(bound, "it stands on its bound", ())
    search = _Search(fit, k, side, rise, bound, limit, [_Look(0.0, best, 0.0, 0.0)])
    far, low, high, distance = _FAR * max(first, abs(value)), 0.0, math.inf, min(first, limit)
    for _ in range(_MOST):
        seen = search.look(distance)
        if seen.q < -math.sqrt(_EXACT):
            return search.end(math.nan, "the sse is lower there", seen.point)
        if abs(seen.q - 1.0) <= _EXACT:
            break
        low, high = search.narrowed(seen, low, high)
        if high == math.inf and distance >= limit:
            return search.end(bound, "its bound is nearer")
        if high == math.inf and distance >= far:
            return search.end(side * math.inf, "the sse stays below")
        if low >= (1.0 - _EXACT) * high:
            return search.end(value + side * low, search.edge(high))
        distance = min(_next(seen, low, high), limit)
    return search.end(value + side * distance if distance < limit else bound)


def _next(seen: _Look, low: float, high: float) -> float:
    """The next distance: Newton's where it can be believed."""
    guess = seen.distance + (1.0 - seen.q) / seen.slope if seen.slope > 0.0 else math.inf
    if high == math.inf:
        return min(guess, _LEAP * seen.distance)
    if low < guess < high:
        return guess
    return math.sqrt(low * high) if low > 0.0 and high > _LEAP * low else 0.5 * (low + high)
