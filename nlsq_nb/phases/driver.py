"""The only optimisation loop in the library."""

from __future__ import annotations

from dataclasses import replace

from nlsq_nb.errors import StopFit
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.protocols import Objective, Observer, Phase

__all__ = ["run"]


def run(
    phase: Phase[FitState], state: FitState, objective: Objective, emit: Observer
) -> FitState:
    """Run one phase to its stop.

    Parameters
    ----------
    phase : Phase
        `init`, `stop` and `step`.
    state : FitState
        What the phase before left.
    objective : Objective
        Evaluates the sums.
    emit : callable
        Receives every event; may raise `StopFit` to end the phase.

    Returns
    -------
    FitState
        The last state; after `StopFit` or Ctrl-C the best point so far.

    Raises
    ------
    KeyboardInterrupt
        When it comes before the first point has been evaluated.
    """
    state, events = phase.init(state, objective)
    try:
        for event in events:
            emit(event)
        while phase.stop(state) is None:
            state, events = phase.step(state, objective)
            for event in events:
                emit(event)
    except StopFit:
        return replace(state, stop=StopReason.CALLBACK)
    except KeyboardInterrupt:
        return replace(state, stop=StopReason.INTERRUPTED)
    return state
