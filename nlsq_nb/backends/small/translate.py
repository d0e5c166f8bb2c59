"""Plain numerical Python → LLVM: the few constructs that the compiled small fit is written in.

Numba's front end takes 25 s of CPU for these four modules, on every machine anew; they need a tenth of what it
knows. Functions have annotated arguments and results (int, float, bool, None, and flat arrays of
float64 or int64); a local variable has the type of its first value. There are no allocations, no
exceptions and no calls but of each other, of `math` and of the kernel. Division by zero gives inf or
nan as in hardware, all else the bits that Python gives.
"""

from __future__ import annotations

import ast
import inspect
import math
import types
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

__all__ = ["translate"]

_INT, _FLOAT, _BOOL, _VOID = ir.IntType(64), ir.DoubleType(), ir.IntType(1), ir.VoidType()
_TYPES: dict[str, Any] = {
    "int": _INT,
    "float": _FLOAT,
    "bool": _BOOL,
    "None": _VOID,
    "Floats": _FLOAT.as_pointer(),
    "Ints": _INT.as_pointer(),
}
_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_BINARY = {
    ast.Add: ("add", "fadd"),
    ast.Sub: ("sub", "fsub"),
    ast.Mult: ("mul", "fmul"),
    ast.FloorDiv: ("sdiv", ""),  # of non-negative integers
    ast.Div: ("", "fdiv"),
}


def translate(modules: Sequence[types.ModuleType]) -> ir.Module:
    """LLVM for all functions marked `native` in some modules.

    Parameters
    ----------
    modules : sequence of module
        Callees before callers.

    Returns
    -------
    llvmlite.ir.Module
        Every function under its own name; internal but for those of the last module.
    """
    target = ir.Module(name="nlsq_nb_small")
    known: dict[str, ir.Function] = {}
    for module in modules:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                arguments = [_TYPES[ast.unparse(a.annotation or a)] for a in node.args.args]
                result = _TYPES[ast.unparse(node.returns or node)]
                function = ir.Function(target, ir.FunctionType(result, arguments), node.name)
                function.linkage = "external" if module is modules[-1] else "internal"
                known[node.name] = function
                _Function(function, node, known, vars(module)).build()
    return target


class _Function:
    """One function being translated."""

    def __init__(
        self, function: ir.Function, node: ast.FunctionDef, known: dict[str, ir.Function], scope: dict[str, Any]
    ) -> None:
        self._function, self._node, self._known, self._scope = function, node, known, scope
        self._entry = ir.IRBuilder(function.append_basic_block("entry"))
        self._b = ir.IRBuilder(function.append_basic_block("body"))
        self._body = self._b.block
        self._places: dict[str, Any] = {}
        self._arrays: dict[str, Any] = {}
        self._loops: list[tuple[Any, Any]] = []

    def build(self) -> None:
        """Fill the function's blocks."""
        for argument, value in zip(self._node.args.args, self._function.args, strict=True):
            if isinstance(value.type, ir.PointerType):
                self._arrays[argument.arg] = value
            else:
                self._put(argument.arg, value)
        self._run(self._node.body)
        if not self._b.block.is_terminated:
            if self._function.function_type.return_type is _VOID:
                self._b.ret_void()
            else:
                self._b.unreachable()
        self._entry.branch(self._body)

    # -- statements --------------------------------------------------------------------------
    def _run(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if not self._b.block.is_terminated:  # nothing after a return
                getattr(self, f"_do_{type(statement).__name__}")(statement)

    def _do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self._value(node.value)

    def _do_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Tuple):
            assert isinstance(node.value, ast.Tuple)
            values = [self._value(element) for element in node.value.elts]
            for place, value in zip(target.elts, values, strict=True):
                self._store(place, value)
            return
        value = self._value(node.value)
        for place in node.targets:
            self._store(place, value)

    def _do_AugAssign(self, node: ast.AugAssign) -> None:
        left = self._value(_as_load(node.target))
        self._store(node.target, self._binary(type(node.op), left, self._value(node.value)))

    def _do_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._b.ret_void()
        else:
            self._b.ret(self._cast(self._value(node.value), self._function.function_type.return_type))

    def _do_If(self, node: ast.If) -> None:
        then, other, end = (self._function.append_basic_block() for _ in range(3))
        self._b.cbranch(self._truth(self._value(node.test)), then, other)
        for block, statements in ((then, node.body), (other, node.orelse)):
            self._b.position_at_end(block)
            self._run(statements)
            if not self._b.block.is_terminated:
                self._b.branch(end)
        self._b.position_at_end(end)

    def _do_While(self, node: ast.While) -> None:
        head, body, end = (self._function.append_basic_block() for _ in range(3))
        self._b.branch(head)
        self._b.position_at_end(head)
        self._b.cbranch(self._truth(self._value(node.test)), body, end)
        self._loop(body, head, end, node.body)

    def _do_For(self, node: ast.For) -> None:
        assert isinstance(node.target, ast.Name)
        assert isinstance(node.iter, ast.Call)
        bounds = [self._value(a) for a in node.iter.args]
        first, last = (ir.Constant(_INT, 0), bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = bounds[2] if len(bounds) == 3 else ir.Constant(_INT, 1)
        head, body, tail, end = (self._function.append_basic_block() for _ in range(4))
        counter = self._entry.alloca(_INT)
        self._b.store(first, counter)
        self._b.branch(head)
        self._b.position_at_end(head)
        value = self._b.load(counter)
        falls = isinstance(node.iter.args[-1], ast.UnaryOp)  # a negative step
        self._b.cbranch(self._b.icmp_signed(">" if falls else "<", value, last), body, end)
        self._b.position_at_end(body)
        self._put(node.target.id, value)
        self._loop(body, tail, end, node.body)
        self._b.position_at_end(tail)
        self._b.store(self._b.add(self._b.load(counter), step), counter)
        self._b.branch(head)
        self._b.position_at_end(end)

    def _loop(self, body: Any, again: Any, end: Any, statements: Sequence[ast.stmt]) -> None:
        self._b.position_at_end(body)
        self._loops.append((again, end))
        self._run(statements)
        self._loops.pop()
        if not self._b.block.is_terminated:
            self._b.branch(again)
        self._b.position_at_end(end)

    def _do_Continue(self, node: ast.Continue) -> None:
        self._b.branch(self._loops[-1][0])

    def _do_Break(self, node: ast.Break) -> None:
        self._b.branch(self._loops[-1][1])

    # -- values ------------------------------------------------------------------------------
    def _value(self, node: ast.expr) -> Any:
        return getattr(self, f"_of_{type(node).__name__}")(node)

    def _of_Constant(self, node: ast.Constant) -> Any:
        return _constant(node.value)

    def _of_Name(self, node: ast.Name) -> Any:
        if node.id in self._places:
            return self._b.load(self._places[node.id])
        return self._arrays.get(node.id) or _constant(self._scope[node.id])

    def _of_Attribute(self, node: ast.Attribute) -> Any:
        return _constant(getattr(math, node.attr))

    def _of_Subscript(self, node: ast.Subscript) -> Any:
        return self._b.load(self._address(node))

    def _of_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self._value(node.operand)
        if isinstance(node.op, ast.Not):
            return self._b.not_(self._truth(value))
        return self._b.neg(value) if value.type is _INT else self._b.fneg(value)

    def _of_BinOp(self, node: ast.BinOp) -> Any:
        left = self._value(node.left)
        if isinstance(node.op, ast.Pow):  # squares only
            return self._binary(ast.Mult, left, left)
        return self._binary(type(node.op), left, self._value(node.right))

    def _of_Compare(self, node: ast.Compare) -> Any:
        values = [self._value(v) for v in (node.left, *node.comparators)]
        found = ir.Constant(_BOOL, 1)
        for op, left, right in zip(node.ops, values, values[1:], strict=False):
            found = self._b.and_(found, self._compared(_COMPARE[type(op)], left, right))
        return found

    def _of_BoolOp(self, node: ast.BoolOp) -> Any:
        place = self._entry.alloca(_BOOL)
        end = self._function.append_basic_block()
        for part in node.values:
            truth = self._truth(self._value(part))
            self._b.store(truth, place)
            more = self._function.append_basic_block()
            go_on = isinstance(node.op, ast.And)
            self._b.cbranch(truth, *((more, end) if go_on else (end, more)))
            self._b.position_at_end(more)
        self._b.branch(end)
        self._b.position_at_end(end)
        return self._b.load(place)

    def _of_IfExp(self, node: ast.IfExp) -> Any:
        then, other, end = (self._function.append_basic_block() for _ in range(3))
        self._b.cbranch(self._truth(self._value(node.test)), then, other)
        found = []
        for block, part in ((then, node.body), (other, node.orelse)):
            self._b.position_at_end(block)
            found.append((self._value(part), self._b.block))
        kind = found[0][0].type if found[0][0].type is found[1][0].type else _FLOAT
        place = self._entry.alloca(kind)
        for value, block in found:
            self._b.position_at_end(block)
            self._b.store(self._cast(value, kind), place)
            self._b.branch(end)
        self._b.position_at_end(end)
        return self._b.load(place)

    def _of_Call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        values = [self._value(a) for a in node.args]
        if name == "call_kernel":
            return self._kernel(*values)
        if name in self._known:
            function = self._known[name]
            kinds = function.function_type.args
            return self._b.call(function, [self._cast(v, k) for v, k in zip(values, kinds, strict=True)])
        if name == "int":
            return self._cast_to_int(values[0])
        if name in ("min", "max"):
            best = values[0]
            for value in values[1:]:  # as Python: the first of two that compare equal, or not at all
                best, value = self._alike(best, value)
                takes = self._compared("<" if name == "min" else ">", value, best)
                best = self._b.select(takes, value, best)
            return best
        value = self._cast(values[0], _FLOAT)
        size = self._b.call(self._intrinsic("fabs"), [value])
        if name == "math.isfinite":
            return self._b.fcmp_ordered("<", size, _constant(math.inf))
        if name == "math.isinf":
            return self._b.fcmp_ordered("==", size, _constant(math.inf))
        return {"abs": lambda: size, "math.sqrt": lambda: self._b.call(self._intrinsic("sqrt"), [value])}[name]()

    # -- pieces ------------------------------------------------------------------------------
    def _kernel(self, kernel: Any, lo: Any, hi: Any, columns: Any, w: Any, theta: Any, state: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(_VOID, [_INT, _INT, pointer, pointer, pointer])
        spots = (columns, self._b.gep(w, [theta]), self._b.gep(w, [state]))
        arguments = [lo, hi, *(self._b.bitcast(s, pointer) for s in spots)]
        return self._b.call(self._b.inttoptr(kernel, kind.as_pointer()), arguments)

    def _intrinsic(self, name: str) -> Any:
        return self._b.module.declare_intrinsic(f"llvm.{name}", [_FLOAT])

    def _address(self, node: ast.Subscript) -> Any:
        return self._b.gep(self._value(node.value), [self._value(node.slice)])

    def _store(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._put(target.id, value)
        else:
            assert isinstance(target, ast.Subscript)
            place = self._address(target)
            self._b.store(self._cast(value, place.type.pointee), place)

    def _put(self, name: str, value: Any) -> None:
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = self._entry.alloca(value.type)
        self._b.store(self._cast(value, place.type.pointee), place)

    def _binary(self, kind: type[ast.operator], left: Any, right: Any) -> Any:
        whole, real = _BINARY[kind]
        left, right = self._alike(left, right)
        if left.type is _BOOL or (left.type is _INT and not whole):
            wanted = _INT if whole else _FLOAT
            left, right = self._cast(left, wanted), self._cast(right, wanted)
        return getattr(self._b, whole if left.type is _INT else real)(left, right)

    def _compared(self, sign: str, left: Any, right: Any) -> Any:
        left, right = self._alike(left, right)
        if left.type is not _FLOAT:
            return self._b.icmp_signed(sign, left, right)
        if sign == "!=":
            return self._b.fcmp_unordered(sign, left, right)
        return self._b.fcmp_ordered(sign, left, right)

    def _alike(self, left: Any, right: Any) -> tuple[Any, Any]:
        if left.type is right.type:
            return left, right
        kind = _FLOAT if _FLOAT in (left.type, right.type) else _INT
        return self._cast(left, kind), self._cast(right, kind)

    def _truth(self, value: Any) -> Any:
        return value if value.type is _BOOL else self._compared("!=", value, _constant(0))

    def _cast_to_int(self, value: Any) -> Any:
        return self._b.fptosi(value, _INT) if value.type is _FLOAT else self._cast(value, _INT)

    def _cast(self, value: Any, kind: Any) -> Any:
        if value.type == kind:
            return value
        if kind is _INT and value.type is _BOOL:
            return self._b.zext(value, _INT)
        if kind is _FLOAT:
            return (self._b.uitofp if value.type is _BOOL else self._b.sitofp)(value, _FLOAT)
        raise TypeError(f"{self._node.name}: a {value.type} where a {kind} is needed")


def _constant(value: Any) -> Any:
    kind = _BOOL if isinstance(value, bool) else _INT if isinstance(value, int) else _FLOAT
    return ir.Constant(kind, value)


def _as_load(target: ast.expr) -> ast.expr:
    """The expression that reads what an assignment writes; the translation does not ask for contexts."""
    return target
