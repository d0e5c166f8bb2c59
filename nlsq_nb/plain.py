"""The arrays of plain fits, and phases 1 and 2 on them: of a column of x, one of y, and weights, with usual options.

The steps are those of `in_native.NativePhases`, in the same native code on the same numbers.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends import get_backend
from nlsq_nb.backends.small import compiled_run
from nlsq_nb.backends.small import layout as at
from nlsq_nb.codegen.ir import OpaqueProgram
from nlsq_nb.compiled import LARGEST, OFF
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.chunk import Chunk, Resident, address_of
from nlsq_nb.core.layout import packed_index
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.drawn import Drawn
from nlsq_nb.in_native import NativePlan, plan_of
from nlsq_nb.models.symbolic import Model
from nlsq_nb.native_run import NEWTON_STOPS, WARMUP_STOPS, found_so_far
from nlsq_nb.phases.state import StopReason, WarmupStop
from nlsq_nb.protocols import Backend, Kernel
from nlsq_nb.retold import MODES
from nlsq_nb.scan import FEW, survey
from nlsq_nb.sources.weights import weight_parts

__all__ = ["OPTIMUM", "PlainPhases", "Prepared", "prepare"]

Floats = NDArray[np.float64]
Columns = tuple[Floats, ...]
_FLOAT, _DOUBLE, _LONG = np.dtype(np.float64), ctypes.sizeof(ctypes.c_double), ctypes.c_int64
_NOT_ASKED = WARMUP_STOPS.index(WarmupStop.NOT_ASKED)

OPTIMUM = NEWTON_STOPS.index(StopReason.RELATIVE_OFFSET)
"""The only ending of phase 2 that plain fits know."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What all plain fits of a model share.

    Attributes
    ----------
    model : Model
        Of one variable and one output.
    plan : NativePlan
        Its phases.
    backend : Backend
        Where sums are computed.
    kernel : Kernel
        What computes them.
    rows : Resident
        The kernel, on other rows.
    shape : Layout
        Where everything is.
    task : type
        The integers of a run.
    first : bytes
        Its memory, but for what rows and p0 decide.
    bounds : tuple of ndarray
        None, so ±inf.
    linear : tuple of (int, int)
        Of each linear parameter its number, and where its diagonal element is among the sums.
    """

    model: Model
    plan: NativePlan
    backend: Backend
    kernel: Kernel
    rows: Resident
    shape: at.Layout
    task: Any
    first: bytes
    bounds: tuple[Floats, Floats]
    linear: tuple[tuple[int, int], ...]


def prepare(model: Model, options: Groups, *, weighted: bool) -> Prepared | None:
    """What all plain fits of a model share.

    Parameters
    ----------
    model : Model
        Any.
    options : Groups
        As they are by default.
    weighted : bool
        Whether the residuals have weights.

    Returns
    -------
    Prepared or None
        None for a model that is not plain, and where there is no native code.
    """
    plan, p = plan_of(options), model.n_params
    plain = len(model.x) == model.n_outputs == 1 and p <= min(LARGEST, options.cg.threshold - 1)
    if plan is None or not plain or isinstance(model.program, OpaqueProgram):
        return None
    backend, one = _backend(), np.zeros(1)
    chunk = Chunk(0, (one,), (one,), (one,) if weighted else None)
    kernel = backend.compile(model.program, _FLOAT)
    rows = backend.resident(kernel, chunk)
    if rows is None or compiled_run() is None:
        return None
    separable = np.array([name in model.linear_params for name in model.params])
    shape = at.layout(separable.tobytes(), len(rows.columns), plan.warmup.memory, plan.asked[0])
    space, task = shape.space(), _LONG * len(shape.task)
    w = np.frombuffer(space, np.float64, shape.size)
    w[at.SETTINGS : at.WARM_START] = (plan.newton.tol, plan.newton.initial_radius, 0.0, math.inf, 0.0, 0.0, 0.0)
    w[at.WARM_START : shape.lower] = plan.settings
    w[shape.lower : shape.lower + p], w[shape.lower + p : shape.lower + 2 * p] = -math.inf, math.inf
    filled = task.from_buffer(space, shape.size * _DOUBLE)
    filled[:] = shape.task.tolist()
    filled[: 5 + len(plan.asked)] = [rows.kernel, 0, 0, 0, *plan.asked, weighted]
    bounds = np.full(p, -math.inf), np.full(p, math.inf)
    linear = tuple((k, packed_index(p, k, k)) for k in np.flatnonzero(separable).tolist())
    return Prepared(model, plan, backend, kernel, rows, shape, task, bytes(space), bounds, linear)


@cache
def _backend() -> Backend:
    """One for all models, so that its threads are there when the next fit begins."""
    return get_backend()


class _Run:
    """Arrays of a run over some rows; see `NativeRun`, which makes the same from a state."""

    __slots__ = ("_call", "_kept", "_place", "_task", "space", "task")

    def __init__(
        self, known: Prepared, columns: Columns, start: list[float], theta: list[float], rows: Resident | None = None
    ) -> None:
        shape, p, entry = known.shape, len(start), compiled_run()
        assert entry is not None
        space = self.space = shape.space.from_buffer_copy(known.first)
        task = self.task = known.task.from_buffer(space, shape.size * _DOUBLE)
        self._kept = columns, rows  # for as long as their addresses are used
        if rows is None:
            task[at.ROWS], task[-len(columns) :] = len(columns[0]), [address_of(c) for c in columns]
        else:
            task[at.KERNEL], task[at.ROWS] = rows.kernel, rows.n_rows
            task[at.SPAN], task[at.DONE] = rows.span, rows.done
            first = len(task) - len(columns)
            task[first : first + len(rows.columns)] = rows.columns
        space[shape.one - 2 * p : shape.one + p] = [*[abs(value) or 1.0 for value in start], *start, *theta]
        self._call, self._place = entry.call, ctypes.addressof(space)
        self._task = self._place + shape.size * _DOUBLE

    def go(self, phase: int) -> int:
        """Run a phase: how it ended."""
        stop: int = self._call(phase, self._task, self._place)
        return stop

    def ask(self, given: int, lines: int, ceiling: int) -> None:
        """What a phase is to begin with, tell, and end at."""
        self.task[at.GIVEN], self.task[at.LINES], self.task[at.CEILING] = given, lines, ceiling

    def found(self) -> list[float]:
        """What the last phase found."""
        numbers: list[float] = self.space[: at.RESULTS]
        return numbers


class PlainPhases:
    """Phases 1 and 2 of a plain fit.

    Parameters
    ----------
    known : Prepared
        The model.
    columns : tuple of ndarray, each (n,)
        x, y and, with weights, w; contiguous float64.
    start : list of float, length p
        p0, finite.
    drawn : Drawn
        Rows for the warm-up.
    whole : Resident, optional
        Sums over all rows, in one call, where there are many.

    Attributes
    ----------
    numbers : ndarray
        Where phase 2 has ended, as `Layout` has it, without the log.
    signal, spread, weight : float
        Σ w y², Σ w (y − mean)² and Σ w.
    warmup : int
        How phase 1 ended, by its number in native code.
    warmed, found : list of float
        What phases 1 and 2 have found.
    marks : ndarray, shape (steps, 2)
        What happened in the steps of phase 1.
    passes, sample_passes : int
        Over all rows, and over the sample.
    """

    def __init__(
        self, known: Prepared, columns: Columns, start: list[float], drawn: Drawn, whole: Resident | None = None
    ) -> None:
        self._known, self._columns, self._start, self._drawn = known, columns, start, drawn
        self._rows = len(columns[0])
        self._run: _Run | None = _Run(known, columns, start, start, whole)
        self.passes = self.sample_passes = 0

    def warm(self) -> bool:
        """Look at the data and run phase 1; False where the fit is to begin anew elsewhere."""
        run = self._run
        assert run is not None
        sampled = self._drawn.part is not None and len(self._known.linear) < len(self._start)
        if not self._survey(run):
            return False
        if sampled:  # layers 1 and 2 alone
            run.ask(0, 0, 0)
            run.task[at.LIMIT] = 0
        self.warmup = run.go(at.LBFGS)
        self.warmed = run.found()
        self.passes = int(self.warmed[at.PASSES])
        self.marks = self._marks(run)
        return self._on_sample(run) if sampled and self.warmup == _NOT_ASKED else self.warmup > 0

    def _survey(self, run: _Run) -> bool:
        """Look at the data; False where there is something to complain of."""
        space = run.space
        if len(self._columns[0]) > FEW:
            x, y, *weights = self._columns
            found = survey(Chunk(0, (x,), (y,), tuple(weights) or None), self._known.backend)
            if found is None:
                return False
            space[at.SPREAD], space[at.GIVEN_SIGNAL], space[at.WEIGHT] = found.spread, found.signal, found.weight
            space[at.UNIT], space[at.VARIANCE] = NativePlan.unit_of(found), found.spread / found.weight
        elif run.go(at.SURVEY) == 0:
            return False
        self.spread, self.signal, self.weight = (space[k] for k in (at.SPREAD, at.GIVEN_SIGNAL, at.WEIGHT))
        return True

    def converge(self) -> bool:
        """Run phase 2; whether it ends at an optimum below p0."""
        run, shape = self._run, self._known.shape
        assert run is not None
        run.ask(1, 0, self._known.plan.newton.max_iterations)
        ended = run.go(at.GAUSS_NEWTON)
        self.found = run.found()
        self.passes += int(self.found[at.PASSES])
        # results are kept by the thousand: the log and the rows of a sample go
        self.numbers = np.frombuffer(run.space, np.float64, shape.log).copy()
        self._run, self._columns = None, ()
        return ended == OPTIMUM and self.found[at.SSE] <= self.warmed[at.FIRST_SSE]

    @property
    def is_broken(self) -> bool:
        """Whether a pass over all rows ended the last phase."""
        return bool((self.found if self._run is None else self._run.space)[at.BROKEN])

    def found_so_far(self) -> tuple[Floats, NormalSums] | None:
        """The point of a fit that the user has stopped; see `native_run.found_so_far`."""
        run, shape = self._run, self._known.shape
        numbers = self.numbers if run is None else np.frombuffer(run.space, np.float64, shape.size)
        return found_so_far(numbers, shape, self._rows)

    def _on_sample(self, run: _Run) -> bool:
        """Phase 1 on few rows, phase 2 on the sample, layer 3 on all rows; see `NativePhases`."""
        known, judged, drawn = self._known, self.warmed, self._drawn
        most, p, one = known.plan.newton.max_iterations, len(self._start), known.shape.one
        assert drawn.few is not None
        size = getattr(known.plan.warmup.defense.sizes, MODES[int(judged[at.MODE])])
        few = self._over(drawn.few, self._start, size, run)
        few.task[at.ADAPTS] = 0
        self.warmup = few.go(at.LBFGS)
        self.warmed = few.found()
        self.marks = self._marks(few)
        self.sample_passes = int(self.warmed[at.PASSES])
        if self.warmup == 0:
            return False
        assert drawn.part is not None
        part = self._over(drawn.part, few.space[one : one + p], size, run)
        part.ask(0, 0, most)
        stop = NEWTON_STOPS[part.go(at.GAUSS_NEWTON)]
        self.sample_passes += int(part.space[at.PASSES])
        if stop is None or not stop.success:
            return False
        run.ask(1, 1, most)
        log = known.shape.log
        run.space[log + at.WIDTH : log + at.WIDTH + p] = part.space[one : one + p]
        seen = run.go(at.SCREENING)
        self.passes += int(run.space[at.PASSES])
        for k in (at.RELATIVE, at.MODE, at.FIRST_SSE):
            self.warmed[k] = judged[k]
        return seen != 0 and run.space[log] <= run.space[at.RELAXED]

    def _over(self, rows: NDArray[np.int64], theta: list[float], size: float, whole: _Run) -> _Run:
        """A run over a part of the rows, which layers 1 and 2 have nothing to say of."""
        x, y, *weights = columns = tuple(c.take(rows) for c in self._columns)
        run = _Run(self._known, columns, self._start, theta)
        share = sum(weight_parts(Chunk(0, (x,), (y,), tuple(weights) or None))) / self.weight
        w = run.space
        w[at.GIVEN_SIGNAL], w[at.WEIGHT] = share * self.signal, share * self.weight
        w[at.UNIT], w[at.VARIANCE], w[at.WARM_START] = whole.space[at.UNIT], whole.space[at.VARIANCE], OFF
        w[at.FIRST_STEPS : at.FIRST_STEPS + 4] = [size] * 4
        return run

    def _marks(self, run: _Run) -> Floats:
        """See `retold.counted`."""
        shape, lines = self._known.shape, int(self.warmed[at.TOLD])
        width = at.WIDTH + shape.n_params
        log = np.frombuffer(run.space, np.float64, shape.size)[shape.log : shape.log + lines * width]
        return log.reshape(lines, width)[:, 4:6].copy()
