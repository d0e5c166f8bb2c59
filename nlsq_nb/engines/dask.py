"""A Dask cluster as the place where passes run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np

from nlsq_nb.engines.lines import ask
from nlsq_nb.engines.parts import BlockRows, FileRows, Job, Span, runs_of
from nlsq_nb.engines.placing import Given, Part, given_to, in_turn, owned, spans_of
from nlsq_nb.engines.spread import Cluster, Progress
from nlsq_nb.engines.tasks import Parcel, Unreadable, work
from nlsq_nb.errors import BackendUnavailable, ConfigError, MissingDependency, NlsqError, SourceError, UnsupportedOption
from nlsq_nb.sources.dask_arrays import DaskArrays
from nlsq_nb.sources.dask_blocks import DaskField, require_open

__all__ = ["DaskCluster", "cluster_of"]

_PER_WORKER = 2  # tasks of a long pass, which tell how far it is; each costs milliseconds
_LONG = 1 << 26  # rows per worker from which a pass is long
_HELD = 1 << 27  # bytes of blocks that a task computes, which are in memory together
_ATTEMPTS = 3  # workers that try to read a file
_PATIENCE = 60.0  # seconds that a cluster may be without workers
_PERIOD = 1.0  # seconds between looks at a pass
_FRESH = 1.0  # seconds for which the workers are taken to be those that were there
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


def _in_order(parts: Sequence[Part], done: Sequence[list[Any]]) -> list[Any]:
    """Results of all runs of spans, by rows."""
    runs = chain.from_iterable(runs_of(part.spans) for part in parts)
    found = chain.from_iterable(done)
    return [result for _, result in sorted(zip(runs, found, strict=True), key=lambda item: item[0][0])]


def _slices(block: Any, rows: Sequence[tuple[int, int]], row_axis: int) -> list[Any]:
    """Copies of some rows of a block, counted in it; runs where the block is."""
    return [np.array(block[lo:hi] if row_axis == 0 else block[:, lo:hi]) for lo, hi in rows]


def _kept(cut: list[Any]) -> list[Any]:
    """The same: a task's result is where it was asked for and stays there, a copy of another's does not."""
    return cut


@dataclass(frozen=True, slots=True)
class _Placed:
    """The parts of fields that are in memory, while the workers are the same."""

    fields: Sequence[DaskField]
    workers: frozenset[str]
    parts: list[Part]


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
    _seen: tuple[float, list[str]] | None = None
    _failures: int = 0  # passes in turn that messages could not do: rows or blocks that tasks bring come with the first
    _placed: _Placed | None = None
    _delayed: tuple[Sequence[DaskField], list[list[Any]]] | None = None

    @property
    def n_workers(self) -> int:
        """Workers that are there now."""
        return len(self._workers())

    def reduce(
        self, job: Job, rows: FileRows | BlockRows, fields: Sequence[DaskField], on_progress: Progress | None
    ) -> list[Any]:
        """One pass; see `Cluster.reduce`."""
        workers = self._workers()
        per_worker = _PER_WORKER if rows.n_rows >= _LONG * len(workers) else 1
        if isinstance(rows, FileRows):
            parts = _in_equal_parts(-(-rows.n_rows // rows.step), per_worker, workers)
        else:
            parts = self._at_blocks(rows, per_worker, workers, fields)

        def submit(part: Part, among: list[str] | None) -> Any:
            parcel = Parcel(job, rows, per_worker, part.starts)
            if isinstance(rows, BlockRows) and part.worker is None:
                return self._submit_computed(parcel, part)
            wanted = [part.worker] if among is None else among
            return self.client.submit(
                work,
                parcel,
                part.spans,
                *part.blocks,
                pure=False,
                workers=wanted,
                allow_other_workers=among is None,
                retries=job.retries if part.blocks else 0,  # of blocks; what a part raises is returned
            )

        if per_worker == 1 and self._failures < _ATTEMPTS - 1 and all(part.worker is not None for part in parts):
            found = ask(self.client, [Parcel(job, rows, 1, part.starts) for part in parts], parts)
            self._failures = 0 if found is not None else self._failures + 1
            if found is not None:
                return _in_order(parts, found)
            self._seen = None
        futures = [submit(part, None) for part in parts]
        done: list[Any] = [None] * len(parts)
        try:
            waiting = list(range(len(parts)))
            failed: dict[int, list[Unreadable]] = {}
            while waiting:
                self._wait([futures[k] for k in waiting], rows.n_rows, on_progress)
                self._collect(waiting, futures, done, parts, rows.step)
                waiting = [k for k in waiting if isinstance(done[k], Unreadable)]
                for k in waiting:
                    failed.setdefault(k, []).append(done[k])
                    futures[k] = submit(parts[k], self._others(failed[k], isinstance(rows, FileRows)))
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what is told
                self.client.cancel(futures)
            raise
        return _in_order(parts, done)

    # -- parts -------------------------------------------------------------------------------
    def _workers(self) -> list[str]:
        """Addresses of the workers; waits for the first."""
        require_open(self.client)
        seen, self._seen = self._seen, None
        if seen is not None and time.monotonic() - seen[0] < _FRESH:
            self._seen = seen
            return seen[1]
        found = sorted(set(self.client.nthreads()) - self._unfit)
        if not found:
            try:
                self.client.wait_for_workers(1, timeout=_PATIENCE)
            except TimeoutError:
                raise SourceError(f"the cluster has had no workers for {_PATIENCE:g} s; start some") from None
            found = sorted(set(self.client.nthreads()) - self._unfit) or sorted(self.client.nthreads())
        self._seen = time.monotonic(), found
        return found

    def _at_blocks(
        self, rows: BlockRows, per_worker: int, workers: list[str], fields: Sequence[DaskField]
    ) -> list[Part]:
        """Parts of blocks that are in the memory of one worker, or of few blocks that are yet to be computed."""
        now, placed = frozenset(workers), self._placed
        if placed is not None and placed.fields is fields and placed.workers == now:
            return placed.parts
        edges = [of.edges for of in fields]
        spans = spans_of(edges, rows.n_rows, rows.longest)
        held = self._held(fields)
        if held is not None:
            parts = self._parts_of_held(spans, per_worker, fields, held)
            lasting = all(len(at) == 1 for _, at in chain.from_iterable(held))  # copies, the scheduler deletes
            self._placed = _Placed(fields, now, parts) if lasting else None
            return parts
        size = sum(f.array.nbytes for f in fields)
        count = min(len(spans), max(per_worker * len(workers), -(-size // _HELD)))
        return [self._part_of_computed(run, fields, edges) for run in in_turn(spans, count)]

    def _held(self, fields: Sequence[DaskField]) -> list[list[tuple[Any, tuple[str, ...]]]] | None:
        """The blocks of each field and which workers hold them; None where one is not in memory."""
        from distributed import Future, futures_of

        found = []
        for of in fields:
            known = {future.key: future for future in futures_of(of.array)}
            keys = _flat(of.array.__dask_keys__())
            if any(key not in known for key in keys):
                return None
            mine = (known[key] for key in keys)
            found.append([f if f.client is self.client else Future(f.key, self.client) for f in mine])
        places = self.client.who_has(list(chain.from_iterable(found)))
        if any(not places.get(future.key) for future in chain.from_iterable(found)):
            return None
        return [[(future, tuple(sorted(places[future.key]))) for future in some] for some in found]

    def _parts_of_held(
        self,
        spans: Sequence[Span],
        per_worker: int,
        fields: Sequence[DaskField],
        held: Sequence[Sequence[tuple[Any, tuple[str, ...]]]],
    ) -> list[Part]:
        """Each worker's blocks, and of those of others copies of the few rows that it needs, made once."""
        leading = max(range(len(fields)), key=lambda number: fields[number].array.nbytes)
        of_worker = owned(spans, fields[leading].edges, [at for _, at in held[leading]])
        parts = []
        for worker, mine in of_worker.items():
            for run in in_turn(mine, per_worker):
                starts, blocks = [], []
                for of, some in zip(fields, held, strict=True):
                    given = given_to(run, of.edges)
                    pairs = [self._piece(of, g, *some[g.block], worker) for g in given]
                    starts.append(tuple(first for first, _ in pairs))
                    blocks += [block for _, block in pairs]
                parts.append(Part(run, worker, tuple(starts), tuple(blocks)))
        return parts

    def _piece(
        self, of: DaskField, given: Given, block: Any, at: Sequence[str], worker: str
    ) -> tuple[int | tuple[int, ...], Any]:
        """A block, or what is needed of one that another worker holds."""
        begin, end = of.edges[given.block : given.block + 2]
        if worker in at or 2 * given.n_rows > end - begin:
            return begin, block
        rows = [(lo - begin, hi - begin) for lo, hi in given.rows]
        cut = self.client.submit(_slices, block, rows, of.row_axis, pure=False)
        kept = self.client.submit(_kept, cut, pure=False, workers=[worker], allow_other_workers=True)
        return tuple(lo for lo, _ in given.rows), kept

    def _part_of_computed(
        self, run: tuple[Span, ...], fields: Sequence[DaskField], edges: Sequence[Sequence[int]]
    ) -> Part:
        """A part with the blocks that are computed for it."""
        if self._delayed is None or self._delayed[0] is not fields:
            self._delayed = fields, [_flat(f.array.to_delayed().tolist()) for f in fields]
        numbers = [[g.block for g in given_to(run, some)] for some in edges]
        starts = tuple(tuple(some[k] for k in needed) for some, needed in zip(edges, numbers, strict=True))
        blocks = [f[k] for f, needed in zip(self._delayed[1], numbers, strict=True) for k in needed]
        return Part(run, None, starts, tuple(blocks))

    # -- tasks -------------------------------------------------------------------------------
    def _submit_computed(self, parcel: Parcel, part: Part) -> Any:
        """A task with blocks that are computed for it."""
        from dask import delayed

        task = delayed(work, pure=False)(parcel, part.spans, *part.blocks)
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
        self, waiting: list[int], futures: list[Any], done: list[Any], parts: list[Part], step: int
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

    def _others(self, failed: list[Unreadable], is_file: bool) -> list[str]:
        """Workers that may try next."""
        last = failed[-1]
        others = [w for w in self._workers() if w not in {f.worker for f in failed}]
        if not is_file or not others or len(failed) == _ATTEMPTS:
            tried = ", ".join(sorted(self._unfit.union(f.worker for f in failed)))
            raise SourceError(f"{last.reason} (tried by {tried})")
        _log.warning("%s cannot read its rows and gets none from here on: %s", last.worker, last.reason)
        self._unfit.add(last.worker)
        self._seen = None
        return others


def _named(error: BaseException, part: Part, step: int) -> BaseException:
    """What a task has raised, with the rows where it is not one of our own messages."""
    if isinstance(error, NlsqError):
        return error
    ends = [(run[0][0], run[-1][1]) for run in runs_of(part.spans)]
    rows = ", ".join(f"{lo * step} to {hi * step - 1}" for lo, hi in ends[:3])
    failure = SourceError(f"rows {rows} cannot be reduced on the cluster: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _in_equal_parts(n_chunks: int, per_worker: int, workers: Sequence[str]) -> list[Part]:
    """Runs of chunks, several in turn for each worker."""
    count = min(n_chunks, per_worker * len(workers))
    edges = [i * n_chunks // count for i in range(count + 1)]
    return [
        Part(((lo, hi),), workers[i * len(workers) // count])
        for i, (lo, hi) in enumerate(pairwise(edges))
    ]


def _flat(nested: Any) -> list[Any]:
    """Keys or blocks of an array, one after the other."""
    if not isinstance(nested, list):
        return [nested]
    return [item for part in nested for item in _flat(part)]
