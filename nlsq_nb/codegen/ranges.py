"""What values a node can take, read off the graph: signs, zeros, infinities; and what vanishes with what.

The answers decide where `limits` and `differentiate` guard a product 0·∞, so that expressions without
such a form pay nothing. x may be any finite number, a parameter any finite number but 0; a value that
depends on parameters only counts as finite and not zero: where it is not, that is to be seen. Powers and
products of finite numbers count as finite, exp does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlsq_nb.codegen.graph import Graph, Node

__all__ = ["Range", "Ranges"]

_MOST = 32  # nodes that are remembered to vanish together with one node
_SIGN_KEEPING = frozenset(["asin", "asinh", "atan", "erf", "expm1", "log1p", "sign", "sinh", "tan", "tanh"])
_ZERO_KEEPING = _SIGN_KEEPING | {"abs", "sin", "sqrt"}
_ONE_AT_ZERO = ("exp", "cos", "cosh")
_LOGS = ("log", "log2", "log10")
_BOUNDED = frozenset(
    ["acos", "asin", "atan", "atan2", "cos", "dsinc", "erf", "heaviside", "sign", "sin", "sinc", "tan", "tanh"]
)
_NOT_NEGATIVE = frozenset(["abs", "acos", "acosh", "cosh", "erfc", "exp", "heaviside", "sqrt"])
_OVERFLOWING = frozenset(["cosh", "expm1", "gamma", "sinh"])
_POLES = frozenset(["atanh", "digamma", "gamma", "lgamma", "log", "log10", "log1p", "log2", "trigamma"])

_Part = int | tuple[tuple[int, ...], tuple[float, ...]]  # a node, or a sum up to a factor


@dataclass(frozen=True, slots=True)
class Range:
    """What a value can be: below 0, above 0, 0, infinite (by a pole or by overflow of exp)."""

    below: bool = True
    above: bool = True
    zero: bool = True
    infinite: bool = False


class Ranges:
    """Ranges of the nodes of a graph, each found once; the graph may grow in between.

    Parameters
    ----------
    graph : Graph
        The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: list[Range] = []
        self._killers: dict[int, frozenset[_Part]] = {}

    def of(self, node: int) -> Range:
        """The range of a node."""
        nodes = self._graph.nodes
        for index in range(len(self._known), node + 1):
            found = self._find(nodes[index])
            if nodes[index].op != "const" and not self._graph.varies(index):
                found = Range(found.below, found.above, zero=False)
            self._known.append(found)
        return self._known[node]

    def vanish_together(self, one: int, other: int) -> bool:
        """Whether `other` may well be zero where `one` is.

        So it is when a part makes both zero, when it is zero where `one`, a sum of squares, is, and when
        `other` is a choice between zero and something else.
        """
        zeros = self._zeros(other)
        if any(isinstance(part, int) and self._graph.nodes[part].op == "where" for part in zeros):
            return True
        return not zeros.isdisjoint(self._zeros(one) | self._parts_of_squares(one))

    def parts_of_zero(self, node: int) -> list[int]:
        """The nodes that make a node zero when they are, those of the lowest number first."""
        return sorted(part for part in self._zeros(node) if isinstance(part, int))

    # -- ranges ------------------------------------------------------------------------------
    def _find(self, node: Node) -> Range:
        if node.op == "const":
            value = node.numbers[0]
            return Range(value < 0, value > 0, value == 0)
        if node.op in ("x", "p"):
            return Range(zero=node.op == "x")
        args = [self._known[arg] for arg in node.args]
        if node.op == "add":
            return self._sum(node, args)
        if node.op == "mul":
            return self._product(node, args)
        if node.op in ("where", "minimum", "maximum"):
            args = args[-2:]
            flags = ([getattr(arg, name) for arg in args] for name in Range.__slots__)
            return Range(*map(any, flags))
        if node.op == "pow":
            return self._power(node, *args)
        return self._call(node.op, args) if args else Range()

    def _sum(self, node: Node, args: list[Range]) -> Range:
        constant = node.numbers[0]
        pairs = list(zip(node.numbers[1:], args, strict=True))
        below = constant < 0 or any(arg.below if c > 0 else arg.above for c, arg in pairs)
        above = constant > 0 or any(arg.above if c > 0 else arg.below for c, arg in pairs)
        zero = (below and above) or (constant == 0 and all(arg.zero for arg in args))
        return Range(below, above, zero, any(arg.infinite for arg in args))

    def _product(self, node: Node, args: list[Range]) -> Range:
        positive, negative = node.numbers[0] > 0, node.numbers[0] < 0
        zero = infinite = False
        for k, arg in zip(node.numbers[1:], args, strict=True):
            if k % 2:
                positive, negative = (
                    (positive and arg.above) or (negative and arg.below),
                    (positive and arg.below) or (negative and arg.above),
                )
            zero = zero or (arg.zero if k > 0 else arg.infinite)
            infinite = infinite or (arg.infinite if k > 0 else arg.zero)
        return Range(negative, positive, zero, infinite)

    def _power(self, node: Node, base: Range, exponent: Range) -> Range:
        if not self._graph.varies(node.args[0]):  # an exponential
            return Range(base.below, zero=True, infinite=True)
        infinite = base.infinite or (base.zero and exponent.below)
        return Range(base.below, zero=base.zero or base.infinite, infinite=infinite)

    def _call(self, op: str, args: list[Range]) -> Range:
        (arg, *_) = args
        if op == "exp":
            return Range(below=False, zero=arg.below or arg.infinite, infinite=arg.above or arg.infinite)
        kept = op in _SIGN_KEEPING
        below = arg.below if kept else op not in _NOT_NEGATIVE
        zero = arg.zero if op in _ZERO_KEEPING else op != "cosh"
        infinite = op in _OVERFLOWING | _POLES or (arg.infinite and op not in _BOUNDED | {"erfc"})
        if op.startswith("log"):
            infinite = arg.infinite or (arg.below if op == "log1p" else arg.zero)
        return Range(below, arg.above if kept else True, zero, infinite)

    # -- common zeros ------------------------------------------------------------------------
    def _zeros(self, node: int) -> frozenset[_Part]:
        """What makes a node zero when it is zero, the node itself among it."""
        stack = [node]
        while stack:
            index = stack[-1]
            missing = [arg for arg in self._relevant(index) if arg not in self._killers]
            if missing:
                stack.extend(missing)
            else:
                self._killers[stack.pop()] = self._combined(index)
        return self._killers[node]

    def _relevant(self, index: int) -> list[int]:
        """Operands that decide: for a sum, also in a logarithm, those inside exp, cos and cosh, which are 1 for 0."""
        node = self._graph.nodes[index]
        if node.op == "mul":
            return [a for a, k in zip(node.args, node.numbers[1:], strict=True) if k > 0]
        one = float(node.op in _LOGS)  # log u is zero where u is 1
        if one:
            node = self._graph.nodes[node.args[0]]
        if node.op != "add":
            return list(node.args[:1]) if node.op in _ZERO_KEEPING | {"pow"} and not one else []
        total, found = node.numbers[0] - one, []
        for c, arg in zip(node.numbers[1:], node.args, strict=True):
            inner = self._graph.nodes[arg]
            at_one = inner.op in _ONE_AT_ZERO
            total += c if at_one else 0.0
            found.append(inner.args[0] if at_one else arg)
        return found if total == 0.0 else []

    def _combined(self, index: int) -> frozenset[_Part]:
        node = self._graph.nodes[index]
        if node.op == "const":
            return frozenset()
        sets = [self._killers[arg] for arg in self._relevant(index)]
        own: set[_Part] = {index}
        if node.op == "add":
            own.add((node.args, tuple(c / node.numbers[1] for c in node.numbers)))  # the same for any multiple
        if node.op == "add" or node.op in _LOGS:
            found = frozenset.intersection(*sets) if sets else frozenset()
        else:
            found = frozenset().union(*sets)
        return found | own if len(found) < _MOST else frozenset(own)

    def _parts_of_squares(self, index: int) -> frozenset[_Part]:
        """What is zero where a sum without negative terms is."""
        node, known = self._graph.nodes[index], self.of(index)
        if node.op != "add" or node.numbers[0] != 0.0 or known.below or len(node.args) > _MOST:
            return frozenset()
        inner = [self._graph.nodes[arg] for arg in node.args]
        single = [part.args[0] for part in inner if part.op == "mul" and len(part.args) == 1]
        return frozenset().union(*(self._zeros(part) for part in single), node.args)
