"""Which rows of Dask blocks make up a span, and which spans a task: so that most are reduced where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nlsq_nb.core.layout import SEGMENT
from nlsq_nb.engines.parts import Span

__all__ = ["Given", "Part", "Starts", "given_to", "in_turn", "owned", "spans_of"]

Starts = tuple[tuple[int | tuple[int, ...], ...], ...]
"""Of each field the first rows of the blocks that a part has, or of slices of a block."""

_WORTH = 2  # segments of a block from which it is a span of its own


@dataclass(frozen=True, slots=True)
class Part:
    """What one task reduces.

    Attributes
    ----------
    spans : tuple of (int, int)
        Counted in steps of the rows.
    worker : str or None
        The worker that is best placed for it.
    starts, blocks : tuple
        Of rows in blocks: for each field the first rows of its blocks, or of slices of a block, and all
        of these in turn.
    """

    spans: tuple[Span, ...]
    worker: str | None = None
    starts: Starts = ()
    blocks: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """What a task needs of a block.

    Attributes
    ----------
    block : int
        Its number.
    rows : tuple of (int, int)
        The ranges of rows that it reduces, rising.
    """

    block: int
    rows: tuple[tuple[int, int], ...]

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return sum(hi - lo for lo, hi in self.rows)


def spans_of(edges: Sequence[Sequence[int]], n_rows: int, longest: int) -> list[Span]:
    """Spans that lie in one block of each field, and between them those that lie in several.

    They depend on nothing else, so that a pass has the same bits wherever each of them is reduced.

    Parameters
    ----------
    edges : sequence of sequence of int
        For each field the first row of each block, and `n_rows`.
    n_rows : int
        Rows of each field.
    longest : int
        Rows that a span may have, rounded up to whole segments.

    Returns
    -------
    list of (int, int)
        In segments; all rows, in order.
    """
    spans: list[Span] = []
    end, step = -(-n_rows // SEGMENT), -(-longest // SEGMENT)

    def add(lo: int, hi: int) -> None:
        spans.extend((at, min(at + step, hi)) for at in range(lo, hi, step))

    done = 0
    for begin, stop in pairwise(sorted(set().union(*edges))):
        first, last = -(-begin // SEGMENT), end if stop == n_rows else stop // SEGMENT
        if last - first >= _WORTH:
            add(done, first)
            add(first, last)
            done = last
    add(done, end)
    return spans


def in_turn(spans: Sequence[Span], count: int) -> list[tuple[Span, ...]]:
    """Runs of consecutive spans with about as many rows.

    Parameters
    ----------
    spans : sequence of (int, int)
        Rising.
    count : int
        Of runs, at most.

    Returns
    -------
    list of tuple of (int, int)
        None is empty.
    """
    total, done = sum(hi - lo for lo, hi in spans), 0
    runs: list[list[Span]] = [[] for _ in range(count)]
    for lo, hi in spans:
        runs[min(count - 1, (2 * done + hi - lo) * count // (2 * total))].append((lo, hi))
        done += hi - lo
    return [tuple(run) for run in runs if run]


def owned(spans: Sequence[Span], edges: Sequence[int], at: Sequence[Sequence[str]]) -> dict[str, list[Span]]:
    """The spans of each worker: those of which it has the middle.

    Parameters
    ----------
    spans : sequence of (int, int)
        In segments, rising.
    edges : sequence of int
        First row of each block of a field, and its number of rows.
    at : sequence of sequence of str
        The workers that hold each block; of several that with the fewest rows gets it.

    Returns
    -------
    dict
        By worker, sorted by name.
    """
    load: dict[str, int] = dict.fromkeys(sorted({worker for some in at for worker in some}), 0)
    owner: dict[int, str] = {}
    for block in sorted(range(len(at)), key=lambda k: len(at[k])):
        owner[block] = min(at[block], key=lambda worker: load[worker])
        load[owner[block]] += edges[block + 1] - edges[block]
    found: dict[str, list[Span]] = {worker: [] for worker in load}
    block = 0
    for lo, hi in spans:
        middle = min((lo + hi) * SEGMENT // 2, edges[-1] - 1)
        while edges[block + 1] <= middle:
            block += 1
        found[owner[block]].append((lo, hi))
    return {worker: mine for worker, mine in found.items() if mine}


def given_to(spans: Sequence[Span], edges: Sequence[int]) -> list[Given]:
    """The blocks of a field in which a task has rows.

    Parameters
    ----------
    spans : sequence of (int, int)
        In segments, rising.
    edges : sequence of int
        First row of each block of a field, and its number of rows.

    Returns
    -------
    list of Given
        By rising rows.
    """
    rows: dict[int, list[tuple[int, int]]] = {}
    block = 0
    for lo, hi in spans:
        first, last = lo * SEGMENT, min(hi * SEGMENT, edges[-1])
        while edges[block + 1] <= first:
            block += 1
        at = block
        while at < len(edges) - 1 and edges[at] < last:
            begin, end = max(first, edges[at]), min(last, edges[at + 1])
            if begin < end:
                some = rows.setdefault(at, [])
                if some and some[-1][1] == begin:
                    begin = some.pop()[0]
                some.append((begin, end))
            at += 1
    return [Given(at, tuple(some)) for at, some in sorted(rows.items())]
