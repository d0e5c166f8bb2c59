"""PTX instructions that compare, convert, load, store and branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .operations import _FLOAT_TESTS, _TO_INTEGER, kinds, llvm_type, operation, refuse, saturated
from .ptx import BITS, FLOATS, UnsupportedPtx

if TYPE_CHECKING:
    from .emitter import Emitter

__all__ = ["TRAP"]

TRAP = 77
"""Fault of a thread that trapped."""


@operation("setp")
def compare(e: Emitter, parts: list[str], args: list[str]) -> None:
    """A predicate from a comparison, perhaps combined with another predicate."""
    kind, test = kinds(parts)[-1], parts[1]
    left, right = (e.read(arg, kind) for arg in args[1:3])
    if kind in FLOATS:
        value = e.value(f"fcmp {_FLOAT_TESTS[test]} {llvm_type(kind)} {left}, {right}")
    else:
        unsigned = {"lo": "ult", "ls": "ule", "hi": "ugt", "hs": "uge", "eq": "eq", "ne": "ne"}
        sign = "s" if kind[0] == "s" else "u"
        value = e.value(f"icmp {unsigned.get(test) or sign + test} {llvm_type(kind)} {left}, {right}")
    for op in {"and", "or", "xor"} & set(parts[2:]):
        other = e.read(args[3].lstrip("!"), "pred")
        if args[3].startswith("!"):
            other = e.value(f"xor i1 {other}, true")
        value = e.value(f"{op} i1 {value}, {other}")
    first, _, second = args[0].partition("|")
    e.write(first, value, "pred")
    if second:
        e.write(second, e.value(f"xor i1 {value}, true"), "pred")


@operation("selp")
def select(e: Emitter, parts: list[str], args: list[str]) -> None:
    """One of two values."""
    kind = kinds(parts)[-1]
    yes, no, chosen = e.read(args[1], kind), e.read(args[2], kind), e.read(args[3], "pred")
    e.write(args[0], e.value(f"select i1 {chosen}, {llvm_type(kind)} {yes}, {llvm_type(kind)} {no}"), kind)


@operation("mov", "cvta")
def move(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Copy; {a, b} stands for the halves of a register. All address spaces share one numbering here."""
    kind = kinds(parts)[-1]
    whole, (target, source) = f"i{BITS[kind]}", args
    if target.startswith("{"):
        pieces = [piece.strip() for piece in target.strip("{}").split(",")]
        width, value = BITS[kind] // len(pieces), e.read(source, f"b{BITS[kind]}")
        for k, piece in enumerate(pieces):
            if piece != "_":
                part = e.value(f"lshr {whole} {value}, {k * width}") if k else value
                e.write(piece, e.cast("trunc", whole, part, f"i{width}"), f"b{width}")
    elif source.startswith("{"):
        pieces = [piece.strip() for piece in source.strip("{}").split(",")]
        width, total = BITS[kind] // len(pieces), "0"
        for k, piece in enumerate(pieces):
            part = e.cast("zext", f"i{width}", e.read(piece, f"b{width}"), whole)
            total = e.value(f"or {whole} {total}, {e.value(f'shl {whole} {part}, {k * width}')}")
        e.write(target, total, f"b{BITS[kind]}")
    else:
        e.write(target, e.read(source, kind), kind)


@operation("cvt")
def convert(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Between types, with a rounding."""
    target, source = kinds(parts)[-2:]
    new, old, value = llvm_type(target), llvm_type(source), e.read(args[1], source)
    rounding = [part for part in parts if part in _TO_INTEGER]
    if source in FLOATS and (rounding or target not in FLOATS):
        function = _TO_INTEGER[rounding[0] if rounding else "rzi"]
        value = e.call(f"llvm.{function}.{source}", old, [(old, value)])
    if source in FLOATS and target in FLOATS:
        if {"rm", "rp", "rz"} & set(parts):
            raise refuse(e)
        if BITS[target] != BITS[source]:
            value = e.cast("fpext" if BITS[target] > BITS[source] else "fptrunc", old, value, new)
        if "sat" in parts:
            value = saturated(e, value, target)
    elif source in FLOATS:
        sign = "s" if target[0] == "s" else "u"
        value = e.call(f"llvm.fpto{sign}i.sat.{new}.{source}", new, [(old, value)])
    elif target in FLOATS:
        value = e.cast("sitofp" if source[0] == "s" else "uitofp", old, value, new)
    elif BITS[target] != BITS[source]:
        widen = "sext" if source[0] == "s" else "zext"
        value = e.cast(widen if BITS[target] > BITS[source] else "trunc", old, value, new)
    e.write(args[0], value, target)


def space_of(parts: list[str]) -> str:
    """The address space of a load or store; empty for a generic one."""
    for part in parts[1:]:
        space = part.split("_")[0]
        if space in ("global", "shared", "local", "param", "const"):
            return space
    return ""


@operation("ld", "ldu", "st")
def access(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Load or store one, two or four values."""
    writes = parts[0] == "st"
    place, operand = args if writes else args[::-1]
    kind, space = kinds(parts)[-1], space_of(parts)
    size, registers = BITS[kind] // 8, [r.strip() for r in operand.strip("{}").split(",")]
    if space == "param":
        base = e.parameter(place)
    else:
        address = e.address(place)
        e.check(address, size * len(registers), space, write=writes)
        base = e.cast("inttoptr", "i64", address, "ptr")
    align = 1 if space == "param" else size
    for k, register in enumerate(registers):
        pointer = e.value(f"getelementptr i8, ptr {base}, i64 {k * size}") if k else base
        if writes:
            e.emit(f"store {llvm_type(kind)} {e.read(register, kind)}, ptr {pointer}, align {align}")
        else:
            e.write(register, e.value(f"load {llvm_type(kind)}, ptr {pointer}, align {align}"), kind)


@operation("bra")
def branch(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Go to a label, perhaps under a predicate."""
    item = e.current
    if item.predicate is None:
        e.emit(f'br label %"L{args[0]}"')
        e.ended = True
        return
    after, target = e.label(), f'"L{args[0]}"'
    yes, no = (after, target) if item.negated else (target, after)
    e.emit(f"br i1 {e.read(item.predicate, 'pred')}, label %{yes}, label %{no}")
    e.begin(after)


@operation("ret", "exit")
def leave(e: Emitter, parts: list[str], args: list[str]) -> None:
    """The thread, or the function, is done."""
    e.leave(1)


@operation("trap")
def trap(e: Emitter, parts: list[str], args: list[str]) -> None:
    """End with a fault."""
    e.stop_if("true", str(TRAP))


@operation("membar", "fence")
def fence(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Threads run one after the other here: memory is always in order."""


@operation("call")
def call(e: Emitter, parts: list[str], args: list[str]) -> None:
    """Call a function of the module."""
    args = list(args)
    result = args.pop(0).strip("() ") if args[0].startswith("(") else ""
    target = args.pop(0)
    given = [a.strip() for a in args[0].strip("() ").split(",") if a.strip()] if args else []
    if target not in e.module.functions:
        raise UnsupportedPtx(f"call of {target}")
    pointers = ["%context", f'%"S{result}"' if result else "null", *(f'%"S{a}"' for a in given)]
    e.emit(f'call void @"function_{target}"({", ".join(f"ptr {p}" for p in pointers)})')
    e.pass_fault_on()
