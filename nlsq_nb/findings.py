"""What each phase found, as `phase_history` shows it."""

from __future__ import annotations

from typing import Any

from nlsq_nb.models.symbolic import Model
from nlsq_nb.phases.finalize import Outcome
from nlsq_nb.phases.state import FitState
from nlsq_nb.scan import DataSummary

__all__ = ["NOT_WARMED", "covariance_found", "named", "newton_found", "setup_found", "warmup_found"]

NOT_WARMED = "left out: this method begins with phase 2"
"""Why there was no phase 1."""


def setup_found(model: Model, summary: DataSummary, state: FitState) -> dict[str, Any]:
    """What phase 0 found."""
    return {
        "strategy": state.normalizer.strategy,
        "n_rows": summary.n_rows,
        "free_parameters": int(state.free.sum()),
        "eliminated": tuple(named(model, state.separable)),
    }


def warmup_found(
    relative_loss: float, mode: str, loss: float, clips: int, failures: int
) -> dict[str, Any]:
    """What phase 1 found, unless it was left out."""
    return {
        "relative_loss": relative_loss,
        "mode": mode,
        "loss": loss,
        "clips": clips,
        "line_search_failures": failures,
    }


def newton_found(state: FitState) -> dict[str, Any]:
    """What phase 2 found."""
    assert state.sums is not None
    return {
        "sse": state.sums.sse,
        "optimality": state.offset,
        "radius": state.radius,
        "probes": state.probes,
    }


def covariance_found(model: Model, outcome: Outcome) -> dict[str, Any]:
    """What phase 3 found."""
    covariance = outcome.covariance
    return {
        "condition": covariance.condition,
        "method": outcome.method,
        "corrections": outcome.corrections,
        "undetermined": tuple(named(model, covariance.undetermined)),
    }


def named(model: Model, mask: Any) -> list[str]:
    """Names of the parameters that a mask chooses."""
    return [name for name, chosen in zip(model.params, mask.tolist(), strict=True) if chosen]
