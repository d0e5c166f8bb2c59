"""Forward differentiation of expression graphs with respect to the parameters.

Derivatives are built on the same hash-consed graph as the value, so everything they share with it
or with one another is computed once. Forward mode keeps `where` exact: the derivative of the
branch that is not taken never reaches the result (reverse mode would give 0·nan there).

Two forms are chosen for their limits: d(u**v)/du = v·u**v·(du/u) when u is a product, so that
(x/e)**b has the right derivative 0 at x = 0; and d(u**v)/dv takes log(0) as 0, the limit of
u**v·log u for v > 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from nlsq_nb.codegen.graph import COMPARISONS, LOGIC, Graph
from nlsq_nb.errors import ModelError

__all__ = ["jacobian"]


def jacobian(graph: Graph, root: int, n_params: int) -> tuple[int | None, ...]:
    """Derivatives of a node with respect to every parameter.

    Parameters
    ----------
    graph : Graph
        The graph of `root`; the derivatives are added to it.
    root : int
        The node to differentiate.
    n_params : int
        Number of parameters p.

    Returns
    -------
    tuple of (int or None), length p
        The derivative nodes; None where the derivative is zero for every point.
    """
    order = _below(graph, root)
    return tuple(_derivative(graph, order, root, k) for k in range(n_params))


def _below(graph: Graph, root: int) -> list[int]:
    """The nodes that `root` needs, operands first."""
    seen, stack = {root}, [root]
    while stack:
        for arg in graph.nodes[stack.pop()].args:
            if arg not in seen:
                seen.add(arg)
                stack.append(arg)
    return sorted(seen)


def _derivative(graph: Graph, order: list[int], root: int, param: int) -> int | None:
    table: dict[int, int] = {}  # node -> its derivative; absent means zero
    for index in order:
        if graph.depends_on(index, param):
            result = _rule(graph, index, table)
            if result is not None and graph.value(result) != 0.0:
                table[index] = result
    return table.get(root)


def _rule(g: Graph, index: int, table: dict[int, int]) -> int | None:
    node = g.nodes[index]
    if node.op == "p":
        return g.const(1.0)
    if node.op == "add":
        pairs = zip(node.numbers[1:], node.args, strict=True)
        return g.combine(0.0, [(c, table[a]) for c, a in pairs if a in table])
    if node.op == "mul":
        return _product_rule(g, index, table)
    if node.op in COMPARISONS or node.op in LOGIC:
        return None
    if node.op == "where":
        return _where_rule(g, index, table)
    if node.op == "pow":
        return _power_rule(g, index, table)
    if len(node.args) == 2:
        return _binary_rule(g, index, table)
    (u,) = node.args
    return None if u not in table else _chain_rule(g, index, table[u])


def _chain_rule(g: Graph, index: int, inner: int) -> int | None:
    node = g.nodes[index]
    slope = _SLOPES.get(node.op)
    if slope is None:
        raise ModelError(f"the derivative of {node.op} is not available")
    outer = slope(g, node.args[0], index)
    return None if outer is None else g.mul(outer, inner)


def _where_rule(g: Graph, index: int, table: dict[int, int]) -> int | None:
    condition, yes, no = g.nodes[index].args
    if yes not in table and no not in table:
        return None
    zero = g.const(0.0)
    return g.where(condition, table.get(yes, zero), table.get(no, zero))


def _product_rule(g: Graph, index: int, table: dict[int, int]) -> int:
    node = g.nodes[index]
    factors = [(a, int(k)) for a, k in zip(node.args, node.numbers[1:], strict=True)]
    terms = []
    for i, (base, k) in enumerate(factors):
        if base in table:
            rest = [*factors[:i], (base, k - 1), *factors[i + 1 :], (table[base], 1)]
            terms.append((node.numbers[0] * k, g.product(1.0, rest)))
    return g.combine(0.0, terms)


def _power_rule(g: Graph, index: int, table: dict[int, int]) -> int | None:
    base, exponent = g.nodes[index].args
    terms = []
    if base in table:
        inner = g.nodes[base]
        if inner.op == "mul":  # logarithmic derivative, factor by factor
            pairs = zip(inner.args, inner.numbers[1:], strict=True)
            logs = [(k, g.div(table[a], a)) for a, k in pairs if a in table]
            terms.append(g.mul(exponent, index, g.combine(0.0, logs)))
        else:
            lower = g.power(base, g.combine(-1.0, [(1.0, exponent)]))
            terms.append(g.mul(exponent, lower, table[base]))
    if exponent in table:
        if g.value(base) is not None:
            log = g.call("log", base)
        else:
            zero = g.const(0.0)
            log = g.where(g.compare("eq", base, zero), zero, g.call("log", base))
        terms.append(g.mul(index, log, table[exponent]))
    return g.add(*terms) if terms else None


def _binary_rule(g: Graph, index: int, table: dict[int, int]) -> int | None:
    op = g.nodes[index].op
    u, v = g.nodes[index].args
    zero = g.const(0.0)
    du, dv = table.get(u, zero), table.get(v, zero)
    if op in ("minimum", "maximum"):
        return g.where(g.compare("le" if op == "minimum" else "ge", u, v), du, dv)
    if op == "atan2":
        norm = g.add(g.mul(u, u), g.mul(v, v))
        return g.div(g.sub(g.mul(v, du), g.mul(u, dv)), norm)
    if op == "heaviside":  # zero almost everywhere, as for sign
        return None
    raise ModelError(f"the derivative of {op} is not available")


def _one_plus(g: Graph, sign: float, node: int) -> int:
    return g.combine(1.0, [(sign, node)])


def _square(g: Graph, node: int) -> int:
    return g.product(1.0, [(node, 2)])


def _inverse(g: Graph, node: int) -> int:
    return g.product(1.0, [(node, -1)])


def _scaled_inverse(scale: float) -> Callable[[Graph, int, int], int]:
    return lambda g, u, f: g.product(scale, [(u, -1)])


def _gauss(sign: float) -> Callable[[Graph, int, int], int]:
    scale = sign * 2.0 / math.sqrt(math.pi)
    return lambda g, u, f: g.product(scale, [(g.call("exp", g.product(-1.0, [(u, 2)])), 1)])


# outer derivative of f(u), given the nodes of u and of f(u) itself
_SLOPES: dict[str, Callable[[Graph, int, int], int | None]] = {
    "abs": lambda g, u, f: g.call("sign", u),
    "acos": lambda g, u, f: g.product(
        -1.0, [(g.call("sqrt", _one_plus(g, -1.0, _square(g, u))), -1)]
    ),
    "acosh": lambda g, u, f: g.product(
        1.0,
        [
            (g.call("sqrt", g.combine(-1.0, [(1.0, u)])), -1),
            (g.call("sqrt", _one_plus(g, 1.0, u)), -1),
        ],
    ),
    "asin": lambda g, u, f: _inverse(g, g.call("sqrt", _one_plus(g, -1.0, _square(g, u)))),
    "asinh": lambda g, u, f: _inverse(g, g.call("sqrt", _one_plus(g, 1.0, _square(g, u)))),
    "atan": lambda g, u, f: _inverse(g, _one_plus(g, 1.0, _square(g, u))),
    "atanh": lambda g, u, f: _inverse(g, _one_plus(g, -1.0, _square(g, u))),
    "ceil": lambda g, u, f: None,
    "cos": lambda g, u, f: g.neg(g.call("sin", u)),
    "cosh": lambda g, u, f: g.call("sinh", u),
    "digamma": lambda g, u, f: g.call("trigamma", u),
    "erf": _gauss(1.0),
    "erfc": _gauss(-1.0),
    "exp": lambda g, u, f: f,
    "expm1": lambda g, u, f: g.call("exp", u),
    "floor": lambda g, u, f: None,
    "gamma": lambda g, u, f: g.mul(f, g.call("digamma", u)),
    "lgamma": lambda g, u, f: g.call("digamma", u),
    "log": _scaled_inverse(1.0),
    "log10": _scaled_inverse(1.0 / math.log(10.0)),
    "log1p": lambda g, u, f: _inverse(g, _one_plus(g, 1.0, u)),
    "log2": _scaled_inverse(1.0 / math.log(2.0)),
    "sign": lambda g, u, f: None,
    "sin": lambda g, u, f: g.call("cos", u),
    "sinc": lambda g, u, f: g.call("dsinc", u),
    "sinh": lambda g, u, f: g.call("cosh", u),
    "sqrt": lambda g, u, f: g.product(0.5, [(f, -1)]),
    "tan": lambda g, u, f: _one_plus(g, 1.0, _square(g, f)),
    # not 1 − tanh², which has no digits left in the tails
    "tanh": lambda g, u, f: g.product(1.0, [(g.call("cosh", u), -2)]),
}
