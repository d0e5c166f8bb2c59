"""What a fit begins with: rows whose faults are dealt with, a look at them, and its first state."""

from __future__ import annotations

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import RESIDENT_ROWS
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.engines.spread import spread_rows
from nlsq_nb.errors import ConfigError, DataError
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import FitState
from nlsq_nb.plan import is_matrix_free
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Source
from nlsq_nb.scan import DataSummary, summarize
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.sample import SampleSource
from nlsq_nb.sources.tapped import TappedSource

__all__ = ["first_look", "first_state", "retrying"]


def retrying(source: Source, options: Groups) -> RetryingSource:
    """A source with reading faults dealt with.

    Parameters
    ----------
    source : Source
        The rows.
    options : Groups
        Validated options.

    Returns
    -------
    RetryingSource
        The same rows.
    """
    faults = options.faults
    return RetryingSource(
        source,
        retries=faults.retries if faults.tolerant else 0,
        min_success=faults.min_success if faults.tolerant else 1.0,
        release_every=options.data.release_every,
    )


def first_look(
    problem: Problem, options: Groups, backend: Backend, part: Source
) -> tuple[DataSummary, NormalSums | None]:
    """Look at the data; where rows have to be read, the same reading gives the sums at p0, and the sample.

    Parameters
    ----------
    problem : Problem
        What is fitted, with a source from `retrying`.
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    part : Source
        From `sample_of`.

    Returns
    -------
    DataSummary
        Counts and moments of the data.
    NormalSums or None
        Of order 2 at p0; None for rows that are few, in memory or on a cluster.

    Raises
    ------
    DataError
        For data that cannot be fitted.
    """
    source, model, p0 = problem.source, problem.model, problem.p0
    given = (model.x, options.data.validate, backend)
    assert isinstance(source, RetryingSource)
    near = source.n_rows <= RESIDENT_ROWS or source.is_held
    if near or spread_rows(source) is not None or len(p0) != model.n_params:
        return summarize(source, *given), None
    into, kernel = Accumulator(len(p0), 2), backend.compile(model.program, source.dtype)

    def tap(chunk: Chunk) -> None:
        backend.reduce(kernel, backend.put(chunk, source.dtype), p0, 2, into)

    taker = part.taker() if isinstance(part, SampleSource) else None
    summary = summarize(TappedSource(source, [tap] if taker is None else [tap, taker]), *given)
    return summary, into.result()


def first_state(problem: Problem, options: Groups, summary: DataSummary) -> FitState:
    """Phase 0: what the others begin with.

    Parameters
    ----------
    problem : Problem
        What is fitted.
    options : Groups
        Validated options.
    summary : DataSummary
        Counts and moments of the data.

    Returns
    -------
    FitState
        At p0.

    Raises
    ------
    DataError
        For a start or bounds that do not fit the model, or too few data.
    ConfigError
        For groups beyond the parameters.
    """
    model, p0 = problem.model, problem.p0
    if len(p0) != model.n_params:
        raise DataError(
            f"p0 has {len(p0)} values but the model has {model.n_params} parameters "
            f"({', '.join(model.params)})"
        )
    o = options.setup
    for first, end in options.penalty.groups or ():
        if end > model.n_params:
            raise ConfigError(
                f"group_variance_indices: the group ({first}, {end}) ends beyond the "
                f"{model.n_params} parameters ({', '.join(model.params)})"
            )
    strategy = o.strategy if o.normalize else "none"
    whole = not o.separable or is_matrix_free(options, model.n_params)
    linear = () if whole else model.linear_params
    state = setup(p0, problem.bounds, model.params, linear, summary.signal, strategy)
    free = state.free.tolist().count(True)
    if summary.n_residuals < free:
        raise DataError(
            f"{summary.n_residuals} data points cannot determine {free} free parameters "
            f"({', '.join(model.params)}); fix some by equal bounds or add data"
        )
    return state
