"""Graph → Program: order the operations, hoist what does not vary, share the rest.

A sum or product is split into a part that depends on parameters only (evaluated once, before the
loop over the points) and a part that varies. Products are chained in one canonical order, so that
two derivatives that share a prefix of factors share its value; reciprocals are taken once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nlsq_nb.codegen.differentiate import jacobian
from nlsq_nb.codegen.graph import Graph
from nlsq_nb.codegen.ir import Instruction, Program
from nlsq_nb.codegen.limits import at_their_limits

__all__ = ["build_program"]


def build_program(graph: Graph, roots: Sequence[int], n_vars: int, n_params: int) -> Program:
    """Differentiate the outputs and lower everything into one program.

    Parameters
    ----------
    graph : Graph
        Holds the outputs; the derivatives are added to it.
    roots : sequence of int, length m
        The output nodes.
    n_vars, n_params : int
        Number of independent variables and of parameters.

    Returns
    -------
    Program
        Values and Jacobian with all common subexpressions shared.

    Raises
    ------
    ModelError
        When the derivatives grow past the size limit or do not exist.
    """
    roots = at_their_limits(graph, roots)
    derivatives = [jacobian(graph, root, n_params) for root in roots]
    needed = [node for row in derivatives for node in row if node is not None]
    lowering = _Lowering(graph, [*roots, *needed])
    return Program(
        n_vars,
        n_params,
        tuple(lowering.prologue),
        tuple(lowering.body),
        tuple(lowering.operand[root] for root in roots),
        tuple(
            tuple(None if d is None else lowering.operand[d] for d in row) for row in derivatives
        ),
    )


class _Lowering:
    """The state of one lowering: instructions so far and the operand of each node."""

    def __init__(self, graph: Graph, roots: Sequence[int]) -> None:
        self.graph = graph
        self.prologue: list[Instruction] = []
        self.body: list[Instruction] = []
        self.operand: dict[int, str] = {}
        self._known: dict[tuple[str, tuple[str, ...]], str] = {}
        self._varying: set[str] = set()
        order = graph.below(roots)
        self._inverses = Counter(
            (arg, k)
            for index in order
            if graph.nodes[index].op == "mul"
            for arg, k in zip(
                graph.nodes[index].args, graph.nodes[index].numbers[1:], strict=True
            )
            if k < 0
        )
        for index in order:
            self.operand[index] = self._lower(index)

    def _lower(self, index: int) -> str:
        node = self.graph.nodes[index]
        if node.op == "const":
            return repr(node.numbers[0])
        if node.op in ("x", "p"):
            name = f"{node.op}{int(node.numbers[0])}"
            if node.op == "x":
                self._varying.add(name)
            return name
        if node.op == "add":
            return self._sum(node.args, node.numbers)
        if node.op == "mul":
            return self._product(node.args, node.numbers)
        return self._emit(node.op, *(self.operand[arg] for arg in node.args))

    def _emit(self, op: str, *args: str) -> str:
        """Append an instruction, or find the equal one that is already there."""
        if op in ("add", "mul"):
            args = tuple(sorted(args))
        known = self._known.get((op, args))
        if known is not None:
            return known
        varying = any(arg in self._varying for arg in args)
        target, letter = (self.body, "t") if varying else (self.prologue, "k")
        name = f"{letter}{len(target)}"
        target.append(Instruction(name, op, args))
        if varying:
            self._varying.add(name)
        self._known[op, args] = name
        return name

    # -- sums --------------------------------------------------------------------------------
    def _sum(self, args: tuple[int, ...], numbers: tuple[float, ...]) -> str:
        pairs = list(zip(numbers[1:], args, strict=True))
        fixed = [(c, self.operand[a]) for c, a in pairs if not self.graph.varies(a)]
        moving = [(c, self.operand[a]) for c, a in pairs if self.graph.varies(a)]
        if not moving:
            return self._linear(numbers[0], fixed)
        if len(fixed) == 1 and numbers[0] == 0.0:
            return self._linear(0.0, moving + fixed)
        if fixed:
            return self._linear(0.0, [(1.0, self._linear(numbers[0], fixed)), *moving])
        return self._linear(numbers[0], moving)

    def _linear(self, constant: float, terms: list[tuple[float, str]]) -> str:
        terms = sorted(terms, key=lambda term: term[0] < 0)  # start with a positive term: a - b
        if constant != 0.0:
            total = repr(constant)
        else:
            (c, first), *terms = terms
            total = first if c == 1.0 else self._scaled(c, first)
        for c, operand in terms:
            scaled = operand if abs(c) == 1.0 else self._scaled(abs(c), operand)
            total = self._emit("add" if c > 0 else "sub", total, scaled)
        return total

    def _scaled(self, c: float, operand: str) -> str:
        return self._emit("neg", operand) if c == -1.0 else self._emit("mul", repr(c), operand)

    # -- products ----------------------------------------------------------------------------
    def _product(self, args: tuple[int, ...], numbers: tuple[float, ...]) -> str:
        factors = [(a, int(k)) for a, k in zip(args, numbers[1:], strict=True)]
        fixed = [f for f in factors if not self.graph.varies(f[0])]
        moving = [f for f in factors if self.graph.varies(f[0])]
        scale = self._fixed_product(numbers[0], fixed)
        if not moving:
            return scale
        single = [a for a, k in moving if k == -1 and self._inverses[a, -1] == 1]
        divisor = single[0] if len(single) == 1 and self._only_inverse(single[0]) else None
        chain: str | None = None
        for base, k in moving:
            if base != divisor:
                power = self._power(base, k)
                chain = power if chain is None else self._emit("mul", chain, power)
        if chain is None:
            top = scale
        elif scale == "1.0":
            top = chain
        else:
            top = self._emit("neg", chain) if scale == "-1.0" else self._emit("mul", scale, chain)
        return top if divisor is None else self._emit("div", top, self.operand[divisor])

    def _only_inverse(self, base: int) -> bool:
        """Whether 1/base is wanted once in the whole program: then divide by it directly."""
        return sum(n for (a, _), n in self._inverses.items() if a == base) == 1

    def _fixed_product(self, coefficient: float, factors: list[tuple[int, int]]) -> str:
        top = [self._positive_power(self.operand[a], k) for a, k in factors if k > 0]
        bottom = [self._positive_power(self.operand[a], -k) for a, k in factors if k < 0]
        if coefficient == -1.0 and top:
            top = [self._emit("neg", top[0]), *top[1:]]
        elif coefficient != 1.0 or not top:
            top = [repr(coefficient), *top]
        numerator = self._chain(top)
        return self._emit("div", numerator, self._chain(bottom)) if bottom else numerator

    def _chain(self, operands: list[str]) -> str:
        total = operands[0]
        for operand in operands[1:]:
            total = self._emit("mul", total, operand)
        return total

    def _power(self, base: int, exponent: int) -> str:
        operand = self.operand[base]
        if exponent < 0:
            operand = self._emit("div", "1.0", operand)
        return self._positive_power(operand, abs(exponent))

    def _positive_power(self, operand: str, exponent: int) -> str:
        if exponent == 1:
            return operand
        half = self._positive_power(operand, exponent // 2)
        square = self._emit("mul", half, half)
        return self._emit("mul", square, operand) if exponent % 2 else square
