"""The two iterative phases of a compiled small fit, each in one call.

What they cannot finish in the plain region (a bound in the way, a singular system, no convergence)
they give up, and the phase does it from where it began.
"""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import condition, factorize
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.newton import EPS, TRUSTED, inside, measure, newton, record, unpack
from nlsq_nb.backends.small.warmup import GAVE_UP, WARM_START, warmup

__all__ = ["gauss_newton", "lbfgs"]

NOT_ASKED, NOTHING_NONLINEAR = 8, 9
REFINEMENT, CAREFUL, EXPLORATION, FIXED = range(4)
SETTINGS = 16


@native
def tier(relative: float, adapts: bool) -> int:
    """`defense.step_mode`."""
    if not adapts:
        return FIXED
    if relative < 0.1:
        return REFINEMENT
    return CAREFUL if relative < 1.0 else EXPLORATION


@native
def enter(
    kernel: int, rows: int, columns: Ints, w: Floats, counts: Ints, points: int, out: Floats
) -> float:
    """The sse at the start, measured unless its sums are given; −1 to give up."""
    p, start = counts[0], SETTINGS
    one = points + record(p)
    for k in range(p):
        w[one + k] = w[start + k]
    if not inside(w, start, start + p, start + 2 * p, p):
        return -1.0
    if counts[2]:
        sse = unpack(w, one, p)
    else:
        sse = measure(kernel, rows, columns, w, one, p)
        out[4] = 1.0
    return sse if math.isfinite(sse) else -1.0


@native
def lbfgs(
    kernel: int, rows: int, columns: Ints, w: Floats, order: Ints, counts: Ints, log: Floats, out: Floats
) -> None:
    """Phase 1; out[0] tells how it ended, 0 where it gave up.

    Parameters
    ----------
    kernel : int
        Address of the sums of order 2.
    rows : int
        Rows of the data.
    columns : ndarray of int
        Addresses of the columns.
    w : ndarray
        weight, unit, variance, warm-start threshold (negative: off), the four first steps, longest
        step, clip of the gradient, tolerance of the guard (negative: off), plateau, gradient
        threshold; from 16 on the start, lower and upper bounds, scales of z; five records of points,
        the second with the sums at the start where they are given and the end of the phase later,
        the fourth the best point; space.
    order : ndarray of int
        Parameters, linear ones first.
    counts : ndarray of int
        p, linear parameters, whether the first sums are given, adaptive steps, criteria plateau and
        gradient on, early, limit and ceiling, memory, lines that the log has room for.
    log : ndarray
        Lines of 8 + p numbers: 1, iteration, loss, norms of gradient and step, length that was
        clipped, 1 where the memory is full and 2 or 3 where the search failed, 0, θ.
    out : ndarray
        Zeros; becomes stop, iterations, loss, rise of the guard, passes, lines of the log, sse at the
        start, relative loss, mode, clips, failures, whether the memory was full.
    """
    p, m, start = counts[0], counts[1], SETTINGS
    points = start + 4 * p
    one, limits = points + record(p), points + 5 * record(p)
    sse = enter(kernel, rows, columns, w, counts, points, out)
    if sse < 0.0:
        return
    weight, unit, variance = w[0], w[1], w[2]
    relative = sse / weight / variance
    mode = tier(relative, counts[3] != 0)
    out[6], out[7], out[8] = sse, relative, mode
    if 1 < m and m < p:
        if not factorize(w, one, p, order, m):
            return
        if EPS * condition(w, one + 7 * p + p * p, m, m) > TRUSTED:
            return
    if 0.0 <= w[3] and relative < w[3]:
        out[0] = WARM_START
    elif counts[7] == 0:
        out[0] = NOT_ASKED
    elif m == p:
        out[0] = NOTHING_NONLINEAR
    else:
        w[limits], w[limits + 1], w[limits + 2], w[limits + 3] = w[4 + mode], w[8], w[9], w[10]
        w[limits + 4], w[limits + 5], w[limits + 6] = w[11], w[12] * variance / unit, sse
        w[limits + 7] = weight * unit
        out[0] = warmup(kernel, rows, columns, w, start, order, points, limits, counts, log, out)


@native
def gauss_newton(
    kernel: int, rows: int, columns: Ints, w: Floats, order: Ints, counts: Ints, log: Floats, out: Floats
) -> None:
    """Phase 2; out[0] tells how it ended, 0 where it gave up.

    Parameters
    ----------
    kernel : int
        Address of the sums of order 2.
    rows : int
        Rows of the data.
    columns : ndarray of int
        Addresses of the columns.
    w : ndarray
        tol, first radius, signal; from 16 on as in phase 1, the first record the solution at the end.
    order : ndarray of int
        Parameters, linear ones first.
    counts : ndarray of int
        p, linear parameters, whether the first sums are given, limit of trials, lines of the log.
    log : ndarray
        Lines of 8 + p numbers: 2, trial, sse, norm of the gradient, reduction, radius, accepted, 0, θ.
    out : ndarray
        Zeros; becomes stop, trials, offset, radius, passes, lines of the log, relaxed sse.
    """
    p, start = counts[0], SETTINGS
    points = start + 4 * p
    limits = points + 5 * record(p)
    sse = enter(kernel, rows, columns, w, counts, points, out)
    if sse < 0.0:
        return
    w[limits], w[limits + 1], w[limits + 2], w[limits + 3] = w[0], w[1], w[2], sse
    newton(kernel, rows, columns, w, start, order, points, limits, counts, log, out)
