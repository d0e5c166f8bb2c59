"""The two iterative phases of a compiled small fit, and looks at starts, data and residuals, behind one call."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import relax
from nlsq_nb.backends.small.boxed import relax_within
from nlsq_nb.backends.small.folding import fold_all
from nlsq_nb.backends.small.layout import (
    BROKEN,
    CHANGE,
    FOLDING,
    GAUSS_NEWTON,
    GIVEN_SIGNAL,
    LINES,
    LOG,
    MOMENTS,
    ONE,
    PATTERN,
    RELAXED,
    SCREENING,
    SHARING,
    SIGNAL,
    SSE,
    SURVEY,
    TOLD,
    WIDTH,
    M,
    P,
    Y,
)
from nlsq_nb.backends.small.moments import moments
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.newton import GAVE_UP, SILENT, newton
from nlsq_nb.backends.small.pattern import pattern
from nlsq_nb.backends.small.points import clear, enter, has_room, measure
from nlsq_nb.backends.small.sharing import help_on, run_posted, run_whole
from nlsq_nb.backends.small.survey import survey
from nlsq_nb.backends.small.warmup import is_trusted, warmup

__all__ = ["help_on", "run", "run_whole"]


@native
def reduced_sse(task: Ints, w: Floats, at: int, sse: float) -> float:
    """The sse of a point with its linear parameters at their best, unless rounding forbids these."""
    m, change = task[M], at + task[CHANGE]
    if m == 0 or math.isinf(sse) or not is_trusted(task, w, at):
        return sse
    clear(task, w, at)
    gain = relax(task, w, at, m, at + task[Y], change)
    if not has_room(task, w, at, change, m):
        gain = relax_within(task, w, at)
    return max(sse - gain, 0.0) if gain > 0.0 else sse


@native
def screen(task: Ints, w: Floats) -> int:
    """The reduced sse of the first point, and of every start: they are in the log, where other phases have θ."""
    one, p = int(task[ONE]), int(task[P])
    w[RELAXED] = reduced_sse(task, w, one, w[SSE])
    for k in range(task[LINES]):
        line = task[LOG] + k * (WIDTH + p)
        for i in range(p):
            w[one + i] = w[line + WIDTH + i]
        w[line] = reduced_sse(task, w, one, measure(task, w, one))
    w[TOLD] = task[LINES]
    return 0 if w[BROKEN] > 0.0 else 1


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
        The phase's stop, by its number in the module of the phase, 1 for a look; 0 where it gave up.
    """
    if phase == SHARING:
        run_posted(task[0])
        return 1
    if phase == FOLDING:
        return fold_all(task, w)
    if phase == MOMENTS:
        return moments(task, w)
    if phase == PATTERN:
        return pattern(task, w)
    if phase == SURVEY:
        return survey(task, w)
    if not enter(task, w):
        return GAVE_UP
    w[SIGNAL] = w[GIVEN_SIGNAL] if w[GIVEN_SIGNAL] > 0.0 else SILENT * w[SSE]
    if phase == SCREENING:
        return screen(task, w)
    stop = newton(task, w) if phase == GAUSS_NEWTON else warmup(task, w)
    return GAVE_UP if w[BROKEN] > 0.0 else stop
