"""Programs as CUDA kernels, compiled when they are first launched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from nlsq_nb.backends.cuda.toolkit import toolkit
from nlsq_nb.codegen.ir import AnyProgram, OpaqueProgram, PointProgram
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.codegen.targets.cuda import group_names
from nlsq_nb.codegen.targets.cuda_common import BLOCKS, THREADS
from nlsq_nb.core.losses import LEAST_SQUARES, Loss
from nlsq_nb.errors import UnsupportedOption

__all__ = ["CudaKernel", "block_count", "compile_program"]


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A program for one storage dtype.

    Attributes
    ----------
    program : Program or PointProgram
        What it computes.
    dtype : numpy.dtype
        Storage dtype of the columns; sums are float64 always.
    loss : Loss
        What a residual costs; its numbers come with the parameters.
    """

    program: AnyProgram
    dtype: np.dtype[Any]
    loss: Loss = LEAST_SQUARES

    @property
    def is_tiled(self) -> bool:
        """Whether JᵀWJ is multiplied out from a stored Jacobian."""
        return not group_names(self.program.n_params, "sums2", self.loss.kind)

    def sums(self, entry: str, *, weighted: bool) -> list[Any]:
        """The kernels that together are an entry point, to be launched one after the other.

        Parameters
        ----------
        entry : {"sums0", "sums1", "sums2", "matvec"}
            Which one.
        weighted : bool
            Whether the residuals have weights.

        Returns
        -------
        list of dispatcher
            See `targets.cuda.group_names`.
        """
        module, kind = _module(self.program, weighted, self.loss.kind), self.loss.kind
        return [getattr(module, name) for name in group_names(self.program.n_params, entry, kind)]

    def single(self, name: str, *, weighted: bool = False) -> Any:
        """A kernel by name: values, residuals, jacobian, weighed."""
        return getattr(_module(self.program, weighted, "linear"), name)


def compile_program(program: AnyProgram, dtype: Any, loss: Loss) -> CudaKernel:
    """A kernel; see `Backend.compile`.

    Parameters
    ----------
    program : Program or PointProgram
        What to compute.
    dtype : dtype_like
        float64 or float32.
    loss : Loss
        What a residual costs.

    Returns
    -------
    CudaKernel
        Nothing is compiled yet.

    Raises
    ------
    UnsupportedOption
        For a NumPy function that is called as it is.
    """
    if isinstance(program, OpaqueProgram):
        raise UnsupportedOption(
            "a NumPy function that is called as it is (jac=, Model.from_callable) cannot run on a GPU; "
            "let it be traced, write it as an expression, or use backend='cpu'"
        )
    return CudaKernel(program, np.dtype(dtype), loss)


def block_count(rows: int) -> int:
    """Thread blocks for some rows: at least two rows per thread, and never more than `BLOCKS`.

    Parameters
    ----------
    rows : int
        Rows of the largest launch.

    Returns
    -------
    int
        The same for every card.
    """
    return max(1, min(BLOCKS, -(-rows // (2 * THREADS))))


@lru_cache(maxsize=64)
def _module(program: AnyProgram, weighted: bool, loss: str) -> ModuleType:
    """The generated module, shared by all fits of the process."""
    assert not isinstance(program, OpaqueProgram)
    text, tools = render(program, "cuda", weighted, loss), toolkit()
    if not isinstance(program, PointProgram):
        return tools.load(text)
    inlined = tools.cuda.jit(device=True)
    return tools.load(text, {"point": inlined(program.point), "jac_point": inlined(program.jac_point)})
