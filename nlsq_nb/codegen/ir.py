"""Programs: what a backend compiles.

A `Program` is frozen data, a straight line of instructions over canonical names (x0…, p0…, k0… for
what depends on parameters only, t0… for what differs per point), with no reference to SymPy or to
the names the user chose. `OpaqueProgram` and `PointProgram` carry hand-written functions instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AnyProgram", "Instruction", "OpaqueProgram", "PointProgram", "Program"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """`name = op(args)`; an argument is a canonical name or the repr of a finite float."""

    name: str
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """The value and exact Jacobian of a model as instructions.

    Attributes
    ----------
    n_vars, n_params : int
        Number of independent variables k and of parameters p.
    prologue : tuple of Instruction
        What depends on parameters only; evaluated once per call.
    body : tuple of Instruction
        What is evaluated at every point.
    values : tuple of str, length m
        Operand of each output.
    jacobian : tuple of tuple of (str or None), shape (m, p)
        Operand of each derivative, None where it is zero for every point.
    """

    n_vars: int
    n_params: int
    prologue: tuple[Instruction, ...]
    body: tuple[Instruction, ...]
    values: tuple[str, ...]
    jacobian: tuple[tuple[str | None, ...], ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Programs are keys of every cache of kernels."""
        parts = (self.n_vars, self.n_params, self.prologue, self.body, self.values, self.jacobian)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        """Of all its parts."""
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """From its parts: the hash of a text is another one in every process."""
        return Program, (self.n_vars, self.n_params, self.prologue, self.body, self.values, self.jacobian)

    @property
    def n_outputs(self) -> int:
        """Number of outputs m."""
        return len(self.values)

    def needed(
        self, operands: Iterable[str | None]
    ) -> tuple[tuple[Instruction, ...], tuple[Instruction, ...]]:
        """The part of (prologue, body) that the given operands depend on."""
        alive = {operand for operand in operands if operand is not None}
        kept: list[Instruction] = []
        for instruction in reversed(self.prologue + self.body):
            if instruction.name in alive:
                alive.update(instruction.args)
                kept.append(instruction)
        kept.reverse()
        hoisted = {instruction.name for instruction in self.prologue}
        return (
            tuple(i for i in kept if i.name in hoisted),
            tuple(i for i in kept if i.name not in hoisted),
        )


@dataclass(frozen=True, slots=True)
class OpaqueProgram:
    """A model given as NumPy functions, called on blocks of rows.

    Attributes
    ----------
    values : callable
        `values(columns, theta)` -> (m, rows) float64.
    derivatives : callable
        `derivatives(columns, theta)` -> (m, p, rows) float64.
    rounding : float
        Relative rounding error of the derivatives; more than eps where they are differences.
    """

    n_vars: int
    n_params: int
    n_outputs: int
    values: Callable[[tuple[NDArray[np.float64], ...], NDArray[np.float64]], NDArray[np.float64]]
    derivatives: Callable[
        [tuple[NDArray[np.float64], ...], NDArray[np.float64]], NDArray[np.float64]
    ]
    rounding: float = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class PointProgram:
    """A model given as scalar functions that the compiler inlines into the fused kernels.

    Attributes
    ----------
    point : callable
        `point(x0, …, p0, …)` -> float.
    jac_point : callable
        `jac_point(x0, …, p0, …)` -> tuple of p floats.
    """

    n_vars: int
    n_params: int
    point: Callable[..., float]
    jac_point: Callable[..., tuple[float, ...]]
    n_outputs: int = 1


AnyProgram = Program | OpaqueProgram | PointProgram
