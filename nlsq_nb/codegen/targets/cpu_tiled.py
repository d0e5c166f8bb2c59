"""Tiled shape of the CPU kernels, for many parameters: J of a sub-block, then JᵀJ in 2×2 tiles.

The columns of J for some hundred points lie in the first-level cache as rows of an array `J<o>`,
one per output, the residuals last. A tile is four running sums over two pairs of rows, as fast as
larger ones in the measurements and with fewer products wasted at the edges. Zero columns are left
out; a fixed column c is replaced by a column of ones, whose sums come with the tiles on the
diagonal (with weights: by their roots, a row of its own).
"""

from __future__ import annotations

from collections.abc import Iterator

from nlsq_nb.codegen.body import PointBody, indent
from nlsq_nb.codegen.ir import PointProgram, Program
from nlsq_nb.codegen.targets.cpu_loop import (
    INNER,
    flushing,
    fold_block,
    loads,
    residual,
    signature,
    slices,
    space,
)
from nlsq_nb.core.layout import packed_index, sums_size

__all__ = ["tiled_matvec", "tiled_sums"]

_CACHE = 32768  # bytes of first-level cache for J
_SHORTEST, _LONGEST = 64, 512  # points of a sub-block
_FAST = 'fastmath={"reassoc", "contract", "nsz"}, '

_TILE = '''@{jit}
def tile(J, H):
    """Upper triangle of H += J Jᵀ; the last column of H gets the sums of the rows of J."""
    count = len(J)
    even = count - count % 2
    for a in range(0, even, 2):
        u = J[a]
        v = J[a + 1]
        s0 = s1 = s2 = t0 = t1 = 0.0
        for q in range(SUB):
            s0 += u[q] * u[q]
            s1 += u[q] * v[q]
            s2 += v[q] * v[q]{sums}
        H[a, a] += s0
        H[a, a + 1] += s1
        H[a + 1, a + 1] += s2
        H[a, count] += t0
        H[a + 1, count] += t1
        for b in range(a + 2, even, 2):
            y = J[b]
            z = J[b + 1]
            s0 = s1 = s2 = s3 = 0.0
            for q in range(SUB):
                s0 += u[q] * y[q]
                s1 += u[q] * z[q]
                s2 += v[q] * y[q]
                s3 += v[q] * z[q]
            H[a, b] += s0
            H[a, b + 1] += s1
            H[a + 1, b] += s2
            H[a + 1, b + 1] += s3
        if even < count:
            y = J[even]
            s0 = s1 = 0.0
            for q in range(SUB):
                s0 += u[q] * y[q]
                s1 += v[q] * y[q]
            H[a, even] += s0
            H[a + 1, even] += s1
    if even < count:
        y = J[even]
        s0 = t0 = 0.0
        for q in range(SUB):
            s0 += y[q] * y[q]
            t0 += y[q]
        H[even, even] += s0
        H[even, count] += t0
'''
_WITH_SUMS = """
            t0 += u[q]
            t1 += v[q]"""


def _longest(rows: int) -> int:
    """Points of a sub-block when J has so many rows: a power of two, so that it divides a block."""
    fitting = _CACHE // (8 * rows)
    return max(_SHORTEST, min(_LONGEST, 1 << fitting.bit_length() >> 1))


def tiled_sums(program: Program | PointProgram, weighted: bool) -> Iterator[str]:
    """Text of `sums2` and of the function that it calls."""
    p, m = program.n_params, program.n_outputs
    body = PointBody(program, "cpu", 2)
    moving = [body.moving(o) for o in range(m)]
    fixed = [body.fixed(o) for o in range(m)]
    counts = [len(moving[o]) + 1 + (weighted and bool(fixed[o])) for o in range(m)]
    sub = _longest(sum(counts))
    for o in range(m):
        yield f"COLUMNS{o} = np.array({[j for j, _ in moving[o]]}, dtype=np.int64)"
    yield f"SUB = {sub}"
    yield "\n"
    sums = _WITH_SUMS if any(fixed) and not weighted else ""
    yield _TILE.format(jit=INNER.format(_FAST), sums=sums)
    yield ""
    yield from signature(program, "sums2", weighted, "state")
    yield from indent(1, body.prologue)
    for o, count in enumerate(counts):
        yield from indent(1, [space(f"J{o}", count, sub), space(f"H{o}", count, count + 1)])
    yield from indent(1, [space("out", sums_size(p, 2))])
    before, after = flushing(program)
    yield from indent(1, before)
    yield "    for start in range(lo, hi, BLOCK):"
    yield "        stop = min(start + BLOCK, hi)"
    yield from indent(2, [f"H{o}[:] = 0.0" for o in range(m)])
    yield "        for sub in range(start, stop, SUB):"
    yield "            end = min(sub + SUB, stop)"
    yield from indent(3, slices(program, weighted, "sub:end"))
    yield "            for i in range(end - sub):"
    fill = [*loads(program), *body.lines]
    for o in range(m):
        fill += _rows_of(body, o, weighted)
    yield from indent(4, fill)
    yield from indent(3, _products(m))
    yield "        out[:] = 0.0"
    for o in range(m):
        yield from indent(2, _collect(p, o, len(moving[o]), fixed[o], weighted))
    yield f"        {fold_block()}"
    yield from indent(1, after)


def _products(m: int) -> list[str]:
    """The statements that add the products of a sub-block; the last one is filled up with zeros."""
    fill = [f"    J{o}[:, end - sub :] = 0.0" for o in range(m)]
    return ["if end - sub < SUB:", *fill, *(f"tile(J{o}, H{o})" for o in range(m))]


def _rows_of(body: PointBody, o: int, weighted: bool) -> list[str]:
    """The statements that store a point of an output in its array."""
    lines = residual(body, o, weighted=weighted)
    scale = ""
    if weighted:
        lines.append("root = math.sqrt(w)")
        scale = "root * "
    operands = [d for _, d in body.moving(o)] + ["r"]
    lines += [f"J{o}[{a}, i] = {scale}{d}" for a, d in enumerate(operands)]
    if weighted and body.fixed(o):
        lines.append(f"J{o}[{len(operands)}, i] = root")
    return lines


def _collect(
    p: int, o: int, count: int, fixed: list[tuple[int, str]], weighted: bool
) -> list[str]:
    """The statements that bring the products of an output to their packed places."""
    lines = [
        f"out[0] += H{o}[{count}, {count}]",
        f"for a in range({count}):",
        f"    i = COLUMNS{o}[a]",
        f"    out[1 + i] += H{o}[a, {count}]",
        f"    for b in range(a, {count}):",
        f"        j = COLUMNS{o}[b]",
        f"        out[{1 + p} + i * {p} - i * (i + 1) // 2 + j] += H{o}[a, b]",
    ]
    if not fixed:
        return lines
    one = count + 1  # in H: of the roots of the weights, or of the sums
    total = f"H{o}[{one}, {one}]" if weighted else "(stop - start)"
    for e, (k, c) in enumerate(fixed):
        lines += [
            f"out[{1 + k}] += {c} * H{o}[{count}, {one}]",
            f"for a in range({count}):",
            f"    i = min(COLUMNS{o}[a], {k})",
            f"    j = max(COLUMNS{o}[a], {k})",
            f"    out[{1 + p} + i * {p} - i * (i + 1) // 2 + j] += {c} * H{o}[a, {one}]",
        ]
        lines += [f"out[{packed_index(p, k, n)}] += {c} * {d} * {total}" for n, d in fixed[e:]]
    return lines


def tiled_matvec(program: Program | PointProgram, weighted: bool) -> Iterator[str]:
    """Text of `matvec`: J of a sub-block, then J·v and Jᵀ(J·v) row by row."""
    p, m = program.n_params, program.n_outputs
    body = PointBody(program, "cpu", 2, values=False)
    present = [body.moving(o) + body.fixed(o) for o in range(m)]
    sub = _longest(1 + sum(map(len, present)))
    for o in range(m):
        yield f"PRESENT{o} = np.array({[j for j, _ in present[o]]}, dtype=np.int64)"
    yield "\n"
    yield from signature(program, "matvec", weighted, "v, state")
    yield from indent(1, body.prologue)
    yield from indent(1, [space(f"J{o}", len(present[o]), sub) for o in range(m)])
    yield from indent(1, [space("along", sub), space("out", p)])
    before, after = flushing(program)
    yield from indent(1, before)
    yield "    for start in range(lo, hi, BLOCK):"
    yield "        stop = min(start + BLOCK, hi)"
    yield "        out[:] = 0.0"
    yield f"        for sub in range(start, stop, {sub}):"
    yield f"            end = min(sub + {sub}, stop)"
    yield from indent(3, slices(program, weighted, "sub:end"))
    yield "            for i in range(end - sub):"
    fill = [*loads(program), *body.lines]
    for o in range(m):
        fill += [f"J{o}[{a}, i] = {d}" for a, (_, d) in enumerate(present[o])]
    yield from indent(4, fill)
    for o in range(m):
        yield from indent(3, _there_and_back(o, weighted))
    yield f"        {fold_block()}"
    yield from indent(1, after)


def _there_and_back(o: int, weighted: bool) -> list[str]:
    """The statements of one output that add Jᵀ(W(J·v)) of a sub-block to `out`."""
    weigh = ["for i in range(end - sub):", f"    along[i] *= np.float64(w{o}_[i])"]
    return [
        "along[:] = 0.0",
        f"for a in range(len(J{o})):",
        f"    row = J{o}[a]",
        f"    factor = v[PRESENT{o}[a]]",
        "    for i in range(end - sub):",
        "        along[i] += factor * row[i]",
        *(weigh if weighted else []),
        f"for a in range(len(J{o})):",
        f"    row = J{o}[a]",
        "    t = 0.0",
        "    for i in range(end - sub):",
        "        t += row[i] * along[i]",
        f"    out[PRESENT{o}[a]] += t",
    ]
