"""What each PTX instruction does, in LLVM IR. Unknown opcodes and modes raise: nothing is guessed.

Warp exchanges and atomics are left out on purpose; our kernels use none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from .ptx import BITS, FLOATS, UnsupportedPtx

if TYPE_CHECKING:
    from .emitter import Emitter

__all__ = ["OPERATIONS"]

Operation = Callable[["Emitter", list[str], list[str]], None]
OPERATIONS: dict[str, Operation] = {}
"""First part of an opcode → what emits it."""

_ROUNDED = {"rm", "rp", "rz"}  # roundings other than to nearest
_TO_INTEGER = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
_FLOAT_TESTS = {
    "eq": "oeq", "ne": "one", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "equ": "ueq", "neu": "une",
    "ltu": "ult", "leu": "ule", "gtu": "ugt", "geu": "uge", "num": "ord", "nan": "uno",
}  # fmt: skip
_INFINITY = "0x7FF0000000000000"


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Enter a function into the table."""

    def enter(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return enter


def kinds(parts: list[str]) -> list[str]:
    """The types in an opcode."""
    return [part for part in parts[1:] if part in BITS]


def llvm_type(kind: str) -> str:
    """The LLVM name of a PTX type."""
    return {"f16": "half", "f32": "float", "f64": "double"}.get(kind) or f"i{BITS[kind]}"


def refuse(e: Emitter) -> UnsupportedPtx:
    """The error for an instruction in a mode that is not known."""
    return UnsupportedPtx(e.current.text)


# -- arithmetic ---------------------------------------------------------------------------------
_BINARY = {
    "add": ("add", "fadd"), "sub": ("sub", "fsub"), "mul": ("mul", "fmul"), "div": ("div", "fdiv"),
    "rem": ("rem", ""), "and": ("and", ""), "or": ("or", ""), "xor": ("xor", ""),
}  # fmt: skip


@operation(*_BINARY)
def binary(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Two operands of one type."""
    kind = kinds(parts)[-1]
    if "cc" in parts:
        carried(e, parts, args)
        return
    if kind not in FLOATS and parts[0] == "mul" and "lo" not in parts:
        wide_product(e, parts, args)
        return
    if _ROUNDED & set(parts) and kind in FLOATS:
        raise refuse(e)
    whole, floating = _BINARY[parts[0]]
    op = floating if kind in FLOATS else whole
    if op in ("div", "rem"):
        op = ("s" if kind[0] == "s" else "u") + op
    left, right = (e.read(arg, kind) for arg in args[1:3])
    result = e.value(f"{op} {llvm_type(kind)} {left}, {right}")
    e.write(args[0], saturated(e, result, kind) if "sat" in parts else result, kind)


def saturated(e: Emitter, value: str, kind: str) -> str:
    """Clamped to [0, 1]; nan gives 0."""
    kept = llvm_type(kind)
    low = e.call(f"llvm.maxnum.{kind}", kept, [(kept, value), (kept, "0.0")])
    return e.call(f"llvm.minnum.{kind}", kept, [(kept, low), (kept, "1.0")])


@operation("addc", "subc")
def carried(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Add or subtract with the carry flag as input (addc), output (.cc), or both."""
    kind = kinds(parts)[-1]
    width = BITS[kind]
    wide, op = f"i{2 * width}", parts[0][:3]
    left, right = (e.cast("zext", f"i{width}", e.read(arg, kind), wide) for arg in args[1:3])
    value = e.value(f"{op} {wide} {left}, {right}")
    if parts[0].endswith("c"):
        value = e.value(f"{op} {wide} {value}, {carry(e, wide)}")
    if "cc" in parts:
        keep_carry(e, value, width)
    e.write(args[0], e.cast("trunc", wide, value, f"i{width}"), kind)


def carry(e: Emitter, wide: str) -> str:
    """The carry flag as a wide integer."""
    return e.cast("zext", "i32", e.value("load i32, ptr %carry"), wide)


def keep_carry(e: Emitter, value: str, width: int) -> None:
    """Set the carry flag from the bit above a result."""
    wide = f"i{2 * width}"
    bit = e.value(f"and {wide} {e.value(f'lshr {wide} {value}, {width}')}, 1")
    e.emit(f"store i32 {e.cast('trunc', wide, bit, 'i32')}, ptr %carry")


def widened(e: Emitter, kind: str, args: list[str]) -> tuple[str, str]:
    """The full product of two integers, and its type."""
    width = BITS[kind]
    wide, extend = f"i{2 * width}", "sext" if kind[0] == "s" else "zext"
    left, right = (e.cast(extend, f"i{width}", e.read(arg, kind), wide) for arg in args[1:3])
    return e.value(f"mul {wide} {left}, {right}"), wide


def wide_product(e: Emitter, parts: list[str], args: list[str]) -> None:
    """mul.wide and mul.hi."""
    kind = kinds(parts)[-1]
    value, wide = widened(e, kind, args)
    if "wide" in parts:
        e.write(args[0], value, f"{kind[0]}{2 * BITS[kind]}")
    else:
        high = e.value(f"lshr {wide} {value}, {BITS[kind]}")
        e.write(args[0], e.cast("trunc", wide, high, llvm_type(kind)), kind)


@operation("mad", "madc", "fma")
def multiply_add(e: Emitter, parts: list[str], args: list[str]) -> None:
    """a·b + c."""
    kind = kinds(parts)[-1]
    if kind in FLOATS:
        if _ROUNDED & set(parts):
            raise refuse(e)
        operands = [(llvm_type(kind), e.read(arg, kind)) for arg in args[1:4]]
        e.write(args[0], e.call(f"llvm.fma.{kind}", llvm_type(kind), operands), kind)
        return
    width, (value, wide) = BITS[kind], widened(e, kind, args)
    if "wide" in parts:
        target = f"{kind[0]}{2 * width}"
        e.write(args[0], e.value(f"add {wide} {value}, {e.read(args[3], target)}"), target)
        return
    half = value if "lo" in parts else e.value(f"lshr {wide} {value}, {width}")
    part = e.cast("zext", f"i{width}", e.cast("trunc", wide, half, f"i{width}"), wide)
    total = e.value(f"add {wide} {part}, {e.cast('zext', f'i{width}', e.read(args[3], kind), wide)}")
    if parts[0] == "madc":
        total = e.value(f"add {wide} {total}, {carry(e, wide)}")
    if "cc" in parts:
        keep_carry(e, total, width)
    e.write(args[0], e.cast("trunc", wide, total, f"i{width}"), kind)


@operation("min", "max")
def extreme(e: Emitter, parts: list[str], args: list[str]) -> None:
    """The smaller or larger of two; a nan loses."""
    kind, which = kinds(parts)[-1], parts[0]
    operands = [(llvm_type(kind), e.read(arg, kind)) for arg in args[1:3]]
    sign = "s" if kind[0] == "s" else "u"
    intrinsic = f"llvm.{which}num.{kind}" if kind in FLOATS else f"llvm.{sign}{which}.{llvm_type(kind)}"
    e.write(args[0], e.call(intrinsic, llvm_type(kind), operands), kind)


@operation("neg", "abs", "not", "sqrt", "rcp", "rsqrt")
def unary(e: Emitter, parts: list[str], args: list[str]) -> None:
    """One operand. A double's rcp and rsqrt are approximations that keep the upper half of the bits."""
    kind = kinds(parts)[-1]
    kept, value, op = llvm_type(kind), e.read(args[1], kind), parts[0]
    if op == "neg":
        result = e.value(f"fneg {kept} {value}" if kind in FLOATS else f"sub {kept} 0, {value}")
    elif op == "not":
        result = e.value(f"xor {kept} {value}, {'true' if kind == 'pred' else '-1'}")
    elif op == "abs" and kind not in FLOATS:
        result = e.call(f"llvm.abs.{kept}", kept, [(kept, value), ("i1", "false")])
    elif op == "abs":
        result = e.call(f"llvm.fabs.{kind}", kept, [(kept, value)])
    else:
        result = value if op == "rcp" else e.call(f"llvm.sqrt.{kind}", kept, [(kept, value)])
        if op != "sqrt":
            result = e.value(f"fdiv {kept} 1.0, {result}")
        if "approx" in parts and kind == "f64":
            bits = e.value(f"and i64 {e.cast('bitcast', 'double', result, 'i64')}, {-(1 << 32)}")
            result = e.cast("bitcast", "i64", bits, "double")
    e.write(args[0], result, kind)


@operation("ex2", "lg2", "sin", "cos", "tanh")
def approximated(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Fast float32 functions, by their exact ones."""
    function = {"ex2": "exp2f", "lg2": "log2f"}.get(parts[0]) or f"{parts[0]}f"
    e.write(args[0], e.call(function, "float", [("float", e.read(args[1], "f32"))]), "f32")


@operation("copysign")
def copysign(e: Emitter, parts: list[str], args: list[str]) -> None:
    """The second operand with the sign of the first."""
    kind = kinds(parts)[-1]
    operands = [(llvm_type(kind), e.read(arg, kind)) for arg in (args[2], args[1])]
    e.write(args[0], e.call(f"llvm.copysign.{kind}", llvm_type(kind), operands), kind)


@operation("testp")
def test_property(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Finite, infinite, number, not a number."""
    kind = kinds(parts)[-1]
    kept, value = llvm_type(kind), e.read(args[1], kind)
    size = e.call(f"llvm.fabs.{kind}", kept, [(kept, value)])
    tests = {
        "finite": f"olt {kept} {size}, {_INFINITY}",
        "infinite": f"oeq {kept} {size}, {_INFINITY}",
        "number": f"ord {kept} {value}, {value}",
        "notanumber": f"uno {kept} {value}, {value}",
    }
    e.write(args[0], e.value(f"fcmp {tests[parts[1]]}"), "pred")


# -- bits ---------------------------------------------------------------------------------------
@operation("shl", "shr")
def shift(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Shifts by the width or more give 0, or the sign."""
    kind = kinds(parts)[-1]
    width, kept, by = BITS[kind], llvm_type(kind), e.read(args[2], "u32")
    op = "shl" if parts[0] == "shl" else "ashr" if kind[0] == "s" else "lshr"
    far = e.value(f"icmp uge i32 {by}, {width}")
    capped = e.value(f"select i1 {far}, i32 {width - 1}, i32 {by}")
    if width != 32:
        capped = e.cast("zext" if width > 32 else "trunc", "i32", capped, kept)
    value = e.value(f"{op} {kept} {e.read(args[1], kind)}, {capped}")
    e.write(args[0], value if op == "ashr" else e.value(f"select i1 {far}, {kept} 0, {kept} {value}"), kind)


@operation("shf")
def funnel_shift(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Shift two registers as one."""
    low, high, by = (e.read(arg, "u32") for arg in args[1:4])
    if "clamp" in parts:
        by = e.call("llvm.umin.i32", "i32", [("i32", by), ("i32", "32")])
    else:
        by = e.value(f"and i32 {by}, 31")
    both, count = joined(e, low, high), e.cast("zext", "i32", by, "i64")
    if "l" in parts:
        value = e.value(f"lshr i64 {e.value(f'shl i64 {both}, {count}')}, 32")
    else:
        value = e.value(f"lshr i64 {both}, {count}")
    e.write(args[0], e.cast("trunc", "i64", value, "i32"), "b32")


def joined(e: Emitter, low: str, high: str) -> str:
    """Two i32 as an i64."""
    upper = e.value(f"shl i64 {e.cast('zext', 'i32', high, 'i64')}, 32")
    return e.value(f"or i64 {upper}, {e.cast('zext', 'i32', low, 'i64')}")


@operation("bfi", "bfe", "prmt")
def fields(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Bit fields at constant places: insert, extract, permute bytes."""
    if not all(re.match(r"^(0x)?[0-9a-fA-F]+U?$", a) for a in (args[3:] if parts[0] != "bfe" else args[2:])):
        raise refuse(e)
    if parts[0] == "prmt":
        permuted(e, args)
        return
    kind = kinds(parts)[-1]
    width, kept = BITS[kind], llvm_type(kind)
    if parts[0] == "bfi":
        begin, count = (int(a, 0) for a in args[3:5])
        mask = ((1 << count) - 1) << begin & ((1 << width) - 1)
        moved = e.value(f"shl {kept} {e.read(args[1], kind)}, {begin}")
        inside = e.value(f"and {kept} {moved}, {mask}")
        outside = e.value(f"and {kept} {e.read(args[2], kind)}, {~mask & ((1 << width) - 1)}")
        e.write(args[0], e.value(f"or {kept} {inside}, {outside}"), kind)
        return
    begin, count = (int(a, 0) for a in args[2:4])
    if not 0 < count <= width - begin:
        raise refuse(e)
    up = e.value(f"shl {kept} {e.read(args[1], kind)}, {width - begin - count}")
    op = "ashr" if kind[0] == "s" else "lshr"
    e.write(args[0], e.value(f"{op} {kept} {up}, {width - count}"), kind)


def permuted(e: Emitter, args: list[str]) -> None:
    """prmt: each byte of the result is one of eight."""
    selector, both, result = int(args[3], 0), joined(e, *(e.read(arg, "u32") for arg in args[1:3])), "0"
    for k in range(4):
        which = selector >> (4 * k) & 15
        if which & 8:
            raise refuse(e)
        byte = e.value(f"and i64 {e.value(f'lshr i64 {both}, {8 * which}')}, 255")
        result = e.value(f"or i64 {result}, {e.value(f'shl i64 {byte}, {8 * k}')}")
    e.write(args[0], e.cast("trunc", "i64", result, "i32"), "b32")


@operation("clz", "popc", "brev")
def counted(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Leading zeros, ones, or the bits reversed."""
    kind = kinds(parts)[-1]
    kept = llvm_type(kind)
    intrinsic = {"clz": "ctlz", "popc": "ctpop", "brev": "bitreverse"}[parts[0]]
    operands = [(kept, e.read(args[1], kind))] + ([("i1", "false")] if parts[0] == "clz" else [])
    value = e.call(f"llvm.{intrinsic}.{kept}", kept, operands)
    if parts[0] == "brev":
        e.write(args[0], value, kind)
    else:
        e.write(args[0], value if kept == "i32" else e.cast("trunc", kept, value, "i32"), "b32")


from . import movement  # noqa: E402, F401 - enters the rest into the table; it needs what is above
