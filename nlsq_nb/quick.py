"""The plainest of fits, `curve_fit(model, x, y, p0, sigma)`: nothing is made that only others need.

Its phases are those of `fit_directly`, in the same native code on the same numbers. What does not go
smoothly (a doubt, a bad number, a singular system) begins anew on the general way, which says what is
wrong; what a result can tell beyond its numbers is put together when it is asked for.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.arguments import FitCall
from nlsq_nb.backends.small import layout as at
from nlsq_nb.compiled import reached
from nlsq_nb.config.given import config_from
from nlsq_nb.core.chunk import Chunk, Resident
from nlsq_nb.core.layout import RESIDENT_ROWS, SHARED_ROWS
from nlsq_nb.core.losses import LEAST_SQUARES
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.direct import DirectFit, stamp
from nlsq_nb.doubts import Left, pattern_of
from nlsq_nb.drawn import drawn_rows
from nlsq_nb.errors import NlsqError
from nlsq_nb.in_native import Ran
from nlsq_nb.models.inputs import as_model
from nlsq_nb.models.symbolic import Model
from nlsq_nb.native_run import WARMUP_STOPS, NativeRun
from nlsq_nb.observe.recording import TelemetryObserver
from nlsq_nb.observe.telemetry import get_defense_telemetry
from nlsq_nb.outset import retrying
from nlsq_nb.phases.refine import ILL, Ending
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.plain import OPTIMUM, PlainPhases, Prepared, prepare
from nlsq_nb.problem import read_problem
from nlsq_nb.refitting import HeldFit
from nlsq_nb.residuals import Residuals
from nlsq_nb.result import FitResult
from nlsq_nb.retold import counted
from nlsq_nb.scan import FEW, DataSummary
from nlsq_nb.sources.reading import mappings
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.rows import is_ready
from nlsq_nb.sources.weights import weights_from_sigma
from nlsq_nb.stored import Behind
from nlsq_nb.whole import WholePasses

__all__ = ["fit_plainly"]

Floats = NDArray[np.float64]
_FLOAT = np.dtype(np.float64)
_KNOWN = 64  # models that are kept prepared
_LEAST = 1e-150  # sigma whose square is a number, and one over it

_prepared: dict[tuple[str | int, bool], tuple[Model | str, Prepared | None]] = {}  # by text, or the id of a model


def fit_plainly(
    f: Any, x: Any, y: Any, p0: Any, sigma: Any = None, *, absolute_sigma: bool = False
) -> FitResult | None:
    """Fit with all options as they are by default.

    Parameters
    ----------
    f : Model or str
        The model; others are for the general way.
    x, y : ndarray, shape (n,)
        Contiguous float64, in memory.
    p0 : tuple, list or ndarray, shape (p,)
        Start.
    sigma : ndarray, shape (n,), optional
        Standard deviations of y, of so few rows that copies of them are small.
    absolute_sigma : bool
        Whether sigma is taken as it is.

    Returns
    -------
    FitResult or None
        None where it is no such fit, or one that others have to look at; nothing was done then.
    """
    if not (_is_plain(x) and _is_plain(y) and len(x) == len(y) and (sigma is None or _is_usable(sigma, len(y)))):
        return None
    start = _numbers(p0)
    known = None if start is None else _known(f, sigma is not None)
    if known is None or start is None or len(start) != known.shape.n_params >= 1 or len(y) <= len(start):
        return None
    with np.errstate(all="ignore"):
        fit = _PlainFit(known, (x, y), start, (sigma, absolute_sigma))
        with known.backend.in_use() if len(y) > SHARED_ROWS else nullcontext():
            return fit.result() if fit.goes_well() else fit.stopped()


def _is_plain(column: Any) -> bool:
    """Whether an array can be read as it stands; what is mapped from a file is read ahead elsewhere."""
    if type(column) is not np.ndarray or column.ndim != 1 or not is_ready(column, _FLOAT):
        return False
    return len(column) <= FEW or column.base is None or not any(mappings(column))


def _is_usable(sigma: Any, rows: int) -> bool:
    """Whether standard deviations can be read as they stand, and are far from the limits of float64."""
    if not _is_plain(sigma) or not 0 < len(sigma) == rows <= RESIDENT_ROWS:
        return False
    return bool(sigma.min() > _LEAST and sigma.max() < 1.0 / _LEAST)


def _numbers(p0: Any) -> list[float] | None:
    """A start as numbers; None where there is something to be said about it."""
    if type(p0) is np.ndarray and p0.ndim == 1 and p0.dtype == _FLOAT:
        start = p0.tolist()
    elif type(p0) in {tuple, list} and all(isinstance(value, (float, int)) for value in p0):
        try:
            start = [float(value) for value in p0]
        except (TypeError, ValueError, OverflowError):
            return None
    else:
        return None
    return start if all(map(math.isfinite, start)) else None


def _known(f: Any, weighted: bool) -> Prepared | None:
    """What fits of a model share; None for models that are not plain."""
    if type(f) not in {Model, str}:
        return None
    key = (f if isinstance(f, str) else id(f), weighted)  # equal models may have other notes
    known = _prepared.get(key)
    if known is None:
        if len(_prepared) >= _KNOWN:
            _prepared.clear()
        try:
            model = as_model(f, np.zeros(1), 1)
        except NlsqError:  # who knows the data says what is wrong
            return None
        known = f, prepare(model, config_from(None, {"verbose": 0}), weighted=weighted)
        _prepared[key] = known  # while f lives, so does its id
    return known[1]


class _PlainFit:
    """One fit; what else there is to tell of it is made when it is asked for."""

    def __init__(
        self, known: Prepared, data: tuple[Floats, Floats], start: list[float], errors: tuple[Floats | None, bool]
    ) -> None:
        self.begin, o = stamp(), known.plan.options
        self.known, self.data, self.start = known, data, start
        sigma, self.absolute = errors
        self.sigma = None if sigma is None else sigma.copy()  # the fit's own, as weights are on the general way
        self.n = len(data[1])
        self.whole: WholePasses | None = None
        self.drawn = drawn_rows(self.n, len(start), o.warmup.sample_size, o.setup.seed)

    def goes_well(self) -> bool:
        """Run phases 1 and 2; whether they end at an optimum that nothing speaks against."""
        columns = self.data if self.sigma is None else (*self.data, weights_from_sigma(self.sigma))
        x, y, *weights = columns
        chunk = Chunk(0, (x,), (y,), tuple(weights) or None)
        rows = self.known.backend.resident(self.known.kernel, chunk) if self.n > SHARED_ROWS else None
        if rows is not None or self.n <= RESIDENT_ROWS:
            try:
                return self._iterated(columns, rows) and self._stands(columns)
            except KeyboardInterrupt as failure:
                self._keep_best(failure)
                return False
        with WholePasses(partial(self._one_pass, chunk), len(self.start), self.n) as whole:
            self.whole = whole
            try:
                ended = self._iterated(columns, whole.resident)
            except KeyboardInterrupt as failure:
                whole.failure, ended = failure, False
            if not ended and whole.failure is None and self.phases.is_broken:
                whole.failure = whole.lost()
        return ended and whole.failure is None and self._stands(columns)

    def _iterated(self, columns: tuple[Floats, ...], whole: Resident | None) -> bool:
        """Run phases 1 and 2; whether they end at an optimum."""
        phases = self.phases = PlainPhases(self.known, columns, self.start, self.drawn, whole)
        if not phases.warm():
            return False
        self.between = stamp()
        ended = phases.converge()
        self.after = stamp()
        return ended

    def _keep_best(self, failure: KeyboardInterrupt) -> None:
        """What is known where the user stops a fit of many rows whose passes were too short to look for that."""
        phases: PlainPhases | None = getattr(self, "phases", None)
        known = None if phases is None or self.n <= RESIDENT_ROWS else phases.found_so_far()
        if phases is None or known is None:
            raise failure
        self.whole = WholePasses(None, len(self.start), self.n)
        self.whole.failure = failure
        self.whole.see(*known, phases.passes)

    def _one_pass(self, chunk: Chunk, theta: Floats) -> NormalSums:
        """Over all rows, in threads."""
        into = Accumulator(len(self.start), 2)
        self.known.backend.reduce(self.known.kernel, chunk, theta, 2, into)
        return into.result()

    def stopped(self) -> FitResult | None:
        """The best point so far of a fit that the user stopped; None where there is none."""
        if self.whole is None or self.whole.failure is None:
            return None
        if self.whole.best is None or not isinstance(self.whole.failure, KeyboardInterrupt):
            raise self.whole.failure
        return self._beside(None).stopped(self.whole)

    def _stands(self, columns: tuple[Floats, ...]) -> bool:
        """Whether nothing speaks against the optimum."""
        if not 0.0 < self.phases.found[at.CONDITION] <= ILL:
            return False
        self._take_numbers()
        return not self._is_doubtful(columns) and all(map(math.isfinite, self.pcov.diagonal().tolist()))

    def _take_numbers(self) -> None:
        """Where phase 2 has ended: the parameters, the sums and the covariance."""
        shape, phases, p = self.known.shape, self.phases, len(self.start)
        w, begin, middle = phases.numbers, shape.one + shape.sums, shape.one + shape.sums + shape.n_sums
        self.popt = w[shape.one : shape.one + p].copy()
        self.sums = w[begin:middle] + w[middle : middle + shape.n_sums]
        variance = 1.0 if self.absolute else phases.found[at.SSE] / (self.n - p)
        self.pcov = w[shape.inverse : shape.inverse + p * p].reshape(p, p) * variance

    def _is_doubtful(self, columns: tuple[Floats, ...]) -> bool:
        """Whether anything calls for a second opinion."""
        ran, checked = self.phases, self.drawn.checked
        rows = self.n if checked is None else len(checked)
        left = Left(ran.found[at.SSE], ran.warmed[at.FIRST_SSE], ran.signal, ran.spread, rows - len(self.start))
        theta, sums = self.popt.tolist(), self.sums.tolist()
        if left.is_exact or any(left.doubts(theta[k] * theta[k] * sums[place] for k, place in self.known.linear)):
            return True
        if left.is_clear:
            return False
        x, y, *v = columns if checked is None else (c.take(checked) for c in columns)
        common = pattern_of(self.known.model.program, Chunk(0, (x,), (y,), tuple(v) or None), self.popt)
        return common is None or common > left.least_pattern(rows)

    def result(self) -> FitResult:
        """The numbers; counts what the defence layers did."""
        known, phases, found, n, p = self.known, self.phases, self.phases.found, self.n, len(self.start)
        self.stamps = [self.begin, self.begin, self.between, self.after, stamp()]
        sink, model, stop = TelemetryObserver(get_defense_telemetry()), known.model, StopReason.RELATIVE_OFFSET
        warmup = WARMUP_STOPS[phases.warmup]
        assert warmup is not None
        for event in counted(known.plan.warmup, warmup, phases.warmed, phases.marks):
            sink(event)
        sse = found[at.SSE]
        return FitResult(
            names=model.params,
            popt=self.popt,
            pcov=self.pcov,
            success=True,
            status=stop,
            message=stop.value,
            sse=sse,
            cost=0.5 * sse,
            loss=LEAST_SQUARES.kind,
            f_scale=LEAST_SQUARES.f_scale,
            n_points=n,
            dof=n - p,
            nit=int(phases.warmed[at.STEPS]) + int(found[at.STEPS]),
            nfev=phases.passes,
            njev=phases.passes,
            grad=-self.sums[1 : 1 + p],
            optimality=found[at.OFFSET],
            active_mask=np.zeros(p, np.int_),
            bounds=known.bounds,
            linear=model.linear_params,
            spread=phases.spread,
            model_text=model.text,
            backend=known.backend.name,
            notes=model.notes,
            absolute_sigma=self.absolute,
            weight=phases.weight,
            _behind=Behind(self.diagnose, self.residuals, self.refit),
            _model=model,
            _options=known.plan.options,
        )

    # -- what is told when it is asked for -------------------------------------------------------
    @cached_property
    def _fit(self) -> tuple[DirectFit, FitState]:
        """The fit as others know it, and its end."""
        known, phases = self.known, self.phases
        ran = Ran(phases.passes, phases.sample_passes, WARMUP_STOPS[phases.warmup], phases.warmed, phases.marks)
        run = NativeRun.afterwards(replace(known.rows, n_rows=self.n), known.shape, phases.numbers, OPTIMUM)
        with np.errstate(all="ignore"):
            fit = self._beside(ran)
            fit.stamps = self.stamps
            return fit, reached(run, fit.state, phases.warmed[at.FIRST_SSE])

    def _beside(self, ran: Ran | None) -> DirectFit:
        """The same fit as `fit_directly` has it, of which this has run."""
        known, phases, n = self.known, self.phases, self.n
        x, y = self.data
        call = FitCall(known.model, x=x, y=y, p0=self.start, sigma=self.sigma, absolute_sigma=self.absolute)
        problem = read_problem(call, known.plan.options)
        problem = replace(problem, source=retrying(problem.source, known.plan.options))
        summary = DataSummary(n, n, phases.signal, phases.spread, phases.weight)
        return DirectFit(known.plan, problem, known.backend, summary, ran)

    def diagnose(self) -> dict[str, Any]:
        """`streaming_diagnostics`."""
        fit, end = self._fit
        options = self.known.plan.options
        checks, tol = options.checks, options.gauss_newton.tol
        ending = Ending(self.n, absolute_sigma=self.absolute, method=checks.covariance_method, tol=tol)
        with np.errstate(all="ignore"):
            return fit.diagnose(ending.outcome(end))

    def residuals(self) -> Residuals:
        """What computes them."""
        (fit, end), sse = self._fit, self.phases.found[at.SSE]
        source = fit.problem.source
        assert isinstance(source, RetryingSource)
        return Residuals(self.known.model, source, end.theta, sse, self.phases.signal, self.known.backend)

    def refit(self) -> HeldFit:
        """What fits again with a parameter held."""
        fit, end = self._fit
        return HeldFit(fit.problem, self.known.plan.options, self.known.backend, self.phases.weight, end)
