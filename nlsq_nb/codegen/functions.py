"""The elementary functions that models may use, and their values on constants.

One table serves the parser, tracing, the SymPy bridge, differentiation and every printer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from nlsq_nb.errors import ModelError

__all__ = ["ARITY", "NUMPY_NAMES", "fold"]


def _sign(u: float) -> float:
    return math.copysign(1.0, u) if u != 0 else 0.0


def _digamma(u: float) -> float:
    from scipy.special import digamma

    return float(digamma(u))


def _trigamma(u: float) -> float:
    from scipy.special import polygamma

    return float(polygamma(1, u))


def _sinc(u: float) -> float:
    return math.sin(u) / u if u != 0 else 1.0


def _dsinc(u: float) -> float:
    if abs(u) < 0.5:
        v = u * u
        return -u / 3 * (1 - v / 10 * (1 - v / 28 * (1 - v / 54 * (1 - v / 88 * (1 - v / 130)))))
    return (math.cos(u) - math.sin(u) / u) / u


_FOLD: Final[dict[str, tuple[int, Callable[..., float]]]] = {
    "abs": (1, abs),
    "acos": (1, math.acos),
    "acosh": (1, math.acosh),
    "asin": (1, math.asin),
    "asinh": (1, math.asinh),
    "atan": (1, math.atan),
    "atan2": (2, math.atan2),
    "atanh": (1, math.atanh),
    "ceil": (1, lambda u: float(math.ceil(u))),
    "cos": (1, math.cos),
    "cosh": (1, math.cosh),
    "digamma": (1, _digamma),
    "dsinc": (1, _dsinc),  # derivative of sinc, by its series near 0
    "erf": (1, math.erf),
    "erfc": (1, math.erfc),
    "exp": (1, math.exp),
    "expm1": (1, math.expm1),
    "floor": (1, lambda u: float(math.floor(u))),
    "gamma": (1, math.gamma),
    "heaviside": (2, lambda u, at0: float(u > 0) if u != 0 else at0),
    "lgamma": (1, math.lgamma),
    "log": (1, math.log),
    "log10": (1, math.log10),
    "log1p": (1, math.log1p),
    "log2": (1, math.log2),
    "maximum": (2, max),
    "minimum": (2, min),
    "pow": (2, math.pow),
    "sign": (1, _sign),
    "sin": (1, math.sin),
    "sinc": (1, _sinc),  # sin(u)/u, SymPy's convention
    "sinh": (1, math.sinh),
    "sqrt": (1, math.sqrt),
    "tan": (1, math.tan),
    "tanh": (1, math.tanh),
    "trigamma": (1, _trigamma),  # derivative of digamma
}

NUMPY_NAMES: Final[dict[str, str]] = {
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "gammaln": "lgamma",
}
"""What NumPy and SciPy call a function that has another name here."""

ARITY: Final[dict[str, int]] = {name: arity for name, (arity, _) in _FOLD.items()}
"""Number of arguments of every function that a model may call."""


def fold(name: str, *args: float) -> float:
    """Evaluate a function of constants in float64.

    Parameters
    ----------
    name : str
        A key of `ARITY`.
    *args : float
        Its arguments.

    Returns
    -------
    float
        The finite value.

    Raises
    ------
    ModelError
        When the value is not a finite real number.
    """
    try:
        value = float(_FOLD[name][1](*args))
    except (ArithmeticError, ValueError, TypeError):
        value = math.nan
    if not math.isfinite(value):
        shown = ", ".join(repr(a) for a in args)
        raise ModelError(f"the constant {name}({shown}) in the model is not a finite number")
    return value
