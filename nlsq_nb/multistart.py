"""Where a fit with several starts begins: a tournament on a sample, then short fits of the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.config.groups import Groups
from nlsq_nb.errors import NumericsError, StopFit
from nlsq_nb.events import Event, RoundPlayed, StartChosen, StartFitted, StartsDrawn
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.setup import restart
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.tournament import Tournament, tournament
from nlsq_nb.plan import batch_objectives, newton_phase
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Observer
from nlsq_nb.starts import reason_of, reduced_sse, short_fit

__all__ = ["best_start"]

Floats = NDArray[np.float64]
_FITTED = 3  # winners that are fitted on the sample: the best loss is not always the best basin
_STEPS = 30


@dataclass(slots=True)
class _Leader:
    """The best start so far; it outlives an interruption.

    Attributes
    ----------
    given : FitState
        At p0.
    row : int
        The candidate.
    theta : ndarray, shape (p,)
        It, or where the short fit from it ended.
    see : callable
        Receives the state at each new leader.
    sse : float
        Of the short fit; inf before the first.
    """

    given: FitState
    row: int
    theta: Floats
    see: Callable[[FitState], None]
    sse: float = math.inf

    def follow(self, row: int, theta: Floats, sse: float = math.inf) -> None:
        """Another start leads."""
        self.row, self.theta, self.sse = row, theta, sse
        self.see(restart(self.given, theta))


def best_start(
    problem: Problem,
    options: Groups,
    backend: Backend,
    state: FitState,
    objective: DataObjective,
    emit: Observer,
    see: Callable[[FitState], None],
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
    emit : callable
        Is told of the rounds and of each short fit, not of the steps of these; may raise `StopFit`.
    see : callable
        Receives the state at the best start so far, before `emit` is told of it.

    Returns
    -------
    FitState
        At the best start. `first` and `first_sse` are those of p0 where the model is finite there,
        so that the layers judge p0 and the fit cannot end above it. After `StopFit` or Ctrl-C
        `stop` says so, and the best point so far is measured on all rows.

    Raises
    ------
    NumericsError
        When the fit is stopped and the model is not finite at any point that is known.
    KeyboardInterrupt
        The same after Ctrl-C, or when it comes again.
    """
    leader, stop = _Leader(state, 0, problem.p0, see), None
    try:
        _search(problem, options, backend, state, objective, emit, leader)
    except StopFit:
        stop = StopReason.CALLBACK
    except KeyboardInterrupt:
        stop = StopReason.INTERRUPTED
    try:
        given_sse = objective(problem.p0, 0).sse
    except NumericsError:  # what several starts are for
        given_sse = math.inf
    given_sse = given_sse if math.isfinite(given_sse) else math.inf
    if stop is None:
        begun = restart(state, leader.theta)
    else:
        begun = _measured(options, state, objective, leader, stop)
        if begun.sums is None or not begun.sums.sse < given_sse:
            leader.row, begun = 0, replace(restart(state, problem.p0), stop=stop)
    emit(StartChosen(leader.row, given_sse))
    if math.isinf(given_sse):
        return begun
    return replace(begun, first=problem.p0, first_sse=given_sse)


def _search(
    problem: Problem,
    options: Groups,
    backend: Backend,
    state: FitState,
    objective: DataObjective,
    emit: Observer,
    leader: _Leader,
) -> None:
    """Play the tournament and fit the best; the leader is up to date whenever this is left."""
    o = options.multistart
    parts = batch_objectives(problem, options, backend, o.rounds * o.batches)

    def evaluate(theta: Floats, batch: int) -> float:
        part = parts[batch]
        return reduced_sse(state, part, theta, options.gauss_newton.ridge) / part.weight

    def told(standing: Tournament) -> None:
        leader.follow(standing.best_index, standing.best)
        emit(_standing(standing, max(o.rounds, 1)))

    played = tournament(
        problem.p0, problem.bounds, evaluate, o, len(parts), options.setup.seed, told
    )
    rows = list(played.ranking[:_FITTED])
    rows += [] if 0 in rows else [0]
    for number, row in enumerate(rows, 1):
        end = short_fit(restart(state, played.candidates[row]), options, objective.sample, _STEPS)
        sse = math.inf if end.sums is None or not end.sums.is_finite else end.sums.sse
        if sse < leader.sse:
            leader.follow(row, end.theta, sse)
        whole = sse * (objective.weight / objective.sample.weight)
        theta = tuple(end.theta.tolist())
        emit(StartFitted(number, len(rows), row, whole, end.iteration, reason_of(end), theta))


def _standing(standing: Tournament, rounds: int) -> Event:
    """What there is to tell before the first round, and after one."""
    played = len(standing.survivors) - 1
    if not played:
        return StartsDrawn(standing.candidates, rounds)
    left = standing.survivors[-1]
    return RoundPlayed(played, rounds, standing.best_index, standing.losses, left)


def _measured(
    options: Groups,
    state: FitState,
    objective: DataObjective,
    leader: _Leader,
    stop: StopReason,
) -> FitState:
    """The leader on all rows, its linear parameters at their best."""
    phase = newton_phase(options, len(state.theta))
    try:
        begun, _ = phase.init(restart(state, leader.theta), objective)
    except NumericsError:
        if stop is StopReason.INTERRUPTED:
            raise KeyboardInterrupt from None
        raise
    return replace(begun, stop=stop)
