"""The point body and small pieces of text that the skeletons of all targets share."""

from __future__ import annotations

from collections.abc import Iterator

from nlsq_nb.codegen.ir import PointProgram, Program
from nlsq_nb.codegen.printers import statements, used_helpers

__all__ = ["PointBody", "columns", "helpers_of", "indent"]


class PointBody:
    """Statements that compute outputs and derivatives at one point, for one dialect."""

    def __init__(self, program: Program | PointProgram, target: str, order: int) -> None:
        self.prologue: list[str] = []
        self.outputs: tuple[str, ...]
        self.derivatives: tuple[tuple[str | None, ...], ...]
        if isinstance(program, PointProgram):
            self._hand_written(program, order)
            return
        self.outputs = program.values
        self.derivatives = program.jacobian if order else ()
        kept = [*self.outputs, *(d for row in self.derivatives for d in row)]
        prologue, body = program.needed(kept)
        used = [arg for instruction in body for arg in instruction.args] + kept
        self.prologue = statements(target, prologue, used)
        self.lines = statements(target, body, kept)

    def _hand_written(self, program: PointProgram, order: int) -> None:
        p = program.n_params
        names = [f"x{i}" for i in range(program.n_vars)] + [f"p{i}" for i in range(p)]
        call = f"({', '.join(names)})"
        self.lines = [f"t0 = point{call}"]
        self.outputs = ("t0",)
        self.derivatives = ()
        if order:
            self.lines.append(f"jt = jac_point{call}")
            self.derivatives = (tuple(f"jt[{i}]" for i in range(p)),)


def helpers_of(program: Program | PointProgram) -> list[str]:
    """Helper functions that the body calls; hand-written functions bring their own."""
    if isinstance(program, PointProgram):
        return []
    return used_helpers(program.prologue + program.body)


def indent(depth: int, lines: list[str]) -> Iterator[str]:
    """The lines, four blanks further in per level."""
    return (" " * (4 * depth) + line for line in lines)


def columns(letter: str, count: int) -> list[str]:
    """Numbered names: X0, X1, …."""
    return [f"{letter}{i}" for i in range(count)]
