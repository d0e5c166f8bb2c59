"""When the warm-up has done its work."""

from __future__ import annotations

from dataclasses import dataclass

from nlsq_nb.phases.state import WarmupStop

__all__ = ["Switching"]

_CALM = 3  # iterations on a plateau in a row that end an early warm-up
_CEILING = 10  # times the iteration limit: even a warm-up that no limit may end is finite


@dataclass(frozen=True, slots=True)
class Switching:
    """The criteria that may end the warm-up.

    Attributes
    ----------
    early : int
        Iterations before which a plateau must last three iterations.
    limit : int
        Largest number of iterations; ten times as many without the criterion "max_iter".
    plateau : float
        Relative change of the loss that counts as none.
    gradient : float
        Norm of the gradient of the loss below which it counts as small, in the unit of the loss.
    criteria : tuple of str
        Which apply: "plateau", "gradient", "max_iter".
    """

    early: int
    limit: int
    plateau: float
    gradient: float
    criteria: tuple[str, ...]

    @property
    def ceiling(self) -> int:
        """Iterations at which the warm-up ends in any case."""
        return self.limit if "max_iter" in self.criteria else _CEILING * self.limit

    def calm(self, count: int, before: float, after: float) -> int:
        """How many iterations in a row have not changed the loss.

        Parameters
        ----------
        count : int
            So far.
        before, after : float
            Loss before and after the iteration.

        Returns
        -------
        int
            count + 1, or 0.
        """
        return count + 1 if abs(before - after) <= self.plateau * abs(before) else 0

    def verdict(self, iteration: int, calm: int, gradient_norm: float) -> WarmupStop | None:
        """Why the warm-up is over.

        Parameters
        ----------
        iteration : int
            Iterations done.
        calm : int
            From `calm`.
        gradient_norm : float
            ‖∂loss/∂z‖ of the projected gradient.

        Returns
        -------
        WarmupStop or None
            None to go on.
        """
        if "gradient" in self.criteria and not gradient_norm >= self.gradient:
            return WarmupStop.GRADIENT
        if "plateau" in self.criteria and calm >= (_CALM if iteration < self.early else 1):
            return WarmupStop.PLATEAU
        return WarmupStop.MAX_ITERATIONS if iteration >= self.ceiling else None
