"""`Chunk`: some consecutive rows of the data, as a source hands them to a backend; `Resident`: for native code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["Chunk", "Resident"]


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
    """

    start: int
    x: tuple[NDArray[Any], ...]
    y: tuple[NDArray[Any], ...]
    w: tuple[NDArray[Any], ...] | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.y[0])


@dataclass(frozen=True, slots=True)
class Resident:
    """Rows in memory and a native function that sums over them.

    Attributes
    ----------
    kernel : int
        Address of (lo, hi, columns, theta, state): folds sums of order 2 into `state`; 0 if it could.
    columns : tuple of int
        Addresses of the columns of x, y and w.
    n_rows : int
        Number of rows.
    owner : object
        Keeps both where they are.
    """

    kernel: int
    columns: tuple[int, ...]
    n_rows: int
    owner: Any
