"""A fit that nobody watches: its phases in native code, and nothing around them but the result.

Few rows in memory are summed there too; of more, or of rows elsewhere, native code asks for a pass.
`Fit` runs the same phases behind observers, checkpoints and every option, and takes what native code
gives up. What is told about a fit (history, telemetry) is put together here when it is first asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import layout as at
from nlsq_nb.codegen.ir import OpaqueProgram
from nlsq_nb.compiled import LEFT_OUT, advance, are_plain
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.chunk import Resident
from nlsq_nb.core.layout import RESIDENT_ROWS
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.drawn import sample_of, sample_size, thinned
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.engines.spread import SpreadEngine, engine_over
from nlsq_nb.events import Event, PhaseDone, PhaseStarted, SecondOpinionFollowed
from nlsq_nb.findings import NOT_WARMED, covariance_found, newton_found, setup_found, warmup_found
from nlsq_nb.in_native import NativePhases, NativePlan, Ran, plan_of
from nlsq_nb.objective import DataObjective
from nlsq_nb.observe.history import NAMES, PhaseHistory
from nlsq_nb.observe.recording import TelemetryObserver
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry, get_defense_telemetry
from nlsq_nb.opinion import look_at, second_opinion
from nlsq_nb.outcome import Observed, diagnostics, followed, result_of, warn_of
from nlsq_nb.outset import first_look, first_state, retrying
from nlsq_nb.phases.finalize import Outcome
from nlsq_nb.phases.refine import Ending, conclude
from nlsq_nb.phases.setup import better
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.trial import sums_of
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Source
from nlsq_nb.result import FitResult
from nlsq_nb.retold import MODES, counted
from nlsq_nb.scan import DataSummary
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.whole import WholePasses

__all__ = ["DirectFit", "fit_directly", "stamp"]

Floats = NDArray[np.float64]


def fit_directly(
    problem: Problem, options: Groups, backend: Backend, *, warms_up: bool = True
) -> FitResult | None:
    """Fit in native code, if it is all plain.

    Parameters
    ----------
    problem : Problem
        What is fitted.
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    warms_up : bool
        Whether phase 1 runs.

    Returns
    -------
    FitResult or None
        None where the fit is for `Fit`: something watches it, the loss is robust, there are many
        parameters, the warm-up gave up, rows could not be read, or the fit ended above its start.

    Raises
    ------
    DataError
        For data or a start that cannot be fitted.
    """
    plan = plan_of(options)
    if backend.name != "cpu" or plan is None or not _is_plain(problem, options, warms_up):
        return None
    source = retrying(problem.source, options)
    given = (problem.p0, problem.bounds, problem.absolute_sigma)
    with np.errstate(all="ignore"), backend.in_use():
        fit = DirectFit(plan, Problem(problem.model, source, *given), backend, warms_up=warms_up)
        outcome = None if source.revision else fit.run()
    return None if outcome is None else fit.result(outcome, depth=5)


def _is_plain(problem: Problem, options: Groups, warms_up: bool) -> bool:
    """Whether native code takes the model and its parameters, and the sample is small."""
    if problem.loss.is_robust or problem.whitening is not None or isinstance(problem.model.program, OpaqueProgram):
        return False
    if not are_plain(*problem.bounds):
        return False
    return not warms_up or not problem.source.n_rows > sample_size(problem, options) > RESIDENT_ROWS


class _Changed(Exception):
    """Rows that were read before could not be read."""


class DirectFit:
    """One fit: its data and what happened.

    Parameters
    ----------
    plan : NativePlan
        Its phases.
    problem : Problem
        What is fitted, with a source that deals with faults.
    backend : Backend
        Where sums are computed.
    summary : DataSummary, optional
        Counts and moments of the data, where they are known.
    ran : Ran, optional
        What phases 1 and 2 have done, where they ran elsewhere.
    warms_up : bool
        Whether phase 1 runs.

    Attributes
    ----------
    summary : DataSummary
        Counts and moments of the data.
    state : FitState
        At p0.
    stamps : list of (float, float)
        When the phases began and the fit ended: seconds since the epoch, and of a clock that is steady.
    """

    def __init__(
        self,
        plan: NativePlan,
        problem: Problem,
        backend: Backend,
        summary: DataSummary | None = None,
        ran: Ran | None = None,
        *,
        warms_up: bool = True,
    ) -> None:
        self.stamps = [stamp()]
        self.problem, self._plan, self._backend, self._warms_up = problem, plan, backend, warms_up
        assert isinstance(problem.source, RetryingSource)
        self._source = problem.source
        self._part = sample_of(problem, plan.options) if warms_up else self._source
        first = None  # sums at p0, where the first reading of the rows serves for these too
        if summary is None:
            summary, first = first_look(problem, plan.options, backend, self._part)
        self.summary, self._first = summary, first
        self.state = first_state(problem, plan.options, self.summary)
        self._opinion: list[Event] = []
        self._counted: dict[bool, DataObjective] = {}
        self._phases = ran or Ran()

    def run(self) -> Outcome | None:
        """All phases; None to begin anew in `Fit`."""
        source, warms_up = self._source, self._warms_up
        if self._first is not None:
            self.state = self.state.having(sums=self._first)
        self.stamps.append(stamp())
        try:
            with WholePasses(self._one_pass, len(self.state.theta), source.n_rows) as whole:
                if self._first is not None:
                    whole.see(self.state.theta, self._first)
                end = self._iterated(whole)
        except _Changed:
            return None
        if end is None:
            return None
        self.stamps.append(stamp())
        outcome = self._concluded(end)
        if source.revision:
            return None
        self._let_go(whole.count if end.stop is StopReason.INTERRUPTED else 0)
        if warms_up:
            sink = TelemetryObserver(get_defense_telemetry())
            for event in self._events():
                sink(event)
        return outcome

    def _iterated(self, whole: WholePasses) -> FitState | None:
        """Phases 1 and 2; as far as they came where the user stopped them, None to begin anew in `Fit`."""
        plan, source, part, warms_up = self._plan, self._source, self._part, self._warms_up
        smaller = () if part is source else (thinned(part, plan.options, len(self.state.theta)), part)
        rows = self._engine.resident() or whole.resident
        objective = self._objective(source)
        phases = NativePhases(plan, self.state, self.summary, objective, rows, tuple(map(self._engine_over, smaller)))
        self._phases = phases
        try:
            if warms_up and not phases.warm():
                return self._left_by(phases, whole, rows)
            self.stamps.append(stamp())
            end = phases.converge()
        except KeyboardInterrupt as stopped:
            whole.failure = stopped
            end = None
        if end is None or end.sums is None or not end.sums.sse <= end.first_sse:
            return self._left_by(phases, whole, rows)
        return self._seconded(end, whole, rows)

    def stopped(self, whole: WholePasses) -> FitResult:
        """The result of a fit that the user has stopped after its first pass."""
        end = self._best_of(whole)
        self.stamps.append(stamp())
        outcome = self._concluded(end)
        self._let_go(whole.count)
        return self.result(outcome, depth=8)

    def _let_go(self, done: int = 0) -> None:
        """The end: results are kept by the thousand, so the sample and the arrays of the phases go.

        Of native code that was stopped only the passes that were `done` count, not the last, which was begun.
        """
        self.stamps.append(stamp())
        ran, counted = self._phases, self._counted.values()
        passes = (done or ran.passes + (self._first is not None)) + sum(each.passes for each in counted)
        sampled = ran.sample_passes + sum(each.sample_passes for each in counted)
        self._phases = Ran(passes, sampled, ran.warmup, ran.found, ran.marks)
        self._counted, self._part, self._first = {}, self._source, None

    def result(self, outcome: Outcome, depth: int) -> FitResult:
        """What the user gets; `depth` calls up is who is warned."""
        source, options = self._source, self._plan.options
        warn_of(self.problem.model, outcome, depth=depth)
        observed = Observed(self.passes, self.steps_to(outcome), self._backend, lambda: self.diagnose(outcome))
        return result_of(self.problem, source, options, outcome, self.summary, observed, self.notes())

    def _left_by(self, phases: NativePhases, whole: WholePasses, rows: Resident) -> FitState | None:
        """What there is where native code gave up."""
        if whole.failure is None and not (rows is whole.resident and phases.is_broken):
            return None
        failure = whole.lost()
        if whole.best is None and rows.n_rows > RESIDENT_ROWS and (known := phases.found_so_far()) is not None:
            whole.see(*known, phases.passes)
        if whole.best is None or not isinstance(failure, KeyboardInterrupt):
            raise failure
        return self._best_of(whole)

    def _best_of(self, whole: WholePasses) -> FitState:
        """The best point so far."""
        self.stamps += [stamp()] * (3 - len(self.stamps))  # in phase 1
        assert whole.best is not None
        theta, sums, first = *whole.best, whole.first
        return self.state.having(theta=theta, sums=sums, first_sse=first, stop=StopReason.INTERRUPTED)

    def _one_pass(self, theta: Floats) -> NormalSums:
        """Over all rows, for native code."""
        sums = self._engine.run(theta, 2)
        if self._source.revision:  # some could not be read: what was known of the data is of others
            raise _Changed
        return sums

    def _seconded(self, end: FitState, whole: WholePasses, rows: Resident) -> FitState:
        """The answer, or where a second opinion led; as `Fit` has it."""
        options, part, stands, given = self._plan.options, self._part, False, (self.summary.spread, self._warms_up)
        try:
            while not stands and (look := look_at(self.problem, options, end, part, *given)) is not None:
                objective, tell = self._objective(part), self._opinion.append
                start = second_opinion(self.problem, options, self._backend, end, objective, look, tell)
                if start is None:
                    break
                found = advance(self._plan.newton, start, self._objective(self._source), tell=False, rows=rows)
                if whole.failure is not None or (found is None and rows is whole.resident):
                    raise whole.lost()
                if found is None:
                    break
                before, end = sums_of(end).sse, better(end, found[0])
                after, theta = sums_of(end).sse, tuple(end.theta.tolist())
                self._opinion.append(SecondOpinionFollowed(before, after, theta))
                stands = after == before
        except KeyboardInterrupt:
            end = replace(end, stop=StopReason.INTERRUPTED)
        return end

    def _objective(self, part: Source) -> DataObjective:
        """Over all rows, with a sample unless `part` is all of them; the same at every call."""
        source, p, weight = self._source, len(self.state.theta), self.summary.weight
        known = self._counted.get(part is not source)
        if known is None:
            sample = None if part is source else lambda: DataObjective(self._engine_over(part), p, lambda _: None)
            known = DataObjective(self._engine_over(source), p, lambda _: None, weight=weight, sample=sample)
            self._counted[part is not source] = known
        return known

    def _concluded(self, end: FitState) -> Outcome:
        """Phase 3."""
        options = self._plan.options
        known = (self.summary.n_residuals, self.problem.absolute_sigma)
        ending = Ending(*known, options.checks.covariance_method, options.gauss_newton.tol)
        return conclude(end, lambda: self._objective(self._source), ending)

    @property
    def passes(self) -> int:
        """Over all rows."""
        return self._phases.passes

    def steps_to(self, outcome: Outcome) -> int:
        """Of phases 1 and 2."""
        found = self._phases.found
        return outcome.state.iteration + (int(found[at.STEPS]) if found else 0)

    def notes(self) -> tuple[str, ...]:
        """What a second opinion changed."""
        if not self._opinion:
            return ()
        history = PhaseHistory()
        for event in self._opinion:
            history(event)
        return followed(history)

    @cached_property
    def _engine(self) -> LocalEngine | SpreadEngine:
        """Over all rows."""
        return engine_over(self._backend, self.problem.model.program, self._source)

    def _engine_over(self, source: Source) -> LocalEngine | SpreadEngine:
        if source is self._source:
            return self._engine
        return engine_over(self._backend, self.problem.model.program, source)

    # -- what is told --------------------------------------------------------------------------
    def _events(self) -> Iterator[Event]:
        """What happened in phase 1."""
        ran = self._phases
        if ran.warmup is not None:
            yield from counted(self._plan.warmup, ran.warmup, ran.found, ran.marks)

    def diagnose(self, outcome: Outcome) -> dict[str, Any]:
        """`streaming_diagnostics`."""
        telemetry, history = DefenseLayerTelemetry(), PhaseHistory()
        passes = (self.passes, self._phases.sample_passes)
        sink, phase = TelemetryObserver(telemetry), 1
        for done in self._done(outcome):
            history(PhaseStarted(done.number, done.name))
            if done.number == phase:
                for event in self._events():
                    sink(event)
                    history(event)
            for event in self._opinion if done.number == phase + 1 else ():
                history(event)
            (started, begin), (ended, end) = self.stamps[done.number : done.number + 2]
            history.add(done, started, end - begin, ended)
        known = telemetry.to_dict()
        dated = [event | {"timestamp": self.stamps[2][0]} for event in known["events"]]
        telemetry.restore(known | {"events": dated})
        seconds = self.stamps[-1][1] - self.stamps[0][1]
        return diagnostics(history, telemetry, outcome, passes, self._backend.name, seconds)

    def _done(self, outcome: Outcome) -> Iterator[PhaseDone]:
        """What became of the phases."""
        model, end = self.problem.model, outcome.state
        assert end.stop is not None
        yield PhaseDone(0, NAMES[0], "", 0, setup_found(model, self.summary, self.state))
        warmup, f = self._phases.warmup, self._phases.found
        if warmup is None:
            stopped = end.stop is StopReason.INTERRUPTED and self._warms_up
            yield PhaseDone(1, NAMES[1], end.stop.value if stopped else NOT_WARMED, 0, {})
        else:
            left_out = warmup in LEFT_OUT
            counts = (int(f[at.CLIPS]), int(f[at.FAILURES]))
            loss = f[at.LEAST] * self._plan.unit_of(self.summary)
            found = warmup_found(f[at.RELATIVE], MODES[int(f[at.MODE])], loss, *counts)
            yield PhaseDone(1, NAMES[1], warmup.value, int(f[at.STEPS]), {} if left_out else found)
        yield PhaseDone(2, NAMES[2], end.stop.value, end.iteration, newton_found(end))
        yield PhaseDone(3, NAMES[3], "done", 0, covariance_found(model, outcome))


def stamp() -> tuple[float, float]:
    """Now.

    Returns
    -------
    float
        Seconds since the epoch.
    float
        Seconds of a clock that is steady.
    """
    return time.time(), time.perf_counter()
