"""A small fit that nobody watches: its phases in native code, and nothing around them but the result.

`Fit` runs the same phases behind observers, checkpoints and every option, and takes what native code
gives up. What is told about a fit (history, telemetry) is put together here when it is first asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nlsq_nb.backends.small import layout as at
from nlsq_nb.codegen.ir import OpaqueProgram
from nlsq_nb.compiled import LEFT_OUT, advance, finish, is_eligible, is_plain, warmup_asked, warmup_settings
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.chunk import Resident
from nlsq_nb.drawn import sample_of
from nlsq_nb.engines.local import RESIDENT_ROWS, LocalEngine
from nlsq_nb.events import Event, PhaseDone, PhaseStarted, SecondOpinionFollowed
from nlsq_nb.findings import NOT_WARMED, covariance_found, newton_found, setup_found, warmup_found
from nlsq_nb.native_run import NativeRun
from nlsq_nb.objective import DataObjective
from nlsq_nb.observe.history import NAMES, PhaseHistory
from nlsq_nb.observe.recording import TelemetryObserver
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry, get_defense_telemetry
from nlsq_nb.opinion import look_at, second_opinion
from nlsq_nb.outcome import Observed, diagnostics, followed, result_of, warn_of
from nlsq_nb.outset import first_state, retrying
from nlsq_nb.phases.finalize import Outcome
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.refine import Ending, conclude
from nlsq_nb.phases.setup import better
from nlsq_nb.phases.state import FitState, StopReason, WarmupStop
from nlsq_nb.phases.trial import sums_of
from nlsq_nb.phases.warmup import Warmup
from nlsq_nb.plan import newton_phase, warmup_phase
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Source
from nlsq_nb.result import FitResult
from nlsq_nb.retold import MODES, counted
from nlsq_nb.scan import DataSummary, summarize

__all__ = ["fit_directly"]

_KNOWN = 64  # options whose phases are kept


@dataclass(frozen=True, slots=True)
class _Plan:
    """The phases that some options ask for.

    Attributes
    ----------
    options : Groups
        Themselves: a plan belongs to one object.
    newton : GaussNewton
        Phase 2.
    warmup : Warmup
        Phase 1, but for what the data say.
    asked : tuple of int
        What native code is asked for.
    settings : tuple of float
        What it is told beside what the data say.
    """

    options: Groups
    newton: GaussNewton
    warmup: Warmup
    asked: tuple[int, ...]
    settings: tuple[float, ...]

    def told(self, summary: DataSummary, unit: float) -> tuple[float, ...]:
        """All settings, for rows with these moments."""
        rows = (summary.signal, np.inf, summary.weight, unit, summary.spread / summary.weight)
        return (self.newton.tol, self.newton.initial_radius, *rows, *self.settings)


_plans: dict[int, tuple[Groups, _Plan | None]] = {}


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
        None where the fit is for `Fit`: something watches it, the loss is robust, there are many rows or
        parameters, the warm-up gave up, or the fit ended above its start.

    Raises
    ------
    DataError
        For data or a start that cannot be fitted.
    """
    plan = _plan_of(options)
    beyond = problem.loss.is_robust or problem.whitening is not None
    if backend.name != "cpu" or plan is None or beyond:
        return None
    if isinstance(problem.model.program, OpaqueProgram):
        return None
    source = retrying(problem.source, options)
    if source.n_rows > RESIDENT_ROWS:
        return None
    given = (problem.p0, problem.bounds, problem.absolute_sigma)
    with np.errstate(all="ignore"):
        fit = _DirectFit(plan, Problem(problem.model, source, *given), backend)
        outcome = fit.run(warms_up)
    if outcome is None:
        return None
    warn_of(problem.model, outcome, depth=4)
    steps = int(outcome.state.iteration + (fit.found[at.STEPS] if fit.found else 0.0))
    observed = Observed(fit.passes, steps, backend, lambda: fit.diagnose(outcome))
    return result_of(fit.problem, source, options, outcome, fit.summary, observed, fit.notes())


class _DirectFit:
    """One fit: its data and what happened.

    Parameters
    ----------
    plan : _Plan
        Its phases.
    problem : Problem
        What is fitted, with a source that deals with faults.
    backend : Backend
        Where sums are computed.

    Attributes
    ----------
    summary : DataSummary
        Counts and moments of the data.
    passes, sample_passes : int
        Over all rows, and over the sample.
    warmup : WarmupStop or None
        How phase 1 ended; None where it was left out.
    found : list of float
        What it found.
    marks : ndarray, shape (steps, 2)
        What happened in its steps; see `counted`.
    stamps : list of (float, float)
        When the phases began and the fit ended: seconds since the epoch, and of a clock that is steady.
    """

    def __init__(self, plan: _Plan, problem: Problem, backend: Backend) -> None:
        self.stamps = [_now()]
        self.problem, self._plan, self._backend = problem, plan, backend
        model, source = problem.model, problem.source
        self.summary = summarize(source, model.x, plan.options.data.validate, backend)
        self._state = first_state(problem, plan.options, self.summary)
        self.passes = self.sample_passes = 0
        self.warmup: WarmupStop | None = None
        self.found: list[float] = []
        self.marks = np.zeros((0, 2))
        self._opinion: list[Event] = []

    def run(self, warms_up: bool) -> Outcome | None:
        """All phases; None to begin anew in `Fit`."""
        plan, state = self._plan, self._state
        if not is_eligible(plan.newton, state):
            return None
        source = self.problem.source
        part = sample_of(self.problem, plan.options) if warms_up else source
        # what a sample leads to is judged on all rows by `Warmup.check`
        if part is not source and False in state.separable.tolist() and plan.warmup.switching.limit:
            return None
        engine = self._engine_over(source)
        rows = engine.resident()
        if rows is None:
            return None
        self.stamps.append(_now())
        end = self._on_all(rows, warms_up)
        if end is None or end.sums is None or not end.sums.sse <= end.first_sse:
            return None
        if warms_up or plan.options.checks.second_opinion is True:
            end = self._seconded(end, part)
        self.stamps.append(_now())
        outcome = self._concluded(end)
        self.stamps.append(_now())
        if warms_up:
            sink = TelemetryObserver(get_defense_telemetry())
            for event in self._events():
                sink(event)
        return outcome

    def _seconded(self, end: FitState, part: Source) -> FitState:
        """The answer, or where a second opinion led; as `Fit` has it."""
        source, p, weight = self.problem.source, len(end.theta), self.summary.weight
        few = None if part is source else lambda: DataObjective(self._engine_over(part), p, lambda _: None)
        whole = DataObjective(self._engine_over(source), p, lambda _: None, weight=weight, sample=few)
        rows = whole if few is None else DataObjective(self._engine_over(source), p, lambda _: None, weight=weight)
        options, stands = self._plan.options, False
        try:
            while not stands and (look := look_at(self.problem, options, end, part, self.summary.spread)) is not None:
                start = second_opinion(self.problem, options, self._backend, end, whole, look, self._opinion.append)
                found = None if start is None else advance(self._plan.newton, start, rows, tell=False)
                if found is None:
                    break
                before, end = sums_of(end).sse, better(end, found[0])
                after, theta = sums_of(end).sse, tuple(end.theta.tolist())
                self._opinion.append(SecondOpinionFollowed(before, after, theta))
                stands = after == before
        except KeyboardInterrupt:
            end = replace(end, stop=StopReason.INTERRUPTED)
        self.passes += whole.passes if rows is whole else whole.passes + rows.passes
        self.sample_passes += whole.sample_passes
        return end

    def notes(self) -> tuple[str, ...]:
        """What a second opinion changed."""
        if not self._opinion:
            return ()
        history = PhaseHistory()
        for event in self._opinion:
            history(event)
        return followed(history)

    def _concluded(self, end: FitState) -> Outcome:
        """Phase 3."""
        options, weight = self._plan.options, self.summary.weight
        objective = DataObjective(self._engine_over(self.problem.source), len(end.theta), lambda _: None, weight=weight)
        method, tol = options.checks.covariance_method, options.gauss_newton.tol
        ending = Ending(self.summary.n_residuals, self.problem.absolute_sigma, method, tol)
        outcome = conclude(end, lambda: objective, ending)
        self.passes += objective.passes
        return outcome

    # -- phases 1 and 2 ------------------------------------------------------------------------
    def _on_all(self, rows: Resident, warms_up: bool) -> FitState | None:
        """Both phases on all rows."""
        plan, state = self._plan, self._state
        settings = plan.told(self.summary, self._unit)
        if not warms_up:
            run = NativeRun(state, rows, settings, (0, plan.newton.max_iterations))
            self.stamps.append(_now())
            run.go(at.GAUSS_NEWTON)
            return self._ended(run, rows)
        run = NativeRun(state, rows, settings, plan.asked, plan.warmup.memory)
        if not self._warmed(run):
            return None
        self.passes = int(self.found[at.PASSES])
        self.stamps.append(_now())
        run.go_on(plan.newton.max_iterations)
        return self._ended(run, rows, self.found[at.FIRST_SSE])

    def _warmed(self, run: NativeRun) -> bool:
        """Phase 1, as far as it is asked for; False where it gave up."""
        run.go(at.LBFGS)
        self.warmup, self.found = run.warmup_stop, run.found
        if self.warmup is None:
            return False
        self.marks = run.log(int(self.found[at.TOLD]))[:, 4:6].copy()
        return True

    def _by_turns(self, run: NativeRun, rows: Resident, first: float) -> FitState | None:
        """The same where native code leaves trials to Python."""
        point, p = run.point(run.shape.one), len(self._state.theta)  # where phase 1 ended, if no trial was made since
        begun = replace(self._state, theta=point.theta, sums=point.sums, first_sse=first)
        objective = DataObjective(self._engine_over(self.problem.source), p, lambda _: None)
        found = finish(self._plan.newton, run, begun, rows, objective, tell=False)
        self.passes += objective.passes
        return None if found is None else found[0]

    def _ended(self, run: NativeRun, rows: Resident, first: float | None = None) -> FitState | None:
        """The state in which phase 2 leaves the fit; None where it gave up."""
        stop, found, begun = run.newton_stop, run.found, self._state
        if stop is None:
            return None if first is None else self._by_turns(run, rows, first)
        self.passes += int(found[at.PASSES])
        end, scale = run.point(run.shape.one), run.shape.scale
        return FitState(
            theta=end.theta,
            normalizer=begun.normalizer,
            lower=begun.lower,
            upper=begun.upper,
            free=begun.free,
            separable=begun.separable,
            linear=begun.separable,
            signal=found[at.SIGNAL],
            sums=end.sums,
            relaxed=found[at.RELAXED],
            scale=run.w[scale : scale + len(end.theta)].copy(),
            radius=found[at.RADIUS],
            iteration=int(found[at.STEPS]),
            offset=found[at.OFFSET],
            stop=stop,
            first=begun.first,
            first_sse=found[at.FIRST_SSE] if first is None else first,
        )

    def _engine_over(self, source: Source) -> LocalEngine:
        kernel = self._backend.compile(self.problem.model.program, self.problem.source.dtype)
        return LocalEngine(self._backend, kernel, source)

    @property
    def _unit(self) -> float:
        return (self.summary.spread or self.summary.signal) / self.summary.weight or 1.0

    # -- what is told --------------------------------------------------------------------------
    def _events(self) -> Iterator[Event]:
        """What happened in phase 1."""
        if self.warmup is not None:
            yield from counted(self._plan.warmup, self.warmup, self.found, self.marks)

    def diagnose(self, outcome: Outcome) -> dict[str, Any]:
        """`streaming_diagnostics`."""
        telemetry, history = DefenseLayerTelemetry(), PhaseHistory()
        passes = (self.passes, self.sample_passes)
        sink, phase = TelemetryObserver(telemetry), 1
        for done in self._phases(outcome):
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

    def _phases(self, outcome: Outcome) -> Iterator[PhaseDone]:
        """What became of the phases."""
        model, end = self.problem.model, outcome.state
        assert end.stop is not None
        yield PhaseDone(0, NAMES[0], "", 0, setup_found(model, self.summary, self._state))
        if self.warmup is None:
            yield PhaseDone(1, NAMES[1], NOT_WARMED, 0, {})
        else:
            f, left_out = self.found, self.warmup in LEFT_OUT
            counts = (int(f[at.CLIPS]), int(f[at.FAILURES]))
            found = warmup_found(f[at.RELATIVE], MODES[int(f[at.MODE])], f[at.LEAST] * self._unit, *counts)
            yield PhaseDone(1, NAMES[1], self.warmup.value, int(f[at.STEPS]), {} if left_out else found)
        yield PhaseDone(2, NAMES[2], end.stop.value, end.iteration, newton_found(end))
        yield PhaseDone(3, NAMES[3], "done", 0, covariance_found(model, outcome))


def _now() -> tuple[float, float]:
    return time.time(), time.perf_counter()


def _plan_of(options: Groups) -> _Plan | None:
    """The phases that some options ask for; None where they ask for more than is done here."""
    known = _plans.get(id(options))
    if known is None or known[0] is not options:
        if len(_plans) >= _KNOWN:
            _plans.clear()
        known = _plans[id(options)] = (options, _planned(options))
    return known[1]


def _planned(options: Groups) -> _Plan | None:
    checkpoint = options.checkpoint
    more = options.report.verbose or options.multistart.enabled or options.penalty.group_variance
    kept = checkpoint.resume is not None or (checkpoint.enabled and checkpoint.folder is not None)
    if more or kept or options.weights.weighted:
        return None
    newton = newton_phase(options, 1)
    warmup = warmup_phase(options, DataSummary(1, 1, 1.0, 1.0, 1.0), 1)
    if not isinstance(newton, GaussNewton) or not is_plain(warmup):
        return None
    return _Plan(options, newton, warmup, warmup_asked(warmup), warmup_settings(warmup, 0.0, np.inf, 1.0)[7:])
