"""The stages of a fit with a robust loss, each in native code where the data are few."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from nlsq_nb.compiled import advance
from nlsq_nb.events import Event, StepDone
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.graduated import Graduated
from nlsq_nb.phases.state import FitState
from nlsq_nb.protocols import Phase

__all__ = ["advance_stages"]


def advance_stages(
    phase: Phase[FitState], state: FitState, objective: DataObjective, tell: bool
) -> tuple[FitState, list[Event]] | None:
    """Run a phase to its end; one that is not `Graduated` as `advance` does.

    Parameters
    ----------
    phase : Phase
        Any.
    state : FitState
        What the phase begins with.
    objective : DataObjective
        Its rows must be few and in memory; counts the passes.
    tell : bool
        Whether the events of every step are wanted, or only those that are counted.

    Returns
    -------
    tuple of (FitState, list of Event), or None
        The last state and what happened; where its `stop` is not set, or for None, the rest is to be run step by
        step.
    """
    if not isinstance(phase, Graduated):
        return advance(phase, state, objective, tell)
    told: list[Event] = []
    tried = 0
    while True:
        inner = phase.inner(state)
        if not isinstance(inner, GaussNewton):
            return None
        begin = state if inner.eliminates else replace(state, separable=np.zeros_like(state.separable))
        loss = replace(phase.loss, f_scale=state.f_scale)
        at = objective if math.isinf(state.f_scale) else objective.under(loss)
        found = advance(inner, replace(begin, stop=None), at, tell)
        if found is None:
            return (replace(state, iteration=tried), told) if math.isfinite(state.f_scale) else None
        end, events = found
        told += [replace(e, iteration=e.iteration + tried) if isinstance(e, StepDone) else e for e in events]
        tried += end.iteration
        state = replace(end, separable=state.separable, iteration=tried)
        if state.f_scale == phase.loss.f_scale:
            return phase.explained(state), told
        state = phase.following(state, objective)
