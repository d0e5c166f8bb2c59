"""`Problem`: model, rows, start and bounds of one fit, read from what users give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.arguments import FitCall, read_bounds, read_start, rows_of, values_in
from nlsq_nb.config.groups import Groups
from nlsq_nb.errors import ModelError
from nlsq_nb.models.inputs import as_model
from nlsq_nb.models.opaque import JacobianRule
from nlsq_nb.models.symbolic import Model
from nlsq_nb.protocols import Source
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.weights import GroupWeights

__all__ = ["Problem", "read_problem"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is fitted.

    Attributes
    ----------
    model : Model
        The model.
    source : Source
        The rows.
    p0 : ndarray, shape (p,)
        Start.
    bounds : tuple of ndarray, each (p,)
        Lower and upper, ±inf for none.
    absolute_sigma : bool
        Whether sigma is taken as it is.
    """

    model: Model
    source: Source
    p0: Floats
    bounds: tuple[Floats, Floats]
    absolute_sigma: bool = False


def read_problem(
    call: FitCall,
    options: Groups,
    *,
    jac: JacobianRule | None = None,
    omit: bool = False,
    group_weights: GroupWeights | None = None,
) -> Problem:
    """Read the arguments of a fit.

    Parameters
    ----------
    call : FitCall
        Model, data, start and bounds as given.
    options : Groups
        Validated options.
    jac : callable or str, optional
        Jacobian of a function that is not to be traced.
    omit : bool
        Whether rows with non-finite values are left out.
    group_weights : GroupWeights, optional
        Weights by the group number in the first column of x.

    Returns
    -------
    Problem
        Ready to be fitted.

    Raises
    ------
    ModelError, TracingError
        For a model that cannot be read.
    DataError
        For data, sigma, p0 or bounds that cannot be used.
    """
    n_start = values_in(call.p0)
    if call.source is None:
        rows = rows_of(call.y)
        if group_weights is None:
            model = as_model(call.func, call.x, rows, n_start, jac)
        else:
            model = _model_of_groups(call.func, call.x, rows, n_start, jac)
        source: Source = ArraySource(
            call.x,
            call.y,
            call.sigma,
            variables=model.x,
            n_outputs=model.n_outputs,
            precision=options.data.precision,
            chunk_rows=options.data.chunk_rows,
            omit=omit,
            resident=options.data.loop,
            group_weights=group_weights,
        )
    else:
        source = call.source
        first = next(iter(source.chunks()))
        model = as_model(call.func, np.stack([c[:1] for c in first.x]), 1, n_start, jac)
    low, high = read_bounds(call.bounds, model)
    return Problem(
        model, source, read_start(call.p0, model, low, high), (low, high), call.absolute_sigma
    )


def _model_of_groups(
    func: Any, x: Any, rows: int, n_start: int | None, jac: JacobianRule | None
) -> Model:
    """The model, which may or may not count the column of group numbers among its variables."""
    if isinstance(func, Model):
        return func
    rest = x
    if isinstance(x, (list, tuple)):
        rest = x[1:] if len(x) > 2 else x[1]
    elif np.ndim(x) == 2:
        columns = np.asarray(x) if np.shape(x)[1] == rows else np.asarray(x).T
        rest = columns[1] if len(columns) == 2 else columns[1:]
    try:
        model = as_model(func, rest, rows, n_start, jac)
    except ModelError:
        if rest is x:
            raise
        return as_model(func, x, rows, n_start, jac)
    # names such as x1 of the whole table are parameters to a model that sees fewer columns
    whole = {f"x{k}" for k in range(len(model.x) + 1)} & set(model.params)
    return as_model(func, x, rows, n_start, jac) if whole and rest is not x else model
