"""Tiled shape of the CPU kernels, for many parameters: J of a sub-block, then JᵀJ in 2×2 tiles.

The columns of J for some hundred points lie in the first-level cache as rows of an array `J<o>`,
one per output, the residuals last. A tile is four running sums over two pairs of rows, as fast as
larger ones in the measurements and with fewer products wasted at the edges. Zero columns are left
out; a fixed column c is replaced by a column of ones, whose sums come with the tiles on the
diagonal (with weights: by their roots, a row of its own).

Under a robust loss cost, gradient and matrix have weights of their own, and that of the matrix may be
negative. There J stands beside V<o>, its rows times the weights, with what the gradient takes last.
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
_ROBUST_TILE = '''@{jit}
def tile(J, V, H):
    """Upper triangle of H += J Vᵀ, and all of its last column."""
    rows = len(J)
    columns = len(V)
    paired = columns - columns % 2
    for a in range(0, rows - 1, 2):
        u = J[a]
        v = J[a + 1]
        y = V[a]
        z = V[a + 1]
        s0 = s1 = s2 = 0.0
        for q in range(SUB):
            s0 += u[q] * y[q]
            s1 += u[q] * z[q]
            s2 += v[q] * z[q]
        H[a, a] += s0
        H[a, a + 1] += s1
        H[a + 1, a + 1] += s2
        for b in range(a + 2, paired, 2):
            y = V[b]
            z = V[b + 1]
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
        if paired < columns:
            y = V[paired]
            s0 = s1 = 0.0
            for q in range(SUB):
                s0 += u[q] * y[q]
                s1 += v[q] * y[q]
            H[a, paired] += s0
            H[a + 1, paired] += s1
    if rows % 2:
        u = J[rows - 1]
        for b in range(rows - 1, columns):
            y = V[b]
            s0 = 0.0
            for q in range(SUB):
                s0 += u[q] * y[q]
            H[rows - 1, b] += s0
'''
_WITH_SUMS = """
            t0 += u[q]
            t1 += v[q]"""


def _longest(rows: int) -> int:
    """Points of a sub-block when J has so many rows: a power of two, so that it divides a block."""
    fitting = _CACHE // (8 * rows)
    return max(_SHORTEST, min(_LONGEST, 1 << fitting.bit_length() >> 1))


def tiled_sums(program: Program | PointProgram, weighted: bool, loss: str) -> Iterator[str]:
    """Text of `sums2` and of the function that it calls."""
    p, m, robust = program.n_params, program.n_outputs, loss != "linear"
    body = PointBody(program, "cpu", 2)
    moving = [body.moving(o) for o in range(m)]
    fixed = [body.fixed(o) for o in range(m)]
    ones = weighted or robust  # whether fixed columns have a row
    counts = [len(moving[o]) + (not robust) + (ones and bool(fixed[o])) for o in range(m)]
    sub = _longest(sum(counts) + (sum(counts) + m) * robust)
    for o in range(m):
        yield f"COLUMNS{o} = np.array({[j for j, _ in moving[o]]}, dtype=np.int64)"
    yield f"SUB = {sub}"
    yield "\n"
    sums = _WITH_SUMS if any(fixed) and not weighted else ""
    yield (_ROBUST_TILE if robust else _TILE).format(jit=INNER.format(_FAST), sums=sums)
    yield ""
    yield from signature(program, "sums2", weighted, "state", loss)
    yield from indent(1, body.prologue)
    for o, count in enumerate(counts):
        yield from indent(1, [space(f"J{o}", count, sub), space(f"H{o}", count, count + 1)])
        yield from indent(1, [space(f"V{o}", count + 1, sub)] if robust else [])
    yield from indent(1, [space("out", sums_size(p, 2))])
    before, after = flushing(program)
    yield from indent(1, before)
    yield "    for start in range(lo, hi, BLOCK):"
    yield "        stop = min(start + BLOCK, hi)"
    yield from indent(2, [f"H{o}[:] = 0.0" for o in range(m)])
    yield from indent(2, ["total = 0.0"] if robust else [])
    yield "        for sub in range(start, stop, SUB):"
    yield "            end = min(sub + SUB, stop)"
    yield from indent(3, slices(program, weighted, "sub:end"))
    yield "            for i in range(end - sub):"
    fill = [*loads(program), *body.lines]
    for o in range(m):
        fill += _robust_rows_of(body, o, weighted, loss) if robust else _rows_of(body, o, weighted)
    yield from indent(4, fill)
    yield from indent(3, _products(m, robust))
    yield "        out[:] = 0.0"
    yield from indent(2, ["out[0] = total"] if robust else [])
    for o in range(m):
        yield from indent(2, _collect(p, o, len(moving[o]), fixed[o], weighted, robust))
    yield f"        {fold_block()}"
    yield from indent(1, after)


def _products(m: int, robust: bool) -> list[str]:
    """The statements that add the products of a sub-block; the last one is filled up with zeros."""
    letters = "JV" if robust else "J"
    fill = [f"    {letter}{o}[:, end - sub :] = 0.0" for o in range(m) for letter in letters]
    tiles = (f"tile({', '.join(f'{letter}{o}' for letter in letters)}, H{o})" for o in range(m))
    return ["if end - sub < SUB:", *fill, *tiles]


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


def _robust_rows_of(body: PointBody, o: int, weighted: bool, loss: str) -> list[str]:
    """The statements that store a point of an output in its arrays, and add its cost."""
    lines = [*residual(body, o, weighted=weighted, loss=loss), "total += cost"]
    moving = [d for _, d in body.moving(o)]
    lines += [f"J{o}[{a}, i] = {d}" for a, d in enumerate(moving)]
    lines += [f"V{o}[{a}, i] = h * {d}" for a, d in enumerate(moving)]
    count = len(moving)
    if body.fixed(o):
        lines += [f"J{o}[{count}, i] = 1.0", f"V{o}[{count}, i] = h"]
        count += 1
    return [*lines, f"V{o}[{count}, i] = wr"]


def _collect(
    p: int, o: int, count: int, fixed: list[tuple[int, str]], weighted: bool, robust: bool
) -> list[str]:
    """The statements that bring the products of an output to their packed places."""
    # where H has the residuals, and the ones: their roots of weights, or sums
    last, one = (count + bool(fixed), count) if robust else (count, count + 1)
    lines = [] if robust else [f"out[0] += H{o}[{last}, {last}]"]
    lines += [
        f"for a in range({count}):",
        f"    i = COLUMNS{o}[a]",
        f"    out[1 + i] += H{o}[a, {last}]",
        f"    for b in range(a, {count}):",
        f"        j = COLUMNS{o}[b]",
        f"        out[{1 + p} + i * {p} - i * (i + 1) // 2 + j] += H{o}[a, b]",
    ]
    if not fixed:
        return lines
    total = f"H{o}[{one}, {one}]" if weighted or robust else "(stop - start)"
    for e, (k, c) in enumerate(fixed):
        lines += [
            f"out[{1 + k}] += {c} * H{o}[{min(last, one)}, {max(last, one)}]",
            f"for a in range({count}):",
            f"    i = min(COLUMNS{o}[a], {k})",
            f"    j = max(COLUMNS{o}[a], {k})",
            f"    out[{1 + p} + i * {p} - i * (i + 1) // 2 + j] += {c} * H{o}[a, {one}]",
        ]
        lines += [f"out[{packed_index(p, k, n)}] += {c} * {d} * {total}" for n, d in fixed[e:]]
    return lines


def tiled_matvec(program: Program | PointProgram, weighted: bool, loss: str) -> Iterator[str]:
    """Text of `matvec`: J of a sub-block, then J·v and Jᵀ(J·v) row by row."""
    p, m, robust = program.n_params, program.n_outputs, loss != "linear"
    body = PointBody(program, "cpu", 2, values=robust)
    present = [body.moving(o) + body.fixed(o) for o in range(m)]
    sub = _longest(1 + sum(map(len, present)) + m * robust)
    for o in range(m):
        yield f"PRESENT{o} = np.array({[j for j, _ in present[o]]}, dtype=np.int64)"
    yield "\n"
    yield from signature(program, "matvec", weighted, "v, state", loss)
    yield from indent(1, body.prologue)
    yield from indent(1, [space(f"J{o}", len(present[o]), sub) for o in range(m)])
    yield from indent(1, [space("along", sub), space("out", p)])
    yield from indent(1, [space(f"h{o}_", sub) for o in range(m) if robust])
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
        if robust:
            fill += [*residual(body, o, weighted=weighted, loss=loss), f"h{o}_[i] = h"]
    yield from indent(4, fill)
    weights = "h{}_" if robust else "w{}_" if weighted else ""
    for o in range(m):
        yield from indent(3, _there_and_back(o, weights.format(o)))
    yield f"        {fold_block()}"
    yield from indent(1, after)


def _there_and_back(o: int, weights: str) -> list[str]:
    """The statements of one output that add Jᵀ(W(J·v)) of a sub-block to `out`; no weights are all 1."""
    weigh = ["for i in range(end - sub):", f"    along[i] *= np.float64({weights}[i])"]
    return [
        "along[:] = 0.0",
        f"for a in range(len(J{o})):",
        f"    row = J{o}[a]",
        f"    factor = v[PRESENT{o}[a]]",
        "    for i in range(end - sub):",
        "        along[i] += factor * row[i]",
        *(weigh if weights else []),
        f"for a in range(len(J{o})):",
        f"    row = J{o}[a]",
        "    t = 0.0",
        "    for i in range(end - sub):",
        "        t += row[i] * along[i]",
        f"    out[PRESENT{o}[a]] += t",
    ]
