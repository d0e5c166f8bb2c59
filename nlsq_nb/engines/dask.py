"""A Dask cluster as the place where passes run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, pairwise
from typing import Any

from nlsq_nb.engines.parts import BlockRows, FileRows, Job, Span, reduce_part
from nlsq_nb.engines.spread import Cluster, Progress
from nlsq_nb.errors import BackendUnavailable, ConfigError, MissingDependency, NlsqError, SourceError, UnsupportedOption
from nlsq_nb.sources.dask_arrays import DaskArrays
from nlsq_nb.sources.dask_blocks import DaskField, Piece, require_open

__all__ = ["DaskCluster", "cluster_of"]

_PER_WORKER = 2  # tasks of a pass: each costs milliseconds, but with one the slowest worker decides
_LONG = 1 << 21  # rows per worker from which there is more than one
_HELD = 1 << 27  # bytes of blocks that a task computes, which are in memory together
_ATTEMPTS = 3  # workers that try to read a file
_PATIENCE = 60.0  # seconds that a cluster may be without workers
_PERIOD = 1.0  # seconds between looks at a pass
_log = logging.getLogger("nlsq_nb.engines")


def cluster_of(engine: Any, data: Any) -> Cluster | None:
    """Where the passes of a fit run.

    Parameters
    ----------
    engine : None, "local", "dask", distributed.Client, or Cluster
        As the user gave it. None is the active client for Dask arrays, where there is one, else this process.
    data : Any
        The source of the rows.

    Returns
    -------
    Cluster or None
        None for this process.

    Raises
    ------
    MissingDependency
        When Dask is asked for and not installed.
    BackendUnavailable
        When no client is active.
    ConfigError
        For anything else as engine.
    """
    if (isinstance(engine, str) and engine == "local") or (engine is None and not isinstance(data, DaskArrays)):
        return None
    if hasattr(engine, "reduce") and hasattr(engine, "n_workers"):
        return engine  # type: ignore[no-any-return]
    try:
        from distributed import Client
    except ImportError:
        if engine is None:
            return None
        raise MissingDependency("a Dask cluster needs distributed; pip install 'nlsq_nb[dask]'") from None
    if engine is None or (isinstance(engine, str) and engine == "dask"):
        return _active(Client, required=engine is not None)
    if not isinstance(engine, Client):
        raise ConfigError(f"engine={engine!r}; 'local', 'dask' or a distributed.Client is needed")
    if engine.asynchronous:
        raise UnsupportedOption("an asynchronous client cannot be waited for; give a plain distributed.Client")
    return DaskCluster(engine)


def _active(kind: Any, *, required: bool) -> Cluster | None:
    """The cluster of the active client."""
    try:
        return DaskCluster(kind.current())
    except ValueError:
        if not required:
            return None
        raise BackendUnavailable(
            "engine='dask', but no client is active; make a distributed.Client before, or give it as engine"
        ) from None


@dataclass(frozen=True, slots=True)
class _Part:
    """Spans of one task, and the worker that is best placed for it."""

    spans: tuple[Span, ...]
    worker: str | None = None


class _Parcel:
    """A job as Dask should carry it: it would take a dataclass to pieces, looking for collections."""

    __slots__ = ("job", "rows", "share", "starts")

    def __init__(
        self, job: Job, rows: FileRows | BlockRows, share: int, starts: tuple[tuple[int, ...], ...] = ()
    ) -> None:
        self.job, self.rows, self.share, self.starts = job, rows, share, starts


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A worker that could not read its rows."""

    worker: str
    reason: str


def _work(parcel: _Parcel, spans: tuple[Span, ...], *blocks: Any) -> Any:
    """The task; runs on a worker."""
    from distributed import get_worker

    worker = get_worker()
    threads = max(1, worker.state.nthreads // parcel.share)
    flat = iter(blocks)
    pieces: list[list[Piece]] = [[(first, next(flat)) for first in field] for field in parcel.starts]
    try:
        return reduce_part(parcel.job, parcel.rows, spans, threads, pieces)
    except SourceError as error:
        return _Unreadable(worker.address, str(error))
    except NlsqError as error:  # an answer, not a fault of the cluster that it should log
        return error


@dataclass(slots=True)
class DaskCluster:
    """Workers of a Dask cluster; see `Cluster`.

    Attributes
    ----------
    client : distributed.Client
        Speaks to its scheduler.
    """

    client: Any
    _unfit: set[str] = field(default_factory=set)
    _owners: tuple[frozenset[str], tuple[str | None, ...]] | None = None
    _delayed: list[list[Any]] | None = None

    @property
    def n_workers(self) -> int:
        """Workers that are there now."""
        return len(self._workers())

    def reduce(
        self, job: Job, rows: FileRows | BlockRows, fields: Sequence[DaskField], on_progress: Progress | None
    ) -> list[Any]:
        """One pass; see `Cluster.reduce`."""
        step = rows.reading.chunk_rows if isinstance(rows, FileRows) else rows.step
        n_chunks = -(-rows.n_rows // step)
        workers = self._workers()
        per_worker = _PER_WORKER if rows.n_rows >= _LONG * len(workers) else 1
        if isinstance(rows, FileRows):
            parts = _in_equal_parts(n_chunks, per_worker, workers)
        else:
            parts = self._at_blocks(n_chunks, step, per_worker, workers, fields)

        def submit(part: _Part, among: list[str] | None) -> Any:
            if isinstance(rows, BlockRows):
                return self._submit_blocks(_Parcel(job, rows, per_worker), part, fields, step)
            return self._submit_file(_Parcel(job, rows, per_worker), part, among)

        futures = [submit(part, None) for part in parts]
        done: list[Any] = [None] * len(parts)
        try:
            waiting = list(range(len(parts)))
            failed: dict[int, list[_Unreadable]] = {}
            while waiting:
                self._wait([futures[k] for k in waiting], rows.n_rows, on_progress)
                self._collect(waiting, futures, done, parts, step)
                waiting = [k for k in waiting if isinstance(done[k], _Unreadable)]
                for k in waiting:
                    failed.setdefault(k, []).append(done[k])
                    futures[k] = submit(parts[k], self._others(failed[k], isinstance(rows, FileRows)))
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what is told
                self.client.cancel(futures)
            raise
        spans = chain.from_iterable(part.spans for part in parts)
        found = chain.from_iterable(done)
        return [result for _, result in sorted(zip(spans, found, strict=True), key=lambda item: item[0])]

    # -- parts -------------------------------------------------------------------------------
    def _workers(self) -> list[str]:
        """Addresses of the workers; waits for the first."""
        require_open(self.client)
        found = sorted(set(self.client.nthreads()) - self._unfit)
        if not found:
            try:
                self.client.wait_for_workers(1, timeout=_PATIENCE)
            except TimeoutError:
                raise SourceError(f"the cluster has had no workers for {_PATIENCE:g} s; start some") from None
            found = sorted(set(self.client.nthreads()) - self._unfit) or sorted(self.client.nthreads())
        return found

    def _at_blocks(
        self, n_chunks: int, step: int, per_worker: int, workers: list[str], fields: Sequence[DaskField]
    ) -> list[_Part]:
        """Parts of blocks that are in the memory of one worker, or of few blocks that are yet to be computed."""
        now = frozenset(workers)
        if self._owners is None or self._owners[0] != now:
            self._owners = now, self._who_has(n_chunks, step, fields)
        owners = self._owners[1]
        if None in owners:
            size = sum(f.array.nbytes for f in fields)
            count = min(n_chunks, max(per_worker * len(workers), -(-size // _HELD)))
            return _in_equal_parts(n_chunks, count, [None])
        parts = []
        for owner in sorted({o for o in owners if o}):
            mine = [k for k in range(n_chunks) if owners[k] == owner]
            for i in range(min(per_worker, len(mine))):
                share = mine[i * len(mine) // per_worker : (i + 1) * len(mine) // per_worker]
                parts.append(_Part(tuple(_runs(share)), owner))
        return [part for part in parts if part.spans]

    def _who_has(self, n_chunks: int, step: int, fields: Sequence[DaskField]) -> tuple[str | None, ...]:
        """The worker that holds most of each chunk's longest field; None where it is not in memory."""
        from distributed import futures_of

        largest = max(fields, key=lambda f: f.array.nbytes)
        held = {future.key: future for future in futures_of(largest.array)}
        keys = _flat(largest.array.__dask_keys__())
        if any(key not in held for key in keys):
            return (None,) * n_chunks
        places = self.client.who_has([held[key] for key in keys])
        at = [next(iter(sorted(places.get(key, ()))), None) for key in keys]
        edges, owners, block = largest.edges, [], 0
        for k in range(n_chunks):
            middle = min(k * step + step // 2, edges[-1] - 1)
            while edges[block + 1] <= middle:
                block += 1
            owners.append(at[block])
        return tuple(owners)

    # -- tasks -------------------------------------------------------------------------------
    def _submit_file(self, parcel: _Parcel, part: _Part, among: list[str] | None) -> Any:
        wanted = [part.worker] if among is None else among
        return self.client.submit(
            _work, parcel, part.spans, pure=False, workers=wanted, allow_other_workers=among is None
        )

    def _submit_blocks(self, parcel: _Parcel, part: _Part, fields: Sequence[DaskField], step: int) -> Any:
        """A task with the blocks that it needs; those that are not in memory are computed for it."""
        from dask import delayed

        if self._delayed is None:
            self._delayed = [_flat(f.array.to_delayed().tolist()) for f in fields]
        starts, blocks = [], []
        for number, of in enumerate(fields):
            edges, needed = of.edges, []
            for j in range(len(edges) - 1):
                if any(lo * step < edges[j + 1] and edges[j] < hi * step for lo, hi in part.spans):
                    needed.append(edges[j])
                    blocks.append(self._delayed[number][j])
            starts.append(tuple(needed))
        parcel.starts = tuple(starts)
        task = delayed(_work, pure=False)(parcel, part.spans, *blocks)
        return self.client.compute(task, retries=parcel.job.retries)  # of blocks; what a part raises is returned

    def _wait(self, futures: list[Any], n_rows: int, on_progress: Progress | None) -> None:
        """Wait for all, and tell how far they are."""
        from distributed import wait

        begin = seen = time.perf_counter()
        while True:
            try:
                with self.client.as_current():  # `wait` asks the active client, whoever that is
                    wait(futures, timeout=_PERIOD)
            except TimeoutError:
                now = time.perf_counter()
                if self.client.nthreads():
                    seen = now
                elif now - seen > _PATIENCE:
                    raise SourceError(f"the cluster has had no workers for {_PATIENCE:g} s; start some") from None
                done = sum(future.done() for future in futures)
                if on_progress is not None and done:
                    on_progress(n_rows * done // len(futures), n_rows, now - begin)
            else:
                return

    def _collect(
        self, waiting: list[int], futures: list[Any], done: list[Any], parts: list[_Part], step: int
    ) -> None:
        """The results of these tasks; raises what the first of them in row order has raised."""
        in_order = sorted(waiting, key=lambda k: parts[k].spans)
        for k in in_order:
            # a result that was lost with its worker is being made again: exception() waits for it
            error = None if futures[k].status == "finished" else futures[k].exception()
            if error is not None:
                raise _named(error, parts[k], step)
        for k, found in zip(waiting, self.client.gather([futures[k] for k in waiting]), strict=True):
            done[k] = found
        for k in in_order:
            if isinstance(done[k], NlsqError):
                raise done[k]

    def _others(self, failed: list[_Unreadable], is_file: bool) -> list[str]:
        """Workers that may try next."""
        last = failed[-1]
        others = [w for w in self._workers() if w not in {f.worker for f in failed}]
        if not is_file or not others or len(failed) == _ATTEMPTS:
            tried = ", ".join(sorted(self._unfit.union(f.worker for f in failed)))
            raise SourceError(f"{last.reason} (tried by {tried})")
        _log.warning("%s cannot read its rows and gets none from here on: %s", last.worker, last.reason)
        self._unfit.add(last.worker)
        return others


def _named(error: BaseException, part: _Part, step: int) -> BaseException:
    """What a task has raised, with the rows where it is not one of our own messages."""
    if isinstance(error, NlsqError):
        return error
    rows = ", ".join(f"{lo * step} to {hi * step - 1}" for lo, hi in part.spans[:3])
    failure = SourceError(f"rows {rows} cannot be reduced on the cluster: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _in_equal_parts(n_chunks: int, per_worker: int, workers: Sequence[str | None]) -> list[_Part]:
    """Runs of chunks, several in turn for each worker."""
    count = min(n_chunks, per_worker * len(workers))
    edges = [i * n_chunks // count for i in range(count + 1)]
    return [
        _Part(((lo, hi),), workers[i * len(workers) // count])
        for i, (lo, hi) in enumerate(pairwise(edges))
    ]


def _runs(numbers: list[int]) -> Iterator[Span]:
    """Rising numbers as ranges."""
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        yield members[0], members[-1] + 1


def _flat(nested: Any) -> list[Any]:
    """Keys or blocks of an array, one after the other."""
    if not isinstance(nested, list):
        return [nested]
    return [item for part in nested for item in _flat(part)]
