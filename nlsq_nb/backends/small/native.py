"""The mark on functions that are compiled together, their types, and their ways to the kernel and to memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COLUMNS",
    "KERNELS",
    "Floats",
    "Ints",
    "add_to_word",
    "address_of",
    "call_at",
    "call_kernel",
    "call_plain",
    "column_value",
    "floats_at",
    "ints_at",
    "native",
    "pause",
    "set_word",
    "word",
]

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


def call_at(kernel: int, lo: int, hi: int, columns: int, theta: int, state: int) -> int:
    """Fold sums over rows of the data, where everything is given by its address.

    Parameters
    ----------
    kernel : int
        Of a function of `entries.SIGNATURE`.
    lo, hi : int
        Rows lo ≤ i < hi.
    columns, theta, state : int
        Of the table of columns, the parameters, and the sums.

    Returns
    -------
    int
        0 if it could.
    """
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 5)(int(kernel))
    return int(function(*map(int, (lo, hi, columns, theta, state))))


def call_plain(function: int) -> None:
    """Call a function without arguments.

    Parameters
    ----------
    function : int
        Its address.
    """
    ctypes.CFUNCTYPE(ctypes.c_int32)(int(function))()


def address_of(numbers: Floats) -> int:
    """Where numbers begin.

    Parameters
    ----------
    numbers : ndarray
        Contiguous.

    Returns
    -------
    int
        The address.
    """
    return numbers.ctypes.data


def floats_at(place: int) -> Floats:
    """Numbers behind an address.

    Parameters
    ----------
    place : int
        The address.

    Returns
    -------
    ndarray
        As many as anybody looks at.
    """
    return np.ctypeslib.as_array((ctypes.c_double * 4096).from_address(int(place)))


def ints_at(place: int) -> Ints:
    """Integers behind an address.

    Parameters
    ----------
    place : int
        The address.

    Returns
    -------
    ndarray of int
        As many as anybody looks at.
    """
    return np.ctypeslib.as_array((ctypes.c_int64 * 64).from_address(int(place)))


def word(place: int) -> int:
    """An integer that another thread may have written, and all that it wrote before.

    Parameters
    ----------
    place : int
        Its address.

    Returns
    -------
    int
        What is there.
    """
    return ctypes.c_int64.from_address(int(place)).value


def set_word(place: int, value: int) -> None:
    """Write an integer that another thread may read, after all that was written before.

    Parameters
    ----------
    place : int
        Its address.
    value : int
        What is to be there.
    """
    ctypes.c_int64.from_address(int(place)).value = int(value)


def add_to_word(place: int, value: int) -> int:
    """Add to an integer, which in native code no other thread can do in between.

    Parameters
    ----------
    place : int
        Its address.
    value : int
        What is to be added.

    Returns
    -------
    int
        What was there.
    """
    found = word(place)
    set_word(place, found + value)
    return found


def pause() -> None:
    """Give way for a moment, some tens of cycles, to the other thread of a core."""
