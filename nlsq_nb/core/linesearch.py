"""Three line searches along a descent direction, none of which goes beyond a longest step.

All look for φ(t) ≤ φ(0) + c₁ t φ'(0) (sufficient decrease). `backtracking` is content with that;
`wolfe` also wants the slope to have risen, φ'(t) ≥ c₂ φ'(0); `strong_wolfe` bounds its size,
|φ'(t)| ≤ c₂ |φ'(0)|. At the longest step a slope that still falls is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any

__all__ = ["SEARCHES", "Search", "Trial", "backtracking", "strong_wolfe", "wolfe"]

_C1 = 1e-4
_C2 = 0.9
_TRIALS = 25  # halving 25 times shortens a step to 3e-8 of itself: nothing will be found below


@dataclass(frozen=True, slots=True)
class Trial:
    """A point along the line.

    Attributes
    ----------
    t : float
        Share of the direction.
    value, slope : float
        φ(t) and φ'(t); a value that is not finite means the model is not defined there.
    point : Any
        What the caller wants back.
    """

    t: float
    value: float
    slope: float
    point: Any = None


Evaluate = Callable[[float], Trial]
Search = Callable[[Evaluate, Trial, float], Trial | None]


def backtracking(evaluate: Evaluate, start: Trial, longest: float) -> Trial | None:
    """Armijo's rule with quadratic interpolation (Nocedal & Wright 2006, §3.5).

    Parameters
    ----------
    evaluate : callable
        t → `Trial`.
    start : Trial
        At t = 0, with a negative slope.
    longest : float
        Largest t.

    Returns
    -------
    Trial or None
        The first trial with sufficient decrease, None when there is none.
    """
    t = min(1.0, longest)
    for _ in range(_TRIALS):
        trial = evaluate(t)
        if _decreases(start, trial):
            return trial
        t = _shorter(start, trial)
    return None


def wolfe(evaluate: Evaluate, start: Trial, longest: float) -> Trial | None:
    """The weak Wolfe conditions by bracketing (Lewis & Overton 2013, Math. Program. 141, 135).

    Parameters
    ----------
    evaluate : callable
        t → `Trial`.
    start : Trial
        At t = 0, with a negative slope.
    longest : float
        Largest t.

    Returns
    -------
    Trial or None
        A trial that satisfies both conditions, or the best with sufficient decrease.
    """
    low, high, t = start, inf, min(1.0, longest)
    for _ in range(_TRIALS):
        trial = evaluate(t)
        if not _decreases(start, trial):
            high = t
            t = _shorter(start, trial) if low is start else 0.5 * (low.t + high)
        elif trial.slope >= _C2 * start.slope or t >= longest:
            return trial
        else:
            low = trial
            t = min(2.0 * t, longest) if high == inf else 0.5 * (low.t + high)
    return None if low is start else low


def strong_wolfe(evaluate: Evaluate, start: Trial, longest: float) -> Trial | None:
    """The strong Wolfe conditions (Nocedal & Wright 2006, algorithms 3.5 and 3.6).

    Parameters
    ----------
    evaluate : callable
        t → `Trial`.
    start : Trial
        At t = 0, with a negative slope.
    longest : float
        Largest t.

    Returns
    -------
    Trial or None
        A trial that satisfies both conditions, or the best with sufficient decrease.
    """
    before, t = start, min(1.0, longest)
    for number in range(_TRIALS):
        trial = evaluate(t)
        if not _decreases(start, trial) or (number > 0 and trial.value >= before.value):
            return _zoom(evaluate, start, before, trial)
        if abs(trial.slope) <= -_C2 * start.slope:
            return trial
        if trial.slope >= 0.0:
            return _zoom(evaluate, start, trial, before)
        if t >= longest:
            return trial
        before, t = trial, min(2.0 * t, longest)
    return before


def _zoom(evaluate: Evaluate, start: Trial, low: Trial, high: Trial) -> Trial | None:
    """Shrink a bracket around an acceptable point; `low` has the lowest value of all so far."""
    for _ in range(_TRIALS):
        trial = evaluate(_between(low, high))
        if not _decreases(start, trial) or trial.value >= low.value:
            high = trial
        else:
            if abs(trial.slope) <= -_C2 * start.slope:
                return trial
            if trial.slope * (high.t - low.t) >= 0.0:
                high = low
            low = trial
        if abs(high.t - low.t) <= 1e-8 * max(high.t, low.t):
            break
    return None if low is start else low


def _decreases(start: Trial, trial: Trial) -> bool:
    # strictly less: at rounding level a step that changes nothing would do otherwise
    enough = trial.value <= start.value + _C1 * trial.t * start.slope
    return isfinite(trial.value) and enough and trial.value < start.value


def _shorter(start: Trial, trial: Trial) -> float:
    """The minimum of the parabola through φ(0), φ'(0), φ(t), kept within [0.1 t, 0.5 t]."""
    bend = trial.value - start.value - start.slope * trial.t
    if not isfinite(bend) or bend <= 0.0:
        return 0.1 * trial.t if not isfinite(bend) else 0.5 * trial.t
    best = -0.5 * start.slope * trial.t**2 / bend
    return min(max(best, 0.1 * trial.t), 0.5 * trial.t)


def _between(low: Trial, high: Trial) -> float:
    """The minimum of the cubic through two trials, kept away from the ends of the bracket."""
    width = high.t - low.t
    middle = low.t + 0.5 * width
    if not isfinite(high.value) or not isfinite(high.slope):
        return middle
    first = low.slope + high.slope - 3.0 * (low.value - high.value) / (low.t - high.t)
    inside = first * first - low.slope * high.slope
    if inside < 0.0:
        return middle
    second = sqrt(inside) if width > 0.0 else -sqrt(inside)
    share = high.slope - low.slope + 2.0 * second
    if share == 0.0:
        return middle
    t = high.t - width * (high.slope + second - first) / share
    nearest, farthest = sorted((low.t + 0.1 * width, high.t - 0.1 * width))
    return min(max(t, nearest), farthest)


SEARCHES: dict[str, Search] = {
    "wolfe": wolfe,
    "strong_wolfe": strong_wolfe,
    "backtracking": backtracking,
}
"""By the names that `lbfgs_line_search` takes."""
