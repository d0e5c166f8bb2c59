"""The four defence layers of the warm-up: numbers in, verdict out.

They keep a warm-up from doing harm: it is skipped where the start is good (1), begins with a step
that suits the quality of the start (2), is abandoned when the loss rises (3), and never takes a step
beyond a given length in normalised parameters (4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Defense",
    "StepSizes",
    "clip_step",
    "cost_rose",
    "is_warm_start",
    "relative_loss",
    "step_mode",
]

Floats = NDArray[np.float64]
_REFINEMENT, _CAREFUL = 0.1, 1.0  # relative losses below which the tiers begin


@dataclass(frozen=True, slots=True)
class StepSizes:
    """Length of the first trial step in normalised parameters, by tier.

    Attributes
    ----------
    refinement, careful, exploration : float
        For a good, a middling and a poor start.
    fixed : float
        When the tiers are off.
    """

    refinement: float
    careful: float
    exploration: float
    fixed: float


@dataclass(frozen=True, slots=True)
class Defense:
    """The layers that are on; None stands for one that is off.

    Attributes
    ----------
    warm_start : float or None
        Layer 1: relative loss below which the warm-up is skipped.
    adapts_step : bool
        Layer 2: whether the tier follows the relative loss.
    sizes : StepSizes
        First steps of the tiers.
    cost_tolerance : float or None
        Layer 3: relative increase of the loss that is tolerated.
    max_step : float or None
        Layer 4: longest step in normalised parameters.
    """

    warm_start: float | None
    adapts_step: bool
    sizes: StepSizes
    cost_tolerance: float | None
    max_step: float | None


def relative_loss(mse: float, variance: float) -> float:
    """The loss in units of what a constant would leave.

    Parameters
    ----------
    mse : float
        Σ w r² / Σ w.
    variance : float
        Σ w (y − mean)² / Σ w; zero for constant y, which leaves no unit.

    Returns
    -------
    float
        mse / variance; for constant y 0 where the mse is 0, else inf.
    """
    if variance > 0.0:
        return mse / variance
    return math.inf if mse > 0.0 else 0.0


def is_warm_start(relative: float, threshold: float | None) -> bool:
    """Layer 1: whether the start is so good that a warm-up could only disturb it.

    Parameters
    ----------
    relative : float
        Relative loss of p0.
    threshold : float or None
        None when the layer is off.

    Returns
    -------
    bool
        Whether the warm-up is skipped.
    """
    return threshold is not None and relative < threshold


def step_mode(relative: float, adapts: bool) -> str:
    """Layer 2: the tier of the first step.

    Parameters
    ----------
    relative : float
        Relative loss of p0.
    adapts : bool
        Whether the layer is on.

    Returns
    -------
    str
        "refinement", "careful", "exploration", or "fixed" when the layer is off.
    """
    if not adapts:
        return "fixed"
    if relative < _REFINEMENT:
        return "refinement"
    return "careful" if relative < _CAREFUL else "exploration"


def cost_rose(loss: float, best: float, tolerance: float | None) -> bool:
    """Layer 3: whether the loss is further above the best one than is tolerated.

    Parameters
    ----------
    loss, best : float
        Loss of the point and the lowest loss measured.
    tolerance : float or None
        None when the layer is off.

    Returns
    -------
    bool
        Whether the warm-up is abandoned.
    """
    return tolerance is not None and not loss <= best * (1.0 + tolerance)


def clip_step(step: Floats, longest: float | None) -> tuple[Floats, float, bool]:
    """Layer 4: the step, no longer than allowed.

    Parameters
    ----------
    step : ndarray, shape (p,)
        Step in normalised parameters.
    longest : float or None
        None when the layer is off.

    Returns
    -------
    tuple of (ndarray, float, bool)
        The step, the length that was asked for, and whether it was shortened.
    """
    norm = math.hypot(*step.tolist())
    # a first step of exactly the longest length is not a clipped one
    if longest is None or norm <= longest * (1.0 + 1e-12):
        return step, norm, False
    return step * (longest / norm), norm, True
