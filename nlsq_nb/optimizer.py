"""`AdaptiveHybridStreamingOptimizer`: fits with one configuration, and shows how they went."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.arguments import read_call
from nlsq_nb.backends import get_backend
from nlsq_nb.config.flat import HybridStreamingConfig
from nlsq_nb.config.given import config_from
from nlsq_nb.core.columns import is_on_device
from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.fitting import Fit
from nlsq_nb.guessed import with_guess
from nlsq_nb.models.wrapper import NormalizedModelWrapper
from nlsq_nb.observe.history import TITLES
from nlsq_nb.phases.state import FitState
from nlsq_nb.problem import read_problem
from nlsq_nb.protocols import Backend
from nlsq_nb.record import FitRecord
from nlsq_nb.result import FitResult
from nlsq_nb.sources.weights import GroupWeights

__all__ = ["AdaptiveHybridStreamingOptimizer"]

Floats = NDArray[np.float64]


class AdaptiveHybridStreamingOptimizer:
    """Adaptive hybrid streaming fits: normalisation, L-BFGS warm-up, Gauss–Newton, covariance.

    `curve_fit` does the same in one call; this class keeps a configuration for many fits, lets the
    residual weights be changed, and shows the phases while they run.

    Parameters
    ----------
    config : HybridStreamingConfig, optional
        Options; the defaults when omitted.
    backend : {"auto", "cpu", "cuda", "reference"}
        Where the sums are computed; auto follows the data of each fit.

    Attributes
    ----------
    config : HybridStreamingConfig
        As given.

    Raises
    ------
    TypeError
        When config is something else.
    BackendUnavailable
        For a backend that this machine cannot run.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_nb import AdaptiveHybridStreamingOptimizer
    >>> x = np.linspace(0, 4, 50)
    >>> optimizer = AdaptiveHybridStreamingOptimizer()
    >>> result = optimizer.fit((x, 3*np.exp(-1.5*x) + 0.5), "a*exp(-b*x) + c", [2, 1, 1], verbose=0)
    >>> result.popt.round(6).tolist()
    [3.0, 1.5, 0.5]
    """

    def __init__(self, config: HybridStreamingConfig | None = None, backend: str = "auto") -> None:
        self._options = config_from(config, {})
        self.config = config or HybridStreamingConfig()
        self._wanted = backend
        self._backends: dict[str, Backend] = {}
        if backend != "auto":
            self._backend_for(on_device=False)  # says now what is missing
        self._record: FitRecord | None = None
        w = self._options.weights
        self._weights = GroupWeights(w.values) if w.weighted else None

    def fit(self, *args: Any, **named: Any) -> FitResult:
        """Fit a model to data.

        Called as `fit(data_source, func, p0, bounds, sigma, absolute_sigma, callback, verbose)`, as
        `fit(model, x, y, p0, …)`, or with the keywords `model`, `x_data`, `y_data` instead.

        Parameters
        ----------
        *args : Any
            The data, the model, then the arguments below, in their order; or the model, x, y, then the
            arguments below. Data are (x, y) or (x, y, sigma), the path of an HDF5 file or an `HDF5Source`, an
            iterator of batches (x, y[, sigma]), or a function that returns a fresh one at every call.
        **named : Any
            p0 : start, (p,) or by name. bounds : (lower, upper), as for `curve_fit`. sigma :
            standard deviations. absolute_sigma : whether they are in the units of y. callback :
            `callback(params, loss, iteration)` with physical parameters (p,), the sse and a rising
            count; returning True or raising `StopFit` ends the fit, and `set_residual_weights` may
            be called from it. verbose : 0, 1 or 2; the configuration's when omitted. loss, f_scale :
            as for `curve_fit`.

        Returns
        -------
        FitResult
            Whether or not it converged.

        Raises
        ------
        ModelError, TracingError
            For a model that cannot be read.
        DataError
            For data, sigma, p0 or bounds that cannot be used; names row, field or parameter.
        NumericsError
            When the model is not finite at the start.
        SourceError
            For a data source of an unknown kind.
        TypeError
            For missing, repeated or unknown arguments.
        """
        call = read_call(args, named)
        options = self._options
        if call.verbose is not None:
            options = config_from(self.config, {"verbose": call.verbose})
        backend = self._backend_for(on_device=is_on_device(call.x, call.y))
        problem = read_problem(
            call, options, group_weights=self._weights, whole=backend.name == "cuda"
        )
        fit = Fit(options, backend, with_guess(problem, call.p0, options), callback=call.callback)
        self._record = fit.record
        return fit.run()

    def set_residual_weights(self, weights: ArrayLike) -> None:
        """Change the weights of the groups; running and later fits use them from their next pass.

        Parameters
        ----------
        weights : array_like, shape (n_groups,)
            Positive; the weight of a row is `weights[int(first column of x)]`.

        Raises
        ------
        DataError
            When they are not one-dimensional, finite and positive.
        ConfigError
            When the configuration has no `enable_residual_weighting=True`.
        """
        if self._weights is None:
            config_from(self.config, {"residual_weights": weights})  # says which field is missing
            raise AssertionError("weights without their flag are refused by the configuration")
        self._weights.set(weights)

    def clear_cache(self) -> None:
        """Free what the backend holds between fits: threads, device and read buffers.

        Data are held by their results only. What a later fit needs is made anew.
        """
        for backend in self._backends.values():
            backend.release()

    def _backend_for(self, *, on_device: bool) -> Backend:
        """The backend of a fit, made once for data on the host and once for data on a device."""
        name = "cuda" if on_device and self._wanted == "auto" else self._wanted
        if name not in self._backends or (on_device and name != "cuda"):  # which is refused
            o = self._options.data
            self._backends[name] = get_backend(
                name, o.n_threads, on_device=on_device, multi_device=o.multi_device
            )
        return self._backends[name]

    # -- how the fit stands ------------------------------------------------------------------
    @property
    def _state(self) -> FitState | None:
        return None if self._record is None else self._record.state

    @property
    def current_phase(self) -> int:
        """Number of the phase that runs, 3 after a fit, 0 before the first."""
        return 0 if self._record is None else self._record.history.current

    @property
    def phase_history(self) -> list[dict[str, Any]]:
        """One dict per finished phase: phase, name, start_time, duration (s), timestamp, findings."""
        return [] if self._record is None else [dict(e) for e in self._record.history.entries]

    @property
    def phase_start_time(self) -> float | None:
        """When the current phase began, seconds since the epoch."""
        return None if self._record is None else self._record.history.started

    @property
    def phase_status(self) -> dict[str, Any]:
        """The current phase by number and name, the history, and the number of phases."""
        return {
            "current_phase": self.current_phase,
            "phase_name": TITLES[self.current_phase],
            "phase_history": self.phase_history,
            "total_phases": len(TITLES),
        }

    @property
    def normalizer(self) -> ParameterNormalizer | None:
        """The map between physical and normalised parameters; None before the first fit."""
        return None if self._state is None else self._state.normalizer

    @property
    def normalized_params(self) -> Floats | None:
        """The best point so far in normalised parameters, (p,)."""
        best = self.best_params_global
        return None if best is None or self.normalizer is None else self.normalizer.normalize(best)

    @property
    def normalized_bounds(self) -> tuple[Floats, Floats] | None:
        """The bounds in normalised parameters, (p,) each; None without a fit."""
        return None if self.normalizer is None else self.normalizer.transform_bounds()

    @property
    def normalization_jacobian(self) -> Floats | None:
        """dθ/dz, (p, p)."""
        return None if self.normalizer is None else self.normalizer.normalization_jacobian

    @property
    def normalized_model(self) -> NormalizedModelWrapper | None:
        """The model as a function of normalised parameters; the fit itself does not need it."""
        if self.normalizer is None or self._record is None:
            return None
        return NormalizedModelWrapper(self._record.model, self.normalizer)

    @property
    def best_params_global(self) -> Floats | None:
        """The best point so far, physical units, (p,)."""
        return None if self._record is None else self._record.best()[0]

    @property
    def best_cost_global(self) -> float:
        """Σ w r² there; inf before it was measured."""
        return float("inf") if self._record is None else self._record.best()[1]
