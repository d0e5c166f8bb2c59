"""Elementary functions that LLVM vectorises inside the loops of generated CPU kernels.

Numba calls the scalar functions of the C library, which stop the vectoriser. The functions here
are text that a generated file carries itself (Numba does not track what a kernel calls in another
file): straight lines of float64 operations, without calls, branches, tables or conversions of
64-bit integers, which AVX2 lacks. Bounds in the docstrings are for the default rounding.
"""

from __future__ import annotations

from collections.abc import Iterable

from nlsq_nb.codegen.vecmath import error_function, exponential, logarithm, single, trigonometric
from nlsq_nb.codegen.vecmath.pieces import INTRINSICS, Definition

__all__ = ["FUNCTIONS", "SINGLE", "definition", "required"]

_DEFINITIONS: dict[str, Definition] = {
    "intrinsics": INTRINSICS,
    **exponential.DEFINITIONS,
    **logarithm.DEFINITIONS,
    **trigonometric.DEFINITIONS,
    **error_function.DEFINITIONS,
    **single.DEFINITIONS,
}
FUNCTIONS = frozenset(
    """
    acos acosh asin asinh atan atan2 atanh cos cosh dsinc erf erfc exp expm1 log log10 log1p log2
    pow sin sinc sinh tan tanh
    """.split()  # noqa: SIM905 - a list of words
)
"""Operations of a program that have a function of the same name here, in float64."""
SINGLE = frozenset(name for name in single.DEFINITIONS if name.removesuffix("_f32") in FUNCTIONS)
"""Names of the float32 functions, `exp_f32` and so on."""


def required(names: Iterable[str]) -> list[str]:
    """What a file that calls these functions must define, callees first.

    Parameters
    ----------
    names : iterable of str
        Of `FUNCTIONS` or `SINGLE`.

    Returns
    -------
    list of str
        Keys for `definition`, each once; the same for any order of `names`.
    """
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        for needed in _DEFINITIONS[name].needs:
            visit(needed)
        found.setdefault(name)

    for name in sorted(names):
        visit(name)
    return list(found)


def definition(name: str) -> str:
    """The text of one function with its decorator.

    Parameters
    ----------
    name : str
        A key from `required`.

    Returns
    -------
    str
        Source text that refers to `math`, `np` and `njit` of its file.
    """
    entry = _DEFINITIONS[name]
    return f"@{entry.decorator}\n{entry.text}" if entry.decorator else entry.text
