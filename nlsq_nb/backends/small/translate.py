"""Plain numerical Python → LLVM: the few constructs that the compiled small fit is written in.

Numba's front end takes 25 s of CPU for these modules, on every machine anew; they need a tenth of what
it knows. Functions have annotated arguments and results (int, float, bool, None, and flat arrays of
float64 or int64, no two of which overlap); a local variable has the type of its first value. There
are no allocations, no exceptions and no calls but of each other, of `math` and of the kernel. All
results have the bits that Python gives, but where Python raises: there division by zero gives inf or
nan, as in hardware, integers wrap around, and a variable that was never set is anything.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from nlsq_nb.backends.small.expressions import ARRAYS, BOOL, FLOAT, INT, TYPES, VOID, Expressions

__all__ = ["translate"]


def translate(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> ir.Module:
    """LLVM for all functions marked `native` in some modules.

    Parameters
    ----------
    parts : sequence of (str, mapping)
        Text of each module, and its names, of which numbers are used.

    Returns
    -------
    llvmlite.ir.Module
        Every function under its own name; internal but for those of the last module.

    Raises
    ------
    TypeError
        For what has no translation, naming function, line and text.
    """
    target = ir.Module(name="nlsq_nb_small")
    known: dict[str, ir.Function] = {}
    bodies = []
    for text, scope in parts:
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and [ast.unparse(d) for d in node.decorator_list] == ["native"]:
                function = ir.Function(target, _signature(node), node.name)
                function.linkage = "external" if text is parts[-1][0] else "internal"
                known[node.name] = function
                bodies.append((function, node, known, scope))
    for body in bodies:
        _Body(*body).build()
    return target


def _signature(node: ast.FunctionDef) -> ir.FunctionType:
    a = node.args
    if a.vararg or a.kwarg or a.kwonlyargs or a.defaults:
        raise TypeError(f"{node.name}, line {node.lineno}: arguments are positional and have no defaults")
    notes = [*(argument.annotation for argument in a.args), node.returns]
    names = ["" if note is None else ast.unparse(note) for note in notes]
    for name in names:
        if name not in TYPES:
            raise TypeError(
                f"{node.name}, line {node.lineno}: {name or 'no annotation'} is not one of {', '.join(TYPES)}"
            )
    *arguments, result = (TYPES[name] for name in names)
    return ir.FunctionType(result, arguments)


class _Body(Expressions):
    """One function being translated."""

    _loops: list[tuple[Any, Any]]

    def build(self) -> None:
        """Fill the function's blocks."""
        self._loops = []
        body = self._b.block
        for argument, value in zip(self._node.args.args, self._function.args, strict=True):
            if value.type in ARRAYS:
                value.add_attribute("noalias")
                self._arrays[argument.arg] = value
            else:
                self._put(argument.arg, value)
        self._run(self._node.body)
        if not self._b.block.is_terminated:
            if self._result is not VOID:
                raise self._fault(self._node.body[-1], "may end without a value")
            self._b.ret_void()
        self._entry.branch(body)

    @property
    def _result(self) -> Any:
        return self._function.function_type.return_type

    # -- statements --------------------------------------------------------------------------
    def _run(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if not self._b.block.is_terminated:  # nothing after a return
                self.visit(statement)

    def visit_Expr(self, node: ast.Expr) -> None:
        """A docstring, or a call for what it does."""
        if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        """One value to some places, or as many values as places."""
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple):
            if not isinstance(value, ast.Tuple) or len(value.elts) != len(target.elts) or len(node.targets) > 1:
                raise self._fault(node)
            values = [self.visit(element) for element in value.elts]
            for place, one in zip(target.elts, values, strict=True):
                self._store(place, one)
            return
        found = self.visit(value)
        for place in node.targets:
            self._store(place, found)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """The place is worked out twice, which changes nothing."""
        left = self.visit(node.target)
        self._store(node.target, self._operation(node, left, self.visit(node.value)))

    def visit_Return(self, node: ast.Return) -> None:
        """With a value of the type that is announced."""
        if node.value is None:
            if self._result is not VOID:
                raise self._fault(node, "gives no value")
            self._b.ret_void()
        else:
            self._b.ret(self._cast(node, self.visit(node.value), self._result))

    def visit_If(self, node: ast.If) -> None:
        """Both branches, of which the second may be empty."""
        then, other, end = (self._function.append_basic_block() for _ in range(3))
        self._b.cbranch(self._truth(node, self.visit(node.test)), then, other)
        goes_on = False
        for block, statements in ((then, node.body), (other, node.orelse)):
            self._b.position_at_end(block)
            self._run(statements)
            if not self._b.block.is_terminated:
                self._b.branch(end)
                goes_on = True
        self._b.position_at_end(end)
        if not goes_on:
            self._b.unreachable()

    def visit_While(self, node: ast.While) -> None:
        """Until the test fails."""
        head, body, end = (self._function.append_basic_block() for _ in range(3))
        self._b.branch(head)
        self._b.position_at_end(head)
        self._b.cbranch(self._truth(node, self.visit(node.test)), body, end)
        self._loop(node, body, head, end)

    def visit_For(self, node: ast.For) -> None:
        """Over a range whose step is a constant."""
        first, last, step = self._range(node)
        head, body, tail, end = (self._function.append_basic_block() for _ in range(4))
        counter = self._entry.alloca(INT)
        self._b.store(first, counter)
        self._b.branch(head)
        self._b.position_at_end(head)
        value = self._b.load(counter)
        self._b.cbranch(self._b.icmp_signed("<" if step > 0 else ">", value, last), body, end)
        self._b.position_at_end(body)
        self._store(node.target, value)
        self._loop(node, body, tail, end)
        self._b.position_at_end(tail)
        self._b.store(self._b.add(self._b.load(counter), ir.Constant(INT, step)), counter)
        self._b.branch(head)
        self._b.position_at_end(end)

    def _range(self, node: ast.For) -> tuple[Any, Any, int]:
        call = node.iter
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "range" or call.keywords:
            raise self._fault(node)
        bounds = [self.visit(argument) for argument in call.args]
        if not 1 <= len(bounds) <= 3 or any(bound.type is not INT for bound in bounds):
            raise self._fault(node, "needs one to three integers")
        if len(bounds) < 3:
            return (ir.Constant(INT, 0), bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)
        step = call.args[2]
        found = self._scope.get(step.id) if isinstance(step, ast.Name) else _integer(step)
        if not isinstance(found, int) or found == 0:
            raise self._fault(node, "needs a constant step")
        return bounds[0], bounds[1], found

    def _loop(self, node: ast.For | ast.While, body: Any, again: Any, end: Any) -> None:
        if node.orelse:
            raise self._fault(node.orelse[0], "is the else of a loop, which has no translation")
        self._b.position_at_end(body)
        self._loops.append((again, end))
        self._run(node.body)
        self._loops.pop()
        if not self._b.block.is_terminated:
            self._b.branch(again)
        self._b.position_at_end(end)

    def visit_Continue(self, _node: ast.Continue) -> None:
        """On to the next turn of the loop."""
        self._b.branch(self._loops[-1][0])

    def visit_Break(self, _node: ast.Break) -> None:
        """Out of the loop."""
        self._b.branch(self._loops[-1][1])

    def _store(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Subscript):
            place = self._address(target)
            self._b.store(self._cast(target, value, place.type.pointee), place)
        elif isinstance(target, ast.Name) and target.id not in self._arrays and value.type in (INT, FLOAT, BOOL):
            self._put(target.id, value)
        else:
            raise self._fault(target, "cannot be assigned to")

    def _put(self, name: str, value: Any) -> None:
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = self._entry.alloca(value.type)
        self._b.store(self._cast(ast.Name(name), value, place.type.pointee), place)


def _integer(node: ast.expr) -> Any:
    """The value of a literal, with or without a sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value if isinstance(node.operand.value, int) else None
    return node.value if isinstance(node, ast.Constant) else None
