"""The point body and small pieces of text that the skeletons of all targets share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nlsq_nb.codegen.ir import PointProgram, Program
from nlsq_nb.codegen.printers import statements, used_scalars

__all__ = ["PointBody", "columns", "indent", "scalars_of"]


class PointBody:
    """Statements that compute outputs and derivatives at one point, for one dialect.

    Attributes
    ----------
    prologue, lines : list of str
        What is computed once, and what at every point.
    outputs : tuple of str
        Operand of each output; empty without `values`.
    derivatives : tuple of tuple of (str or None)
        Operand of each derivative, per output; None where it is zero for every point.
    """

    def __init__(
        self, program: Program | PointProgram, target: str, order: int, *, values: bool = True
    ) -> None:
        self.prologue: list[str] = []
        self.outputs: tuple[str, ...]
        self.derivatives: tuple[tuple[str | None, ...], ...]
        if isinstance(program, PointProgram):
            self._hand_written(program, order, values)
            return
        self.outputs = program.values if values else ()
        self.derivatives = program.jacobian if order else ()
        kept = [*self.outputs, *(d for row in self.derivatives for d in row)]
        prologue, body = program.needed(kept)
        used = [arg for instruction in body for arg in instruction.args] + kept
        self.prologue = statements(target, prologue, used)
        self.lines = statements(target, body, kept)

    def moving(self, output: int) -> list[tuple[int, str]]:
        """Parameter and operand of the derivatives that differ from point to point."""
        return [(j, d) for j, d in self._present(output) if not is_fixed(d)]

    def fixed(self, output: int) -> list[tuple[int, str]]:
        """Parameter and operand of the derivatives that are one number for all points, not zero."""
        return [(j, d) for j, d in self._present(output) if is_fixed(d)]

    def _present(self, output: int) -> list[tuple[int, str]]:
        if not self.derivatives:
            return []
        return [(j, d) for j, d in enumerate(self.derivatives[output]) if d is not None]

    def _hand_written(self, program: PointProgram, order: int, values: bool) -> None:
        p = program.n_params
        names = [f"x{i}" for i in range(program.n_vars)] + [f"p{i}" for i in range(p)]
        call = f"({', '.join(names)})"
        self.lines = [f"t0 = point{call}"] if values else []
        self.outputs = ("t0",) if values else ()
        self.derivatives = ()
        if order:
            self.lines.append(f"jt = jac_point{call}")
            self.derivatives = (tuple(f"jt[{i}]" for i in range(p)),)


def is_fixed(operand: str) -> bool:
    """Whether an operand is the same at every point: a number, a parameter, a hoisted value."""
    return operand[0] not in "xtj"


def scalars_of(
    program: Program | PointProgram, target: str = "cpu", others: Iterable[str] = ()
) -> list[str]:
    """Keys of the functions that the body, and other operations, call; hand-written ones bring their own."""
    body = () if isinstance(program, PointProgram) else program.prologue + program.body
    return used_scalars(frozenset(i.op for i in body).union(others), target)


def indent(depth: int, lines: list[str]) -> Iterator[str]:
    """The lines, four blanks further in per level."""
    return (" " * (4 * depth) + line for line in lines)


def columns(letter: str, count: int) -> list[str]:
    """Numbered names: X0, X1, …."""
    return [f"{letter}{i}" for i in range(count)]
