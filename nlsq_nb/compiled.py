"""The iterative phases of a small fit, run in native code instead of step by step.

From the same state they end where `Warmup` and `GaussNewton` do, to rounding; what is not plain (a
bound in the way, a singular system, no convergence) they leave to these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import compiled_phase
from nlsq_nb.backends.small.driver import SETTINGS
from nlsq_nb.backends.small.newton import record
from nlsq_nb.core.chunk import Resident
from nlsq_nb.core.layout import sums_size
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

__all__ = ["LARGEST", "advance"]

LARGEST = 16
"""Parameters up to which native code is faster: it has no blocked algebra."""

Floats = NDArray[np.float64]
_LINES = 700  # of the log; a fit that needs more gives up
_STOPS = {1: StopReason.RELATIVE_OFFSET, 2: StopReason.ROUNDING, 3: StopReason.EXACT_FIT}
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
_MODES = ("refinement", "careful", "exploration", "fixed")


@dataclass(frozen=True, slots=True)
class _Space:
    """The arrays of one call; see `backends.small.driver`."""

    w: Floats
    order: NDArray[np.int64]
    counts: NDArray[np.int64]
    log: Floats
    out: Floats

    @classmethod
    def of(cls, state: FitState, settings: tuple[float, ...], counts: tuple[int, ...], memory: int) -> _Space:
        """Filled for a state; `counts` are those after p, linear parameters and given sums."""
        p = len(state.theta)
        separable = state.separable.tolist()
        order = [k for k in range(p) if separable[k]]
        m = len(order)
        order += [k for k in range(p) if not separable[k]]
        space = 64 + 30 * p + 3 * p * p + 2 * (memory + 2) * (p + 1)
        w = np.zeros(SETTINGS + 4 * p + 5 * record(p) + space)
        w[: len(settings)] = settings
        at = SETTINGS
        for part in (state.theta, state.lower, state.upper, state.normalizer.scales):
            w[at : at + p] = part
            at += p
        given = state.sums is not None and state.sums.order == 2
        if given:
            assert state.sums is not None
            at, size = at + record(p) + 7 * p + 2 * p * p, sums_size(p, 2)
            w[at : at + size], w[at + size : at + 2 * size] = state.sums.high, state.sums.low
        return cls(
            w,
            np.array(order, dtype=np.int64),
            np.array([p, m, given, *counts], dtype=np.int64),
            np.empty(_LINES * (8 + p)),
            np.zeros(12),
        )

    def run(self, phase: str, rows: Resident) -> int:
        """How the phase ended, 0 where it gave up."""
        arrays = (self.w, self.order, self.counts, self.log, self.out)
        compiled_phase(phase)(rows.kernel, rows.n_rows, rows.columns.ctypes.data, *(a.ctypes.data for a in arrays))
        return int(self.out[0])

    def point(self, number: int, n_rows: int) -> tuple[Floats, Floats, Floats, NormalSums]:
        """θ, change, ∂loss/∂z and sums of a record."""
        p = int(self.counts[0])
        at, size = SETTINGS + 4 * p + number * record(p), sums_size(p, 2)
        parts = [self.w[at + k * p : at + (k + 1) * p].copy() for k in range(3)]
        state = self.w[at + 7 * p + 2 * p * p :]
        sums = NormalSums(n_rows, p, 2, state[:size].copy(), state[size : 2 * size].copy())
        return parts[0], parts[1], parts[2], sums

    def lines(self) -> Iterator[list[float]]:
        """The log."""
        width = 8 + int(self.counts[0])
        return (self.log[k * width : (k + 1) * width].tolist() for k in range(int(self.out[5])))


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
    if len(state.theta) > LARGEST or not state.free.all() or objective.sample is not objective:
        return None
    if isinstance(phase, GaussNewton):
        found = _newton(phase, state, rows, tell) if (rows := objective.resident()) else None
    elif isinstance(phase, Warmup) and _is_plain(phase) and math.isinf(state.first_sse):
        rows = objective.resident()
        found = _warmup(phase, state, rows, objective.weight, tell) if rows else None
    else:
        return None
    if found is None:
        return None
    state, events, passes = found
    objective.passes += passes
    return state, events


def _is_plain(phase: Warmup) -> bool:
    return phase.line_search == "wolfe" and phase.order == 2 and phase.variance > 0.0


def _newton(
    phase: GaussNewton, state: FitState, rows: Resident, tell: bool
) -> tuple[FitState, list[Event], int] | None:
    settings = (phase.tol, phase.initial_radius, state.signal)
    space = _Space.of(state, settings, (phase.max_iterations, _LINES), 0)
    ended = space.run("gauss_newton", rows)
    if not ended:
        return None
    theta, _, _, sums = space.point(0, rows.n_rows)
    _, trials, offset, radius, passes, _, relaxed, *_ = space.out.tolist()
    state = replace(
        state,
        theta=theta,
        sums=sums,
        linear=state.separable,
        relaxed=relaxed,
        radius=radius,
        iteration=int(trials),
        offset=offset,
        stop=_STOPS[ended],
    )
    events: list[Event] = [
        StepDone(int(k), phase.max_iterations, sse, norm, reduction, reach, bool(accepted), tuple(at))
        for _, k, sse, norm, reduction, reach, accepted, _, *at in (space.lines() if tell else ())
    ]
    return state, events, int(passes)


def _warmup(
    phase: Warmup, state: FitState, rows: Resident, weight: float, tell: bool
) -> tuple[FitState, list[Event], int] | None:
    defense, switching = phase.defense, phase.switching
    sizes, off = defense.sizes, -1.0
    settings = (
        weight,
        phase.unit,
        phase.variance,
        off if defense.warm_start is None else defense.warm_start,
        sizes.refinement,
        sizes.careful,
        sizes.exploration,
        sizes.fixed,
        math.inf if defense.max_step is None else defense.max_step,
        math.inf if phase.gradient_clip is None else phase.gradient_clip,
        off if defense.cost_tolerance is None else defense.cost_tolerance,
        switching.plateau,
        switching.gradient,
    )
    criteria = ["plateau" in switching.criteria, "gradient" in switching.criteria]
    limits = (switching.early, switching.limit, switching.ceiling)
    counts = (defense.adapts_step, *criteria, *limits, phase.memory, _LINES)
    space = _Space.of(state, settings, counts, phase.memory)
    ended = space.run("lbfgs", rows)
    if not ended:
        return None
    stop = _WARMUP_STOPS[ended]
    _, steps, loss, rise, passes, _, sse, relative, mode, clips, failures, filled = space.out.tolist()
    theta, _, _, sums = space.point(1, rows.n_rows)
    state = replace(state, theta=theta, sums=sums, first_sse=sse, iteration=int(steps), stop=stop, warmup=None)
    events: list[Event] = [WarmupStarted()]
    if stop is WarmupStop.WARM_START:
        assert defense.warm_start is not None
        return state, [*events, WarmStartDetected(relative, defense.warm_start)], int(passes)
    tier = _MODES[int(mode)]
    events.append(StepModeChosen(tier, relative))
    if stop in (WarmupStop.NOT_ASKED, WarmupStop.NOTHING_NONLINEAR):
        return state, events, int(passes)
    events += _steps_of(phase, space, weight, tell)
    if stop is WarmupStop.COST_GUARD:
        assert defense.cost_tolerance is not None
        events.append(CostGuardTripped(rise, defense.cost_tolerance, int(steps)))
    at, change, slope, best = space.point(3, rows.n_rows)
    warmup = WarmupState(
        relative_loss=relative,
        mode=tier,
        linear=state.separable,
        point=(point := WarmupPoint(at, best, change, loss, slope)),
        best=point,
        clips=int(clips),
        failures=int(failures),
        filled=bool(filled),
    )
    return replace(state, warmup=warmup), events, int(passes)


def _steps_of(phase: Warmup, space: _Space, weight: float, tell: bool) -> Iterator[Event]:
    """What happened in the steps of the warm-up; clipped steps in one event where nobody reads along."""
    limit, longest = phase.switching.ceiling, phase.defense.max_step
    clips = []
    for _, k, loss, norm, length, clipped, what, _, *theta in space.lines():
        if clipped and longest is not None:
            if tell:
                yield StepClipped(clipped, longest)
            clips.append(clipped)
        if what == 1.0:
            yield HistoryFilled(int(k))
        elif what:
            kind = "L-BFGS" if what == 3.0 else "steepest-descent"
            yield LineSearchFailed(int(k), f"no decrease of the loss along the {kind} direction")
        if tell:
            yield WarmupStepDone(int(k), limit, loss * phase.unit * weight, norm * phase.unit, length, tuple(theta))
    if clips and longest is not None and not tell:
        yield StepsClipped(tuple(clips), longest)
