"""The seams between rooms, as types; no code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Chunk, Resident
from nlsq_nb.core.losses import LEAST_SQUARES, Loss
from nlsq_nb.core.profile import Held
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.core.tsqr import Triangle, TriangleAccumulator
from nlsq_nb.events import Event

__all__ = ["Backend", "Engine", "Kernel", "Objective", "Observer", "Phase", "Refit", "Source"]

Floats = NDArray[np.float64]
S = TypeVar("S")
Observer = Callable[[Event], None]
"""Receives every event of a fit."""


class Kernel(Protocol):
    """A program compiled for one backend and one storage dtype."""

    @property
    def program(self) -> AnyProgram:
        """What was compiled."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Storage dtype of the columns it reads."""


class Backend(Protocol):
    """Where blocks of rows are reduced to sums."""

    @property
    def name(self) -> str:
        """Short name, as in `get_backend`."""

    def compile(self, program: AnyProgram, dtype: Any, loss: Loss = LEAST_SQUARES) -> Kernel:
        """Make a kernel; cheap, compilation itself may wait for the first use.

        The text that is compiled depends on the kind of the loss only, so that another scale, or another
        part, costs nothing.
        """

    def put(self, chunk: Chunk, dtype: Any) -> Chunk:
        """The chunk where the kernel can read it, in the kernel's dtype."""

    def reduce(
        self, kernel: Any, chunk: Chunk, theta: Floats, order: int, into: Accumulator
    ) -> None:
        """Add the chunk's sums at theta to the pass, in row order."""

    def matvec(self, kernel: Any, chunk: Chunk, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over the chunk, for many parameters."""

    def triangularize(
        self, kernel: Any, chunk: Chunk, theta: Floats, into: TriangleAccumulator
    ) -> None:
        """Add R of √W [J | r] of the chunk's blocks to the pass, in row order."""

    def rows(self, program: AnyProgram, name: str, chunk: Chunk, theta: Floats) -> Any:
        """Values or residuals ("values", "residuals") of each row, (m, rows), where the rows are."""

    def resident(self, kernel: Any, chunk: Chunk) -> Resident | None:
        """The chunk and the kernel's sums where native code finds them; None where there are none."""

    def in_use(self) -> AbstractContextManager[None]:
        """For a fit in this thread: what takes long to call for every pass is kept at hand."""

    def release(self) -> None:
        """Free threads and buffers; a later use makes them anew."""


class Source(Protocol):
    """Rows of data that can be read again and again, always the same."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored columns."""

    @property
    def revision(self) -> int:
        """Rises when the weights of the rows change."""

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order; every chunk but the last is a whole number of blocks.

        A chunk is valid until the next one is read.
        """


class Engine(Protocol):
    """Runs one pass over a source."""

    def run(self, theta: Floats, order: int) -> NormalSums:
        """The sums over all rows."""

    def matvec(self, theta: Floats, v: Floats) -> Floats:
        """JᵀWJ·v over all rows."""

    def triangle(self, theta: Floats, extra: Floats | None = None) -> Triangle:
        """R of √W [J | r] over all rows and, where given, further rows of [J | r]."""

    def weight(self) -> float:
        """Σ w over the residuals."""

    def resident(self) -> Resident | None:
        """All rows for native code, where they are few, or in memory and quickly summed."""

    def under(self, loss: Loss) -> Engine:
        """The engine over the same rows with another loss."""


class Objective(Protocol):
    """What a phase sees of the data."""

    @property
    def n_params(self) -> int:
        """Number of parameters p."""

    @property
    def weight(self) -> float:
        """Σ w over the residuals, which makes a mean of a sum."""

    @property
    def revision(self) -> int:
        """Rises when the weights change, so that earlier sums are out of date."""

    @property
    def sample(self) -> Objective:
        """The same objective over a sample of the rows; itself when the data are few."""

    def __call__(self, theta: Floats, order: int) -> NormalSums:
        """One pass: the sums at theta, penalties included."""

    def matvec(self, theta: Floats, v: Floats) -> Floats:
        """One pass: JᵀWJ·v at theta, penalties included."""

    def under(self, loss: Loss) -> Objective:
        """The objective over all rows with another loss; its passes count as this one's."""

    def triangle(self, theta: Floats) -> Triangle:
        """One pass: R of √W [J | r] at theta under least squares, penalties included."""


class Phase(Protocol[S]):
    """A pure state machine on frozen states."""

    def init(self, state: S, objective: Objective) -> tuple[S, list[Event]]:
        """The first state, from what the phase before left."""

    def stop(self, state: S) -> Any:
        """Why the phase is over, or None."""

    def best(self, state: S) -> S:
        """The state at the best point so far, for a fit that is stopped here."""

    def step(self, state: S, objective: Objective) -> tuple[S, list[Event]]:
        """The next state."""


class Refit(Protocol):
    """Fits the problem of a finished fit again, with one parameter held."""

    @property
    def resolution(self) -> float:
        """Differences of the sse below this are rounding."""

    def optimum(self) -> Held:
        """The result's point with its sums, from one pass over the data."""

    def __call__(self, theta: Floats, k: int) -> Held:
        """The best point with parameter k held where theta has it, from theta."""

    def in_use(self) -> AbstractContextManager[None]:
        """Around all calls: what they opened is closed behind them."""
