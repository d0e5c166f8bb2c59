"""A second opinion: whether another start leads to a clearly lower optimum than the one that was found.

A local minimum passes every test of convergence. What gives it away is what it leaves: residuals
that go on from row to row, or most of the spread of y. Where there is such a sign, starts from all
over are tried on some of the rows: many by their sse with the linear parameters at their best, the
best of them by short fits. Where one ends lower than chance allows, the fit goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.attempts import Attempts, End, end_of
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.elsewhere import Ground, rivals
from nlsq_nb.core.layout import packed_index
from nlsq_nb.doubts import Left, common_parts, sorted_rows
from nlsq_nb.drawn import rows_to_check
from nlsq_nb.events import SecondOpinionAsked, SecondOpinionGiven
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.setup import depart
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.stationary import is_blind
from nlsq_nb.plan import check_objective, is_matrix_free
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Observer, Source

__all__ = ["Look", "look_at", "second_opinion"]

Floats = NDArray[np.float64]
_MOST = 3  # times that a fit asks, each after the one before led to something lower
_STARTS, _FITS = 64, 6
_STARTS_PER_PARAMETER = 12  # that a start has to choose, and as many more
_HOPEFUL = 4.0  # times the lowest sse: a short fit that is not below it soon is given up
_FEWER_STARTS, _FEWER_FITS = 24, 3  # where every step takes Python
_LARGEST = 64  # parameters beyond which such steps are too dear
_TRIALS = 30  # who allows fewer wants no more of them
_AGREEING = 3  # ends at the lowest sse after which no more short fits are needed; fewer for one parameter
_APART = 0.05  # relative distance of starts that are both tried
_LOWER = 1e-6  # relative reduction of the sse that means another optimum
_CLEARLY = 25.0  # what the same must be on a sample, in variances of the residuals
_DOUBTFUL = {
    StopReason.PARTLY_FLAT: "the model does not change with every parameter",
    StopReason.FLAT: "the model does not change with any parameter",
    StopReason.STALLED: "the fit stalled",
    StopReason.MAX_ITERATIONS: "the fit did not converge",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What an answer looks like, where a second opinion is called for.

    Attributes
    ----------
    doubts : tuple of str
        What speaks against it; empty where the question is asked in any case.
    rows : Source
        The rows that were looked at.
    columns : tuple of ndarray, each (n,)
        Their independent variables, sorted by the first.
    residuals : ndarray, shape (m, n)
        Their √w (y − f), in the same order.
    linear : list of bool, length p
        Which parameters enter linearly.
    """

    doubts: tuple[str, ...]
    rows: Source
    columns: tuple[Floats, ...]
    residuals: Floats
    linear: list[bool]


def look_at(
    problem: Problem, options: Groups, state: FitState, rows: Source, spread: float, warms_up: bool
) -> Look | None:
    """Look for what speaks against an answer.

    Parameters
    ----------
    problem : Problem
        Model, rows and bounds.
    options : Groups
        Validated options.
    state : FitState
        The answer, measured on all data.
    rows : Source
        Those that the warm-up sees.
    spread : float
        Σ w (y − mean)² of all data.
    warms_up : bool
        Whether the fit has phase 1: one without is asked for as it is, and only looked at where a bound blinded it.

    Returns
    -------
    Look or None
        None where no second opinion is called for, or possible.
    """
    blind, wanted = is_blind(state), options.checks.second_opinion
    if problem.loss.is_robust or not (warms_up or blind or wanted is True) or not _may_ask(options, state):
        return None
    linear = [name in problem.model.linear_params for name in problem.model.params]
    free = state.free.tolist()
    # where only linear parameters are free there is one optimum
    if not any(f and not k for f, k in zip(free, linear, strict=True)):
        return None
    if problem.whitening is None:  # else rows mean nothing without the others
        rows = rows_to_check(rows, options, len(linear))
    assert state.sums is not None
    assert isinstance(state.stop, StopReason)
    dof = rows.n_rows * problem.model.n_outputs - free.count(True)
    left = Left(state.sums.sse, state.first_sse, state.signal, spread, dof)
    doubts, unless_asked = [*left.doubts(_terms(state, linear))], wanted == "auto"
    if state.stop in _DOUBTFUL:
        doubts.append(_DOUBTFUL[state.stop])
    if blind:
        doubts.append("a bound leaves other parameters without influence")
    if unless_asked and not doubts and left.is_clear:
        return None
    least = left.least_pattern(rows.n_rows)
    if least < math.inf and any(part > least for part in common_parts(problem, rows, state.theta)):
        doubts.append("the residuals show a pattern")
    if unless_asked and not doubts:
        return None
    return Look(tuple(doubts), rows, *sorted_rows(problem, rows, state.theta), linear)


def second_opinion(
    problem: Problem,
    options: Groups,
    backend: Backend,
    state: FitState,
    objective: DataObjective,
    look: Look,
    emit: Observer,
) -> FitState | None:
    """Look for a lower optimum.

    Parameters
    ----------
    problem : Problem
        Model, rows and bounds.
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    state : FitState
        The answer, measured on all data.
    objective : DataObjective
        Over all rows.
    look : Look
        At the answer.
    emit : callable
        Is told that it is asked for, and what came of it.

    Returns
    -------
    FitState or None
        Where the fit goes on, the answer being its `before`; None where the answer stands.
    """
    begin, rows, residuals = time.perf_counter(), look.rows, look.residuals
    part = check_objective(problem, options, backend, objective, rows)
    # linear parameters are at their best in every comparison, however the fit itself treats them
    each = list(zip(state.free.tolist(), look.linear, strict=True))  # lists are faster than arrays of a few
    separable = [free and linear for free, linear in each]
    asked = state if separable == state.separable.tolist() else replace(state, separable=np.array(separable))
    share = part.weight / objective.weight
    attempts, answer = Attempts(asked, options, part, share * state.signal), end_of(state)
    moves = [free and not linear for free, linear in each]
    n_starts, n_fits = (_STARTS, _FITS) if attempts.native else (_FEWER_STARTS, _FEWER_FITS)
    n_starts = min(n_starts, _STARTS_PER_PARAMETER * (1 + moves.count(True)))
    if not answer.converged:  # without an answer more is to be gained
        n_starts, n_fits = 2 * n_starts, 2 * n_fits
    emit(SecondOpinionAsked(look.doubts, n_starts, rows.n_rows))
    residual = residuals[0] if len(residuals) == 1 else residuals.sum(axis=0)
    ground = Ground(look.columns, residual, problem.p0, state.theta, state.lower, state.upper, np.array(moves))
    starts = rivals(ground, n_starts, options.setup.seed + state.opinions)
    before, whole = part.passes, rows.n_rows == objective.source.n_rows
    worth = attempts.screen(starts)
    # the answer is at its best on all rows, so it has to be fitted to a part of them too
    here = answer if whole else attempts.fit(state.theta)
    best = _best(attempts, asked, here, starts, worth, n_fits)
    least = _LOWER * here.sse if whole else _CLEARLY * best.sse / max(residuals.size - len(problem.p0), 1)
    lower = here.sse - best.sse > least
    sse, seconds = best.sse / share, time.perf_counter() - begin
    emit(SecondOpinionGiven(sse, lower, part.passes - before, seconds))
    return depart(state, best.theta) if lower else None


def _may_ask(options: Groups, state: FitState) -> bool:
    """Whether a second opinion is wanted and possible."""
    wanted, p = options.checks.second_opinion, len(state.theta)
    if wanted is False or state.opinions >= _MOST or not isinstance(state.stop, StopReason):
        return False
    if is_matrix_free(options, p) or p > _LARGEST:
        return False
    if state.stop is StopReason.MAX_ITERATIONS:
        return options.gauss_newton.max_iterations >= _TRIALS
    return state.stop.success or state.stop in _DOUBTFUL


def _terms(state: FitState, linear: list[bool]) -> Iterator[float]:
    """θ² Σ w (∂f/∂θ)² of the parameters that enter linearly."""
    assert state.sums is not None
    p, packed = len(linear), state.sums.packed
    for k, value in enumerate(state.theta.tolist()):
        if linear[k]:
            yield value * value * packed.item(packed_index(p, k, k))


def _best(attempts: Attempts, asked: FitState, here: End, starts: Floats, worth: Floats, n_fits: int) -> End:
    """Where the lowest of the short fits ended, the answer's own included."""
    best, agreeing = here, int(here.converged)
    moves = _moving(asked)
    enough = min(_AGREEING, 1 + len(moves))
    for row in islice(_chosen(asked, moves, starts, worth), n_fits):
        end = attempts.fit(starts[row], _HOPEFUL * best.sse)
        if end.sse < best.sse * (1.0 - _LOWER):
            best, agreeing = end, int(end.converged)
        elif end.sse <= best.sse * (1.0 + _LOWER):
            best = min(best, end, key=lambda end: end.sse)
            agreeing += row > 0 and end.converged  # that p0 leads there says nothing new
        if agreeing >= enough:
            break
    return best


def _moving(asked: FitState) -> list[int]:
    """The parameters that a start has to choose."""
    each = zip(asked.free.tolist(), asked.separable.tolist(), strict=True)
    return [k for k, (free, separable) in enumerate(each) if free and not separable]


def _chosen(asked: FitState, moves: list[int], starts: Floats, sse: Floats) -> Iterator[int]:
    """The starts that are neither near each other nor near the answer, those of the lowest sse first."""
    taken: list[list[float]] = [asked.theta.tolist()]
    for row in sse.argsort(kind="stable").tolist():
        if not math.isfinite(sse[row]):
            return
        point = starts[row].tolist()
        if not any(_is_near(point, other, moves) for other in taken):
            yield row
            taken.append(point)


def _is_near(point: list[float], other: list[float], moves: list[int]) -> bool:
    """Whether two points differ in no parameter by much."""
    return all(abs(point[k] - other[k]) <= _APART * (abs(point[k]) + abs(other[k])) for k in moves)
