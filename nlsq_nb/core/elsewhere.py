"""Where else an optimum might lie: what residuals still show, and starts that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.sampling import kronecker_sample, scale_samples

__all__ = ["Ground", "common_part", "rivals"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
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
    moves = ground.moves
    points = np.tile(ground.found, (n, 1))
    points[0] = ground.first
    if n == 1 or not moves.any():
        return points
    unit = np.zeros((n - 1, len(moves) + 2))
    drawn = np.append(moves, [True, True])
    unit[:, drawn] = kronecker_sample(n - 1, int(drawn.sum()), seed=seed)
    unit, row, spare = unit[:, :-2], unit[:, -2], unit[:, -1:]
    placed = _placed(ground, unit, row, spare)
    keeps = (spare + 0.5 * np.arange(len(moves)) + 7.0 * unit) % 1.0 < 0.5
    wide = _everywhere(ground, unit, spare)
    mixed = np.where(keeps, ground.found, placed)
    near, around = _around(ground.first, unit, _NEAR), _around(ground.found, unit, _FAR)
    kinds = (placed, mixed, near, around, wide)
    turn = np.arange(n - 1) % len(kinds)
    points[1:, moves] = np.stack(kinds)[turn, np.arange(n - 1)][:, moves]
    return _inside(ground, points)


def _placed(ground: Ground, unit: Floats, row: Floats, spare: Floats) -> Floats:
    """Starts with possible places at rows, and the rest around p0 or the answer."""
    middle = np.where(spare < 0.5, ground.first, ground.found)
    points = _around(middle, unit, _FAR)
    n = len(ground.residuals)
    kernel = np.ones(min(_SMOOTH, n)) / min(_SMOOTH, n)
    chance = np.convolve(ground.residuals, kernel, mode="same") ** 2
    total = float(chance.sum())
    chance = chance / total if 0.0 < total < np.inf else np.zeros(n)
    steps = np.cumsum((1.0 - _EVERYWHERE) * chance + _EVERYWHERE / n)
    for j in np.flatnonzero(ground.moves):
        column = _column_of(ground, int(j))
        if column is not None:
            # two places of one start are not the same
            chosen = np.searchsorted(steps, steps[-1] * ((row + unit[:, j]) % 1.0))
            points[:, j] = column[np.minimum(chosen, n - 1)]
    return points


def _column_of(ground: Ground, j: int) -> Floats | None:
    """The independent variable in whose range a parameter began or ended."""
    for value in (ground.first[j], ground.found[j]):
        for column in ground.columns:
            if column[0] != column[-1] and column.min() <= value <= column.max():
                return column
    return None


def _around(middle: Floats, unit: Floats, factor: float) -> Floats:
    """Points whose entries are a middle times up to a factor, or over it; around 0 within ±1."""
    scaled = middle * factor ** (2.0 * unit - 1.0)
    return np.where(middle == 0.0, 2.0 * unit - 1.0, scaled)


def _everywhere(ground: Ground, unit: Floats, spare: Floats) -> Floats:
    """Points far around p0, or all over the box."""
    points = np.where(spare < _MIRRORED, -1.0, 1.0) * _around(ground.first, unit, _WIDE)
    if (boxed := np.isfinite(ground.upper - ground.lower)).any():
        points[:, boxed] = scale_samples(unit[:, boxed], ground.lower[boxed], ground.upper[boxed])
    return points


def _inside(ground: Ground, points: Floats) -> Floats:
    """The points, moved off and inside the bounds."""
    width = ground.upper - ground.lower
    off = np.where(np.isfinite(width), _INSIDE * width, 0.0)
    return np.asarray(np.clip(points, ground.lower + off, ground.upper - off))
