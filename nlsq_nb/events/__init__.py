"""What happened during a fit: frozen records that phases return and observers receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nlsq_nb.events.base import Event
from nlsq_nb.events.starts import (
    RoundPlayed,
    SecondOpinionAsked,
    SecondOpinionFollowed,
    SecondOpinionGiven,
    StartChosen,
    StartFitted,
    StartsDrawn,
)

__all__ = [
    "CostGuardTripped",
    "Event",
    "FirstPassStarted",
    "HistoryFilled",
    "LineSearchFailed",
    "PassProgress",
    "PhaseDone",
    "PhaseStarted",
    "RoundPlayed",
    "SecondOpinionAsked",
    "SecondOpinionFollowed",
    "SecondOpinionGiven",
    "StartChosen",
    "StartFitted",
    "StartsDrawn",
    "StepClipped",
    "StepDone",
    "StepModeChosen",
    "StepsClipped",
    "WarmStartDetected",
    "WarmupStarted",
    "WarmupStepDone",
]


@dataclass(frozen=True, slots=True)
class PhaseStarted(Event):
    """A phase begins.

    Attributes
    ----------
    number : int
        0 normalisation, 1 warm-up, 2 Gauss–Newton, 3 covariance.
    name : str
        Its name in `phase_history`.
    """

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class PhaseDone(Event):
    """A phase ended.

    Attributes
    ----------
    number : int
        0 to 3.
    name : str
        Its name in `phase_history`.
    reason : str
        Why it ended.
    iterations : int
        Steps it took.
    found : dict
        What it found, by name, for `phase_history`.
    """

    number: int
    name: str
    reason: str
    iterations: int
    found: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FirstPassStarted(Event):
    """The first full pass of a phase begins.

    Attributes
    ----------
    n_chunks : int
        Chunks that the source is read in.
    n_rows : int
        Rows.
    """

    n_chunks: int
    n_rows: int


@dataclass(frozen=True, slots=True)
class StepDone(Event):
    """A trial step was evaluated.

    Attributes
    ----------
    iteration : int
        Counts trials from 1.
    limit : int
        Largest number of trials.
    sse : float
        Σ w r² of the best point after the step.
    grad_norm : float
        ‖S JᵀWr‖₂ at the old point: the gradient by the normalised parameters.
    reduction : float
        Old minus new sse; negative for a rejected trial.
    radius : float
        Trust-region radius of the trial, in normalised parameters.
    accepted : bool
        Whether the trial became the current point.
    theta : tuple of float
        The current point after the step, physical units.
    """

    iteration: int
    limit: int
    sse: float
    grad_norm: float
    reduction: float
    radius: float
    accepted: bool
    theta: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PassProgress(Event):
    """A pass over the data that has been running for a while.

    Attributes
    ----------
    rows_done, n_rows : int
        Rows read so far, and rows of the whole pass.
    seconds : float
        Since the pass began.
    """

    rows_done: int
    n_rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WarmupStarted(Event):
    """The warm-up looks at the start."""


@dataclass(frozen=True, slots=True)
class WarmStartDetected(Event):
    """Layer 1: the start is so good that the warm-up is skipped.

    Attributes
    ----------
    relative_loss : float
        MSE at p0 over the variance of y.
    threshold : float
        What it is below.
    """

    relative_loss: float
    threshold: float


@dataclass(frozen=True, slots=True)
class StepModeChosen(Event):
    """Layer 2: how long the first step may be.

    Attributes
    ----------
    mode : str
        "refinement", "careful", "exploration", or "fixed" when the layer is off.
    relative_loss : float
        MSE at p0 over the variance of y.
    """

    mode: str
    relative_loss: float


@dataclass(frozen=True, slots=True)
class CostGuardTripped(Event):
    """Layer 3: the loss rose, so the warm-up was abandoned for its best point.

    Attributes
    ----------
    cost_ratio : float
        Loss over the best loss.
    tolerance : float
        Relative increase that is tolerated.
    iteration : int
        Iteration of the warm-up.
    """

    cost_ratio: float
    tolerance: float
    iteration: int


@dataclass(frozen=True, slots=True)
class StepClipped(Event):
    """Layer 4: a step was shortened before the line search.

    Attributes
    ----------
    original_norm, max_norm : float
        Length of the step in normalised parameters, and the longest one allowed.
    """

    original_norm: float
    max_norm: float


@dataclass(frozen=True, slots=True)
class StepsClipped(Event):
    """Steps that layer 4 shortened in a warm-up that ran without being watched.

    Attributes
    ----------
    original_norms : tuple of float
        Their lengths, in order, in normalised parameters.
    max_norm : float
        The longest step allowed.
    """

    original_norms: tuple[float, ...]
    max_norm: float


@dataclass(frozen=True, slots=True)
class HistoryFilled(Event):
    """The L-BFGS memory is full for the first time.

    Attributes
    ----------
    iteration : int
        Iteration of the warm-up.
    """

    iteration: int


@dataclass(frozen=True, slots=True)
class LineSearchFailed(Event):
    """No acceptable step was found, though the loss could still resolve one.

    Attributes
    ----------
    iteration : int
        Iteration of the warm-up.
    reason : str
        What went wrong.
    """

    iteration: int
    reason: str


@dataclass(frozen=True, slots=True)
class WarmupStepDone(Event):
    """An iteration of the warm-up.

    Attributes
    ----------
    iteration : int
        Counts from 1.
    limit : int
        Largest number of iterations.
    sse : float
        The loss of the current point times Σ w of all data: an estimate when the data are sampled.
    grad_norm : float
        Norm of the projected gradient of the loss, in normalised parameters.
    step_norm : float
        Length of the step in normalised parameters.
    theta : tuple of float
        The current point, physical units.
    """

    iteration: int
    limit: int
    sse: float
    grad_norm: float
    step_norm: float
    theta: tuple[float, ...]
