"""Gauss–Newton of a compiled small fit: `phases.gauss_newton` in its plain region, step by step.

A point is a record in the flat array: θ, the change that relaxes its linear parameters, ∂loss/∂z,
then norms, y and u of its factor, g, H, L, the kernel's sums, and room for those of a segment.
"""

from __future__ import annotations

import math

from nlsq_nb.backends.small.algebra import condition, dot, factorize, norm, reduced_norms, relax, step_of
from nlsq_nb.backends.small.native import Floats, Ints, call_kernel, native
from nlsq_nb.core.layout import SEGMENT

__all__ = ["copy_point", "inside", "measure", "newton", "record", "unpack"]

EPS = 2.220446049250313e-16
TINY = 2.2250738585072014e-308
ACCEPT, POLISH, SILENT, TRUSTED, SINGULAR = 1e-4, 0.1, 1e-8, 1e-6, 1e-14  # as the phase and core have them
GIVE_UP, RELATIVE_OFFSET, ROUNDING, EXACT_FIT = 0, 1, 2, 3


@native
def record(p: int) -> int:
    """Numbers in the record of a point."""
    return 7 * p + 2 * p * p + 4 + 4 * p + 2 * p * (p + 1)


@native
def copy_point(w: Floats, source: int, target: int, p: int) -> None:
    """Make a point another one."""
    for k in range(record(p)):
        w[target + k] = w[source + k]


@native
def unpack(w: Floats, at: int, p: int) -> float:
    """Fill g and H of a point from its sums: the sse; inf where anything is not finite."""
    g, h, state = at + 6 * p, at + 7 * p, at + 7 * p + 2 * p * p
    size = 1 + p + p * (p + 1) // 2
    finite = True
    for k in range(size):
        finite = finite and math.isfinite(w[state + k] + w[state + size + k])
    if not finite:
        return math.inf
    k = state + 1 + p
    for i in range(p):
        w[g + i] = w[state + 1 + i] + w[state + size + 1 + i]
        for j in range(i, p):
            total = w[k] + w[k + size]
            w[h + i * p + j] = total
            w[h + j * p + i] = total
            k += 1
    return w[state] + w[state + size]


@native
def measure(kernel: int, rows: int, columns: Ints, w: Floats, at: int, p: int) -> float:
    """One pass of order 2: the sse, with g and H filled; inf where anything is not finite."""
    state, size = at + 7 * p + 2 * p * p, 1 + p + p * (p + 1) // 2
    part = state + 2 * size
    for lo in range(0, rows, SEGMENT):
        into = part if lo > 0 else state
        for k in range(2 * size):
            w[into + k] = 0.0
        call_kernel(kernel, lo, min(lo + SEGMENT, rows), columns, w, at, into)
        if lo > 0:
            for k in range(size):
                high, value = w[state + k], w[part + k]
                total = high + value
                rest = total - high
                w[state + k] = total
                w[state + size + k] += (high - (total - rest)) + (value - rest)
                w[state + size + k] += w[part + size + k]
    return unpack(w, at, p)


@native
def inside(w: Floats, theta: int, lower: int, upper: int, p: int) -> bool:
    """Whether a point stays clear of all bounds."""
    for k in range(p):
        if not w[lower + k] < w[theta + k] < w[upper + k]:
            return False
    return True


@native
def gain_at(w: Floats, at: int, p: int, order: Ints, m: int) -> float:
    """Factorise the sums of a point; the reduction by its linear parameters, −1 to give up."""
    if not factorize(w, at, p, order, p):
        return -1.0
    if EPS * condition(w, at + 7 * p + p * p, p, m) > TRUSTED:
        return -1.0
    return dot(w, at + 4 * p, at + 4 * p, m)


@native
def settle(
    kernel: int, rows: int, columns: Ints, w: Floats, box: int, p: int, order: Ints, m: int,
    one: int, two: int, sse: float, old_sse: float, old_relaxed: float, out: int
) -> int:
    """Settle the point of record `one` as `GaussNewton._settle`: the record it ends in, −1 to give up.

    `old_sse` is inf at the start of the phase. out[0] and out[1] become its sse and relaxed sse.
    """
    lower, trial = one + 7 * p + p * p, math.isfinite(old_sse)
    gain = gain_at(w, one, p, order, m)
    if gain < 0.0:
        return -1
    least = max(sse - gain, 0.0)
    w[out], w[out + 1] = sse, least
    if m == 0 or not ((trial and sse > old_sse) or gain > POLISH * least):
        return one
    if trial and least >= old_relaxed:
        lost = min(1.0, EPS * condition(w, lower, p, m))
        if least >= old_relaxed + 4.0 * sse * lost:  # hopeless
            return one
        if least >= old_relaxed + 4.0 * sse * EPS:
            return -1
    for k in range(p):
        w[one + p + k] = 0.0
    relax(w, lower, p, one + 3 * p, one + 4 * p, m, order, one + p, two)
    for k in range(p):
        w[two + k] = w[one + k] + w[one + p + k]
    if not inside(w, two, box, box + p, p):
        return -1
    new = measure(kernel, rows, columns, w, two, p)
    if not new <= sse:
        w[out + 1] = sse  # too ill-conditioned to be believed
        return one
    rest = gain_at(w, two, p, order, m)
    if rest < 0.0:
        return -1
    w[out], w[out + 1] = new, max(new - rest, 0.0)
    return two


@native
def noise_of(w: Floats, at: int, p: int, sse: float, signal: float, order: Ints, m: int) -> float:
    """Rounding error of the sse; see `gauss_newton._noise`."""
    scale = signal
    for i in range(m):
        k = order[i]
        scale = max(scale, w[at + k] * w[at + k] * w[at + 7 * p + k * p + k])
    return 4.0 * EPS * math.sqrt(sse) * math.sqrt(scale) + 4.0 * EPS * sse


@native
def next_radius(w: Floats, found: int, radius: float, actual: float) -> float:
    """`core.trust_region.next_radius`."""
    length, damping, slope, predicted = w[found], w[found + 1], w[found + 2], w[found + 3]
    ratio = actual / predicted if predicted > 0.0 else -math.inf
    if ratio <= 0.25:
        shrink = 0.5 if actual >= 0.0 else 0.5 * slope / (slope - 0.5 * actual)
        reach = min(radius, 10.0 * length) if length > 0.0 else radius
        return max(min(max(shrink, 0.1), 0.5) * reach, TINY)
    if length > 0.0 and (damping == 0.0 or ratio >= 0.75):
        return 2.0 * length
    return radius


@native
def offset_of(w: Floats, at: int, p: int, sse: float) -> float:
    """The relative offset of a factorised point."""
    gain = dot(w, at + 4 * p, at + 4 * p, p)
    return math.sqrt(gain / sse) if sse > 0.0 else 0.0


@native
def judge(
    w: Floats, at: int, p: int, order: Ints, sse: float, signal: float, tol: float, accepted: bool
) -> int:
    """The stop that a point calls for, −1 for none."""
    if sse <= (8.0 * EPS) ** 2 * signal:
        return EXACT_FIT
    passed = RELATIVE_OFFSET if offset_of(w, at, p, sse) <= tol else -1
    if passed < 0 and not accepted:
        gain = dot(w, at + 4 * p, at + 4 * p, p)
        if gain <= noise_of(w, at, p, sse, signal, order, 0):
            passed = ROUNDING
    if passed >= 0 and condition(w, at + 7 * p + p * p, p, p) * p * SINGULAR >= 1.0:
        passed = GIVE_UP  # a singular stationary point needs a look around
    return passed


@native
def first_radius(
    w: Floats, at: int, p: int, m: int, order: Ints, scale: int, scales: int, first: int,
    initial: float
) -> float:
    """The D-norm of a step along the full one, `initial` long in z."""
    reach = length = 0.0
    for i in range(m, p):
        k = order[i]
        delta = w[at + 5 * p + i] / w[at + 3 * p + i]
        if w[first + k] != 0.0:
            reach += (delta / w[scales + k]) ** 2
        length += (w[scale + k] * delta) ** 2
    share = initial / math.sqrt(reach) if reach > 0.0 else 1.0
    return max(share * math.sqrt(length), TINY)


@native
def slope_norm(w: Floats, at: int, p: int, scales: int) -> float:
    """‖S Jᵀr‖."""
    total = 0.0
    for k in range(p):
        total += (w[scales + k] * w[at + 6 * p + k]) ** 2
    return math.sqrt(total)


@native
def newton(
    kernel: int, rows: int, columns: Ints, w: Floats, start: int, order: Ints, points: int,
    limits: int, counts: Ints, log: Floats, out: Floats,
) -> None:
    """Phase 2 from the point measured in the second record of `points`; see `driver.gauss_newton`.

    `start` holds p0, bounds and scales, `limits` tol, first radius, signal and the sse there.
    """
    p, m, spare = counts[0], counts[1], limits + 8
    one, two = points + record(p), points + 2 * record(p)
    tol, initial, signal, sse = w[limits], w[limits + 1], w[limits + 2], w[limits + 3]
    box, scales, here = start + p, start + 3 * p, points
    if signal == 0.0:
        signal = SILENT * sse
    found, delta, scale, settled, space = spare, spare + 4, spare + 4 + p, spare + 4 + 2 * p, spare + 6 + 2 * p
    passes, trials, at = int(out[4]), 0, 0
    row = settle(kernel, rows, columns, w, box, p, order, m, one, two, sse, math.inf, 0.0, settled)
    if row < 0:
        return
    passes += row == two
    copy_point(w, row, here, p)
    sse, relaxed = w[settled], w[settled + 1]
    lower, norms = here + 7 * p + p * p, here + 3 * p
    reduced_norms(w, lower, norms, m, p, order, scale)
    stop, offset, radius = judge(w, here, p, order, sse, signal, tol, True), offset_of(w, here, p, sse), math.inf
    while stop < 0:
        if trials >= counts[3] or at >= counts[4]:
            return
        if math.isinf(radius):
            radius = first_radius(w, here, p, m, order, scale, scales, start, initial)
        if not step_of(w, here, p, m, p, order, scale, radius, delta, found, space):
            return
        same, moved = True, 0.0
        for k in range(p):
            w[one + k] = w[here + k] + w[delta + k]
            same = same and w[one + k] == w[here + k]
        for i in range(m, p):
            moved += (w[delta + order[i]] / w[scales + order[i]]) ** 2
        if same or not inside(w, one, box, box + p, p):
            return
        after, actual, row = measure(kernel, rows, columns, w, one, p), -math.inf, one
        passes += 1
        if math.isfinite(after):
            row = settle(kernel, rows, columns, w, box, p, order, m, one, two, after, sse, relaxed, settled)
            if row < 0:
                return
            passes += row == two
            after, actual = w[settled], relaxed - w[settled + 1]
        better = actual > ACCEPT * w[found + 3]
        accepted = better and after <= sse
        noise = noise_of(w, here, p, sse, signal, order, m)
        if not better and abs(actual) <= noise:
            accepted = after < sse - noise or offset_of(w, row, p, after) < offset
        reach = radius * math.sqrt(moved) / w[found] if w[found] > 0.0 else radius
        radius = next_radius(w, found, radius, max(actual, 0.0) if accepted else actual)
        trials += 1
        line = at * (8 + p)
        log[line], log[line + 1], log[line + 3] = 2.0, trials, slope_norm(w, here, p, scales)
        log[line + 4], log[line + 5], log[line + 6] = sse - after, reach, accepted
        if accepted:
            copy_point(w, row, here, p)
            sse, relaxed = after, w[settled + 1]
            reduced_norms(w, lower, norms, m, p, order, delta)
            for k in range(p):
                w[scale + k] = max(w[scale + k], w[delta + k])
        log[line + 2] = sse
        for k in range(p):
            log[line + 8 + k] = w[here + k]
        at += 1
        stop, offset = judge(w, here, p, order, sse, signal, tol, accepted), offset_of(w, here, p, sse)
    out[0], out[1], out[2], out[3] = stop, trials, offset, radius
    out[4], out[5], out[6] = passes, at, relaxed
