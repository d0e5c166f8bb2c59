"""The loss that the warm-up minimises: of all parameters, or of the nonlinear ones alone.

In a separable model a pass gives the best linear parameters and the loss that they lead to; since
∂loss/∂c = 0 there, the gradient is that by the nonlinear ones at fixed c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.bounds import moved, room_within
from nlsq_nb.core.factor import Factor
from nlsq_nb.core.linesearch import Evaluate, Trial
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.varpro import linear_factor, relax
from nlsq_nb.phases.state import FitState, WarmupPoint
from nlsq_nb.protocols import Objective

__all__ = ["Loss", "relaxed"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_SETTLED = 1e-2  # relative gain of relaxed linear parameters that spoils the gradient taken before


def relaxed(state: FitState, point: WarmupPoint) -> Floats:
    """θ of a point with its linear parameters at their best."""
    return moved(point.theta, point.change, state.lower, state.upper)


@dataclass(frozen=True, slots=True)
class Loss:
    """MSE over some rows, in a unit.

    Attributes
    ----------
    state : FitState
        Gives bounds, scales and free parameters.
    sample : Objective
        The rows.
    linear : ndarray of bool, shape (p,)
        Parameters to eliminate.
    unit : float
        What the MSE is measured in.
    ridge : float
        Relative ridge where the system of the linear parameters is numerically singular.
    """

    state: FitState
    sample: Objective
    linear: Mask
    unit: float
    ridge: float

    @property
    def whole(self) -> float:
        """The sse of a loss of 1."""
        return self.sample.weight * self.unit

    @property
    def eliminates(self) -> bool:
        """Whether there is a parameter to eliminate."""
        return True in self.linear.tolist()

    def at(self, theta: Floats, order: int = 1) -> WarmupPoint:
        """The point, measured; `order` is the least order of its sums."""
        return self.settled(self.point(theta, self.sample(theta, 2 if self.eliminates else order)))

    def point(self, theta: Floats, sums: NormalSums) -> WarmupPoint:
        """Loss and gradient from the sums, the linear parameters relaxed."""
        change = np.zeros_like(theta)
        if not sums.is_finite:
            return WarmupPoint(theta, sums, change, math.inf, change)
        state, sse, jtr, moves = self.state, sums.sse, sums.jtr, self.state.free
        if self.eliminates:
            room = room_within(state.lower, state.upper, theta)
            factor = sums.derived["linear"] = linear_factor(sums.jtj, jtr, self.linear)
            best = relax(sums.jtj, jtr, self.linear, room, self.ridge, factor)
            change, jtr = best.delta, jtr - sums.jtj @ best.delta
            sse, moves = max(sse - best.predicted, 0.0), moves & ~self.linear
        whole = self.whole
        gradient = -2.0 / whole * state.normalizer.scales * jtr
        if False in moves.tolist():
            gradient = np.where(moves, gradient, 0.0)
        return WarmupPoint(theta, sums, change, sse / whole, gradient)

    def settled(self, point: WarmupPoint) -> WarmupPoint:
        """The point measured anew where its linear parameters were far from their best values.

        What is solved for is believed only as far as a measurement bears it out: nearly equal terms
        leave nothing but rounding errors in the system, and a loss near zero that is not there.
        """
        if math.isinf(point.loss) or not self.eliminates or self._is_settled(point):
            return point
        theta = relaxed(self.state, point)
        new = self.point(theta, self.sample(theta, 2))
        if not new.sums.is_finite or new.sums.sse > point.sums.sse:
            new = point
        if self._is_settled(new):
            return new
        return replace(new, change=np.zeros_like(theta), loss=new.sums.sse / self.whole)

    def along(self, here: WarmupPoint, way: Floats) -> Evaluate:
        """The loss along a way in z, bounds by projection, linear parameters following."""
        state = self.state
        base = relaxed(state, here)
        change = self._with_linear(here, state.normalizer.scales * way)
        bounded = room_within(state.lower, state.upper, base) is not None

        def evaluate(t: float) -> Trial:
            theta, kept = base + t * change, way
            if bounded:
                wanted, theta = theta, moved(base, t * change, state.lower, state.upper)
                kept = np.where(wanted == theta, way, 0.0)
            point = self.at(theta)
            return Trial(t, point.loss, float(point.gradient.dot(kept)), point)

        return evaluate

    def _with_linear(self, here: WarmupPoint, change: Floats) -> Floats:
        """A change with what keeps the linear parameters at their best to first order."""
        if not self.eliminates:
            return change
        right = -(here.sums.jtj @ change)
        if not all(map(math.isfinite, right.tolist())):
            return change
        factor: Factor | None = here.sums.derived.get("linear")
        if factor is not None:
            return change + factor.solve(right)
        return change + relax(here.sums.jtj, right, self.linear, None, self.ridge).delta

    def _is_settled(self, point: WarmupPoint) -> bool:
        """Whether the linear parameters are near their best values already."""
        return point.sums.sse - point.loss * self.whole <= _SETTLED * point.sums.sse
