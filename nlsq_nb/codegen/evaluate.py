"""Values and derivatives of a program in NumPy, through its reference text."""

from __future__ import annotations

import types
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.ir import AnyProgram, OpaqueProgram, PointProgram, Program
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render

__all__ = ["evaluate"]


def evaluate(
    program: AnyProgram,
    what: Literal["values", "derivatives"],
    columns: tuple[NDArray[np.float64], ...],
    theta: NDArray[Any],
) -> NDArray[np.float64]:
    """Evaluate a program on columns of rows.

    Parameters
    ----------
    program : Program, OpaqueProgram or PointProgram
        The model.
    what : {"values", "derivatives"}
        Which entry point.
    columns : tuple of ndarray, each (n,)
        Independent variables, float64.
    theta : ndarray, shape (p,)
        Parameters, float64.

    Returns
    -------
    ndarray, shape (m, n) or (m, p, n)
        float64; non-finite where the model is.
    """
    with np.errstate(all="ignore"):  # non-finite values are the caller's to judge
        if isinstance(program, OpaqueProgram):
            return getattr(program, what)(columns, theta)  # type: ignore[no-any-return]
        if isinstance(program, PointProgram):
            return _by_points(program, what, columns, theta)
        return getattr(_module(program), what)(*columns, theta)  # type: ignore[no-any-return]


@lru_cache(maxsize=128)
def _module(program: Program) -> types.ModuleType:
    """The reference module of a program."""
    return load(render(program, "reference"))


def _by_points(
    program: PointProgram, what: str, columns: tuple[NDArray[np.float64], ...], theta: NDArray[Any]
) -> NDArray[np.float64]:
    function = program.point if what == "values" else program.jac_point
    width = 1 if what == "values" else program.n_params
    out = np.empty((len(columns[0]), width))
    for i, row in enumerate(zip(*columns, strict=True)):
        out[i] = function(*row, *theta)
    return out.T.copy() if what == "values" else out.T[None].copy()
