"""`fit_many`: one model, many sets of observations over the same rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.arguments import FitCall
from nlsq_nb.backends import get_backend
from nlsq_nb.batch import Ends, newton_batch
from nlsq_nb.compiled import is_eligible
from nlsq_nb.config.flat import HybridStreamingConfig
from nlsq_nb.config.given import config_from
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.columns import is_on_device, numeric
from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.core.sums import square
from nlsq_nb.errors import ConvergenceWarning, DataError, NlsqError, UnsupportedOption
from nlsq_nb.fitting import Fit
from nlsq_nb.guessed import with_guess
from nlsq_nb.native_run import NEWTON_STOPS
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import StopReason
from nlsq_nb.plan import is_matrix_free, newton_phase, objective_over
from nlsq_nb.problem import Problem, read_problem
from nlsq_nb.protocols import Backend
from nlsq_nb.sources.weights import checked_sigma, weights_from_sigma

__all__ = ["ManyFits", "fit_many"]

Floats = NDArray[np.float64]
_EPS, _LEAST = float(np.finfo(np.float64).eps), float(np.finfo(np.float64).tiny)
_PLAIN = 1e6  # condition of the column-scaled JᵀWJ up to which its inverse has ten digits
_NAMED = 10  # rows that a warning lists


@dataclass(frozen=True, eq=False)
class ManyFits:
    """The outcome of many fits; `popt, pcov = fits` gives the arrays.

    Parameters
    ----------
    names : tuple of str, length p
        Parameter names.
    popt : ndarray, shape (k, p)
        Best parameters; nan for sets that could not be fitted.
    pcov : ndarray, shape (k, p, p)
        Covariances, as for a single fit.
    sse : ndarray, shape (k,)
        Σ w r².
    success : ndarray of bool, shape (k,)
        Whether a convergence test passed.
    status : ndarray of object, shape (k,)
        Why each fit ended, an enum; None for sets that could not be fitted.
    nit, nfev : ndarray of int, shape (k,)
        Iterations of Gauss–Newton, and passes over the data.
    n_points, dof : int
        Residuals of each fit, and degrees of freedom.
    failures : dict
        Number of the set → why there is no success.
    """

    names: tuple[str, ...]
    popt: Floats
    pcov: Floats
    sse: Floats
    success: NDArray[np.bool_]
    status: NDArray[np.object_]
    nit: NDArray[np.int_]
    nfev: NDArray[np.int_]
    n_points: int
    dof: int
    failures: dict[int, str]

    def __iter__(self) -> Iterator[Floats]:
        """Unpack to (popt, pcov)."""
        return iter((self.popt, self.pcov))

    def __len__(self) -> int:
        """Number of fits k."""
        return len(self.popt)

    @property
    def perr(self) -> Floats:
        """Standard errors, shape (k, p)."""
        return np.sqrt(np.diagonal(self.pcov, axis1=1, axis2=2))

    @property
    def reduced_chi2(self) -> Floats:
        """Sse per degree of freedom, shape (k,); inf without degrees of freedom."""
        return self.sse / self.dof if self.dof > 0 else np.full(len(self), np.inf)

    def __repr__(self) -> str:
        """How many converged, and the parameters' range."""
        lines = [f"{len(self)} fits of {self.n_points} points, {int(self.success.sum())} converged"]
        if self.success.any():
            good = self.popt[self.success]
            ends = zip(self.names, good.min(axis=0), np.median(good, axis=0), good.max(axis=0), strict=True)
            lines += [f"{name}: {low:.6g} … {middle:.6g} … {high:.6g}" for name, low, middle, high in ends]
        return "\n".join(lines)


def fit_many(  # noqa: PLR0913 - those of curve_fit
    f: Any,
    xdata: Any,
    ydata: ArrayLike,
    p0: ArrayLike | Mapping[str, float] | None = None,
    sigma: ArrayLike | None = None,
    absolute_sigma: bool = False,
    bounds: Any = (-np.inf, np.inf),
    *,
    config: HybridStreamingConfig | None = None,
    backend: str = "auto",
    **config_fields: Any,
) -> ManyFits:
    """Fit one model to many sets of observations over the same x.

    The model is compiled once. Small fits begin with Gauss–Newton at p0 and run in native code, many at a
    time; a set that does not converge so, that is ill-conditioned, or meets its bounds gets a fit of
    its own with all four phases, as by `curve_fit`, and so does every set that is not small. A second
    opinion is had by these alone, or by all with `second_opinion=True`.

    Parameters
    ----------
    f : str, sympy.Expr, callable, Model, or list of expressions
        The model, as for `curve_fit`.
    xdata : array_like or mapping
        Independent variables, the same for all sets.
    ydata : array_like, shape (k, n) or (k, m, n)
        Observations, a row for each set; (k, m, n) for a model of m outputs.
    p0 : array_like or mapping, optional
        Start of all fits, (p,) or by name, or (k, p). Linear parameters need none; models of
        `nlsq_nb.models.library` take what they find in the first set.
    sigma : array_like, optional
        Standard deviations: a scalar, of the shape of one set, or of that of ydata.
    absolute_sigma : bool
        Whether sigma is in the units of ydata.
    bounds : (array_like, array_like), scipy.optimize.Bounds, or mapping
        As for `curve_fit`, the same for all sets.
    config : HybridStreamingConfig, optional
        Options; keywords of the same names override it.
    backend : {"auto", "cpu", "reference"}
        Where sums are computed.
    **config_fields : Any
        Fields of `HybridStreamingConfig`.

    Returns
    -------
    ManyFits
        Arrays over the sets. Sets that did not converge, or could not be fitted, are in `failures`, and
        one `ConvergenceWarning` counts them.

    Raises
    ------
    ModelError, TracingError, TypeError
        As for `curve_fit`.
    DataError
        For shapes that disagree, and when no set at all can be fitted: the error of the first.
    UnsupportedOption
        For checkpoints and residual weights, and for data on a GPU.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_nb import fit_many
    >>> x = np.linspace(0, 4, 50)
    >>> y = [a * np.exp(-1.5 * x) + 0.5 for a in (1, 2, 3)]
    >>> fit_many("a*exp(-b*x) + c", x, y).popt.round(6)[:, 0].tolist()
    [1.0, 2.0, 3.0]
    """
    options = config_from(config, {"verbose": 0} | config_fields)
    if options.weights.weighted or options.checkpoint.resume is not None:
        raise UnsupportedOption("fit_many has no residual weights and no checkpoints; use curve_fit")
    if is_on_device(xdata, ydata):
        raise UnsupportedOption("fit_many reads host arrays; copy xdata and ydata with .get(), or take curve_fit")
    y = numeric(ydata, "ydata")
    if y.ndim not in (2, 3) or not y.size:
        raise DataError(f"ydata has shape {y.shape}; (k, n) is needed, or (k, m, n) for m outputs")
    calls = _Calls(FitCall(f, xdata, y[0], None, None, bounds, None, absolute_sigma), y, p0, sigma)
    where = get_backend(backend, options.data.n_threads)
    problem = with_guess(read_problem(calls[0], options), calls[0].p0, options)
    calls.common = replace(calls.common, func=problem.model)
    fits = _empty(problem, len(y))
    plain = _in_native_code(calls, problem, options, where, fits)
    _one_by_one(calls, options, where, fits, np.flatnonzero(~plain))
    if fits.failures:
        first = sorted(fits.failures)
        shown = ", ".join(map(str, first[:_NAMED])) + (", …" if len(first) > _NAMED else "")
        warnings.warn(
            f"{len(first)} of {len(fits)} fits did not converge: {shown}; `failures` says why",
            ConvergenceWarning,
            stacklevel=2,
        )
    return fits


class _Calls:
    """The arguments of each fit.

    Parameters
    ----------
    common : FitCall
        What all share.
    y : ndarray, shape (k, …)
        Observations.
    p0, sigma : Any
        As given.

    Attributes
    ----------
    each : bool
        Whether sigma has a row for each set.
    starts : ndarray or None, shape (k, p)
        p0, where it has a row for each set.
    """

    def __init__(self, common: FitCall, y: NDArray[Any], p0: Any, sigma: Any) -> None:
        self.common, self.y, self.sigma = common, y, sigma
        self.each = sigma is not None and np.ndim(sigma) > 0 and np.shape(sigma) == y.shape
        if self.each:
            self.sigma = numeric(sigma, "sigma")
        self.starts: Floats | None = None
        if p0 is not None and not isinstance(p0, Mapping) and np.ndim(p0) == 2:
            self.starts = np.asarray(p0, dtype=np.float64)
            if len(self.starts) != len(y):
                raise DataError(f"p0 has {len(self.starts)} rows, ydata has {len(y)}")
        else:
            self.common = replace(common, p0=p0)

    def __getitem__(self, k: int) -> FitCall:
        """The arguments of fit k."""
        sigma = self.sigma[k] if self.each else self.sigma
        p0 = self.common.p0 if self.starts is None else self.starts[k]
        return replace(self.common, y=self.y[k], sigma=sigma, p0=p0)


def _empty(problem: Problem, k: int) -> ManyFits:
    model = problem.model
    p, n = model.n_params, problem.source.n_rows * model.n_outputs
    dof = n - int((problem.bounds[0] < problem.bounds[1]).sum())
    numbers = np.full((k, p), np.nan), np.full((k, p, p), np.nan), np.full(k, np.nan)
    counts = np.zeros(k, dtype=np.int_), np.zeros(k, dtype=np.int_)
    return ManyFits(
        model.params, *numbers, np.zeros(k, dtype=bool), np.full(k, None, dtype=object), *counts, n, dof, {}
    )


# --- native code ---


def _in_native_code(
    calls: _Calls, problem: Problem, options: Groups, where: Backend, fits: ManyFits
) -> NDArray[np.bool_]:
    """Fill in what native code could fit; which ones those are."""
    found = np.zeros(len(fits), dtype=bool)
    given = _prepared(calls, problem, options, where, fits.dof)
    if given is None:
        return found
    ends, signal = given
    sse = ends.sums[:, 0]
    variance = np.ones(len(fits))
    if not problem.absolute_sigma:
        variance = np.maximum(sse, _EPS**2 * signal) / fits.dof
    # an optimum on a bound may be one of many: it is worth all four phases
    passed = np.array([stop is not None and stop.success and stop is not StopReason.BOUNDED for stop in NEWTON_STOPS])
    found = passed[ends.stop] & np.isfinite(signal)
    pcov, plain = _covariances(ends.sums[found], variance[found], len(fits.names))
    found[found] = plain
    fits.popt[found], fits.pcov[found], fits.sse[found] = ends.theta[found], pcov[plain], sse[found]
    fits.success[found] = True
    fits.status[found] = np.array(NEWTON_STOPS, dtype=object)[ends.stop[found]]
    fits.nit[found], fits.nfev[found] = ends.steps[found], ends.passes[found]
    return found


def _prepared(
    calls: _Calls, problem: Problem, options: Groups, where: Backend, dof: int
) -> tuple[Ends, Floats] | None:
    """Run native code on all sets, and Σ w y² of each; None where it does not apply."""
    model, source, y = problem.model, problem.source, calls.y
    checks = options.checks
    forced = options.multistart.enabled or checks.covariance_method == "qr" or checks.second_opinion is True
    if forced or dof <= 0 or len(problem.p0) != model.n_params or is_matrix_free(options, model.n_params):
        return None
    linear = model.linear_params if options.setup.separable else ()
    strategy = options.setup.strategy if options.setup.normalize else "none"
    state = setup(problem.p0, problem.bounds, model.params, linear, 0.0, strategy)
    phase = newton_phase(options, model.n_params)
    rows = objective_over(problem, options, where, 1.0).resident()
    if rows is None or not rows.kernel or not isinstance(phase, GaussNewton) or not is_eligible(phase, state):
        return None
    outputs = np.ascontiguousarray(y.reshape(len(y), model.n_outputs, -1), dtype=source.dtype)
    weights = _weights(calls, outputs.shape, source.dtype)
    varying = _addresses(outputs)
    with np.errstate(all="ignore"):
        wide = outputs.astype(np.float64, copy=False)
        if weights is not None:
            signal = np.einsum("kmn,kmn,kmn->k", wide, wide, np.broadcast_to(weights, wide.shape))
            varying = np.hstack([varying, np.broadcast_to(_addresses(weights), varying.shape)])
        else:
            signal = np.einsum("kmn,kmn->k", wide, wide)
    starts = _starts(calls, problem, strategy)
    allowed = (problem.bounds[0] <= starts[0]) & (starts[0] <= problem.bounds[1])
    lost = (signal < _LEAST) & outputs.any(axis=(1, 2))  # squares of y that underflow
    signal = np.where(allowed.all(axis=1) & ~lost, signal, np.nan)  # what cannot be fitted is told one by one
    ends = newton_batch(phase, state, rows, varying, signal, starts, getattr(where, "n_threads", 1))
    return None if ends is None else (ends, signal)


def _weights(calls: _Calls, shape: tuple[int, ...], dtype: Any) -> NDArray[Any] | None:
    """Weights of the sets, (k, m, n), or (1, m, n) where all have the same."""
    if calls.sigma is None:
        return None
    wanted = calls.y.shape if calls.each else calls.y.shape[1:]
    w = weights_from_sigma(checked_sigma(calls.sigma, wanted))
    return np.ascontiguousarray(w.reshape(-1, *shape[1:]), dtype=dtype)


def _addresses(columns: NDArray[Any]) -> NDArray[np.int64]:
    """Where the columns of contiguous (k, m, n) begin, (k, m)."""
    k, m, _ = columns.shape
    return columns.ctypes.data + columns.strides[1] * np.arange(k * m, dtype=np.int64).reshape(k, m)


def _starts(calls: _Calls, problem: Problem, strategy: str) -> tuple[Floats, Floats]:
    """Starts and scales of z, each (k, p)."""
    if calls.starts is None:
        scales = ParameterNormalizer(problem.p0, problem.bounds, strategy).scales
        shape = (len(calls.y), len(scales))
        return np.broadcast_to(problem.p0, shape), np.broadcast_to(scales, shape)
    scales = np.stack([ParameterNormalizer(p0, problem.bounds, strategy).scales for p0 in calls.starts])
    return calls.starts, scales


def _covariances(sums: Floats, variance: Floats, p: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Covariance of each fit, (k, p, p), and whether its JᵀWJ is well enough conditioned for that."""
    h = sums[:, square(p)]
    norms = np.sqrt(np.maximum(np.diagonal(h, axis1=1, axis2=2), 0.0))
    plain = np.asarray(np.isfinite(h).all(axis=(1, 2)) & (norms > 0.0).all(axis=1))
    h, norms = h[plain], norms[plain]
    scaled = h / norms[:, :, None] / norms[:, None, :]
    values = np.linalg.eigvalsh(scaled)
    good = values[:, 0] * _PLAIN > values[:, -1]
    out = np.empty((len(sums), p, p))
    plain[plain] = good
    norms = norms[good]
    with np.errstate(all="ignore"):
        inverse = np.linalg.inv(scaled[good]) / norms[:, :, None] / norms[:, None, :]
        out[plain] = 0.5 * (inverse + inverse.transpose(0, 2, 1)) * variance[plain, None, None]
    plain[plain] = np.isfinite(out[plain]).all(axis=(1, 2))
    return out, plain


# --- one by one ---


def _one_by_one(
    calls: _Calls, options: Groups, where: Backend, fits: ManyFits, sets: NDArray[np.intp]
) -> None:
    """Fit the rest with all phases; an error of one set does not keep the others from being fitted."""
    errors = {}
    for k in sets.tolist():
        try:
            problem = with_guess(read_problem(calls[k], options), calls[k].p0, options)
            result = Fit(options, where, problem).run(warns=False)
        except NlsqError as error:
            errors[k] = error
            fits.failures[k] = f"{type(error).__name__}: {error}"
            continue
        fits.popt[k], fits.pcov[k], fits.sse[k] = result.popt, result.pcov, result.sse
        fits.success[k], fits.status[k] = result.success, result.status
        fits.nit[k], fits.nfev[k] = result.nit, result.nfev
        if not result.success:
            fits.failures[k] = result.message
    if len(errors) == len(fits):
        raise errors[0]
