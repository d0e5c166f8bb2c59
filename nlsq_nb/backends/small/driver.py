"""The two iterative phases of a compiled small fit behind one call."""

from __future__ import annotations

from nlsq_nb.backends.small.layout import BROKEN, GAUSS_NEWTON, GIVEN_SIGNAL, SIGNAL, SSE
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.newton import GAVE_UP, SILENT, newton
from nlsq_nb.backends.small.points import enter
from nlsq_nb.backends.small.warmup import warmup

__all__ = ["run"]


@native
def run(phase: int, task: Ints, w: Floats) -> int:
    """Run a phase.

    Parameters
    ----------
    phase : int
        One of `layout`.
    task : ndarray of int
        What is asked, and where everything is in `w`; see `layout`.
    w : ndarray
        Settings, bounds, scales of z, p0; in the first record the start and, where they are given, its sums.
        Takes what is found; the first record becomes the end of the phase.

    Returns
    -------
    int
        The phase's stop, by its number in the module of the phase; 0 where it gave up.
    """
    if not enter(task, w):
        return GAVE_UP
    w[SIGNAL] = w[GIVEN_SIGNAL] if w[GIVEN_SIGNAL] > 0.0 else SILENT * w[SSE]
    stop = newton(task, w) if phase == GAUSS_NEWTON else warmup(task, w)
    return GAVE_UP if w[BROKEN] > 0.0 else stop
