"""`FitResult`: what a fit found, as attributes, as a mapping, and as (popt, pcov)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.errors import DataError
from nlsq_nb.report.text import report

__all__ = ["FitResult"]

Floats = NDArray[np.float64]
# computed when asked for; fun too, but that needs a pass over the data
_DERIVED = ("x", "perr", "cost", "chi2", "reduced_chi2", "r_squared", "aic", "bic", "correlation", "params")


@dataclass(frozen=True, eq=False)
class FitResult:
    """The outcome of a fit; `popt, pcov = result` works as SciPy's return value does.

    Every value is also reached as `result["name"]`; `dict(result)` holds all but `fun`.

    Parameters
    ----------
    names : tuple of str, length p
        Parameter names.
    popt : ndarray, shape (p,)
        Best parameters, physical units. `x` is the same array.
    pcov : ndarray, shape (p, p)
        Covariance; inf where the data do not determine a parameter, 0 for fixed ones.
    success : bool
        Whether a convergence test passed.
    status : enum.Enum
        Why the fit ended.
    message : str
        The same as a sentence.
    sse : float
        Σ w r² at popt; `cost` is half of it.
    n_points : int
        Number of residuals.
    dof : int
        Residuals minus free parameters.
    nit : int
        Iterations.
    nfev, njev : int
        Passes over the data that gave the cost, and those that gave derivatives.
    grad : ndarray, shape (p,)
        Gradient of the cost, −JᵀWr.
    optimality : float
        Relative offset: sine of the angle between residuals and tangent plane.
    active_mask : ndarray of int, shape (p,)
        −1 on the lower bound, 1 on the upper, 0 inside.
    bounds : tuple of ndarray
        Lower and upper, ±inf for none.
    linear : tuple of str
        Parameters that enter the model linearly.
    spread : float
        Σ w (y − mean)².
    model_text : str
        The model, for reports.
    backend : str
        Which backend ran.
    notes : tuple of str
        What a reader of the numbers should know.
    streaming_diagnostics : dict
        phase_timings (s), phase_iterations, phase_history, total_time (s), multistart (None without
        several starts), warmup_diagnostics, gauss_newton_diagnostics, data_passes over all rows,
        sample_passes over the sample of the warm-up, condition of the column-scaled JᵀJ, telemetry
        of this fit, backend.
    _residuals : Residuals or None
        Computes `fun`; private; None after pickling, which leaves the data behind.
    _model : Model
        Evaluates `predict`; private.
    """

    names: tuple[str, ...]
    popt: Floats
    pcov: Floats
    success: bool
    status: Any
    message: str
    sse: float
    n_points: int
    dof: int
    nit: int
    nfev: int
    njev: int
    grad: Floats
    optimality: float
    active_mask: NDArray[np.int_]
    bounds: tuple[Floats, Floats]
    linear: tuple[str, ...]
    spread: float
    model_text: str
    backend: str
    notes: tuple[str, ...]
    streaming_diagnostics: dict[str, Any]
    _residuals: Any = field(repr=False)
    _model: Any = field(repr=False)

    def __post_init__(self) -> None:
        """Results are facts: their arrays cannot be written to."""
        for array in (self.popt, self.pcov, self.grad, self.active_mask, *self.bounds):
            array.setflags(write=False)

    # -- as a tuple and as a mapping ---------------------------------------------------------
    def __iter__(self) -> Iterator[Any]:
        """Unpack to (popt, pcov)."""
        return iter((self.popt, self.pcov))

    def keys(self) -> tuple[str, ...]:
        """Names of the stored values.

        Returns
        -------
        tuple of str
            Keys for `result[key]`.
        """
        stored = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        return (*stored, *_DERIVED)

    def items(self) -> list[tuple[str, Any]]:
        """Keys and values.

        Returns
        -------
        list of tuple
            `(name, value)` for every key.
        """
        return [(name, self[name]) for name in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        """A value by name.

        Parameters
        ----------
        key : str
            An attribute.
        default : Any
            Returned when there is none of that name.

        Returns
        -------
        Any
            The value.
        """
        return self[key] if key in self else default  # noqa: SIM401 - this is that method

    def __getitem__(self, key: str | int) -> Any:
        """An attribute by name, or popt and pcov by 0 and 1."""
        if isinstance(key, int):
            return (self.popt, self.pcov)[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        """Whether `result[key]` exists."""
        return key in self.keys() or key == "fun"

    def __getstate__(self) -> dict[str, Any]:
        """The numbers without the data, so that results can be sent between processes."""
        return {**vars(self), "_residuals": None}

    # -- derived values ----------------------------------------------------------------------
    @property
    def x(self) -> Floats:
        """Same as popt, as SciPy's results name it."""
        return self.popt

    @property
    def perr(self) -> Floats:
        """Standard errors, the roots of pcov's diagonal, shape (p,)."""
        return np.sqrt(np.diagonal(self.pcov))

    @property
    def cost(self) -> float:
        """½ sse."""
        return 0.5 * self.sse

    @property
    def chi2(self) -> float:
        """Same as sse: Σ ((y − f)/σ)² when sigma was given."""
        return self.sse

    @property
    def reduced_chi2(self) -> float:
        """Sse per degree of freedom; inf without degrees of freedom."""
        return self.sse / self.dof if self.dof > 0 else math.inf

    @property
    def r_squared(self) -> float:
        """1 − sse / Σ w (y − mean)²; nan for constant y."""
        return 1.0 - self.sse / self.spread if self.spread > 0.0 else math.nan

    @property
    def aic(self) -> float:
        """Akaike's criterion n log(sse/n) + 2k for k free parameters."""
        return self._likelihood() + 2.0 * (self.n_points - self.dof)

    @property
    def bic(self) -> float:
        """Bayesian criterion n log(sse/n) + k log n for k free parameters."""
        return self._likelihood() + math.log(self.n_points) * (self.n_points - self.dof)

    def _likelihood(self) -> float:
        return self.n_points * math.log(self.sse / self.n_points) if self.sse > 0.0 else -math.inf

    @property
    def correlation(self) -> Floats:
        """Correlations of the parameters, shape (p, p); nan where a variance is 0 or inf."""
        with np.errstate(all="ignore"):
            out = self.pcov / np.outer(self.perr, self.perr)
        return np.asarray(np.where(np.isfinite(out), out, np.nan))

    @property
    def params(self) -> dict[str, dict[str, Any]]:
        """Name → value, stderr, bounds, linear, fixed, at_bound ("", "lower" or "upper")."""
        lower, upper = self.bounds
        sides = {-1: "lower", 0: "", 1: "upper"}
        return {
            name: {
                "value": float(self.popt[k]),
                "stderr": float(self.perr[k]),
                "bounds": (float(lower[k]), float(upper[k])),
                "linear": name in self.linear,
                "fixed": bool(lower[k] == upper[k]),
                "at_bound": sides[int(self.active_mask[k])],
            }
            for k, name in enumerate(self.names)
        }

    @cached_property
    def fun(self) -> Floats:
        """Residuals y − f at popt, shape of y, unweighted; computed when first asked for."""
        return np.asarray(self._of_the_data().all())

    def residual_chunks(self) -> Iterator[Floats]:
        """Residuals y − f at popt, some consecutive rows at a time: for data larger than memory.

        Yields
        ------
        ndarray
            (rows,), or (m, rows) for m outputs; unweighted, in row order.

        Raises
        ------
        DataError
            For a result that was pickled, since the data are not.
        """
        yield from self._of_the_data().chunks()

    def _of_the_data(self) -> Any:
        if self._residuals is None:
            raise DataError(
                "the residuals stayed with the data in the process of the fit; use predict(x)"
            )
        return self._residuals

    def predict(self, x: ArrayLike) -> Floats:
        """Model values at popt.

        Parameters
        ----------
        x : array_like or mapping
            Independent variables, as for the fit.

        Returns
        -------
        ndarray
            float64, one value per row.
        """
        k = len(self._model.x)
        if k > 1 and np.shape(x) == (k, k):
            raise DataError(
                f"x of shape ({k}, {k}) can be read by rows or by columns; give a mapping of columns"
            )
        return np.asarray(self._model(x, *self.popt))

    # -- for people and files ----------------------------------------------------------------
    def report(self) -> str:
        """The verdict, the parameters with their errors, and the statistics as text.

        Returns
        -------
        str
            Several lines.
        """
        return report(self)

    def __repr__(self) -> str:
        """The report."""
        return self.report()

    def to_json(self) -> str:
        """The numbers as JSON; infinities and nan as strings, since JSON has none.

        Returns
        -------
        str
            One object.
        """
        keys = ["success", "message", "sse", "n_points", "dof", "reduced_chi2", "r_squared"]
        keys += ["aic", "bic", "nit", "nfev", "optimality", "backend", "notes"]
        data: dict[str, Any] = {key: self[key] for key in keys}
        data["status"] = self.status.name
        data["params"] = self.params
        data["pcov"] = self.pcov.tolist()
        data["model"] = self.model_text
        return json.dumps(_plain(data), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
