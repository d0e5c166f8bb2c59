"""Expression graph → SymPy, to be read and reworked by people."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from nlsq_nb.codegen.graph import COMPARISONS, LOGIC

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nlsq_nb.codegen.graph import Graph, Node

__all__ = ["to_sympy"]

_EXACT = 2.0**53  # integers up to here are written as integers
_SMALL_POWER = 64  # SymPy multiplies out powers of numbers, so larger ones are left alone


def to_sympy(
    graph: Graph, roots: Sequence[int], variables: Sequence[str], params: Sequence[str]
) -> list[Any]:
    """Write output nodes as SymPy expressions.

    Parameters
    ----------
    graph : Graph
        Holds the outputs.
    roots : sequence of int, length m
        Output nodes.
    variables, params : sequence of str
        Names of the symbols; they carry no assumptions.

    Returns
    -------
    list of sympy.Expr, length m
        The expressions. Sums, products and functions are simplified as SymPy does by default;
        conditions and choices are not, since that may take for ever.
    """
    import sympy

    symbols = {
        "x": [sympy.Symbol(name) for name in variables],
        "p": [sympy.Symbol(name) for name in params],
    }
    written: dict[int, Any] = {}
    for index in _below(graph, roots):
        node = graph.nodes[index]
        if node.op in symbols:
            written[index] = symbols[node.op][int(node.numbers[0])]
        else:
            written[index] = _write(node, [written[arg] for arg in node.args])
    return [written[root] for root in roots]


def _below(graph: Graph, roots: Sequence[int]) -> list[int]:
    """Nodes that the roots need, operands first."""
    seen, stack = set(roots), list(roots)
    while stack:
        for arg in graph.nodes[stack.pop()].args:
            if arg not in seen:
                seen.add(arg)
                stack.append(arg)
    return sorted(seen)


def _write(node: Node, args: list[Any]) -> Any:
    import sympy

    if node.numbers:
        first, *others = [_number(value) for value in node.numbers]
        if node.op == "mul":
            return sympy.Mul(first, *map(sympy.Pow, args, others))
        return sympy.Add(first, *(c * u for c, u in zip(others, args, strict=True)))  # or const
    if node.op == "where":
        condition, yes, no = args
        rest = no.args if isinstance(no, sympy.Piecewise) else ((no, True),)
        return sympy.Piecewise((yes, condition), *rest, evaluate=False)
    if node.op == "pow":
        large = args[1].is_number and abs(args[1]) > _SMALL_POWER
        return sympy.Pow(*args, evaluate=not large)
    if node.op in COMPARISONS or node.op in LOGIC:
        return _conditions()[node.op](*args, evaluate=False)
    return _functions()[node.op](*args)


def _number(value: float) -> Any:
    import sympy

    if value == int(value) and abs(value) <= _EXACT:
        return sympy.Integer(int(value))
    return sympy.Float(value)  # 53 bits: float() gives the same value back


@functools.cache
def _conditions() -> dict[str, Callable[..., Any]]:
    import sympy

    return {
        "lt": sympy.StrictLessThan,
        "le": sympy.LessThan,
        "gt": sympy.StrictGreaterThan,
        "ge": sympy.GreaterThan,
        "eq": sympy.Equality,
        "ne": sympy.Unequality,
        "and": sympy.And,
        "or": sympy.Or,
        "not": sympy.Not,
    }


def _dsinc(u: Any) -> Any:
    """Write the derivative of sin(u)/u."""
    import sympy

    apart = sympy.Unequality(u, 0, evaluate=False)
    quotient = sympy.cos(u) / u - sympy.sin(u) / u**2
    return sympy.Piecewise((quotient, apart), (0, True), evaluate=False)


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Return how each name of `functions.ARITY` but pow is written."""
    import sympy
    from sympy.codegen import cfunctions

    same = "acos acosh asin asinh atan atan2 atanh cos cosh digamma erf erfc exp floor gamma log"
    same += " sign sin sinc sinh sqrt tan tanh"
    return {
        **{name: getattr(sympy, name) for name in same.split()},
        "abs": sympy.Abs,
        "ceil": sympy.ceiling,
        "dsinc": _dsinc,
        "expm1": cfunctions.expm1,  # exp(u) - 1 and log(1 + u) would lose the small u
        "heaviside": sympy.Heaviside,
        "lgamma": sympy.loggamma,
        "log10": lambda u: sympy.log(u, 10),
        "log1p": cfunctions.log1p,
        "log2": lambda u: sympy.log(u, 2),
        # comparing operands to drop one of them is what takes long
        "maximum": lambda u, v: sympy.Max(u, v, evaluate=False),
        "minimum": lambda u, v: sympy.Min(u, v, evaluate=False),
        "trigamma": lambda u: sympy.polygamma(1, u),
    }
