"""What NumPy's and scipy.special's ufuncs mean in an expression graph, by their names.

Compositions are chosen so that value and derivative stay right where a textbook form breaks down.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_nb.codegen.functions import NUMPY_NAMES
from nlsq_nb.codegen.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOGICAL", "NUMERIC", "is_known", "remainder"]


def is_known(ufunc: Any, name: str) -> bool:
    """Whether a ufunc is the one of NumPy or scipy.special that this module has a rule for.

    Parameters
    ----------
    ufunc : numpy.ufunc
        What was called; a compiled function of the user may bear the same name.
    name : str
        Its name.

    Returns
    -------
    bool
        Whether `NUMERIC` or `LOGICAL` may be used for it.
    """
    if name not in NUMERIC and name not in LOGICAL:
        return False
    if ufunc is getattr(np, name, None):
        return True
    from scipy import special

    return ufunc is getattr(special, name, None)


def remainder(g: Graph, u: int, v: int) -> int:
    """Remainder of a division, with the sign of the divisor.

    Parameters
    ----------
    g : Graph
        Where the nodes are.
    u, v : int
        Dividend and divisor.

    Returns
    -------
    int
        The node of `u - v·floor(u/v)`; where u is a multiple of v up to rounding it may be 0 where
        NumPy finds almost v, or the reverse.
    """
    return g.sub(u, g.mul(v, g.call("floor", g.div(u, v))))


def _cbrt(g: Graph, u: int) -> int:
    return g.mul(g.call("sign", u), g.power(g.call("abs", u), g.const(1.0 / 3.0)))


def _hypot(g: Graph, u: int, v: int) -> int:
    return g.call("sqrt", g.add(g.mul(u, u), g.mul(v, v)))


def _expit(g: Graph, u: int) -> int:
    """1/(1 + exp(−u)) through the smaller of exp(±u), so that neither side overflows."""
    small = g.call("exp", g.call("minimum", u, g.neg(u)))
    top = g.where(g.compare("gt", u, g.const(0.0)), g.const(1.0), small)
    return g.div(top, g.combine(1.0, [(1.0, small)]))


def _logit(g: Graph, u: int) -> int:
    return g.sub(g.call("log", u), g.call("log1p", g.neg(u)))


def _xlogy(g: Graph, u: int, v: int) -> int:
    """u·log(v), 0 at u = v = 0; elsewhere the product, whose derivative at u = 0 is log(v)."""
    zero = g.const(0.0)
    empty = g.logic("and", g.compare("eq", u, zero), g.compare("le", v, zero))
    return g.where(empty, zero, g.mul(u, g.call("log", v)))


def _xor(g: Graph, a: int, b: int) -> int:
    only_a, only_b = g.logic("and", a, g.logic("not", b)), g.logic("and", g.logic("not", a), b)
    return g.logic("or", only_a, only_b)


def _scaled(factor: float) -> Callable[[Graph, int], int]:
    return lambda g, u: g.product(factor, [(u, 1)])


def _called(function: str) -> Callable[..., int]:
    return lambda g, *nodes: g.call(function, *nodes)


def _compared(op: str) -> Callable[[Graph, int, int], int]:
    return lambda g, u, v: g.compare(op, u, v)


def _joined(op: str) -> Callable[..., int]:
    return lambda g, *conditions: g.logic(op, *conditions)


_SAME_NAME = (
    "ceil cos cosh erf erfc exp expm1 floor gamma heaviside log log10 log1p log2 maximum minimum "
    "sign sin sinh sqrt tan tanh"
)
_OTHER_NAME = {
    **NUMPY_NAMES,
    "absolute": "abs",
    "fabs": "abs",
    "fmax": "maximum",
    "fmin": "minimum",
    "psi": "digamma",
}
_COMPARED = {
    "equal": "eq",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
}

NUMERIC: dict[str, Callable[..., int]] = {
    **{name: _called(name) for name in _SAME_NAME.split()},
    **{name: _called(function) for name, function in _OTHER_NAME.items()},
    **{name: _compared(op) for name, op in _COMPARED.items()},
    "add": Graph.add,
    "cbrt": _cbrt,
    "deg2rad": _scaled(math.pi / 180.0),
    "degrees": _scaled(180.0 / math.pi),
    "divide": Graph.div,
    "exp2": lambda g, u: g.power(g.const(2.0), u),
    "expit": _expit,
    "float_power": Graph.power,
    "hypot": _hypot,
    "logit": _logit,
    "multiply": Graph.mul,
    "negative": Graph.neg,
    "positive": lambda g, u: u,
    "power": Graph.power,
    "rad2deg": _scaled(180.0 / math.pi),
    "radians": _scaled(math.pi / 180.0),
    "reciprocal": lambda g, u: g.product(1.0, [(u, -1)]),
    "remainder": remainder,
    "square": lambda g, u: g.product(1.0, [(u, 2)]),
    "subtract": Graph.sub,
    "xlogy": _xlogy,
}
"""Functions of numbers; each takes the graph and nodes that are numbers."""

LOGICAL: dict[str, Callable[..., int]] = {
    "bitwise_and": _joined("and"),
    "bitwise_or": _joined("or"),
    "bitwise_xor": _xor,
    "invert": _joined("not"),
    "logical_and": _joined("and"),
    "logical_not": _joined("not"),
    "logical_or": _joined("or"),
    "logical_xor": _xor,
}
"""Functions of conditions; each takes the graph and nodes that are conditions."""
