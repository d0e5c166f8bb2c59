"""What runs on the workers of a Dask cluster, as tasks of its scheduler or by a message to each worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlsq_nb.engines.parts import BlockRows, FileRows, Job, Span, reduce_part
from nlsq_nb.engines.placing import Part
from nlsq_nb.errors import NlsqError, SourceError
from nlsq_nb.sources.pieces import Piece

__all__ = ["Parcel", "Unreadable", "ask", "work"]

_log = logging.getLogger("nlsq_nb.engines")


class Parcel:
    """A job as Dask should carry it: it would take a dataclass to pieces, looking for collections.

    Parameters
    ----------
    job : Job
        What is asked for.
    rows : FileRows or BlockRows
        How to get at the rows.
    share : int
        Parts that a worker has at once.
    starts : tuple
        See `Part`.
    """

    __slots__ = ("job", "rows", "share", "starts")

    def __init__(
        self,
        job: Job,
        rows: FileRows | BlockRows,
        share: int,
        starts: tuple[tuple[int | tuple[int, ...], ...], ...] = (),
    ) -> None:
        self.job, self.rows, self.share, self.starts = job, rows, share, starts


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A worker that could not read its rows.

    Attributes
    ----------
    worker : str
        Its address.
    reason : str
        What it says.
    """

    worker: str
    reason: str


def work(parcel: Parcel, spans: tuple[Span, ...], *blocks: Any) -> Any:
    """The task.

    Parameters
    ----------
    parcel : Parcel
        What is asked for.
    spans : tuple of (int, int)
        The part.
    *blocks : ndarray or list of ndarray
        See `Part`.

    Returns
    -------
    list, Unreadable or NlsqError
        One result for each span, or why there is none.
    """
    from distributed import get_worker

    worker = get_worker()
    return _reduced(parcel, spans, blocks, worker.address, worker.state.nthreads)


def _reduced(
    parcel: Parcel, spans: tuple[Span, ...], blocks: Sequence[Any], address: str, n_threads: int
) -> Any:
    flat = iter(blocks)
    pieces = [[piece for first in field for piece in _pieces(first, next(flat))] for field in parcel.starts]
    try:
        return reduce_part(parcel.job, parcel.rows, spans, max(1, n_threads // parcel.share), pieces)
    except SourceError as error:
        return Unreadable(address, str(error))
    except NlsqError as error:  # an answer, not a fault of the cluster that it should log
        return error


def _pieces(first: int | tuple[int, ...], given: Any) -> list[Piece]:
    """A block, or slices of one."""
    return [(first, given)] if isinstance(first, int) else list(zip(first, given, strict=True))


Asked = Mapping[str, tuple[Parcel, tuple[Span, ...], tuple[str, ...]]]
"""For each worker what it is to do: with blocks by their keys."""


def ask(client: Any, parcels: Sequence[Parcel], parts: Sequence[Part]) -> list[list[Any]] | None:
    """A pass by one message to each worker and one back, past the scheduler: a fifth of the time that tasks take.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    parcels : sequence of Parcel
        One for each part.
    parts : sequence of Part
        Each of another worker, which holds its blocks.

    Returns
    -------
    list or None
        Results by part; None where a worker could not do its part, so that tasks have to: they go elsewhere, wait
        for blocks, and say what is wrong.
    """
    asked = {
        str(part.worker): (parcel, part.spans, tuple(block.key for block in part.blocks))
        for parcel, part in zip(parcels, parts, strict=True)
    }
    if len(asked) < len(parts):
        return None
    from distributed.protocol.pickle import loads

    try:
        # to all that are there: the scheduler tries for half a minute to speak to one that has just gone
        answers = client.run(_answer, asked, on_error="return")
    except Exception as error:  # noqa: BLE001 - of the cluster; tasks deal with it or name it
        _log.debug("a pass without tasks failed: %s", error)
        return None
    packed = [answers.get(worker) for worker in asked]
    done = [loads(found) for found in packed if isinstance(found, bytes)]
    return done if len(done) == len(parts) and all(isinstance(found, list) for found in done) else None


async def _answer(asked: Asked, dask_worker: Any) -> Any:
    """What a worker does with the message: its part, in a thread of its own, as a task would."""
    if dask_worker.address not in asked:
        return None
    parcel, spans, keys = asked[dask_worker.address]
    try:
        blocks = [dask_worker.data[key] for key in keys]
    except KeyError:  # not yet made, or moved
        return None
    given = (parcel, spans, blocks, dask_worker.address, dask_worker.state.nthreads)
    return await asyncio.get_running_loop().run_in_executor(dask_worker.executors["default"], _packed, *given)


def _packed(*given: Any) -> bytes:
    """What `_reduced` returns as one piece: Dask takes lists apart, which takes milliseconds."""
    from distributed.protocol.pickle import dumps

    return dumps(_reduced(*given))  # type: ignore[no-any-return]
