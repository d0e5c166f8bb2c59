"""Values whose text gives 0·∞, ∞/∞ or 0/0 at a point where the limit is known: written so that it is met.

Only products and logarithms that show such a form are rewritten, each into an equal one:

- log u times what vanishes with u: log 0 counts as 0 there (x·log x = 0 at x = 0)
- sin u / u becomes sinc u
- e**u / (c + e**u) is divided through by e**u, which may overflow
- log(1 + e**u) is u where e**u is large, and may overflow
- e**u with u = −∞ (exp(−b/x) at x = 0) times something infinite is 0: exp wins over powers
- Heaviside(u) times what is infinite or undefined for u < 0 is 0 there
- u/v where both vanish, and v has no parameter, is the quotient of their slopes: (1 − exp(−b·x))/x at x = 0
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nlsq_nb.codegen.differentiate import slope_along
from nlsq_nb.codegen.graph import Graph
from nlsq_nb.codegen.ranges import Ranges

__all__ = ["at_their_limits"]

_LOGS = ("log", "log2", "log10")
_PARTIAL = (*_LOGS, "log1p", "sqrt", "pow", "acosh")  # not for every negative number
_LARGEST = sys.float_info.max
_LARGEST_PART = 64  # nodes
_LINEAR = 50.0  # log(1 + e**u) − u < 1e-21
_Factors = dict[int, int]  # node -> integer exponent


def at_their_limits(graph: Graph, roots: Sequence[int]) -> list[int]:
    """Rewrite expressions whose products have a limit that their factors do not show.

    Parameters
    ----------
    graph : Graph
        Holds the outputs; rewritten nodes are added to it.
    roots : sequence of int, length m
        The output nodes.

    Returns
    -------
    list of int, length m
        Equal nodes; the same ones where there is nothing to do.
    """
    rewriting = _Rewriting(graph)
    for index in graph.below(roots):
        rewriting.visit(index)
    return [rewriting.new[root] for root in roots]


class _Rewriting:
    """The state of one pass, operands first: what each node became."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ranges = Ranges(graph)
        self.new: dict[int, int] = {}

    def visit(self, index: int) -> None:
        """Rewrite one node; its operands are done."""
        node = self.graph.nodes[index]
        args = tuple(self.new[arg] for arg in node.args)
        same = index if args == node.args else self.graph.rebuild(node.op, args, node.numbers)
        self.new[index] = self._limit(same) if self.graph.varies(same) else same

    def _limit(self, index: int) -> int:
        if self._op(index) == "mul":
            return self._product(index)
        return self._soft_maximum(index) if self._op(index) in ("log", "log1p") else index

    def _soft_maximum(self, index: int) -> int:
        """log(1 + e**u) = u where e**−u is below rounding."""
        g, node = self.graph, self.graph.nodes[index]
        inner = g.nodes[node.args[0]]
        if node.op == "log" and inner.op == "add" and inner.numbers == (1.0, 1.0):
            inner = g.nodes[inner.args[0]]
        elif node.op == "log":
            return index
        if inner.op != "exp":
            return index
        (u,) = inner.args
        return g.where(g.compare("gt", u, g.const(_LINEAR)), u, index)

    def _product(self, index: int) -> int:
        node = self.graph.nodes[index]
        factors = dict(zip(node.args, map(int, node.numbers[1:]), strict=True))
        for rewrite in (self._sines, self._quotients, self._logarithms):
            rewrite(factors)
        result = self.graph.product(node.numbers[0], factors.items())
        for guard in (self._removable, self._vanishing_exponential, self._step):
            result = guard(factors, result)
        return result

    def _op(self, index: int) -> str:
        return self.graph.nodes[index].op

    def _sines(self, factors: _Factors) -> None:
        """sin(u)/u → sinc(u)."""
        for index, k in list(factors.items()):
            if self._op(index) != "sin" or k < 1:
                continue
            (u,) = self.graph.nodes[index].args
            scale, parts = self._as_product(u)
            if not self.ranges.of(u).zero or any(n < 1 for n in parts.values()):
                continue
            moving = [(part, n) for part, n in parts.items() if self.graph.varies(part)]
            times = min([k, *(-factors.get(part, 0) // n for part, n in moving)])
            if times > 0 and all(factors[part] + n * times >= 0 for part, n in moving):  # no pole is left
                self._multiply(factors, index, -times)
                self._multiply(factors, self.graph.call("sinc", u), times)
                self._multiply(factors, self.graph.const(scale), times)
                for part, n in parts.items():
                    self._multiply(factors, part, n * times)

    def _as_product(self, index: int) -> tuple[float, _Factors]:
        node = self.graph.nodes[index]
        if node.op != "mul":
            return 1.0, {index: 1}
        return node.numbers[0], dict(zip(node.args, map(int, node.numbers[1:]), strict=True))

    def _multiply(self, factors: _Factors, index: int, times: int) -> None:
        factors[index] = factors.get(index, 0) + times
        if factors[index] == 0:
            del factors[index]

    def _quotients(self, factors: _Factors) -> None:
        """e**u/(c + e**u) → 1/(c·e**−u + 1)."""
        for index, k in list(factors.items()):
            if self._op(index) != "exp" or k < 1 or not self.ranges.of(index).infinite:
                continue
            for base, n in list(factors.items()):
                if n < 0 and index in self._terms_of(base):
                    times = min(factors.get(index, 0), -n)
                    if times > 0:
                        self._divide_through(factors, index, base, times)

    def _terms_of(self, base: int) -> set[int]:
        """The terms of a sum and the factors of the terms."""
        node = self.graph.nodes[base]
        if node.op != "add":
            return set()
        return set(node.args).union(*(self.graph.nodes[a].args for a in node.args if self._op(a) == "mul"))

    def _divide_through(self, factors: _Factors, index: int, base: int, times: int) -> None:
        g = self.graph
        (u,) = g.nodes[index].args
        self._multiply(factors, index, -times)
        self._multiply(factors, base, times)
        needed = index in factors or base in factors
        inverse = g.product(1.0, [(index, -1)]) if needed else g.call("exp", g.neg(u))
        node = g.nodes[base]
        terms = [(node.numbers[0], inverse)]
        for c, arg in zip(node.numbers[1:], node.args, strict=True):
            scale, parts = self._as_product(arg)
            growing = next((i for i, n in parts.items() if n == 1 and self._op(i) == "exp"), None)
            if growing is None:
                terms.append((c, g.mul(arg, inverse)))
            else:  # e**v·e**−u in one, e**(v−u), which is 1 for u itself
                self._multiply(parts, growing, -1)
                (v,) = g.nodes[growing].args
                quotient = g.call("exp", g.sub(v, u))
                terms.append((c, g.product(scale, [*parts.items(), (quotient, 1)])))
        self._multiply(factors, g.combine(0.0, terms), -times)

    def _logarithms(self, factors: _Factors) -> None:
        """0·log 0 = 0."""
        g = self.graph
        for index, k in list(factors.items()):
            if self._op(index) not in _LOGS or k < 1:
                continue
            (u,) = g.nodes[index].args
            if not self.ranges.of(u).zero:
                continue
            for other, n in factors.items():
                if n > 0 and other != index and g.varies(other) and self.ranges.vanish_together(u, other):
                    zero = g.const(0.0)
                    del factors[index]
                    self._multiply(factors, g.where(g.compare("eq", other, zero), zero, index), k)
                    break

    def _removable(self, factors: _Factors, result: int) -> int:
        """0/0 by l'Hôpital's rule, at points that do not move with parameters: so neither does where the limit is."""
        g, zero = self.graph, self.graph.const(0.0)
        for base, k in list(factors.items()):
            place, variable = self._place_of(base) if k < 0 else (base, None)
            if variable is None:
                continue
            over = ((i, n) for i, n in list(factors.items()) if n > 0 and self._vanishes(place, i))
            limits = ((i, self._limit_of(factors, (base, -k), (i, n), variable)) for i, n in over)
            index, limit = next(((i, found) for i, found in limits if found is not None), (base, None))
            if limit is not None:
                both = g.where(g.compare("eq", index, zero), limit, result)
                result = g.where(g.compare("eq", place, zero), both, result)
        return result

    def _vanishes(self, place: int, index: int) -> bool:
        """Whether a part that is not large may be zero where another is: slopes of slopes grow."""
        small = len(self.graph.below([index])) <= _LARGEST_PART
        return small and self.ranges.vanish_together(place, index)

    def _place_of(self, base: int) -> tuple[int, int | None]:
        """What makes a node zero whatever the parameters are, and a variable in it, if there is such a part."""
        for part in self.ranges.parts_of_zero(base):
            leaves = [(i, self.graph.nodes[i].op) for i in self.graph.below([part])]
            variables = [i for i, op in leaves if op == "x"]
            if variables and self.ranges.of(part).zero and all(op != "p" for _, op in leaves):
                return part, variables[0]
        return base, None

    def _limit_of(
        self, factors: _Factors, under: tuple[int, int], over: tuple[int, int], variable: int
    ) -> int | None:
        """The product where two of its factors vanish; None where a pole may be left."""
        g, (base, poles), (index, zeros) = self.graph, under, over
        slope = slope_along(g, self.ranges, index, variable)
        if zeros < poles and zeros == 1 and base == variable and self.ranges.vanish_together(base, slope):
            bend = slope_along(g, self.ranges, slope, variable)  # u vanishes as x²
            slope, order = g.mul(g.const(0.5), bend), 2
        else:
            order = 1
        if zeros * order < poles:
            return None
        rest = {i: n for i, n in factors.items() if i not in (base, index)}
        self._multiply(rest, index, zeros - poles // order)
        self._multiply(rest, slope, poles // order)
        self._multiply(rest, slope_along(g, self.ranges, base, variable), -poles)
        return g.product(1.0, rest.items()) if poles % order == 0 else None

    def _vanishing_exponential(self, factors: _Factors, result: int) -> int:
        """exp(−∞)·∞ = 0."""
        g = self.graph
        for index, k in factors.items():
            others = ((i, n) for i, n in factors.items() if i != index)
            if not any(self.ranges.of(i).infinite if n > 0 else self.ranges.of(i).zero for i, n in others):
                continue
            for exponential in {index} if k > 0 else self._terms_of(base=index) | {index}:
                if self._op(exponential) != "exp":
                    continue
                (u,) = g.nodes[exponential].args
                if self.ranges.of(u).infinite:
                    end = g.compare("lt", u, g.const(-_LARGEST)) if k > 0 else g.compare("gt", u, g.const(_LARGEST))
                    result = g.where(end, g.const(0.0), result)
        return result

    def _step(self, factors: _Factors, result: int) -> int:
        """Heaviside(u)·f = 0 for u < 0, whatever f is."""
        g = self.graph
        for index, k in factors.items():
            if self._op(index) == "heaviside" and k > 0 and self._undefined(factors):
                u, _ = g.nodes[index].args
                zero = g.const(0.0)
                result = g.where(g.compare("lt", u, zero), zero, result)
        return result

    def _undefined(self, factors: _Factors) -> bool:
        """Whether the product can be infinite or nan somewhere."""
        g, of = self.graph, self.ranges.of
        if any(of(i).infinite if k > 0 else of(i).zero for i, k in factors.items()):
            return True
        inside = (g.nodes[i] for i in g.below(list(factors)))
        return any(node.op in _PARTIAL and of(node.args[0]).below for node in inside)
