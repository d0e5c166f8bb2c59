"""`NativeRun`: the numbers of a small fit where its phases in native code find and leave them."""

from __future__ import annotations

import ctypes
import math

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import compiled_run
from nlsq_nb.backends.small import layout as at
from nlsq_nb.core.chunk import Resident
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.phases.finalize import INVERSE
from nlsq_nb.phases.state import FitState, StopReason, WarmupPoint, WarmupStop

__all__ = ["NEWTON_STOPS", "WARMUP_STOPS", "NativeRun", "found_so_far"]

Floats = NDArray[np.float64]
NEWTON_STOPS = (
    None,
    StopReason.RELATIVE_OFFSET,
    StopReason.ROUNDING,
    StopReason.EXACT_FIT,
    StopReason.MAX_ITERATIONS,
    StopReason.STALLED,
    StopReason.BOUNDED,
)
"""Why phase 2 ended, by the numbers that the native text gives; 0 is to give up."""

WARMUP_STOPS = (
    None,
    WarmupStop.WARM_START,
    WarmupStop.PLATEAU,
    WarmupStop.GRADIENT,
    WarmupStop.MAX_ITERATIONS,
    WarmupStop.COST_GUARD,
    WarmupStop.NO_STEP,
    WarmupStop.ROUNDING,
    WarmupStop.NOT_ASKED,
    WarmupStop.NOTHING_NONLINEAR,
)
"""The same of phase 1."""


def found_so_far(w: Floats, shape: at.Layout, n_rows: int) -> tuple[Floats, NormalSums] | None:
    """Where native code stood when the user stopped the fit.

    Parameters
    ----------
    w : ndarray
        As it has left them.
    shape : Layout
        Where everything is.
    n_rows : int
        Of the pass.

    Returns
    -------
    tuple of (ndarray, NormalSums), or None
        θ and the sums of the first record; None where nothing was measured there, or nothing better than the start.
    """
    if not w[at.PASSES] > 0.0 or w[at.BROKEN]:
        return None
    p, begin, size = shape.n_params, shape.one + shape.sums, shape.n_sums
    high, low = w[begin : begin + size].copy(), w[begin + size : begin + 2 * size].copy()
    sums = NormalSums(n_rows, p, 2, high, low)
    return (w[shape.one : shape.one + p].copy(), sums) if sums.is_finite and sums.sse <= w[at.FIRST_SSE] else None


class NativeRun:
    """The arrays of one fit, and phases run on them one after the other.

    Parameters
    ----------
    state : FitState
        What the first phase begins with.
    rows : Resident
        The data.
    settings : tuple of float
        What `layout` has from SETTINGS to the bounds.
    asked : tuple of int
        What `layout` has from LINES on; it begins with the lines of the log.
    memory : int
        Pairs that L-BFGS remembers.

    Attributes
    ----------
    shape : Layout
        Where everything is in `w`.
    w : ndarray
        The numbers.
    task : ndarray of int64
        What is asked.
    stop : int
        How the last phase ended, by the number in its native text; 0 where it gave up.
    found : list of float
        What it found.
    """

    __slots__ = ("_rows", "_space", "found", "shape", "stop", "task", "w")

    def __init__(
        self,
        state: FitState,
        rows: Resident,
        settings: tuple[float, ...],
        asked: tuple[int, ...],
        memory: int = 0,
    ) -> None:
        shape = self.shape = at.layout(state.separable.tobytes(), len(rows.columns), memory, asked[0])
        space = self._space = shape.space()
        w = self.w = np.frombuffer(space, np.float64, shape.size)
        task = self.task = np.frombuffer(space, np.int64, offset=w.nbytes)
        task[:] = shape.task
        first = state.theta if state.first is None else state.first
        box = (state.lower, state.upper, state.normalizer.scales, first, state.theta)
        np.concatenate((settings, *box), out=w[at.SETTINGS : shape.one + shape.n_params])
        sums, given = state.sums, 0
        if sums is not None and sums.order == 2:
            given, begin, size = 1, shape.one + shape.sums, shape.n_sums
            w[begin : begin + size], w[begin + size : begin + 2 * size] = sums.high, sums.low
        bounded = max(state.lower.tolist()) > -math.inf or min(state.upper.tolist()) < math.inf
        task[: 4 + len(asked)] = (rows.kernel, rows.n_rows, given, bounded, *asked)
        task[-len(rows.columns) :], task[at.SPAN], task[at.DONE] = rows.columns, rows.span, rows.done
        self._rows, self.stop, self.found = rows, 0, list[float]()

    @classmethod
    def afterwards(cls, rows: Resident, shape: at.Layout, numbers: Floats, stop: int) -> NativeRun:
        """What phase 2 left in arrays that were filled elsewhere.

        Parameters
        ----------
        rows : Resident
            The data.
        shape : Layout
            Where everything is.
        numbers : ndarray
            `w` without the log.
        stop : int
            How phase 2 ended.

        Returns
        -------
        NativeRun
            As it is after `go`; no phase runs on it.
        """
        run = object.__new__(cls)
        run.shape, run._rows, run.w, run.stop = shape, rows, numbers, stop
        run.found = numbers[: at.RESULTS].tolist()
        return run

    def take_up(self, state: FitState) -> None:
        """Go on with phase 2 from a state that it has led to, instead of from a start."""
        w, scale = self.w, self.shape.scale
        self.task[at.GIVEN] = at.TAKEN_UP
        w[at.STEPS], w[at.RELAXED] = state.iteration, state.relaxed
        w[at.OFFSET], w[at.RADIUS] = state.offset, state.radius
        w[scale : scale + self.shape.n_params] = state.scale
        self.go(at.GAUSS_NEWTON)

    def go(self, phase: int) -> None:
        """Run a phase from the first record, which becomes its end.

        Parameters
        ----------
        phase : int
            One of `layout`.
        """
        entry = compiled_run()
        if entry is not None:
            place = ctypes.addressof(self._space)
            self.stop = entry.call(phase, place + self.w.nbytes, place)
            self.found = self.w[: at.RESULTS].tolist()

    def screen(self, starts: Floats) -> Floats:
        """The sse of starts, the linear parameters at their best; the first record becomes the last of them.

        `found` has the same of the point that was there, as RELAXED.

        Parameters
        ----------
        starts : ndarray, shape (n, p)
            Within the bounds; there are as many lines in the log.

        Returns
        -------
        ndarray, shape (n,)
            inf where the model is not finite; of no meaning where `stop` is 0.
        """
        log = self.log(len(starts))
        log[:, at.WIDTH :] = starts
        self.go(at.SCREENING)
        return log[:, 0].copy()

    def begin_at(self, start: NDArray[np.float64], scales: NDArray[np.float64], trials: int) -> None:
        """Run phase 2 from another start, without a log.

        Parameters
        ----------
        start : ndarray, shape (p,)
            Within the bounds; the fit takes it for p0.
        scales : ndarray, shape (p,)
            Of z.
        trials : int
            Most of them.
        """
        p, one = self.shape.n_params, self.shape.one
        np.concatenate((scales, start, start), out=self.w[one - 2 * p : one + p])
        self.task[at.GIVEN], self.task[at.LINES], self.task[at.CEILING] = 0, 0, trials
        self.go(at.GAUSS_NEWTON)

    def go_on(self, trials: int) -> None:
        """Run phase 2 from where the last phase ended, without a log.

        Parameters
        ----------
        trials : int
            Most of them.
        """
        self.task[at.GIVEN], self.task[at.LINES], self.task[at.CEILING] = 1, 0, trials
        self.go(at.GAUSS_NEWTON)

    @property
    def newton_stop(self) -> StopReason | None:
        """How phase 2 ended; None where it gave up."""
        return NEWTON_STOPS[self.stop]

    @property
    def warmup_stop(self) -> WarmupStop | None:
        """How phase 1 ended; None where it gave up."""
        return WARMUP_STOPS[self.stop]

    def theta(self) -> Floats:
        """The parameters of the first record."""
        one = self.shape.one
        return self.w[one : one + self.shape.n_params].copy()

    def measured(self, place: int | None = None) -> tuple[Floats, NormalSums]:
        """θ and the sums of a record; by default of the first."""
        place = self.shape.one if place is None else place
        p, begin, size = self.shape.n_params, self.shape.sums, self.shape.n_sums
        part = self.w[place : place + begin + 2 * size].copy()
        return part[:p], NormalSums(self._rows.n_rows, p, 2, part[begin : begin + size], part[begin + size :])

    def point(self, place: int, loss: float) -> WarmupPoint:
        """A record of the warm-up."""
        p, (theta, sums) = self.shape.n_params, self.measured(place)
        rest = self.w[place + p : place + 3 * p].copy()
        return WarmupPoint(theta, sums, rest[:p], loss, rest[p:])

    def end(self) -> tuple[Floats, NormalSums]:
        """Where phase 2 ended; the sums know their inverse unless the general way has to find it."""
        (theta, sums), condition = self.measured(), self.found[at.CONDITION]
        if condition > 0.0:
            p, begin = self.shape.n_params, self.shape.inverse
            sums.derived[INVERSE] = self.w[begin : begin + p * p].reshape(p, p), condition
        return theta, sums

    def log(self, lines: int) -> Floats:
        """The lines of the log, as many as a phase told: a row for every step."""
        width, begin = at.WIDTH + self.shape.n_params, self.shape.log
        return self.w[begin : begin + lines * width].reshape(lines, width)
