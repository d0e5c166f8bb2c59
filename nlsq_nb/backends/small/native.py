"""The mark on functions that are compiled together, their types, and their way to the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "KERNELS", "Floats", "Ints", "call_kernel", "column_value", "native"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])

KERNELS: dict[int, Callable[[int, int, Ints, Floats, Floats], int]] = {}
"""What stands for kernels where the functions run as Python: a number for each in the place of its address."""

COLUMNS: dict[int, Floats] = {}
"""The same for columns of the data."""


def native(function: F) -> F:
    """Mark a function.

    Parameters
    ----------
    function : callable
        With annotated arguments, in what `translate` knows of Python.

    Returns
    -------
    callable
        The same: imported as it stands it is plain Python, which tests run.
    """
    return function


def call_kernel(
    kernel: int, lo: int, hi: int, task: Ints, table: int, w: Floats, theta: int, state: int
) -> int:
    """Fold sums of order 2 over rows of the data; in native code a call of the kernel itself.

    Parameters
    ----------
    kernel : int
        Its address; here a key of `KERNELS`.
    lo, hi : int
        Rows lo ≤ i < hi.
    task : ndarray of int
        The addresses of the columns begin at task[table].
    table : int
        See task.
    w : ndarray
        The parameters begin at w[theta], the sums at w[state].
    theta, state : int
        See w.

    Returns
    -------
    int
        0 if it could.
    """
    return KERNELS[int(kernel)](int(lo), int(hi), task[table:], w[theta:], w[state:])


def column_value(task: Ints, place: int, row: int) -> float:
    """One number of the data; in native code read from where it is.

    Parameters
    ----------
    task : ndarray of int
        Has the address of the column at task[place]; here a key of `COLUMNS`.
    place, row : int
        Which column, and which row.

    Returns
    -------
    float
        The number.
    """
    return float(COLUMNS[int(task[place])][row])
