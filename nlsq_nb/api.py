"""`curve_fit`: SciPy's signature, exact derivatives, one streaming engine behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nlsq_nb.arguments import FitCall, read_data
from nlsq_nb.backends import get_backend
from nlsq_nb.config.flat import HybridStreamingConfig
from nlsq_nb.config.given import config_from
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.columns import is_on_device
from nlsq_nb.core.layout import RESIDENT_ROWS
from nlsq_nb.direct import fit_directly
from nlsq_nb.errors import ConfigError, UnsupportedOption
from nlsq_nb.fitting import Fit
from nlsq_nb.guessed import with_guess
from nlsq_nb.models.opaque import JacobianRule
from nlsq_nb.problem import Problem, read_problem
from nlsq_nb.protocols import Backend
from nlsq_nb.quick import fit_plainly
from nlsq_nb.result import FitResult
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.retrying import close
from nlsq_nb.sources.weights import GroupWeights

__all__ = ["curve_fit"]

_UNBOUNDED = (-np.inf, np.inf)


def curve_fit(  # noqa: PLR0913, PLR0917 - SciPy's signature
    f: Any,
    xdata: Any,
    ydata: Any = None,
    p0: ArrayLike | Mapping[str, float] | None = None,
    sigma: ArrayLike | None = None,
    absolute_sigma: bool = False,
    check_finite: bool = True,
    bounds: Any = _UNBOUNDED,
    method: str | None = None,
    jac: JacobianRule | None = None,
    *,
    config: HybridStreamingConfig | None = None,
    loss: str = "linear",
    f_scale: float = 1.0,
    nan_policy: str | None = None,
    backend: str = "auto",
    engine: Any = None,
    callback: Callable[..., Any] | None = None,
    verbose: int | None = None,
    full_output: bool = False,
    **config_fields: Any,
) -> Any:
    """Fit a model to data by nonlinear least squares, or with a loss that bears outliers.

    Minimises Σ ((y − f(x, θ))/σ)², or what `loss` makes of it: an L-BFGS warm-up behind four
    defence layers brings a poor start near, Levenberg–Marquardt on sums that one pass over the data
    gives finds the optimum; parameters that enter linearly are solved for exactly (variable projection).

    Parameters
    ----------
    f : str, sympy.Expr, callable, Model, or list of expressions
        The model. A function `f(x, *params)` in NumPy is traced into algebra.
    xdata : array_like, mapping, or data source
        Independent variables: (n,), (k, n) as in SciPy, or columns by variable name. Without ydata,
        what holds both: (x, y) or (x, y, sigma), the path of an HDF5 file or an `HDF5Source`, an
        iterator of batches (x, y[, sigma]), or a function that returns a fresh one at every call.
        Arrays on a GPU (CuPy, DLPack, `__cuda_array_interface__`) stay there.
        x, y and sigma may be Dask arrays.
    ydata : array_like, optional
        Observations, (n,), or (m, n) for a model of m outputs.
    p0 : array_like or mapping, optional
        Start, (p,) or by name. By default 1, or the middle of finite bounds; parameters that
        enter linearly need none, and models of `nlsq_nb.models.library` find one in the data.
    sigma : array_like, optional
        Standard deviations of ydata, scalar or one per value; or the covariance matrix of its errors,
        (N, N) for N values, output after output for several.
    absolute_sigma : bool
        Whether sigma is in the units of ydata (True) or relative (False: pcov is scaled by the
        reduced χ²).
    check_finite : bool
        Whether non-finite data are refused.
    bounds : (array_like, array_like), scipy.optimize.Bounds, or mapping
        Lower and upper bounds, scalar or per parameter, or (lower, upper) by name; None or ±inf for none. Equal bounds
        fix a parameter.
    method : {None, "auto", "hybrid_streaming", "lm", "trf"}
        "lm" and "trf" begin with Gauss–Newton, without the warm-up; "lm" refuses bounds, as SciPy
        does. The others run all four phases.
    jac : callable or {"2-point", "3-point", "cs"}, optional
        Jacobian (n, p) of a plain function, which is then called as it is, not traced.
    config : HybridStreamingConfig, optional
        Options; keywords of the same names override it.
    loss : {"linear", "huber", "soft_l1", "cauchy", "arctan", "tukey"}
        What a residual costs: ½ f² ρ(w r²/f²) with f = f_scale, as in SciPy's `least_squares`, which has
        all but Tukey's biweight. pcov of a robust loss is the sandwich; `absolute_sigma` has no
        part in it.
    f_scale : float
        Residual, in units of sigma where that is given, from which on a point counts as an outlier.
        Some 1.3 (huber) to 5 (tukey) times the standard deviation of good points; of no meaning
        for "linear".
    nan_policy : {None, "raise", "omit"}
        What to do with rows that are not finite; None follows check_finite.
    backend : {"auto", "cpu", "cuda", "reference"}
        Where the sums are computed; auto follows the data, and `result.backend` says what ran.
    engine : {None, "local", "dask"}, distributed.Client, or Cluster
        Where passes over the data run: on a Dask cluster for Dask arrays and for HDF5 files that all workers can
        open. None takes the active client for Dask arrays, if there is one, and this process for all else.
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
    ValueError
        For an unknown `method` or `loss`, an `f_scale` that is not positive, and for bounds or a robust loss
        with "lm".
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
    rest = (method, jac, config, nan_policy, engine, callback, verbose)
    flags = (type(absolute_sigma) is bool, check_finite, full_output)
    usual = bounds is _UNBOUNDED and not config_fields and _is_usual(rest, flags, loss, f_scale, backend)
    result, stopped = _at_once((f, xdata, ydata, p0, sigma), absolute_sigma) if usual else (None, False)
    if result is not None:
        return result
    if verbose is not None or config is None:
        config_fields["verbose"] = verbose or 0
    if not check_finite or nan_policy == "omit":
        config_fields["validate_numerics"] = False
    options = config_from(config, config_fields)
    _check_flags(absolute_sigma=absolute_sigma, check_finite=check_finite, full_output=full_output)
    _check_options(method, nan_policy)
    given = read_data(xdata if ydata is None else (xdata, ydata), sigma)
    if full_output and ("source" in given or is_on_device(xdata, ydata)):
        raise UnsupportedOption("full_output=True needs the data in memory; use the result's residual_chunks()")
    given |= {"loss": loss, "f_scale": f_scale, "engine": engine}
    call = FitCall(f, p0=p0, bounds=bounds, absolute_sigma=absolute_sigma, **given)
    where = _backend_for(backend, options, call)
    weights, ways = _weights_of(options), {"omit": nan_policy == "omit", "whole": where.name == "cuda"}
    problem = with_guess(read_problem(call, options, jac=jac, group_weights=weights, **ways), p0, options)
    try:
        if method == "lm":
            _check_plain(problem, loss)
        warms_up = method not in {"lm", "trf"}
        if callback is None and not stopped:
            try:
                result = fit_directly(problem, options, where, warms_up=warms_up)
            except KeyboardInterrupt:  # as in `_at_once`
                stopped = True
        if result is None:
            _raise_if_large(problem, stopped)
            fit = Fit(options, where, problem, callback=callback, warms_up=warms_up)
            result = fit.run(stopped=stopped)
    finally:
        close(problem.source)
    return _in_full(result, problem) if full_output else result


def _raise_if_large(problem: Problem, stopped: bool) -> None:
    """Let Ctrl-C end a fit of which nothing is known, and of which it takes passes over many rows to learn more."""
    if stopped and problem.source.n_rows > RESIDENT_ROWS:
        raise KeyboardInterrupt


def _in_full(result: FitResult, problem: Problem) -> tuple[Any, ...]:
    """What SciPy returns for full_output."""
    fvec = _in_standard_deviations(-result.fun, problem)  # SciPy's sign
    info = {"nfev": result.nfev, "fvec": fvec}
    return result.popt, result.pcov, info, result.message, 1 if result.success else 5


def _is_usual(rest: tuple[Any, ...], flags: tuple[Any, ...], loss: Any, f_scale: Any, backend: Any) -> bool:
    """Whether all these are what they are by default."""
    given, kinds = (*flags, f_scale, loss, backend), (bool, bool, bool, float, str, str)  # arrays have no one truth
    plain = all(each is None for each in rest) and all(map(isinstance, given, kinds))
    return plain and given == (True, True, False, 1.0, "linear", "auto")


def _at_once(given: tuple[Any, ...], absolute_sigma: bool) -> tuple[FitResult | None, bool]:
    """The result of a plain fit, if it is one, and whether the user stopped it."""
    try:
        return fit_plainly(*given, absolute_sigma=absolute_sigma), False
    except KeyboardInterrupt:  # native code ends first; what is known is where the fit begins
        return None, True


def _weights_of(options: Groups) -> GroupWeights | None:
    return GroupWeights(options.weights.values) if options.weights.weighted else None


def _check_plain(problem: Problem, loss: Any) -> None:
    """What SciPy's method "lm" does not take either."""
    if problem.loss.is_robust:
        raise ValueError(f"method='lm' supports only loss='linear', not {loss!r}; use 'trf' or None")
    if any(np.isfinite(side).any() for side in problem.bounds):
        raise ValueError("Method 'lm' only works for unconstrained problems; use 'trf' or None")


def _backend_for(name: str, options: Groups, call: FitCall) -> Backend:
    """The backend by name, or by where the data are."""
    o, there = options.data, is_on_device(call.x, call.y)
    return get_backend(name, o.n_threads, on_device=there, multi_device=o.multi_device)


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, (bool, int, np.bool_)):  # "no" would count as true
            raise ConfigError(f"{name}={value!r}; True or False is needed")


def _check_options(method: str | None, nan_policy: str | None) -> None:
    if method == "dogbox":
        raise UnsupportedOption("method='dogbox' is not supported; use None, 'lm' or 'trf'")
    if method not in (None, "auto", "hybrid_streaming", "lm", "trf"):
        raise ValueError(f"method={method!r} is not one of auto, hybrid_streaming, lm, trf")
    if nan_policy not in (None, "raise", "omit"):
        raise ValueError(f"nan_policy={nan_policy!r} is not one of None, 'raise', 'omit'")


def _in_standard_deviations(residuals: Any, problem: Problem) -> Any:
    """Residuals in the shape of y, as they count."""
    if problem.whitening is not None:
        return problem.whitening.apply(residuals.ravel()).reshape(residuals.shape)
    assert isinstance(problem.source, ArraySource)
    return residuals * problem.source.root_weights()
