"""`FitResult`: what a fit found, as attributes, as a mapping, and as (popt, pcov)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.config.flat import HybridStreamingConfig, changed
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.columns import is_on_device
from nlsq_nb.derived import DerivedValues
from nlsq_nb.errors import DataError, UnsupportedOption
from nlsq_nb.intervals import Intervals, ParameterProfile, band_of, intervals_of, profile_of
from nlsq_nb.models.symbolic import Model
from nlsq_nb.protocols import Refit
from nlsq_nb.report.html import html
from nlsq_nb.report.plot import draw
from nlsq_nb.report.text import report
from nlsq_nb.stored import Behind, from_data, to_data

__all__ = ["FitResult"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FitResult(DerivedValues):
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
        Σ w r² at popt, also under a robust loss.
    cost : float
        What was minimised, as SciPy counts it: ½ sse, or ½ Σ f²ρ(w r²/f²) with f = f_scale.
    loss : str
        ρ: "linear" for least squares, else a robust one.
    f_scale : float
        Scale of a robust loss; 1 for the linear one.
    n_points : int
        Number of residuals.
    dof : int
        Residuals minus free parameters.
    nit : int
        Iterations.
    nfev, njev : int
        Passes over the data that gave the cost, and those that gave derivatives.
    grad : ndarray, shape (p,)
        Gradient of the cost, −JᵀWr, or −Σ w ρ' r J.
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
    absolute_sigma : bool
        Whether sigma was taken as it is.
    weight : float
        Σ w.
    _behind : Behind
        What else there is to tell; private; knows no data after pickling, which leaves them behind.
    _model : Model or None
        See `model`; private.
    _options : Groups
        See `config`; private.
    """

    names: tuple[str, ...]
    popt: Floats
    pcov: Floats
    success: bool
    status: Any
    message: str
    sse: float
    cost: float
    loss: str
    f_scale: float
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
    absolute_sigma: bool
    weight: float
    _behind: Behind = field(repr=False)
    _model: Any = field(repr=False)
    _options: Groups = field(repr=False)

    def __post_init__(self) -> None:
        """Results are facts: their arrays cannot be written to."""
        for array in (self.popt, self.pcov, self.grad, self.active_mask, *self.bounds):
            array.setflags(write=False)

    # -- as a tuple -------------------------------------------------------------------------
    def __iter__(self) -> Iterator[Any]:
        """Unpack to (popt, pcov)."""
        return iter((self.popt, self.pcov))

    def __getstate__(self) -> dict[str, Any]:
        """The numbers without the data, so that results can be sent between processes."""
        known = self.streaming_diagnostics
        state = {**vars(self), "streaming_diagnostics": known, "_behind": Behind()}
        state.pop("_refit", None)
        if is_on_device(state.get("fun")):
            del state["fun"]
        return state

    # -- what needs the data ----------------------------------------------------------------
    @cached_property
    def streaming_diagnostics(self) -> dict[str, Any]:
        """What happened on the way; put together when first asked for.

        phase_timings (s), phase_iterations, phase_history, total_time (s), multistart (None without
        several starts), warmup_diagnostics, gauss_newton_diagnostics, data_passes over all rows,
        sample_passes over the sample of the warm-up, condition of the column-scaled JᵀJ, telemetry
        of this fit, backend.
        """
        return self._behind.diagnose()

    @cached_property
    def fun(self) -> Any:
        """Residuals y − f at popt, shape of y, unweighted, computed when first asked for; on the GPU if y is."""
        return self._of_the_data().all()

    def residual_chunks(self) -> Iterator[Any]:
        """Residuals y − f at popt, some consecutive rows at a time: for data larger than memory.

        Yields
        ------
        ndarray
            (rows,), or (m, rows) for m outputs; unweighted, in row order; on the GPU if y is.

        Raises
        ------
        DataError
            For a result that was pickled, since the data are not.
        SourceError
            When what holds the rows cannot be read again: a generator, a file that was changed.
        """
        yield from self._of_the_data().chunks()

    def _of_the_data(self) -> Any:
        if self._behind.residuals is None:
            raise DataError(
                "the data stayed in the process of the fit: there are no residuals; use predict(x)"
            )
        return self._behind.residuals()

    @cached_property
    def _refit(self) -> Refit | None:
        """Fits again with a parameter held."""
        return None if self._behind.refit is None else self._behind.refit()

    # -- uncertainty -------------------------------------------------------------------------
    def confidence_intervals(self, level: float = 0.95, method: str = "wald") -> Intervals:
        """Confidence intervals of all parameters.

        Parameters
        ----------
        level : float
            Confidence, between 0 and 1.
        method : {"wald", "profile"}
            "wald": popt ± t·perr, cut at the bounds; costs nothing and is right where the model is nearly
            linear over the interval. "profile": where the least sse over all other parameters has
            risen by t² residual variances (Bates & Watts 1988, §6.1); ten to twenty passes over the data
            for each end. t is Student's for n − p degrees of freedom, normal for `absolute_sigma`.

        Returns
        -------
        Intervals
            `intervals["b"]` is (lower, upper); an open end is a bound or ±inf, and `notes` says why.

        Raises
        ------
        DataError
            When a profile is asked for and the data are not at hand any more, or were changed.
        SourceError
            When what holds them cannot be read again: a generator, a file that was changed.
        """
        return intervals_of(self, self._refit, level, method)

    def profile(self, name: str, level: float = 0.95, points: int = 0) -> ParameterProfile:
        """The likelihood profile of a parameter, and the interval that it gives.

        The parameter is held at one value after another while the others are fitted; see
        `confidence_intervals`. Works for any data that can be read again, a chunk at a time.

        Parameters
        ----------
        name : str
            A parameter that is not fixed.
        level : float
            Confidence of the interval.
        points : int
            How many more points of the curve, spread evenly over the interval, are wanted.

        Returns
        -------
        ParameterProfile
            `interval`, `open`, and the curve as `values` and `sse`.

        Raises
        ------
        DataError
            For an unknown or fixed parameter; when the data are not at hand, or were changed.
        SourceError
            When what holds them cannot be read again: a generator, a file that was changed.
        """
        return profile_of(self, self._refit, name, level, points)

    def predict(
        self,
        x: Any,
        band: float | None = None,
        *,
        kind: str = "confidence",
        sigma: ArrayLike | None = None,
    ) -> Any:
        """Model values at popt, with a band if asked for.

        Parameters
        ----------
        x : array_like or mapping
            Independent variables, as for the fit.
        band : float, optional
            Level of a band by the delta method: the variance of a value is J·pcov·Jᵀ.
        kind : {"confidence", "prediction"}
            Whether the band is for the model or for new observations, whose scatter is added.
        sigma : array_like, optional
            Standard deviations of new observations, in the units of the fit's; not needed after a
            fit without weights.

        Returns
        -------
        ndarray or Band
            float64, one value per row, (n,) or (m, n), on the GPU if x is; with a band `(values,
            lower, upper)`.
        """
        k, there = len(self.model.x), is_on_device(x)
        if k > 1 and (tuple(getattr(x, "shape", ())) if there else np.shape(x)) == (k, k):
            raise DataError(
                f"x of shape ({k}, {k}) can be read by rows or by columns; give a mapping of columns"
            )
        if there:
            if band is not None:
                raise UnsupportedOption("a band is computed from host arrays; give x.get()")
            from nlsq_nb.backends.cuda.backend import CudaBackend  # there is CUDA only where there are such arrays

            found = CudaBackend().values(self.model.program, x, self.model.x, self.popt)
            return found if self.model.n_outputs > 1 else found[0]
        if band is None:
            return np.asarray(self.model(x, *self.popt))
        return band_of(self, x, band, kind, sigma)

    # -- for people and files ----------------------------------------------------------------
    @property
    def model(self) -> Model:
        """The model that was fitted; equal after `from_json`, unless it was a Python function."""
        if self._model is None:
            raise DataError(
                f"the model {self.model_text!r} was a Python function: that is code, which JSON does not hold"
            )
        return self._model  # type: ignore[no-any-return]

    @property
    def config(self) -> HybridStreamingConfig:
        """The options of the fit."""
        return HybridStreamingConfig(**changed(self._options))

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

    def _repr_html_(self) -> str:
        """The report for notebooks."""
        return html(self)

    def plot(self, band: float | None = 0.95, figure: Any = None) -> Any:
        """Draw data, model and residuals; needs matplotlib.

        Parameters
        ----------
        band : float, optional
            Level of the confidence band; None for none.
        figure : matplotlib.figure.Figure, optional
            Where to draw; by default a new figure of pyplot's.

        Returns
        -------
        matplotlib.figure.Figure
            Two axes. With one independent variable the model is a curve over it; with several,
            observations are drawn over fitted values. Of many rows some are drawn, evenly spaced.

        Raises
        ------
        MissingDependency
            Without matplotlib.
        DataError
            When the data are not at hand any more.
        """
        return draw(self, self._of_the_data(), band, figure)

    def to_json(self) -> str:
        """The result as JSON: numbers, model, options and status, no data and no code.

        Returns
        -------
        str
            One object; infinities and nan are strings, since JSON has none.
        """
        return json.dumps(to_data(self, self._options), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> FitResult:
        """Read `to_json`'s text.

        Parameters
        ----------
        text : str
            What `to_json` returned.

        Returns
        -------
        FitResult
            With the same numbers, bit for bit; like a pickled one it knows no data.

        Raises
        ------
        DataError
            When the text does not describe a result.
        """
        return cls(**from_data(text))
