"""From the numbers of a finished fit to its `FitResult`, with notes and warnings."""

from __future__ import annotations

import math
import warnings
from typing import Any

from nlsq_nb.config.groups import Groups
from nlsq_nb.errors import ConvergenceWarning, CovarianceWarning
from nlsq_nb.models.symbolic import Model
from nlsq_nb.objective import DataObjective
from nlsq_nb.observe.history import PhaseHistory
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry
from nlsq_nb.phases.finalize import Outcome
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend
from nlsq_nb.refitting import HeldFit
from nlsq_nb.residuals import Residuals
from nlsq_nb.result import FitResult
from nlsq_nb.scan import DataSummary
from nlsq_nb.sources.retrying import RetryingSource

__all__ = ["named", "result_of", "warn_of"]


def result_of(
    problem: Problem,
    source: RetryingSource,
    outcome: Outcome,
    summary: DataSummary,
    objective: DataObjective,
    observed: tuple[PhaseHistory, DefenseLayerTelemetry, Backend],
    notes: list[str],
    options: Groups,
) -> FitResult:
    """The result of a fit.

    Parameters
    ----------
    problem : Problem
        What was fitted.
    source : RetryingSource
        Its rows, as the fit read them.
    outcome : Outcome
        Of phase 3.
    summary : DataSummary
        Counts and moments of the data.
    objective : DataObjective
        Knows the passes.
    observed : tuple of (PhaseHistory, DefenseLayerTelemetry, Backend)
        Of this fit, and where its sums were computed.
    notes : list of str
        What is to be said beside what follows from the numbers.
    options : Groups
        Of this fit.

    Returns
    -------
    FitResult
        Whether or not the fit converged.
    """
    model, state, (history, telemetry, backend) = problem.model, outcome.state, observed
    stop = state.stop
    assert state.sums is not None
    assert stop is not None
    return FitResult(
        names=model.params,
        popt=state.theta,
        pcov=outcome.covariance.matrix,
        success=stop.success,
        status=stop,
        message=stop.value,
        sse=outcome.sse,
        n_points=summary.n_residuals,
        dof=outcome.dof,
        nit=sum(history.iterations.values()),
        nfev=objective.passes,
        njev=objective.passes,
        grad=-state.sums.jtr,
        optimality=state.offset,
        active_mask=outcome.active,
        bounds=(state.lower, state.upper),
        linear=model.linear_params,
        spread=summary.spread,
        model_text=model.text,
        backend=backend.name,
        notes=(*_notes(model, source, outcome), *_followed(history), *notes),
        streaming_diagnostics={
            "phase_timings": history.timings,
            "phase_iterations": history.iterations,
            "phase_history": history.entries,
            "total_time": history.total_time,
            "multistart": history.multistart,
            "second_opinions": history.opinions,
            "warmup_diagnostics": history.found("lbfgs_warmup"),
            "gauss_newton_diagnostics": history.found("gauss_newton"),
            "data_passes": objective.passes,
            "sample_passes": objective.sample_passes,
            "condition": outcome.covariance.condition,
            "telemetry": telemetry,
            "backend": backend.name,
        },
        absolute_sigma=problem.absolute_sigma,
        weight=summary.weight,
        _residuals=Residuals(model, source, state.theta, outcome.sse, summary.signal),
        _refit=HeldFit(problem, options, backend, summary.weight, state),
        _model=model,
        _options=options,
    )


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
    stop, weak = outcome.state.stop, named(model, outcome.covariance.undetermined)
    assert stop is not None
    if not stop.success:
        warnings.warn(f"{stop.value} (sse={outcome.sse:g})", ConvergenceWarning, stacklevel=depth)
    if weak:
        warnings.warn(
            f"Covariance of the parameters could not be estimated for {', '.join(weak)}",
            CovarianceWarning,
            stacklevel=depth,
        )


def _notes(model: Model, source: RetryingSource, outcome: Outcome) -> list[str]:
    """What a reader of the numbers should know, by parameter name."""
    state, notes = outcome.state, list(model.notes)
    fixed, held = named(model, ~state.free), named(model, outcome.active != 0)
    weak = named(model, outcome.covariance.undetermined)
    if fixed:
        notes.append(f"fixed by equal bounds: {', '.join(fixed)}")
    if held:
        notes.append(f"on a bound, so its error is that of the free problem: {', '.join(held)}")
    if weak and outcome.dof > 0:
        notes.append(f"not determined by the data: {', '.join(weak)}")
    if state.sums is not None and state.sums.order < 2:
        notes.append("errors are not computed for so many parameters")
    if outcome.dof <= 0:
        notes.append("no degrees of freedom: errors cannot be estimated from the residuals")
    if omitted := getattr(source.inner, "n_omitted", 0):
        notes.append(f"{omitted} rows with non-finite values were left out")
    for number, (first, end) in source.left_out:
        notes.append(f"chunk {number} could not be read: rows {first} to {end - 1} are left out")
    return notes


def _followed(history: PhaseHistory) -> list[str]:
    """What a second opinion changed."""
    return [
        f"the first answer had an sse of {o['before']:g}; a second opinion led to {o['after']:g}"
        for o in history.opinions
        if o.get("after", math.inf) < o.get("before", math.inf)
    ]


def named(model: Model, mask: Any) -> list[str]:
    """Names of the parameters that a mask chooses."""
    return [name for name, chosen in zip(model.params, mask, strict=True) if chosen]
