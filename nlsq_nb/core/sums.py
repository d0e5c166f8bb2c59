"""`NormalSums`: cost, gradient and JᵀWJ of some rows, as one compensated monoid.

Every partial result (a segment of blocks, a device, a worker, a penalty) is a `NormalSums`, and
`+` is the only way they meet. A sum is kept as high + low (two-sum, Knuth, TAOCP vol. 2, §4.2.2),
so its error does not grow with the number of parts. Bits depend on the order of addition only;
that order is fixed by the grid: blocks within a segment, then segments, both by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.layout import SEGMENT, sums_size

__all__ = ["Accumulator", "Deferred", "NormalSums", "SegmentStates", "add_compensated", "add_segments", "square"]

Floats = NDArray[np.float64]
Fold = Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]
_FEW = 64  # numbers up to which Python is faster than NumPy


def add_compensated(high: Floats, low: Floats, value: Floats) -> tuple[Floats, Floats]:
    """One step of compensated summation: the new (high, low).

    Parameters
    ----------
    high, low : ndarray
        Running sum and what rounding left out of it.
    value : ndarray
        What to add.

    Returns
    -------
    tuple of ndarray
        The new pair; `high + low + value` up to the rounding of the low part.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        total = high + value
        part = total - high
        return total, low + ((high - (total - part)) + (value - part))


def add_segments(high: Floats, low: Floats, states: Floats) -> tuple[Floats, Floats]:
    """Add the sums of segments one after the other: many steps of compensated summation at once.

    Parameters
    ----------
    high, low : ndarray, shape (size,)
        Running sums.
    states : ndarray, shape (2k, size)
        High and low sums of k segments in turn.

    Returns
    -------
    tuple of ndarray
        The new pair, with the bits of k single steps: `accumulate` adds strictly in order.
    """
    highs, lows = states[::2], states[1::2]
    if len(highs) == 1:
        high, low = add_compensated(high, low, highs[0])
        return high, low + lows[0]
    with np.errstate(invalid="ignore", over="ignore"):
        running = np.add.accumulate(np.concatenate([high[np.newaxis], highs]))
        before, after = running[:-1], running[1:]
        part = after - before
        steps = np.empty((1 + len(states), len(high)))
        steps[0] = low
        steps[1::2] = (before - (after - part)) + (highs - part)
        steps[2::2] = lows
        return running[-1].copy(), np.add.accumulate(steps)[-1].copy()


@dataclass(frozen=True)
class NormalSums:
    """Sums over rows at one point of parameter space.

    Attributes
    ----------
    n_rows : int
        Rows summed (residuals are m times as many for m outputs).
    n_params : int
        p.
    order : int
        0 sse; 1 also the gradient; 2 also JᵀWJ.
    high, low : ndarray, shape (sums_size(p, order),)
        Packed as in `core.layout`; the value is high + low.
    """

    n_rows: int
    n_params: int
    order: int
    high: Floats
    low: Floats

    @classmethod
    def zero(cls, n_params: int, order: int) -> NormalSums:
        """The neutral element."""
        size = sums_size(n_params, order)
        return cls(0, n_params, order, np.zeros(size), np.zeros(size))

    @classmethod
    def from_arrays(
        cls, sse: float, jtr: Floats, jtj: Floats, n_rows: int = 0
    ) -> NormalSums:
        """Sums of order 2 from plain arrays: penalties, tests."""
        p = len(jtr)
        high = np.concatenate([[sse], jtr, jtj[_upper(p)]])
        return cls(n_rows, p, 2, high, np.zeros_like(high))

    def __add__(self, other: NormalSums) -> NormalSums:
        """Sums over the rows of both; the result has the smaller order."""
        order = min(self.order, other.order)
        size = sums_size(self.n_params, order)
        high, low = add_compensated(self.high[:size], self.low[:size], other.high[:size])
        return NormalSums(
            self.n_rows + other.n_rows, self.n_params, order, high, low + other.low[:size]
        )

    @cached_property
    def packed(self) -> Floats:
        """All sums, rounded to float64."""
        total = self.high + self.low
        if _all_finite(total):
            return total
        # where high is infinite, low is nan from inf - inf; the infinity is the answer
        return np.where(np.isfinite(self.high), total, self.high)

    @property
    def sse(self) -> float:
        """Σ w r²."""
        return float(self.packed[0])

    @property
    def jtr(self) -> Floats:
        """JᵀWr, shape (p,): minus half the gradient of the sse, as r = y − f."""
        return self.packed[1 : 1 + self.n_params]

    @cached_property
    def jtj(self) -> Floats:
        """JᵀWJ, shape (p, p), symmetric."""
        return self.packed.take(square(self.n_params))

    @cached_property
    def derived(self) -> dict[str, Any]:
        """What a phase has worked out from these sums and may want again; no part of the value."""
        return {}

    @cached_property
    def is_finite(self) -> bool:
        """Whether every sum is a finite number."""
        return _all_finite(self.packed)


def _all_finite(values: Floats) -> bool:
    if len(values) <= _FEW:
        return all(map(math.isfinite, values.tolist()))
    return bool(np.isfinite(values).all())


@lru_cache(maxsize=32)
def _upper(p: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of each packed element of the upper triangle."""
    rows, columns = np.triu_indices(p)
    return rows, columns


@lru_cache(maxsize=32)
def square(p: int) -> NDArray[np.intp]:
    """Where each element of the full JᵀWJ is packed.

    Parameters
    ----------
    p : int
        Number of parameters.

    Returns
    -------
    ndarray of int, shape (p, p)
        Indices into packed sums of order 2.
    """
    where = np.empty((p, p), dtype=np.intp)
    rows, columns = _upper(p)
    where[rows, columns] = where[columns, rows] = np.arange(1 + p, sums_size(p, 2))
    return where


class Deferred(Protocol):
    """A pass whose sums are fetched in the end."""

    def collect(self) -> tuple[Floats, Floats]:
        """Wait for the high and low sums of all its rows, packed."""


class Accumulator:
    """Collects one pass in row order, whatever chunks the rows come in.

    Attributes
    ----------
    position : int
        Rows taken so far.
    open : ndarray, shape (2, size)
        High and low sums of the segment that is not complete yet; a backend continues it in place.
    deferred : Deferred or None
        Sums that a device is still at work on; `result` waits for them.
    """

    def __init__(self, n_params: int, order: int) -> None:
        self._shape = (n_params, order)
        self._total: tuple[Floats, Floats] | None = None
        self.position = 0
        self.deferred: Any = None
        self.open = np.zeros((2, sums_size(n_params, order)))

    def pieces(self, rows: int) -> list[tuple[int, int]]:
        """Split the next `rows` rows at segment boundaries.

        Parameters
        ----------
        rows : int
            Rows of the next chunk.

        Returns
        -------
        list of (int, int)
            Bounds relative to the chunk; only the first can continue the open segment.
        """
        first = SEGMENT - self.position % SEGMENT
        bounds = [0, *range(first, rows, SEGMENT), rows]
        return list(pairwise(bounds)) if rows else []

    def new_state(self, first: bool, count: int = 1) -> Floats:
        """What the next pieces are folded into.

        Parameters
        ----------
        first : bool
            Whether the first of them continues the open segment.
        count : int
            Number of pieces.

        Returns
        -------
        ndarray, shape (2 count, size)
            High and low sums of the open segment or zeros, then zeros; one piece that goes on is
            folded in place.
        """
        if first and count == 1:
            return self.open
        states = np.zeros((2 * count, self.open.shape[1]))
        if first:
            states[:2] = self.open
        return states

    def add(self, state: Floats, rows: int, fold: Fold = add_segments) -> None:
        """Take the next pieces, in row order.

        Parameters
        ----------
        state : ndarray, shape (2 count, size)
            What `new_state` gave, folded by the backend.
        rows : int
            Rows of the pieces.
        fold : callable
            What adds them up: `add_segments`, or what gives the same bits.
        """
        self.position += rows
        closed = len(state) if self.position % SEGMENT == 0 else len(state) - 2
        if closed:
            self._close(state[:closed], fold)
        self.open = state[closed:] if closed < len(state) else np.zeros((2, state.shape[1]))

    def defer(self, work: Deferred, rows: int) -> None:
        """Leave the next rows to work that goes on while more of them are read.

        Parameters
        ----------
        work : Deferred
            The same for all rows of a pass.
        rows : int
            How many.
        """
        self.deferred = work
        self.position += rows

    def result(self) -> NormalSums:
        """The sums of everything taken."""
        if self.deferred is not None:
            high, low = self.deferred.collect()
            self.deferred = None
            self.open[0], self.open[1] = add_compensated(self.open[0], self.open[1], high)
            with np.errstate(invalid="ignore"):  # inf - inf, where high is infinite
                self.open[1] += low
        high, low = self._close(self.open)
        self.open = np.zeros(self.open.shape)
        return NormalSums(self.position, *self._shape, high, low)

    def _close(self, states: Floats, fold: Fold = add_segments) -> tuple[Floats, Floats]:
        if self._total is None:  # not zeros plus the first, which would lose the sign of a zero
            self._total, states = (states[0], states[1]), states[2:]
        if len(states):
            self._total = fold(*self._total, states)
        return self._total


class SegmentStates(Accumulator):
    """Collects rows that begin with a segment, and keeps their segments apart.

    Another accumulator takes them by `add`, which gives the bits of one that has seen the rows themselves.
    """

    def __init__(self, n_params: int, order: int) -> None:
        super().__init__(n_params, order)
        self._states: list[Floats] = []

    def states(self) -> Floats:
        """High and low sums of every segment in turn.

        Returns
        -------
        ndarray, shape (2 count, size)
            The last segment may not be complete; what a device has summed is one.
        """
        if self.deferred is not None:
            return np.stack(self.deferred.collect())
        parts = self._states if self.position % SEGMENT == 0 else [*self._states, self.open]
        return np.concatenate(parts)

    def _close(self, states: Floats, _fold: Fold = add_segments) -> tuple[Floats, Floats]:
        self._states.append(states)
        return states[0], states[1]
