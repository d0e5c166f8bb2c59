"""Phase 2 under a robust loss: least squares first, then the loss, its scale brought down in stages.

A loss that redescends has no slope where all residuals are large, and minima of its own around every group of
points; least squares has neither, and its minimum, though drawn towards the outliers, lies as a rule in the right
basin. So the fit begins there and narrows the loss (graduated non-convexity: Blake & Zisserman 1987, *Visual
Reconstruction*; Black & Rangarajan 1996, Int. J. Comput. Vision 19, 57). A p0 whose robust cost is lower than that
of the least-squares fit, which few but gross outliers may have ruined, is where the loss begins instead.

Linear parameters are eliminated in the first stage only: the cost is not quadratic in them afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nlsq_nb.core.losses import Loss
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.events import Event
from nlsq_nb.phases.finalize import Scatter
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.trial import sums_of
from nlsq_nb.protocols import Objective, Phase

__all__ = ["Graduated", "scatter_of", "under_the_loss"]

_FACTOR = 3.0  # between the scales of two stages
_NEAR = 2.0  # scales that differ by less are one stage


@dataclass(frozen=True, slots=True)
class Graduated:
    """The phase; `FitState.f_scale` says at which stage it is: inf for least squares.

    Attributes
    ----------
    first, between, last : Phase
        What runs on least squares, on the loss at a larger scale, and on the loss itself.
    loss : Loss
        The loss that is asked for.
    order : int
        Order of the sums that they begin with.
    """

    first: Phase[FitState]
    between: Phase[FitState]
    last: Phase[FitState]
    loss: Loss
    order: int

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """Begin at least squares, or go on with the stage of the state."""
        tried = state.iteration if math.isfinite(state.f_scale) else 0
        state, events = self.inner(state).init(state, self.seen(state, objective))
        return self._through(replace(state, iteration=tried), objective), events

    def stop(self, state: FitState) -> StopReason | None:
        """Why the last stage is over, or None."""
        return state.stop if isinstance(state.stop, StopReason) and self.inner(state) is self.last else None

    def best(self, state: FitState) -> FitState:
        """The state itself: a worse trial never becomes the current point."""
        return state

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """A step of the stage; when that ends the next one begins."""
        state, events = self.inner(state).step(state, self.seen(state, objective))
        return self._through(state, objective), events

    def inner(self, state: FitState) -> Phase[FitState]:
        """What runs at the state's stage."""
        if math.isinf(state.f_scale):
            return self.first
        return self.last if state.f_scale == self.loss.f_scale else self.between

    def seen(self, state: FitState, objective: Objective) -> Objective:
        """The objective at the state's stage."""
        if math.isinf(state.f_scale):
            return objective
        return objective.under(replace(self.loss, f_scale=state.f_scale))

    def following(self, state: FitState, objective: Objective) -> FitState:
        """The start of the next stage.

        Parameters
        ----------
        state : FitState
            At the end of a stage.
        objective : Objective
            Over the same rows, least squares.

        Returns
        -------
        FitState
            Without a stop; its iterations go on.
        """
        sums, scale, theta = sums_of(state), state.f_scale / _FACTOR, state.theta
        wanted, begun, first_sse = self.loss.f_scale, None, state.first_sse
        if math.isinf(state.f_scale):
            scale = math.sqrt(sums.sse / max(sums.n_rows, 1))
            target = objective.under(self.loss)
            begun = target(theta, self.order)
            if state.first is not None:
                given = target(state.first, self.order)
                first_sse = given.sse
                if given.is_finite and not begun.sse < given.sse:
                    theta, begun, scale = state.first, given, wanted
        if not self.loss.redescends or not scale > _NEAR * wanted:
            scale = wanted
        return replace(
            state,
            theta=theta,
            sums=begun if scale == wanted else None,
            first_sse=first_sse,
            f_scale=scale,
            radius=math.inf,
            probes=0,
            doubtful=False,
            settled=False,
            stop=None,
        )

    def _through(self, state: FitState, objective: Objective) -> FitState:
        """The state at a stage that has something left to do."""
        while state.f_scale != self.loss.f_scale and isinstance(state.stop, StopReason):
            tried = state.iteration
            state = self.following(state, objective)
            state, _ = self.inner(state).init(state, self.seen(state, objective))
            state = replace(state, iteration=tried)
        return self.explained(state)

    def explained(self, state: FitState) -> FitState:
        """The state; where a loss that saturates is flat, it says that the residuals lie beyond its scale."""
        if state.stop is StopReason.FLAT and self.loss.saturates:
            return replace(state, stop=StopReason.SATURATED)
        return state


def under_the_loss(state: FitState, objective: Objective, loss: Loss) -> FitState:
    """The state of a fit that may have been stopped before the loss came in, measured under it.

    Parameters
    ----------
    state : FitState
        At the end of phase 2, or where a fit was stopped.
    objective : Objective
        Over the same rows, least squares.
    loss : Loss
        The loss that is asked for.

    Returns
    -------
    FitState
        The state itself, or the better one of its point and p0.
    """
    if not loss.is_robust or state.f_scale == loss.f_scale:
        return state
    order, target = sums_of(state).order, objective.under(loss)
    theta, sums = state.theta, target(state.theta, order)
    if state.first is not None:
        given = target(state.first, order)
        if not sums.sse <= given.sse:
            theta, sums = state.first, given
    return replace(state, theta=theta, sums=sums, f_scale=loss.f_scale)


def scatter_of(state: FitState, objective: Objective, loss: Loss, added: NormalSums) -> Scatter:
    """What the covariance under a robust loss is made of: three passes, or one for many parameters.

    Parameters
    ----------
    state : FitState
        The last state of phase 2.
    objective : Objective
        Over the same rows, least squares.
    loss : Loss
        The loss that was minimised.
    added : NormalSums
        What penalties add to the sums at the state's point.

    Returns
    -------
    Scatter
        Without matrices where the state has none.
    """
    order = sums_of(state).order
    sse = max(objective(state.theta, order).sse - added.sse, 0.0)
    if order < 2:
        return Scatter(sse, None, None)
    bread, meat = (objective.under(replace(loss, part=part))(state.theta, 2).jtj for part in ("bread", "meat"))
    return Scatter(sse, bread, meat - added.jtj)
