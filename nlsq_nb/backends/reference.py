"""The reference backend: NumPy, block by block. Slow, obvious, and the oracle of the others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.compensated import add_compensated
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.losses import LEAST_SQUARES, Loss, weigh
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.core.tsqr import TriangleAccumulator, triangle_of

__all__ = ["ReferenceBackend", "ReferenceKernel", "block_triangle"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReferenceKernel:
    """A program, the dtype its columns are stored in, and what weighs the residuals."""

    program: AnyProgram
    dtype: np.dtype[Any]
    loss: Loss = LEAST_SQUARES


class ReferenceBackend:
    """Evaluates J of a block as a matrix and multiplies it out."""

    name = "reference"

    def compile(
        self, program: AnyProgram, dtype: Any, loss: Loss = LEAST_SQUARES
    ) -> ReferenceKernel:
        """Nothing to compile; see `Backend.compile`."""
        return ReferenceKernel(program, np.dtype(dtype), loss)

    def put(self, chunk: Chunk, dtype: Any) -> Chunk:
        """The chunk in the storage dtype; see `Backend.put`."""

        def cast(columns: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
            return tuple(np.ascontiguousarray(column, dtype=dtype) for column in columns)

        w = None if chunk.w is None else cast(chunk.w)
        return replace(chunk, x=cast(chunk.x), y=cast(chunk.y), w=w)

    def reduce(
        self, kernel: ReferenceKernel, chunk: Chunk, theta: Floats, order: int, into: Accumulator
    ) -> None:
        """Add the chunk's sums; see `Backend.reduce`."""
        for first, (lo, hi) in enumerate(into.pieces(chunk.n_rows)):
            state = into.new_state(first == 0)
            for start in range(lo, hi, BLOCK):
                sums = _block(kernel, chunk, slice(start, min(start + BLOCK, hi)), theta, order)
                state[0], state[1] = add_compensated(state[0], state[1], sums)
            into.add(state, hi - lo)

    def rows(self, program: AnyProgram, name: str, chunk: Chunk, theta: Floats) -> Floats:
        """Values or residuals of each row, from float64 columns; see `Backend.rows`."""
        columns = tuple(c.astype(np.float64, copy=False) for c in chunk.x)
        values = evaluate(program, "values", columns, theta)
        return values if name == "values" else np.asarray(np.stack(chunk.y) - values)

    def resident(self, kernel: ReferenceKernel, chunk: Chunk) -> None:
        """There is no native code here; see `Backend.resident`."""

    def in_use(self) -> AbstractContextManager[None]:
        """Nothing has to be called; see `Backend.in_use`."""
        return nullcontext()

    def release(self) -> None:
        """Nothing is held; see `Backend.release`."""

    def matvec(self, kernel: ReferenceKernel, chunk: Chunk, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over the chunk; see `Backend.matvec`."""
        total = np.zeros(len(theta))
        for start in range(0, chunk.n_rows, BLOCK):
            rows = slice(start, start + BLOCK)
            r, jac, w = _rows(kernel.program, chunk, rows, theta, derivatives=True)
            with np.errstate(all="ignore"):
                _, _, h = weigh(kernel.loss, r, w)
            total += np.einsum("mpr,mr->p", jac, h * np.einsum("mpr,p->mr", jac, v))
        return total


    def triangularize(
        self, kernel: ReferenceKernel, chunk: Chunk, theta: Floats, into: TriangleAccumulator
    ) -> None:
        """Add the triangles of the chunk's blocks; see `Backend.triangularize`."""
        blocks = range(0, chunk.n_rows, BLOCK)
        into.add(block_triangle(kernel.program, chunk, start, theta) for start in blocks)


def block_triangle(program: AnyProgram, chunk: Chunk, start: int, theta: Floats) -> Floats:
    """R of √W [J | r] of a block.

    Parameters
    ----------
    program : AnyProgram
        The model.
    chunk : Chunk
        Holds the block.
    start : int
        Its first row within the chunk.
    theta : ndarray, shape (p,)
        Where.

    Returns
    -------
    ndarray, shape (p + 1, p + 1)
        Upper triangle, float64.
    """
    r, jac, w = _rows(program, chunk, slice(start, start + BLOCK), theta, derivatives=True)
    with np.errstate(all="ignore"):
        rows = np.moveaxis(np.concatenate([jac, r[:, np.newaxis]], axis=1), 1, 2)
        return triangle_of((np.sqrt(w)[:, :, np.newaxis] * rows).reshape(-1, rows.shape[2]))


def _rows(
    program: AnyProgram, chunk: Chunk, rows: slice, theta: Floats, *, derivatives: bool
) -> tuple[Floats, Floats, Floats]:
    """Residuals (m, r), Jacobian (m, p, r) and weights (m, r) of some rows, in float64."""
    columns = tuple(x[rows].astype(np.float64, copy=False) for x in chunk.x)
    y = np.stack([c[rows].astype(np.float64, copy=False) for c in chunk.y])
    with np.errstate(all="ignore"):
        r = y - evaluate(program, "values", columns, theta)
        empty = np.zeros((len(y), 0, y.shape[1]))
        jac = evaluate(program, "derivatives", columns, theta) if derivatives else empty
    w = np.ones_like(y) if chunk.w is None else np.stack([c[rows] for c in chunk.w]).astype(float)
    return r, jac, w


def _block(
    kernel: ReferenceKernel, chunk: Chunk, rows: slice, theta: Floats, order: int
) -> Floats:
    """The packed sums of one block."""
    r, jac, w = _rows(kernel.program, chunk, rows, theta, derivatives=order > 0)
    with np.errstate(all="ignore"):
        cost, push, h = weigh(kernel.loss, r, w)
        parts = [np.array([np.sum(cost)])]
        flat = np.moveaxis(jac, 1, 0).reshape(jac.shape[1], jac.shape[0] * jac.shape[2])
        if order > 0:
            parts.append(flat @ push.ravel())
        if order > 1:
            jtj = flat @ (flat * h.ravel()).T
            parts.append(jtj[np.triu_indices(len(jtj))])
    return np.concatenate(parts)
