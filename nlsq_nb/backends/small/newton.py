"""Gauss–Newton of a compiled small fit: `phases.gauss_newton` step by step, where systems are regular."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import (
    EPS,
    factorize,
    inverse_trace,
    invert,
    is_conditioned,
    reduced_norms,
    relax,
)
from nlsq_nb.backends.small.boxed import gain_at, lands, relax_within, step_at
from nlsq_nb.backends.small.layout import (
    BEGUN,
    BOXED,
    CEILING,
    CHANGE,
    CONDITION,
    DAMPING,
    DELTA,
    FALL,
    GAIN,
    GIVEN,
    HAPPENED,
    HERE,
    INITIAL_RADIUS,
    JUDGED,
    LENGTH,
    LINES,
    LOG,
    NEW_RELAXED,
    NEW_SSE,
    NORMS,
    OFFSET,
    ONE,
    ORDER,
    PASSES,
    PLACE,
    PREDICTED,
    RADIUS,
    RELAXED,
    ROWS,
    SCALE,
    SCALES,
    SIGNAL,
    SSE,
    STEPS,
    TAKEN,
    TAKEN_UP,
    TOL,
    TOLD,
    TWO,
    UNTOUCHED,
    WIDTH,
    G,
    L,
    M,
    P,
    Y,
)
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.points import clear, copy_point, has_room, is_inside, measure, move
from nlsq_nb.backends.small.stationary import is_beside, is_held, is_regular, is_spent, sees_all
from nlsq_nb.core.layout import SEGMENT

__all__ = ["GAVE_UP", "SILENT", "TRUSTED", "newton"]

TINY = 2.2250738585072014e-308
# as the phase and core have them
ACCEPT, POLISH, POLISHED, SILENT, TRUSTED = 1e-4, 0.1, 1e-11, 1e-8, 1e-6
FEW = 8 * SEGMENT  # rows, as the phase
LATE = 40  # as the phase: trials that native code makes where no parameter is eliminated
GO_ON, GAVE_UP, RELATIVE_OFFSET, ROUNDING, EXACT_FIT, MAX_ITERATIONS, STALLED, AT_BOUND = range(-1, 7)


@native
def solve(task: Ints, w: Floats, at: int) -> bool:
    """Factorise the sums of a point; False where the general way is needed (`Quadratic`)."""
    p, m = task[P], task[M]
    if not factorize(task, w, at, p) or not is_conditioned(w, at + task[L], p, m, TRUSTED / EPS):
        return False
    clear(task, w, at)
    w[at + task[GAIN]], w[at + task[BOXED]] = relax(task, w, at, p, at + task[Y], at + task[CHANGE]), 0.0
    if is_inside(task, w, at) and has_room(task, w, at, at + task[CHANGE], p):
        return True
    w[at + task[BOXED]] = 1.0
    if not has_room(task, w, at, at + task[CHANGE], m):
        w[at + task[GAIN]] = relax_within(task, w, at)
    return bool(w[at + task[GAIN]] >= 0.0)


@native
def relaxed(task: Ints, w: Floats, at: int, sse: float) -> float:
    """The sse of a solved point with its linear parameters at their best."""
    return float(max(sse - w[at + task[GAIN]], 0.0))


@native
def is_hopeless(task: Ints, w: Floats, least: float) -> bool:
    """Whether a trial cannot become better than the current point, but for rounding."""
    if least < w[RELAXED] + 4.0 * w[NEW_SSE] * EPS:
        return False
    lost = min(1.0, EPS * inverse_trace(w, task[ONE] + task[L], task[P], task[M]))
    return bool(least >= w[RELAXED] + 4.0 * w[NEW_SSE] * lost)


@native
def settle(task: Ints, w: Floats) -> int:
    """Settle the point of the first record as `GaussNewton._settle`: the record it ends in, −1 to give up.

    Its sse is there; both become those of that record.
    """
    one, two, sse, trial = int(task[ONE]), int(task[TWO]), float(w[NEW_SSE]), w[STEPS] > 0.0
    if not solve(task, w, one):
        return -1
    least = relaxed(task, w, one, sse)
    w[NEW_RELAXED] = least
    worse = trial and w[OFFSET] > w[TOL] and sse > w[SSE]
    if task[M] == 0 or not (worse or w[one + task[GAIN]] > POLISH * least or lands(task, w, one)):
        return one
    if trial and is_hopeless(task, w, least):
        return one
    move(task, w, one, one + task[CHANGE], 1.0, two)
    new = measure(task, w, two)
    if not new <= sse:
        w[NEW_RELAXED] = sse  # too ill-conditioned to be believed
        return one
    if not solve(task, w, two):
        return -1
    w[NEW_SSE], w[NEW_RELAXED] = new, relaxed(task, w, two, new)
    return two


@native
def noise_of(task: Ints, w: Floats, m: int) -> float:
    """Rounding error of the sse, m linear terms cancelling; see `trial.rounding_of`."""
    here, scale = task[HERE], float(w[SIGNAL])
    for i in range(m):
        k = task[ORDER + i]
        term = w[here + k] * w[here + task[NORMS] + i]
        scale = max(scale, term * term)
    return float(4.0 * EPS * math.sqrt(w[SSE]) * math.sqrt(scale) + 4.0 * EPS * w[SSE])


@native
def offset_of(gain: float, sse: float) -> float:
    """The relative offset."""
    return math.sqrt(gain / sse) if sse > 0.0 else 0.0


@native
def is_stuck(task: Ints, w: Floats) -> bool:
    """`trial.is_stuck` after a trial."""
    here, total, same = task[HERE], 0.0, True
    move(task, w, here, task[DELTA], 1.0, task[PLACE])
    for k in range(task[P]):
        size = w[task[SCALE] + k] * w[here + k]
        total += size * size
        same = same and w[task[PLACE] + k] == w[here + k]
    return same or w[RADIUS] <= EPS * math.sqrt(total)


@native
def stationary(task: Ints, w: Floats, accepted: int) -> int:
    """What is called for where a full step gains next to nothing."""
    if not (sees_all(task, w) and is_regular(task, w)):
        return GAVE_UP
    if not is_held(task, w):
        return RELATIVE_OFFSET
    return GO_ON if accepted > 0 and is_beside(task, w) else AT_BOUND


@native
def judge(task: Ints, w: Floats, accepted: int) -> int:
    """The stop that the current point calls for, as `GaussNewton._judge`; notes its offset."""
    gain = gain_at(task, w, task[HERE])
    if gain < 0.0:
        return GAVE_UP
    before, w[OFFSET] = float(w[OFFSET]), offset_of(gain, w[SSE])
    if w[SSE] <= 64.0 * EPS * EPS * w[SIGNAL]:
        return EXACT_FIT
    if w[OFFSET] <= w[TOL]:
        first = before > w[TOL] and before < math.inf and w[STEPS] < task[CEILING]
        if accepted > 0 and first and w[OFFSET] > POLISHED and task[ROWS] <= FEW:
            return GO_ON
        stop = stationary(task, w, accepted)
        if stop == GAVE_UP:
            w[OFFSET] = before
        return stop
    last = accepted == 0 or w[STEPS] >= task[CEILING]
    if (accepted == 0 and gain <= noise_of(task, w, 0)) or (last and is_spent(task, w)):
        return ROUNDING if is_regular(task, w) else GAVE_UP
    if accepted == 0 and is_stuck(task, w):
        return STALLED
    if w[STEPS] >= task[CEILING]:
        return MAX_ITERATIONS
    if task[M] == 0 and w[STEPS] >= LATE:
        w[OFFSET] = before
        return GAVE_UP
    return GO_ON


@native
def next_radius(w: Floats, actual: float) -> float:
    """`core.trust_region.next_radius`."""
    radius, length, predicted = float(w[RADIUS]), float(w[LENGTH]), float(w[PREDICTED])
    ratio = actual / predicted if predicted > 0.0 else -math.inf
    if ratio <= 0.25:
        shrink = 0.5 if actual >= 0.0 else 0.5 * w[FALL] / (w[FALL] - 0.5 * actual)
        reach = min(radius, 10.0 * length) if length > 0.0 else radius
        return max(min(max(shrink, 0.1), 0.5) * reach, TINY)
    if length > 0.0 and (w[DAMPING] == 0.0 or ratio >= 0.75):
        return 2.0 * length
    return radius


@native
def first_radius(task: Ints, w: Floats) -> bool:
    """The D-norm of a step along the full one, the first radius long in z; False to give up."""
    delta, reach, length = task[DELTA], 0.0, 0.0
    if not step_at(task, w, task[HERE], math.inf):
        return False
    for i in range(task[M], task[P]):
        k = task[ORDER + i]
        size, scaled = w[delta + k] / w[task[SCALES] + k], w[task[SCALE] + k] * w[delta + k]
        if w[task[BEGUN] + k] != 0.0:
            reach += size * size
        length += scaled * scaled
    share = w[INITIAL_RADIUS] / math.sqrt(reach) if reach > 0.0 else 1.0
    w[RADIUS] = max(share * math.sqrt(length), TINY)
    return True


@native
def is_better(task: Ints, w: Floats, row: int, actual: float) -> int:
    """Whether a settled trial becomes the current point; −1 to give up."""
    if actual > ACCEPT * w[PREDICTED]:
        return 1 if w[NEW_SSE] <= w[SSE] else 0
    noise = noise_of(task, w, task[M])
    if not abs(actual) <= noise:
        return 0
    if w[NEW_SSE] < w[SSE] - noise:
        return 1
    gain = gain_at(task, w, row)
    if gain < 0.0:
        return -1
    return 1 if offset_of(gain, w[NEW_SSE]) < w[OFFSET] else 0


@native
def take(task: Ints, w: Floats, row: int) -> None:
    """Make a settled point the current one, which is still to be judged; D grows with its norms."""
    here, scale, norms = task[HERE], task[SCALE], task[PLACE]
    copy_point(task, w, row, here)
    w[HAPPENED] = TAKEN
    w[SSE], w[RELAXED] = w[NEW_SSE], w[NEW_RELAXED]
    reduced_norms(task, w, here, norms)
    for k in range(task[P]):
        w[scale + k] = max(w[scale + k], w[norms + k])


@native
def reach_of(task: Ints, w: Floats) -> float:
    """The radius of the trial in z."""
    total = 0.0
    for i in range(task[M], task[P]):
        k = task[ORDER + i]
        size = w[task[DELTA] + k] / w[task[SCALES] + k]
        total += size * size
    return float(w[RADIUS] * math.sqrt(total) / w[LENGTH] if w[LENGTH] > 0.0 else w[RADIUS])


@native
def slope_of(task: Ints, w: Floats) -> float:
    """‖S Jᵀr‖ at the current point."""
    total = 0.0
    for k in range(task[P]):
        size = w[task[SCALES] + k] * w[task[HERE] + task[G] + k]
        total += size * size
    return math.sqrt(total)


@native
def attempt(task: Ints, w: Floats) -> int:
    """One trial as `GaussNewton._trial`: a stop, or to go on."""
    here, one, row, actual = task[HERE], task[ONE], task[ONE], -math.inf
    if math.isinf(w[RADIUS]) and not first_radius(task, w):
        return GAVE_UP
    if not step_at(task, w, here, w[RADIUS]):
        return GAVE_UP
    move(task, w, here, task[DELTA], 1.0, one)
    w[NEW_SSE], w[STEPS] = measure(task, w, one), w[STEPS] + 1.0
    trial_sse, accepted = w[NEW_SSE], 0
    if math.isfinite(trial_sse):
        row = settle(task, w)
        if row < 0:
            return GAVE_UP
        trial_sse, actual = w[NEW_SSE], w[RELAXED] - w[NEW_RELAXED]
        accepted = is_better(task, w, row, actual)
        if accepted < 0:
            return GAVE_UP
    log = task[LOG] + int(w[TOLD]) * (WIDTH + task[P])
    if task[LINES] > 0:
        w[log + 2], w[log + 3], w[log + 4] = slope_of(task, w), w[SSE] - trial_sse, reach_of(task, w)
    w[RADIUS] = next_radius(w, max(actual, 0.0) if accepted > 0 else actual)
    if accepted > 0:
        take(task, w, row)
    if task[LINES] > 0:
        w[log], w[log + 1], w[log + 5], w[TOLD] = w[STEPS], w[SSE], accepted, w[TOLD] + 1.0
        for k in range(task[P]):
            w[log + WIDTH + k] = w[here + k]
    return judge(task, w, accepted)


@native
def begin(task: Ints, w: Floats) -> int:
    """Settle and judge the start, or take up a phase that was left: a stop, or to go on."""
    one = int(task[ONE])
    if task[GIVEN] == TAKEN_UP:
        if not solve(task, w, one):
            return GAVE_UP
        copy_point(task, w, one, task[HERE])
        return GO_ON
    w[NEW_SSE], w[RADIUS], w[OFFSET] = w[SSE], math.inf, math.inf
    row = settle(task, w)
    if row < 0:
        return GAVE_UP
    for k in range(task[P]):
        w[task[SCALE] + k] = 0.0
    take(task, w, row)
    return judge(task, w, 1)


@native
def newton(task: Ints, w: Floats) -> int:
    """Phase 2 from the point measured in the first record: its stop.

    Where it gives up, the first record is the last point that was taken, and what was found is as it was before the
    trial that needs the general way.
    """
    stop = begin(task, w)
    while stop == GO_ON:
        w[HAPPENED] = JUDGED
        steps, passes, told, radius = w[STEPS], w[PASSES], w[TOLD], w[RADIUS]
        stop = attempt(task, w)
        if stop == GAVE_UP and w[HAPPENED] == JUDGED:
            w[STEPS], w[PASSES], w[TOLD], w[RADIUS] = steps, passes, told, radius
    if stop != GAVE_UP or w[HAPPENED] != UNTOUCHED:
        copy_point(task, w, task[HERE], task[ONE])
    if (stop == RELATIVE_OFFSET or (stop == ROUNDING and sees_all(task, w))) and is_inside(task, w, task[HERE]):
        w[CONDITION] = invert(task, w, task[HERE])
    return stop
