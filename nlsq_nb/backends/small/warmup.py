"""The warm-up of a compiled small fit: `phases.warmup` step by step, where systems are regular."""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import EPS, dot, factorize, forward, is_conditioned, norm, relax
from nlsq_nb.backends.small.boxed import relax_within
from nlsq_nb.backends.small.layout import (
    ADAPTS,
    BASE,
    BEST,
    BY_GRADIENT,
    BY_PLATEAU,
    CALM,
    CEILING,
    CHANGE,
    CLIPS,
    DOWN,
    EARLY,
    FAILURES,
    FILLED,
    FIRST_SSE,
    FIRST_STEPS,
    FORCE,
    GRADIENT_SIZE,
    HAPPENED,
    HERE,
    KEPT,
    LEAST,
    LEFT,
    LIMIT,
    LOG,
    LONGEST,
    LOSS,
    MEMORY,
    MODE,
    MOVE,
    NEW_LOSS,
    NORMS,
    ONE,
    ORDER,
    PAIRS,
    PLACE,
    PLATEAU_SIZE,
    RELATIVE,
    RISE,
    SCALES,
    SLOPE,
    SSE,
    STEEP,
    STEPS,
    STUCK,
    TOLD,
    TOLERANCE,
    TWO,
    UNIT,
    VARIANCE,
    WARM_START,
    WAY,
    WEIGHT,
    WIDTH,
    G,
    H,
    L,
    M,
    P,
    Y,
)
from nlsq_nb.backends.small.lbfgs import direction, look_down, remember
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.newton import TRUSTED
from nlsq_nb.backends.small.points import clear, copy_point, has_room, measure, move

__all__ = ["warmup"]

SAME, SETTLED, C1, C2, TRIALS, PATIENCE = 1.0 + 1e-9, 1e-2, 1e-4, 0.9, 25, 3  # as the phase
NEARLY = 1.0 + 1e-12
GO_ON, GAVE_UP, WARM_START_FOUND, PLATEAU, GRADIENT, MAX_ITERATIONS, COST_GUARD, NO_STEP, AT_ROUNDING = range(-1, 8)
NOT_ASKED, NOTHING_NONLINEAR = 8, 9
REFINEMENT, CAREFUL, EXPLORATION, FIXED = range(4)
NOTHING, JUST_FILLED, NO_DESCENT, NO_LBFGS_STEP, UNTOLD = range(5)


@native
def tier(relative: float, adapts: bool) -> int:
    """`defense.step_mode`."""
    if not adapts:
        return FIXED
    if relative < 0.1:
        return REFINEMENT
    return CAREFUL if relative < 1.0 else EXPLORATION


@native
def is_trusted(task: Ints, w: Floats, at: int) -> bool:
    """Factorise the linear parameters' own system; whether they may be solved for apart."""
    m = int(task[M])
    return factorize(task, w, at, m) and is_conditioned(w, at + task[L], m, m, TRUSTED / EPS)


@native
def loss_at(task: Ints, w: Floats, at: int, sse: float) -> float:
    """Loss and gradient from the sums of a point, linear parameters relaxed; −1 to give up."""
    p, m, h, change, slope = task[P], task[M], at + task[H], at + task[CHANGE], at + task[SLOPE]
    whole = float(w[WEIGHT] * w[UNIT])
    for k in range(p):
        w[change + k] = w[slope + k] = 0.0
    if not math.isfinite(sse):
        return math.inf
    if m > 0:
        if not is_trusted(task, w, at):
            return -1.0
        gain = relax(task, w, at, m, at + task[Y], change)
        if not has_room(task, w, at, change, m):
            gain = relax_within(task, w, at)
        if gain < 0.0:
            return -1.0
        sse = max(sse - gain, 0.0)
    for i in range(m, p):
        k = task[ORDER + i]
        total = w[at + task[G] + k]
        for j in range(m):
            total -= w[h + k * p + task[ORDER + j]] * w[change + task[ORDER + j]]
        w[slope + k] = -2.0 / whole * w[task[SCALES] + k] * total
    return sse / whole


@native
def is_settled(w: Floats, sse: float) -> bool:
    """Whether the linear parameters of the trial are near their best values already."""
    return bool(sse - w[NEW_LOSS] * (w[WEIGHT] * w[UNIT]) <= SETTLED * sse)


@native
def settle_loss(task: Ints, w: Floats, sse: float) -> int:
    """Settle the point measured in the first record: the record it ends in, −1 to give up.

    As `Loss.settled`: where the linear parameters were far from their best values the point is
    measured anew with them, in the second record.
    """
    one, two, row = int(task[ONE]), int(task[TWO]), int(task[ONE])
    w[NEW_LOSS] = loss_at(task, w, one, sse)
    if w[NEW_LOSS] < 0.0:
        return -1
    if math.isinf(w[NEW_LOSS]) or task[M] == 0 or is_settled(w, sse):
        return one
    move(task, w, one, one + task[CHANGE], 1.0, two)
    new = measure(task, w, two)
    if new <= sse:
        row, sse, w[NEW_LOSS] = two, new, loss_at(task, w, two, new)
        if w[NEW_LOSS] < 0.0:
            return -1
    if not is_settled(w, sse):
        clear(task, w, row)
        w[NEW_LOSS] = sse / (w[WEIGHT] * w[UNIT])
    return row


@native
def shorter(start: float, slope: float, t: float, value: float) -> float:
    """`core.linesearch._shorter`."""
    bend = value - start - slope * t
    if not math.isfinite(bend):
        return 0.1 * t
    if bend <= 0.0:
        return 0.5 * t
    return min(max(-0.5 * slope * (t * t) / bend, 0.1 * t), 0.5 * t)


@native
def search(task: Ints, w: Floats, slope: float, longest: float) -> float:
    """`core.linesearch.wolfe` along the move: the t found, 0 where there is none, −1 to give up."""
    p, one, start = task[P], task[ONE], w[LOSS]
    low, high, best, t = 0.0, math.inf, math.inf, min(1.0, longest)
    for _ in range(TRIALS):
        move(task, w, task[BASE], task[MOVE], t, one)
        for k in range(p):
            wanted = w[task[BASE] + k] + t * w[task[MOVE] + k]
            w[task[LEFT] + k] = w[task[WAY] + k] if wanted == w[one + k] else 0.0
        row = settle_loss(task, w, measure(task, w, one))
        if row < 0:
            return -1.0
        value = w[NEW_LOSS]
        if not (math.isfinite(value) and value <= start + C1 * t * slope and value < start):
            high = t
            t = shorter(start, slope, t, value) if low == 0.0 else 0.5 * (low + high)
            continue
        copy_point(task, w, row, task[KEPT])
        low, best = t, value
        if dot(w, row + task[SLOPE], task[LEFT], p) >= C2 * slope or t >= longest:
            break
        t = min(2.0 * t, longest) if high == math.inf else 0.5 * (low + high)
    w[NEW_LOSS] = best
    return low


@native
def follow(task: Ints, w: Floats) -> bool:
    """Add to the move what keeps the linear parameters at their best, to first order; False to give up."""
    p, m, here, move, force = task[P], task[M], task[HERE], task[MOVE], task[FORCE]
    for i in range(m):
        total = 0.0
        for j in range(m, p):
            total -= w[here + task[H] + task[ORDER + i] * p + task[ORDER + j]] * w[move + task[ORDER + j]]
        if not math.isfinite(total):
            return False
        w[force + i] = total / w[here + task[NORMS] + i]
    forward(w, here + task[L], m, m, force)
    relax(task, w, here, m, force, task[PLACE])
    for i in range(m):
        w[move + task[ORDER + i]] += w[task[PLACE] + task[ORDER + i]]
    return True


@native
def verdict(task: Ints, w: Floats) -> int:
    """`Switching.verdict`."""
    if task[BY_GRADIENT] != 0 and not w[STEEP] >= w[GRADIENT_SIZE]:
        return GRADIENT
    if task[BY_PLATEAU] != 0 and w[CALM] >= (PATIENCE if w[STEPS] < task[EARLY] else 1):
        return PLATEAU
    return MAX_ITERATIONS if w[STEPS] >= task[CEILING] else GO_ON


@native
def aim(task: Ints, w: Floats) -> None:
    """Direction as `Warmup._direction`; the memory is left where it leads upwards."""
    p, gradient, way = task[P], task[DOWN], task[WAY]
    if w[PAIRS] > 0.0:
        direction(task, w)
        if dot(w, way, gradient, p) < 0.0:
            return
    w[PAIRS] = 0.0
    first = w[FIRST_STEPS + int(w[MODE])]
    for k in range(p):
        w[way + k] = w[gradient + k] * (-first / w[STEEP])


@native
def accept(task: Ints, w: Floats) -> int:
    """What was found becomes the current point, as `Warmup._accept`."""
    least, loss = w[LEAST], w[NEW_LOSS]
    remember(task, w)
    w[CALM] = w[CALM] + 1.0 if abs(w[LOSS] - loss) <= w[PLATEAU_SIZE] * abs(w[LOSS]) else 0.0
    copy_point(task, w, task[KEPT], task[HERE])
    if loss < least:
        copy_point(task, w, task[KEPT], task[BEST])
        w[LEAST] = loss
    w[LOSS], w[STUCK] = loss, 0.0
    if w[PAIRS] == task[MEMORY] and w[FILLED] == 0.0:
        w[FILLED], w[HAPPENED] = 1.0, JUST_FILLED
    look_down(task, w)
    w[RISE] = max(loss, EPS * EPS) / max(least, EPS * EPS)
    if w[TOLERANCE] >= 0.0 and not w[RISE] <= 1.0 + w[TOLERANCE]:
        return COST_GUARD
    return verdict(task, w)


@native
def fail(task: Ints, w: Floats, slope: float, had: bool) -> int:
    """No step: forget the memory and try steepest descent once, as `Warmup._without_step`."""
    if abs(slope) <= 8.0 * EPS * w[LOSS]:
        w[HAPPENED] = UNTOLD
        return AT_ROUNDING
    w[HAPPENED], w[FAILURES] = (NO_LBFGS_STEP if had else NO_DESCENT), w[FAILURES] + 1.0
    again = had and w[STUCK] == 0.0 and w[STEPS] < task[CEILING]
    w[PAIRS], w[STUCK] = 0.0, 1.0
    return GO_ON if again else NO_STEP


@native
def tell(task: Ints, w: Floats, length: float, clipped: float) -> None:
    """One line of the log."""
    here, line = task[HERE], task[LOG] + int(w[TOLD]) * (WIDTH + task[P])
    w[line], w[line + 1], w[line + 2] = w[STEPS], w[LOSS], w[STEEP]
    w[line + 3], w[line + 4], w[line + 5] = length, clipped, w[HAPPENED]
    move(task, w, here, here + task[CHANGE], 1.0, line + WIDTH)
    w[TOLD] += 1.0


@native
def descend(task: Ints, w: Floats) -> int:
    """One iteration as `Warmup.step`: a stop, or to go on."""
    p, here, way, longest, had = task[P], task[HERE], task[WAY], w[LONGEST], w[PAIRS] > 0.0
    if w[STEEP] == 0.0:
        return GRADIENT
    if not 0.0 < w[STEEP] < math.inf:
        return GAVE_UP
    aim(task, w)
    asked = norm(w, way, p)
    if not 0.0 < asked < math.inf:
        return GAVE_UP
    clipped = asked > longest * NEARLY
    share, reach = longest / asked if clipped else 1.0, max(longest / asked, 1.0)
    for k in range(p):
        w[way + k] *= share
        w[task[MOVE] + k] = w[task[SCALES] + k] * w[way + k]
    move(task, w, here, here + task[CHANGE], 1.0, task[BASE])
    slope = dot(w, task[DOWN], way, p)
    if not follow(task, w):
        return GAVE_UP
    t = search(task, w, slope, reach if reach >= SAME else 1.0)
    if t < 0.0:
        return GAVE_UP
    w[STEPS], w[CLIPS], w[HAPPENED] = w[STEPS] + 1.0, w[CLIPS] + clipped, NOTHING
    stop = accept(task, w) if t > 0.0 else fail(task, w, slope, had)
    tell(task, w, t * norm(w, way, p), asked if clipped else 0.0)
    return stop


@native
def judge_start(task: Ints, w: Floats) -> int:
    """Layers 1 and 2 as `Warmup.init`; a reason to leave the warm-up out, or to go on."""
    m, p = task[M], task[P]
    w[RELATIVE] = math.inf if w[FIRST_SSE] > 0.0 else 0.0
    if w[VARIANCE] > 0.0:
        w[RELATIVE] = w[FIRST_SSE] / w[WEIGHT] / w[VARIANCE]
    w[MODE] = tier(w[RELATIVE], task[ADAPTS] != 0)
    if w[RELATIVE] < w[WARM_START]:
        return WARM_START_FOUND
    if 1 < m < p and not is_trusted(task, w, task[ONE]):
        return GAVE_UP
    if task[LIMIT] == 0:
        return NOT_ASKED
    return NOTHING_NONLINEAR if m == p else GO_ON


@native
def warmup(task: Ints, w: Floats) -> int:
    """Phase 1 from the point measured in the first record: its stop."""
    stop = judge_start(task, w)
    if stop != GO_ON:
        return stop
    row = settle_loss(task, w, w[SSE])
    if row < 0 or math.isinf(w[NEW_LOSS]):
        return GAVE_UP
    copy_point(task, w, row, task[HERE])
    copy_point(task, w, row, task[BEST])
    w[LOSS] = w[LEAST] = w[NEW_LOSS]
    look_down(task, w)
    stop = verdict(task, w)
    while stop == GO_ON:
        stop = descend(task, w)
    copy_point(task, w, task[BEST] if w[TOLERANCE] >= 0.0 else task[HERE], task[ONE])
    return stop
