"""What a fit begins with: rows whose faults are dealt with, and its first state."""

from __future__ import annotations

from nlsq_nb.config.groups import Groups
from nlsq_nb.errors import ConfigError, DataError
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import FitState
from nlsq_nb.plan import is_matrix_free
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Source
from nlsq_nb.scan import DataSummary
from nlsq_nb.sources.retrying import RetryingSource

__all__ = ["first_state", "retrying"]


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
