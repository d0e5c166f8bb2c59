"""`Problem`: model, rows, start and bounds of one fit, read from what users give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.arguments import FitCall, read_bounds, read_loss, read_start, rows_of, values_in
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.columns import is_on_device, is_table
from nlsq_nb.core.layout import RESIDENT_ROWS
from nlsq_nb.core.losses import LEAST_SQUARES, Loss
from nlsq_nb.core.whitening import Whitening, is_covariance
from nlsq_nb.engines.dask import cluster_of
from nlsq_nb.engines.spread import Cluster, spread
from nlsq_nb.errors import ModelError, UnsupportedOption
from nlsq_nb.models.inputs import as_model
from nlsq_nb.models.opaque import JacobianRule
from nlsq_nb.models.symbolic import Model
from nlsq_nb.observe.progress import reading_log
from nlsq_nb.protocols import Source
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.dask_arrays import DaskArrays
from nlsq_nb.sources.device import DeviceSource
from nlsq_nb.sources.rows import Reading
from nlsq_nb.sources.weights import GroupWeights, checked_sigma, weights_from_sigma

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
    loss : Loss
        What is minimised.
    whitening : Whitening or None
        Of a covariance matrix as sigma.
    """

    model: Model
    source: Source
    p0: Floats
    bounds: tuple[Floats, Floats]
    absolute_sigma: bool = False
    loss: Loss = LEAST_SQUARES
    whitening: Whitening | None = None


def read_problem(
    call: FitCall,
    options: Groups,
    *,
    jac: JacobianRule | None = None,
    omit: bool = False,
    group_weights: GroupWeights | None = None,
    whole: bool = False,
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
    whole : bool
        Whether rows in memory are best handed over all at once, as to a device.

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
    cluster = cluster_of(call.engine, call.source)
    if isinstance(call.source, DaskArrays):
        call = replace(call, source=replace(call.source, client=getattr(cluster, "client", None)))
    n_start = values_in(call.p0)
    there = call.source is None and is_on_device(call.x, call.y)
    if there and group_weights is not None:
        raise UnsupportedOption(
            "residual weights work on host arrays; copy the data with .get(), and give backend='cuda'"
        )
    if call.source is not None:
        x, rows = _first_row(call.source), 1
    else:
        x, y = (_outline(call.x), _outline(call.y)) if there else (call.x, call.y)
        rows = rows_of(y)
    if group_weights is None:
        model = as_model(call.func, x, rows, n_start, jac)
    else:
        model = _model_of_groups(call.func, x, rows, n_start, jac)
    low, high = read_bounds(call.bounds, model)
    start = read_start(call.p0, model, low, high)
    loss = read_loss(call.loss, call.f_scale)
    if loss.is_robust and options.checks.covariance_method == "qr":
        raise UnsupportedOption(
            "covariance_method='qr' with a robust loss: its covariance is a sandwich of sums; leave it 'auto'"
        )
    if there:
        source = _device_source(call, model, options, omit=omit)
    else:
        source = _source(call, options, model, omit, group_weights, whole, cluster)  # last: it may read all rows
    whitening = getattr(source, "whitening", None)
    return Problem(model, source, start, (low, high), call.absolute_sigma, loss, whitening)


def _first_row(source: Any) -> Any:
    """The x of one row, in a form from which a model takes the names of its variables."""
    if hasattr(source, "first"):
        return source.first()
    return np.stack([c[:1] for c in next(iter(source.chunks())).x])


def _source(
    call: FitCall,
    options: Groups,
    model: Model,
    omit: bool,
    group_weights: GroupWeights | None,
    whole: bool,
    cluster: Cluster | None,
) -> Source:
    o, faults = options.data, options.faults
    loop = "scan" if whole and call.source is None and o.loop == "auto" else o.loop
    common: dict[str, Any] = {"precision": o.precision, "chunk_rows": o.chunk_rows, "resident": loop, "omit": omit}
    common |= {"n_outputs": model.n_outputs, "group_weights": group_weights}
    if isinstance(call.source, DaskArrays) and call.source.n_rows <= RESIDENT_ROWS:  # less than a message takes
        x, y, sigma = call.source.gathered()
        return ArraySource(x, y, sigma, variables=model.x, **common)
    if call.source is None and cluster is not None:
        raise UnsupportedOption("x and y are in this process: engine= takes Dask arrays and HDF5 files")
    if call.source is None:
        return ArraySource(call.x, call.y, call.sigma, variables=model.x, **common)
    tell = reading_log(options.report.verbose)
    reading = Reading(model.x, retries=faults.retries if faults.tolerant else 0, tell=tell, **common)
    if cluster is not None:
        if faults.tolerant and faults.min_success < 1.0:
            raise UnsupportedOption(
                f"min_success_rate={faults.min_success:g} on a cluster: rows that cannot be read end the fit there; "
                "give 1, or leave them out before the fit"
            )
        return spread(call.source, reading, cluster)
    source: Source = call.source.open(reading) if hasattr(call.source, "open") else call.source
    return source


def _device_source(call: FitCall, model: Model, options: Groups, *, omit: bool) -> Source:
    """The rows of arrays of which some are on a device."""
    from nlsq_nb.backends.cuda.columns import read_rows, to_host  # there is CUDA only where there are such arrays

    def weights(shape: tuple[int, ...]) -> Floats | None:
        if call.sigma is None:
            return None
        sigma = to_host(call.sigma, "sigma")
        if is_covariance(sigma, shape):
            raise UnsupportedOption(
                "a covariance matrix as sigma needs host arrays; copy the data with .get(), and give backend='cuda'"
            )
        return weights_from_sigma(checked_sigma(sigma, shape))

    o = options.data
    rows = read_rows(call.x, call.y, weights, model.x, model.n_outputs, o.precision, omit=omit)
    columns = rows.x, rows.y, rows.w, rows.dtype
    return DeviceSource(*columns, n_omitted=rows.n_omitted, chunk_rows=o.chunk_rows, resident=o.loop)


def _outline(data: Any) -> Any:
    """Something of the shape of data on a device, without the numbers."""
    if is_table(data):
        return {name: _outline(data[name]) for name in data}
    if isinstance(data, (list, tuple)):
        return [_outline(part) for part in data]
    return np.broadcast_to(np.float64(0.0), tuple(data.shape)) if hasattr(data, "shape") else data


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
