"""The expression graph: one node per distinct value, built only through checked constructors.

A node is an integer index into its `Graph`; equal expressions get the same index (hash-consing),
so common subexpressions are shared from the start and every pass over a graph is linear in its
size. Sums and products are n-ary with numeric coefficients and integer exponents, in a canonical
order, which makes `x - x` vanish and lets `lower` hoist what does not depend on the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nlsq_nb.codegen.functions import ARITY, fold
from nlsq_nb.errors import ModelError

__all__ = ["MAX_NODES", "Graph", "Node"]

MAX_NODES = 100_000
"""Most operands of a graph, derivatives included; beyond it a kernel would take minutes to compile."""

_MAX_EXPONENT = 64  # integer powers up to this are products; above, a call of pow
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}
LOGIC = ("and", "or", "not")


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the graph.

    Attributes
    ----------
    op : str
        "const", "x", "p", "add", "mul", "where", a comparison, a logical or a function name.
    args : tuple of int
        Indices of the operands, all smaller than the node's own index.
    numbers : tuple of float
        const: (value,); x, p: (index,); add: (constant, coefficient of each operand…);
        mul: (coefficient, integer exponent of each operand…); else empty.
    """

    op: str
    args: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()


class Graph:
    """A growing set of nodes; methods build a node and return its index.

    Raises
    ------
    ModelError
        When a constant is not finite, a function is unknown or the graph grows past `MAX_NODES`.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._index: dict[Node, int] = {}
        self._operands = 0
        self._params: list[int] = []  # per node: bit mask of the parameters below it
        self._varies: list[bool] = []  # per node: does an independent variable occur below it

    # -- queries -----------------------------------------------------------------------------
    def depends_on(self, node: int, param: int) -> bool:
        """Whether parameter number `param` occurs in the expression."""
        return bool(self._params[node] >> param & 1)

    def varies(self, node: int) -> bool:
        """Whether the value can differ from point to point."""
        return self._varies[node]

    def value(self, node: int) -> float | None:
        """The value of a constant node, None for any other."""
        entry = self.nodes[node]
        return entry.numbers[0] if entry.op == "const" else None

    def is_condition(self, node: int) -> bool:
        """Whether the node is true or false rather than a number."""
        return self.nodes[node].op in COMPARISONS or self.nodes[node].op in LOGIC

    def below(self, roots: Iterable[int]) -> list[int]:
        """The nodes that the roots need, themselves among them, operands first."""
        seen = set(roots)
        stack = list(seen)
        while stack:
            for arg in self.nodes[stack.pop()].args:
                if arg not in seen:
                    seen.add(arg)
                    stack.append(arg)
        return sorted(seen)

    # -- leaves ------------------------------------------------------------------------------
    def const(self, value: float) -> int:
        """A finite number."""
        number = float(value)
        if not math.isfinite(number):
            raise ModelError(f"a constant of the model is {number}; write it so that it is finite")
        return self._intern(Node("const", (), (number + 0.0,)))

    def variable(self, index: int) -> int:
        """Independent variable number `index`."""
        return self._intern(Node("x", (), (float(index),)))

    def param(self, index: int) -> int:
        """Parameter number `index`."""
        return self._intern(Node("p", (), (float(index),)))

    # -- algebra -----------------------------------------------------------------------------
    def add(self, *terms: int) -> int:
        """The sum of the terms."""
        return self.combine(0.0, [(1.0, term) for term in terms])

    def sub(self, left: int, right: int) -> int:
        """`left - right`."""
        return self.combine(0.0, [(1.0, left), (-1.0, right)])

    def neg(self, node: int) -> int:
        """`-node`."""
        return self.product(-1.0, [(node, 1)])

    def mul(self, *factors: int) -> int:
        """The product of the factors."""
        return self.product(1.0, [(factor, 1) for factor in factors])

    def div(self, left: int, right: int) -> int:
        """`left / right`."""
        return self.product(1.0, [(left, 1), (right, -1)])

    def combine(self, constant: float, terms: Iterable[tuple[float, int]]) -> int:
        """The linear combination `constant + Σ coefficient·term`, like terms collected."""
        total: dict[int, float] = {}
        for coefficient, term in terms:
            constant += self._collect(coefficient, term, total)
        kept = sorted((node, c) for node, c in total.items() if c != 0.0)
        if not all(map(math.isfinite, [constant, *(c for _, c in kept)])):
            raise ModelError("a coefficient of the model overflows; rescale the expression")
        if not kept:
            return self.const(constant)
        if constant == 0.0 and len(kept) == 1:
            node, coefficient = kept[0]
            return self.product(coefficient, [(node, 1)])
        numbers = (constant, *(c for _, c in kept))
        return self._intern(Node("add", tuple(n for n, _ in kept), numbers))

    def _collect(self, coefficient: float, term: int, total: dict[int, float]) -> float:
        """Add `coefficient·term` to `total`; return what it adds to the constant."""
        node = self.nodes[term]
        if node.op == "const":
            return coefficient * node.numbers[0]
        if node.op == "add":
            for arg, c in zip(node.args, node.numbers[1:], strict=True):
                total[arg] = total.get(arg, 0.0) + coefficient * c
            return coefficient * node.numbers[0]
        if node.op == "mul" and node.numbers[0] != 1.0:
            coefficient *= node.numbers[0]
            term = self.product(
                1.0, [(a, int(k)) for a, k in zip(node.args, node.numbers[1:], strict=True)]
            )
        total[term] = total.get(term, 0.0) + coefficient
        return 0.0

    def product(self, coefficient: float, factors: Iterable[tuple[int, int]]) -> int:
        """The product `coefficient·Π factor**exponent` with integer exponents, flattened."""
        powers: dict[int, int] = {}
        for factor, exponent in factors:
            node = self.nodes[factor]
            if node.op == "const":
                coefficient *= _integer_power(node.numbers[0], exponent)
            elif node.op == "mul":
                coefficient *= _integer_power(node.numbers[0], exponent)
                for arg, k in zip(node.args, node.numbers[1:], strict=True):
                    powers[arg] = powers.get(arg, 0) + int(k) * exponent
            else:
                powers[factor] = powers.get(factor, 0) + exponent
        if coefficient == 0.0:
            return self.const(0.0)
        if not math.isfinite(coefficient):
            raise ModelError("a coefficient of the model overflows; rescale the expression")
        kept = sorted((node, k) for node, k in powers.items() if k != 0)
        if not kept:
            return self.const(coefficient)
        if coefficient == 1.0 and len(kept) == 1 and kept[0][1] == 1:
            return kept[0][0]
        if len(kept) == 1 and kept[0][1] == 1 and self.nodes[kept[0][0]].op == "add":
            inner = self.nodes[kept[0][0]]  # c·(a + b) is written out, as SymPy does
            return self._intern(
                Node("add", inner.args, tuple(coefficient * c + 0.0 for c in inner.numbers))
            )
        numbers = (coefficient, *(float(k) for _, k in kept))
        return self._intern(Node("mul", tuple(n for n, _ in kept), numbers))

    def power(self, base: int, exponent: int) -> int:
        """`base ** exponent`; integer and half-integer exponents become products and roots."""
        b, e = self.value(base), self.value(exponent)
        if b is not None and e is not None:
            return self.const(fold("pow", b, e))
        if e is not None and abs(e) <= _MAX_EXPONENT:
            if e == int(e):
                return self.product(1.0, [(base, int(e))])
            if 2 * e == int(2 * e) and abs(e) <= 8:
                # u**(k + 1/2) = u**k·√u keeps u = 0 and u < 0 as they are in u**e
                return self.product(1.0, [(self.call("sqrt", base), int(2 * e))])
        if b == 1.0:
            return self.const(1.0)
        if b == math.e:
            return self.call("exp", exponent)
        return self._intern(Node("pow", (base, exponent)))

    # -- functions and choices ---------------------------------------------------------------
    def call(self, name: str, *args: int) -> int:
        """The function `name` of `functions.ARITY` applied to numbers."""
        if name == "pow":
            return self.power(*args)
        if ARITY.get(name) != len(args):
            raise ModelError(f"{name} with {len(args)} argument(s) is not a function of models")
        values = [self.value(arg) for arg in args]
        if all(v is not None for v in values):
            return self.const(fold(name, *[v for v in values if v is not None]))
        return self._intern(Node(name, tuple(args)))

    def compare(self, op: str, left: int, right: int) -> int:
        """A comparison: op is one of lt, le, gt, ge, eq, ne."""
        a, b = self.value(left), self.value(right)
        if a is not None and b is not None:
            left = self.const(float(COMPARISONS[op](a, b)))
            return self._intern(Node("ne", (left, self.const(0.0))))
        return self._intern(Node(op, (left, right)))

    def logic(self, op: str, *args: int) -> int:
        """`and`, `or` (two conditions) or `not` (one)."""
        return self._intern(Node(op, tuple(args)))

    def where(self, condition: int, yes: int, no: int) -> int:
        """`yes` where the condition holds, else `no`."""
        truth = self._truth(condition)
        if truth is not None:
            return yes if truth else no
        return yes if yes == no else self._intern(Node("where", (condition, yes, no)))

    def _truth(self, condition: int) -> bool | None:
        node = self.nodes[condition]
        if node.op not in COMPARISONS:
            return None
        a, b = (self.value(arg) for arg in node.args)
        return None if a is None or b is None else COMPARISONS[node.op](a, b)

    # -- rebuilding --------------------------------------------------------------------------
    def rebuild(self, op: str, args: Sequence[int], numbers: Sequence[float]) -> int:
        """Build a node from its parts through the constructors (used to read stored graphs)."""
        if op == "const":
            return self.const(numbers[0])
        if op in ("x", "p"):
            return self.variable(int(numbers[0])) if op == "x" else self.param(int(numbers[0]))
        if op == "add":
            return self.combine(numbers[0], zip(numbers[1:], args, strict=True))
        if op == "mul":
            return self.product(
                numbers[0], [(a, int(k)) for a, k in zip(args, numbers[1:], strict=True)]
            )
        if op in COMPARISONS:
            return self.compare(op, *args)
        if op in LOGIC:
            return self.logic(op, *args)
        return self.where(*args) if op == "where" else self.call(op, *args)

    def _check_kinds(self, node: Node) -> None:
        """Conditions go to `where` and to logic, numbers everywhere else."""
        if node.op in LOGIC:
            wanted = [True] * (1 if node.op == "not" else 2)
        elif node.op == "where":
            wanted = [True, False, False]
        else:
            wanted = [False] * len(node.args)
        if [self.is_condition(arg) for arg in node.args] != wanted:
            raise ModelError(f"{node.op} takes conditions and numbers in other places")

    def _intern(self, node: Node) -> int:
        known = self._index.get(node)
        if known is not None:
            return known
        self._check_kinds(node)
        self._operands += max(1, len(node.args))
        if self._operands > MAX_NODES:
            raise ModelError(f"the model and its derivatives exceed {MAX_NODES} operations")
        index = len(self.nodes)
        mask = 1 << int(node.numbers[0]) if node.op == "p" else 0
        varies = node.op == "x"
        for arg in node.args:
            mask |= self._params[arg]
            varies = varies or self._varies[arg]
        self.nodes.append(node)
        self._params.append(mask)
        self._varies.append(varies)
        self._index[node] = index
        return index


def _integer_power(base: float, exponent: int) -> float:
    try:
        return base**exponent
    except (OverflowError, ZeroDivisionError):
        raise ModelError(
            f"the constant {base!r} ** {exponent} in the model is not finite"
        ) from None
