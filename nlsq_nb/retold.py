"""What happened in a warm-up in native code, told afterwards: its events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import layout as at
from nlsq_nb.events import (
    CostGuardTripped,
    Event,
    HistoryFilled,
    LineSearchFailed,
    StepClipped,
    StepModeChosen,
    StepsClipped,
    WarmStartDetected,
    WarmupStarted,
    WarmupStepDone,
)
from nlsq_nb.phases.state import WarmupStop
from nlsq_nb.phases.warmup import Warmup

__all__ = ["MODES", "counted", "told"]

MODES = ("refinement", "careful", "exploration", "fixed")
"""Tiers of the first step, by their numbers in the native text."""

_FILLED, _UNTOLD = 1.0, 4.0  # what happened in a step
_DIRECTIONS = {2.0: "steepest-descent", 3.0: "L-BFGS"}  # along which it found nothing
Floats = NDArray[np.float64]


def counted(phase: Warmup, stop: WarmupStop, found: list[float], marks: Floats) -> Iterator[Event]:
    """What telemetry counts, clipped steps many at a time.

    Parameters
    ----------
    phase : Warmup
        What was run.
    stop : WarmupStop
        How it ended.
    found : list of float
        What it found.
    marks : ndarray, shape (steps, 2)
        Of every step the length that was clipped, and what happened: columns 4 and 5 of the log.

    Yields
    ------
    Event
        In their order.
    """
    yield from _begun(phase, stop, found)
    clipped, happened = marks.T.tolist()
    notes = [(k, event) for k, what in enumerate(happened, 1) if what for event in _noted(k, what)]
    begin, longest = 0, phase.defense.max_step or np.inf
    for k, event in (*notes, (len(clipped), None)):  # in their order
        if clips := tuple(filter(None, clipped[begin:k])):
            yield StepsClipped(clips, longest)
        if event is not None:
            yield event
        begin = k
    yield from _ended(phase, stop, found)


def told(
    phase: Warmup, stop: WarmupStop, found: list[float], log: Floats, weight: float
) -> Iterator[Event]:
    """What happened in every step.

    Parameters
    ----------
    phase : Warmup
        What was run.
    stop : WarmupStop
        How it ended.
    found : list of float
        What it found.
    log : ndarray, shape (steps, 6 + p)
        Its log.
    weight : float
        Σ w of the rows.

    Yields
    ------
    Event
        In their order.
    """
    yield from _begun(phase, stop, found)
    limit, longest = phase.switching.ceiling, phase.defense.max_step or np.inf
    lines = log.tolist()
    for k, loss, norm, length, clipped, happened, *theta in lines:
        if clipped:
            yield StepClipped(clipped, longest)
        yield from _noted(int(k), happened)
        if k == len(lines):
            yield from _ended(phase, stop, found)
        if happened != _UNTOLD:
            sse = loss * phase.unit * weight
            yield WarmupStepDone(int(k), limit, sse, norm * phase.unit, length, tuple(theta))


def _begun(phase: Warmup, stop: WarmupStop, found: list[float]) -> Iterator[Event]:
    """What the first two layers said."""
    yield WarmupStarted()
    relative = found[at.RELATIVE]
    if stop is WarmupStop.WARM_START:
        yield WarmStartDetected(relative, phase.defense.warm_start or 0.0)
    else:
        yield StepModeChosen(MODES[int(found[at.MODE])], relative)


def _noted(step: int, happened: float) -> list[Event]:
    """What happened in a step beside its being clipped."""
    if happened == _FILLED:
        return [HistoryFilled(step)]
    if happened in _DIRECTIONS:
        return [LineSearchFailed(step, f"no decrease of the loss along the {_DIRECTIONS[happened]} direction")]
    return []


def _ended(phase: Warmup, stop: WarmupStop, found: list[float]) -> Iterator[Event]:
    """What the third layer said."""
    if stop is WarmupStop.COST_GUARD:
        yield CostGuardTripped(found[at.RISE], phase.defense.cost_tolerance or 0.0, int(found[at.STEPS]))
