"""Many starts over the same rows: what each is worth with its linear parameters at their best, and short fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import layout as at
from nlsq_nb.compiled import is_eligible, newton_settings
from nlsq_nb.config.groups import Groups
from nlsq_nb.core.normalize import scales_at
from nlsq_nb.native_run import NativeRun
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.setup import restart
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.plan import newton_phase
from nlsq_nb.starts import reduced_sse, short_fit

__all__ = ["Attempts", "End", "end_of"]

Floats = NDArray[np.float64]
_STEPS, _FIRST_STEPS = 30, 10  # trials of a short fit, and those after which it must look hopeful
_ROUGHLY = 1e-4  # relative offset of the short fits: it leaves 1e-8 of the sse


@dataclass(frozen=True, slots=True)
class End:
    """Where a short fit ended.

    Attributes
    ----------
    theta : ndarray, shape (p,)
        The point.
    sse : float
        There; inf where none is known.
    converged : bool
        Whether it is an optimum.
    """

    theta: Floats
    sse: float
    converged: bool


def end_of(state: FitState) -> End:
    """Where a fit ended.

    Parameters
    ----------
    state : FitState
        With or without sums.

    Returns
    -------
    End
        What a comparison needs of it.
    """
    sse = math.inf if state.sums is None or not state.sums.is_finite else state.sums.sse
    return End(state.theta, sse, state.stop is not None and state.stop.success)


class Attempts:
    """Starts of one problem over the same rows.

    Parameters
    ----------
    asked : FitState
        Of the fit, with the parameters to eliminate; its own point must be a good one.
    options : Groups
        Validated options.
    part : DataObjective
        Over the rows; counts the passes.
    signal : float
        Σ w y² of the rows.

    Attributes
    ----------
    native : bool
        Whether all is done in native code, but for what that leaves to the general way.
    """

    def __init__(self, asked: FitState, options: Groups, part: DataObjective, signal: float) -> None:
        self._asked, self._options, self._part, self._signal = asked, options, part, signal
        tol = max(_ROUGHLY, options.gauss_newton.tol)
        self._phase = newton_phase(options, len(asked.theta), _FIRST_STEPS, tol)
        self._rows = part.resident() if is_eligible(self._phase, asked) else None
        self._run: NativeRun | None = None

    @property
    def native(self) -> bool:
        """See the attributes."""
        return self._rows is not None

    def screen(self, starts: Floats) -> Floats:
        """What starts are worth.

        Parameters
        ----------
        starts : ndarray, shape (n, p)
            Within the bounds.

        Returns
        -------
        ndarray, shape (n,)
            The sse with the linear parameters at their best; inf where the model is not finite.
        """
        if self._rows is not None:
            assert isinstance(self._phase, GaussNewton)
            settings = newton_settings(self._phase, self._signal)
            run = NativeRun(self._asked, self._rows, settings, (len(starts), 0))
            found = run.screen(starts)
            self._part.passes += int(run.found[at.PASSES])
            if run.stop:
                self._run = run
                return found
        ridge = self._options.gauss_newton.ridge
        return np.array([reduced_sse(self._asked, self._part, start, ridge) for start in starts])

    def fit(self, start: Floats, hopeful: float = math.inf) -> End:
        """Where a short fit leads.

        Parameters
        ----------
        start : ndarray, shape (p,)
            Within the bounds.
        hopeful : float
            The sse that it must come below soon: after ten trials, or when the general way is needed.

        Returns
        -------
        End
            Not converged where it was given up.
        """
        end = None if self._run is None else self._native_fit(self._run, start, hopeful)
        if end is not None:
            return end
        options, part, tol = self._options, self._part, _ROUGHLY
        begun = replace(restart(self._asked, start), signal=self._signal)
        found = short_fit(begun, options, part, _FIRST_STEPS, tol)
        if found.stop is StopReason.MAX_ITERATIONS and end_of(found).sse < hopeful:
            found = short_fit(replace(found, stop=None), options, part, _STEPS - _FIRST_STEPS, tol)
        return end_of(found)

    def _native_fit(self, run: NativeRun, start: Floats, hopeful: float) -> End | None:
        """The same in native code; None to go the general way."""
        asked, most = self._asked, self._options.gauss_newton.max_iterations
        scales, _ = scales_at(start, (asked.lower, asked.upper), asked.normalizer.strategy)
        run.begin_at(start, scales, min(_FIRST_STEPS, most))
        self._part.passes += int(run.found[at.PASSES])
        if run.newton_stop is StopReason.MAX_ITERATIONS and run.found[at.SSE] < hopeful:
            run.go_on(min(_STEPS - _FIRST_STEPS, most))
            self._part.passes += int(run.found[at.PASSES])
        stop, sse = run.newton_stop, run.found[at.SSE]
        if stop is None and not (run.found[at.HAPPENED] != at.UNTOUCHED and sse >= hopeful):
            return None
        return End(run.theta(), sse, stop is not None and stop.success)
