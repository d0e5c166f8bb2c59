"""What the CPU kernels of both shapes have in common: signature, loads, the fold of a block.

The arrays are sliced block by block and the inner loop counts from zero, so that the compiler sees
contiguous reads in bounds and turns the loop into vector code.

On x86 an operation whose result is subnormal takes some hundred cycles, and the tails of an exp, or
the products of two of them, are full of such. The kernels therefore round results below 2.2e-308 to
zero while they run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nlsq_nb.codegen.body import PointBody
from nlsq_nb.codegen.ir import PointProgram, Program
from nlsq_nb.codegen.robust import PARAMETERS, loss_statements

__all__ = [
    "FOLD",
    "INNER",
    "JIT",
    "MODE",
    "RESERVE",
    "flushing",
    "fold_block",
    "loads",
    "residual",
    "signature",
    "slices",
    "space",
]

# non-finite values must stay visible: no nnan, no ninf
JIT = 'njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})'
"""Decorator of the entry points."""

INNER = 'njit(error_model="numpy", {}no_cpython_wrapper=True, no_cfunc_wrapper=True)'
"""Decorator of functions that entry points call and that are compiled into them; takes options."""

# not fastmath: reassociation would cancel the two-sum
FOLD = f'''@{INNER.format("")}
def fold(state, at, out):
    """Add a block's sums to rows at, at + 1 of state: sums, and what rounding left out (two-sum)."""
    for k in range(len(out)):
        value = out[k]
        high = state[at, k]
        total = high + value
        part = total - high
        state[at + 1, k] += (high - (total - part)) + (value - part)
        state[at, k] = total
'''
"""Text of the function that ends every block."""

MODE = '''@intrinsic
def flush(context):
    """Results below the normal numbers are zero from here on, where that is faster; gives what was before."""

    def generate(ctx, builder, signature, args):
        if not builder.module.triple.startswith("x86_64"):
            return ir.Constant(ir.IntType(32), 0)
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        kind = ir.FunctionType(ir.VoidType(), [slot.type])
        store = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
        load = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        builder.call(store, [slot])
        before = builder.load(slot)
        builder.store(builder.or_(before, ir.Constant(ir.IntType(32), 0x8000)), slot)
        builder.call(load, [slot])
        return before

    return types.uint32(), generate


@intrinsic
def restore(context, before):
    """Undo `flush`."""

    def generate(ctx, builder, signature, args):
        if builder.module.triple.startswith("x86_64"):
            slot = cgutils.alloca_once_value(builder, args[0])
            kind = ir.FunctionType(ir.VoidType(), [slot.type])
            load = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
            builder.call(load, [slot])
        return ctx.get_dummy_value()

    return types.void(types.uint32), generate
'''
"""Text of the functions that set how subnormal results are rounded (bit 15 of MXCSR)."""


RESERVE = '''@intrinsic(prefer_literal=True)
def reserve(context, count):
    """Room for some numbers on the stack until the caller returns: kernels that take nothing from
    Numba's runtime run without it."""
    size = ir.Constant(ir.IntType(64), count.literal_value)

    def generate(ctx, builder, signature, args):
        with builder.goto_entry_block():
            slot = builder.alloca(ir.DoubleType(), size=size)
        return builder.bitcast(slot, ctx.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(count), generate
'''
"""Text of the function that `space` uses."""

_STACK = 8192  # numbers up to which an array is small enough for the stack of a thread


def space(name: str, *shape: int) -> str:
    """The line that makes an array, not filled, to work in."""
    count = math.prod(shape)
    if count > _STACK:
        return f"{name} = np.empty({shape})"
    return f"{name} = carray(reserve({count}), {shape})"


def flushing(program: Program | PointProgram) -> tuple[list[str], list[str]]:
    """First and last line of what an entry point computes; nothing between may raise.

    Hand-written functions may, so that they run in the mode that they find.
    """
    if isinstance(program, PointProgram):
        return [], []
    return ["mode = flush()"], ["restore(mode)"]


def signature(
    program: Program | PointProgram, name: str, weighted: bool, tail: str, loss: str
) -> Iterator[str]:
    """First lines of an entry point, up to the unpacked parameters, those of a robust loss included."""
    arrays = [f"{letter}{i}" for letter, i in _arrays(program, weighted)]
    robust = loss != "linear"
    yield f"@{JIT}"
    yield f"def {name}(lo, hi, {', '.join(arrays)}, theta, {'L, ' if robust else ''}{tail}):"
    yield from (f"    p{i} = theta[{i}]" for i in range(program.n_params))
    if robust:
        yield from (f"    {known} = L[{i}]" for i, known in enumerate(PARAMETERS))


def slices(program: Program | PointProgram, weighted: bool, bounds: str) -> list[str]:
    """Views of the rows `bounds` ("start:stop") of all columns."""
    return [f"{letter.lower()}{i}_ = {letter}{i}[{bounds}]" for letter, i in _arrays(program, weighted)]


def loads(program: Program | PointProgram) -> list[str]:
    """The independent variables of row i."""
    return [f"x{i} = np.float64(x{i}_[i])" for i in range(program.n_vars)]


def residual(
    body: PointBody, output: int, *, weighted: bool, loss: str = "linear", order: int = 2
) -> list[str]:
    """The residual of row i, its weight, and what a robust loss makes of them."""
    lines = [f"r = np.float64(y{output}_[i]) - {body.outputs[output]}"]
    if weighted:
        lines.append(f"w = np.float64(w{output}_[i])")
    if loss != "linear":
        lines += loss_statements(loss, "cpu", order, weighted=weighted)
    return lines


def fold_block() -> str:
    """The line that adds `out` to the segment of the block; without room for it, to the last one."""
    return "fold(state, 2 * min((start - lo) // SEGMENT, len(state) // 2 - 1), out)"


def _arrays(program: Program | PointProgram, weighted: bool) -> list[tuple[str, int]]:
    counts = {"X": program.n_vars, "Y": program.n_outputs, "W": program.n_outputs if weighted else 0}
    return [(letter, i) for letter, count in counts.items() for i in range(count)]
