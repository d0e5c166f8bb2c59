"""`Chunk`: some consecutive rows of the data, as a source hands them to a backend; `Resident`: for native code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.layout import SEGMENT

__all__ = ["Chunk", "Resident", "address_of", "on_host"]

_in_buffer: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer


def address_of(column: NDArray[Any]) -> int:
    """Where the numbers of a column begin.

    Parameters
    ----------
    column : ndarray, shape (n,)
        Contiguous, n > 0.

    Returns
    -------
    int
        The address, as long as the column lives.
    """
    try:
        return ctypes.addressof(_in_buffer(column))  # a fraction of what `column.ctypes` takes
    except TypeError:  # it cannot be written to
        return column.ctypes.data


def on_host(column: Any) -> NDArray[Any]:
    """A column where NumPy can read it.

    Parameters
    ----------
    column : ndarray or column on a device
        The latter has a method `get`, which copies it.

    Returns
    -------
    ndarray
        The same array if it is one.
    """
    if isinstance(column, np.ndarray):
        return column
    copied: NDArray[Any] = column.get()
    return copied


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows, column by column.

    Attributes
    ----------
    start : int
        Index of the first row in the data; a multiple of the block length.
    x : tuple of ndarray, length k
        Independent variables, each (rows,), contiguous, float64 or float32.
    y : tuple of ndarray, length m
        One column per output.
    w : tuple of ndarray, length m, or None
        Weights 1/sigma**2 per residual; None means all ones.
    lasting : bool
        Whether the columns stay as they are, the same objects in every pass, so that a device may
        keep a copy of them.
    """

    start: int
    x: tuple[NDArray[Any], ...]
    y: tuple[NDArray[Any], ...]
    w: tuple[NDArray[Any], ...] | None = None
    lasting: bool = False

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.y[0])

    @property
    def is_on_host(self) -> bool:
        """Whether NumPy can read the columns."""
        return isinstance(self.y[0], np.ndarray)

    def host(self, rows: slice = slice(None)) -> Chunk:
        """Some of the rows where NumPy can read them.

        Parameters
        ----------
        rows : slice
            Consecutive rows from a whole block on; all by default.

        Returns
        -------
        Chunk
            Views, or copies of what is on a device.
        """
        if self.is_on_host and rows == slice(None):
            return self
        x, y = (tuple(on_host(c[rows]) for c in part) for part in (self.x, self.y))
        w = None if self.w is None else tuple(on_host(c[rows]) for c in self.w)
        return Chunk(self.start + (rows.start or 0), x, y, w)


@dataclass(frozen=True, slots=True)
class Resident:
    """Rows in memory and a native function that sums over them.

    Attributes
    ----------
    kernel : int
        Address of (lo, hi, columns, theta, state): folds sums of order 2 into `state`, and returns `done` if it could.
    columns : tuple of int
        Addresses of the columns of x, y and w.
    n_rows : int
        Number of rows.
    owner : object
        Keeps both where they are.
    span : int
        Rows of one call, the last of which may have fewer; the sums of calls are added in the order of the rows.
    done : int
        See `kernel`.
    """

    kernel: int
    columns: tuple[int, ...]
    n_rows: int
    owner: Any
    span: int = SEGMENT
    done: int = 0
