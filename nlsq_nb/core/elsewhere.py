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
_SMOOTH = 5  # rows over which the residuals of a place are averaged
_NEAR, _FAR, _WIDE = 1.5, 6.0, 20.0  # largest factors between a start and what it is drawn around
_MIRRORED = 0.125  # share of starts on the other side of zero
_EVERYWHERE = 0.25  # share of the rows' chances that does not depend on their residuals
_INSIDE = 1e-6  # least distance from a bound, as a share of the distance between bounds


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
    moves = np.flatnonzero(ground.moves)
    if n == 1 or not len(moves):
        return points
    drawn = _drawn(n - 1, len(moves), seed)
    unit, row, spare = drawn[:, :-2], drawn[:, -2:-1], drawn[:, -1:]
    first, found, lower, upper = (part[moves] for part in (ground.first, ground.found, ground.lower, ground.upper))
    starts = np.empty_like(unit)
    # the first two kinds, each in its turn
    placed = _placed(ground, moves, unit, row, spare)
    keeps = (spare + 0.5 * moves + 7.0 * unit) % 1.0 < 0.5
    starts[0::5], starts[1::5] = placed[0::5], np.where(keeps, found, placed)[1::5]
    starts[2::5], starts[3::5] = _around(first, unit[2::5], _NEAR), _around(found, unit[3::5], _FAR)
    starts[4::5] = _everywhere((first, lower, upper), unit[4::5], spare[4::5])
    points[1:, moves] = _inside(starts, lower, upper)
    points[0] = _inside(points[0], ground.lower, ground.upper)
    return points


@lru_cache(maxsize=16)
def _drawn(n: int, d: int, seed: int) -> Floats:
    """Quasi-random numbers: for each of d parameters, for a row, and to spare; the same array for the same numbers."""
    drawn = kronecker_sample(n, d + 2, seed=seed)
    drawn.setflags(write=False)
    return drawn


def _placed(ground: Ground, moves: Places, unit: Floats, row: Floats, spare: Floats) -> Floats:
    """Starts with possible places at rows, and the rest around p0 or the answer."""
    points = _around(np.where(spare < 0.5, ground.first[moves], ground.found[moves]), unit, _FAR)
    columns = [_column_of(ground, j) for j in moves.tolist()]
    if all(column is None for column in columns):
        return points
    n = len(ground.residuals)
    kernel = np.ones(min(_SMOOTH, n)) / min(_SMOOTH, n)
    chance = np.convolve(ground.residuals, kernel, mode="same") ** 2
    total = float(chance.sum())
    chance = chance / total if 0.0 < total < math.inf else np.zeros(n)
    steps = np.cumsum((1.0 - _EVERYWHERE) * chance + _EVERYWHERE / n)
    # two places of one start are not the same
    chosen = np.minimum(np.searchsorted(steps, steps[-1] * ((row + unit) % 1.0)), n - 1)
    for k, column in enumerate(columns):
        if column is not None:
            points[:, k] = column[chosen[:, k]]
    return points


def _column_of(ground: Ground, j: int) -> Floats | None:
    """The independent variable in whose range a parameter began or ended."""
    values = (float(ground.first[j]), float(ground.found[j]))
    ranges = [(float(column.min()), float(column.max()), column) for column in ground.columns]
    for value in values:
        for low, high, column in ranges:
            if column[0] != column[-1] and low <= value <= high:
                return column
    return None


def _around(middle: Floats, unit: Floats, factor: float) -> Floats:
    """Points whose entries are a middle times up to a factor, or over it; around 0 within ±1."""
    scaled = middle * factor ** (2.0 * unit - 1.0)
    return np.where(middle == 0.0, 2.0 * unit - 1.0, scaled)


def _everywhere(box: tuple[Floats, Floats, Floats], unit: Floats, spare: Floats) -> Floats:
    """Points far around p0, or all over the bounds."""
    first, lower, upper = box
    points = np.where(spare < _MIRRORED, -1.0, 1.0) * _around(first, unit, _WIDE)
    if (boxed := np.isfinite(upper - lower)).any():
        points[:, boxed] = scale_samples(unit[:, boxed], lower[boxed], upper[boxed])
    return points


def _inside(points: Floats, lower: Floats, upper: Floats) -> Floats:
    """The points, moved off and inside the bounds."""
    if math.isinf(max(lower.tolist())) and math.isinf(min(upper.tolist())):  # there is none
        return points
    width = upper - lower
    off = np.where(np.isfinite(width), _INSIDE * width, 0.0)
    return np.asarray(np.clip(points, lower + off, upper - off))
