"""Compensated summation in the order of the grid: blocks within a segment, segments within a section, then sections.

A sum is kept as high + low (two-sum, Knuth, TAOCP vol. 2, §4.2.2), so its error does not grow with the number of
parts. Sections are there for what is summed elsewhere: of a section whose segments all lie there, one sum comes back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.layout import SECTION, SEGMENT

__all__ = [
    "PER_SECTION", "add_compensated", "add_in_sections", "add_segments", "section_sums", "sections_in", "total_of",
]

Floats = NDArray[np.float64]

PER_SECTION = SECTION // SEGMENT
"""Segments of a section."""


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


def add_segments(states: Floats) -> Floats:
    """Add sums of segments, or of sections, one after the other: many steps of compensated summation at once.

    Parameters
    ----------
    states : ndarray, shape (…, k, 2, size)
        High and low sums of k segments in turn; k ≥ 1.

    Returns
    -------
    ndarray, shape (…, 2, size)
        Their sum, with the bits of single steps: `accumulate` adds strictly in order.
    """
    highs, lows = states[..., 0, :], states[..., 1, :]
    with np.errstate(invalid="ignore", over="ignore"):
        running = np.add.accumulate(highs, axis=-2)
        before, after, value = running[..., :-1, :], running[..., 1:, :], highs[..., 1:, :]
        part = after - before
        steps = np.empty((*states.shape[:-3], 2 * states.shape[-3] - 1, states.shape[-1]))
        steps[..., 0, :] = lows[..., 0, :]
        steps[..., 1::2, :] = (before - (after - part)) + (value - part)
        steps[..., 2::2, :] = lows[..., 1:, :]
        return np.stack([running[..., -1, :], np.add.accumulate(steps, axis=-2)[..., -1, :]], axis=-2)


def add_in_sections(running: Floats, first: int, states: Floats) -> None:
    """Add the sums of segments to those of what came before, in order: to a section, and sections to the total.

    Parameters
    ----------
    running : ndarray, shape (4, size)
        High and low sums of the section that is not complete yet, and of all sections before it. Changed in place.
    first : int
        How many segments came before; without any, `running` may hold anything.
    states : ndarray, shape (2k, size)
        High and low sums of k segments in turn.
    """
    pairs = states.reshape(-1, 2, states.shape[-1])
    while len(pairs):
        inside = first % PER_SECTION
        some, pairs = pairs[: PER_SECTION - inside], pairs[PER_SECTION - inside :]
        # not zeros plus the first, which would lose the sign of a zero
        running[:2] = add_segments(some if inside == 0 else np.concatenate([running[np.newaxis, :2], some]))
        first += len(some)
        if first % PER_SECTION == 0:
            running[2:] = _with_open_section(running, first)


def _with_open_section(running: Floats, count: int) -> Floats:
    return running[:2] if count <= PER_SECTION else add_segments(running.reshape(2, 2, -1)[::-1])


def total_of(running: Floats, count: int) -> Floats:
    """The sum of everything.

    Parameters
    ----------
    running : ndarray, shape (4, size)
        See `add_in_sections`; zeros where `count` is 0.
    count : int
        How many segments there were.

    Returns
    -------
    ndarray, shape (2, size)
        High and low sums, which later segments do not change.
    """
    return _with_open_section(running, count).copy() if count % PER_SECTION else running[2:].copy()


def sections_in(first: int, rows: int) -> tuple[int, int, int]:
    """Which of some segments make up whole sections.

    Parameters
    ----------
    first : int
        How many segments came before.
    rows : int
        Rows of them; the last may not be complete.

    Returns
    -------
    tuple of int
        The segments before the first whole section, the whole sections, and the segments behind.
    """
    count, complete = -(-rows // SEGMENT), rows // SEGMENT
    head = min(count, -first % PER_SECTION)
    whole = max(0, complete - head) // PER_SECTION
    return head, whole, count - head - whole * PER_SECTION


def section_sums(states: Floats, first: int, rows: int) -> Floats:
    """The sums of segments, and of whole sections in place of those of their segments.

    Parameters
    ----------
    states : ndarray, shape (2k, size)
        High and low sums of k segments in turn.
    first : int
        How many segments came before.
    rows : int
        Rows of them.

    Returns
    -------
    ndarray, shape (2 sum(sections_in(first, rows)), size)
        High and low sums in turn.
    """
    head, whole, tail = sections_in(first, rows)
    if not whole:
        return states
    size = states.shape[1]
    inner = states[2 * head : len(states) - 2 * tail].reshape(whole, PER_SECTION, 2, size)
    return np.concatenate([states[: 2 * head], add_segments(inner).reshape(-1, size), states[len(states) - 2 * tail :]])
