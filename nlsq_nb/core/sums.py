"""`NormalSums`: cost, gradient and JᵀWJ of some rows, as one compensated monoid.

Every partial result (a segment of blocks, a device, a worker, a penalty) is a `NormalSums`, and
`+` is the only way they meet. Bits depend on the order of addition only, which is fixed by the grid: see
`compensated`.
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

from nlsq_nb.core.compensated import (
    PER_SECTION,
    add_compensated,
    add_in_sections,
    add_segments,
    section_sums,
    sections_in,
    total_of,
)
from nlsq_nb.core.layout import SEGMENT, sums_size

__all__ = ["Accumulator", "Deferred", "NormalSums", "SegmentStates", "square"]

Floats = NDArray[np.float64]
Fold = Callable[[Floats, int, Floats], None]
_FEW = 64  # numbers up to which Python is faster than NumPy


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
        self._closed = 0  # segments
        self.position = 0
        self.deferred: Any = None
        self.open = np.zeros((2, sums_size(n_params, order)))
        self._running = np.zeros((4, self.open.shape[1]))

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

    def add(self, state: Floats, rows: int, fold: Fold = add_in_sections) -> None:
        """Take the next pieces, in row order.

        Parameters
        ----------
        state : ndarray, shape (2 count, size)
            What `new_state` gave, folded by the backend.
        rows : int
            Rows of the pieces.
        fold : callable
            What adds them up: `add_in_sections`, or what gives the same bits.
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

    def join(self, states: Floats, rows: int, fold: Fold = add_in_sections) -> None:
        """Take the next rows as another has summed them.

        Parameters
        ----------
        states : ndarray, shape (2 count, size)
            What its `SegmentStates` have.
        rows : int
            How many.
        fold : callable
            See `add`.
        """
        first = self.position // SEGMENT
        head, whole, tail = sections_in(first, rows)
        if whole == 0 or len(states) != 2 * (head + whole + tail) or self._closed != first:  # as of a device: one sum
            self.add(states, rows, fold)
            return
        inner, last = states[2 * head : 2 * (head + whole)], states[2 * (head + whole) :]
        self.add(states[: 2 * head], head * SEGMENT, fold)
        self._close_sections(inner)
        self.position += whole * PER_SECTION * SEGMENT
        if tail:
            self.add(last, rows - (head + whole * PER_SECTION) * SEGMENT, fold)

    def result(self) -> NormalSums:
        """The sums of everything taken."""
        if self.deferred is not None:
            high, low = self.deferred.collect()
            self.deferred = None
            self.open[0], self.open[1] = add_compensated(self.open[0], self.open[1], high)
            with np.errstate(invalid="ignore"):  # inf - inf, where high is infinite
                self.open[1] += low
            self._close(self.open)
        elif self.position % SEGMENT:
            self._close(self.open)
        self.open = np.zeros(self.open.shape)
        return NormalSums(self.position, *self._shape, *total_of(self._running, self._closed))

    def _close(self, states: Floats, fold: Fold = add_in_sections) -> None:
        fold(self._running, self._closed, states)
        self._closed += len(states) // 2

    def _close_sections(self, sums: Floats) -> None:
        """Take whole sections; none is open."""
        before, self._closed = self._closed, self._closed + len(sums) // 2 * PER_SECTION
        if before:
            sums = np.concatenate([self._running[2:], sums])
        self._running[2:] = add_segments(sums.reshape(-1, 2, sums.shape[1]))


class SegmentStates(Accumulator):
    """Collects rows that begin with a segment, and keeps their segments apart.

    Another accumulator takes them by `join`, which gives the bits of one that has seen the rows themselves.

    Parameters
    ----------
    n_params, order : int
        See `Accumulator`.
    first : int
        How many segments of others come before.
    """

    def __init__(self, n_params: int, order: int, first: int = 0) -> None:
        super().__init__(n_params, order)
        self._states: list[Floats] = []
        self._first = first

    def states(self) -> Floats:
        """High and low sums of every segment in turn, or of whole sections of them.

        Returns
        -------
        ndarray, shape (2 count, size)
            See `section_sums`; the last segment may not be complete. What a device has summed is one.
        """
        if self.deferred is not None:
            return np.stack(self.deferred.collect())
        parts = self._states if self.position % SEGMENT == 0 else [*self._states, self.open]
        return section_sums(np.concatenate(parts), self._first, self.position)

    def _close(self, states: Floats, _fold: Fold = add_in_sections) -> None:
        self._states.append(states)
