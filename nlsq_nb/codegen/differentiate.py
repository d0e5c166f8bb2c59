"""Forward differentiation of expression graphs with respect to the parameters.

Derivatives are built on the same hash-consed graph as the value, so everything they share with it
or with one another is computed once. Forward mode keeps `where` exact: the derivative of the
branch that is not taken never reaches the result (reverse mode would give 0·nan there).

Where the chain or the product rule would give 0·∞, 0/0 or ∞/∞ for an ordinary x, the rule is guarded by a
`where` with the limit: e**u and functions that saturate win over a pole of du; 1/w is flat where w is
infinite; u**v and √u have the derivative 0 where u vanishes by a factor without the parameter
(d√(a·x)/da at x = 0), and at a kink (√(x − a)² at x = a, |u|) the mean of both sides; u**v·log u is 0
for u = 0. `ranges` tells which expressions show the form. An infinity that comes from a parameter of
value 0 in a denominator stays visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from nlsq_nb.codegen.graph import COMPARISONS, LOGIC, Graph
from nlsq_nb.codegen.ranges import Ranges
from nlsq_nb.errors import ModelError

__all__ = ["jacobian", "slope_along"]

_LOGS = frozenset(("log", "log10", "log2"))
_SATURATING = frozenset(("atan", "erf", "erfc", "tanh"))


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
    order = graph.below([root])
    ranges = Ranges(graph)
    each = ([i for i in order if graph.depends_on(i, k)] for k in range(n_params))
    return tuple(_Derivative(graph, ranges, moving).table.get(root) for moving in each)


def slope_along(graph: Graph, ranges: Ranges, root: int, variable: int) -> int:
    """The derivative of a node by an independent variable.

    Parameters
    ----------
    graph : Graph
        The graph of `root`; the derivative is added to it.
    ranges : Ranges
        Of its nodes.
    root : int
        The node to differentiate.
    variable : int
        The node of the variable.

    Returns
    -------
    int
        The derivative's node.
    """
    moving = {variable: None}
    for index in graph.below([root]):
        if any(arg in moving for arg in graph.nodes[index].args):
            moving[index] = None
    return _Derivative(graph, ranges, list(moving)).table.get(root, graph.const(0.0))


class _Derivative:
    """Derivatives of all nodes below a root by one leaf: a parameter or a variable.

    `moving` are the nodes that depend on it, operands first.

    Attributes
    ----------
    table : dict of int to int
        Node -> its derivative; absent means zero.
    """

    def __init__(self, graph: Graph, ranges: Ranges, moving: list[int]) -> None:
        self.graph = graph
        self.ranges = ranges
        self.table: dict[int, int] = {}
        self._zero = graph.const(0.0)
        for index in moving:
            result = self._rule(index)
            if result is not None and graph.value(result) != 0.0:
                self.table[index] = result

    def _rule(self, index: int) -> int | None:
        g, table = self.graph, self.table
        node = g.nodes[index]
        if node.op in ("p", "x"):
            return g.const(1.0)
        if node.op == "add":
            pairs = zip(node.numbers[1:], node.args, strict=True)
            return g.combine(0.0, [(c, table[a]) for c, a in pairs if a in table])
        if node.op == "mul":
            return self._product_rule(index)
        if node.op in COMPARISONS or node.op in LOGIC:
            return None
        if node.op == "where":
            return self._where_rule(index)
        if node.op == "pow":
            return self._power_rule(index)
        if len(node.args) == 2:
            return self._binary_rule(index)
        return self._chain_rule(index) if node.args[0] in table else None

    def _chain_rule(self, index: int) -> int | None:
        g, node = self.graph, self.graph.nodes[index]
        (u,) = node.args
        inner = self.table[u]
        slope = _SLOPES.get(node.op)
        if slope is None:
            raise ModelError(f"the derivative of {node.op} is not available")
        outer = slope(g, u, index)
        if outer is None:
            return None
        result = g.mul(outer, inner)
        if node.op == "exp" or node.op in _SATURATING:
            return self._unless_zero(outer, result) if self.ranges.of(inner).infinite else result
        return self._at_common_zero(u, inner, result) if node.op == "sqrt" or node.op in _LOGS else result

    def _unless_zero(self, flat: int, result: int) -> int:
        """`result`, or 0 where the factor `flat` of it is zero whatever the other is."""
        g = self.graph
        return g.where(g.compare("eq", flat, self._zero), self._hole(flat), result)

    def _hole(self, node: int) -> int:
        """0; infinite where a parameter in a denominator below the node is zero."""
        g = self.graph
        bases = {
            a
            for i in g.below([node])
            if g.nodes[i].op == "mul"
            for a, k in zip(g.nodes[i].args, g.nodes[i].numbers[1:], strict=True)
            if k < 0 and not g.varies(a)
        }
        zero = self._zero
        return g.add(zero, *(g.where(g.compare("eq", a, zero), g.product(1.0, [(a, -1)]), zero) for a in sorted(bases)))

    def _at_common_zero(self, u: int, inner: int, result: int) -> int:
        """`result`, or 0 where u and its derivative vanish together."""
        g = self.graph
        if self.ranges.vanish_together(u, inner):
            return g.where(g.compare("eq", inner, self._zero), self._zero, result)
        return result

    def _where_rule(self, index: int) -> int | None:
        condition, yes, no = self.graph.nodes[index].args
        if yes not in self.table and no not in self.table:
            return None
        return self.graph.where(condition, self.table.get(yes, self._zero), self.table.get(no, self._zero))

    def _product_rule(self, index: int) -> int:
        g, node = self.graph, self.graph.nodes[index]
        factors = [(a, int(k)) for a, k in zip(node.args, node.numbers[1:], strict=True)]
        terms = []
        for i, (base, k) in enumerate(factors):
            if base not in self.table:
                continue
            others = [*factors[:i], *factors[i + 1 :]]
            if g.nodes[base].op == "sqrt" and k != 1:  # (√u)**k = u**(k/2): no division by √u
                (u,) = g.nodes[base].args
                scale, inner = 0.5 * k, [(base, k - 2), (self.table[u], 1)]
            else:
                scale, inner = float(k), [(base, k - 1), (self.table[base], 1)]
            term = g.product(scale, [*others, *inner])
            if k < 0 and self.ranges.of(base).infinite:
                term = self._unless_zero(g.product(1.0, inner[:1]), term)
            terms.append((node.numbers[0], term))
        return g.combine(0.0, terms)

    def _power_rule(self, index: int) -> int | None:
        g = self.graph
        base, exponent = g.nodes[index].args
        terms = []
        if base in self.table:
            slope = self._slope_of_power(index, base, exponent)
            terms.append(self._at_common_zero(base, self.table[base], slope))
        if exponent in self.table:
            terms.append(g.mul(index, self._log_of_base(index, base), self.table[exponent]))
        return g.add(*terms) if terms else None

    def _slope_of_power(self, index: int, base: int, exponent: int) -> int:
        """The part of d(u**v) that u brings."""
        g, inner = self.graph, self.graph.nodes[base]
        if inner.op == "mul":  # logarithmic derivative, factor by factor: right for (x/e)**b at x = 0
            factors = [(a, int(k)) for a, k in zip(inner.args, inner.numbers[1:], strict=True)]
        else:
            factors = [(base, 1)]
        terms = []
        for a, k in factors:
            if a in self.table:
                quotient = g.div(index, a)
                if self.ranges.of(a).zero or not g.varies(base):
                    rest = g.div(base, a) if k == 1 else g.const(1.0)
                    quotient = self._quotient_at_zero(a, k, exponent, rest, quotient)
                term = g.mul(quotient, self.table[a])
                if self.ranges.of(self.table[a]).infinite:
                    term = self._unless_zero(quotient, term)
                terms.append((float(k), term))
        return g.mul(exponent, g.combine(0.0, terms))

    def _quotient_at_zero(self, a: int, k: int, exponent: int, rest: int, quotient: int) -> int:
        """u**v/a with u = a**k·rest, or its limit where a is zero."""
        g = self.graph
        power = g.combine(-1.0, [(float(k), exponent)])
        value = g.value(power)
        if value is not None and value <= 0.0:
            return quotient  # infinite in any case
        limit = g.mul(g.power(self._zero, power), rest)
        return g.where(g.compare("eq", a, self._zero), limit, quotient)

    def _log_of_base(self, index: int, base: int) -> int:
        """Log u, or 0 where u**v·log u is zero."""
        g, zero, log = self.graph, self._zero, self.graph.call("log", base)
        known = self.ranges.of(base)
        if known.infinite:
            log = g.where(g.compare("eq", index, zero), zero, log)
        guarded = known.zero or not (g.varies(base) or g.value(base))
        return g.where(g.compare("eq", base, zero), zero, log) if guarded else log

    def _binary_rule(self, index: int) -> int | None:
        g, zero = self.graph, self._zero
        op = g.nodes[index].op
        u, v = g.nodes[index].args
        du, dv = self.table.get(u, zero), self.table.get(v, zero)
        if op in ("minimum", "maximum"):
            return g.where(g.compare("le" if op == "minimum" else "ge", u, v), du, dv)
        if op == "atan2":
            norm = g.add(g.mul(u, u), g.mul(v, v))
            result = g.div(g.sub(g.mul(v, du), g.mul(u, dv)), norm)
            if self.ranges.of(norm).zero:  # no derivative, or none that the angle jumps with
                result = g.where(g.compare("eq", norm, zero), zero, result)
            return result
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
