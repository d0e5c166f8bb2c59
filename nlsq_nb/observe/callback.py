"""The user's callback as a subscriber to events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlsq_nb.errors import StopFit
from nlsq_nb.events import Event, StepDone, WarmupStepDone

__all__ = ["CallbackObserver"]


class CallbackObserver:
    """Calls `callback(params, loss, iteration)` in physical units.

    Parameters
    ----------
    callback : callable
        Receives a copy of the parameters (p,), the sse (estimated from the sample in a sampled
        warm-up), and an iteration count that rises through the warm-up and Gauss–Newton.
        Returning True, or raising `StopFit`, ends the fit with the best point.
    every : int
        Iterations between calls; the first iteration is always told.

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
        self._count = 0

    def __call__(self, event: Event) -> None:
        """Receive an event."""
        if not isinstance(event, (StepDone, WarmupStepDone)):
            return
        self._count += 1
        due = (self._count - 1) % self._every == 0
        if due:
            answer = self._callback(np.array(event.theta), event.sse, self._count)
            if isinstance(answer, (bool, np.bool_)) and answer:
                raise StopFit
