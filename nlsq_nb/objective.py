"""The objective: kernel × engine × source and penalties, evaluated at (theta, order)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Resident
from nlsq_nb.core.losses import Loss
from nlsq_nb.core.penalties import GroupVariance
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.core.tsqr import Triangle
from nlsq_nb.protocols import Engine, Source

__all__ = ["DataObjective", "SourcedEngine"]

Floats = NDArray[np.float64]


class SourcedEngine(Engine, Protocol):
    """An engine that shows what it reads."""

    @property
    def source(self) -> Source:
        """The rows of its passes."""

    def under(self, loss: Loss) -> SourcedEngine:
        """The engine over the same rows with another loss."""


class DataObjective:
    """Sums over the data at a point; counts the passes.

    Parameters
    ----------
    engine : SourcedEngine
        Runs a pass.
    n_params : int
        p.
    explain : callable
        Called with theta when the very first sums are not finite; raises the reason.
    penalty : GroupVariance, optional
        What is added to the sums of the data.
    weight : float, optional
        Σ w over the residuals, where a scan has found it; else it is found when asked for.
    sample : callable, optional
        Makes the objective over a sample of the rows, once, when it is first asked for; without it
        the sample is this objective.
    """

    def __init__(
        self,
        engine: SourcedEngine,
        n_params: int,
        explain: Callable[[Floats], None],
        *,
        penalty: GroupVariance | None = None,
        weight: float | None = None,
        sample: Callable[[], DataObjective] | None = None,
    ) -> None:
        self._engine = engine
        self._explain = explain
        self._penalty = penalty
        self._make_sample = sample
        self._sample: DataObjective | None = None
        self._weight = None if weight is None else (engine.source.revision, weight)
        self._stiffness: tuple[bytes, Floats] | None = None
        self._resident: tuple[int, Resident | None] | None = None
        self._views: dict[Loss, DataObjective] = {}
        self._count = [0]
        self.n_params = n_params

    @property
    def passes(self) -> int:
        """Passes over all rows so far, under any loss; a sample counts its own."""
        return self._count[0]

    @passes.setter
    def passes(self, count: int) -> None:
        self._count[0] = count

    @property
    def source(self) -> Source:
        """The rows of a pass."""
        return self._engine.source

    @property
    def revision(self) -> int:
        """Rises when the weights change, or rows can no longer be read."""
        return self._engine.source.revision

    @property
    def weight(self) -> float:
        """Σ w over the residuals; see `Objective.weight`."""
        known, revision = self._weight, self.revision
        if known is None or known[0] != revision:
            known = self._weight = (revision, self._engine.weight())
        return known[1]

    @property
    def sample(self) -> DataObjective:
        """The objective over a sample; see `Objective.sample`."""
        if self._make_sample is None:
            return self
        if self._sample is None:
            self._sample = self._make_sample()
        return self._sample

    @property
    def sample_passes(self) -> int:
        """Passes over the sample so far; 0 where there is none."""
        return 0 if self._sample is None else self._sample.passes

    def __call__(self, theta: Floats, order: int) -> NormalSums:
        """One pass over the data; see `Objective`."""
        sums = self._engine.run(np.ascontiguousarray(theta, dtype=np.float64), order)
        if self._penalty is not None:
            sums = sums + self._penalty(theta)
        if self.passes == 0 and not sums.is_finite:
            self._explain(theta)
        self.passes += 1
        return sums

    def under(self, loss: Loss) -> DataObjective:
        """The objective with another loss; see `Objective.under`."""
        view = self._views.get(loss)
        if view is None:
            engine = self._engine.under(loss)
            view = DataObjective(engine, self.n_params, self._explain, penalty=self._penalty)
            view._count = self._count
            self._views[loss] = view
        return view

    def resident(self) -> Resident | None:
        """The rows and their kernel for native code that makes many passes.

        Returns
        -------
        Resident or None
            None where there is no such way, or something is added to the sums of the data.
        """
        if self._penalty is not None:
            return None
        known = self._resident
        if known is None or known[0] != self.revision:
            known = self._resident = (self.revision, self._engine.resident())
        return known[1]

    def matvec(self, theta: Floats, v: Floats) -> Floats:
        """One pass over the data; see `Objective.matvec`."""
        at, along = (np.ascontiguousarray(a, dtype=np.float64) for a in (theta, v))
        product = self._engine.matvec(at, along)
        self.passes += 1
        if self._penalty is None:
            return product
        known, key = self._stiffness, at.tobytes()
        if known is None or known[0] != key:  # conjugate gradients stay at one theta
            known = self._stiffness = (key, self._penalty(at).jtj)
        return np.asarray(product + known[1] @ along)

    def triangle(self, theta: Floats) -> Triangle:
        """One pass over the data; see `Objective.triangle`."""
        extra = None if self._penalty is None else self._penalty.rows(theta)
        found = self._engine.triangle(np.ascontiguousarray(theta, dtype=np.float64), extra)
        self.passes += 1
        return found
