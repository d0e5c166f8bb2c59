"""Rows that are drawn from the data: for the warm-up, and to compare an answer with others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.sampling import scattered_rows, stratified_rows
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Source
from nlsq_nb.sources.sample import ScatteredSource, rows_of, sample

__all__ = ["Drawn", "drawn_rows", "rows_to_check", "sample_of", "sample_size", "thinned"]

Rows = NDArray[np.int64]
_WHOLE = 8192  # rows up to which the warm-up sees all data
_SAMPLE, _SHARE = 16_384, 4  # of more it sees a quarter, but no more rows than these
_ROWS_PER_PARAMETER = 1000  # and no fewer than these
_THIN, _THIN_PER_PARAMETER = 4, 640  # of a sample a quarter, or less, leads near to where all of it leads
_ALL_CHECKED = 4096  # rows up to which an answer is compared with others on all of them
_CHECKED = 512  # and rows on which it is where there are more
_CHECKED_PER_PARAMETER = 16


def sample_size(problem: Problem, options: Groups) -> int:
    """How many rows the warm-up sees: all, or as many as settle the parameters to a few errors of all data.

    Parameters
    ----------
    problem : Problem
        Model and rows.
    options : Groups
        Validated options.

    Returns
    -------
    int
        At least 1.
    """
    n = problem.source.n_rows
    if problem.whitening is not None:  # rows mean nothing without the others
        return n
    return _size(n, problem.model.n_params, options.warmup.sample_size)


def _size(n: int, p: int, wanted: int | str) -> int:
    if wanted != "auto":
        return min(n, int(wanted))
    least = _ROWS_PER_PARAMETER * p
    return n if n <= max(_WHOLE, 2 * least) else max(least, min(_SAMPLE, n // _SHARE))


@dataclass(frozen=True, slots=True)
class Drawn:
    """The rows that `sample_of`, `thinned` and `rows_to_check` draw from rows in memory, by their numbers.

    Attributes
    ----------
    part, few : ndarray of int64, or None
        Of the sample, and of what is thinned from it; None where all rows are the sample.
    checked : ndarray of int64, or None
        On which an answer is compared with others; None for all.
    """

    part: Rows | None
    few: Rows | None
    checked: Rows | None


@lru_cache(maxsize=16)
def drawn_rows(n_rows: int, n_params: int, wanted: int | str, seed: int) -> Drawn:
    """Draw rows by their numbers.

    Parameters
    ----------
    n_rows, n_params : int
        n and p.
    wanted : int or "auto"
        The option `warmup_sample_size`.
    seed : int
        The option `random_seed`.

    Returns
    -------
    Drawn
        The same object for the same numbers.
    """
    size, part, few = _size(n_rows, n_params, wanted), None, None
    if size < n_rows:
        part = rows_of(stratified_rows(n_rows, size, seed))
        few = part[scattered_rows(len(part), _thin(len(part), n_params), seed)]
    whole = n_rows if part is None else len(part)
    if whole <= max(_ALL_CHECKED, count := _checked(n_params)):
        return Drawn(part, few, part)
    places = scattered_rows(whole, count, seed)
    return Drawn(part, few, places if part is None else part[places])


def _checked(n_params: int) -> int:
    return max(_CHECKED, _CHECKED_PER_PARAMETER * n_params)


def sample_of(problem: Problem, options: Groups) -> Source:
    """The rows that the warm-up sees.

    Parameters
    ----------
    problem : Problem
        Model and rows.
    options : Groups
        Validated options.

    Returns
    -------
    Source
        The problem's own where there are few; else a sample, which is gathered when it is first read.
    """
    source, rows = problem.source, sample_size(problem, options)
    if source.n_rows <= rows:
        return source
    return sample(source, stratified_rows(source.n_rows, rows, options.setup.seed))


def _thin(n_rows: int, n_params: int) -> int:
    return min(-(-n_rows // _THIN), _THIN_PER_PARAMETER * n_params)


def thinned(part: Source, options: Groups, n_params: int) -> Source:
    """A part of a sample, for the many steps far from the optimum.

    Parameters
    ----------
    part : Source
        The sample.
    options : Groups
        Validated options.
    n_params : int
        p.

    Returns
    -------
    Source
        A quarter of its rows or less, one at a random place in each of as many equal parts.
    """
    n = part.n_rows
    return ScatteredSource(part, scattered_rows(n, _thin(n, n_params), options.setup.seed))


def rows_to_check(source: Source, options: Groups, n_params: int) -> Source:
    """The rows on which an answer is compared with others.

    Parameters
    ----------
    source : Source
        The rows that the warm-up sees.
    options : Groups
        Validated options.
    n_params : int
        p.

    Returns
    -------
    Source
        The same where they are few, else a part of them.
    """
    rows = _checked(n_params)
    if source.n_rows <= max(_ALL_CHECKED, rows):
        return source
    # a feature narrower than the distance of rows is lost, so they are not in runs
    return ScatteredSource(source, scattered_rows(source.n_rows, rows, options.setup.seed))
