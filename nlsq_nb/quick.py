"""The plainest of small fits, `curve_fit(model, x, y, p0)`: nothing is made that only others need.

Its phases are those of `fit_directly`, in the same native code on the same numbers. What does not go
smoothly (a doubt, a bad number, a singular system) begins anew on the general way, which says what is
wrong; what a result can tell beyond its numbers is put together when it is asked for.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.arguments import FitCall
from nlsq_nb.backends import get_backend
from nlsq_nb.backends.small import compiled_run
from nlsq_nb.backends.small import layout as at
from nlsq_nb.codegen.ir import OpaqueProgram
from nlsq_nb.compiled import LARGEST, reached
from nlsq_nb.config.given import config_from
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.chunk import Chunk, Resident, address_of
from nlsq_nb.core.layout import BLOCK, packed_index
from nlsq_nb.core.losses import LEAST_SQUARES
from nlsq_nb.direct import DirectFit, stamp
from nlsq_nb.doubts import Left, pattern_of
from nlsq_nb.errors import NlsqError
from nlsq_nb.in_native import NativePlan, Ran, plan_of
from nlsq_nb.models.inputs import as_model
from nlsq_nb.models.symbolic import Model
from nlsq_nb.native_run import NEWTON_STOPS, WARMUP_STOPS, NativeRun
from nlsq_nb.observe.recording import TelemetryObserver
from nlsq_nb.observe.telemetry import get_defense_telemetry
from nlsq_nb.outset import retrying
from nlsq_nb.phases.refine import ILL, Ending
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.problem import read_problem
from nlsq_nb.protocols import Backend
from nlsq_nb.refitting import HeldFit
from nlsq_nb.residuals import Residuals
from nlsq_nb.result import FitResult
from nlsq_nb.retold import counted
from nlsq_nb.scan import DataSummary
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.stored import Behind

__all__ = ["fit_plainly"]

Floats = NDArray[np.float64]
_FLOAT, _DOUBLE, _LONG = np.dtype(np.float64), ctypes.sizeof(ctypes.c_double), ctypes.c_int64
_KNOWN = 64  # models that are kept prepared
_OPTIMUM = NEWTON_STOPS.index(StopReason.RELATIVE_OFFSET)


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """What all plain fits of a model share.

    Attributes
    ----------
    model : Model
        Of one variable and one output.
    plan : NativePlan
        Its phases.
    backend : Backend
        Where sums are computed.
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
    rows: Resident
    shape: at.Layout
    task: Any
    first: bytes
    bounds: tuple[Floats, Floats]
    linear: tuple[tuple[int, int], ...]


_prepared: dict[Any, _Prepared | None] = {}


def fit_plainly(f: Any, x: Any, y: Any, p0: Any) -> FitResult | None:
    """Fit with all options as they are by default.

    Parameters
    ----------
    f : Model or str
        The model; others are for the general way.
    x, y : ndarray, shape (n,)
        Contiguous float64, at most `BLOCK` rows.
    p0 : tuple, list or ndarray, shape (p,)
        Start.

    Returns
    -------
    FitResult or None
        None where it is no such fit, or one that others have to look at; nothing was done then.
    """
    if not (_is_plain(x) and _is_plain(y) and len(x) == len(y) <= BLOCK):
        return None
    start = _numbers(p0)
    known = None if start is None else _known(f)
    if known is None or start is None or len(start) != known.shape.n_params >= 1 or len(y) <= len(start):
        return None
    begin = stamp()
    run = _Run(known, x, y, start)
    return run.result(begin) if run.goes_well() else None


def _is_plain(column: Any) -> bool:
    """Whether an array can be read as it stands."""
    return type(column) is np.ndarray and column.dtype == _FLOAT and column.ndim == 1 and column.flags.c_contiguous


def _numbers(p0: Any) -> list[float] | None:
    """A start as numbers; None where there is something to be said about it."""
    if type(p0) is np.ndarray and p0.ndim == 1 and p0.dtype == _FLOAT:
        start = p0.tolist()
    elif type(p0) in {tuple, list} and all(isinstance(value, (float, int)) for value in p0):
        try:
            start = [float(value) for value in p0]
        except OverflowError:
            return None
    else:
        return None
    return start if all(map(math.isfinite, start)) else None


def _known(f: Any) -> _Prepared | None:
    """What fits of a model share; None for models that are not plain."""
    if type(f) not in {Model, str}:
        return None
    if f not in _prepared:
        if len(_prepared) >= _KNOWN:
            _prepared.clear()
        try:
            model = as_model(f, np.zeros(1), 1)
        except NlsqError:  # who knows the data says what is wrong
            return None
        _prepared[f] = _prepare(model, config_from(None, {"verbose": 0}))
    return _prepared[f]


def _prepare(model: Model, options: Groups) -> _Prepared | None:
    plan, p = plan_of(options), model.n_params
    plain = len(model.x) == model.n_outputs == 1 and p <= min(LARGEST, options.cg.threshold - 1)
    if plan is None or not plain or isinstance(model.program, OpaqueProgram):
        return None
    backend, one = get_backend(), np.zeros(1)
    rows = backend.resident(backend.compile(model.program, _FLOAT), Chunk(0, (one,), (one,)))
    if rows is None or compiled_run() is None:
        return None
    separable = np.array([name in model.linear_params for name in model.params])
    shape = at.layout(separable.tobytes(), 2, plan.warmup.memory, plan.asked[0])
    space, task = shape.space(), _LONG * len(shape.task)
    w = np.frombuffer(space, np.float64, shape.size)
    w[at.SETTINGS : at.WARM_START] = (plan.newton.tol, plan.newton.initial_radius, 0.0, math.inf, 0.0, 0.0, 0.0)
    w[at.WARM_START : shape.lower] = plan.settings
    w[shape.lower : shape.lower + p], w[shape.lower + p : shape.lower + 2 * p] = -math.inf, math.inf
    filled = task.from_buffer(space, shape.size * _DOUBLE)
    filled[:] = shape.task.tolist()
    filled[: 4 + len(plan.asked)] = [rows.kernel, 0, 0, 0, *plan.asked]
    bounds = np.full(p, -math.inf), np.full(p, math.inf)
    linear = tuple((k, packed_index(p, k, k)) for k in np.flatnonzero(separable).tolist())
    return _Prepared(model, plan, backend, rows, shape, task, bytes(space), bounds, linear)


class _Run:
    """The arrays of one fit; see `NativeRun`, which makes the same from a state."""

    def __init__(self, known: _Prepared, x: Floats, y: Floats, start: list[float]) -> None:
        shape = known.shape
        self.known, self.x, self.y, self.start = known, x, y, start
        space = self.space = shape.space.from_buffer_copy(known.first)
        self.task = known.task.from_buffer(space, shape.size * _DOUBLE)
        self.task[at.ROWS] = len(y)
        self.task[-2:] = (address_of(x), address_of(y))
        p, one = len(start), shape.one
        space[one - 2 * p : one + p] = [*[abs(value) or 1.0 for value in start], *start, *start]

    def goes_well(self) -> bool:
        """Run phases 1 and 2; whether they end at an optimum that nothing speaks against."""
        entry, place = compiled_run(), ctypes.addressof(self.space)
        assert entry is not None
        task, space, call = place + self.known.shape.size * _DOUBLE, self.space, entry.call
        if call(at.SURVEY, task, place) == 0:
            return False
        self.spread, self.signal = space[at.SPREAD], space[at.GIVEN_SIGNAL]
        self.warmup = call(at.LBFGS, task, place)
        if self.warmup == 0:
            return False
        self.warmed, self.between = space[: at.RESULTS], stamp()
        given = self.task
        given[at.GIVEN], given[at.LINES], given[at.CEILING] = 1, 0, self.known.plan.newton.max_iterations
        if call(at.GAUSS_NEWTON, task, place) != _OPTIMUM:
            return False
        self.found, self.after = space[: at.RESULTS], stamp()
        first = self.warmed[at.FIRST_SSE]
        return self.found[at.SSE] <= first and 0.0 < self.found[at.CONDITION] <= ILL and not self._is_doubtful(first)

    def _is_doubtful(self, first: float) -> bool:
        """Whether anything calls for a second opinion."""
        shape, rows = self.known.shape, len(self.y)
        w = self.w = np.frombuffer(self.space, np.float64, shape.size)
        begin, middle = shape.one + shape.sums, shape.one + shape.sums + shape.n_sums
        self.popt = w[shape.one : shape.one + shape.n_params].copy()
        self.sums = w[begin:middle] + w[middle : middle + shape.n_sums]
        left = Left(self.found[at.SSE], first, self.signal, self.spread, rows - shape.n_params)
        theta, sums = self.popt.tolist(), self.sums.tolist()
        if left.is_exact or any(left.doubts(theta[k] * theta[k] * sums[place] for k, place in self.known.linear)):
            return True
        if left.is_clear:
            return False
        with np.errstate(all="ignore"):
            common = pattern_of(self.known.model.program, Chunk(0, (self.x,), (self.y,)), self.popt)
        return common is None or common > left.least_pattern(rows)

    def result(self, begin: tuple[float, float]) -> FitResult:
        """The numbers; counts what the defence layers did."""
        known, found, n, p = self.known, self.found, len(self.y), len(self.start)
        self.stamps = [begin, begin, self.between, self.after, stamp()]
        warmup, marks = WARMUP_STOPS[self.warmup], self._marks()
        assert warmup is not None
        self.ran = Ran(self._count(at.PASSES), 0, warmup, self.warmed, marks)
        sink, model, stop = TelemetryObserver(get_defense_telemetry()), known.model, StopReason.RELATIVE_OFFSET
        for event in counted(known.plan.warmup, warmup, self.warmed, marks):
            sink(event)
        sse = found[at.SSE]
        inverse = self.w[known.shape.inverse : known.shape.inverse + p * p].reshape(p, p)
        return FitResult(
            names=model.params,
            popt=self.popt,
            pcov=inverse * (sse / (n - p)),
            success=True,
            status=stop,
            message=stop.value,
            sse=sse,
            cost=0.5 * sse,
            loss=LEAST_SQUARES.kind,
            f_scale=LEAST_SQUARES.f_scale,
            n_points=n,
            dof=n - p,
            nit=self._count(at.STEPS),
            nfev=self.ran.passes,
            njev=self.ran.passes,
            grad=-self.sums[1 : 1 + p],
            optimality=found[at.OFFSET],
            active_mask=np.zeros(p, np.int_),
            bounds=known.bounds,
            linear=model.linear_params,
            spread=self.spread,
            model_text=model.text,
            backend=known.backend.name,
            notes=model.notes,
            absolute_sigma=False,
            weight=float(n),
            _behind=Behind(self.diagnose, self.residuals, self.refit),
            _model=model,
            _options=known.plan.options,
        )

    def _count(self, what: int) -> int:
        """Of both phases."""
        return int(self.warmed[what]) + int(self.found[what])

    def _marks(self) -> Floats:
        """See `retold.counted`."""
        shape, lines, width = self.known.shape, int(self.warmed[at.TOLD]), at.WIDTH + self.known.shape.n_params
        return self.w[shape.log : shape.log + lines * width].reshape(lines, width)[:, 4:6]

    # -- what is told when it is asked for -------------------------------------------------------
    @cached_property
    def _fit(self) -> tuple[DirectFit, FitState]:
        """The fit as others know it, and its end."""
        known, n = self.known, len(self.y)
        call = FitCall(known.model, x=self.x, y=self.y, p0=self.start)
        problem = read_problem(call, known.plan.options)
        problem = replace(problem, source=retrying(problem.source, known.plan.options))
        summary = DataSummary(n, n, self.signal, self.spread, float(n))
        fit = DirectFit(known.plan, problem, known.backend, summary, self.ran)
        fit.stamps = self.stamps
        rows = replace(known.rows, n_rows=n)
        run = NativeRun.afterwards(rows, known.shape, self.space, _OPTIMUM)
        return fit, reached(run, fit.state, self.warmed[at.FIRST_SSE])

    def diagnose(self) -> dict[str, Any]:
        """`streaming_diagnostics`."""
        fit, end = self._fit
        options = self.known.plan.options
        checks, tol = options.checks, options.gauss_newton.tol
        ending = Ending(len(self.y), absolute_sigma=False, method=checks.covariance_method, tol=tol)
        return fit.diagnose(ending.outcome(end))

    def residuals(self) -> Residuals:
        """What computes them."""
        (fit, end), sse = self._fit, self.found[at.SSE]
        source = fit.problem.source
        assert isinstance(source, RetryingSource)
        return Residuals(self.known.model, source, end.theta, sse, self.signal, self.known.backend)

    def refit(self) -> HeldFit:
        """What fits again with a parameter held."""
        fit, end = self._fit
        return HeldFit(fit.problem, self.known.plan.options, self.known.backend, float(len(self.y)), end)
