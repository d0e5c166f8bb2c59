"""Complete module text for a target: the loop of the target around the shared point body.

The point body is the same statements everywhere; only the loop differs. Residuals are r = y − f, so
that the gradient vector JᵀWr points along the Gauss–Newton step. The text needs nothing of this
package to run.
"""

from __future__ import annotations

from nlsq_nb.codegen.ir import PointProgram, Program
from nlsq_nb.codegen.targets import cpu, cuda, reference
from nlsq_nb.errors import ModelError

__all__ = ["TARGETS", "render"]

TARGETS = ("cpu", "cuda", "reference")


def render(
    program: Program | PointProgram, target: str, weighted: bool = False, loss: str = "linear"
) -> str:
    """The generated module for a program.

    Parameters
    ----------
    program : Program or PointProgram
        What to evaluate at each point.
    target : {"cpu", "cuda", "reference"}
        Numba CPU kernels, Numba CUDA kernels, or NumPy over columns.
    weighted : bool
        Whether the kernels read one weight per residual (cpu and cuda).
    loss : str
        One of `core.losses.LOSSES` (cpu and cuda).

    Returns
    -------
    str
        Python source text.

    Raises
    ------
    ModelError
        For an unknown target, or the reference text of hand-written scalar functions.
    """
    if target == "cpu":
        return cpu.render(program, weighted, loss)
    if target == "cuda":
        return cuda.render(program, weighted, loss)
    if target == "reference" and isinstance(program, Program):
        return reference.render(program)
    if target == "reference":
        raise ModelError("hand-written scalar functions have no NumPy text; targets: cpu, cuda")
    raise ModelError(f"unknown target {target!r}; targets: {', '.join(TARGETS)}")
