"""`Fit`: source, backend and phases wired into one fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.errors import StopFit, UnsupportedOption
from nlsq_nb.events import Event, FirstPassStarted, PassProgress, PhaseDone, PhaseStarted, SecondOpinionFollowed
from nlsq_nb.findings import NOT_WARMED, covariance_found, newton_found, setup_found, warmup_found
from nlsq_nb.multistart import best_start
from nlsq_nb.objective import DataObjective
from nlsq_nb.observe.callback import CallbackObserver
from nlsq_nb.observe.checkpoint import CheckpointWriter
from nlsq_nb.observe.history import NAMES
from nlsq_nb.observe.progress import ProgressLog
from nlsq_nb.observe.recording import TelemetryObserver
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry, get_defense_telemetry
from nlsq_nb.opinion import look_at, second_opinion
from nlsq_nb.outcome import Observed, diagnostics, followed, result_of, warn_of
from nlsq_nb.outset import first_state, retrying
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.finalize import Outcome, finalize_robust
from nlsq_nb.phases.graduated import scatter_of, under_the_loss
from nlsq_nb.phases.refine import Ending, conclude
from nlsq_nb.phases.setup import better, restart
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.plan import objective_over, penalty_of, robust_phase, warmup_phase
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Observer, Phase
from nlsq_nb.record import FitRecord
from nlsq_nb.result import FitResult
from nlsq_nb.resuming import WatchedPhase, belonging_of, beside, resume, writer_for
from nlsq_nb.sampled import advance_on_sample
from nlsq_nb.scan import DataSummary, require_rowwise, summarize, whitened
from nlsq_nb.stages import advance_stages

__all__ = ["Fit"]

_DENSE = 5000  # parameters up to which a covariance, and the pass for it, are affordable


@dataclass(frozen=True, slots=True)
class _Means:
    """What phases 1 to 3 work with, once phase 0 has seen the data.

    Attributes
    ----------
    objective : DataObjective
        Over all rows.
    summary : DataSummary
        Counts and moments of the data.
    writer : CheckpointWriter or None
        Keeps checkpoints; None without a folder.
    at : int
        The phase that a resumed fit goes on in; 0 for any other.
    """

    objective: DataObjective
    summary: DataSummary
    writer: CheckpointWriter | None
    at: int


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
        report = options.report
        source = retrying(problem.source, options)  # every reader shares what had to be left out
        self._options, self._backend = options, backend
        self._problem, self._source = replace(problem, source=source), source
        self._warms_up = warms_up
        wanted, loss = options.checks.second_opinion, problem.loss
        if wanted is True and loss.is_robust:
            raise UnsupportedOption(f"second_opinion=True compares sums of squares: not with loss={loss.kind!r}")
        self.record = FitRecord(problem.model)
        self._telemetry = DefenseLayerTelemetry()
        self._observers: list[Observer] = [
            self.record.history,
            TelemetryObserver(self._telemetry, get_defense_telemetry()),
            ProgressLog(report.log_every, report.verbose),
        ]
        self._is_watched = callback is not None
        if callback is not None:
            self._observers.append(CallbackObserver(callback, report.callback_every))

    def run(self, *, stopped: bool = False, warns: bool = True) -> FitResult:
        """Run the phases.

        Parameters
        ----------
        stopped : bool
            Whether the user has ended the fit already: its start is the result.
        warns : bool
            Whether what is wrong with the result is also a warning.

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
        with np.errstate(all="ignore"), closing(self._source), self._telling():
            belonging = belonging_of(self._problem, self._options)
            resumed = resume(self._options, belonging)
            writer = writer_for(self._options, belonging)
            summary, state = self._prepare()
            objective = objective_over(self._problem, self._options, self._backend, summary.weight)
            if resumed is not None:
                state, objective.passes = resumed.state, resumed.passes
                self.record.history.entries += resumed.history.entries
                self.record.history.multistart = resumed.history.multistart
                self.record.history.opinions += resumed.history.opinions
                self._telemetry.restore(resumed.telemetry.to_dict())
            elif self._options.multistart.enabled:
                self.record.see(state)
                given = (self._problem, self._options, self._backend, state, objective)
                state = best_start(*given, self._emit, self.record.see)
            if stopped:
                state = replace(state, stop=StopReason.INTERRUPTED)
            at = 0 if resumed is None else resumed.phase
            means = _Means(objective, summary, writer, at)
            state = self._newton(self._warm(state, means), means)
            outcome, summary = self._finalize(state, means)
        if warns:
            warn_of(self._problem.model, outcome, depth=4)
        return self._result(outcome, summary, means)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Have long passes told how far they are, as long as this is entered: results keep the source."""
        self._source.on_progress = lambda done, total, seconds: self._emit(PassProgress(done, total, seconds))
        try:
            yield
        finally:
            self._source.on_progress = None

    # -- the phases --------------------------------------------------------------------------
    def _prepare(self) -> tuple[DataSummary, FitState]:
        """Phase 0."""
        model, source = self._problem.model, self._source
        self._emit(PhaseStarted(0, NAMES[0]))
        summary = summarize(source, model.x, self._options.data.validate, self._backend)
        if self._problem.whitening is not None:
            summary = whitened(summary, source, self._problem.whitening)
        state = first_state(self._problem, self._options, summary)
        require_rowwise(model.program, source, self._problem.p0)
        self._done(0, state, setup_found(model, summary, state))
        return summary, state

    def _warm(self, state: FitState, means: _Means) -> FitState:
        """Phase 1, or its empty record."""
        self._emit(PhaseStarted(1, NAMES[1]))
        if means.at > 1:  # a resumed fit knows what it found
            return state
        if means.at == 0 and state.stop is not None:
            self._done(1, state, {}, "left out: the fit was stopped before")
            return state
        if not self._warms_up:
            self._done(1, state, {}, NOT_WARMED)
            return state
        phase = warmup_phase(self._options, means.summary, self._problem.model.n_params)
        self.record.unit = phase.unit * means.summary.weight
        state = self._drive(1, phase, state, means, resumed=means.at == 1)
        self._done(1, state, _warmup_found(state, phase.unit))
        return state

    def _newton(self, state: FitState, means: _Means) -> FitState:
        """Phase 2; from p0 again where the warm-up's point led to something worse than p0."""
        self._emit(PhaseStarted(2, NAMES[2]))
        objective = means.objective
        if state.stop in (StopReason.CALLBACK, StopReason.INTERRUPTED):
            state = under_the_loss(_stopped(state, objective), objective, self._problem.loss)
        else:
            revision = objective.revision
            newton = robust_phase(self._options, self._problem.model.n_params, self._problem.loss)
            state = self._drive(2, newton, state, means, resumed=means.at == 2)
            if state.sums is None:  # interrupted before its first pass
                state = _stopped(state, objective)
            state = under_the_loss(state, objective, self._problem.loss)
            assert state.sums is not None
            assert state.first is not None
            worse = state.sums.sse > state.first_sse and revision == objective.revision
            if worse and state.before is None and not np.array_equal(state.theta, state.first):
                state = self._drive(2, newton, restart(state, state.first), means)
            state = self._seconded(newton, state, means)
        self.record.see(state)
        self._done(2, state, newton_found(state))
        return state

    def _seconded(self, newton: Phase[FitState], state: FitState, means: _Means) -> FitState:
        """Go where a second opinion finds something lower, and stay where all data bear it out."""
        objective = means.objective
        while True:
            if (before := state.before) is not None:
                if objective.revision > 0:  # the weights may be others now
                    before = replace(before, sums=objective(before.theta, 2))
                state = better(before, state)
                self.record.see(state)
                try:
                    self._emit(SecondOpinionFollowed(_sse(before), _sse(state), tuple(state.theta.tolist())))
                except StopFit:
                    return replace(state, stop=StopReason.CALLBACK)
                if _sse(state) == _sse(before):
                    return state
            try:
                start = self._elsewhere(state, means)
            except KeyboardInterrupt:
                return replace(state, stop=StopReason.INTERRUPTED)
            if start is None:
                return state
            state = self._drive(2, newton, start, means)

    def _elsewhere(self, state: FitState, means: _Means) -> FitState | None:
        """Where a second opinion, if one is called for, would rather go on."""
        objective, problem, options = means.objective, self._problem, self._options
        look = look_at(problem, options, state, objective.sample.source, means.summary.spread, self._warms_up)
        if look is None:
            return None
        return second_opinion(problem, options, self._backend, state, objective, look, self._emit)

    def _finalize(self, state: FitState, means: _Means) -> tuple[Outcome, DataSummary]:
        """Phase 3."""
        self._emit(PhaseStarted(3, NAMES[3]))
        source, objective, summary = self._source, means.objective, means.summary
        if objective.revision > 0:  # moments of y under the weights that the fit ended with
            summary = summarize(source, self._problem.model.x, check=False, backend=self._backend)
        assert state.sums is not None
        if state.sums.order < 2 and len(state.theta) <= _DENSE:
            state = replace(state, sums=objective.under(self._problem.loss)(state.theta, 2))
        if self._problem.loss.is_robust:
            outcome = self._robust(state, objective, summary)
        else:
            outcome = conclude(state, lambda: objective, self._ending(summary))
        self.record.see(outcome.state)
        found = covariance_found(self._problem.model, outcome)
        self._done(3, outcome.state, found, "done")
        return outcome, summary

    def _robust(self, state: FitState, objective: DataObjective, summary: DataSummary) -> Outcome:
        """The end of a fit under a robust loss."""
        penalty = penalty_of(self._options, self._source.n_rows)
        added = NormalSums.zero(len(state.theta), 2) if penalty is None else penalty(state.theta)
        try:
            scatter = scatter_of(state, objective, self._problem.loss, added)
        except KeyboardInterrupt:  # the best point is known, and this is what its errors take
            state = replace(state, stop=StopReason.INTERRUPTED)
            scatter = scatter_of(state, objective, self._problem.loss, added)
        return finalize_robust(state, summary.n_residuals, added.sse, scatter)

    def _ending(self, summary: DataSummary) -> Ending:
        """What phase 3 goes by."""
        checks, newton = self._options.checks, self._options.gauss_newton
        penalty = penalty_of(self._options, self._source.n_rows)
        absolute = self._problem.absolute_sigma
        return Ending(summary.n_residuals, absolute, checks.covariance_method, newton.tol, penalty)

    def _drive(
        self,
        number: int,
        phase: Phase[FitState],
        state: FitState,
        means: _Means,
        *,
        resumed: bool = False,
    ) -> FitState:
        """Run an iterative phase, keeping its states in view and in checkpoints."""
        objective, writer, watched = means.objective, means.writer, WatchedPhase(phase)
        self.record.see(state)
        self._emit(FirstPassStarted(self._source.n_chunks, self._source.n_rows))
        # who looks at every step, keeps it, or goes on from one, needs Python between the passes
        if writer is None and not self._is_watched and means.at == 0:
            go = advance_stages if objective.sample is objective else advance_on_sample
            try:
                ended = go(phase, state, objective, self._options.report.verbose > 0)
            except KeyboardInterrupt:  # native code ends first; where it began is what is known
                sums = state.sums or objective(state.theta, 2)
                ended = replace(state, sums=sums, stop=StopReason.INTERRUPTED), []
            if ended is not None:
                state, events = ended
                self.record.see(state)
                for event in events:
                    self._emit(event)
                if state.stop is not None:
                    return state

        kept: list[FitState] = []

        def keep(latest: FitState) -> None:
            kept[:] = [latest]
            self.record.see(latest)
            if writer is not None:
                known = (objective.passes, self.record.history, self._telemetry, watched.events)
                writer(number, latest, beside(*known))

        try:
            try:
                end = run(watched, state, objective, self._emit, save=keep, resumed=resumed)
            finally:
                if writer is not None:
                    writer.flush()
        except KeyboardInterrupt:  # before the phase has measured a point, or while a checkpoint was written
            end = replace(phase.best(kept[0]) if kept else state, stop=StopReason.INTERRUPTED)
        self.record.see(end)
        return end

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)

    def _done(self, number: int, state: FitState, found: dict[str, Any], reason: str = "") -> None:
        reason = reason or (state.stop.value if state.stop is not None else "")
        steps = state.iteration if number in (1, 2) else 0
        self._emit(PhaseDone(number, NAMES[number], reason, steps, found))

    def _result(self, outcome: Outcome, summary: DataSummary, means: _Means) -> FitResult:
        failed = None if means.writer is None else means.writer.failure
        history, objective, backend = self.record.history, means.objective, self._backend
        passes = (objective.passes, objective.sample_passes)
        known = diagnostics(history, self._telemetry, outcome, passes, backend.name, history.total_time)
        steps = sum(history.iterations.values())
        observed = Observed(objective.passes, steps, backend, lambda: known)
        notes = followed(history)
        if failed:
            notes += (f"the last checkpoint was not written: {failed}",)
        return result_of(self._problem, self._source, self._options, outcome, summary, observed, notes)


def _stopped(state: FitState, objective: DataObjective) -> FitState:
    """The best point of a fit that was stopped before phase 2, measured on all data."""
    sums = state.sums or objective(state.theta, 2)
    if sums.sse > state.first_sse and state.first is not None:  # better on the sample only
        state = replace(state, theta=state.first)
        sums = objective(state.theta, 2)
    return replace(state, sums=sums, iteration=0)


def _sse(state: FitState) -> float:
    assert state.sums is not None
    return state.sums.sse


def _warmup_found(state: FitState, unit: float) -> dict[str, Any]:
    w = state.warmup
    if w is None:
        return {}
    return warmup_found(w.relative_loss, w.mode, w.best.loss * unit, w.clips, w.failures)
