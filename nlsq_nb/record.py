"""`FitRecord`: how a fit stands, for those who look at it while it runs and afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.models.symbolic import Model
from nlsq_nb.observe.history import PhaseHistory
from nlsq_nb.phases.state import FitState

__all__ = ["FitRecord"]

Floats = NDArray[np.float64]


@dataclass(slots=True)
class FitRecord:
    """How a fit stands, or stood at its end; holds no data.

    Attributes
    ----------
    model : Model
        What is fitted.
    history : PhaseHistory
        Phases so far.
    state : FitState or None
        The latest state; None before the first.
    unit : float
        The sse of a loss of 1 in the warm-up.
    """

    model: Model
    history: PhaseHistory = field(default_factory=PhaseHistory)
    state: FitState | None = None
    unit: float = math.nan

    def see(self, state: FitState) -> None:
        """Take a state as the latest."""
        self.state = state

    def best(self) -> tuple[Floats | None, float]:
        """The best point so far, (p,), and its sse; None and inf before the first pass."""
        state = self.state
        if state is None:
            return None, math.inf
        if self.history.current == 1 and state.warmup is not None:
            point = state.warmup.best
            return point.theta + point.change, point.loss * self.unit
        known = [s for s in (state, state.before) if s is not None and s.sums is not None]
        best = min(known, key=lambda s: s.sums.sse if s.sums is not None else math.inf, default=state)
        return best.theta.copy(), math.inf if best.sums is None else best.sums.sse
