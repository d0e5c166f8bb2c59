"""The user's callback as a subscriber to events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlsq_nb.errors import StopFit
from nlsq_nb.events import Event, SecondOpinionFollowed, StartFitted, StepDone, WarmupStepDone

__all__ = ["CallbackObserver"]


class CallbackObserver:
    """Calls `callback(params, loss, iteration)` in physical units.

    Parameters
    ----------
    callback : callable
        Receives a copy of the parameters (p,), the sse (estimated from the sample in a sampled
        warm-up and for one of several starts), and a count that rises through the short fits of
        several starts, the warm-up, Gauss–Newton, and the answers that a second opinion led to.
        Returning True, or raising `StopFit`, ends the fit with the best point.
    every : int
        Iterations between calls; the first iteration, where each short fit of several starts ended,
        and what a second opinion led to, is always told.

    Raises
    ------
    TypeError
        When the callback cannot be called.
    """

    def __init__(self, callback: Callable[..., Any], every: int) -> None:
        if not callable(callback):
            raise TypeError(f"callback={callback!r} cannot be called")
        self._callback = callback
        self._every = every
        self._starts = self._steps = 0

    def __call__(self, event: Event) -> None:
        """Receive an event."""
        if isinstance(event, (StartFitted, SecondOpinionFollowed)):
            self._starts += 1
        elif isinstance(event, (StepDone, WarmupStepDone)):
            self._steps += 1
            if (self._steps - 1) % self._every:
                return
        else:
            return
        answer = self._callback(np.array(event.theta), event.sse, self._starts + self._steps)
        if isinstance(answer, (bool, np.bool_)) and answer:
            raise StopFit
