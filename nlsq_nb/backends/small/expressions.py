"""Expressions of the translated Python → LLVM; see `translate`."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir

__all__ = ["ARRAYS", "BOOL", "FLOAT", "INT", "TYPES", "VOID", "Expressions"]

INT, FLOAT, BOOL, VOID = ir.IntType(64), ir.DoubleType(), ir.IntType(1), ir.VoidType()
TYPES: dict[str, Any] = {
    "int": INT,
    "float": FLOAT,
    "bool": BOOL,
    "None": VOID,
    "Floats": FLOAT.as_pointer(),
    "Ints": INT.as_pointer(),
}
ARRAYS = (TYPES["Floats"], TYPES["Ints"])
_PLACE, _WORD = ir.IntType(8).as_pointer(), 8
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_OPERATIONS = {
    ast.Add: ("add", "fadd"),
    ast.Sub: ("sub", "fsub"),
    ast.Mult: ("mul", "fmul"),
    ast.Div: ("", "fdiv"),  # of integers, too, as numbers
}


_ON_MEMORY = {"call_at": 6, "call_plain": 1, "word": 1, "set_word": 2, "add_to_word": 2, "ints_at": 1, "floats_at": 1}
_PAUSES = {"x86_64": ("llvm.x86.sse2.pause", ()), "aarch64": ("llvm.aarch64.isb", (15,))}
_PAUSES["arm64"], _PAUSES["amd64"] = _PAUSES["aarch64"], _PAUSES["x86_64"]


class Expressions(ast.NodeVisitor):
    """The expressions of one function; the visit of one gives its value.

    Parameters
    ----------
    function : llvmlite.ir.Function
        Gets the blocks.
    node : ast.FunctionDef
        What is translated.
    known : dict
        Functions that may be called, by name.
    scope : mapping
        Names of the module, of which numbers are used.
    """

    def __init__(
        self, function: ir.Function, node: ast.FunctionDef, known: dict[str, ir.Function], scope: Mapping[str, Any]
    ) -> None:
        self._function, self._node, self._known, self._scope = function, node, known, scope
        self._entry = ir.IRBuilder(function.append_basic_block("entry"))
        self._b = ir.IRBuilder(function.append_basic_block("body"))
        self._places: dict[str, Any] = {}
        self._arrays: dict[str, Any] = {}

    def generic_visit(self, node: ast.AST) -> Any:
        """What is known has a method of its own."""
        raise self._fault(node)

    def _fault(self, node: ast.AST, why: str = "has no translation") -> TypeError:
        line, text = getattr(node, "lineno", self._node.lineno), ast.unparse(node).splitlines()[0]
        return TypeError(f"{self._node.name}, line {line} of its module: {text!r} {why}")

    # -- values ------------------------------------------------------------------------------
    def visit_Constant(self, node: ast.Constant) -> Any:
        """A number or a truth."""
        return self._constant(node, node.value)

    def visit_Name(self, node: ast.Name) -> Any:
        """A variable, an array, or a constant of the module."""
        if node.id in self._places:
            return self._b.load(self._places[node.id])
        if node.id in self._arrays:
            return self._arrays[node.id]
        return self._constant(node, self._scope.get(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        """A constant of `math`."""
        if ast.unparse(node.value) != "math":
            raise self._fault(node)
        return self._constant(node, getattr(math, node.attr, None))

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        """One number of an array."""
        return self._b.load(self._address(node))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        """− and not."""
        if isinstance(node.op, ast.Not):
            return self._b.not_(self._truth(node, self.visit(node.operand)))
        if not isinstance(node.op, ast.USub):
            raise self._fault(node)
        value = self.visit(node.operand)
        if value.type is FLOAT:
            return self._b.fneg(value)
        return self._b.neg(self._cast(node, value, INT))

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        """+ − * and /."""
        return self._operation(node, self.visit(node.left), self.visit(node.right))

    def visit_Compare(self, node: ast.Compare) -> Any:
        """A chain, all of whose terms are worked out: reading a number more changes nothing."""
        values = [self.visit(value) for value in (node.left, *node.comparators)]
        found = ir.Constant(BOOL, 1)
        for op, left, right in zip(node.ops, values[:-1], values[1:], strict=True):
            if type(op) not in _COMPARISONS:
                raise self._fault(node)
            found = self._b.and_(found, self._compared(node, _COMPARISONS[type(op)], left, right))
        return found

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        """And, or; of truths alone, since Python gives one of the operands."""
        place = self._entry.alloca(BOOL)
        end = self._function.append_basic_block()
        for part in node.values:
            truth = self.visit(part)
            if truth.type is not BOOL:
                raise self._fault(part, "is no truth value")
            self._b.store(truth, place)
            more = self._function.append_basic_block()
            self._b.cbranch(truth, *((more, end) if isinstance(node.op, ast.And) else (end, more)))
            self._b.position_at_end(more)
        self._b.branch(end)
        self._b.position_at_end(end)
        return self._b.load(place)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """One of two values; of two types, the wider one."""
        then, other, end = (self._function.append_basic_block() for _ in range(3))
        self._b.cbranch(self._truth(node, self.visit(node.test)), then, other)
        found = []
        for block, part in ((then, node.body), (other, node.orelse)):
            self._b.position_at_end(block)
            found.append((self.visit(part), self._b.block))
        kind = _wider(found[0][0].type, found[1][0].type)
        place = self._entry.alloca(kind)
        for value, block in found:
            self._b.position_at_end(block)
            self._b.store(self._cast(node, value, kind), place)
            self._b.branch(end)
        self._b.position_at_end(end)
        return self._b.load(place)

    def visit_Call(self, node: ast.Call) -> Any:
        """Of another function, of the kernel, a number of the data, or what hardware can do."""
        name, values = ast.unparse(node.func), [self.visit(argument) for argument in node.args]
        if name in self._known or name == "call_kernel":
            return self._call(node, name, values)
        if name == "column_value" and len(values) == 3:
            return self._column_value(node, *values)
        if name == "address_of" and len(values) == 1 and values[0].type in ARRAYS:
            return self._b.ptrtoint(values[0], INT)
        if name == "pause" and not values:
            return self._pause()
        if name in _ON_MEMORY:
            return self._on_memory(node, name, values)
        known: dict[str, Callable[..., Any]] = {
            "int": lambda x: self._b.fptosi(x, INT) if x.type is FLOAT else self._cast(node, x, INT),
            "bool": lambda x: self._truth(node, x),
            "float": lambda x: self._cast(node, x, FLOAT),
            "abs": lambda x: self._on_float(node, "fabs", x) if x.type is FLOAT else None,
            "math.sqrt": lambda x: self._on_float(node, "sqrt", x),
            "math.isfinite": lambda x: self._b.fcmp_ordered("<", self._on_float(node, "fabs", x), _INF),
            "math.isinf": lambda x: self._b.fcmp_ordered("==", self._on_float(node, "fabs", x), _INF),
        }
        if name in ("min", "max") and len(values) > 1 and not node.keywords:
            return self._extreme(node, "<" if name == "min" else ">", values)
        found = known[name](values[0]) if name in known and len(values) == 1 and not node.keywords else None
        if found is None:
            raise self._fault(node)
        return found

    # -- pieces ------------------------------------------------------------------------------
    def _call(self, node: ast.Call, name: str, values: list[Any]) -> Any:
        function = self._known.get(name)
        kinds = (INT, INT, INT, ARRAYS[1], INT, ARRAYS[0], INT, INT)
        if function is not None:
            kinds = function.function_type.args
        values = self._given(node, values, kinds)
        if function is not None:
            return self._b.call(function, values)
        kernel, lo, hi, task, table, w, theta, state = values
        spots = (self._b.gep(task, [table]), self._b.gep(w, [theta]), self._b.gep(w, [state]))
        return self._of_kernel(kernel, lo, hi, [self._b.bitcast(spot, _PLACE) for spot in spots])

    def _of_kernel(self, kernel: Any, lo: Any, hi: Any, spots: list[Any]) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [INT, INT, *[_PLACE] * 3])
        return self._b.sext(self._b.call(self._b.inttoptr(kernel, kind.as_pointer()), [lo, hi, *spots]), INT)

    def _on_memory(self, node: ast.Call, name: str, values: list[Any]) -> Any:
        first, *more = self._given(node, values, (INT,) * _ON_MEMORY[name])
        if name == "call_at":
            lo, hi, *spots = more
            return self._of_kernel(first, lo, hi, [self._b.inttoptr(spot, _PLACE) for spot in spots])
        if name == "call_plain":
            function = ir.FunctionType(ir.IntType(32), [])
            return self._b.call(self._b.inttoptr(first, function.as_pointer()), [])
        if name == "floats_at":
            return self._b.inttoptr(first, ARRAYS[0])
        spot = self._b.inttoptr(first, ARRAYS[1])
        if name == "word":
            return self._b.load_atomic(spot, "acquire", _WORD)
        if name == "set_word":
            return self._b.store_atomic(more[0], spot, "release", _WORD)
        return spot if name == "ints_at" else self._b.atomic_rmw("add", spot, more[0], "acq_rel")

    def _pause(self) -> Any:
        name, numbers = _PAUSES.get(llvm.get_process_triple().split("-")[0].lower(), ("llvm.donothing", ()))
        kind = ir.IntType(32)
        function = self._b.module.declare_intrinsic(name, fnty=ir.FunctionType(VOID, [kind] * len(numbers)))
        return self._b.call(function, [ir.Constant(kind, number) for number in numbers])

    def _given(self, node: ast.Call, values: list[Any], kinds: Sequence[Any]) -> list[Any]:
        if len(values) != len(kinds) or node.keywords:
            raise self._fault(node, f"needs {len(kinds)} arguments")
        return [self._cast(node, value, kind) for value, kind in zip(values, kinds, strict=True)]

    def _column_value(self, node: ast.Call, task: Any, place: Any, row: Any) -> Any:
        if (task.type, place.type, row.type) != (ARRAYS[1], INT, INT):
            raise self._fault(node)
        column = self._b.inttoptr(self._b.load(self._b.gep(task, [place])), ARRAYS[0])
        return self._b.load(self._b.gep(column, [row]))

    def _extreme(self, node: ast.Call, sign: str, values: list[Any]) -> Any:
        best = values[0]
        for value in values[1:]:  # as Python: the first of those that compare equal, or not at all
            takes = self._compared(node, sign, value, best)
            kind = _wider(value.type, best.type)
            best = self._b.select(takes, self._cast(node, value, kind), self._cast(node, best, kind))
        return best

    def _on_float(self, node: ast.AST, name: str, value: Any) -> Any:
        function = self._b.module.declare_intrinsic(f"llvm.{name}", [FLOAT])
        return self._b.call(function, [self._cast(node, value, FLOAT)])

    def _address(self, node: ast.Subscript) -> Any:
        array, index = self.visit(node.value), self.visit(node.slice)
        if array.type not in ARRAYS or index.type is not INT:
            raise self._fault(node)
        return self._b.gep(array, [index])

    def _operation(self, node: ast.BinOp | ast.AugAssign, left: Any, right: Any) -> Any:
        if type(node.op) not in _OPERATIONS:
            raise self._fault(node)
        whole, real = _OPERATIONS[type(node.op)]
        kind = _wider(left.type, right.type, INT if whole else FLOAT)
        values = (self._cast(node, value, kind) for value in (left, right))
        return getattr(self._b, whole if kind is INT else real)(*values)

    def _compared(self, node: ast.AST, sign: str, left: Any, right: Any) -> Any:
        kind = _wider(left.type, right.type, INT)
        left, right = (self._cast(node, value, kind) for value in (left, right))
        if kind is INT:
            return self._b.icmp_signed(sign, left, right)
        return (self._b.fcmp_unordered if sign == "!=" else self._b.fcmp_ordered)(sign, left, right)

    def _truth(self, node: ast.AST, value: Any) -> Any:
        return value if value.type is BOOL else self._compared(node, "!=", value, ir.Constant(INT, 0))

    def _cast(self, node: ast.AST, value: Any, kind: Any) -> Any:
        """The value as one of another type; from a number to an integer takes `int`."""
        if value.type == kind:
            return value
        if kind is INT and value.type is BOOL:
            return self._b.zext(value, INT)
        if kind is FLOAT and value.type in (INT, BOOL):
            return (self._b.uitofp if value.type is BOOL else self._b.sitofp)(value, FLOAT)
        raise self._fault(node, f"gives {value.type} where {kind} is needed")

    def _constant(self, node: ast.AST, value: Any) -> Any:
        if not isinstance(value, bool | int | float):
            raise self._fault(node)
        return ir.Constant(BOOL if isinstance(value, bool) else INT if isinstance(value, int) else FLOAT, value)


_INF = ir.Constant(FLOAT, math.inf)


def _wider(*kinds: Any) -> Any:
    """The type that holds all of some types."""
    return next((kind for kind in (FLOAT, INT) if kind in kinds), kinds[0])
