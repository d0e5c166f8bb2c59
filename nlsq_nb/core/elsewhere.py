"""Where else an optimum might lie: what residuals still show, and starts that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.sampling import kronecker_sample, scale_samples

__all__ = ["Ground", "common_part", "rivals"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Places = NDArray[np.intp]
_LAGS = 3
_KINDS = 5  # of starts
_BESIDE = 2  # rows on each side of a place whose residuals count too
_NEAR, _FAR, _WIDE = 1.5, 6.0, 20.0  # largest factors between a start and what it is drawn around
_MIRRORED = 0.125  # share of starts on the other side of zero
_EVERYWHERE = 0.25  # share of the rows' chances that does not depend on their residuals
_INSIDE = 1e-6  # least distance from a bound, as a share of the usual one


@dataclass(frozen=True, slots=True)
class Ground:
    """What starts are drawn from.

    Attributes
    ----------
    columns : tuple of ndarray, each (n,)
        Independent variables of some rows, sorted by the first.
    residuals : ndarray, shape (n,)
        √w (y − f) of these rows.
    first, found : ndarray, shape (p,)
        p0, and the answer that is doubted.
    lower, upper : ndarray, shape (p,)
        Bounds, ±inf for none.
    moves : ndarray of bool, shape (p,)
        Parameters that a start has to choose: free ones that do not enter linearly.
    """

    columns: tuple[Floats, ...]
    residuals: Floats
    first: Floats
    found: Floats
    lower: Floats
    upper: Floats
    moves: Mask


def common_part(residuals: Floats) -> float:
    """How much neighbouring residuals have in common: n Σ ρ² over the first three lags.

    Box & Pierce 1970, J. Am. Stat. Assoc. 65, 1509. Of independent residuals it has a χ²
    distribution with three degrees of freedom.

    Parameters
    ----------
    residuals : ndarray, shape (n,)
        In the order of x; their mean is part of what they have in common.

    Returns
    -------
    float
        ≥ 0; 0 where there are hardly any residuals, or all are zero.
    """
    r = residuals
    total = float(r.dot(r))
    if len(r) <= 2 * _LAGS or not total > 0.0:
        return 0.0
    return len(r) * sum((float(r[k:].dot(r[:-k])) / total) ** 2 for k in range(1, _LAGS + 1))


def rivals(ground: Ground, n: int, seed: int) -> Floats:
    """Quasi-random starts that might lead to another optimum.

    Five kinds in turn. (1) A parameter of a value within the range of an independent variable may
    be a place: it goes to rows, the more often the larger the mean residual around a row; the
    others are within a factor of six of p0 or of the answer. (2) The same for some parameters,
    while the rest keep their answers. (3) All within a factor of 1.5 of p0, or
    (4) of six of the answer. (5) All within a factor of twenty of p0, one start in eight mirrored at
    zero, or anywhere between finite bounds.

    Parameters
    ----------
    ground : Ground
        What is known.
    n : int
        Number of starts, ≥ 1.
    seed : int
        The same seed gives the same starts, and fewer are the first of more.

    Returns
    -------
    ndarray, shape (n, p)
        Inside the bounds where these are apart; row 0 is p0 itself.
    """
    points = np.empty((n, len(ground.found)))
    points[:], points[0] = ground.found, ground.first
    if n == 1 or True not in ground.moves.tolist():
        return points
    draw = _draw(n - 1, ground.moves.tobytes(), seed)
    moves = draw.moves
    first, found, lower, upper = (part[moves] for part in (ground.first, ground.found, ground.lower, ground.upper))
    known = (first.tolist(), found.tolist())
    starts = first * draw.of_first + found * draw.of_found
    if 0.0 in known[0] or 0.0 in known[1]:
        starts = np.where(starts == 0.0, draw.shifts, starts)
    _place(ground, known, draw, starts)
    if any(map(math.isfinite, (upper - lower).tolist())):
        boxed = np.isfinite(upper - lower)
        starts[4::_KINDS, boxed] = scale_samples(draw.unit[4::_KINDS, boxed], lower[boxed], upper[boxed])
    points[1:, moves] = starts
    return _inside(points, ground.lower, ground.upper)


@dataclass(frozen=True, slots=True)
class _Draw:
    """What starts of the five kinds have at random, whatever they are drawn around.

    Attributes
    ----------
    moves : ndarray of int, shape (d,)
        Which parameters have to be chosen.
    unit : ndarray, shape (n, d)
        Quasi-random numbers.
    of_first, of_found : ndarray, shape (n, d)
        What p0 and the answer are multiplied by; one of them is 0.
    shifts : ndarray, shape (n, d)
        Where a parameter is if what it is drawn around is 0.
    chances : ndarray, shape (k, d)
        Which rows the places of the first two kinds are at: shares of the rows' summed chances.
    goes : ndarray of bool, shape (k', d)
        Which parameters leave their answers in the second.
    """

    moves: Places
    unit: Floats
    of_first: Floats
    of_found: Floats
    shifts: Floats
    chances: Floats
    goes: Mask


@lru_cache(maxsize=16)
def _draw(n: int, which: bytes, seed: int) -> _Draw:
    """Quasi-random numbers for each parameter, for a row, and to spare; the same object for the same numbers."""
    moves = np.flatnonzero(np.frombuffer(which, dtype=np.bool_))
    drawn = kronecker_sample(n, len(moves) + 2, seed=seed)
    unit, row, spare = drawn[:, :-2], drawn[:, -2:-1], drawn[:, -1:]
    kind = np.arange(n)[:, np.newaxis] % _KINDS
    sign = np.where((kind == 4) & (spare < _MIRRORED), -1.0, 1.0)
    reach = 2.0 * unit - 1.0
    factors = sign * np.choose(kind, (_FAR, _FAR, _NEAR, _FAR, _WIDE)) ** reach
    stays = (kind == 1) & ((spare + 0.5 * moves + 7.0 * unit) % 1.0 < 0.5)
    around_first = np.where(kind < 2, spare < 0.5, kind != 3) & ~stays
    return _Draw(
        moves,
        unit,
        np.where(around_first, factors, 0.0),
        np.where(stays, 1.0, np.where(around_first, 0.0, factors)),
        np.where(stays, 0.0, sign * reach),
        # two places of one start are not the same
        ((row + unit) % 1.0)[kind[:, 0] < 2],
        ~stays[1::_KINDS],
    )


def _place(ground: Ground, known: tuple[list[float], list[float]], draw: _Draw, starts: Floats) -> None:
    """Move possible places of the first two kinds of starts to rows."""
    columns = _columns_of(ground.columns, known)
    if not columns:
        return
    n = len(ground.residuals)
    sums = np.zeros(n + 2 * _BESIDE + 1)
    sums[_BESIDE + 1 : _BESIDE + 1 + n] = ground.residuals
    sums[:] = sums.cumsum()
    around = sums[2 * _BESIDE + 1 :] - sums[:n]
    total = float(around.dot(around))
    chance = around * around * ((1.0 - _EVERYWHERE) / total) if 0.0 < total < math.inf else np.zeros(n)
    steps = (chance + _EVERYWHERE / n).cumsum()
    chosen = steps.searchsorted(steps[-1] * draw.chances)
    for k, column in columns:
        places = column.take(chosen[:, k])
        starts[0::_KINDS, k] = places[0::2]
        np.copyto(starts[1::_KINDS, k], places[1::2], where=draw.goes[:, k])


def _columns_of(
    columns: tuple[Floats, ...], known: tuple[list[float], list[float]]
) -> list[tuple[int, Floats]]:
    """The parameters that began or ended in the range of an independent variable, and that variable."""
    sorted_one, *others = columns
    ranges = [(sorted_one.item(0), sorted_one.item(-1), sorted_one)]
    ranges += [(float(c.min()), float(c.max()), c) for c in others]
    found = []
    for k, values in enumerate(zip(*known, strict=True)):
        within = (column for value in values for low, high, column in ranges if low <= value <= high and low < high)
        if (column := next(within, None)) is not None:
            found.append((k, column))
    return found


def _inside(points: Floats, lower: Floats, upper: Floats) -> Floats:
    """The points, moved off and inside the bounds.

    How far off goes by how far the points are from the bound, since bounds may be very wide.
    """
    if math.isinf(max(lower.tolist())) and math.isinf(min(upper.tolist())):  # there is none
        return points
    inside: Floats = np.clip(points, lower, upper)
    width = upper - lower
    apart = np.isfinite(width) & (width > 0.0)
    if not apart.any():
        return inside
    off = np.zeros((2, len(lower)))
    distances = np.stack([inside[:, apart] - lower[apart], upper[apart] - inside[:, apart]])
    off[:, apart] = _INSIDE * np.median(distances, axis=1)
    return np.asarray(np.clip(inside, lower + off[0], upper - off[1]))
