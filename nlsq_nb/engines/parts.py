"""What a worker of a cluster does in one pass: its part of the rows, reduced with the bits of a pass on one machine.

Nothing here knows Dask: MPI, or anything else that calls a function elsewhere, may do the same.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends import get_backend
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.columns import require_finite_column
from nlsq_nb.core.layout import BLOCK, SEGMENT
from nlsq_nb.core.losses import Loss
from nlsq_nb.core.sums import SegmentStates
from nlsq_nb.core.tsqr import TriangleAccumulator
from nlsq_nb.errors import SourceError
from nlsq_nb.protocols import Backend, Kernel
from nlsq_nb.sources.ahead import Column
from nlsq_nb.sources.hdf5 import HDF5Source
from nlsq_nb.sources.hdf5_file import changed, state_of
from nlsq_nb.sources.pieces import Piece, PiecesSource
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.rows import Reading, RowFormat
from nlsq_nb.sources.weights import GroupWeights, weight_parts

__all__ = ["BlockRows", "FileRows", "Job", "OpenPart", "PartRows", "Span", "reduce_part", "runs_of"]

Floats = NDArray[np.float64]
Span = tuple[int, int]
"""First of consecutive steps, and one past the last."""

_KNOWN = 64  # programs, and files of fits, that a process remembers
_PROGRAMS: OrderedDict[str, AnyProgram] = OrderedDict()
_STATES: OrderedDict[str, tuple[int, ...]] = OrderedDict()
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of every part in a pass.

    Attributes
    ----------
    what : {"sums", "product", "triangle", "weight"}
        Which result.
    backend : str
        Name of the backend.
    token : str
        Stands for the program: who has seen it takes the kernel that was made of it.
    program : AnyProgram
        The model as instructions; its kernel is compiled where it runs, or read from the cache there.
    dtype : str
        Storage dtype.
    loss : Loss
        What weighs the residuals.
    theta : ndarray, shape (p,)
        Where.
    order : int
        Of "sums".
    v : ndarray or None
        Vector of a "product".
    labels : tuple of str
        Names of the columns of x that are checked to be finite; none are without them.
    groups : ndarray or None
        Weights of the groups.
    retries : int
        How often a chunk is read again.
    """

    what: str
    backend: str
    token: str
    program: AnyProgram
    dtype: str
    loss: Loss
    theta: Floats = field(default_factory=lambda: np.zeros(0))
    order: int = 2
    v: Floats | None = None
    labels: tuple[str, ...] = ()
    groups: Floats | None = None
    retries: int = 0


class _Opened(Protocol):
    """Rows of a part."""

    def chunks(self, first: int, stop: int) -> Iterator[Chunk]:
        """Those of a span."""

    def close(self) -> None:
        """Let go of what is open."""


class PartRows(Protocol):
    """How a worker gets at its rows."""

    @property
    def lasts(self) -> bool:
        """Whether what was opened in one pass is good for the next."""

    @property
    def step(self) -> int:
        """Rows of what spans count, whole segments."""

    def open(self, groups: Floats | None, pieces: Sequence[list[Piece]], retries: int) -> _Opened:
        """The rows, of which at least those of the part can be read."""


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of a file that every worker can open.

    Attributes
    ----------
    file : HDF5Source
        The file.
    reading : Reading
        What the fit asks for, without group weights.
    grouped : bool
        Whether there are some.
    n_rows : int
        Rows that it has where the fit was begun.
    fit : str
        Stands for the fit, in which the file must stay what it is.
    """

    file: HDF5Source
    reading: Reading
    grouped: bool
    n_rows: int
    fit: str

    @property
    def lasts(self) -> bool:
        """No: others may write to the file, or put another in its place; see `PartRows.lasts`."""
        return False

    @property
    def step(self) -> int:
        """Rows of a chunk; see `PartRows.step`."""
        return self.reading.chunk_rows

    def open(
        self, groups: Floats | None, pieces: Sequence[list[Piece]], retries: int  # noqa: ARG002 - protocol
    ) -> RetryingSource:
        """Open the file anew; see `PartRows.open`."""
        self._require_same()
        weights = GroupWeights(groups) if self.grouped else None
        found = self.file.open(replace(self.reading, group_weights=weights))
        if found.n_rows != self.n_rows:
            found.close()
            raise SourceError(f"{self.file.path} has {found.n_rows} rows there and {self.n_rows} here")
        return RetryingSource(found, retries=retries)

    def _require_same(self) -> None:
        """See that the file is the one that was first opened here for this fit: by its path it may be another."""
        try:
            state = state_of(str(self.file.path))
        except OSError:
            return  # which opening it says better
        with _LOCK:
            seen = _STATES.setdefault(self.fit, state)
            if len(_STATES) > _KNOWN:
                _STATES.popitem(last=False)
        if seen != state:
            raise changed(str(self.file.path))


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Rows in blocks that come with the task.

    Attributes
    ----------
    form : RowFormat
        What the columns are.
    columns : tuple of (int, int or None)
        In which field each is, and which column of that.
    row_axes : tuple of int
        Which axis of each field counts rows.
    n_rows : int
        Rows of all blocks.
    longest : int
        Rows of the longest span.
    """

    form: RowFormat
    columns: tuple[Column, ...]
    row_axes: tuple[int, ...]
    n_rows: int
    longest: int

    @property
    def lasts(self) -> bool:
        """Yes: a block stays what it is; see `PartRows.lasts`."""
        return True

    @property
    def step(self) -> int:
        """Rows of a segment; see `PartRows.step`."""
        return SEGMENT

    def open(
        self, groups: Floats | None, pieces: Sequence[list[Piece]], retries: int  # noqa: ARG002 - nothing is read
    ) -> PiecesSource:
        """The blocks as they are; see `PartRows.open`."""
        return PiecesSource(self.n_rows, pieces, self.row_axes, self.columns, self.form, groups)


class OpenPart:
    """Rows of a part that stay open from pass to pass, so that a pass costs little besides its work.

    Parameters
    ----------
    rows : PartRows
        How to get at the rows.
    spans : sequence of (int, int)
        The part, counted in steps of the rows.
    n_threads : int
        Threads of the backend.
    pieces : sequence of list of (int, ndarray)
        Blocks, for `BlockRows`.
    """

    def __init__(
        self, rows: PartRows, spans: Sequence[Span], n_threads: int, pieces: Sequence[list[Piece]] = ()
    ) -> None:
        self._rows, self._runs, self._n_threads, self._pieces = rows, runs_of(spans), n_threads, pieces
        self._source: _Opened | None = None

    def reduce(self, job: Job) -> list[Any]:
        """One pass; see `reduce_part`."""
        backend = get_backend(job.backend, self._n_threads)
        try:
            with np.errstate(all="ignore"):
                source = self._opened(job)
                kernel = backend.compile(_known(job), np.dtype(job.dtype), job.loss)
                step, reduced = self._rows.step, _REDUCED[job.what]
                return [
                    reduced(job, backend, kernel, _ready(job, backend, source, run), run[0][0] * step)
                    for run in self._runs
                ]
        except BaseException:
            self.close()
            raise
        finally:
            if not self._rows.lasts:
                self.close()
            backend.release()

    def _opened(self, job: Job) -> _Opened:
        if self._source is None or job.groups is not None:  # groups are others in every pass
            self.close()
            self._source = self._rows.open(job.groups, self._pieces, job.retries)
        return self._source

    def close(self) -> None:
        """Let go of what is open; the next pass opens it again."""
        source, self._source = self._source, None
        if source is not None:
            source.close()


def runs_of(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans that follow each other.

    Parameters
    ----------
    spans : sequence of (int, int)
        Rising.

    Returns
    -------
    list of list of (int, int)
        The spans in turn; one result comes of each list.
    """
    runs: list[list[Span]] = []
    for span in spans:
        if runs and runs[-1][-1][1] == span[0]:
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


def reduce_part(
    job: Job, rows: PartRows, spans: Sequence[Span], n_threads: int, pieces: Sequence[list[Piece]] = ()
) -> list[Any]:
    """Reduce some rows.

    Parameters
    ----------
    job : Job
        What is asked for.
    rows, spans, n_threads, pieces
        See `OpenPart`.

    Returns
    -------
    list
        One result for each run of spans that follow each other: sums of segments and groups and the number
        of rows, vectors per chunk, merged triangles, or terms of the weight.

    Raises
    ------
    SourceError
        When rows cannot be read.
    DataError
        For values that are not finite, where they are checked.
    """
    with closing(OpenPart(rows, spans, n_threads, pieces)) as part:
        return part.reduce(job)


def _known(job: Job) -> AnyProgram:
    """The program, one object for all passes: kernels of Python functions are known by these."""
    with _LOCK:
        program = _PROGRAMS.setdefault(job.token, job.program)
        _PROGRAMS.move_to_end(job.token)
        if len(_PROGRAMS) > _KNOWN:
            _PROGRAMS.popitem(last=False)
    return program


def _ready(job: Job, backend: Backend, source: _Opened, run: Sequence[Span]) -> Iterator[Chunk]:
    for chunk in chain.from_iterable(source.chunks(*span) for span in run):
        for label, column in zip(job.labels, chunk.x, strict=bool(job.labels)):
            require_finite_column(label, column, chunk.start)
        yield backend.put(chunk, np.dtype(job.dtype))


def _sums(job: Job, backend: Backend, kernel: Kernel, chunks: Iterator[Chunk], first: int) -> tuple[Floats, int]:
    into = SegmentStates(job.program.n_params, job.order, first // SEGMENT)
    for chunk in chunks:
        backend.reduce(kernel, chunk, job.theta, job.order, into)
    return into.states(), into.position


def _product(job: Job, backend: Backend, kernel: Kernel, chunks: Iterator[Chunk], _: int) -> list[Floats]:
    assert job.v is not None
    return [backend.matvec(kernel, chunk, job.theta, job.v) for chunk in chunks]


def _triangle(
    job: Job, backend: Backend, kernel: Kernel, chunks: Iterator[Chunk], first: int
) -> list[tuple[int, Floats]]:
    into = TriangleAccumulator(job.program.n_params, first=first // BLOCK)
    for chunk in chunks:
        backend.triangularize(kernel, chunk, job.theta, into)
    return into.merged


def _weight(job: Job, backend: Backend, kernel: Kernel, chunks: Iterator[Chunk], _: int) -> list[float]:  # noqa: ARG001
    return [part for chunk in chunks for part in weight_parts(chunk)]


_REDUCED: dict[str, Callable[[Job, Backend, Kernel, Iterator[Chunk], int], Any]] = {
    "sums": _sums,
    "product": _product,
    "triangle": _triangle,
    "weight": _weight,
}
