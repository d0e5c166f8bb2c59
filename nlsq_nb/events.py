"""What happened during a fit: frozen records that phases return and observers receive."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Event", "FirstPassStarted", "PhaseDone", "PhaseStarted", "StepDone"]


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


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
    """

    number: int
    name: str
    reason: str
    iterations: int


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
