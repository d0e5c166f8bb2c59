"""The mark on functions that are compiled together, their types, and their way to the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Ints", "call_kernel", "native"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])


def native(function: F) -> F:
    """Mark a function; imported as it stands it is plain Python, which tests run."""
    return function


def call_kernel(
    kernel: Any, lo: int, hi: int, columns: Ints, w: Floats, theta: int, state: int
) -> None:
    """Fold the sums of order 2 over rows lo ≤ i < hi into w[state:], at the parameters w[theta:]."""
    kernel(lo, hi, columns, w[theta:], w[state:])
