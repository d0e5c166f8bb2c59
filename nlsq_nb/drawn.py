"""Rows that are drawn from the data: for the warm-up, and to compare an answer with others."""

from __future__ import annotations

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.sampling import scattered_rows, stratified_rows
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Source
from nlsq_nb.sources.sample import ScatteredSource, sample

__all__ = ["rows_to_check", "sample_of", "sample_size", "thinned"]

_WHOLE = 8192  # rows up to which the warm-up sees all data
_SAMPLE, _SHARE = 16_384, 4  # of more it sees a quarter, but no more rows than these
_ROWS_PER_PARAMETER = 1000  # and no fewer than these
_THIN = 4  # of a sample a quarter leads near to where all of it leads
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
    o, n, p = options.warmup, problem.source.n_rows, problem.model.n_params
    if problem.whitening is not None:  # rows mean nothing without the others
        return n
    if o.sample_size != "auto":
        return min(n, int(o.sample_size))
    least = _ROWS_PER_PARAMETER * p
    return n if n <= max(_WHOLE, 2 * least) else max(least, min(_SAMPLE, n // _SHARE))


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


def thinned(part: Source, options: Groups) -> Source:
    """A part of a sample, for the many steps far from the optimum.

    Parameters
    ----------
    part : Source
        The sample.
    options : Groups
        Validated options.

    Returns
    -------
    Source
        A quarter of its rows, one at a random place in each of as many equal parts.
    """
    n = part.n_rows
    return ScatteredSource(part, scattered_rows(n, -(-n // _THIN), options.setup.seed))


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
    rows = max(_CHECKED, _CHECKED_PER_PARAMETER * n_params)
    if source.n_rows <= max(_ALL_CHECKED, rows):
        return source
    # a feature narrower than the distance of rows is lost, so they are not in runs
    return ScatteredSource(source, scattered_rows(source.n_rows, rows, options.setup.seed))
