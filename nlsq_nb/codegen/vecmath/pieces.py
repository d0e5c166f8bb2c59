"""What the texts of vecmath are put together from: definitions, polynomials, intrinsics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FAST", "INTRINSICS", "STRICT", "Definition", "horner", "power_ends"]

_INLINED = "forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True"
FAST = f'njit(error_model="numpy", {_INLINED}, fastmath={{"contract"}})'
"""Products and sums may fuse: polynomials. `forceinline` because a call stops the vectoriser."""
STRICT = f'njit(error_model="numpy", {_INLINED})'
"""Every rounding as written: exact sums and products. LLVM keeps the flags of each instruction, so
inlining into a kernel that may reassociate does not touch them (Numba's inline="always" would)."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The text of one function in a generated file.

    Attributes
    ----------
    text : str
        A function definition without decorator.
    needs : tuple of str
        Keys of the definitions that it calls.
    decorator : str
        Text after the `@`; empty for the intrinsics.
    """

    text: str
    needs: tuple[str, ...] = ("intrinsics",)
    decorator: str = FAST


def horner(name: str, variable: str, coefficients: Sequence[float], *, fused: bool = False) -> str:
    """Statements that evaluate a polynomial.

    Parameters
    ----------
    name, variable : str
        Where the value goes, and the argument.
    coefficients : sequence of float
        Lowest power first.
    fused : bool
        Whether to spell the fused products, for functions that are not `FAST`.

    Returns
    -------
    str
        Lines of a function body, the first without indentation.
    """
    step = "{0} = fma({0}, {1}, {2!r})" if fused else "{0} = {0} * {1} + {2!r}"
    lines = [f"{name} = {coefficients[-1]!r}"]
    lines += [step.format(name, variable, c) for c in reversed(coefficients[:-1])]
    return "\n    ".join(lines)


def power_ends(u: str, w: str) -> str:
    """Statements that put the special values of IEEE 754 pow(u, w) into y; a is |u|.

    Every condition that chooses y depends on u: on one that is the same for all points, as those on
    w alone often are, the compiler would branch.
    """
    return f"""at_0 = choose({w} > 0.0, 0.0, choose({w} < 0.0, math.inf, choose({w} == 0.0, 1.0, {w})))
    at_inf = choose({w} > 0.0, math.inf, choose({w} < 0.0, 0.0, choose({w} == 0.0, 1.0, {w})))
    whole = np.floor({w}) == {w}
    half = 0.5 * {w}
    odd = whole & (np.floor(half) != half)
    y = choose(a == 1.0, choose({w} == {w}, 1.0, {w}), y)
    y = choose(a == 0.0, at_0, y)
    y = choose(a == math.inf, at_inf, y)
    y = choose(({u} < 0.0) & (a < math.inf) & (not whole), math.nan, y)
    y = choose((bits({u}) < 0) & odd, -y, y)
    y = choose({u} != {u}, choose({w} == 0.0, 1.0, math.nan), y)
    y = choose({u} == 1.0, 1.0, y)"""


INTRINSICS = Definition(
    decorator="",
    needs=(),
    text='''from numba import types
from numba.extending import intrinsic

SIGN = -9223372036854775808
EXPONENT = 0x7FF0000000000000
TINY = 2.2250738585072014e-308


@intrinsic
def fma(context, a, b, c):
    """a·b + c rounded once: one instruction on AVX2, AVX-512 and NEON, a libm call before them."""
    return a(a, a, a), lambda ctx, builder, signature, args: builder.fma(*args)


@intrinsic
def bits(context, a):
    """The bit pattern of a float64."""

    def generate(ctx, builder, signature, args):
        return builder.bitcast(args[0], ctx.get_value_type(types.int64))

    return types.int64(types.float64), generate


@intrinsic
def real(context, a):
    """The float64 of a bit pattern."""

    def generate(ctx, builder, signature, args):
        return builder.bitcast(args[0], ctx.get_value_type(types.float64))

    return types.float64(types.int64), generate


@intrinsic
def choose(context, condition, a, b):
    """a where the condition holds, else b; never a branch."""

    def generate(ctx, builder, signature, args):
        return builder.select(*args)

    return types.float64(types.boolean, types.float64, types.float64), generate
''',
)
