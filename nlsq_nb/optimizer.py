"""`AdaptiveHybridStreamingOptimizer`: wires source, backend and phases into one fit."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends import get_backend
from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.errors import ConvergenceWarning, CovarianceWarning, DataError
from nlsq_nb.events import Event, FirstPassStarted, PhaseDone, PhaseStarted
from nlsq_nb.models.symbolic import Model
from nlsq_nb.objective import DataObjective, DataSummary, require_finite, require_rowwise, summarize
from nlsq_nb.observe.callback import CallbackObserver
from nlsq_nb.observe.progress import ProgressLog, shown
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.finalize import Outcome, finalize
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import FitState
from nlsq_nb.protocols import Observer, Phase, Source
from nlsq_nb.result import FitResult

__all__ = ["AdaptiveHybridStreamingOptimizer"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Numbered:
    """An iterative phase and its place among the four."""

    number: int
    name: str
    phase: Phase[FitState]


class AdaptiveHybridStreamingOptimizer:
    """Fits one model to one source.

    Parameters
    ----------
    options : Groups
        Validated options.
    backend : str
        Name of the backend.
    """

    def __init__(self, options: Groups, backend: str = "auto") -> None:
        self._options = options
        self._backend = get_backend(backend, options.data.n_threads)

    def fit(
        self,
        model: Model,
        source: Source,
        p0: Floats,
        bounds: tuple[Floats, Floats],
        *,
        absolute_sigma: bool = False,
        callback: Callable[..., Any] | None = None,
    ) -> FitResult:
        """Run the phases.

        Parameters
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
        callback : callable, optional
            `callback(params, loss, iteration)`.

        Returns
        -------
        FitResult
            Whether or not it converged.

        Raises
        ------
        DataError
            For data or a start that cannot be fitted.
        NumericsError
            When the model is not finite at the start.
        """
        # overflow shows as a non-finite trial, which is rejected, not as a warning
        with shown(self._options.report.verbose), np.errstate(all="ignore"):
            emit = self._observers(callback)
            clock = _Clock(emit)
            with clock.phase(0, "normalization_setup"):
                summary = summarize(source, model.x, self._options.data.validate)
                state = self._setup(model, p0, bounds, summary)
                require_rowwise(model.program, source, p0)
                kernel = self._backend.compile(model.program, source.dtype)
                objective = DataObjective(
                    LocalEngine(self._backend, kernel, source),
                    model.n_params,
                    lambda theta: require_finite(model.program, source, theta, model.params),
                )
            for item in self._phases():
                with clock.phase(item.number, item.name) as note:
                    emit(FirstPassStarted(source.n_chunks, source.n_rows))
                    state = run(item.phase, state, objective, emit)
                    note(state)
            with clock.phase(3, "denormalization_covariance"):
                outcome = finalize(state, summary.n_residuals, absolute_sigma)
        return self._result(model, source, outcome, summary, objective, clock)

    def _phases(self) -> tuple[_Numbered, ...]:
        """The iterative phases in order; the warm-up, number 1, goes before this one."""
        o = self._options.gauss_newton
        newton = GaussNewton(o.max_iterations, o.tol, o.initial_radius, o.ridge)
        return (_Numbered(2, "gauss_newton", newton),)

    def _setup(
        self, model: Model, p0: Floats, bounds: tuple[Floats, Floats], summary: DataSummary
    ) -> FitState:
        if len(p0) != model.n_params:
            raise DataError(
                f"p0 has {len(p0)} values but the model has {model.n_params} parameters "
                f"({', '.join(model.params)})"
            )
        o = self._options.setup
        strategy = o.strategy if o.normalize else "none"
        linear = model.linear_params if o.separable else ()
        state = setup(p0, bounds, model.params, linear, summary.signal, strategy)
        free = int(state.free.sum())
        if summary.n_residuals < free:
            raise DataError(
                f"{summary.n_residuals} data points cannot determine {free} free parameters "
                f"({', '.join(model.params)}); fix some by equal bounds or add data"
            )
        return state

    def _observers(self, callback: Callable[..., Any] | None) -> Observer:
        o = self._options.report
        observers: list[Observer] = [ProgressLog(o.log_every, o.verbose > 1)]
        if callback is not None:
            observers.append(CallbackObserver(callback, o.callback_every))

        def emit(event: Event) -> None:
            for observer in observers:
                observer(event)

        return emit

    def _result(
        self,
        model: Model,
        source: Source,
        outcome: Outcome,
        summary: DataSummary,
        objective: DataObjective,
        clock: _Clock,
    ) -> FitResult:
        state, stop = outcome.state, outcome.state.stop
        assert state.sums is not None
        assert stop is not None
        sse = state.sums.sse
        notes = _notes(model, outcome)
        if getattr(source, "n_omitted", 0):
            notes.append(f"{source.n_omitted} rows with non-finite values were left out")  # type: ignore[attr-defined]
        if not stop.success:
            warnings.warn(f"{stop.value} (sse={sse:g})", ConvergenceWarning, stacklevel=4)
        weak = [n for n, u in zip(model.params, outcome.covariance.undetermined, strict=True) if u]
        if weak:
            warnings.warn(
                f"Covariance of the parameters could not be estimated for {', '.join(weak)}",
                CovarianceWarning,
                stacklevel=4,
            )
        return FitResult(
            names=model.params,
            popt=state.theta,
            pcov=outcome.covariance.matrix,
            success=stop.success,
            status=stop,
            message=stop.value,
            sse=sse,
            n_points=summary.n_residuals,
            dof=outcome.dof,
            nit=sum(clock.iterations.values()),
            nfev=objective.passes,
            njev=objective.passes,
            grad=-state.sums.jtr,
            optimality=state.offset,
            active_mask=outcome.active,
            bounds=(state.lower, state.upper),
            linear=model.linear_params,
            spread=summary.spread,
            model_text=model.text,
            backend=self._backend.name,
            notes=tuple(notes),
            streaming_diagnostics={
                "phase_timings": clock.timings,
                "phase_iterations": clock.iterations,
                "total_time": clock.total,
                "data_passes": objective.passes,
                "condition": outcome.covariance.condition,
                "backend": self._backend.name,
            },
            _residuals=lambda: _residuals(
                model, source, state.theta, sse, summary.signal
            ),
            _model=model,
        )


def _notes(model: Model, outcome: Outcome) -> list[str]:
    """What a reader of the numbers should know, by parameter name."""
    state, notes = outcome.state, list(model.notes)
    held = [n for n, a in zip(model.params, outcome.active, strict=True) if a]
    fixed = [n for n, free in zip(model.params, state.free, strict=True) if not free]
    weak = [n for n, u in zip(model.params, outcome.covariance.undetermined, strict=True) if u]
    if fixed:
        notes.append(f"fixed by equal bounds: {', '.join(fixed)}")
    if held:
        notes.append(f"on a bound, so its error is that of the free problem: {', '.join(held)}")
    if weak and outcome.dof > 0:
        notes.append(f"not determined by the data: {', '.join(weak)}")
    if outcome.dof <= 0:
        notes.append("no degrees of freedom: errors cannot be estimated from the residuals")
    return notes


def _residuals(
    model: Model, source: Source, theta: Floats, sse: float, signal: float
) -> Floats:
    """Residuals y − f for all rows, in the shape of y."""

    def of(chunk: Chunk) -> Floats:
        columns = tuple(c.astype(np.float64, copy=False) for c in chunk.x)
        return np.asarray(np.stack(chunk.y) - evaluate(model.program, "values", columns, theta))

    def squares(chunk: Chunk) -> float:
        w = 1.0 if chunk.w is None else np.stack(chunk.w)
        return float(np.sum(w * of(chunk) ** 2))

    found = sum(squares(chunk) for chunk in source.chunks())
    if not np.isclose(found, sse, rtol=1e-6, atol=1e-12 * sse + 1e-20 * signal):
        raise DataError(
            f"the residuals do not give the sse of the fit ({found:g} instead of {sse:g}): either "
            "the arrays were changed since, or the model function treats rows together"
        )
    parts = np.concatenate([of(chunk) for chunk in source.chunks()], axis=1)
    return parts if model.n_outputs > 1 else parts[0]


class _Clock:
    """Times the phases and announces them."""

    def __init__(self, emit: Observer) -> None:
        self._emit = emit
        self._start = time.perf_counter()
        self.timings: dict[str, float] = {}
        self.iterations: dict[str, int] = {}

    @property
    def total(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self._start

    @contextmanager
    def phase(self, number: int, name: str) -> Iterator[Callable[[FitState], None]]:
        """Time one phase; the yielded function notes its last state."""
        begin = time.perf_counter()
        last: list[FitState] = []
        self._emit(PhaseStarted(number, name))
        yield last.append
        self.timings[name] = time.perf_counter() - begin
        if last:
            reason = "" if last[0].stop is None else last[0].stop.value
            self.iterations[name] = last[0].iteration
            self._emit(PhaseDone(number, name, reason, last[0].iteration))
