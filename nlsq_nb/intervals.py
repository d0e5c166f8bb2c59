"""Intervals of parameters and bands of predictions, from a finished fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.core.columns import numeric, split_columns
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.profile import End, Held, end_of_interval, follow
from nlsq_nb.errors import ConvergenceWarning, DataError, UnsupportedOption
from nlsq_nb.protocols import Refit

__all__ = ["Band", "Intervals", "ParameterProfile", "band_of", "intervals_of", "profile_of"]

Floats = NDArray[np.float64]
_RESOLVED = 100.0  # units of rounding that a rise of the sse must have


class Band(NamedTuple):
    """Predicted values and the ends of their intervals, each of the shape of the values."""

    values: Floats
    lower: Floats
    upper: Floats


@dataclass(frozen=True, eq=False)
class Intervals(Mapping[str, tuple[float, float]]):
    """Confidence intervals by parameter name: `intervals["b"]` is (lower, upper).

    Attributes
    ----------
    names : tuple of str, length p
        Parameter names.
    lower, upper : ndarray, shape (p,)
        Ends; an end that is a bound, or ±inf, is open.
    level : float
        Confidence.
    method : {"wald", "profile"}
        How they were found.
    notes : dict
        Parameter name → what is to be said of its interval, for those where there is something.
    """

    names: tuple[str, ...]
    lower: Floats
    upper: Floats
    level: float
    method: str
    notes: dict[str, str]

    def __getitem__(self, name: str) -> tuple[float, float]:
        """(lower, upper) of a parameter."""
        if name not in self.names:
            raise KeyError(name)
        k = self.names.index(name)
        return float(self.lower[k]), float(self.upper[k])

    def __iter__(self) -> Iterator[str]:
        """Parameter names."""
        return iter(self.names)

    def __len__(self) -> int:
        """Number of parameters."""
        return len(self.names)

    def __repr__(self) -> str:
        """A line per parameter."""
        lines = [f"{100 * self.level:g} % confidence intervals ({self.method})"]
        width = max(map(len, self.names))
        for name, (low, high) in self.items():
            lines.append(f"{name:<{width}}  [{low:.8g}, {high:.8g}]  {self.notes.get(name, '')}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class ParameterProfile:
    """The sse along one parameter, minimised over the others, and the interval that it gives.

    Attributes
    ----------
    name : str
        The parameter.
    level : float
        Confidence of the interval.
    interval : tuple of float
        (lower, upper); nan where a lower sse than the fit's was met.
    open : tuple of bool
        Whether the interval ends at a bound or at ±inf because the sse does not rise enough before.
    threshold : float
        The sse at the ends of a closed interval.
    values : ndarray, shape (k,)
        Where the others were fitted, ascending.
    sse : ndarray, shape (k,)
        Least sse there, penalties included.
    theta : ndarray, shape (k, p)
        All parameters there.
    better : ndarray or None, shape (p,)
        A point with a lower sse than the fit's, if one was met: fit again from there.
    note : str
        Why the interval is open, and whatever else is to be said.
    """

    name: str
    level: float
    interval: tuple[float, float]
    open: tuple[bool, bool]
    threshold: float
    values: Floats
    sse: Floats
    theta: Floats
    better: Floats | None
    note: str


def intervals_of(result: Any, refit: Refit | None, level: float, method: str) -> Intervals:
    """Intervals of all parameters; see `FitResult.confidence_intervals`."""
    half = _half_widths(result, level)
    if method == "wald":
        lower, upper, notes = _wald(result, half)
    elif method == "profile":
        lower, upper, notes = _profiles(result, refit, level, half)
    else:
        raise UnsupportedOption(f"method={method!r}; use 'wald' or 'profile'")
    return Intervals(result.names, lower, upper, level, method, notes)


def _wald(result: Any, half: Floats) -> tuple[Floats, Floats, dict[str, str]]:
    """Wald: popt ± half within the bounds, and what is to be said of it."""
    low, high = result.bounds
    lower, upper = result.popt - half, result.popt + half
    notes = {}
    for k, name in enumerate(result.names):
        cut = [side for side, out in (("lower", lower[k] < low[k]), ("upper", upper[k] > high[k])) if out]
        if low[k] == high[k]:
            notes[name] = "fixed"
        elif cut:
            notes[name] = f"open: cut at its {' and '.join(cut)} bound"
        elif half[k] == math.inf:
            notes[name] = "open: not determined by the data"
    return np.maximum(lower, low), np.minimum(upper, high), notes


def _profiles(
    result: Any, refit: Refit | None, level: float, half: Floats
) -> tuple[Floats, Floats, dict[str, str]]:
    """The same from a profile of each parameter."""
    notes = {}
    lower, upper = result.popt.copy(), result.popt.copy()
    again = _at_hand(result, refit)
    with again.in_use():
        optimum = again, again.optimum()
        for k, name in enumerate(result.names):
            if result.bounds[0][k] == result.bounds[1][k]:
                notes[name] = "fixed"
                continue
            found = _profile(result, optimum, k, level, float(half[k]))
            lower[k], upper[k] = found.interval
            if found.note:
                notes[name] = found.note
            if found.better is not None:
                _warn_of_better(result, found, depth=5)
    return lower, upper, notes


def profile_of(
    result: Any, refit: Refit | None, name: str, level: float, points: Any
) -> ParameterProfile:
    """The profile of one parameter; see `FitResult.profile`."""
    if name not in result.names:
        raise DataError(f"there is no parameter {name!r}; choose one of {', '.join(result.names)}")
    if not isinstance(points, (int, np.integer)) or points < 0:
        raise DataError(f"points={points!r} is not a number of points")
    k = result.names.index(name)
    if result.bounds[0][k] == result.bounds[1][k]:
        raise DataError(f"parameter {name!r} is fixed by equal bounds: it has no profile")
    half = _half_widths(result, level)
    again = _at_hand(result, refit)
    with again.in_use():
        found = _profile(result, (again, again.optimum()), k, level, float(half[k]), int(points))
    if found.better is not None:
        _warn_of_better(result, found, depth=4)
    return found


def band_of(result: Any, x: Any, level: float, kind: str, sigma: ArrayLike | None) -> Band:
    """Predictions with a band; see `FitResult.predict`."""
    if kind not in ("confidence", "prediction"):
        raise UnsupportedOption(f"kind={kind!r}; use 'confidence' or 'prediction'")
    factor, model = _factor(result, level), result.model
    columns = tuple(c.astype(np.float64, copy=False) for c in split_columns(x, model.x, "x"))
    values = evaluate(model.program, "values", columns, result.popt)
    variance = np.empty_like(values)
    for first in range(0, values.shape[1], BLOCK):
        rows = slice(first, first + BLOCK)
        jac = evaluate(model.program, "derivatives", tuple(c[rows] for c in columns), result.popt)
        variance[:, rows] = _variance(jac, result.pcov)
    values, variance = (a if model.n_outputs > 1 else a[0] for a in (values, variance))
    if kind == "prediction":
        variance = variance + _scatter(result, sigma, values.shape)
    elif sigma is not None:
        raise DataError("sigma is that of new observations; give it with kind='prediction'")
    half = factor * np.sqrt(variance)
    return Band(values, values - half, values + half)


def _variance(jac: Floats, pcov: Floats) -> Floats:
    """The variances of J·θ, (m, rows), from J, (m, p, rows); inf where an undetermined θ takes part."""
    known = np.isfinite(pcov.diagonal())
    errors = np.sqrt(pcov.diagonal()[known])
    size = np.where(errors > 0.0, errors, 1.0)
    correlation = pcov[np.ix_(known, known)] / size[:, None] / size
    scaled = jac[:, known] * errors[:, None]
    found = np.maximum(np.einsum("mpr,pq,mqr->mr", scaled, correlation, scaled), 0.0)
    return np.asarray(np.where((jac[:, ~known] != 0.0).any(axis=1), np.inf, found))


def _scatter(result: Any, sigma: ArrayLike | None, shape: tuple[int, ...]) -> Any:
    """The variance of a new observation about the model."""
    if sigma is None and not result.unweighted:
        raise DataError(
            "the fit was weighted: give sigma, the standard deviation of the new observations in the units "
            "of the fit's"
        )
    given = numeric(1.0 if sigma is None else sigma, "sigma")
    if given.shape not in ((), (1,), shape):
        raise DataError(f"sigma has shape {given.shape}, the predictions have shape {shape}; they must agree")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise DataError("sigma of new observations must be finite and not negative")
    unit = 1.0 if result.absolute_sigma else result.reduced_chi2
    return unit * given.astype(np.float64) ** 2


# --- likelihood ---


def _at_hand(result: Any, refit: Refit | None) -> Refit:
    if result.loss != "linear":
        raise UnsupportedOption(f"loss={result.loss!r} has no likelihood to profile; use method='wald'")
    if refit is None:
        raise DataError(
            "the data stayed in the process of the fit: there are no profiles; use method='wald'"
        )
    return refit


def _profile(
    result: Any, optimum: tuple[Refit, Held], k: int, level: float, half: float, points: int = 0
) -> ParameterProfile:
    """One parameter's profile, from its Wald half-width on."""
    refit, best = optimum
    value, base = float(best.theta[k]), best.sums.sse
    low, high = float(result.bounds[0][k]), float(result.bounds[1][k])
    name, factor = result.names[k], _factor(result, level)
    rise = factor**2 * (1.0 if result.absolute_sigma else result.reduced_chi2)
    if not math.isfinite(rise):
        ends = [End(bound, "no degrees of freedom", ()) for bound in (low, high)]
    elif rise <= _RESOLVED * refit.resolution:  # the residuals are rounding: there is no likelihood to see
        ends = [End(max(low, value - half), "", ()), End(min(high, value + half), "", ())]
    else:
        first = half if 0.0 < half < math.inf else 0.1 * abs(value) or 1.0
        search = (refit, best, k)
        ends = [end_of_interval(*search, side, rise, first, b) for side, b in ((-1, low), (1, high))]
    found = [best, *ends[0].points, *ends[1].points]
    better = next((end.better for end in ends if end.better is not None), None)
    interval = (ends[0].value, ends[1].value) if better is None else (math.nan, math.nan)
    if points > 1 and all(map(math.isfinite, interval)):
        found += _further(refit, found, k, np.linspace(*interval, points))
    found = sorted((f for f in found if f.sums.is_finite), key=lambda f: float(f.theta[k]))
    return ParameterProfile(
        name=name,
        level=level,
        interval=interval,
        open=(bool(ends[0].open), bool(ends[1].open)),
        threshold=base + rise,
        values=np.array([f.theta[k] for f in found]),
        sse=np.array([f.sums.sse for f in found]),
        theta=np.array([f.theta for f in found]),
        better=None if better is None else better.theta,
        note=_note(ends, found, rise <= _RESOLVED * refit.resolution),
    )


def _further(refit: Refit, found: list[Held], k: int, values: Floats) -> list[Held]:
    """More points of the curve, each from the nearest that is known."""
    known = [f for f in found if f.sums.is_finite]
    more = []
    for value in values.tolist():
        if all(value != f.theta[k] for f in known):
            near = min(known, key=lambda f: abs(float(f.theta[k]) - value))
            more.append(refit(follow(near, k, value), k))
    return more


def _note(ends: list[End], found: list[Held], unresolved: bool) -> str:
    """What is to be said of a profile."""
    if unresolved:
        return "the residuals are at rounding level: this is the Wald interval"
    if any(end.better is not None for end in ends):
        return "a lower sse than the fit's was found"
    said = [f"open {side}: {end.open}" for side, end in zip(("below", "above"), ends, strict=True) if end.open]
    if failed := sum(not f.converged for f in found):
        said.append(f"{failed} of its {len(found)} fits did not converge")
    return "; ".join(said)


def _warn_of_better(result: Any, found: ParameterProfile, depth: int) -> None:
    assert found.better is not None
    start = ", ".join(f"{n}={v:.8g}" for n, v in zip(result.names, found.better, strict=True))
    warnings.warn(
        f"the profile of {found.name!r} met a lower sse than the fit's; fit again from {start}",
        ConvergenceWarning,
        stacklevel=depth,
    )


# --- how far ---


def _half_widths(result: Any, level: float) -> Floats:
    """Half the widths of Wald intervals, shape (p,)."""
    perr = result.perr
    with np.errstate(invalid="ignore"):
        return np.where(perr == 0.0, 0.0, _factor(result, level) * perr)


def _factor(result: Any, level: Any) -> float:
    """Standard errors up to the end of an interval: Student's t, or normal where σ is known."""
    if not isinstance(level, (float, int, np.floating)) or not 0.0 < level < 1.0:
        raise DataError(f"level={level!r} is not between 0 and 1; 0.95 asks for 95 %")
    from scipy.special import ndtri, stdtrit

    tail = 0.5 + 0.5 * level
    if result.absolute_sigma:
        return float(ndtri(tail))
    return float(stdtrit(result.dof, tail)) if result.dof > 0 else math.inf
