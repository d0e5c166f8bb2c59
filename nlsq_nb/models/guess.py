"""Starting values from the data: candidates for the nonlinear parameters, the linear ones solved for.

Nothing is fitted: of every combination of a few candidates, the one of least sse with the best linear
parameters is the start. What the candidates are follows from the range of x.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.models.symbolic import Model

__all__ = ["RULES", "Floats", "guess"]

Floats = NDArray[np.float64]
_PLACES = 24
_CYCLES = 64  # most of them in the data
_MOST = 8192  # combinations that are tried
_HUGE = 1e300

RULES = {
    "place": "a value of x: evenly spaced quantiles of it",
    "width": "a distance in x: the range halved again and again",
    "size": "a positive number of the size of x",
    "rate": "a reciprocal distance: 0.1 to 100 over the range of x",
    "frequency": "an angular frequency: from half a cycle in the data to 64, or a quarter of the rows",
    "phase": "an angle: 0 and a quarter of a turn",
    "power": "an exponent of either sign",
    "growth": "a positive exponent",
    "share": "a number between 0 and 1",
    "number": "a positive number without a unit",
}
"""What a nonlinear parameter may stand for, and the values that are tried."""


def guess(
    model: Model,
    rules: Mapping[str, str],
    rows: tuple[Floats, Floats, Floats | None],
    known: Mapping[str, float],
    bounds: tuple[Floats, Floats],
) -> Floats | None:
    """A start.

    Parameters
    ----------
    model : Model
        Of one variable and one output.
    rules : mapping of str
        For each nonlinear parameter a name in `RULES`.
    rows : tuple of ndarray, each (n,)
        x, y, and weights or None; rows that are not finite are left out.
    known : mapping of float
        Values that are given, by name.
    bounds : tuple of ndarray, each (p,)
        Lower and upper.

    Returns
    -------
    ndarray or None
        Shape (p,), within the bounds; None where no combination can be evaluated.
    """
    x, y, w = rows
    finite = np.isfinite(x) & np.isfinite(y)
    x, y, root = x[finite], y[finite], None if w is None else np.sqrt(w[finite])
    if not len(x):
        return None
    grids = [_grid(k, name, rules, known, bounds, x) for k, name in enumerate(model.params)]
    linear = np.array([name in model.linear_params and name not in known for name in model.params])
    best, least = None, np.inf
    for values in itertools.islice(itertools.product(*grids), _MOST):
        theta, sse = _solved(model, np.array(values), linear, (x, y, root))
        theta = np.clip(theta, *bounds)
        if sse < least and np.isfinite(theta).all():
            best, least = theta, sse
    return best


def _solved(
    model: Model, theta: Floats, linear: NDArray[np.bool_], rows: tuple[Floats, Floats, Floats | None]
) -> tuple[Floats, float]:
    """A combination with its linear parameters at their best, and its sse; inf where it is not finite."""
    x, y, root = rows
    theta = np.where(linear, 0.0, theta)
    rest = y - evaluate(model.program, "values", (x,), theta)[0]
    columns = evaluate(model.program, "derivatives", (x,), theta)[0][linear].T
    if root is not None:
        rest, columns = rest * root, columns * root[:, np.newaxis]
    size = np.abs(columns).max(axis=0, initial=0.0)
    if not (np.isfinite(rest).all() and np.isfinite(size).all()):
        return theta, np.inf
    size = np.where(size > 0.0, size, 1.0)
    found = np.linalg.lstsq(columns / size, rest, rcond=None)[0]
    theta[linear] = found / size
    rest -= (columns / size) @ found
    return theta, float(rest @ rest)


def _grid(
    k: int, name: str, rules: Mapping[str, str], known: Mapping[str, float], bounds: tuple[Floats, Floats], x: Floats
) -> Floats:
    """The candidates of one parameter, within its bounds."""
    low, high = bounds[0][k], bounds[1][k]
    if name in known:
        return np.array([known[name]])
    if name not in rules:  # linear
        return np.zeros(1)
    values = np.clip(candidates(rules[name], x), low, high)
    return np.unique(values)


def candidates(rule: str, x: Floats) -> Floats:
    """The values that are tried.

    Parameters
    ----------
    rule : str
        A name in `RULES`.
    x : ndarray, shape (n,)
        Finite, n > 0.

    Returns
    -------
    ndarray
        Not sorted.
    """
    # within these limits reciprocals and multiples of a distance are finite, whatever x is
    first, last = (float(np.clip(edge, -_HUGE, _HUGE)) for edge in (x.min(), x.max()))
    span = max((last - first) or abs(last) or 1.0, 1.0 / _HUGE)
    if rule == "place":
        return np.quantile(x, (np.arange(_PLACES) + 0.5) / _PLACES)
    if rule == "frequency":
        cycles = min(_CYCLES, max(len(x) / 4, 1.0))
        return 2.0 * np.pi / span * np.arange(0.5, cycles + 0.5, 0.5)
    fixed = {
        "width": span * 0.5 ** np.arange(1, 8),
        "size": max(abs(first), abs(last)) * np.array([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0]),
        "rate": np.array([0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]) / span,
        "phase": np.array([0.0, 0.5 * np.pi]),
        "power": np.array([-3.0, -2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0]),
        "growth": np.array([0.5, 1.0, 2.0, 4.0]),
        "share": np.array([0.1, 0.5, 0.9]),
        "number": np.array([0.3, 1.0, 3.0, 10.0, 30.0]),
    }
    return fixed[rule]
