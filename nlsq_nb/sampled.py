"""The warm-up on a sample of many rows, in native code: the start and the end are judged on all data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from nlsq_nb.compiled import advance, is_eligible
from nlsq_nb.events import Event, WarmupStepDone
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.defense import StepSizes
from nlsq_nb.phases.loss import relaxed
from nlsq_nb.phases.setup import on_sample
from nlsq_nb.phases.state import FitState, WarmupStop
from nlsq_nb.phases.warmup import Judged, Warmup
from nlsq_nb.protocols import Phase

__all__ = ["advance_on_sample"]


def advance_on_sample(
    phase: Phase[FitState], state: FitState, objective: DataObjective, tell: bool
) -> tuple[FitState, list[Event]] | None:
    """Run a warm-up that sees a sample to its end.

    Parameters
    ----------
    phase : Phase
        A `Warmup`; others are left to themselves.
    state : FitState
        What the phase begins with.
    objective : DataObjective
        With a sample other than itself; counts the passes.
    tell : bool
        Whether the events of every step are wanted, or only those that are counted.

    Returns
    -------
    tuple of (FitState, list of Event), or None
        The last state and what happened; where its `stop` is not set, or for None, the phase is to
        be run step by step.
    """
    sample = objective.sample
    if not isinstance(phase, Warmup) or sample is objective or not is_eligible(phase, state):
        return None
    if sample.resident() is None:
        return None
    judged = phase.judge(state, objective)
    if judged.state.stop is not None:
        return judged.state, judged.events
    if not np.array_equal(judged.linear, judged.state.separable):
        return judged.state, []
    start = replace(on_sample(judged.state, judged.state.theta, objective), first_sse=math.inf)
    found = advance(_without_judging(phase, judged), start, sample, tell)
    if found is None:
        return judged.state, []
    end, events = found
    assert end.warmup is not None
    assert isinstance(end.stop, WarmupStop)
    theta = relaxed(end, end.warmup.point)
    refined = None if phase.refine is None else advance(
        phase.refine, on_sample(judged.state, theta, objective), sample, tell=False
    )
    if refined is not None and refined[0].stop is not None and refined[0].stop.success:
        theta = refined[0].theta
    warmup = replace(end.warmup, relative_loss=judged.relative_loss, mode=judged.mode)
    state = replace(judged.state, iteration=end.iteration, warmup=warmup)
    state, more = phase.check(state, theta, objective, end.stop)
    whole = objective.weight / sample.weight
    own = [replace(e, sse=e.sse * whole) if isinstance(e, WarmupStepDone) else e for e in events[2:]]
    return state, [*judged.events, *own, *more]


def _without_judging(phase: Warmup, judged: Judged) -> Warmup:
    """The phase without its first two layers, whose verdicts are known."""
    first = getattr(phase.defense.sizes, judged.mode)
    sizes = StepSizes(first, first, first, first)
    defense = replace(phase.defense, warm_start=None, adapts_step=False, sizes=sizes)
    return replace(phase, defense=defense)
