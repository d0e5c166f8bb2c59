"""The frozen states that phases hand on, and the reasons for which a fit ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.lbfgs import Pairs
from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.core.sums import NormalSums

__all__ = ["FitState", "StopReason", "WarmupPoint", "WarmupState", "WarmupStop"]

Floats = NDArray[np.float64]


class StopReason(Enum):
    """Why the iteration ended; the value is the sentence that users read."""

    RELATIVE_OFFSET = "the residuals are orthogonal to the model's tangent plane"
    BOUNDED = "nothing is to be gained within the bounds: the optimum lies on one"
    PARTLY_FLAT = "nothing more is to be gained, but the model does not change with every free parameter here"
    ROUNDING = "no further reduction of the sum of squares can be resolved in float64"
    EXACT_FIT = "the residuals are at rounding level"
    NOTHING_FREE = "every parameter is fixed by equal bounds"
    FLAT = "the model does not change with any free parameter at this point; choose another p0"
    SATURATED = "every residual lies beyond f_scale, where the loss is flat; choose a larger f_scale or another p0"
    MAX_ITERATIONS = "the iteration limit was reached before convergence (gauss_newton_max_iterations)"
    STALLED = "the trust region collapsed before convergence"
    CALLBACK = "stopped by callback"
    INTERRUPTED = "interrupted by the user; this is the best point found"

    @property
    def success(self) -> bool:
        """Whether a convergence test passed."""
        return self in (
            StopReason.RELATIVE_OFFSET,
            StopReason.BOUNDED,
            StopReason.PARTLY_FLAT,
            StopReason.ROUNDING,
            StopReason.EXACT_FIT,
            StopReason.NOTHING_FREE,
        )


class WarmupStop(Enum):
    """Why the warm-up is over; Gauss–Newton follows in any case."""

    WARM_START = "skipped: the start is near the optimum"
    NOT_ASKED = "skipped: no iterations are asked for"
    NOTHING_NONLINEAR = "skipped: no free parameter enters nonlinearly"
    PLATEAU = "the loss has reached a plateau"
    GRADIENT = "the gradient of the loss is small"
    MAX_ITERATIONS = "the iteration limit of the warm-up was reached"
    COST_GUARD = "abandoned: the loss rose, so the best point is taken"
    NO_STEP = "no acceptable step was found"
    ROUNDING = "no further reduction of the loss can be resolved in float64"

    @property
    def success(self) -> bool:
        """Never: convergence is for Gauss–Newton to judge."""
        return False


@dataclass(frozen=True, slots=True)
class WarmupPoint:
    """A point at which the loss of the warm-up was measured.

    Attributes
    ----------
    theta : ndarray, shape (p,)
        Where the sums were taken, physical units.
    sums : NormalSums
        Over the sample.
    change : ndarray, shape (p,)
        What gives the eliminated linear parameters their best values; zero elsewhere.
    loss : float
        MSE after that change, in the unit of the warm-up; inf where the model is not finite.
    gradient : ndarray, shape (p,)
        ∂loss/∂z; zero for parameters that the warm-up does not move.
    """

    theta: Floats
    sums: NormalSums
    change: Floats
    loss: float
    gradient: Floats


@dataclass(frozen=True, slots=True)
class WarmupState:
    """What the warm-up carries from step to step.

    Attributes
    ----------
    relative_loss : float
        MSE at p0 over the variance of y; once, by init.
    mode : str
        Tier of the first step; once, by init.
    linear : ndarray of bool, shape (p,)
        Parameters that are eliminated; once, by init.
    point : WarmupPoint
        The current point; every step.
    best : WarmupPoint
        The point of lowest loss; every step.
    pairs : tuple of (ndarray, ndarray, float)
        Memory of L-BFGS; every step.
    calm : int
        Iterations in a row without a change of the loss; every step.
    clips : int
        Steps shortened by layer 4.
    failures : int
        Line searches that found nothing.
    stuck : bool
        Whether the last line search failed, so that steepest descent is tried.
    filled : bool
        Whether the memory has been full.
    """

    relative_loss: float
    mode: str
    linear: NDArray[np.bool_]
    point: WarmupPoint
    best: WarmupPoint
    pairs: Pairs = ()
    calm: int = 0
    clips: int = 0
    failures: int = 0
    stuck: bool = False
    filled: bool = False


@dataclass(frozen=True)
class FitState:
    """Everything that decides the rest of a fit.

    Attributes
    ----------
    theta : ndarray, shape (p,)
        Best point so far, physical units; every accepted step.
    normalizer : ParameterNormalizer
        The affine map to z; once, by setup.
    lower, upper : ndarray, shape (p,)
        Bounds, ±inf where there are none; once, by setup.
    free : ndarray of bool, shape (p,)
        Parameters that are not fixed by lower == upper; once, by setup.
    separable : ndarray of bool, shape (p,)
        Free parameters that may be eliminated by variable projection; once, by setup.
    linear : ndarray of bool, shape (p,)
        Those that are, unless their own system is too ill-conditioned; every accepted step.
    signal : float
        Σ w y² of the data, the scale of rounding errors; once, by setup.
    sums : NormalSums or None
        Sums of order 2 at theta; every accepted step.
    relaxed : float
        The sse at theta once the linear parameters are at their best; every accepted step.
    scale : ndarray or None, shape (p,)
        D, the largest column norms met; every accepted step.
    radius : float
        Trust-region radius; every step, inf until the first.
    iteration : int
        Trials so far in this phase; every step.
    offset : float
        Relative offset √(predicted/sse) of the full step at theta; every step.
    bend : ndarray or None, shape (p, p)
        What is known of the curvature that JᵀWJ lacks; late accepted steps.
    probes : int
        Looks around singular stationary points so far; when one is met.
    doubtful : bool
        Whether the point is stationary but singular, so that the next step looks around it.
    settled : bool
        Whether the last look found nothing lower; when one is met.
    stop : StopReason, WarmupStop or None
        Set once, when the phase is over.
    first : ndarray or None, shape (p,)
        p0; once, by setup.
    first_sse : float
        The sse at p0; once, by the first pass, and anew when a robust loss comes in, in its terms.
    warmup : WarmupState or None
        Every step of the warm-up; None before it and where it was skipped.
    before : FitState or None
        The answer that a second opinion led away from; while the fit goes on elsewhere.
    opinions : int
        Times that a second opinion led elsewhere; when one does.
    f_scale : float
        Scale of the robust loss that the sums are of, inf for least squares; every stage of phase 2.
    """

    theta: Floats
    normalizer: ParameterNormalizer
    lower: Floats
    upper: Floats
    free: NDArray[np.bool_]
    separable: NDArray[np.bool_]
    linear: NDArray[np.bool_]
    signal: float
    sums: NormalSums | None = None
    relaxed: float = float("inf")
    scale: Floats | None = None
    radius: float = float("inf")
    iteration: int = 0
    offset: float = float("inf")
    bend: Floats | None = None
    probes: int = 0
    doubtful: bool = False
    settled: bool = False
    stop: StopReason | WarmupStop | None = None
    first: Floats | None = None
    first_sse: float = float("inf")
    warmup: WarmupState | None = None
    before: FitState | None = None
    opinions: int = 0
    f_scale: float = float("inf")

    def having(self, **changes: Any) -> FitState:
        """The same with other values: `dataclasses.replace` for the price of a copy, where it is made in every fit.

        Parameters
        ----------
        **changes : Any
            Values by name.

        Returns
        -------
        FitState
            A new one.
        """
        assert changes.keys() <= vars(self).keys(), changes.keys()
        new = object.__new__(FitState)
        vars(new).update(vars(self), **changes)
        return new
