"""A model's text → expression graph, through an AST whitelist; nothing is ever evaluated.

`ast.parse` only reads the text; every node that is not listed here is refused with its column.
Constants are folded in float64. What SymPy's `str()` prints for a supported expression is accepted
too: Abs, Piecewise, Min, Max, Heaviside, loggamma, tuples of (value, condition).
"""

from __future__ import annotations

import ast
import keyword
import math
import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field

from nlsq_nb.codegen.functions import ARITY, NUMPY_NAMES
from nlsq_nb.codegen.graph import Graph
from nlsq_nb.errors import ModelError

__all__ = ["MAX_LENGTH", "Parsed", "parse"]

MAX_LENGTH = 20_000
"""Longest accepted text of one expression, in characters."""

_MAX_DEPTH = 100  # nested operations; a chain a + b + c + … does not count as nesting
_WARNS = re.compile(r"['\"\\]|\d(?:and|else|for|if|in|is|not|or)")  # texts at which Python may shake its head
_CONSTANTS = {"pi": math.pi, "e": math.e}
_EULER = "e in the model is the constant 2.71828…; name it in params= to fit it"
_ALIASES = {
    **NUMPY_NAMES,
    "Abs": "abs",
    "ceiling": "ceil",
    "ln": "log",
    "loggamma": "lgamma",
    "power": "pow",
}
# heaviside has its own rule, as the value at 0 may be left out; the others only occur in derivatives
_INTERNAL = {"dsinc", "heaviside", "trigamma"}
_COMPARE = {
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """The outcome of reading one or several texts.

    Attributes
    ----------
    graph : Graph
        Holds all outputs.
    roots : tuple of int, length m
        Output nodes.
    params : tuple of str
        Parameter names, in order of first appearance unless they were given.
    notes : tuple of str
        Readings that the user may not have meant.
    """

    graph: Graph
    roots: tuple[int, ...]
    params: tuple[str, ...]
    notes: tuple[str, ...] = ()


def parse(
    texts: tuple[str, ...], variables: tuple[str, ...], params: tuple[str, ...] | None
) -> Parsed:
    """Read the texts of a model's outputs.

    Parameters
    ----------
    texts : tuple of str
        One expression per output.
    variables : tuple of str
        Names of the independent variables.
    params : tuple of str or None
        Names of the parameters in order, or None for every other name in order of appearance.

    Returns
    -------
    Parsed
        Graph, output nodes and parameter names.

    Raises
    ------
    ModelError
        With the column of the fault.
    """
    graph = Graph()
    names = _Names(graph, variables, params)
    roots = []
    for text in texts:
        root = _Builder(graph, names).number(_tree(text), 0)
        roots.append(root)
    notes = (_EULER,) if names.euler else ()
    return Parsed(graph, tuple(roots), names.params, notes)


def _tree(text: str) -> ast.expr:
    """The syntax tree of a text that is short and shallow enough to be handled safely."""
    if len(text) > MAX_LENGTH:
        raise ModelError(
            f"the model text has {len(text)} characters; at most {MAX_LENGTH} are read"
        )
    if not text.strip():
        raise ModelError("column 1: the model text is empty")
    depth = 0
    for column, character in enumerate(text, 1):
        depth += (character in "([{") - (character in ")]}")
        if depth > _MAX_DEPTH:
            raise ModelError(f"column {column}: brackets are nested deeper than {_MAX_DEPTH}")
        if depth < 0:
            raise ModelError(f"column {column}: a closing bracket without an opening one")
    if "^" in text:
        raise ModelError(f"column {text.index('^') + 1}: write powers as ** instead of ^")
    flat = re.sub(r"[\r\n\t]", " ", text)  # a model may be laid out over several lines
    # filters of warnings belong to all threads: they are touched for few texts only
    quiet = warnings.catch_warnings(action="ignore") if _WARNS.search(flat) else nullcontext()
    try:
        with quiet:
            # in brackets leading blanks are harmless; they shift every column by one
            return ast.parse(f"({flat})", mode="eval").body
    except SyntaxError as error:
        column = max((error.offset or 2) - 1, 1)
        word = re.search(rf"\b({'|'.join(keyword.kwlist)})\b", flat)
        hint = f" ({word[0]!r} is a Python keyword; rename it)" if word else _advice(flat)
        raise ModelError(f"column {column}: the model text cannot be read{hint}") from None
    except (RecursionError, MemoryError, ValueError, OverflowError):
        raise ModelError("column 1: the model text is too deeply nested to be read") from None


def _advice(text: str) -> str:
    """What is probably wrong with a text that is no expression."""
    if re.match(r"[\w\s]*=[^=]", text):
        return ": give the right-hand side alone, without 'y ='"
    product = re.search(r"(?<![\w.])[\d.]+[^\W\d_]|\w\s+\w|\)\s*\w", text)
    return f": is a * missing in {product[0]!r}?" if product else ""


@dataclass(slots=True)
class _Names:
    graph: Graph
    variables: tuple[str, ...]
    given: tuple[str, ...] | None
    found: dict[str, int] = field(default_factory=dict)
    euler: bool = False

    @property
    def params(self) -> tuple[str, ...]:
        return self.given if self.given is not None else tuple(self.found)

    def lookup(self, name: str) -> int | None:
        """The node of a name; None when it is not a variable, parameter or constant."""
        if name in self.variables:
            return self.graph.variable(self.variables.index(name))
        if self.given is not None:
            if name in self.given:
                return self.graph.param(self.given.index(name))
            return self.graph.const(_CONSTANTS[name]) if name in _CONSTANTS else None
        if name in _CONSTANTS:
            self.euler |= name == "e"
            return self.graph.const(_CONSTANTS[name])
        return self.graph.param(self.found.setdefault(name, len(self.found)))


class _Builder:
    """Turns syntax nodes into graph nodes; refuses everything it does not know."""

    def __init__(self, graph: Graph, names: _Names) -> None:
        self.graph = graph
        self.names = names

    def number(self, node: ast.expr, depth: int) -> int:
        """The graph node of an expression whose value is a number."""
        if depth > _MAX_DEPTH:
            raise _fault(node, f"operations are nested deeper than {_MAX_DEPTH}")
        try:
            return self._number(node, depth + 1)
        except ModelError as error:
            if str(error).startswith("column"):
                raise
            raise _fault(node, str(error)) from None

    def _number(self, node: ast.expr, depth: int) -> int:
        g = self.graph
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            inner = self.number(node.operand, depth)
            return g.neg(inner) if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.BinOp):
            return self._binary(node, depth)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        if isinstance(node, ast.Compare | ast.BoolOp):
            raise _fault(node, "a comparison is allowed only as the condition of where(…)")
        raise _fault(node, f"{type(node).__name__} is not allowed in a model")

    def _constant(self, node: ast.Constant) -> int:
        if type(node.value) not in (int, float):
            raise _fault(node, f"{type(node.value).__name__} constants are not allowed")
        try:
            return self.graph.const(float(node.value))  # type: ignore[arg-type]
        except OverflowError:
            raise _fault(node, "the number is too large for float64") from None

    def _name(self, node: ast.Name) -> int:
        found = self.names.lookup(node.id)
        if found is None:
            known = ", ".join((*self.names.variables, *self.names.params))
            raise _fault(node, f"the name {node.id!r} is not one of {known}")
        if node.id in ARITY and self.names.given is None and node.id not in self.names.variables:
            raise _fault(node, f"{node.id} is a function; call it, or name the parameter otherwise")
        if node.id.startswith("__"):
            raise _fault(node, f"the name {node.id!r} is reserved")
        return found

    def _binary(self, node: ast.BinOp, depth: int) -> int:
        """A chain of operators is unrolled from its left end, so long sums are not deep."""
        chain: list[ast.BinOp] = []
        left: ast.expr = node
        while isinstance(left, ast.BinOp) and not isinstance(left.op, ast.Pow):
            chain.append(left)
            left = left.left
        if not chain:  # a power
            assert isinstance(left, ast.BinOp)
            base, exponent = self.number(left.left, depth), self.number(left.right, depth)
            return self.graph.power(base, exponent)
        value = self.number(left, depth)
        terms = [(1.0, value)]  # a run of + and − is collected at once: linear, not quadratic
        for link in reversed(chain):
            right = self.number(link.right, depth)
            if isinstance(link.op, ast.Add | ast.Sub):
                terms.append((1.0 if isinstance(link.op, ast.Add) else -1.0, right))
            elif isinstance(link.op, ast.Mult | ast.Div):
                exponent = 1 if isinstance(link.op, ast.Mult) else -1
                whole = self.graph.combine(0.0, terms)
                terms = [(1.0, self.graph.product(1.0, [(whole, 1), (right, exponent)]))]
            else:
                raise _fault(link, f"the operator {type(link.op).__name__} is not allowed")
        return self.graph.combine(0.0, terms)

    def _call(self, node: ast.Call, depth: int) -> int:
        if not isinstance(node.func, ast.Name):
            raise _fault(node, "only the listed functions can be called, by their plain name")
        name = _ALIASES.get(node.func.id, node.func.id)
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise _fault(node, f"{name} takes plain arguments only")
        if name == "where":
            return self._where(node, depth)
        if name == "Piecewise":
            return self._piecewise(node, depth)
        if (name not in ARITY and name not in _VARIADIC) or name in _INTERNAL:
            raise _fault(node, f"unknown function {name!r}; known: {_KNOWN}")
        args = [self.number(arg, depth) for arg in node.args]
        return self._apply(node, name, args)

    def _apply(self, node: ast.Call, name: str, args: list[int]) -> int:
        g = self.graph
        if name in ("Min", "minimum", "Max", "maximum") and len(args) >= 2:
            function = "minimum" if name in ("Min", "minimum") else "maximum"
            value = args[0]
            for arg in args[1:]:
                value = g.call(function, value, arg)
            return value
        if name == "Heaviside" and len(args) in (1, 2):
            return g.call("heaviside", args[0], args[1] if len(args) == 2 else g.const(0.5))
        if name == "log" and len(args) == 2:
            return g.div(g.call("log", args[0]), g.call("log", args[1]))
        if name == "polygamma" and len(args) == 2:  # how SymPy prints digamma and trigamma
            if g.value(args[0]) not in (0.0, 1.0):
                raise _fault(node, "polygamma is supported for orders 0 and 1 only")
            return g.call("digamma" if g.value(args[0]) == 0.0 else "trigamma", args[1])
        if name not in ARITY or len(args) != ARITY[name]:
            raise _fault(node, f"{name} does not take {len(args)} argument(s)")
        return g.call(name, *args)

    def _where(self, node: ast.Call, depth: int) -> int:
        if len(node.args) != 3:
            raise _fault(node, "where takes a condition and two values")
        condition = self.condition(node.args[0], depth)
        yes, no = (self.number(arg, depth) for arg in node.args[1:])
        return self.graph.where(condition, yes, no)

    def _piecewise(self, node: ast.Call, depth: int) -> int:
        pairs = [arg.elts if isinstance(arg, ast.Tuple) else [] for arg in node.args]
        last = pairs[-1][1] if pairs and len(pairs[-1]) == 2 else None
        if any(len(pair) != 2 for pair in pairs) or not (
            isinstance(last, ast.Constant) and last.value is True
        ):
            raise _fault(node, "Piecewise takes (value, condition) pairs, the last condition True")
        cases = [(self.number(v, depth), self.condition(c, depth)) for v, c in pairs[:-1]]
        value = self.number(pairs[-1][0], depth)
        for yes, test in reversed(cases):
            value = self.graph.where(test, yes, value)
        return value

    def condition(self, node: ast.expr, depth: int) -> int:
        """The graph node of an expression that is true or false."""
        g = self.graph
        if depth > _MAX_DEPTH:
            raise _fault(node, f"operations are nested deeper than {_MAX_DEPTH}")
        if isinstance(node, ast.Compare):
            values = [self.number(v, depth + 1) for v in (node.left, *node.comparators)]
            tests = []
            for op, left, right in zip(node.ops, values[:-1], values[1:], strict=True):
                if type(op) not in _COMPARE:
                    raise _fault(node, f"the comparison {type(op).__name__} is not allowed")
                tests.append(g.compare(_COMPARE[type(op)], left, right))
            return self._join("and", tests)
        if isinstance(node, ast.BoolOp):
            tests = [self.condition(value, depth + 1) for value in node.values]
            return self._join("and" if isinstance(node.op, ast.And) else "or", tests)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            tests = [self.condition(v, depth + 1) for v in (node.left, node.right)]
            return self._join("and" if isinstance(node.op, ast.BitAnd) else "or", tests)
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if name in ("Eq", "Ne") and isinstance(node, ast.Call) and len(node.args) == 2:
            left, right = (self.number(v, depth + 1) for v in node.args)  # SymPy's == and !=
            return g.compare(name.lower(), left, right)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            return g.logic("not", self.condition(node.operand, depth + 1))
        raise _fault(node, "a condition such as x < 3 is needed here")

    def _join(self, op: str, tests: list[int]) -> int:
        value = tests[0]
        for test in tests[1:]:
            value = self.graph.logic(op, value, test)
        return value


_VARIADIC = {"Min", "Max", "Heaviside", "polygamma"}
_KNOWN = ", ".join(sorted((ARITY.keys() | _VARIADIC | {"where", "Piecewise"}) - _INTERNAL))


def _fault(node: ast.expr, text: str) -> ModelError:
    return ModelError(f"column {max(node.col_offset, 1)}: {text}")
