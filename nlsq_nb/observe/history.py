"""The record of the phases of a fit, as `phase_history` shows it."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from nlsq_nb.events import (
    Event,
    PhaseDone,
    PhaseStarted,
    RoundPlayed,
    SecondOpinionAsked,
    SecondOpinionFollowed,
    SecondOpinionGiven,
    StartChosen,
    StartFitted,
    StartsDrawn,
    StepModeChosen,
    WarmStartDetected,
)

__all__ = ["NAMES", "TITLES", "PhaseHistory"]

NAMES = ("normalization_setup", "lbfgs_warmup", "gauss_newton", "denormalization_covariance")
"""Names of the phases, by number."""

TITLES = {
    0: "Phase 0: Normalization Setup",
    1: "Phase 1: L-BFGS Warmup",
    2: "Phase 2: Streaming Gauss-Newton",
    3: "Phase 3: Denormalization and Covariance",
}
"""Names of the phases for readers, by number."""


class PhaseHistory:
    """Notes when each phase began, how long it took and what it found, and how several starts did.

    Attributes
    ----------
    entries : list of dict
        One per finished phase: phase, name, start_time, duration (s), timestamp, reason,
        iterations, and what the phase found. Times are seconds since the epoch.
    current : int
        Number of the phase that runs, or of the last one.
    started : float or None
        When it began, seconds since the epoch.
    multistart : dict or None
        None without several starts, else: candidates (n, p), row 0 being p0; losses (n,), means
        over the batches that each was measured on; rounds that were played; survivors, rows by
        round, before the first included; fitted, a list of dicts of the short fits with candidate,
        theta, sse, iterations and reason; taken, the row that the fit began from, None as long as
        there is none; p0_sse; seconds that all of it took.
    opinions : list of dict
        One per second opinion that was asked for: doubts; starts and rows that were compared,
        passes over these rows; sse, the lowest that a short fit found, an estimate where the rows
        are a sample; lower, whether that is clearly lower than the answer's, so that the fit went
        on there; before and after, the sse of all data then; seconds that it took.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.current = 0
        self.started: float | None = None
        self.multistart: dict[str, Any] | None = None
        self.opinions: list[dict[str, Any]] = []
        self._begin = self._first = time.perf_counter()
        self._noted: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Receive an event."""
        if isinstance(event, PhaseStarted):
            self.current, self.started, self._noted = event.number, time.time(), {}
            self._begin = time.perf_counter()
        elif isinstance(event, WarmStartDetected):
            self._noted = {"relative_loss": event.relative_loss}
        elif isinstance(event, StepModeChosen):
            self._noted = {"relative_loss": event.relative_loss, "mode": event.mode}
        elif isinstance(event, PhaseDone):
            assert self.started is not None
            self.add(event, self.started, time.perf_counter() - self._begin, time.time())
        else:
            self._note_opinion(event)
            self._note_starts(event)

    def _note_opinion(self, event: Event) -> None:
        """Keep what a second opinion said, and what became of it."""
        if isinstance(event, SecondOpinionAsked):
            asked = {"doubts": event.doubts, "starts": event.starts, "rows": event.n_rows}
            self.opinions.append(asked)
        elif isinstance(event, SecondOpinionGiven):
            found = {"passes": event.passes, "sse": event.sse, "lower": event.lower}
            self.opinions[-1] |= {**found, "seconds": event.seconds}
        elif isinstance(event, SecondOpinionFollowed):
            self.opinions[-1] |= {"before": event.before, "after": event.sse}

    def add(self, done: PhaseDone, started: float, duration: float, ended: float) -> None:
        """Add a finished phase.

        Parameters
        ----------
        done : PhaseDone
            What became of it.
        started, ended : float
            When, seconds since the epoch.
        duration : float
            Seconds.
        """
        self.entries.append({
            "phase": done.number,
            "name": done.name,
            "start_time": started,
            "duration": duration,
            "timestamp": ended,
            "reason": done.reason,
            "iterations": done.iterations,
            **self._noted,
            **done.found,
        })

    def _note_starts(self, event: Event) -> None:
        """Keep what becomes of several starts."""
        if isinstance(event, StartsDrawn):
            self._begin = time.perf_counter()
            everybody = tuple(range(len(event.points)))
            self.multistart = {
                "candidates": event.points,
                "losses": np.full(len(event.points), np.nan),
                "rounds": 0,
                "survivors": [everybody],
                "fitted": [],
                "taken": None,
                "p0_sse": math.nan,
                "seconds": 0.0,
            }
        if self.multistart is None:
            return
        if isinstance(event, RoundPlayed):
            self.multistart |= {"losses": event.losses, "rounds": event.number}
            self.multistart["survivors"].append(event.survivors)
        elif isinstance(event, StartFitted):
            names = ("candidate", "theta", "sse", "iterations", "reason")
            self.multistart["fitted"].append({name: getattr(event, name) for name in names})
        elif isinstance(event, StartChosen):
            seconds = time.perf_counter() - self._begin
            taken = {"taken": event.candidate, "p0_sse": event.given_sse, "seconds": seconds}
            self.multistart |= taken

    @property
    def total_time(self) -> float:
        """Seconds since the fit began."""
        return time.perf_counter() - self._first

    @property
    def timings(self) -> dict[str, float]:
        """Name of each finished phase → seconds."""
        return {entry["name"]: entry["duration"] for entry in self.entries}

    @property
    def iterations(self) -> dict[str, int]:
        """Name of each finished iterative phase → steps."""
        return {e["name"]: e["iterations"] for e in self.entries if e["phase"] in (1, 2)}

    def found(self, name: str) -> dict[str, Any]:
        """What a phase found.

        Parameters
        ----------
        name : str
            As in `entries`.

        Returns
        -------
        dict
            Empty before the phase is done.
        """
        return next((dict(entry) for entry in self.entries if entry["name"] == name), {})
