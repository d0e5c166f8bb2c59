"""Instructions → statements of Python text, one dialect per target.

The CPU and CUDA dialects are scalar Python that Numba compiles; the CPU dialect calls `vecmath` and
never branches, so that its loops vectorise. The reference dialect is NumPy over whole columns. All
spell the same instructions, so a model means the same everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nlsq_nb.codegen import vecmath
from nlsq_nb.codegen.ir import Instruction
from nlsq_nb.codegen.scalars import SCALARS

__all__ = ["DIALECTS", "Dialect", "statements", "used_scalars"]

_INFIX = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
}
_MATH = """
    acos acosh asin asinh atan atan2 atanh cos cosh erf erfc exp expm1 gamma lgamma log log10 log1p
    log2 sin sinh sqrt tan tanh
""".split()  # noqa: SIM905 - a list of words
_NUMPY_NAMES = """
    abs ceil cos cosh exp expm1 floor heaviside log log10 log1p log2 maximum minimum sign sin sinh
    sqrt tan tanh
""".split()  # noqa: SIM905
_LINE = 72  # longest right-hand side that single-use values are folded into


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one target spells the operations.

    Attributes
    ----------
    templates : mapping
        Operation -> format string of its operands.
    functions : mapping
        Operation -> name of a function called with its operands.
    """

    templates: Mapping[str, str]
    functions: Mapping[str, str]

    def spell(self, op: str, args: Iterable[str]) -> str:
        """The right-hand side of one instruction."""
        template = self.templates.get(op) or _INFIX.get(op)
        if template is not None:
            return template.format(*args)
        return f"{self.functions[op]}({', '.join(args)})"


_SCALAR = Dialect(
    templates={
        "where": "{1} if {0} else {2}",
        "and": "{} and {}",
        "or": "{} or {}",
        "not": "not {}",
        # nan must pass through each of these, as it does in NumPy
        "sign": "1.0 if {0} > 0.0 else (-1.0 if {0} < 0.0 else {0})",
        "minimum": "{0} if ({0} <= {1} or {0} != {0}) else {1}",
        "maximum": "{0} if ({0} >= {1} or {0} != {0}) else {1}",
        "heaviside": "1.0 if {0} > 0.0 else "
        "(0.0 if {0} < 0.0 else ({1} if {0} == 0.0 else {0}))",
    },
    functions={
        "abs": "abs",
        "pow": "math.pow",
        "floor": "np.floor",
        "ceil": "np.ceil",
        "digamma": "digamma",
        "trigamma": "trigamma",
        "sinc": "sinc",
        "dsinc": "dsinc",
        **{
            name: f"math.{name}"
            for name in _MATH
        },
    },
)
_VECTOR = Dialect(
    templates={
        "where": "choose({0}, {1}, {2})",
        "and": "({}) & ({})",
        "or": "({}) | ({})",
        "not": "not {}",
        "sign": "choose({0} > 0.0, 1.0, choose({0} < 0.0, -1.0, {0}))",
        "minimum": "choose(({0} <= {1}) | ({0} != {0}), {0}, {1})",
        "maximum": "choose(({0} >= {1}) | ({0} != {0}), {0}, {1})",
        "heaviside": "choose({0} > 0.0, 1.0, choose({0} < 0.0, 0.0, choose({0} == 0.0, {1}, {0})))",
    },
    functions={**_SCALAR.functions, **{name: name for name in sorted(vecmath.FUNCTIONS)}},
)
_NUMPY = Dialect(
    templates={},
    functions={
        "where": "np.where",
        "and": "np.logical_and",
        "or": "np.logical_or",
        "not": "np.logical_not",
        "acos": "np.arccos",
        "acosh": "np.arccosh",
        "asin": "np.arcsin",
        "asinh": "np.arcsinh",
        "atan": "np.arctan",
        "atan2": "np.arctan2",
        "atanh": "np.arctanh",
        "pow": "np.power",
        "erf": "special.erf",
        "erfc": "special.erfc",
        "gamma": "special.gamma",
        "lgamma": "special.gammaln",
        "digamma": "special.digamma",
        "trigamma": "trigamma",
        "sinc": "sinc",
        "dsinc": "dsinc",
        **{
            name: f"np.{name}"
            for name in _NUMPY_NAMES
        },
    },
)
_CUDA = Dialect(
    templates=_SCALAR.templates,
    functions={**_SCALAR.functions, "floor": "rounded_down", "ceil": "rounded_up"},
)
DIALECTS: dict[str, Dialect] = {"cpu": _VECTOR, "cuda": _CUDA, "reference": _NUMPY}
"""Target name -> dialect."""


def used_scalars(ops: frozenset[str], target: str) -> list[str]:
    """Keys for `scalar_text`: the functions that the target's file must define itself, callees first."""
    if target != "cpu":
        return [name for name in SCALARS if name in ops]
    chosen = {"intrinsics"} if any("choose" in _VECTOR.templates.get(op, "") for op in ops) else set()
    inlined = vecmath.required(chosen | (ops & vecmath.FUNCTIONS))
    called = [name for name in SCALARS if name in ops - vecmath.FUNCTIONS]
    return [f"vecmath.{name}" for name in inlined] + called


def statements(
    target: str, instructions: Iterable[Instruction], kept: Iterable[str | None]
) -> list[str]:
    """Print instructions, folding values that are used once into the line that uses them.

    Parameters
    ----------
    target : str
        "cpu", "cuda" or "reference".
    instructions : iterable of Instruction
        In order of evaluation.
    kept : iterable of (str or None)
        Names that later text refers to and must therefore be assigned.

    Returns
    -------
    list of str
        One assignment each.
    """
    dialect = DIALECTS[target]
    listed = list(instructions)
    uses = Counter(arg for instruction in listed for arg in instruction.args)
    named = {name for name in kept if name is not None}
    repeats = {op for op, text in dialect.templates.items() if text.count("{0}") > 1}
    no_folding = {arg for i in listed if i.op in repeats for arg in i.args}
    folded: dict[str, str] = {}
    lines = []
    for instruction in listed:
        args = [folded.get(arg, f"({arg})" if arg[0] == "-" else arg) for arg in instruction.args]
        text = dialect.spell(instruction.op, args)
        single = uses[instruction.name] == 1 and instruction.name not in named | no_folding
        if single and len(text) <= _LINE:
            is_call = instruction.op in dialect.functions
            folded[instruction.name] = text if is_call else f"({text})"
        else:
            lines.append(f"{instruction.name} = {text}")
    return lines
