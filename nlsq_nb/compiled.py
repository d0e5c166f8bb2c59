"""The iterative phases of a small fit, run in native code instead of step by step.

From the same state they end where `Warmup` and `GaussNewton` do, to rounding; what is not plain (a
fixed parameter, a singular system) they leave to these. `backends.small` has the
native text; here a state becomes its arrays, and these become a state and events again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import layout as at
from nlsq_nb.core.chunk import Resident
from nlsq_nb.events import Event, StepDone
from nlsq_nb.native_run import NativeRun
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.gauss_newton import LATE, GaussNewton
from nlsq_nb.phases.state import FitState, StopReason, WarmupState, WarmupStop
from nlsq_nb.phases.warmup import Warmup
from nlsq_nb.protocols import Phase
from nlsq_nb.retold import MODES, counted, told

__all__ = [
    "LARGEST",
    "LEFT_OUT",
    "OFF",
    "advance",
    "are_plain",
    "finish",
    "is_eligible",
    "is_plain",
    "newton_settings",
    "reached",
    "warmup_asked",
    "warmup_settings",
]

LARGEST = 16
"""Parameters up to which native code is faster: it has no blocked algebra."""

_LONGEST = 10_000  # steps; the log has a line for each
OFF = -1.0  # a layer of the warm-up
Floats = NDArray[np.float64]
_UNUSED = (0.0,) * (at.FIRST_STEPS + 4 - at.WEIGHT + 1)  # settings of phase 1 alone
LEFT_OUT = (WarmupStop.WARM_START, WarmupStop.NOT_ASKED, WarmupStop.NOTHING_NONLINEAR)

Found = tuple[FitState, list[Event], int]
"""The last state, what happened, and the passes."""


def advance(
    phase: Phase[FitState], state: FitState, objective: DataObjective, tell: bool, rows: Resident | None = None
) -> tuple[FitState, list[Event]] | None:
    """Run a phase to its end.

    Parameters
    ----------
    phase : Phase
        `Warmup` or `GaussNewton`; others are left to themselves.
    state : FitState
        What the phase begins with.
    objective : DataObjective
        Its rows must be few and in memory, or given beside it; counts the passes.
    tell : bool
        Whether the events of every step are wanted, or only those that are counted.
    rows : Resident, optional
        Its rows.

    Returns
    -------
    tuple of (FitState, list of Event), or None
        The last state and what happened; None to go step by step.
    """
    if objective.sample is not objective or not is_eligible(phase, state):
        return None
    rows = rows or objective.resident()
    if rows is None:
        return None
    if isinstance(phase, GaussNewton):
        return _newton(phase, state, rows, objective, tell)
    assert isinstance(phase, Warmup)
    found = _warmup(phase, state, rows, objective.weight, tell)
    if found is None:
        return None
    state, events, passes = found
    objective.passes += passes
    return state, events


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
    if len(state.theta) > LARGEST or False in state.free.tolist():
        return False
    return isinstance(phase, GaussNewton) or (isinstance(phase, Warmup) and is_plain(phase))


def are_plain(lower: Floats, upper: Floats) -> bool:
    """Whether native code takes parameters with some bounds.

    Parameters
    ----------
    lower, upper : ndarray, shape (p,)
        ±inf for none.

    Returns
    -------
    bool
        False where one is fixed, and for more than `LARGEST`.
    """
    return len(lower) <= LARGEST and not bool((lower == upper).any())


def is_plain(phase: Warmup) -> bool:
    """Whether native code knows all that is asked of a warm-up."""
    return phase.line_search == "wolfe" and phase.order == 2 and phase.switching.ceiling <= _LONGEST


# --- phase 2 ---


def _newton(
    phase: GaussNewton, state: FitState, rows: Resident, objective: DataObjective, tell: bool
) -> tuple[FitState, list[Event]] | None:
    limit = phase.max_iterations
    if tell and limit > _LONGEST:
        return None
    run = _newton_run(phase, state, rows, tell)
    run.go(at.GAUSS_NEWTON)
    return finish(phase, run, state, rows, objective, tell)


def _newton_run(phase: GaussNewton, state: FitState, rows: Resident, tell: bool) -> NativeRun:
    asked = (phase.max_iterations if tell else 0, phase.max_iterations)
    return NativeRun(state, rows, newton_settings(phase, state.signal), asked)


def newton_settings(phase: GaussNewton, signal: float) -> tuple[float, ...]:
    """What `layout` has from SETTINGS to the bounds, for phase 2.

    Parameters
    ----------
    phase : GaussNewton
        What is to be run.
    signal : float
        Σ w y² of the rows.

    Returns
    -------
    tuple of float
        For `NativeRun`.
    """
    return (phase.tol, phase.initial_radius, signal, *_UNUSED)


def finish(
    phase: GaussNewton, run: NativeRun, state: FitState, rows: Resident, objective: DataObjective, tell: bool
) -> tuple[FitState, list[Event]] | None:
    """Bring phase 2 to its end once native code has run it, or as much of it as it can.

    Trials that it leaves to the general way (of singular systems) are made in Python, one by one.

    Parameters
    ----------
    phase : GaussNewton
        Phase 2.
    run : NativeRun
        The first try.
    state : FitState
        What that began with.
    rows : Resident
        The rows.
    objective : DataObjective
        Over the same; counts the passes.
    tell : bool
        Whether the events of every step are wanted.

    Returns
    -------
    tuple of (FitState, list of Event), or None
        The last state and what happened; None where there is no native code.
    """
    events: list[Event] = []
    begun = False
    try:
        while run.found and not run.found[at.BROKEN]:
            where = int(run.found[at.HAPPENED])
            if run.stop or where != at.UNTOUCHED:
                state, begun = reached(run, state), True
                objective.passes += int(run.found[at.PASSES])
                events += _told(run, phase.max_iterations)
            if run.stop:
                return state, events
            if where == at.TAKEN:
                state = phase.judged(state)
            elif not begun:
                state, begun = phase.init(state, objective)[0], True
            else:
                state = _step(phase, state, objective, events, tell)
            while state.stop is None and not _is_for_native(state):
                state = _step(phase, state, objective, events, tell)
            if state.stop is not None:
                return state, events
            run = _newton_run(phase, state, rows, tell)
            run.take_up(state)
    except KeyboardInterrupt:
        if state.sums is None:
            raise
        return replace(state, stop=StopReason.INTERRUPTED), events
    return None


def _step(
    phase: GaussNewton, state: FitState, objective: DataObjective, events: list[Event], tell: bool
) -> FitState:
    """One trial in Python."""
    state, more = phase.step(state, objective)
    events += more if tell else ()
    return state


def _is_for_native(state: FitState) -> bool:
    """Whether native code can go on from a state."""
    late = state.iteration >= LATE - 1 and True not in state.linear.tolist()
    return not (late or state.doubtful) and bool((state.linear == state.separable).all())


def reached(run: NativeRun, state: FitState, first_sse: float | None = None) -> FitState:
    """The state at which native code left phase 2.

    Parameters
    ----------
    run : NativeRun
        That ran it.
    state : FitState
        What the phase began with.
    first_sse : float, optional
        The sse at p0, where the state does not know it.

    Returns
    -------
    FitState
        Without a stop where native code gave up.
    """
    found, scale = run.found, run.shape.scale
    theta, sums = run.end()
    return state.having(
        theta=theta,
        sums=sums,
        linear=state.separable,
        signal=found[at.SIGNAL],
        relaxed=found[at.RELAXED],
        scale=run.w[scale : scale + len(theta)].copy(),
        radius=found[at.RADIUS],
        iteration=int(found[at.STEPS]),
        offset=found[at.OFFSET],
        stop=run.newton_stop,
        first_sse=state.first_sse if first_sse is None else first_sse,
    )


def _told(run: NativeRun, limit: int) -> Iterator[Event]:
    """The trials in the log, if there is one."""
    for k, sse, norm, reduction, reach, accepted, *theta in run.log(int(run.found[at.TOLD])).tolist():
        yield StepDone(int(k), limit, sse, norm, reduction, reach, bool(accepted), tuple(theta))


# --- phase 1 ---


def _warmup(
    phase: Warmup, state: FitState, rows: Resident, weight: float, tell: bool
) -> Found | None:
    asked = warmup_asked(phase)
    run = NativeRun(state, rows, warmup_settings(phase, state.signal, state.first_sse, weight), asked, phase.memory)
    run.go(at.LBFGS)
    stop = run.warmup_stop
    if stop is None:
        return None
    found = run.found
    relative, mode = found[at.RELATIVE], MODES[int(found[at.MODE])]
    guarded, least = phase.defense.cost_tolerance is not None, found[at.LEAST]
    end, warmup = run.point(run.shape.one, least if guarded else found[at.LOSS]), None
    if stop not in LEFT_OUT:
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
    log = run.log(int(found[at.TOLD]))
    events = list(told(phase, stop, found, log, weight) if tell else counted(phase, stop, found, log[:, 4:6]))
    return state, events, int(found[at.PASSES])


def warmup_settings(
    phase: Warmup, signal: float, first_sse: float, weight: float
) -> tuple[float, ...]:
    """What `layout` has from SETTINGS to the bounds; the first two are for phase 2.

    Parameters
    ----------
    phase : Warmup
        What is to be run.
    signal : float
        Σ w y² of the rows.
    first_sse : float
        The sse at p0; inf where it is not known.
    weight : float
        Σ w of the rows.

    Returns
    -------
    tuple of float
        For `NativeRun`.
    """
    defense, sizes = phase.defense, phase.defense.sizes
    return (
        0.0,
        0.0,
        signal,
        first_sse,
        weight,
        phase.unit,
        phase.variance,
        OFF if defense.warm_start is None else defense.warm_start,
        math.inf if defense.max_step is None else defense.max_step,
        math.inf if phase.gradient_clip is None else phase.gradient_clip,
        OFF if defense.cost_tolerance is None else defense.cost_tolerance,
        phase.switching.plateau,
        phase.switching.gradient,
        sizes.refinement,
        sizes.careful,
        sizes.exploration,
        sizes.fixed,
    )


def warmup_asked(phase: Warmup) -> tuple[int, ...]:
    """What `layout` has from LINES on, for phase 1.

    Parameters
    ----------
    phase : Warmup
        What is to be run.

    Returns
    -------
    tuple of int
        For `NativeRun`.
    """
    s = phase.switching
    criteria = ("plateau" in s.criteria, "gradient" in s.criteria)
    return (s.ceiling, s.ceiling, s.limit, s.early, *criteria, phase.defense.adapts_step)
