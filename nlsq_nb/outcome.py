"""From the numbers of a finished fit to its `FitResult`, with notes and warnings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nlsq_nb.config.groups import Groups
from nlsq_nb.errors import ConvergenceWarning, CovarianceWarning
from nlsq_nb.findings import named
from nlsq_nb.models.symbolic import Model
from nlsq_nb.observe.history import PhaseHistory
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry
from nlsq_nb.phases.finalize import Outcome
from nlsq_nb.phases.trial import sums_of
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend
from nlsq_nb.refitting import HeldFit
from nlsq_nb.residuals import Residuals
from nlsq_nb.result import FitResult
from nlsq_nb.scan import DataSummary
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.stored import Behind

__all__ = ["Observed", "diagnostics", "followed", "result_of", "warn_of"]


@dataclass(frozen=True, slots=True)
class Observed:
    """What was counted in a fit.

    Attributes
    ----------
    passes : int
        Over all rows.
    steps : int
        Of phases 1 and 2.
    backend : Backend
        Which one ran.
    diagnose : callable
        Makes `streaming_diagnostics`.
    """

    passes: int
    steps: int
    backend: Backend
    diagnose: Callable[[], dict[str, Any]]


def result_of(
    problem: Problem,
    source: RetryingSource,
    options: Groups,
    outcome: Outcome,
    summary: DataSummary,
    observed: Observed,
    notes: tuple[str, ...] = (),
) -> FitResult:
    """The result of a fit.

    Parameters
    ----------
    problem : Problem
        What was fitted.
    source : RetryingSource
        Its rows, as the fit read them.
    options : Groups
        Of this fit.
    outcome : Outcome
        Of phase 3.
    summary : DataSummary
        Counts and moments of the data.
    observed : Observed
        What was counted on the way.
    notes : tuple of str
        What is to be said beside what follows from the numbers.

    Returns
    -------
    FitResult
        Whether or not the fit converged.
    """
    model, state = problem.model, outcome.state
    stop = state.stop
    assert stop is not None
    return FitResult(
        names=model.params,
        popt=state.theta,
        pcov=outcome.covariance.matrix,
        success=stop.success,
        status=stop,
        message=stop.value,
        sse=outcome.sse,
        cost=outcome.cost,
        loss=problem.loss.kind,
        f_scale=problem.loss.f_scale,
        n_points=summary.n_residuals,
        dof=outcome.dof,
        nit=observed.steps,
        nfev=observed.passes,
        njev=observed.passes,
        grad=-sums_of(state).jtr,
        optimality=state.offset,
        active_mask=outcome.active,
        bounds=(state.lower, state.upper),
        linear=model.linear_params,
        spread=summary.spread,
        model_text=model.text,
        backend=observed.backend.name,
        notes=(*_notes(model, source, outcome), *notes),
        absolute_sigma=problem.absolute_sigma,
        weight=summary.weight,
        _behind=Behind(
            observed.diagnose,
            lambda: Residuals(
                model, source, state.theta, outcome.sse, summary.signal, observed.backend, problem.whitening
            ),
            lambda: HeldFit(problem, options, observed.backend, summary.weight, state),
        ),
        _model=model,
        _options=options,
    )


def diagnostics(
    history: PhaseHistory,
    telemetry: DefenseLayerTelemetry,
    outcome: Outcome,
    passes: tuple[int, int],
    backend: str,
    seconds: float,
) -> dict[str, Any]:
    """`FitResult.streaming_diagnostics`.

    Parameters
    ----------
    history : PhaseHistory
        Of all phases.
    telemetry : DefenseLayerTelemetry
        Of this fit.
    outcome : Outcome
        Of phase 3.
    passes : tuple of int
        Over all rows, and over the sample.
    backend : str
        Which one ran.
    seconds : float
        What the fit took.

    Returns
    -------
    dict
        See `FitResult`.
    """
    return {
        "phase_timings": history.timings,
        "phase_iterations": history.iterations,
        "phase_history": history.entries,
        "total_time": seconds,
        "multistart": history.multistart,
        "second_opinions": history.opinions,
        "warmup_diagnostics": history.found("lbfgs_warmup"),
        "gauss_newton_diagnostics": history.found("gauss_newton"),
        "data_passes": passes[0],
        "sample_passes": passes[1],
        "condition": outcome.covariance.condition,
        "telemetry": telemetry,
        "backend": backend,
    }


def warn_of(model: Model, outcome: Outcome, depth: int) -> None:
    """Warn of what the caller must not overlook.

    Parameters
    ----------
    model : Model
        Names the parameters.
    outcome : Outcome
        Of phase 3.
    depth : int
        Frames between here and the user's line, as `warnings.warn` counts them.
    """
    stop, weak = outcome.state.stop, outcome.covariance.undetermined
    assert stop is not None
    if not stop.success:
        warnings.warn(f"{stop.value} (sse={outcome.sse:g})", ConvergenceWarning, stacklevel=depth)
    if True in weak.tolist():
        warnings.warn(
            f"Covariance of the parameters could not be estimated for {', '.join(named(model, weak))}",
            CovarianceWarning,
            stacklevel=depth,
        )


def _notes(model: Model, source: RetryingSource, outcome: Outcome) -> list[str]:
    """What a reader of the numbers should know, by parameter name."""
    state, notes, weak = outcome.state, list(model.notes), outcome.covariance.undetermined
    if False in state.free.tolist():
        notes.append(f"fixed by equal bounds: {', '.join(named(model, ~state.free))}")
    if any(outcome.active.tolist()):
        held = ", ".join(named(model, outcome.active != 0))
        notes.append(f"on a bound, so its error is that of the free problem: {held}")
    if outcome.dof > 0 and True in weak.tolist():
        notes.append(f"not determined by the data: {', '.join(named(model, weak))}")
    if state.sums is not None and state.sums.order < 2:
        notes.append("errors are not computed for so many parameters")
    if outcome.dof <= 0:
        notes.append("no degrees of freedom: errors cannot be estimated from the residuals")
    if omitted := getattr(source.inner, "n_omitted", 0):
        notes.append(f"{omitted} rows with non-finite values were left out")
    for number, (first, end) in source.left_out:
        notes.append(f"chunk {number} could not be read: rows {first} to {end - 1} are left out")
    return notes


def followed(history: PhaseHistory) -> tuple[str, ...]:
    """What a second opinion changed."""
    return tuple(
        f"the first answer had an sse of {o['before']:g}; a second opinion led to {o['after']:g}"
        for o in history.opinions
        if o.get("after", math.inf) < o.get("before", math.inf)
    )
