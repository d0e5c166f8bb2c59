"""Graph → readable algebra with the user's own names, for reports only (never executed)."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_nb.codegen.graph import Graph

__all__ = ["count_operations", "to_text"]

_SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_SUM, _PRODUCT, _POWER, _ATOM = range(4)


def to_text(graph: Graph, root: int, variables: Sequence[str], params: Sequence[str]) -> str:
    """The infix form of a node.

    Parameters
    ----------
    graph : Graph
        The graph.
    root : int
        The node to print.
    variables, params : sequence of str
        Names of the independent variables and of the parameters.

    Returns
    -------
    str
        Algebra in Python's notation; shared parts are repeated.
    """
    memo: dict[int, tuple[str, int]] = {}
    for index in range(root + 1):
        node = graph.nodes[index]
        parts = [memo[arg] for arg in node.args]
        if node.op == "const":
            value = node.numbers[0]
            memo[index] = (_number(value), _ATOM if value >= 0 else _SUM)
        elif node.op in ("x", "p"):
            names = variables if node.op == "x" else params
            memo[index] = (names[int(node.numbers[0])], _ATOM)
        elif node.op == "add":
            memo[index] = (_sum(node.numbers, parts), _SUM)
        elif node.op == "mul":
            order = sorted(range(len(parts)), key=lambda k: graph.varies(node.args[k]))
            powers = [node.numbers[1 + k] for k in order]
            memo[index] = _product((node.numbers[0], *powers), [parts[k] for k in order])
        elif node.op == "pow":
            memo[index] = (f"{_wrap(parts[0], _ATOM)}**{_wrap(parts[1], _ATOM)}", _POWER)
        elif node.op in _SIGNS:
            memo[index] = (f"{parts[0][0]} {_SIGNS[node.op]} {parts[1][0]}", _SUM)
        else:
            memo[index] = (f"{node.op}({', '.join(text for text, _ in parts)})", _ATOM)
    return memo[root][0]


def count_operations(graph: Graph, roots: Sequence[int]) -> int:
    """Operations of the expressions written out in full, shared parts counted every time.

    Parameters
    ----------
    graph : Graph
        The graph.
    roots : sequence of int
        The expressions.

    Returns
    -------
    int
        The count.
    """
    size: list[int] = []
    for node in graph.nodes:
        own = 0
        if node.op == "mul":
            powers = sum(abs(int(k)) for k in node.numbers[1:])
            own = powers - 1 + (node.numbers[0] != 1.0)
        elif node.op == "add":
            own = len(node.args) - (node.numbers[0] == 0.0)
            own += sum(abs(c) != 1.0 for c in node.numbers[1:])
        elif node.args:
            own = 1
        size.append(own + sum(size[arg] for arg in node.args))
    return sum(size[root] for root in roots)


def _number(value: float) -> str:
    """All digits, but no point on whole numbers."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else repr(value)


def _wrap(part: tuple[str, int], level: int) -> str:
    return part[0] if part[1] >= level else f"({part[0]})"


def _sum(numbers: tuple[float, ...], parts: list[tuple[str, int]]) -> str:
    text = f"{_number(numbers[0])}" if numbers[0] != 0.0 else ""
    ordered = sorted(zip(numbers[1:], parts, strict=True), key=lambda pair: pair[0] < 0)
    for c, part in ordered:
        sign = "-" if c < 0 else "+"
        body = _wrap(part, _PRODUCT) if abs(c) == 1.0 else f"{_number(abs(c))}*{_wrap(part, _PRODUCT)}"
        text = f"{text} {sign} {body}" if text else (f"-{body}" if c < 0 else body)
    return text


def _product(numbers: tuple[float, ...], parts: list[tuple[str, int]]) -> tuple[str, int]:
    top: list[str] = []
    bottom: list[str] = []
    for k, part in zip(numbers[1:], parts, strict=True):
        power = int(abs(k))
        body = _wrap(part, _POWER) if power == 1 else f"{_wrap(part, _ATOM)}**{power}"
        (top if k > 0 else bottom).append(body)
    c = numbers[0]
    if abs(c) != 1.0 or not top:
        top.insert(0, f"{_number(abs(c))}")
    text = "*".join(top)
    if bottom:
        text += f"/{bottom[0]}" if len(bottom) == 1 else f"/({'*'.join(bottom)})"
    return (f"-{text}", _SUM) if c < 0 else (text, _PRODUCT)
