"""What runs on the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from nlsq_nb.engines.parts import BlockRows, FileRows, Job, OpenPart, PartRows, Span
from nlsq_nb.engines.placing import Starts
from nlsq_nb.errors import NlsqError, SourceError
from nlsq_nb.sources.pieces import Piece

__all__ = ["Parcel", "Unreadable", "opened", "outcome", "work"]


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
        starts: Starts = (),
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
    with closing(opened(parcel.rows, parcel.share, parcel.starts, spans, blocks, worker.state.nthreads)) as part:
        return outcome(part, parcel.job, worker.address)


def opened(
    rows: PartRows, share: int, starts: Starts, spans: tuple[Span, ...], blocks: Sequence[Any], n_threads: int
) -> OpenPart:
    """A part with its blocks.

    Parameters
    ----------
    rows, share, starts
        See `Parcel`.
    spans : tuple of (int, int)
        The part.
    blocks : sequence of ndarray or list of ndarray
        See `Part`.
    n_threads : int
        Of the worker.

    Returns
    -------
    OpenPart
        Nothing has been read.
    """
    flat = iter(blocks)
    pieces = [[piece for first in field for piece in _pieces(first, next(flat))] for field in starts]
    return OpenPart(rows, spans, max(1, n_threads // share), pieces)


def outcome(part: OpenPart, job: Job, address: str) -> list[Any] | Unreadable | NlsqError:
    """What comes of a part.

    Parameters
    ----------
    part : OpenPart
        The part.
    job : Job
        What is asked for.
    address : str
        Of the worker.

    Returns
    -------
    list, Unreadable or NlsqError
        See `work`.
    """
    try:
        return part.reduce(job)
    except SourceError as error:
        return Unreadable(address, str(error))
    except NlsqError as error:  # an answer, not a fault of the cluster that it should log
        return error


def _pieces(first: int | tuple[int, ...], given: Any) -> list[Piece]:
    """A block, or slices of one."""
    return [(first, given)] if isinstance(first, int) else list(zip(first, given, strict=True))
