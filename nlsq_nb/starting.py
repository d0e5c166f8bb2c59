"""Where a multi-start fit begins: a tournament of candidates on a sample, then short fits of the best."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.varpro import eliminable, relax
from nlsq_nb.errors import NumericsError
from nlsq_nb.events import Event
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.setup import restart
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.tournament import tournament
from nlsq_nb.plan import batch_objectives, newton_phase
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend

__all__ = ["best_start"]

Floats = NDArray[np.float64]
_FITTED = 3  # winners that are fitted on the sample: the best loss is not always the best basin
_STEPS = 30


def best_start(
    problem: Problem,
    options: Groups,
    backend: Backend,
    state: FitState,
    objective: DataObjective,
) -> FitState:
    """The state to begin with, at the best of p0 and the candidates around it.

    Parameters
    ----------
    problem : Problem
        Model, rows and bounds.
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    state : FitState
        At p0.
    objective : DataObjective
        Over all rows.

    Returns
    -------
    FitState
        At the best start; `first` stays p0 where the model is finite there, so that the fit cannot
        end above it.
    """
    o = options.multistart
    parts = batch_objectives(problem, options, backend, o.rounds * o.batches)

    def evaluate(theta: Floats, batch: int) -> float:
        return _loss(state, parts[batch], theta, options.gauss_newton.ridge)

    seed = options.setup.seed
    played = tournament(problem.p0, problem.bounds, evaluate, o, len(parts), seed)
    starts = [played.candidates[k] for k in played.ranking[:_FITTED]]
    if not any(np.array_equal(start, problem.p0) for start in starts):
        starts.append(problem.p0)
    fitted = [_fit(restart(state, start), options, objective.sample) for start in starts]
    best, _ = min(fitted, key=lambda pair: pair[1])
    try:
        at_start = objective(problem.p0, 0).sse
    except NumericsError:  # what several starts are for
        at_start = math.inf
    if not math.isfinite(at_start):
        return restart(state, best)
    return replace(restart(state, best), first=problem.p0, first_sse=at_start)


def _loss(state: FitState, part: DataObjective, theta: Floats, ridge: float) -> float:
    """Mean loss over a batch with the linear parameters at their best."""
    sums = part(theta, 2 if state.separable.any() else 0)
    if not sums.is_finite:
        return math.inf
    sse = sums.sse
    if state.separable.any():
        linear = eliminable(sums.jtj, state.separable)
        room = (state.lower - theta, state.upper - theta)
        sse -= relax(sums.jtj, sums.jtr, linear, room, ridge).predicted
    return max(sse, 0.0) / part.weight


def _fit(state: FitState, options: Groups, sample: DataObjective) -> tuple[Floats, float]:
    """Where a short fit from a start ends, and its loss; the start itself where none is possible."""
    phase = newton_phase(options, len(state.theta), at_most=_STEPS)
    try:
        end = run(phase, state, sample, _ignore)
    except NumericsError:
        return state.theta, math.inf
    if end.stop is StopReason.INTERRUPTED:  # the whole fit is meant
        raise KeyboardInterrupt
    sse = math.inf if end.sums is None else end.sums.sse
    return end.theta, sse if math.isfinite(sse) else math.inf


def _ignore(event: Event) -> None:
    """Nobody is told of the steps of a short fit."""
