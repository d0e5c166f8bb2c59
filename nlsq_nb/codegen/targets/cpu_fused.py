"""Fused shape of the CPU kernels: every sum is one scalar, that is, some lanes of a register.

The products of a fixed column c (the derivative of an offset) are not formed point by point: its
sums are c times the sums of the other columns, of the residuals and of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlsq_nb.codegen.body import PointBody, indent
from nlsq_nb.codegen.ir import PointProgram, Program
from nlsq_nb.codegen.targets.cpu_loop import (
    flushing,
    fold_block,
    loads,
    residual,
    signature,
    slices,
    space,
)
from nlsq_nb.core.layout import packed_index, sums_size

__all__ = ["fused_matvec", "fused_sums"]

# Points that are summed in one go. Equal residuals round alike, so that errors add up within a stretch; with 8 lanes
# and few registers 256 points keep them below 1e-15 of the sum, the whole block would reach 2e-15 to 4e-15.
_STRETCH = 256


class _Sums:
    """Scalars that the loop adds to, and the terms of every packed sum."""

    def __init__(self, program: Program | PointProgram, order: int) -> None:
        self.p = program.n_params
        self.updates: list[str] = []
        self.names: list[str] = []
        self.terms: list[list[str]] = [[] for _ in range(sums_size(self.p, order))]

    def add(self, index: int, value: str) -> None:
        """A packed sum that is the sum of one value over the points."""
        self.terms[index].append(self.scalar(value))

    def scalar(self, value: str) -> str:
        """A new scalar that sums a value over the points; it is the sum of those of the stretches."""
        number = len(self.names)
        self.names.append(f"s{number}")
        self.updates.append(f"part{number} += {value}")
        return f"s{number}"

    def scaled(self, index: int, *factors: str) -> None:
        """A packed sum that is a product of numbers and another sum."""
        self.terms[index].append(" * ".join(f for f in factors if f != "1.0") or "1.0")

    def at(self, i: int, j: int) -> int:
        """Packed place of a product of two columns."""
        return packed_index(self.p, min(i, j), max(i, j))


def fused_sums(
    program: Program | PointProgram, weighted: bool, order: int, loss: str
) -> Iterator[str]:
    """Text of `sums0`, `sums1` or `sums2`."""
    body = PointBody(program, "cpu", order)
    sums = _Sums(program, order)
    wr, weight = ("wr", "w") if weighted else ("r", "")
    if robust := loss != "linear":
        wr, weight = "wr", "h"
    for o in range(program.n_outputs):
        sums.updates += residual(body, o, weighted=weighted, loss=loss, order=order)
        if weighted and not robust:
            sums.updates.append("wr = w * r")
        sums.add(0, "cost" if robust else f"r * {wr}")
        if order > 0:
            _gradient(sums, body, o, wr)
        if order > 1:
            _products(sums, body, o, weight)
    yield from signature(program, f"sums{order}", weighted, "state", loss)
    yield from indent(1, body.prologue)
    yield from indent(1, [space("out", len(sums.terms)), "out[:] = 0.0"])
    before, after = flushing(program)
    yield from indent(1, before)
    yield "    for start in range(lo, hi, BLOCK):"
    yield "        stop = min(start + BLOCK, hi)"
    yield from indent(2, [f"{name} = 0.0" for name in sums.names])
    yield f"        for sub in range(start, stop, {_STRETCH}):"
    yield f"            end = min(sub + {_STRETCH}, stop)"
    yield from indent(3, slices(program, weighted, "sub:end"))
    yield from indent(3, [f"part{k} = 0.0" for k in range(len(sums.names))])
    yield "            for i in range(end - sub):"
    yield from indent(4, [*loads(program), *body.lines, *sums.updates])
    yield from indent(3, [f"{name} += part{k}" for k, name in enumerate(sums.names)])
    ends = [f"out[{k}] = {' + '.join(terms)}" for k, terms in enumerate(sums.terms) if terms]
    yield from indent(2, [*ends, fold_block()])
    yield from indent(1, after)


def _gradient(sums: _Sums, body: PointBody, o: int, wr: str) -> None:
    """What one output adds to the gradient."""
    for j, d in body.moving(o):
        sums.add(1 + j, f"{d} * {wr}")
    if fixed := body.fixed(o):
        total = sums.scalar(wr)
        for k, c in fixed:
            sums.scaled(1 + k, c, total)


def _products(sums: _Sums, body: PointBody, o: int, weight: str) -> None:
    """What one output adds to JᵀWJ; `weight` is empty where all are 1."""
    moving, fixed = body.moving(o), body.fixed(o)
    for a, (j, d) in enumerate(moving):
        left = d
        if weight:
            left = f"v{j}"
            sums.updates.append(f"{left} = {weight} * {d}")
        for k, e in moving[a:]:
            sums.add(sums.at(j, k), f"{left} * {e}")
        if fixed:
            total = sums.scalar(left)
            for k, c in fixed:
                sums.scaled(sums.at(j, k), c, total)
    if fixed:
        count = sums.scalar(weight) if weight else "(stop - start)"
        for a, (j, c) in enumerate(fixed):
            for k, d in fixed[a:]:
                sums.scaled(sums.at(j, k), c, d, count)


def fused_matvec(program: Program | PointProgram, weighted: bool, loss: str) -> Iterator[str]:
    """Text of `matvec`: JᵀWJ·v without JᵀWJ."""
    p, robust = program.n_params, loss != "linear"
    body = PointBody(program, "cpu", 2, values=robust)
    yield from signature(program, "matvec", weighted, "v, state", loss)
    yield from indent(1, [*body.prologue, *(f"v{j} = v[{j}]" for j in range(p))])
    yield from indent(1, [space("out", p)])
    before, after = flushing(program)
    yield from indent(1, before)
    yield "    for start in range(lo, hi, BLOCK):"
    yield "        stop = min(start + BLOCK, hi)"
    yield from indent(2, slices(program, weighted, "start:stop"))
    yield from indent(2, [f"g{j} = 0.0" for j in range(p)])
    yield "        for i in range(stop - start):"
    lines = [*loads(program), *body.lines]
    for o in range(program.n_outputs):
        present = body.moving(o) + body.fixed(o)
        if present:
            along = " + ".join(f"{d} * v{j}" for j, d in present)
            if robust:
                lines += residual(body, o, weighted=weighted, loss=loss)
                along = f"h * ({along})"
            elif weighted:
                along = f"np.float64(w{o}_[i]) * ({along})"
            lines.append(f"t = {along}")
            lines += [f"g{j} += {d} * t" for j, d in present]
    yield from indent(3, lines)
    yield from indent(2, [*(f"out[{j}] = g{j}" for j in range(p)), fold_block()])
    yield from indent(1, after)
