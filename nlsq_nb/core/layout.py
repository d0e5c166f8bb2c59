"""Where the sums of one pass stand in a flat vector; kernels, backends and `NormalSums` agree here.

Layout: sse, then Jᵀ W r (p), then the upper triangle of Jᵀ W J row by row (p(p+1)/2).
"""

from __future__ import annotations

__all__ = ["BLOCK", "RESIDENT_ROWS", "SECTION", "SEGMENT", "SHARED_ROWS", "packed_index", "sums_size"]

BLOCK = 4096
"""Rows of one block of the fixed grid; a block is summed by one thread in one order."""

SEGMENT = 4 * BLOCK
"""Rows whose blocks are folded in order into one compensated sum: the unit of parallel work.

Some 50 µs of work for a model with one exp, so that two threads can share 1e5 rows."""

SECTION = 16 * SEGMENT
"""Rows whose segments are added in order into one sum, which is then added to those of the sections before."""

SHARED_ROWS = 4 * SEGMENT
"""Rows up to which one thread sums as fast as two that are at hand."""

RESIDENT_ROWS = 8 * SEGMENT
"""Rows up to which one thread is as fast as two, of which one has to be called: so few are held in memory."""


def sums_size(n_params: int, order: int) -> int:
    """Length of the vector of sums.

    Parameters
    ----------
    n_params : int
        Number of parameters p.
    order : int
        0 cost only, 1 with the gradient, 2 with JᵀWJ.

    Returns
    -------
    int
        1, 1 + p or 1 + p + p(p+1)/2.
    """
    return (1, 1 + n_params, 1 + n_params + n_params * (n_params + 1) // 2)[order]


def packed_index(n_params: int, i: int, j: int) -> int:
    """Position of element (i, j), i ≤ j, of JᵀWJ in the vector of sums.

    Parameters
    ----------
    n_params : int
        Number of parameters p.
    i, j : int
        Row and column, 0 ≤ i ≤ j < p.

    Returns
    -------
    int
        The index.
    """
    return 1 + n_params + i * n_params - i * (i - 1) // 2 + (j - i)
