"""Seeded samples: points of the unit cube, starting points around p0, and rows of the data."""

from __future__ import annotations

import numbers
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.core.bounds import widths
from nlsq_nb.errors import ConfigError

__all__ = [
    "SAMPLERS",
    "candidates",
    "halton_sample",
    "kronecker_sample",
    "latin_hypercube_sample",
    "scale_samples",
    "scattered_rows",
    "sobol_sample",
    "stratified_rows",
]

Floats = NDArray[np.float64]
_STRATA = 64  # least number of runs: a small sample must not be one place in the data
_BELOW_ONE = float(np.nextafter(1.0, 0.0))
_LARGEST = float(np.finfo(np.float64).max)
_TINY = float(np.finfo(np.float64).tiny)
_KNEE = 0.1  # |θ|/|p0| below which an unbounded parameter is sampled linearly, through zero
_DECADES = 1.25  # reach to either side: an answer ten times off is inside, not on the edge
_MIRRORED = 0.125  # share of points on the other side of zero
_LARGEST_DRAW = 1 << 24  # coordinates that are drawn at once: 128 MiB, of which some copies are made
_MOST_SOBOL = 21_201  # axes for which there are direction numbers


def latin_hypercube_sample(n_samples: int, n_dims: int, *, seed: int = 0) -> Floats:
    """Latin hypercube: each of n equal slices of each axis holds one point.

    McKay, Beckman & Conover 1979, Technometrics 21, 239.

    Parameters
    ----------
    n_samples : int
        Number of points n.
    n_dims : int
        Number of axes d.
    seed : int
        ≥ 0; the same seed gives the same points.

    Returns
    -------
    ndarray, shape (n, d)
        In [0, 1).

    Raises
    ------
    ConfigError
        For a count below 1, more than 16,777,216 coordinates in all, or a negative seed.

    Examples
    --------
    >>> from nlsq_nb import latin_hypercube_sample
    >>> points = latin_hypercube_sample(4, 2)
    >>> sorted((points[:, 0] * 4).astype(int).tolist())
    [0, 1, 2, 3]
    """
    from scipy.stats import qmc  # slow to import

    _require_draw(n_samples, n_dims, seed)
    engine = qmc.LatinHypercube(n_dims, seed=np.random.default_rng(seed))
    return _half_open(engine.random(n_samples))


def sobol_sample(n_samples: int, n_dims: int, *, seed: int = 0) -> Floats:
    """Scrambled Sobol' points.

    Joe & Kuo 2008, SIAM J. Sci. Comput. 30, 2635. The points are balanced in powers of two, so the
    next power is drawn and its first n points are taken.

    Parameters
    ----------
    n_samples : int
        Number of points n.
    n_dims : int
        Number of axes d, 21,201 at most.
    seed : int
        ≥ 0; the same seed gives the same points, and fewer points are the first of more.

    Returns
    -------
    ndarray, shape (n, d)
        In [0, 1).

    Raises
    ------
    ConfigError
        For a count below 1, more than 16,777,216 coordinates in all, or a negative seed.
    """
    from scipy.stats import qmc

    _require_draw(n_samples, n_dims, seed)
    if n_dims > _MOST_SOBOL:
        raise ConfigError(f"n_dims={n_dims}; Sobol' points have {_MOST_SOBOL} axes at most, take halton or lhs")
    engine = qmc.Sobol(n_dims, seed=np.random.default_rng(seed))
    return _half_open(engine.random_base2((n_samples - 1).bit_length())[:n_samples])


def halton_sample(n_samples: int, n_dims: int, *, seed: int = 0) -> Floats:
    """Scrambled Halton points.

    Owen 2017, arXiv:1706.02808.

    Parameters
    ----------
    n_samples : int
        Number of points n.
    n_dims : int
        Number of axes d.
    seed : int
        ≥ 0; the same seed gives the same points, and fewer points are the first of more.

    Returns
    -------
    ndarray, shape (n, d)
        In [0, 1).

    Raises
    ------
    ConfigError
        For a count below 1, more than 16,777,216 coordinates in all, or a negative seed.
    """
    from scipy.stats import qmc

    _require_draw(n_samples, n_dims, seed)
    engine = qmc.Halton(n_dims, seed=np.random.default_rng(seed))
    return _half_open(engine.random(n_samples))


def kronecker_sample(n_samples: int, n_dims: int, *, seed: int = 0) -> Floats:
    """Multiples of an irrational vector modulo 1, from a random point on; made without SciPy.

    The vector holds the powers of 1/g where g^(d+1) = g + 1, whose multiples fill the cube evenly
    in a few dimensions (Schretter, He, Gerber, Chopin & Niederreiter 2015, "Van der Corput and
    golden ratio sequences along the Hilbert space-filling curve").

    Parameters
    ----------
    n_samples : int
        Number of points n.
    n_dims : int
        Number of axes d.
    seed : int
        ≥ 0; the same seed gives the same points, and fewer points are the first of more.

    Returns
    -------
    ndarray, shape (n, d)
        In [0, 1).

    Raises
    ------
    ConfigError
        For a count below 1, more than 16,777,216 coordinates in all, or a negative seed.
    """
    _require_draw(n_samples, n_dims, seed)
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (n_dims + 1))
    steps = root ** -np.arange(1.0, n_dims + 1.0)
    first = np.random.default_rng(seed).random(n_dims)
    return _half_open((first + np.arange(1.0, n_samples + 1.0)[:, None] * steps) % 1.0)


SAMPLERS = {"lhs": latin_hypercube_sample, "sobol": sobol_sample, "halton": halton_sample}
"""The samplers by the names that options use."""


def scale_samples(unit: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Floats:
    """Points of the unit cube stretched to a box.

    Parameters
    ----------
    unit : array_like, shape (n, d)
        In [0, 1].
    lower, upper : array_like, shape (d,)
        Corners of the box, finite.

    Returns
    -------
    ndarray, shape (n, d)
        Inside the box, its faces included.
    """
    u, lo, hi = (np.asarray(a, dtype=np.float64) for a in (unit, lower, upper))
    # this form cannot overflow; it can leave the box by one rounding
    return np.asarray(np.clip(lo * (1.0 - u) + hi * u, lo, hi))


def candidates(
    p0: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    n: int,
    sampler: str = "lhs",
    center_on_p0: bool = True,
    scale_factor: float = 1.0,
    seed: int = 0,
) -> Floats:
    """Starting points: p0 and n others.

    A parameter with two finite bounds is sampled uniformly: in the whole interval, or, with
    `center_on_p0`, in scale_factor × its width around p0, cut at the bounds.

    Where a bound is missing, or so far that it means none (`core.bounds.widths`), p0 is the
    only scale there is. asinh(10 θ/|p0|) is sampled uniformly, which is logarithmic for sizes
    above |p0|/10 and linear through zero below: at scale_factor 1 from 0.01 to 18 times p0, as
    many points below it as above, so that answers ten times smaller or larger are well inside;
    at 2 from −0.8 to 317 times p0. From scale_factor 1 on, one value in eight is mirrored at
    zero where the bounds allow it; smaller factors stay around p0. A p0 of zero has no scale: 1
    is taken, and both signs alike, up to about ±9 at scale_factor 1.

    Parameters
    ----------
    p0 : array_like, shape (p,)
        The user's start, within the bounds.
    lower, upper : array_like, shape (p,)
        Bounds, ±inf where there are none; equal ones fix a parameter.
    n : int
        Number of points beside p0; 0 for p0 alone.
    sampler : {"lhs", "sobol", "halton"}
        How the points are spread.
    center_on_p0 : bool
        Whether finite bounds are searched around p0 only.
    scale_factor : float
        Size of the region around p0, > 0.
    seed : int
        ≥ 0; the same seed gives the same points.

    Returns
    -------
    ndarray, shape (n + 1, p)
        Within the bounds; row 0 is p0. p0 alone when every parameter is fixed.

    Raises
    ------
    ConfigError
        For an unknown sampler, a scale_factor that is not positive and finite, a negative n or seed,
        more than 16,777,216 coordinates in all, or a p0 that is not finite or outside its bounds.
    """
    start = np.atleast_1d(np.asarray(p0, dtype=np.float64))
    low, high = (np.broadcast_to(np.asarray(b, float), start.shape) for b in (lower, upper))
    _require_start(start, low, high)
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler={sampler!r}; choose one of {', '.join(SAMPLERS)}")
    if not (np.isfinite(scale_factor) and scale_factor > 0.0):
        raise ConfigError(f"scale_factor={scale_factor!r}; a finite number > 0 is needed")
    _require_count("n", n, 0)
    if (n + 1) * len(start) > _LARGEST_DRAW:
        raise ConfigError(
            f"n_starts={n} points of {len(start)} parameters are too many to hold; "
            f"{_LARGEST_DRAW // len(start) - 1:,} at most"
        )
    free = low < high
    if n == 0 or not free.any():
        return start[None, :].copy()
    unit = np.zeros((n, len(start)))
    unit[:, free] = SAMPLERS[sampler](n, int(free.sum()), seed=seed)
    points = np.tile(start, (n + 1, 1))
    with np.errstate(over="ignore"):  # a width or a size beyond float64
        boxed = free & widths(start, low, high)[1]
        half = (0.5 * scale_factor if center_on_p0 else np.inf) * (high - low)[boxed]
        box = np.maximum(low[boxed], start[boxed] - half), np.minimum(high[boxed], start[boxed] + half)
        points[1:, boxed] = scale_samples(unit[:, boxed], *box)
        wild = free & ~boxed
        points[1:, wild] = _around(unit[:, wild], start[wild], low[wild], high[wild], scale_factor)
    return points


@lru_cache(maxsize=16)
def stratified_rows(n_rows: int, size: int, seed: int, run: int = 64) -> tuple[tuple[int, int], ...]:
    """Row ranges of a sample that is spread evenly over the data.

    The rows are cut into equal strata, and in each a run of consecutive rows begins at a random
    place: sorted data are covered evenly, periodic ones are not sampled in step with their period.

    Parameters
    ----------
    n_rows : int
        Rows there are.
    size : int
        Rows wanted.
    seed : int
        The same seed gives the same ranges.
    run : int
        Longest run of rows; shorter where fewer than 64 runs would make up the sample.

    Returns
    -------
    tuple of (int, int)
        First row and row after the last of each range; disjoint, rising, `size` rows in all or a
        few less; one range of all rows when `size` is as large. Every m-th range of them
        (``ranges[k::m]``) is again spread over all of the data.
    """
    if size >= n_rows:
        return ((0, n_rows),) if n_rows > 0 else ()
    if size < 1:
        return ()
    count = max(-(-size // run), min(size, _STRATA))
    steps = np.arange(count + 1)
    edges = steps * n_rows // count
    room = np.diff(edges)
    length = np.minimum(np.diff(steps * size // count), room)
    first = edges[:-1] + np.random.default_rng(seed).integers(0, room - length + 1)
    return tuple(zip(first.tolist(), (first + length).tolist(), strict=True))


@lru_cache(maxsize=16)
def scattered_rows(n_rows: int, size: int, seed: int) -> NDArray[np.int64]:
    """Single rows, one at a random place in each of as many equal parts of the data.

    Parameters
    ----------
    n_rows : int
        Rows there are.
    size : int
        Rows wanted, ≤ n_rows.
    seed : int
        The same seed gives the same rows.

    Returns
    -------
    ndarray of int64, shape (size,)
        Rising; read-only, as it is shared.
    """
    edges = np.arange(size + 1) * n_rows // size
    rows = np.asarray(edges[:-1] + np.random.default_rng(seed).integers(0, np.diff(edges)))
    rows.setflags(write=False)
    return rows


def _around(unit: Floats, start: Floats, low: Floats, high: Floats, factor: float) -> Floats:
    """Points uniform in asinh(θ/knee) around p0, some of them mirrored, within the bounds."""
    mirrored = (unit < _MIRRORED) & (factor >= 1.0)
    if factor >= 1.0:  # both shares are stretched to all of the region again
        rest = (unit - _MIRRORED) / (1.0 - _MIRRORED)
        unit = np.where(mirrored, unit / _MIRRORED, rest)
    knee = np.where(start == 0.0, 1.0, np.maximum(_KNEE * np.abs(start), _TINY))
    centre = np.arcsinh(start / knee)
    reach = _DECADES * np.log(10.0) * factor
    ends = (
        np.maximum(np.arcsinh(low / knee), centre - reach),
        np.minimum(np.arcsinh(high / knee), centre + reach),
    )
    spread = np.clip(knee * np.sinh(scale_samples(unit, *ends)), -_LARGEST, _LARGEST)
    spread = np.where(mirrored & (low <= -spread) & (-spread <= high), -spread, spread)
    return np.asarray(np.clip(spread, low, high))


def _half_open(unit: Any) -> Floats:
    """The points with a coordinate that was rounded to 1 moved below it."""
    return np.minimum(np.asarray(unit, dtype=np.float64), _BELOW_ONE)


def _require_draw(n_samples: int, n_dims: int, seed: int) -> None:
    """Refuse counts and seeds that no sampler can use, before memory is asked for."""
    for name, value, least in (("n_samples", n_samples, 1), ("n_dims", n_dims, 1), ("seed", seed, 0)):
        _require_count(name, value, least)
    if n_samples * n_dims > _LARGEST_DRAW:
        raise ConfigError(
            f"n_samples={n_samples} points of n_dims={n_dims} are too many to hold; "
            f"{_LARGEST_DRAW:,} coordinates at most"
        )


def _require_count(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, (int, numbers.Integral)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ConfigError(f"{name}={value!r}; an integer ≥ {least} is needed")


def _require_start(start: Floats, low: Floats, high: Floats) -> None:
    bad = np.flatnonzero(~(np.isfinite(start) & (low <= start) & (start <= high)))
    if len(bad):
        k = int(bad[0])
        raise ConfigError(
            f"p0[{k}]={start[k]:g} is not a finite number within its bounds [{low[k]:g}, "
            f"{high[k]:g}]; move it inside"
        )
