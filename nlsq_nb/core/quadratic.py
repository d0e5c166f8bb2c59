"""The sse around a point as its sums describe it: a quadratic, and its minima within the bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.bounds import Room, has_room
from nlsq_nb.core.factor import Factor, factorize, split
from nlsq_nb.core.linsolve import SINGULAR, principal
from nlsq_nb.core.trust_region import Step, trust_region_step
from nlsq_nb.core.varpro import TRUSTED, reduced_norms, reduced_step, relax

__all__ = ["Quadratic", "quadratic"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Quadratic:
    """What one pass at a point says about the points around it.

    Attributes
    ----------
    h, g : ndarray, shape (p, p) and (p,)
        JᵀWJ and JᵀWr.
    room : tuple of ndarray, or None
        Lowest and highest change that the bounds allow; None without bounds.
    linear, free : ndarray of bool, shape (p,)
        Parameters to eliminate, and parameters that may move.
    ridge : float
        Relative ridge where a system is numerically singular.
    factor : Factor or None
        The factor; None where the general way is needed: ill-conditioned, or at a bound.
    relaxed_gain : float
        Reduction of the sse when the linear parameters take their best values.
    """

    h: Floats
    g: Floats
    room: Room | None
    linear: Mask
    free: Mask
    ridge: float
    factor: Factor | None
    relaxed_gain: float

    def is_eliminable(self) -> bool:
        """Whether the factor alone shows that the linear parameters may be eliminated.

        Returns
        -------
        bool
            False where `eliminable` has to look closer.
        """
        if self.factor is None:
            return False
        return _EPS * self.factor.condition(self.factor.split.n_inner) <= TRUSTED

    def is_regular(self) -> bool:
        """Whether the factor alone shows that the free parameters are all determined.

        Returns
        -------
        bool
            False where `weak_directions` has to look closer.
        """
        if self.factor is None:
            return False
        count = len(self.factor.norms)
        return self.factor.condition(count) * count * SINGULAR < 1.0

    def relax(self) -> Step:
        """The step of the linear parameters to their best values; see `varpro.relax`.

        Returns
        -------
        Step
            Zero at the others.
        """
        if self.factor is not None:
            return self.factor.relaxed()
        return relax(self.h, self.g, self.linear, self._room(), self.ridge)

    def norms(self) -> Floats:
        """Column norms with the linear parameters eliminated; see `reduced_norms`.

        Returns
        -------
        ndarray, shape (p,)
            Of no meaning at fixed parameters.
        """
        if self.factor is not None:
            return self.factor.reduced_norms()
        return reduced_norms(self.h, self.linear, self.ridge)

    def gain(self, scale: Floats) -> float:
        """Reduction of the sse that the Gauss–Newton step of all free parameters promises.

        Parameters
        ----------
        scale : ndarray, shape (p,)
            D.

        Returns
        -------
        float
            Twice the cost that the tangent plane could still take away.
        """
        if self.factor is not None and has_room(self.room, self.free, self.factor.delta):
            return self.factor.gain
        free, (lower, upper) = self.free, self._room()
        room = (lower[free], upper[free])
        h = principal(self.h, free)
        return trust_region_step(h, self.g[free], scale[free], np.inf, room, self.ridge).predicted

    def step(self, scale: Floats, radius: float) -> Step:
        """The trial step; see `reduced_step`.

        Parameters
        ----------
        scale : ndarray, shape (p,)
            D.
        radius : float
            Δ; inf for the full step.

        Returns
        -------
        Step
            Zero at fixed parameters.
        """
        if self.factor is not None:
            found = self.factor.step(scale, radius)
            if has_room(self.room, self.free, found.delta):
                return found
        free, (lower, upper) = self.free, self._room()
        part = reduced_step(
            principal(self.h, free),
            self.g[free],
            scale[free],
            radius,
            (lower[free], upper[free]),
            self.ridge,
            self.linear[free],
        )
        delta = np.zeros_like(self.g)
        delta[free] = part.delta
        return replace(part, delta=delta)

    def _room(self) -> Room:
        unlimited = np.full(len(self.g), np.inf)
        return self.room or (-unlimited, unlimited)


def quadratic(
    h: Floats, g: Floats, room: Room | None, linear: Mask, free: Mask, ridge: float
) -> Quadratic:
    """Factorise the sums at a point, once for all that is asked there.

    Parameters
    ----------
    h, g : ndarray, shape (p, p) and (p,)
        JᵀWJ and JᵀWr, finite.
    room : tuple of ndarray, or None
        Lowest and highest change that the bounds allow; None without bounds.
    linear, free : ndarray of bool, shape (p,)
        Parameters to eliminate, and parameters that may move.
    ridge : float
        Relative ridge where a system is numerically singular.

    Returns
    -------
    Quadratic
        With a factor where no bound stands in the way of the unbounded minimum.
    """
    factor = factorize(h, g, split(linear, free)) if has_room(room, free) else None
    if factor is not None and (room is None or has_room(room, free, factor.relaxed().delta)):
        return Quadratic(h, g, room, linear, free, ridge, factor, factor.relaxed_gain())
    general = Quadratic(h, g, room, linear, free, ridge, None, 0.0)
    return replace(general, relaxed_gain=general.relax().predicted)
