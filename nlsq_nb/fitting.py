"""`Fit`: source, backend and phases wired into one fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.config.groups import Groups
from nlsq_nb.errors import ConfigError, DataError
from nlsq_nb.events import Event, FirstPassStarted, PhaseDone, PhaseStarted
from nlsq_nb.models.symbolic import Model
from nlsq_nb.observe.callback import CallbackObserver
from nlsq_nb.observe.history import PhaseHistory
from nlsq_nb.observe.progress import ProgressLog
from nlsq_nb.observe.telemetry import (
    DefenseLayerTelemetry,
    TelemetryObserver,
    get_defense_telemetry,
)
from nlsq_nb.outcome import named, result_of, warn_of
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.finalize import Outcome, finalize
from nlsq_nb.phases.setup import restart, setup
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.plan import is_matrix_free, newton_phase, objective_over, penalty_of, warmup_phase
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Observer, Phase
from nlsq_nb.result import FitResult
from nlsq_nb.resuming import resume, writer_for
from nlsq_nb.scan import DataSummary, require_rowwise, summarize
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.starting import best_start

__all__ = ["Fit", "FitRecord"]

Floats = NDArray[np.float64]
_DENSE = 5000  # parameters up to which a covariance, and the pass for it, are affordable


@dataclass(slots=True)
class FitRecord:
    """How a fit stands, or stood at its end; holds no data.

    Attributes
    ----------
    model : Model
        What is fitted.
    history : PhaseHistory
        Phases so far.
    state : FitState or None
        The latest state; None before the first.
    unit : float
        The sse of a loss of 1 in the warm-up.
    """

    model: Model
    history: PhaseHistory = field(default_factory=PhaseHistory)
    state: FitState | None = None
    unit: float = math.nan

    def best(self) -> tuple[Floats | None, float]:
        """The best point so far, (p,), and its sse; None and inf before the first pass."""
        state = self.state
        if state is None:
            return None, math.inf
        if self.history.current == 1 and state.warmup is not None:
            point = state.warmup.best
            return point.theta + point.change, point.loss * self.unit
        return state.theta.copy(), math.inf if state.sums is None else state.sums.sse


class Fit:
    """One fit, from its problem to its result.

    Parameters
    ----------
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    problem : Problem
        What is fitted.
    callback : callable, optional
        `callback(params, loss, iteration)`.
    warms_up : bool
        Whether phase 1 runs.

    Attributes
    ----------
    record : FitRecord
        How it stands.
    """

    def __init__(
        self,
        options: Groups,
        backend: Backend,
        problem: Problem,
        *,
        callback: Callable[..., Any] | None = None,
        warms_up: bool = True,
    ) -> None:
        faults, report = options.faults, options.report
        # every reader of the data shares what had to be left out of them
        source = RetryingSource(
            problem.source,
            retries=faults.retries if faults.tolerant else 0,
            min_success=faults.min_success if faults.tolerant else 1.0,
            release_every=options.data.release_every,
        )
        self._options, self._backend = options, backend
        self._problem, self._source = replace(problem, source=source), source
        self._warms_up = warms_up
        self.record = FitRecord(problem.model)
        self._telemetry = DefenseLayerTelemetry()
        self._observers: list[Observer] = [
            self.record.history,
            TelemetryObserver(self._telemetry, get_defense_telemetry()),
            ProgressLog(report.log_every, report.verbose),
        ]
        if callback is not None:
            self._observers.append(CallbackObserver(callback, report.callback_every))

    def run(self) -> FitResult:
        """Run the phases.

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
        with np.errstate(all="ignore"):
            resumed = resume(self._problem, self._options)
            self._writer = writer_for(self._problem, self._options, self._extra)
            summary, state = self._prepare()
            objective = self._objective = objective_over(
                self._problem, self._options, self._backend, summary.weight, self._emit
            )
            if resumed is not None:
                state, objective.passes = resumed.state, resumed.passes
                self.record.history.entries += resumed.history
            elif self._options.multistart.enabled:
                state = best_start(self._problem, self._options, self._backend, state, objective)
            at = 0 if resumed is None else resumed.phase
            state = self._warm(state, summary, at)
            state = self._newton(state, at)
            outcome, summary = self._finalize(state, summary)
        warn_of(self._problem.model, outcome, depth=4)
        return self._result(outcome, summary)

    # -- the phases --------------------------------------------------------------------------
    def _prepare(self) -> tuple[DataSummary, FitState]:
        """Phase 0."""
        model, source = self._problem.model, self._source
        self._emit(PhaseStarted(0, "normalization_setup"))
        summary = summarize(source, model.x, self._options.data.validate)
        state = self._setup(summary)
        require_rowwise(model.program, source, self._problem.p0)
        self._done(0, "normalization_setup", state, {
            "strategy": state.normalizer.strategy,
            "n_rows": summary.n_rows,
            "free_parameters": int(state.free.sum()),
            "eliminated": tuple(named(model, state.separable)),
        })
        return summary, state

    def _setup(self, summary: DataSummary) -> FitState:
        model, p0 = self._problem.model, self._problem.p0
        if len(p0) != model.n_params:
            raise DataError(
                f"p0 has {len(p0)} values but the model has {model.n_params} parameters "
                f"({', '.join(model.params)})"
            )
        o = self._options.setup
        for first, end in self._options.penalty.groups or ():
            if end > model.n_params:
                raise ConfigError(
                    f"group_variance_indices: the group ({first}, {end}) ends beyond the "
                    f"{model.n_params} parameters ({', '.join(model.params)})"
                )
        strategy = o.strategy if o.normalize else "none"
        whole = not o.separable or is_matrix_free(self._options, model.n_params)
        linear = () if whole else model.linear_params
        state = setup(p0, self._problem.bounds, model.params, linear, summary.signal, strategy)
        free = int(state.free.sum())
        if summary.n_residuals < free:
            raise DataError(
                f"{summary.n_residuals} data points cannot determine {free} free parameters "
                f"({', '.join(model.params)}); fix some by equal bounds or add data"
            )
        return state

    def _warm(self, state: FitState, summary: DataSummary, at: int) -> FitState:
        """Phase 1, or its empty record."""
        self._emit(PhaseStarted(1, "lbfgs_warmup"))
        if at > 1:  # a resumed fit knows what it found
            return state
        if not self._warms_up:
            self._done(1, "lbfgs_warmup", state, {}, "left out: this method begins with phase 2")
            return state
        phase = warmup_phase(self._options, summary, self._problem.model.n_params)
        self.record.unit = phase.unit * summary.weight
        state = self._drive(1, phase, state, resumed=at == 1)
        self._done(1, "lbfgs_warmup", state, _warmup_found(state, phase.unit))
        return state

    def _newton(self, state: FitState, at: int) -> FitState:
        """Phase 2; from p0 again where the warm-up's point led to something worse than p0."""
        self._emit(PhaseStarted(2, "gauss_newton"))
        objective = self._objective
        if state.stop in (StopReason.CALLBACK, StopReason.INTERRUPTED):
            state = self._stopped(state)
        else:
            revision = objective.revision
            newton = newton_phase(self._options, self._problem.model.n_params)
            state = self._drive(2, newton, state, resumed=at == 2)
            assert state.sums is not None
            assert state.first is not None
            worse = state.sums.sse > state.first_sse and revision == objective.revision
            if worse and not np.array_equal(state.theta, state.first):
                state = self._drive(2, newton, restart(state, state.first))
        self.record.state, sums = state, state.sums
        assert sums is not None
        self._done(2, "gauss_newton", state, {
            "sse": sums.sse,
            "optimality": state.offset,
            "radius": state.radius,
            "probes": state.probes,
        })
        return state

    def _stopped(self, state: FitState) -> FitState:
        """The best point of a fit that was stopped in its warm-up, measured on all data."""
        sums = state.sums or self._objective(state.theta, 2)
        if sums.sse > state.first_sse and state.first is not None:  # better on the sample only
            state = replace(state, theta=state.first)
            sums = self._objective(state.theta, 2)
        return replace(state, sums=sums, iteration=0)

    def _finalize(self, state: FitState, summary: DataSummary) -> tuple[Outcome, DataSummary]:
        """Phase 3."""
        self._emit(PhaseStarted(3, "denormalization_covariance"))
        source = self._source
        if self._objective.revision > 0:  # moments of y under the weights that the fit ended with
            summary = summarize(source, self._problem.model.x, check=False)
        assert state.sums is not None
        if state.sums.order < 2 and len(state.theta) <= _DENSE:
            state = replace(state, sums=self._objective(state.theta, 2))
        penalty = penalty_of(self._options, source.n_rows)
        added = 0.0 if penalty is None else penalty(state.theta).sse
        outcome = finalize(state, summary.n_residuals, self._problem.absolute_sigma, added)
        weak = outcome.covariance.undetermined
        self._done(3, "denormalization_covariance", state, {
            "condition": outcome.covariance.condition,
            "undetermined": tuple(
                n for n, u in zip(self._problem.model.params, weak, strict=True) if u
            ),
        }, "done")
        return outcome, summary

    def _drive(
        self, number: int, phase: Phase[FitState], state: FitState, *, resumed: bool = False
    ) -> FitState:
        """Run an iterative phase, keeping its states in view and in checkpoints."""
        self.record.state = state
        self._emit(FirstPassStarted(self._source.n_chunks, self._source.n_rows))

        def keep(latest: FitState) -> None:
            self.record.state = latest
            if self._writer is not None:
                self._writer(number, latest)

        try:
            end = run(phase, state, self._objective, self._emit, save=keep, resumed=resumed)
        finally:
            if self._writer is not None:
                self._writer.flush()
        self.record.state = end
        return end

    def _extra(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        return {"passes": self._objective.passes, "history": self.record.history.entries[1:]}

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)

    def _done(
        self, number: int, name: str, state: FitState, found: dict[str, Any], reason: str = ""
    ) -> None:
        reason = reason or (state.stop.value if state.stop is not None else "")
        steps = state.iteration if number in (1, 2) else 0
        self._emit(PhaseDone(number, name, reason, steps, found))

    def _result(self, outcome: Outcome, summary: DataSummary) -> FitResult:
        failed = None if self._writer is None else self._writer.failure
        return result_of(
            self._problem,
            self._source,
            outcome,
            summary,
            self._objective,
            (self.record.history, self._telemetry, self._backend.name),
            [f"the last checkpoint was not written: {failed}"] if failed else [],
        )


def _warmup_found(state: FitState, unit: float) -> dict[str, Any]:
    w = state.warmup
    if w is None:
        return {}
    return {
        "relative_loss": w.relative_loss,
        "mode": w.mode,
        "loss": w.best.loss * unit,
        "clips": w.clips,
        "line_search_failures": w.failures,
    }
