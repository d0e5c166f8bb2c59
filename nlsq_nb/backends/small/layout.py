"""Where everything stands in the two arrays of a compiled small fit: `task` of integers, `w` of numbers.

Vectors and matrices (rows by rows) are stretches of `w`. Their places are integers in `task`, beside what
is asked; so a function needs few arguments, and one text serves any number of parameters.

A point is a record: θ, the change that relaxes its linear parameters, ∂loss/∂z, then norms, y and u
of its factor, g, H, L, the sums as the kernel gives them, and room for those of a segment.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.layout import SEGMENT, sums_size

__all__ = [
    "FOLDING",
    "GAUSS_NEWTON",
    "JUDGED",
    "LBFGS",
    "MOMENTS",
    "PATTERN",
    "RESULTS",
    "SCREENING",
    "SETTINGS",
    "SHARING",
    "SURVEY",
    "TAKEN",
    "TAKEN_UP",
    "UNTOUCHED",
    "WIDTH",
    "Layout",
    "layout",
]

LBFGS, GAUSS_NEWTON, SCREENING, SURVEY, MOMENTS, PATTERN, FOLDING = range(1, 8)
"""The phases, a look at many starts, two at the data, one at residuals, and the sum of sums; the last three have places
of their own: see `moments`, `pattern` and `folding`."""

SHARING = 8
"""A pass of a team; see `sharing`."""

TAKEN_UP = 2
"""What `task` has at GIVEN where phase 2 goes on from a point that it has left: more than the sums is given."""

UNTOUCHED, TAKEN, JUDGED = range(3)
"""Where phase 2 stands when it gives up (at HAPPENED): at its start, at a point that is still to be judged, before a
trial."""

# --- task ---
(
    KERNEL,  # address of the sums of order 2
    ROWS,
    GIVEN,  # whether the sums at the start are given, or more
    BOUNDED,  # whether there is any bound
    LINES,  # of the log: 0 where nobody reads it
    CEILING,  # steps at which the phase ends in any case
    LIMIT,  # steps that the warm-up is asked for
    EARLY,  # steps before which a plateau must last
    BY_PLATEAU,  # what may end the warm-up
    BY_GRADIENT,
    ADAPTS,  # whether layer 2 is on
    WEIGHTED,  # whether a survey finds weights behind y
    SPAN,  # rows of a call of the kernel
    DONE,  # what it returns if it could
) = range(14)
ASKED = 14
(
    P,  # parameters
    M,  # linear ones among them
    MEMORY,  # pairs that L-BFGS remembers
    TABLE,  # in `task`: place of the addresses of the columns
    SIZE,  # of the sums
    RECORD,  # length of a record, and places in it
    CHANGE,
    SLOPE,
    NORMS,
    Y,
    U,
    G,
    H,
    L,
    SUMS,
    GAIN,  # what relaxing the linear parameters takes off the sse
    BOXED,  # whether bounds are in the way of that
    LOWER,  # bounds
    UPPER,
    SCALES,  # of z
    BEGUN,  # p0
    ONE,  # the start, then the record of a trial
    TWO,  # the trial with its linear parameters relaxed
    HERE,  # the current point
    BEST,  # the point of lowest loss
    KEPT,  # what a line search has found so far
    SCALE,  # D
    DELTA,  # a trial step
    PLACE,  # where a change would lead
    WAY,  # a direction in z
    DOWN,  # ∂loss/∂z of the current point, but for what bounds forbid
    LEFT,  # what they leave of a direction
    BASE,  # where it begins
    MOVE,  # the same in θ, the linear parameters following
    FORCE,  # right-hand side of what makes them follow
    S_PAIRS,  # the memory
    Y_PAIRS,
    BENDS,
    SHARES,
    WORK,  # space for the algebra
    BOX,  # and for that within bounds
    INVERSE,  # of JᵀWJ where phase 2 has ended, rows by rows
    LOG,
) = range(ASKED, ASKED + 43)
ORDER = ASKED + 43  # the parameters begin here, linear ones first

# --- w: what is found ---
(
    STEPS,
    PASSES,
    TOLD,  # lines of the log
    BROKEN,  # whether the kernel could not
    SSE,  # of the current point
    RELAXED,  # the same with the linear parameters at their best
    OFFSET,
    RADIUS,
    SIGNAL,
    NEW_SSE,  # of the trial
    NEW_RELAXED,
    LENGTH,  # of the trial step: ‖Dδ‖, λ, gᵀδ, predicted reduction
    DAMPING,
    FALL,
    PREDICTED,
    FIRST_SSE,
    RELATIVE,
    MODE,
    LOSS,  # of the current point
    LEAST,  # of the best one
    NEW_LOSS,  # of the trial
    RISE,
    STEEP,  # norm of the gradient
    CLIPS,
    FAILURES,
    FILLED,
    PAIRS,
    CALM,
    STUCK,
    HAPPENED,  # in the step, as the log tells it
    CONDITION,  # of the scaled JᵀWJ, in the 1-norm; 0 where its inverse is not there
    SPREAD,  # Σ w (y − mean)², which a survey finds
) = range(32)
RESULTS = 32
# --- w: settings ---
(
    TOL,
    INITIAL_RADIUS,
    GIVEN_SIGNAL,
    GIVEN_SSE,  # at p0; inf where it is not known
    WEIGHT,
    UNIT,
    VARIANCE,
    WARM_START,  # threshold of layer 1; negative: off
    LONGEST,  # step of the warm-up
    CLIP,  # longest gradient
    TOLERANCE,  # of layer 3; negative: off
    PLATEAU_SIZE,
    GRADIENT_SIZE,
    FIRST_STEPS,  # one for each tier
) = range(RESULTS, RESULTS + 14)
SETTINGS = RESULTS

WIDTH = 6
"""Numbers of a line of the log before θ: in phase 1 step, loss, norms of gradient and step, length that
was clipped, and what happened; in phase 2 trial, sse, norm of the gradient, reduction, Δ in z, accepted; of a start
its sse."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The places for fits of one shape.

    Attributes
    ----------
    task : ndarray of int64
        Filled but for what is asked and the addresses of the columns.
    size : int
        Length of `w`.
    space : type
        Makes memory for `w` and, behind it, `task`; where it is costs less to ask than of an array.
    n_params, n_sums : int
        p, and how many sums of order 2 there are.
    one, best : int
        Where the records begin that hold the end of a phase and the point of lowest loss.
    sums : int
        Where the sums are in a record.
    lower, scale, inverse, log : int
        Where the bounds, D, the inverse of JᵀWJ and the log begin.
    """

    task: NDArray[np.int64]
    size: int
    space: Any
    n_params: int
    n_sums: int
    one: int
    best: int
    sums: int
    lower: int
    scale: int
    inverse: int
    log: int


@lru_cache(maxsize=64)
def layout(separable: bytes, columns: int, memory: int, lines: int) -> Layout:
    """Lay out the arrays.

    Parameters
    ----------
    separable : bytes
        One per parameter: whether it is linear.
    columns : int
        Columns of x, y and w.
    memory : int
        Pairs that L-BFGS remembers.
    lines : int
        Lines of the log.

    Returns
    -------
    Layout
        The same object for the same arguments.
    """
    p, size = len(separable), sums_size(len(separable), 2)
    order = [k for k in range(p) if separable[k]] + [k for k in range(p) if not separable[k]]
    vectors = dict.fromkeys((CHANGE, SLOPE, NORMS, Y, U, G), p)
    parts, record = _places(p, vectors | {H: p * p, L: p * p, SUMS: 4 * size, GAIN: 1, BOXED: 1})  # after θ
    boxes = dict.fromkeys((LOWER, UPPER, SCALES, BEGUN), p)
    records = dict.fromkeys((ONE, TWO, HERE, BEST, KEPT), record)
    vectors = dict.fromkeys((SCALE, DELTA, PLACE, WAY, DOWN, LEFT, BASE, MOVE, FORCE), p)
    pairs = {S_PAIRS: (memory + 1) * p, Y_PAIRS: (memory + 1) * p, BENDS: memory + 1, SHARES: memory + 1}
    work = {WORK: 10 * p + 2 * p * p, BOX: 8 * p + p * p, INVERSE: p * p, LOG: lines * (WIDTH + p)}
    spots, end = _places(FIRST_STEPS + 4, boxes | records | vectors | pairs | work)
    numbers = {P: p, M: sum(separable), MEMORY: memory, TABLE: ORDER + p, SIZE: size, RECORD: record, SPAN: SEGMENT}
    task = np.zeros(ORDER + p + columns, dtype=np.int64)
    for index, value in (parts | spots | numbers).items():
        task[index] = value
    task[ORDER : ORDER + p] = order
    space = ctypes.c_double * (end + len(task))
    begins = (spots[name] for name in (LOWER, SCALE, INVERSE, LOG))
    return Layout(task, end, space, p, size, spots[ONE], spots[BEST], parts[SUMS], *begins)


def _places(at: int, lengths: dict[int, int]) -> tuple[dict[int, int], int]:
    """Where stretches begin that lie one behind the other, and the end of the last."""
    found = {}
    for name, length in lengths.items():
        found[name] = at
        at += length
    return found, at
