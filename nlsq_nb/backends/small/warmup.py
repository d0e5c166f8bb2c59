"""The warm-up of a compiled small fit: `phases.warmup` in its plain region, step by step.

Five records of points: the current one, two for trials, the best one, and what a search has found.
"""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import condition, dot, factorize, forward, norm, relax
from nlsq_nb.backends.small.native import Floats, Ints, native
from nlsq_nb.backends.small.newton import EPS, TRUSTED, copy_point, inside, measure, record

__all__ = ["warmup"]

SAME, SETTLED, CURVATURE, C1, C2, TRIALS, CALM = 1.0 + 1e-9, 1e-2, 1e-10, 1e-4, 0.9, 25, 3
GAVE_UP, WARM_START, PLATEAU, GRADIENT, MAX_ITERATIONS, COST_GUARD, NO_STEP, AT_ROUNDING = range(8)


@native
def loss_at(
    w: Floats, at: int, p: int, order: Ints, m: int, scales: int, whole: float, sse: float,
    spare: int
) -> float:
    """Loss and gradient from the sums of a point, linear parameters relaxed; −1 to give up."""
    h, lower = at + 7 * p, at + 7 * p + p * p
    for k in range(p):
        w[at + p + k] = w[at + 2 * p + k] = 0.0
    if not math.isfinite(sse):
        return math.inf
    if m:
        if not factorize(w, at, p, order, m) or EPS * condition(w, lower, m, m) > TRUSTED:
            return -1.0
        sse = max(sse - relax(w, lower, m, at + 3 * p, at + 4 * p, m, order, at + p, spare), 0.0)
    for i in range(m, p):
        k = order[i]
        total = w[at + 6 * p + k]
        for j in range(m):
            total -= w[h + k * p + order[j]] * w[at + p + order[j]]
        w[at + 2 * p + k] = -2.0 / whole * w[scales + k] * total
    return sse / whole


@native
def settle_loss(
    kernel: int, rows: int, columns: Ints, w: Floats, start: int, p: int, order: Ints, m: int,
    one: int, whole: float, sse: float, out: int
) -> int:
    """Settle the point measured in record `one`: the record it ends in, −1 to give up.

    As `Warmup._settle`: where the linear parameters were far from their best values the point is
    measured anew with them, in the next record. out[0] becomes the loss, out[1] counts the passes.
    """
    two, box, scales = one + record(p), start + p, start + 3 * p
    loss = loss_at(w, one, p, order, m, scales, whole, sse, two)
    w[out] = loss
    if loss < 0.0:
        return -1
    if math.isinf(loss) or not m or sse - loss * whole <= SETTLED * sse:
        return one
    for k in range(p):
        w[two + k] = w[one + k] + w[one + p + k]
    if not inside(w, two, box, box + p, p):
        return -1
    new, row = measure(kernel, rows, columns, w, two, p), two
    w[out + 1] += 1.0
    if not new <= sse:
        new, row = sse, one
    else:
        loss = loss_at(w, two, p, order, m, scales, whole, new, out + 2)
        if loss < 0.0:
            return -1
    if new - loss * whole > SETTLED * new:
        for k in range(p):
            w[row + p + k] = 0.0
        loss = new / whole
    w[out] = loss
    return row


@native
def direction(
    w: Floats, slope: int, p: int, memory: int, capacity: int, count: int, clip: float, way: int
) -> None:
    """`core.lbfgs.direction` of the clipped gradient."""
    ys = memory + (capacity + 1) * p
    bends = ys + (capacity + 1) * p
    shares = bends + capacity + 1
    length = norm(w, slope, p)
    shrink = clip / length if length > clip else 1.0
    for k in range(p):
        w[way + k] = -w[slope + k] * shrink
    for i in range(count - 1, -1, -1):
        w[shares + i] = dot(w, memory + i * p, way, p) / w[bends + i]
        for k in range(p):
            w[way + k] -= w[shares + i] * w[ys + i * p + k]
    last = ys + (count - 1) * p
    size = w[bends + count - 1] / dot(w, last, last, p)
    for k in range(p):
        w[way + k] *= size
    for i in range(count):
        share = w[shares + i] - dot(w, ys + i * p, way, p) / w[bends + i]
        for k in range(p):
            w[way + k] += share * w[memory + i * p + k]
    for k in range(p):
        if w[slope + k] == 0.0:
            w[way + k] = 0.0


@native
def remember(
    w: Floats, memory: int, capacity: int, count: int, old: int, new: int, p: int, order: Ints,
    m: int, scales: int
) -> int:
    """`core.lbfgs.remember`: the number of pairs afterwards."""
    ys = memory + (capacity + 1) * p
    bends = ys + (capacity + 1) * p
    s, y = memory + count * p, ys + count * p
    for k in range(p):
        w[s + k] = 0.0
        w[y + k] = w[new + 2 * p + k] - w[old + 2 * p + k]
    for i in range(m, p):
        k = order[i]
        w[s + k] = (w[new + k] - w[old + k]) / w[scales + k]
    bend = dot(w, s, y, p)
    if not bend > CURVATURE * math.sqrt(dot(w, s, s, p) * dot(w, y, y, p)):
        return count
    w[bends + count] = bend
    if count < capacity:
        return count + 1
    for i in range(capacity * p):  # the oldest gives way
        w[memory + i] = w[memory + p + i]
        w[ys + i] = w[ys + p + i]
    for i in range(capacity):
        w[bends + i] = w[bends + i + 1]
    return count


@native
def shorter(start: float, slope: float, t: float, value: float) -> float:
    """`core.linesearch._shorter`."""
    bend = value - start - slope * t
    if not math.isfinite(bend):
        return 0.1 * t
    if bend <= 0.0:
        return 0.5 * t
    return min(max(-0.5 * slope * t * t / bend, 0.1 * t), 0.5 * t)


@native
def search(
    kernel: int, rows: int, columns: Ints, w: Floats, start: int, p: int, order: Ints, m: int,
    points: int, whole: float, way: int, loss: float, slope: float, longest: float, out: int
) -> float:
    """`core.linesearch.wolfe` along the move after `way`; what is found ends in the last record.

    The t found, 0 where there is none, −1 to give up; out[0] becomes the loss there.
    """
    one, kept = points + record(p), points + 4 * record(p)
    base, move = way + p, way + 2 * p
    low, high, best, t = 0.0, math.inf, math.inf, min(1.0, longest)
    for _ in range(TRIALS):
        for k in range(p):
            w[one + k] = w[base + k] + t * w[move + k]
        if not inside(w, one, start + p, start + 2 * p, p):
            return -1.0
        sse = measure(kernel, rows, columns, w, one, p)
        w[out + 1] += 1.0
        row = settle_loss(kernel, rows, columns, w, start, p, order, m, one, whole, sse, out)
        if row < 0:
            return -1.0
        value = w[out]
        if not (math.isfinite(value) and value <= loss + C1 * t * slope and value < loss):
            high = t
            t = shorter(loss, slope, t, value) if low == 0.0 else 0.5 * (low + high)
            continue
        copy_point(w, row, kept, p)
        low, best = t, value
        if dot(w, row + 2 * p, way, p) >= C2 * slope or t >= longest:
            break
        t = min(2.0 * t, longest) if high == math.inf else 0.5 * (low + high)
    w[out] = best
    return low


@native
def follow(w: Floats, at: int, p: int, order: Ints, m: int, move: int, right: int) -> None:
    """Add to a move of the nonlinear parameters what keeps the linear ones at their best, to first order."""
    h, lower, norms, change = at + 7 * p, at + 7 * p + p * p, at + 3 * p, right + p
    for i in range(m):
        w[right + i] = 0.0
        for j in range(m, p):
            w[right + i] -= w[h + order[i] * p + order[j]] * w[move + order[j]]
        w[right + i] /= w[norms + i]
    forward(w, lower, m, m, right)
    relax(w, lower, m, norms, right, m, order, change, change + p)
    for i in range(m):
        w[move + order[i]] += w[change + order[i]]


@native
def verdict(iteration: int, calm: int, length: float, steep: float, counts: Ints) -> int:
    """`Switching.verdict`; −1 to go on."""
    if counts[5] and not (length >= steep and length > 0.0):
        return GRADIENT
    if counts[4] and calm >= (CALM if iteration < counts[6] else 1):
        return PLATEAU
    return MAX_ITERATIONS if iteration >= counts[8] else -1


@native
def warmup(
    kernel: int, rows: int, columns: Ints, w: Floats, start: int, order: Ints, points: int,
    limits: int, counts: Ints, log: Floats, out: Floats,
) -> int:
    """Phase 1 from the point measured in the second record; see `driver.lbfgs`. How it ended.

    `limits` holds first and longest step, clip of the gradient, tolerance of the guard (negative:
    off), plateau, steepness that counts, the sse of that record, and weight × unit.
    """
    p, m, spare = counts[0], counts[1], limits + 8
    here, one, best, kept = points, points + record(p), points + 3 * record(p), points + 4 * record(p)
    longest, clip, tolerance, steep = w[limits + 1], w[limits + 2], w[limits + 3], w[limits + 5]
    whole, capacity, scales = w[limits + 7], counts[9], start + 3 * p
    told, way, memory = spare, spare + 2 + 3 * p, spare + 2 + 9 * p
    base, move = way + p, way + 2 * p
    count = iterations = calm = 0
    filled = stuck = False
    w[told + 1] = 0.0
    row = settle_loss(kernel, rows, columns, w, start, p, order, m, one, whole, w[limits + 6], told)
    loss = least = w[told]
    if row < 0 or math.isinf(loss):
        return GAVE_UP
    copy_point(w, row, here, p)
    copy_point(w, row, best, p)
    length, at = norm(w, here + 2 * p, p), 0
    stop = verdict(0, 0, length, steep, counts)
    while stop < 0:
        slope, gradient = 0.0, here + 2 * p
        if at >= counts[10] or not 0.0 < length < math.inf:
            return GAVE_UP
        if count:
            direction(w, gradient, p, memory, capacity, count, clip, way)
            slope = dot(w, way, gradient, p)
        if slope >= 0.0:
            count = 0
            for k in range(p):
                w[way + k] = w[gradient + k] * (-w[limits] / length)
        asked = norm(w, way, p)
        if not 0.0 < asked < math.inf:
            return GAVE_UP
        clipped = asked > longest * (1.0 + 1e-12)
        share = longest / asked if clipped else 1.0
        reach = max(longest / asked, 1.0)
        for k in range(p):
            w[way + k] *= share
            w[base + k] = w[here + k] + w[here + p + k]
            w[move + k] = w[scales + k] * w[way + k]
        out[9] += clipped
        slope = dot(w, gradient, way, p)
        follow(w, here, p, order, m, move, way + 3 * p)
        t = search(kernel, rows, columns, w, start, p, order, m, points, whole, way, loss, slope,
                   reach if reach >= SAME else 1.0, told)
        if t < 0.0:
            return GAVE_UP
        iterations += 1
        if t == 0.0 and abs(slope) <= 8.0 * EPS * loss:
            stop = AT_ROUNDING
            break
        before, full = least, 0.0
        if t > 0.0:
            count = remember(w, memory, capacity, count, here, kept, p, order, m, scales)
            calm = calm + 1 if abs(loss - w[told]) <= w[limits + 4] * abs(loss) else 0
            copy_point(w, kept, here, p)
            loss, stuck = w[told], False
            if loss < least:
                copy_point(w, kept, best, p)
                least = loss
            full = 1.0 * (count == capacity and not filled)
            filled = filled or full > 0.0
            length = norm(w, gradient, p)
            stop = verdict(iterations, calm, length, steep, counts)
            out[3] = max(loss, EPS * EPS) / max(before, EPS * EPS)
            if tolerance >= 0.0 and not out[3] <= 1.0 + tolerance:
                stop = COST_GUARD
        else:  # forget the memory and try steepest descent once
            full, out[10] = 2.0 + (count > 0), out[10] + 1.0
            if count == 0 or stuck or iterations >= counts[8]:
                stop = NO_STEP
            count, stuck = 0, True
        line = at * (8 + p)
        log[line], log[line + 1], log[line + 2], log[line + 3] = 1.0, iterations, loss, length
        log[line + 4], log[line + 5], log[line + 6] = t * norm(w, way, p), asked if clipped else 0.0, full
        for k in range(p):
            log[line + 8 + k] = w[here + k] + w[here + p + k]
        at += 1
    copy_point(w, best if tolerance >= 0.0 else here, one, p)
    out[1], out[2], out[4], out[5], out[11] = iterations, least, out[4] + w[told + 1], at, filled
    return stop
