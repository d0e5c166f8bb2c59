"""Phases 1 and 2 of a fit that nobody watches, in native code: on all rows, or first on a sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import layout as at
from nlsq_nb.compiled import OFF, finish, is_plain, reached, warmup_asked, warmup_settings
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.chunk import Resident
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.native_run import NativeRun, found_so_far
from nlsq_nb.objective import DataObjective, SourcedEngine
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.state import FitState, WarmupStop
from nlsq_nb.phases.warmup import Warmup
from nlsq_nb.plan import newton_phase, warmup_phase
from nlsq_nb.retold import MODES
from nlsq_nb.scan import DataSummary
from nlsq_nb.sources.weights import total_weight

__all__ = ["NativePhases", "NativePlan", "Ran", "plan_of"]

Floats = NDArray[np.float64]
_KNOWN = 64  # options whose phases are kept


@dataclass(frozen=True, slots=True)
class NativePlan:
    """The phases that some options ask for.

    Attributes
    ----------
    options : Groups
        Themselves: a plan belongs to one object.
    newton : GaussNewton
        Phase 2.
    warmup : Warmup
        Phase 1, but for what the data say.
    asked : tuple of int
        What native code is asked for.
    settings : tuple of float
        What it is told beside what the data say.
    """

    options: Groups
    newton: GaussNewton
    warmup: Warmup
    asked: tuple[int, ...]
    settings: tuple[float, ...]

    def told(self, summary: DataSummary, share: float = 1.0, mode: str | None = None) -> tuple[float, ...]:
        """All settings, for a share of the rows with these moments; with a mode, layers 1 and 2 have spoken."""
        rows = (share * summary.signal, np.inf, share * summary.weight, self.unit_of(summary))
        own = (self.newton.tol, self.newton.initial_radius, *rows, summary.spread / summary.weight)
        if mode is None:
            return own + self.settings
        size = getattr(self.warmup.defense.sizes, mode)
        return (*own, OFF, *self.settings[1:-4], size, size, size, size)

    @staticmethod
    def unit_of(summary: DataSummary) -> float:
        """What the loss of the warm-up is measured in."""
        return (summary.spread or summary.signal) / summary.weight or 1.0


_plans: dict[int, tuple[Groups, NativePlan | None]] = {}


def plan_of(options: Groups) -> NativePlan | None:
    """The phases that some options ask for.

    Parameters
    ----------
    options : Groups
        Validated options.

    Returns
    -------
    NativePlan or None
        None where they ask for more than is done here.
    """
    known = _plans.get(id(options))
    if known is None or known[0] is not options:
        if len(_plans) >= _KNOWN:
            _plans.clear()
        known = _plans[id(options)] = (options, _planned(options))
    return known[1]


@dataclass(slots=True)
class Ran:
    """What phases 1 and 2 have done.

    Attributes
    ----------
    passes, sample_passes : int
        Over all rows, and over the sample.
    warmup : WarmupStop or None
        How phase 1 ended; None where it was left out.
    found : list of float
        What it found.
    marks : ndarray, shape (steps, 2)
        What happened in its steps; see `retold.counted`.
    """

    passes: int = 0
    sample_passes: int = 0
    warmup: WarmupStop | None = None
    found: list[float] = field(default_factory=list)
    marks: Floats = field(default_factory=lambda: np.zeros((0, 2)))


class NativePhases(Ran):
    """Phases 1 and 2 of one fit.

    Parameters
    ----------
    plan : NativePlan
        What is asked for.
    state : FitState
        From phase 0.
    summary : DataSummary
        Counts and moments of the data.
    whole : DataObjective
        Over all rows, for steps that native code leaves to Python; counts those passes itself.
    rows : Resident
        All rows.
    parts : tuple of SourcedEngine
        Over the rows that phase 1 sees, and over the sample that leads on from there; none where it sees all rows.
    """

    def __init__(
        self,
        plan: NativePlan,
        state: FitState,
        summary: DataSummary,
        whole: DataObjective,
        rows: Resident,
        parts: tuple[SourcedEngine, ...],
    ) -> None:
        self._plan, self._state, self._summary = plan, state, summary
        self._whole, self._rows, self._parts = whole, rows, parts
        super().__init__()
        self._run: NativeRun | None = None

    def warm(self) -> bool:
        """Run phase 1; False where the fit is to begin anew elsewhere."""
        plan, state, rows = self._plan, self._state, self._rows
        if self._parts and False in state.separable.tolist() and plan.warmup.switching.limit:
            return self._warm_on()
        run = self._run = NativeRun(state, rows, plan.told(self._summary), plan.asked, plan.warmup.memory)
        self.passes = self._warmed(run)
        return self.warmup is not None

    def converge(self) -> FitState | None:
        """Run phase 2, from p0 where there was no phase 1; None where the fit is to begin anew elsewhere."""
        plan, run, most = self._plan, self._run, self._plan.newton.max_iterations
        if run is not None:
            run.go_on(most)
        else:
            run = self._run = NativeRun(self._state, self._rows, plan.told(self._summary), (0, most))
            run.go(at.GAUSS_NEWTON)
        first = self.found[at.FIRST_SSE] if self.found else None
        if run.newton_stop is None:
            return None if first is None else self._by_turns(run, first)
        self.passes += int(run.found[at.PASSES])
        return reached(run, self._state, run.found[at.FIRST_SSE] if first is None else first)

    @property
    def is_broken(self) -> bool:
        """Whether a pass over all rows ended the last run."""
        return self._run is not None and bool(self._run.found and self._run.found[at.BROKEN])

    def found_so_far(self) -> tuple[Floats, NormalSums] | None:
        """The point of a fit that the user has stopped; see `native_run.found_so_far`."""
        run = self._run
        return None if run is None else found_so_far(run.w, run.shape, self._rows.n_rows)

    def _warm_on(self) -> bool:
        """Layers 1 and 2 on all rows, phase 1 on few, phase 2 on the sample, layer 3 on all rows."""
        plan, state, rows = self._plan, self._state, self._rows
        run = self._run = NativeRun(state, rows, plan.told(self._summary), (0, 0, 0, *plan.asked[3:]))
        self.passes = self._warmed(run)
        if self.warmup is not WarmupStop.NOT_ASKED:
            return self.warmup is not None
        judged, given = self.found, state.having(sums=run.measured()[1])
        there = self._on_sample(MODES[int(judged[at.MODE])])
        if there is None:
            return False
        run = self._run = NativeRun(given, rows, plan.told(self._summary), (1, plan.newton.max_iterations))
        loss = float(run.screen(there[np.newaxis])[0])  # phase 2 goes on from there
        self.passes += int(run.found[at.PASSES])
        if not run.stop or not loss <= run.found[at.RELAXED]:
            return False
        for k in (at.RELATIVE, at.MODE, at.FIRST_SSE):
            self.found[k] = judged[k]
        return True

    def _on_sample(self, mode: str) -> Floats | None:
        """Where phase 1 leads on few rows, and phase 2 from there on a sample; None where one gave up."""
        plan, (few, part) = self._plan, self._parts
        run = self._run_over(few, self._state, mode, (*plan.asked[:-1], 0))
        if run is None:
            return None
        self.sample_passes = self._warmed(run)
        if self.warmup is None:
            return None
        near = self._state.having(theta=run.theta())
        run = self._run_over(part, near, mode, (0, plan.newton.max_iterations))
        if run is None:
            return None
        run.go(at.GAUSS_NEWTON)
        self.sample_passes += int(run.found[at.PASSES])
        stop = run.newton_stop
        return run.theta() if stop is not None and stop.success else None

    def _run_over(self, part: SourcedEngine, state: FitState, mode: str, asked: tuple[int, ...]) -> NativeRun | None:
        """A run on a part of the rows, which layers 1 and 2 have nothing to say of."""
        rows = part.resident()
        if rows is None:
            return None
        told = self._plan.told(self._summary, total_weight(part.source) / self._summary.weight, mode)
        return NativeRun(state.having(sums=None), rows, told, asked, self._plan.warmup.memory)

    def _warmed(self, run: NativeRun) -> int:
        """Run phase 1, as far as it is asked for; its passes."""
        run.go(at.LBFGS)
        self.warmup, self.found = run.warmup_stop, run.found
        self.marks = run.log(int(self.found[at.TOLD]))[:, 4:6].copy()
        return int(self.found[at.PASSES])

    def _by_turns(self, run: NativeRun, first: float) -> FitState | None:
        """Phase 2 where native code leaves trials to Python."""
        theta, sums = run.measured()  # where phase 1 ended, if no trial was made since
        begun = self._state.having(theta=theta, sums=sums, first_sse=first)
        found = finish(self._plan.newton, run, begun, self._rows, self._whole, tell=False)
        return None if found is None else found[0]


def _planned(options: Groups) -> NativePlan | None:
    checkpoint = options.checkpoint
    more = options.report.verbose or options.multistart.enabled or options.penalty.group_variance
    kept = checkpoint.resume is not None or (checkpoint.enabled and checkpoint.folder is not None)
    if more or kept or options.weights.weighted:
        return None
    newton = newton_phase(options, 1)
    warmup = warmup_phase(options, DataSummary(1, 1, 1.0, 1.0, 1.0), 1)
    if not isinstance(newton, GaussNewton) or not is_plain(warmup):
        return None
    return NativePlan(options, newton, warmup, warmup_asked(warmup), warmup_settings(warmup, 0.0, np.inf, 1.0)[7:])
