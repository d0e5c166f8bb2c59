"""`Chunk`: some consecutive rows of the data, as a source hands them to a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["Chunk"]


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
