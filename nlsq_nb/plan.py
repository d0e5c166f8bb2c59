"""The parts of a fit, made from its options: phases, and the objective with its sample."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.config.groups import (
    DEFAULT_RATE,
    DEFAULT_RATE_CAREFUL,
    DEFAULT_RATE_REFINEMENT,
    Groups,
)
from nlsq_nb.core.losses import Loss
from nlsq_nb.core.penalties import GroupVariance, largest_strength
from nlsq_nb.core.sampling import stratified_rows
from nlsq_nb.drawn import sample_of, sample_size
from nlsq_nb.engines.spread import engine_over
from nlsq_nb.engines.whitened import WhitenedEngine
from nlsq_nb.errors import ConfigError
from nlsq_nb.objective import DataObjective, SourcedEngine
from nlsq_nb.phases.conjugate_gradient import ConjugateGradient
from nlsq_nb.phases.defense import Defense, StepSizes
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.graduated import Graduated
from nlsq_nb.phases.state import FitState
from nlsq_nb.phases.switching import Switching
from nlsq_nb.phases.warmup import Warmup
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend, Phase, Source
from nlsq_nb.scan import DataSummary, curvature_at, require_finite
from nlsq_nb.sources.sample import ScatteredSource, batches, sample

__all__ = [
    "batch_objectives",
    "check_objective",
    "is_matrix_free",
    "newton_phase",
    "objective_over",
    "penalty_of",
    "robust_phase",
    "warmup_phase",
]

Floats = NDArray[np.float64]
_GATHERED = 100_000  # rows from which the batches of the tournament are drawn
_BATCH = 256  # least rows of a batch of the tournament
_BATCH_PER_PARAMETER = 16
_FINE = 1e-2  # of the tolerance: convergence under a robust loss is linear, so that no step overshoots it
_ROUGH = 1e-2  # relative offset that the stages before the last are brought to


def warmup_phase(options: Groups, summary: DataSummary, n_params: int) -> Warmup:
    """Phase 1.

    Parameters
    ----------
    options : Groups
        Validated options.
    summary : DataSummary
        Moments of y.
    n_params : int
        p.

    Returns
    -------
    Warmup
        With the layers that are on.
    """
    o = options.defense
    # at the default rates the step sizes are taken as they are
    sizes = StepSizes(
        refinement=o.refinement_step * o.rate_refinement / DEFAULT_RATE_REFINEMENT,
        careful=o.careful_step * o.rate_careful / DEFAULT_RATE_CAREFUL,
        exploration=o.exploration_step * o.rate / DEFAULT_RATE,
        fixed=o.initial_step * o.rate / DEFAULT_RATE,
    )
    defense = Defense(
        warm_start=o.warm_start_threshold if o.detects_warm_start else None,
        adapts_step=o.adapts_step,
        sizes=sizes,
        cost_tolerance=o.cost_tolerance if o.guards_cost else None,
        max_step=o.max_step if o.clips_steps else None,
    )
    w = options.warmup
    return Warmup(
        switching=Switching(w.iterations, w.max_iterations, w.plateau, w.gradient, w.criteria),
        defense=defense,
        variance=summary.spread / summary.weight,
        memory=w.memory,
        line_search=w.line_search,
        gradient_clip=w.gradient_clip,
        ridge=options.gauss_newton.ridge,
        mean_square=summary.signal / summary.weight,
        order=1 if is_matrix_free(options, n_params) else 2,
        refine=newton_phase(options, n_params),
    )


def robust_phase(options: Groups, n_params: int, loss: Loss) -> Phase[FitState]:
    """Phase 2 under a loss.

    Parameters
    ----------
    options : Groups
        Validated options.
    n_params : int
        p.
    loss : Loss
        Any; that of least squares makes it `newton_phase`.

    Returns
    -------
    Phase
        The stages before the last are not brought to convergence, and may take half of the iterations.
    """
    if not loss.is_robust:
        return newton_phase(options, n_params)
    tol = options.gauss_newton.tol
    whole = newton_phase(options, n_params, tol=_FINE * tol)
    tol = max(_ROUGH, tol)
    rough = newton_phase(options, n_params, max(1, options.gauss_newton.max_iterations // 2), tol)
    if isinstance(whole, GaussNewton) and isinstance(rough, GaussNewton):
        between, last = (replace(phase, eliminates=False) for phase in (rough, whole))
        return Graduated(rough, between, last, loss, order=2)
    return Graduated(rough, rough, whole, loss, order=1)


def newton_phase(
    options: Groups, n_params: int, at_most: int | None = None, tol: float | None = None
) -> Phase[FitState]:
    """Phase 2.

    Parameters
    ----------
    options : Groups
        Validated options.
    n_params : int
        p.
    at_most : int, optional
        Fewer iterations than the options allow.
    tol : float, optional
        Another relative offset than that of the options.

    Returns
    -------
    Phase
        Gauss–Newton on the sums, or matrix-free for many parameters.
    """
    newton, o = options.gauss_newton, options.cg
    iterations = min(newton.max_iterations, at_most or newton.max_iterations)
    common = (iterations, newton.tol if tol is None else tol, newton.initial_radius)
    if is_matrix_free(options, n_params):
        return ConjugateGradient(*common, o.max_iterations, o.rtol, o.atol)
    return GaussNewton(*common, newton.ridge)


def is_matrix_free(options: Groups, n_params: int) -> bool:
    """Whether the parameters are so many that JᵀWJ is not formed, and none are eliminated."""
    return n_params >= options.cg.threshold


def penalty_of(options: Groups, n_rows: int) -> GroupVariance | None:
    """What is added to the sums beside the data.

    Parameters
    ----------
    options : Groups
        Validated options.
    n_rows : int
        Rows of the data.

    Returns
    -------
    GroupVariance or None
        None without a penalty.
    """
    o = options.penalty
    return GroupVariance(o.groups or (), o.strength, n_rows) if o.group_variance else None


def objective_over(problem: Problem, options: Groups, backend: Backend, weight: float) -> DataObjective:
    """The sums over all rows, and over the sample that the warm-up sees.

    Parameters
    ----------
    problem : Problem
        Model and rows.
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    weight : float
        Σ w of all rows.

    Returns
    -------
    DataObjective
        Its sample is gathered when it is first asked for.

    Raises
    ------
    ConfigError
        When λ is so large that float64 loses the data beside it.
    """
    source = problem.source
    _require_carried(problem, options, weight)
    part = sample_of(problem, options)
    if part is source:
        return _over(problem, source, options, backend, weight=weight)
    few = partial(_over, problem, part, options, backend)
    return _over(problem, source, options, backend, weight=weight, sample=few)


def _require_carried(problem: Problem, options: Groups, weight: float) -> None:
    """Refuse a penalty that leaves nothing of the data in the sums."""
    o = options.penalty
    if not o.group_variance:
        return
    known = curvature_at(problem.model.program, problem.source, problem.p0)
    if problem.whitening is not None:
        known = known * (weight / len(problem.whitening.lower))
    limit = largest_strength(known, o.groups or ()) if np.isfinite(known).all() else np.inf
    if o.strength > limit:
        raise ConfigError(
            f"group_variance_lambda={o.strength:g} is more than float64 can carry beside these data; "
            f"use at most {0.99 * limit:.3g}, which makes the members of a group equal to some "
            "ten digits"
        )


def batch_objectives(
    problem: Problem, options: Groups, backend: Backend, wanted: int
) -> list[DataObjective]:
    """The sums over disjoint parts of a sample, each of which has rows from all over the data.

    Parameters
    ----------
    problem : Problem
        Model and rows.
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    wanted : int
        Parts; fewer where they would have too few rows to tell one start from another.

    Returns
    -------
    list of DataObjective
        At least one.
    """
    source = problem.source
    if problem.whitening is not None:  # rows mean nothing without the others
        return [_over(problem, source, options, backend)]
    rows = min(source.n_rows, max(_GATHERED, sample_size(problem, options)))
    ranges = stratified_rows(source.n_rows, rows, options.setup.seed)
    least = max(_BATCH, _BATCH_PER_PARAMETER * problem.model.n_params)
    parts = batches(sample(source, ranges), max(1, min(wanted, rows // least)))
    return [_over(problem, part, options, backend) for part in parts]


def check_objective(
    problem: Problem, options: Groups, backend: Backend, objective: DataObjective, rows: Source
) -> DataObjective:
    """The sums over the rows on which an answer is compared with others.

    Parameters
    ----------
    problem : Problem
        Model and rows.
    options : Groups
        Validated options.
    backend : Backend
        Where sums are computed.
    objective : DataObjective
        Over all rows.
    rows : Source
        From `rows_to_check`.

    Returns
    -------
    DataObjective
        The objective's sample where that has these rows.
    """
    if not isinstance(rows, ScatteredSource):
        return objective.sample
    engine = _engine_of(problem, rows, backend)
    # a start at which the model is not finite is one of many
    return DataObjective(engine, problem.model.n_params, lambda _: None, penalty=penalty_of(options, rows.n_rows))


def _over(
    problem: Problem,
    rows: Source,
    options: Groups,
    backend: Backend,
    **rest: Any,
) -> DataObjective:
    model, engine = problem.model, _engine_of(problem, rows, backend)
    return DataObjective(
        engine,
        model.n_params,
        lambda theta: require_finite(model.program, problem.source, theta, model.params),
        penalty=penalty_of(options, rows.n_rows),
        **rest,
    )


def _engine_of(problem: Problem, rows: Source, backend: Backend) -> SourcedEngine:
    """What runs the passes."""
    program = problem.model.program
    if problem.whitening is not None:
        return WhitenedEngine(program, rows, problem.whitening)
    return engine_over(backend, program, rows)
