"""Passes over rows that are elsewhere: parts are reduced where they are, what comes back is added here in row order."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import fold_segments
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.compensated import add_compensated
from nlsq_nb.core.layout import RESIDENT_ROWS, SEGMENT
from nlsq_nb.core.losses import LEAST_SQUARES, Loss
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.core.tsqr import EPS, Triangle, TriangleAccumulator
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.engines.parts import BlockRows, FileRows, Job
from nlsq_nb.errors import UnsupportedOption
from nlsq_nb.protocols import Backend, Source
from nlsq_nb.sources.dask_arrays import DaskArrays
from nlsq_nb.sources.dask_blocks import DaskField
from nlsq_nb.sources.hdf5 import HDF5Source
from nlsq_nb.sources.retrying import Progress, Reader, RetryingSource
from nlsq_nb.sources.rows import Reading
from nlsq_nb.sources.stream import StreamSource

__all__ = ["Cluster", "Progress", "SpreadEngine", "SpreadSource", "engine_over", "spread", "spread_rows"]

Floats = NDArray[np.float64]
_PER_PART = 4  # chunks of a part, at least: the first is not read ahead


class Cluster(Protocol):
    """Processes that hold or can read the rows; `curve_fit(…, engine=cluster)` takes one."""

    @property
    def n_workers(self) -> int:
        """How many there are now."""

    def reduce(
        self, job: Job, rows: FileRows | BlockRows, fields: Sequence[DaskField], on_progress: Progress | None
    ) -> list[Any]:
        """What `reduce_part` returns for runs of spans that make up all of `rows`, in row order.

        There are `fields` when `rows` is a `BlockRows`: their blocks make up the pieces.
        """


class SpreadSource:
    """Rows that are reduced elsewhere; what is looked at here is read as `stream` reads it.

    Parameters
    ----------
    stream : StreamSource
        The same rows, read here.
    cluster : Cluster
        Where they are reduced.
    rows : FileRows or BlockRows
        How to get at them there.
    fields : sequence of DaskField
        Their arrays; none for a file.
    retries : int
        How often a chunk is read again.

    Attributes
    ----------
    is_streamed : bool
        True: nothing as long as the data may be made of them.
    runs : callable or None
        `runs(ranges)` gathers some rows at once; None where reading them one after the other is as good.
    """

    is_streamed = True

    def __init__(
        self,
        stream: StreamSource,
        cluster: Cluster,
        rows: FileRows | BlockRows,
        fields: Sequence[DaskField] = (),
        retries: int = 0,
    ) -> None:
        self._stream = stream
        self._cluster = cluster
        self._rows = rows
        self._fields = tuple(fields)
        self._retries = retries
        self.runs: Callable[[Sequence[tuple[int, int]]], Iterator[Chunk]] | None = getattr(stream, "runs", None)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self._stream.n_rows

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass here."""
        return self._stream.n_chunks

    @property
    def dtype(self) -> np.dtype[Any]:
        """Storage dtype."""
        return self._stream.dtype

    @property
    def revision(self) -> int:
        """How often the group weights were set."""
        return self._stream.revision

    def reader(self) -> Reader:
        """A pass over all rows here."""
        return self._stream.reader()

    def chunks(self) -> Iterator[Chunk]:
        """All rows, brought here one chunk after the other."""
        return self._stream.chunks()

    def close(self) -> None:
        """Let go of what is open here."""
        self._stream.close()

    def reduce(self, job: Job, on_progress: Progress | None) -> list[Any]:
        """One pass on the cluster.

        Parameters
        ----------
        job : Job
            What is asked for; group weights and retries are filled in.
        on_progress : callable or None
            `on_progress(rows_done, n_rows, seconds)`.

        Returns
        -------
        list
            Results of spans, in row order.
        """
        self._stream.verify()
        job = replace(job, groups=self._stream.group_values, retries=self._retries)
        return self._cluster.reduce(job, self._rows, self._fields, on_progress)


def spread(data: Any, reading: Reading, cluster: Cluster) -> Source:
    """Rows to be reduced on a cluster.

    Parameters
    ----------
    data : HDF5Source or DaskArrays
        The rows; every worker must be able to open a file under its path, and so must this process.
    reading : Reading
        What the fit asks for.
    cluster : Cluster
        Where they are reduced.

    Returns
    -------
    SpreadSource or StreamSource
        Nothing has been reduced yet; few rows are read here.

    Raises
    ------
    UnsupportedOption
        For other data, and for rows to be left out.
    SourceError, DataError
        When the data cannot be read.
    """
    if not isinstance(data, (HDF5Source, DaskArrays)):
        raise UnsupportedOption(
            f"data of type {type(data).__name__} are in this process: engine= takes Dask arrays and HDF5 files"
        )
    if reading.omit:
        raise UnsupportedOption("nan_policy='omit' on a cluster: drop the rows before the fit")
    stream, fields, workers = data.open(reading), list[DaskField](), cluster.n_workers
    if stream.n_rows <= RESIDENT_ROWS:  # a pass takes less than a message
        return stream
    share = -(-stream.n_rows // (_PER_PART * max(1, workers)))
    rows: FileRows | BlockRows
    if isinstance(data, DaskArrays):
        form, columns, fields = data.layout(reading)
        rows = BlockRows(form, tuple(columns), tuple(f.row_axis for f in fields), stream.n_rows, share)
    else:
        step = -(-min(stream.step, share) // SEGMENT) * SEGMENT
        there = replace(reading, chunk_rows=step, resident="loop", group_weights=None, tell=None)
        rows = FileRows(data, there, reading.group_weights is not None, stream.n_rows, uuid.uuid4().hex)
    return SpreadSource(stream, cluster, rows, fields, reading.retries)


class SpreadEngine:
    """Passes over a `SpreadSource`; the same bits as `LocalEngine` has.

    Parameters
    ----------
    backend : str
        Name of the backend of the workers.
    program : AnyProgram
        What is reduced.
    source : RetryingSource
        Around the `SpreadSource`.
    loss : Loss
        What weighs the residuals.
    token : str, optional
        Of the program; a new one by default.

    Attributes
    ----------
    source : RetryingSource
        As given.
    """

    def __init__(
        self,
        backend: str,
        program: AnyProgram,
        source: RetryingSource,
        loss: Loss = LEAST_SQUARES,
        *,
        token: str = "",
    ) -> None:
        self._job = Job("sums", backend, token or uuid.uuid4().hex, program, source.dtype.name, loss)
        self.source = source

    def run(self, theta: Floats, order: int, labels: Sequence[str] = ()) -> NormalSums:
        """The sums over all rows, whose x are checked to be finite under these labels; see `Engine.run`."""
        into = Accumulator(self._job.program.n_params, order)
        for states, rows in self._pass("sums", theta=theta, order=order, labels=tuple(labels)):
            into.join(states, rows, fold_segments)
        return into.result()

    def matvec(self, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over all rows; see `Engine.matvec`."""
        high, low = np.zeros(len(v)), np.zeros(len(v))
        for parts in self._pass("product", theta=theta, v=v):
            for part in parts:
                high, low = add_compensated(high, low, part)
        return high + low

    def triangle(self, theta: Floats, extra: Floats | None = None) -> Triangle:
        """R of √W [J | r] over all rows; see `Engine.triangle`."""
        program = self._job.program
        into = TriangleAccumulator(program.n_params, getattr(program, "rounding", EPS))
        for merged in self._pass("triangle", theta=theta):
            into.join(merged)
        return into.result(extra)

    def weight(self) -> float:
        """Σ w over the residuals; see `total_weight`."""
        total = 0.0
        for parts in self._pass("weight"):
            for part in parts:
                total += part
        return total

    def resident(self) -> None:
        """The rows are not here; see `Engine.resident`."""

    def under(self, loss: Loss) -> SpreadEngine:
        """The engine over the same rows with another loss; see `Engine.under`."""
        job = self._job
        return SpreadEngine(job.backend, job.program, self.source, loss, token=job.token)

    def _pass(self, what: str, **rest: Any) -> list[Any]:
        rows = spread_rows(self.source)
        assert rows is not None
        return rows.reduce(replace(self._job, what=what, **rest), self.source.on_progress)


def spread_rows(source: Source) -> SpreadSource | None:
    """The source on a cluster that a fit reads.

    Parameters
    ----------
    source : Source
        As a fit has it, behind a `RetryingSource`.

    Returns
    -------
    SpreadSource or None
        None where the rows are read here.
    """
    inner = getattr(source, "inner", None)
    return inner if isinstance(inner, SpreadSource) else None


def engine_over(backend: Backend, program: AnyProgram, source: Source) -> LocalEngine | SpreadEngine:
    """What runs the passes over a source.

    Parameters
    ----------
    backend : Backend
        Where chunks are reduced here, and by its name there.
    program : AnyProgram
        What is reduced.
    source : Source
        The rows.

    Returns
    -------
    LocalEngine or SpreadEngine
        The second for rows on a cluster.
    """
    if isinstance(source, RetryingSource) and spread_rows(source) is not None:
        return SpreadEngine(backend.name, program, source)
    return LocalEngine(backend, backend.compile(program, source.dtype), source)

