"""`curve_fit`: SciPy's signature, exact derivatives, one streaming engine behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.config.flat import HybridStreamingConfig, config_from
from nlsq_nb.errors import DataError, UnsupportedOption
from nlsq_nb.models.inputs import as_model
from nlsq_nb.models.opaque import JacobianRule
from nlsq_nb.models.symbolic import Model
from nlsq_nb.optimizer import AdaptiveHybridStreamingOptimizer
from nlsq_nb.sources.arrays import ArraySource

__all__ = ["curve_fit"]

Floats = NDArray[np.float64]


def curve_fit(  # noqa: PLR0913, PLR0917 - SciPy's signature
    f: Any,
    xdata: Any,
    ydata: Any,
    p0: ArrayLike | Mapping[str, float] | None = None,
    sigma: ArrayLike | None = None,
    absolute_sigma: bool = False,
    check_finite: bool = True,
    bounds: Any = (-np.inf, np.inf),
    method: str | None = None,
    jac: JacobianRule | None = None,
    *,
    config: HybridStreamingConfig | None = None,
    loss: str = "linear",
    f_scale: float = 1.0,
    nan_policy: str | None = None,
    backend: str = "auto",
    callback: Callable[..., Any] | None = None,
    verbose: int | None = None,
    full_output: bool = False,
    **config_fields: Any,
) -> Any:
    """Fit a model to data by nonlinear least squares.

    Minimises Σ ((y − f(x, θ))/σ)² by Levenberg–Marquardt on sums that one pass over the data
    gives; parameters that enter linearly are solved for exactly (variable projection).

    Parameters
    ----------
    f : str, sympy.Expr, callable, Model, or list of expressions
        The model. A function `f(x, *params)` in NumPy is traced into algebra.
    xdata : array_like or mapping
        Independent variables: (n,), (k, n) as in SciPy, or columns by variable name.
    ydata : array_like
        Observations, (n,), or (m, n) for a model of m outputs.
    p0 : array_like or mapping, optional
        Start, (p,) or by name. By default 1, or the middle of finite bounds; parameters that
        enter linearly need none.
    sigma : array_like, optional
        Standard deviations of ydata, scalar or one per value.
    absolute_sigma : bool
        Whether sigma is in the units of ydata (True) or relative (False: pcov is scaled by the
        reduced χ²).
    check_finite : bool
        Whether non-finite data are refused.
    bounds : (array_like, array_like), scipy.optimize.Bounds, or mapping
        Lower and upper bounds, scalar or per parameter, or (lower, upper) by name. Equal bounds
        fix a parameter.
    method : {None, "auto", "hybrid_streaming", "lm", "trf"}
        All run the Gauss–Newton phases; "lm" refuses bounds, as SciPy does.
    jac : callable or {"2-point", "3-point", "cs"}, optional
        Jacobian (n, p) of a plain function, which is then called as it is, not traced.
    config : HybridStreamingConfig, optional
        Options; keywords of the same names override it.
    loss : {"linear"}
        Only least squares in this version.
    f_scale : float
        Scale of a robust loss; 1 for the linear one.
    nan_policy : {None, "raise", "omit"}
        What to do with rows that are not finite; None follows check_finite.
    backend : {"auto", "cpu", "reference"}
        Where the sums are computed.
    callback : callable, optional
        `callback(params, loss, iteration)`; returning True or raising `StopFit` ends the fit.
    verbose : {0, 1, 2}, optional
        What is logged; nothing by default, unless `config` says otherwise.
    full_output : bool
        Return SciPy's (popt, pcov, infodict, mesg, ier) instead.
    **config_fields : Any
        Fields of `HybridStreamingConfig`.

    Returns
    -------
    FitResult
        Unpacks to (popt, pcov). A fit that did not converge is returned with success False and a
        `ConvergenceWarning`.

    Raises
    ------
    ModelError, TracingError
        For a model that cannot be read.
    DataError
        For data, sigma, p0 or bounds that cannot be used; names row, field or parameter.
    NumericsError
        When the model is not finite at the start.
    UnsupportedOption
        For an option of SciPy's that is not supported.
    TypeError
        For an unknown keyword.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_nb import curve_fit
    >>> x = np.linspace(0, 4, 50)
    >>> popt, pcov = curve_fit("a*exp(-b*x) + c", x, 3*np.exp(-1.5*x) + 0.5)
    >>> popt.round(6).tolist()
    [3.0, 1.5, 0.5]
    """
    if verbose is not None or config is None:
        config_fields["verbose"] = verbose or 0
    if not check_finite or nan_policy == "omit":
        config_fields["validate_numerics"] = False
    options = config_from(config, config_fields)
    _check_options(method, loss, f_scale, nan_policy)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback={callback!r} cannot be called")
    model = as_model(f, xdata, _rows(ydata), _length(p0), jac)
    lower, upper = _bounds(bounds, model)
    if method == "lm" and (np.isfinite(lower).any() or np.isfinite(upper).any()):
        raise ValueError("Method 'lm' only works for unconstrained problems; use 'trf' or None")
    source = ArraySource(
        xdata,
        ydata,
        sigma,
        variables=model.x,
        n_outputs=model.n_outputs,
        precision=options.data.precision,
        chunk_rows=options.data.chunk_rows,
        omit=nan_policy == "omit",
    )
    result = AdaptiveHybridStreamingOptimizer(options, backend).fit(
        model,
        source,
        _start(p0, model, lower, upper),
        (lower, upper),
        absolute_sigma=absolute_sigma,
        callback=callback,
    )
    if not full_output:
        return result
    info = {"nfev": result.nfev, "fvec": -result.fun * source.root_weights()}  # SciPy's sign
    return result.popt, result.pcov, info, result.message, 1 if result.success else 5


def _check_options(method: str | None, loss: str, f_scale: float, nan_policy: str | None) -> None:
    if method == "dogbox":
        raise UnsupportedOption("method='dogbox' is not supported; use None, 'lm' or 'trf'")
    if method not in (None, "auto", "hybrid_streaming", "lm", "trf"):
        raise ValueError(f"method={method!r} is not one of auto, hybrid_streaming, lm, trf")
    if loss != "linear" or f_scale != 1.0:
        raise UnsupportedOption(f"loss={loss!r} with f_scale={f_scale}: only loss='linear' so far")
    if nan_policy not in (None, "raise", "omit"):
        raise ValueError(f"nan_policy={nan_policy!r} is not one of None, 'raise', 'omit'")


def _rows(ydata: Any) -> int:
    try:
        return int(np.shape(ydata)[-1]) if np.ndim(ydata) else 1
    except ValueError:  # ragged: the source says so
        return len(ydata)


def _length(p0: Any) -> int | None:
    return None if p0 is None else int(np.size(p0)) if not isinstance(p0, Mapping) else len(p0)


def _bounds(bounds: Any, model: Model) -> tuple[Floats, Floats]:
    p, names = model.n_params, model.params
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    if isinstance(bounds, Mapping):
        _known(bounds, names, "bounds")
        bounds = tuple(zip(*(_pair(bounds, name) for name in names), strict=True))
    try:
        lower, upper = (np.asarray(b, dtype=np.float64) for b in bounds)
        low, high = (np.broadcast_to(b, (p,)).copy() for b in (lower, upper))
    except (TypeError, ValueError):
        raise DataError(
            f"bounds must be (lower, upper), scalars or {p} values each for {', '.join(names)}"
        ) from None
    if np.isnan(low).any() or np.isnan(high).any():
        raise DataError(f"bounds of parameter {names[int(np.argmax(np.isnan(low + high)))]!r} are nan")
    return low, high


def _pair(bounds: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    pair = bounds.get(name, (None, None))
    if isinstance(pair, str) or np.size(pair) != 2:
        raise DataError(f"bounds[{name!r}] is {pair!r}; (lower, upper) is needed")
    lower, upper = pair
    return (-np.inf if lower is None else lower), (np.inf if upper is None else upper)


def _start(p0: Any, model: Model, lower: Floats, upper: Floats) -> Floats:
    if isinstance(p0, Mapping):
        _known(p0, model.params, "p0")
    if p0 is None or isinstance(p0, Mapping):
        start = _feasible(lower, upper)
        for name, value in (p0 or {}).items():
            try:
                start[model.params.index(name)] = value
            except (TypeError, ValueError):
                raise DataError(f"p0[{name!r}] is {value!r}; a number is needed") from None
        return start
    try:
        values = np.atleast_1d(np.asarray(p0, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError(f"p0 is not a sequence of numbers: {p0!r}") from None
    if values.ndim != 1:
        raise DataError(f"p0 has shape {values.shape}; ({model.n_params},) is needed")
    return values.copy()


def _feasible(lower: Floats, upper: Floats) -> Floats:
    """1, the middle of finite bounds, or one inside of a single bound, as SciPy starts."""
    start = np.ones_like(lower)
    low, high = np.isfinite(lower), np.isfinite(upper)
    start[low & high] = 0.5 * (lower[low & high] + upper[low & high])
    start[low & ~high] = lower[low & ~high] + 1.0
    start[~low & high] = upper[~low & high] - 1.0
    return start


def _known(mapping: Mapping[str, Any], names: Sequence[str], field: str) -> None:
    for name in mapping:
        if name not in names:
            raise DataError(f"{field}: {name!r} is not a parameter; they are {', '.join(names)}")
