"""The iterative phases of a small fit, run in native code instead of step by step.

From the same state they end where `Warmup` and `GaussNewton` do, to rounding; what is not plain (a
bound in the way, a singular system, constant y) they leave to these. `backends.small` has the
native text; here a state becomes its arrays, and these become a state and events again.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import compiled_run
from nlsq_nb.backends.small import layout as at
from nlsq_nb.core.chunk import Resident
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.events import (
    CostGuardTripped,
    Event,
    HistoryFilled,
    LineSearchFailed,
    StepClipped,
    StepDone,
    StepModeChosen,
    StepsClipped,
    WarmStartDetected,
    WarmupStarted,
    WarmupStepDone,
)
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.state import FitState, StopReason, WarmupPoint, WarmupState, WarmupStop
from nlsq_nb.phases.warmup import Warmup
from nlsq_nb.protocols import Phase

__all__ = ["LARGEST", "advance", "is_eligible", "screen"]

LARGEST = 16
"""Parameters up to which native code is faster: it has no blocked algebra."""

_LONGEST = 10_000  # steps; the log has a line for each
_OFF = -1.0
Floats = NDArray[np.float64]
_UNUSED = (0.0,) * (at.FIRST_STEPS + 4 - at.WEIGHT + 1)  # settings of phase 1 alone
# by the numbers that the native text gives them; 0 is to give up
_NEWTON_STOPS = (
    None,
    StopReason.RELATIVE_OFFSET,
    StopReason.ROUNDING,
    StopReason.EXACT_FIT,
    StopReason.MAX_ITERATIONS,
    StopReason.STALLED,
)
_WARMUP_STOPS = (
    None,
    WarmupStop.WARM_START,
    WarmupStop.PLATEAU,
    WarmupStop.GRADIENT,
    WarmupStop.MAX_ITERATIONS,
    WarmupStop.COST_GUARD,
    WarmupStop.NO_STEP,
    WarmupStop.ROUNDING,
    WarmupStop.NOT_ASKED,
    WarmupStop.NOTHING_NONLINEAR,
)
_LEFT_OUT = (WarmupStop.WARM_START, WarmupStop.NOT_ASKED, WarmupStop.NOTHING_NONLINEAR)
_MODES = ("refinement", "careful", "exploration", "fixed")
_FILLED, _UNTOLD = 1.0, 4.0  # what happened in a step of the warm-up
_DIRECTIONS = {2.0: "steepest-descent", 3.0: "L-BFGS"}  # along which it found nothing

Found = tuple[FitState, list[Event], int]
"""The last state, what happened, and the passes."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of the native text.

    Attributes
    ----------
    shape : Layout
        Where everything is in `w`.
    w : ndarray
        The numbers of the call.
    n_rows : int
        Rows of the data.
    stop : int
        How the phase ended, 0 where it gave up.
    found : list of float
        What it found.
    """

    shape: at.Layout
    w: NDArray[np.float64]
    n_rows: int
    stop: int
    found: list[float]

    def point(self, place: int, loss: float = math.inf) -> WarmupPoint:
        """A record."""
        p, sums, size = self.shape.n_params, self.shape.sums, self.shape.n_sums
        part = self.w[place : place + sums + 2 * size].copy()
        return WarmupPoint(
            theta=part[:p],
            sums=NormalSums(self.n_rows, p, 2, part[sums : sums + size], part[sums + size :]),
            change=part[p : 2 * p],
            loss=loss,
            gradient=part[2 * p : 3 * p],
        )

    def log(self) -> NDArray[np.float64]:
        """The log, a row for every step."""
        width = at.WIDTH + self.shape.n_params
        begin, count = self.shape.log, int(self.found[at.TOLD])
        return self.w[begin : begin + count * width].reshape(count, width)


def advance(
    phase: Phase[FitState], state: FitState, objective: DataObjective, tell: bool
) -> tuple[FitState, list[Event]] | None:
    """Run a phase to its end.

    Parameters
    ----------
    phase : Phase
        `Warmup` or `GaussNewton`; others are left to themselves.
    state : FitState
        What the phase begins with.
    objective : DataObjective
        Its rows must be few and in memory; counts the passes.
    tell : bool
        Whether the events of every step are wanted, or only those that are counted.

    Returns
    -------
    tuple of (FitState, list of Event), or None
        The last state and what happened; None to go step by step.
    """
    if objective.sample is not objective or not is_eligible(phase, state):
        return None
    rows = objective.resident()
    if rows is None:
        return None
    if isinstance(phase, GaussNewton):
        found = _newton(phase, state, rows, tell)
    else:
        assert isinstance(phase, Warmup)
        found = _warmup(phase, state, rows, objective.weight, tell)
    if found is None:
        return None
    state, events, passes = found
    objective.passes += passes
    return state, events


def screen(state: FitState, objective: DataObjective, starts: Floats) -> Floats | None:
    """The sse of many starts, the linear parameters of each at their best.

    Parameters
    ----------
    state : FitState
        Of the fit, with the parameters to eliminate; its own point must be a good one.
    objective : DataObjective
        Its rows must be few and in memory; counts the passes.
    starts : ndarray, shape (n, p)
        Within the bounds.

    Returns
    -------
    ndarray, shape (n,), or None
        inf where the model is not finite; None where native code cannot tell.
    """
    rows = objective.resident() if _is_small(state) else None
    if rows is None:
        return None
    settings = (0.0, 0.0, state.signal, *_UNUSED)
    run = _run(at.SCREENING, state, rows, settings, (len(starts),), starts=starts)
    objective.passes += int(run.found[at.PASSES])
    return run.log()[:, 0].copy() if run.stop else None


def is_eligible(phase: Phase[FitState], state: FitState) -> bool:
    """Whether native code knows a phase and takes the parameters of a state.

    Parameters
    ----------
    phase : Phase
        Any.
    state : FitState
        What it begins with.

    Returns
    -------
    bool
        False for fixed parameters, for more than `LARGEST`, and for phases and line searches that
        exist step by step only.
    """
    if not _is_small(state):
        return False
    return isinstance(phase, GaussNewton) or (isinstance(phase, Warmup) and _is_plain(phase))


def _is_small(state: FitState) -> bool:
    return len(state.theta) <= LARGEST and False not in state.free.tolist()


def _is_plain(phase: Warmup) -> bool:
    usual = phase.line_search == "wolfe" and phase.order == 2
    return usual and phase.variance > 0.0 and phase.switching.ceiling <= _LONGEST


def _run(
    phase: int,
    state: FitState,
    rows: Resident,
    settings: tuple[float, ...],
    asked: tuple[int, ...],
    memory: int = 0,
    starts: Floats | None = None,
) -> _Run:
    """Fill the arrays and run a phase; `asked` begins with the lines of the log, where `starts` go."""
    shape = at.layout(state.separable.tobytes(), len(rows.columns), memory, asked[0])
    space = shape.space()
    w = np.frombuffer(space, np.float64, shape.size)
    task = np.frombuffer(space, np.int64, offset=w.nbytes)
    task[:] = shape.task
    first = state.theta if state.first is None else state.first
    box = (state.lower, state.upper, state.normalizer.scales, first, state.theta)
    np.concatenate((settings, *box), out=w[at.SETTINGS : shape.one + shape.n_params])
    sums, given = state.sums, False
    if sums is not None and sums.order == 2:
        given, begin, size = True, shape.one + shape.sums, shape.n_sums
        w[begin : begin + size], w[begin + size : begin + 2 * size] = sums.high, sums.low
    bounded = max(state.lower.tolist()) > -math.inf or min(state.upper.tolist()) < math.inf
    task[: 4 + len(asked)] = (rows.kernel, rows.n_rows, given, bounded, *asked)
    task[-len(rows.columns) :] = rows.columns
    if starts is not None:
        w[shape.log :].reshape(len(starts), at.WIDTH + shape.n_params)[:, at.WIDTH :] = starts
    entry = compiled_run()
    place = ctypes.addressof(space)
    stop = 0 if entry is None else entry.call(phase, place + w.nbytes, place)
    return _Run(shape, w, rows.n_rows, stop, w[: at.RESULTS].tolist())


# --- phase 2 ---


def _newton(phase: GaussNewton, state: FitState, rows: Resident, tell: bool) -> Found | None:
    limit = phase.max_iterations
    if tell and limit > _LONGEST:
        return None
    settings = (phase.tol, phase.initial_radius, state.signal, *_UNUSED)
    run = _run(at.GAUSS_NEWTON, state, rows, settings, (limit if tell else 0, limit))
    if not run.stop:
        return None
    found, point, scale = run.found, run.point(run.shape.one), run.shape.scale
    state = replace(
        state,
        theta=point.theta,
        sums=point.sums,
        linear=state.separable,
        signal=found[at.SIGNAL],
        relaxed=found[at.RELAXED],
        scale=run.w[scale : scale + len(point.theta)].copy(),
        radius=found[at.RADIUS],
        iteration=int(found[at.STEPS]),
        offset=found[at.OFFSET],
        stop=_NEWTON_STOPS[run.stop],
    )
    events: list[Event] = [
        StepDone(int(k), limit, sse, norm, reduction, reach, bool(accepted), tuple(theta))
        for k, sse, norm, reduction, reach, accepted, *theta in run.log().tolist()
    ]
    return state, events, int(found[at.PASSES])


# --- phase 1 ---


def _warmup(
    phase: Warmup, state: FitState, rows: Resident, weight: float, tell: bool
) -> Found | None:
    asked = _asked(phase)
    run = _run(at.LBFGS, state, rows, _settings(phase, state, weight), asked, phase.memory)
    if not run.stop:
        return None
    stop, found = _WARMUP_STOPS[run.stop], run.found
    relative, mode = found[at.RELATIVE], _MODES[int(found[at.MODE])]
    guarded, least = phase.defense.cost_tolerance is not None, found[at.LEAST]
    end, warmup = run.point(run.shape.one, least if guarded else found[at.LOSS]), None
    if stop not in _LEFT_OUT:
        best = end if guarded else run.point(run.shape.best, least)
        warmup = WarmupState(
            relative_loss=relative,
            mode=mode,
            linear=state.separable,
            point=end,
            best=best,
            clips=int(found[at.CLIPS]),
            failures=int(found[at.FAILURES]),
            filled=bool(found[at.FILLED]),
        )
    state = replace(
        state,
        theta=end.theta,
        sums=end.sums,
        first_sse=found[at.FIRST_SSE],
        iteration=int(found[at.STEPS]),
        stop=stop,
        warmup=warmup,
    )
    events: list[Event] = [WarmupStarted()]
    if stop is WarmupStop.WARM_START:
        events.append(WarmStartDetected(relative, phase.defense.warm_start or 0.0))
    else:
        events.append(StepModeChosen(mode, relative))
        tolerance = phase.defense.cost_tolerance or 0.0
        guard = CostGuardTripped(found[at.RISE], tolerance, int(found[at.STEPS]))
        last: list[Event] = [guard] if stop is WarmupStop.COST_GUARD else []
        events += _told(phase, run, weight, last) if tell else _counted(phase, run, last)
    return state, events, int(found[at.PASSES])


def _settings(phase: Warmup, state: FitState, weight: float) -> tuple[float, ...]:
    """What `layout` has from SETTINGS on; the first two are for phase 2."""
    defense, sizes = phase.defense, phase.defense.sizes
    return (
        0.0,
        0.0,
        state.signal,
        state.first_sse,
        weight,
        phase.unit,
        phase.variance,
        _OFF if defense.warm_start is None else defense.warm_start,
        math.inf if defense.max_step is None else defense.max_step,
        math.inf if phase.gradient_clip is None else phase.gradient_clip,
        _OFF if defense.cost_tolerance is None else defense.cost_tolerance,
        phase.switching.plateau,
        phase.switching.gradient,
        sizes.refinement,
        sizes.careful,
        sizes.exploration,
        sizes.fixed,
    )


def _asked(phase: Warmup) -> tuple[int, ...]:
    """What `layout` has from LINES on."""
    s = phase.switching
    criteria = ("plateau" in s.criteria, "gradient" in s.criteria)
    return (s.ceiling, s.ceiling, s.limit, s.early, *criteria, phase.defense.adapts_step)


def _counted(phase: Warmup, run: _Run, last: list[Event]) -> Iterator[Event]:
    """What telemetry counts, clipped steps many at a time."""
    clipped, happened = run.log()[:, 4:6].T.tolist()
    notes = [(k, event) for k, what in enumerate(happened, 1) if what for event in _noted(k, what)]
    begin, longest = 0, phase.defense.max_step or math.inf
    for k, event in (*notes, (len(clipped), None)):  # in their order
        if clips := tuple(filter(None, clipped[begin:k])):
            yield StepsClipped(clips, longest)
        if event is not None:
            yield event
        begin = k
    yield from last


def _told(phase: Warmup, run: _Run, weight: float, last: list[Event]) -> Iterator[Event]:
    """What happened in every step."""
    limit, longest = phase.switching.ceiling, phase.defense.max_step or math.inf
    lines = run.log().tolist()
    for k, loss, norm, length, clipped, happened, *theta in lines:
        if clipped:
            yield StepClipped(clipped, longest)
        yield from _noted(int(k), happened)
        if k == len(lines):
            yield from last
        if happened != _UNTOLD:
            sse = loss * phase.unit * weight
            yield WarmupStepDone(int(k), limit, sse, norm * phase.unit, length, tuple(theta))


def _noted(step: int, happened: float) -> list[Event]:
    """What happened in a step beside its being clipped."""
    if happened == _FILLED:
        return [HistoryFilled(step)]
    if happened in _DIRECTIONS:
        return [LineSearchFailed(step, f"no decrease of the loss along the {_DIRECTIONS[happened]} direction")]
    return []
