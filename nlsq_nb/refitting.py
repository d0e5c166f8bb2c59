"""`HeldFit`: the problem of a finished fit, fitted again with one parameter held."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.profile import Held
from nlsq_nb.errors import DataError
from nlsq_nb.objective import DataObjective
from nlsq_nb.phases.driver import run
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import FitState, StopReason
from nlsq_nb.phases.trial import rounding_of, sums_of
from nlsq_nb.plan import newton_phase, objective_over
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Backend
from nlsq_nb.sources.retrying import RetryingSource

__all__ = ["HeldFit"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeldFit:
    """Refits for likelihood profiles; reads the data only when it is called.

    Attributes
    ----------
    problem : Problem
        What was fitted; its source is the one of the fit, with what was left out of it.
    options : Groups
        Options of the fit.
    backend : Backend
        Where sums are computed.
    weight : float
        Σ w.
    state : FitState
        Where the fit ended, with its sums.
    """

    problem: Problem
    options: Groups
    backend: Backend
    weight: float
    state: FitState

    @property
    def resolution(self) -> float:
        """Differences of the sse below this are rounding."""
        return rounding_of(self.state)

    def optimum(self) -> Held:
        """The result's point with its sums; see `Refit`.

        Raises
        ------
        DataError
            When the data do not give the sse of the fit any more.
        """
        theta, known = self.state.theta, sums_of(self.state)
        with np.errstate(all="ignore"):
            sums = self._objective(theta, 2)
        apart = abs(sums.sse - known.sse)
        if not apart <= max(1e-6 * known.sse, 100.0 * self.resolution):
            raise DataError(
                f"the data give another sse than in the fit ({sums.sse:g} instead of {known.sse:g}): the "
                "arrays or the residual weights were changed since; fit again"
            )
        assert self.state.stop is not None
        return Held(theta, sums, self.state.stop.success)

    def __call__(self, theta: Floats, k: int) -> Held:
        """The best point with parameter k held; see `Refit`."""
        old = self.state
        lower, upper = old.lower.copy(), old.upper.copy()
        start = np.clip(theta, lower, upper)
        lower[k] = upper[k] = start[k]
        names = self.problem.model.params
        linear = tuple(name for name, is_linear in zip(names, old.separable, strict=True) if is_linear)
        strategy = old.normalizer.strategy
        begun = setup(start, (lower, upper), names, linear, old.signal, strategy)
        phase = newton_phase(self.options, len(names))
        with np.errstate(all="ignore"):
            end = run(phase, begun, self._objective, lambda _: None)
        if end.stop is StopReason.INTERRUPTED:
            raise KeyboardInterrupt
        assert end.stop is not None
        return Held(end.theta, sums_of(end), end.stop.success)

    def in_use(self) -> AbstractContextManager[None]:
        """See `RetryingSource.in_use`."""
        source = self.problem.source
        assert isinstance(source, RetryingSource)
        return source.in_use()

    @cached_property
    def _objective(self) -> DataObjective:
        return objective_over(self.problem, self.options, self.backend, self.weight)
