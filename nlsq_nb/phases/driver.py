"""The only optimisation loop in the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from nlsq_nb.errors import StopFit
from nlsq_nb.events import Event
from nlsq_nb.phases.state import FitState, StopReason, WarmupStop
from nlsq_nb.protocols import Objective, Observer, Phase

__all__ = ["run"]

_LIMITS = (StopReason.MAX_ITERATIONS, WarmupStop.MAX_ITERATIONS)


def run(
    phase: Phase[FitState],
    state: FitState,
    objective: Objective,
    emit: Observer,
    *,
    save: Callable[[FitState], None] | None = None,
    resumed: bool = False,
) -> FitState:
    """Run one phase to its stop.

    Parameters
    ----------
    phase : Phase
        `init`, `stop` and `step`.
    state : FitState
        What the phase before left, or the state to go on from.
    objective : Objective
        Evaluates the sums; when its weights change the phase begins anew at its best point.
    emit : callable
        Receives every event; may raise `StopFit` to end the phase.
    save : callable, optional
        Receives the first state, and the state after every step, before their events are told.
    resumed : bool
        Whether `state` comes from a step of this very phase, so that there is nothing to begin.

    Returns
    -------
    FitState
        The last state; after `StopFit` or Ctrl-C the best point so far.

    Raises
    ------
    KeyboardInterrupt
        When it comes before the first point has been evaluated.
    """
    revision = objective.revision
    events: list[Event] = []
    if not resumed:
        state, events = phase.init(state, objective)
    try:
        if save is not None and not resumed:
            save(state)
        while True:
            for event in events:
                emit(event)
            if objective.revision != revision:
                revision = objective.revision
                state = _anew(phase, state, objective)
            if phase.stop(state) is not None:
                return state
            state, events = phase.step(state, objective)
            if save is not None:
                save(state)
    except StopFit:
        return replace(phase.best(state), stop=StopReason.CALLBACK)
    except KeyboardInterrupt:
        return replace(phase.best(state), stop=StopReason.INTERRUPTED)


def _anew(phase: Phase[FitState], state: FitState, objective: Objective) -> FitState:
    """The state measured again under changed weights; a limit that was reached stays reached."""
    limit = phase.stop(state) if phase.stop(state) in _LIMITS else None
    fresh, _ = phase.init(replace(phase.best(state), sums=None, first_sse=math.inf), objective)
    return replace(fresh, iteration=state.iteration, stop=limit or fresh.stop)
