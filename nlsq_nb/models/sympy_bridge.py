"""SymPy expressions ↔ expression graphs.

Reading goes node by node over an explicit list of classes and never evaluates, simplifies or prints
what the user gave, since SymPy can hang on it (`gamma(10**9)`); constants are folded in float64.
SymPy itself is imported only when one of these functions is called.
"""

from __future__ import annotations

import functools
import keyword
import math
from typing import TYPE_CHECKING, Any

from nlsq_nb.codegen.graph import MAX_NODES, Graph
from nlsq_nb.errors import ModelError
from nlsq_nb.models.numpy_functions import NUMERIC, remainder
from nlsq_nb.models.sympy_writer import to_sympy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["from_sympy", "to_sympy"]

_MAX_DEPTH = 1000  # SymPy's own functions recurse and fail near this depth
_SHOWN = 40  # characters of a name in a message

_FUNCTIONS = {
    "Abs": "abs",
    "acos": "acos",
    "acosh": "acosh",
    "asin": "asin",
    "asinh": "asinh",
    "atan": "atan",
    "atan2": "atan2",
    "atanh": "atanh",
    "ceiling": "ceil",
    "cos": "cos",
    "cosh": "cosh",
    "digamma": "digamma",
    "erf": "erf",
    "erfc": "erfc",
    "exp": "exp",
    "floor": "floor",
    "gamma": "gamma",
    "Heaviside": "heaviside",
    "loggamma": "lgamma",
    "sign": "sign",
    "sin": "sin",
    "sinc": "sinc",
    "sinh": "sinh",
    "tan": "tan",
    "tanh": "tanh",
}
_INVERTED = {"csc": "sin", "csch": "sinh", "sec": "cos", "sech": "cosh", "coth": "tanh"}
_OF_INVERSE = {"acsc": "asin", "acsch": "asinh", "asec": "acos", "asech": "acosh", "acoth": "atanh"}
_RELATIONS = {
    "Equality": "eq",
    "GreaterThan": "ge",
    "LessThan": "le",
    "StrictGreaterThan": "gt",
    "StrictLessThan": "lt",
    "Unequality": "ne",
}
_CFUNCTIONS = {"Cbrt": "cbrt", "Sqrt": "sqrt", "hypot": "hypot", "exp2": "exp2"} | {
    name: name for name in ("expm1", "log10", "log1p", "log2")
}
_KNOWN = "supported: " + ", ".join(
    sorted({*_FUNCTIONS, *_INVERTED, *_OF_INVERSE, "acot", "cot", "log", "Max", "Min", "Mod"})
)


# -- SymPy → graph -------------------------------------------------------------------------------
def from_sympy(
    expr: Any, variables: tuple[str, ...], params: tuple[str, ...] | None
) -> tuple[Graph, tuple[int, ...], tuple[str, ...]]:
    """Read SymPy expressions.

    Parameters
    ----------
    expr : sympy.Expr, or list or tuple of sympy.Expr
        One expression per output.
    variables : tuple of str
        Names of the independent variables.
    params : tuple of str or None
        Names of the parameters in order, or None for every other symbol, sorted by name.

    Returns
    -------
    graph : Graph
        Holds all outputs.
    roots : tuple of int, length m
        Output nodes.
    params : tuple of str
        Parameter names.

    Raises
    ------
    ModelError
        With the class or symbol that a model cannot contain.
    """
    import sympy

    parts = expr if isinstance(expr, (list, tuple)) else (expr,)
    for part in parts:
        if not isinstance(part, sympy.Expr):
            raise ModelError(f"{_short(type(part).__name__)} is not a SymPy expression")
    order = _operands_first(parts)
    names = _symbol_names(e for e in order if isinstance(e, sympy.Symbol))
    if params is None:
        params = tuple(sorted(names - set(variables)))
    unknown = sorted(names - set(variables) - set(params))
    if unknown:
        known = ", ".join((*variables, *params))
        raise ModelError(f"the symbol {_short(unknown[0])} is not one of {known}")
    reader = _Reader(variables, params)
    for entry in order:
        reader.read(entry)
    roots = tuple(reader.number(part) for part in parts)
    return reader.graph, roots, params


def _operands_first(roots: Sequence[Any]) -> list[Any]:
    """List every subexpression once, after its operands; refuse what no model can contain.

    Subexpressions are told apart by identity, because SymPy compares and hashes recursively.
    """
    depth: dict[int, int] = {}
    order: list[Any] = []
    opened = 0  # length of the path to the current entry
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        entry, finished = stack.pop()
        if id(entry) in depth:
            continue
        if finished:
            level = 1 + max((depth[id(arg)] for arg in entry.args), default=0)
            opened -= 1
            depth[id(entry)] = level
            order.append(entry)
        else:
            _check_class(entry)  # before its operands are looked at
            opened, level = opened + 1, 0
            stack.append((entry, True))
            stack.extend((arg, False) for arg in reversed(entry.args))
        if max(opened, level) > _MAX_DEPTH:
            raise ModelError(f"the expression is nested deeper than {_MAX_DEPTH} operations")
        if len(order) > MAX_NODES:
            raise ModelError(f"the expression has more than {MAX_NODES} operations")
    return order


def _check_class(entry: Any) -> None:
    import sympy

    kind = type(entry)
    name = _short(kind.__name__)
    if kind in _rules() or kind in _special() or isinstance(entry, sympy.Symbol):
        return
    if isinstance(entry, (sympy.NumberSymbol, sympy.Number)) and entry.is_finite:
        return
    if isinstance(entry, sympy.core.numbers.ImaginaryUnit):
        raise ModelError("the imaginary unit I is in the expression; a model must be real")
    if isinstance(entry, sympy.Number) or kind is type(sympy.zoo):
        raise ModelError(f"{name} is in the expression; write it so that it is finite")
    if isinstance(entry, (sympy.Integral, sympy.Derivative, sympy.Subs, sympy.Sum)):
        raise ModelError(f"{name} is not supported in a model; carry it out first: expr.doit()")
    if isinstance(entry, sympy.core.function.AppliedUndef):
        raise ModelError(f"the undefined function {name} is not supported in a model; {_KNOWN}")
    raise ModelError(f"{name} is not supported in a model; rewrite the expression; {_KNOWN}")


def _symbol_names(symbols: Iterable[Any]) -> set[str]:
    """Check the names of symbols; different symbols of the same name are refused."""
    found: dict[str, Any] = {}
    for symbol in symbols:
        name = symbol.name
        if type(name) is not str or not name.isidentifier() or keyword.iskeyword(name):
            shown = str.__repr__(name)[:_SHOWN] if isinstance(name, str) else type(name).__name__
            raise ModelError(
                f"the symbol name {shown} is not a Python identifier; rename it: "
                'expr.subs(symbol, sympy.Symbol("name"))'
            )
        if found.setdefault(name, symbol) != symbol:
            raise ModelError(
                f"two different symbols are called {_short(name)} (their assumptions differ); "
                "replace one by the other: expr.subs(one, other)"
            )
    return set(found)


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else name[:_SHOWN] + "…"


class _Reader:
    """Turns SymPy nodes into graph nodes, operands first."""

    def __init__(self, variables: tuple[str, ...], params: tuple[str, ...]) -> None:
        self.graph = Graph()
        self._leaves = {name: self.graph.param(k) for k, name in enumerate(params)}
        self._leaves |= {name: self.graph.variable(k) for k, name in enumerate(variables)}
        self._nodes: dict[int, int] = {}

    def read(self, entry: Any) -> None:
        """Find the node of one SymPy node whose operands have been read."""
        import sympy

        kind = type(entry)
        if kind in _rules():
            try:
                node = _rules()[kind](self.graph, *(self.number(arg) for arg in entry.args))
            except TypeError:
                raise ModelError(
                    f"{kind.__name__} with {len(entry.args)} argument(s) is not supported"
                ) from None
        elif isinstance(entry, sympy.Symbol):
            node = self._leaves[entry.name]
        elif kind in _special():
            node = _special()[kind](self, entry)
        else:
            node = self._constant(entry)
        self._nodes[id(entry)] = node

    def number(self, entry: Any) -> int:
        """Return the node of an operand that must be a number."""
        node = self._nodes[id(entry)]
        if self.graph.is_condition(node):
            raise ModelError("a condition is used as a number; write Piecewise((1, c), (0, True))")
        return node

    def condition(self, entry: Any) -> int:
        """Return the node of an operand that must be true or false."""
        node = self._nodes[id(entry)]
        if not self.graph.is_condition(node):
            raise ModelError(f"a condition such as x < 3 is needed, not {type(entry).__name__}")
        return node

    def _constant(self, entry: Any) -> int:
        try:
            value = float(entry)
        except (OverflowError, ValueError):
            value = math.inf
        if not math.isfinite(value):
            raise ModelError("a number of the expression is too large for float64; rescale it")
        return self.graph.const(value)

    def truth(self, entry: Any) -> int:
        """Read the constants true and false."""
        value = 1.0 if type(entry).__name__ == "BooleanTrue" else 0.0
        return self.graph.compare("ne", self.graph.const(value), self.graph.const(0.0))

    def logic(self, entry: Any) -> int:
        """Read And, Or, Not."""
        op = type(entry).__name__.lower()
        value, *others = (self.condition(arg) for arg in entry.args)
        if op == "not":
            return self.graph.logic(op, value)
        for other in others:
            value = self.graph.logic(op, value, other)
        return value

    def piecewise(self, entry: Any) -> int:
        """Read Piecewise as nested choices."""
        import sympy

        pairs = [pair.args for pair in entry.args]
        last = next((k for k, (_, c) in enumerate(pairs) if c is sympy.true), None)
        if last is None:
            raise ModelError("Piecewise is undefined elsewhere; end it with (expression, True)")
        value = self.number(pairs[last][0])
        for yes, condition in reversed(pairs[:last]):
            value = self.graph.where(self.condition(condition), self.number(yes), value)
        return value


def _log(g: Graph, u: int, base: int | None = None) -> int:
    return g.call("log", u) if base is None else g.div(g.call("log", u), g.call("log", base))


def _polygamma(g: Graph, order: int, u: int) -> int:
    if g.value(order) not in (0.0, 1.0):
        raise ModelError("polygamma is supported for orders 0 and 1 only")
    return g.call("digamma" if g.value(order) == 0.0 else "trigamma", u)


def _acot(g: Graph, u: int) -> int:
    """atan(1/u), which is ±π/2 − atan(u) near 0, where 1/u breaks the derivative."""
    half = g.where(g.compare("lt", u, g.const(0.0)), g.const(-math.pi / 2), g.const(math.pi / 2))
    near = g.compare("lt", g.call("abs", u), g.const(1.0))
    inverse = g.call("atan", g.product(1.0, [(u, -1)]))
    return g.where(near, g.sub(half, g.call("atan", u)), inverse)


def _chained(function: str) -> Callable[..., int]:
    def rule(g: Graph, *nodes: int) -> int:
        return functools.reduce(lambda a, b: g.call(function, a, b), nodes)

    return rule


def _called(function: str) -> Callable[..., int]:
    return lambda g, *nodes: g.call(function, *nodes)


def _over(function: str) -> Callable[[Graph, int], int]:
    return lambda g, u: g.product(1.0, [(g.call(function, u), -1)])


def _of_inverse(function: str) -> Callable[[Graph, int], int]:
    return lambda g, u: g.call(function, g.product(1.0, [(u, -1)]))


def _related(op: str) -> Callable[[Graph, int, int], int]:
    return lambda g, u, v: g.compare(op, u, v)


@functools.cache
def _rules() -> dict[Any, Callable[..., int]]:
    """Return what each SymPy class with numbers as operands means in a graph."""
    import sympy
    from sympy.codegen import cfunctions

    named: dict[str, Callable[..., int]] = {
        **{name: _called(function) for name, function in _FUNCTIONS.items()},
        **{name: _over(function) for name, function in _INVERTED.items()},
        **{name: _of_inverse(function) for name, function in _OF_INVERSE.items()},
        **{name: _related(op) for name, op in _RELATIONS.items()},
        "Add": Graph.add,
        "Max": _chained("maximum"),
        "Min": _chained("minimum"),
        "Mod": remainder,
        "Mul": Graph.mul,
        "Pow": Graph.power,
        "acot": _acot,
        "cot": lambda g, u: g.div(g.call("cos", u), g.call("sin", u)),
        "log": _log,
        "polygamma": _polygamma,
    }
    table = {getattr(sympy, name): rule for name, rule in named.items()}
    return table | {getattr(cfunctions, c): NUMERIC[name] for c, name in _CFUNCTIONS.items()}


@functools.cache
def _special() -> dict[Any, Callable[[_Reader, Any], int]]:
    """Return the readers of the classes whose operands are not all numbers."""
    import sympy
    from sympy.functions.elementary.piecewise import ExprCondPair

    return {
        ExprCondPair: lambda reader, entry: -1,  # Piecewise reads its pairs
        sympy.Piecewise: _Reader.piecewise,
        sympy.And: _Reader.logic,
        sympy.Or: _Reader.logic,
        sympy.Not: _Reader.logic,
        type(sympy.true): _Reader.truth,
        type(sympy.false): _Reader.truth,
    }
