"""PTX → LLVM IR text: one function per PTX function, a kernel as a state machine that stops at its barriers.

Registers are stack slots, which LLVM turns into values. A kernel is called once per thread and barrier: with the
thread's context, a row of 64-bit slots, where it also keeps the registers that it needs after the barrier.
"""

from __future__ import annotations

import itertools
import re
import struct

from .liveness import live_at_barriers
from .operations import OPERATIONS, llvm_type
from .ptx import BITS, FLOATS, Function, Instruction, Module, UnsupportedPtx

__all__ = [
    "AT_BARRIER", "EXITED", "FAILED", "FAULT", "FAULT_ADDRESS", "FAULT_NUMBER", "LOCAL", "POINT", "READY", "SHARED",
    "SPILLED", "STATE", "TABLE", "Emitter",
]  # fmt: skip

# slots of a thread's context; the first twelve are tid, ntid, ctaid and nctaid, three of each
TID, NTID, CTAID, NCTAID = 0, 3, 6, 9
STATE, POINT, LOCAL, SHARED, FAULT, FAULT_ADDRESS, FAULT_NUMBER, TABLE = range(12, 20)
SPILLED = 20
READY, EXITED, AT_BARRIER, FAILED = range(4)
_SPECIAL = {
    f"%{name}.{axis}": base + k
    for base, name in ((TID, "tid"), (NTID, "ntid"), (CTAID, "ctaid"), (NCTAID, "nctaid"))
    for k, axis in enumerate("xyz")
}

_ROUND = """
define i64 @"round_{name}"(ptr %contexts, i64 %width, i64 %count, ptr %order, ptr %parameters) {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i2, %next]
  %done = icmp sge i64 %i, %count
  br i1 %done, label %end, label %body
body:
  %op = getelementptr i64, ptr %order, i64 %i
  %t = load i64, ptr %op
  %offset = mul i64 %t, %width
  %context = getelementptr i64, ptr %contexts, i64 %offset
  %sp = getelementptr i64, ptr %context, i64 {state}
  %s = load i64, ptr %sp
  %ready = icmp eq i64 %s, {ready}
  br i1 %ready, label %run, label %next
run:
  %k = call i64 @"kernel_{name}"(ptr %context, ptr %parameters)
  store i64 %k, ptr %sp
  %bad = icmp eq i64 %k, {failed}
  br i1 %bad, label %fail, label %next
next:
  %i2 = add i64 %i, 1
  br label %loop
fail:
  ret i64 %t
end:
  ret i64 -1
}}
"""


class Emitter:
    """The LLVM text of one module.

    Parameters
    ----------
    module : Module
        What to translate.
    checker : int
        Address of (context, address, size, kind) → fault, called at every access; see `checks`.
    """

    def __init__(self, module: Module, checker: int) -> None:
        self.module, self.checker = module, checker
        self.lines: list[str] = []
        self.declared: set[str] = set()
        self.ended = False  # whether the current block has its terminator
        self.function: Function
        self.current: Instruction
        self._numbers = itertools.count()

    def text(self) -> str:
        """All of it."""
        for name, (data, alignment) in self.module.globals.items():
            content = "".join(f"\\{byte:02X}" for byte in data)
            self.lines.append(f'@"global_{name}" = global [{len(data)} x i8] c"{content}", align {alignment}')
        for function in self.module.reached():
            self._function(function)
        for kernel in self.module.kernels:
            self.lines.append(_ROUND.format(name=kernel.name, state=STATE, ready=READY, failed=FAILED))
        return "\n".join([*sorted(self.declared), *self.lines])

    # -- text -----------------------------------------------------------------------------------
    def emit(self, line: str) -> None:
        """A line of the current block."""
        self.lines.append(f"  {line}")

    def value(self, expression: str) -> str:
        """A new name for the value of an expression."""
        name = f"%v{next(self._numbers)}"
        self.emit(f"{name} = {expression}")
        return name

    def label(self) -> str:
        """A new label."""
        return f"b{next(self._numbers)}"

    def begin(self, label: str) -> None:
        """Start a block."""
        self.lines.append(f"{label}:")
        self.ended = False

    def cast(self, op: str, source: str, value: str, target: str) -> str:
        """A conversion."""
        return self.value(f"{op} {source} {value} to {target}")

    def call(self, name: str, result: str, arguments: list[tuple[str, str]]) -> str:
        """A call of an external function or an intrinsic."""
        kinds = ", ".join(kind for kind, _ in arguments)
        self.declared.add(f"declare {result} @{name}({kinds})")
        return self.value(f"call {result} @{name}({', '.join(f'{k} {v}' for k, v in arguments)})")

    def slot(self, number: int) -> str:
        """What a slot of the context holds."""
        return self.value(f"load i64, ptr {self.value(f'getelementptr i64, ptr %context, i64 {number}')}")

    def set_slot(self, number: int, value: str) -> None:
        """Store into a slot of the context."""
        self.emit(f"store i64 {value}, ptr {self.value(f'getelementptr i64, ptr %context, i64 {number}')}")

    # -- operands -------------------------------------------------------------------------------
    def read(self, operand: str, kind: str) -> str:
        """The value of an operand, of the LLVM type of a PTX type."""
        bits, function = BITS[kind], self.function
        if operand in function.registers:
            return self._read_register(operand, kind)
        if operand in _SPECIAL:
            return self._narrowed(self.slot(_SPECIAL[operand]), bits)
        if re.match(r"^0[dDfF][0-9a-fA-F]+$", operand) or re.match(r"^[-+]?(0[xX][0-9a-fA-F]+|\d+)U?$", operand):
            return _literal(operand, kind)
        if operand in self.module.globals:
            return self.cast("ptrtoint", "ptr", f'@"global_{operand}"', "i64")
        if operand in self.module.shared:
            offset = self.module.shared[operand]
            return self._narrowed(self.value(f"add i64 {self.slot(SHARED)}, {offset}"), bits)
        if operand in function.locals:
            return self.value(f"add i64 %local, {function.locals[operand]}")
        raise UnsupportedPtx(f"operand {operand} in {self.current.text}")

    def _read_register(self, name: str, kind: str) -> str:
        width, bits = self.function.registers[name], BITS[kind]
        value = self.value(f'load i{width}, ptr %"R{name}"')
        if width != bits:
            value = self.cast("zext" if width < bits else "trunc", f"i{width}", value, f"i{bits}")
        return self.cast("bitcast", f"i{bits}", value, llvm_type(kind)) if kind in FLOATS else value

    def _narrowed(self, value: str, bits: int) -> str:
        return value if bits == 64 else self.cast("trunc", "i64", value, f"i{bits}")

    def write(self, register: str, value: str, kind: str) -> None:
        """Store a value of a PTX type into a register."""
        if register == "_":
            return
        if register not in self.function.registers:
            raise UnsupportedPtx(f"destination {register} in {self.current.text}")
        width, bits = self.function.registers[register], BITS[kind]
        if kind in FLOATS:
            value = self.cast("bitcast", llvm_type(kind), value, f"i{bits}")
        if width != bits:
            widen = "sext" if kind[0] == "s" else "zext"
            value = self.cast("trunc" if width < bits else widen, f"i{bits}", value, f"i{width}")
        self.emit(f'store i{width} {value}, ptr %"R{register}"')

    def address(self, operand: str) -> str:
        """The address `[base+offset]` as an i64."""
        base, offset = split_address(operand)
        if self.function.registers.get(base) == 32:  # a shared address; it lies below 4 GiB on a device
            low = self.cast("zext", "i32", self.read(base, "u32"), "i64")
            high = self.value(f"and i64 {self.slot(SHARED)}, {-(1 << 32)}")
            value = self.value(f"or i64 {low}, {high}")
        else:
            value = self.read(base, "u64")
        return self.value(f"add i64 {value}, {offset}") if offset else value

    def parameter(self, operand: str) -> str:
        """A pointer to `[parameter+offset]` of this function, of a call, or to the result."""
        base, offset = split_address(operand)
        function = self.function
        names = [p.name for p in function.parameters]
        if base in function.slots:
            pointer = f'%"S{base}"'
        elif function.is_kernel:
            offset += function.parameters[names.index(base)].offset
            pointer = "%parameters"
        else:
            pointer = f"%P{names.index(base)}" if base in names else "%result"
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {offset}") if offset else pointer

    def check(self, address: str, size: int, space: str, *, write: bool) -> None:
        """Ask the checker whether the access is allowed; else the thread ends here."""
        if space not in ("global", "shared", ""):
            return
        kind = 2 * write + (1 if space == "shared" else 0) + (4 if not space else 0)
        checker = self.cast("inttoptr", "i64", str(self.checker), "ptr")
        arguments = f"ptr %context, i64 {address}, i64 {size}, i64 {kind}"
        fault = self.value(f"call i64 {checker}({arguments})")
        self.stop_if(self.value(f"icmp ne i64 {fault}, 0"), fault, address)

    def stop_if(self, condition: str, fault: str, address: str = "0") -> None:
        """End the thread with a fault when a condition holds."""
        bad, good = self.label(), self.label()
        self.emit(f"br i1 {condition}, label %{bad}, label %{good}")
        self.begin(bad)
        self.set_slot(FAULT, fault)
        self.set_slot(FAULT_ADDRESS, address)
        self.set_slot(FAULT_NUMBER, str(self.current.number))
        self.leave(FAILED)
        self.begin(good)

    def pass_fault_on(self) -> None:
        """End the thread if a function that was called has ended with a fault."""
        bad, good = self.label(), self.label()
        fault = self.value(f"icmp ne i64 {self.slot(FAULT)}, 0")
        self.emit(f"br i1 {fault}, label %{bad}, label %{good}")
        self.begin(bad)
        self.leave(FAILED)
        self.begin(good)

    def leave(self, state: int) -> None:
        """Return from the function."""
        self.emit(f"ret i64 {state}" if self.function.is_kernel else "ret void")
        self.ended = True

    # -- functions ------------------------------------------------------------------------------
    def _function(self, function: Function) -> None:
        self.function = function
        if function.is_kernel:
            self.lines.append(f'define i64 @"kernel_{function.name}"(ptr %context, ptr %parameters) {{')
        else:
            rest = "".join(f", ptr %P{k}" for k in range(len(function.parameters)))
            self.lines.append(f'define internal void @"function_{function.name}"(ptr %context, ptr %result{rest}) {{')
        self.begin("entry")
        for name, width in function.registers.items():
            self.emit(f'%"R{name}" = alloca i{width}')
        for name, size in function.slots.items():
            self.emit(f'%"S{name}" = alloca [{size} x i8], align 16')
        self.emit("%carry = alloca i32")
        self.emit("store i32 0, ptr %carry")
        if function.is_kernel:
            self.emit(f"%local = add i64 {self.slot(LOCAL)}, 0")
        else:
            self.emit(f"%frame = alloca [{max(function.local_size, 1)} x i8], align 16")
            self.emit("%local = ptrtoint ptr %frame to i64")
        self._items(function)
        self.lines.append("}")

    def _items(self, function: Function) -> None:
        live = live_at_barriers(function) if function.is_kernel else {}
        points = {index: k for k, index in enumerate(sorted(live), 1)}
        start = self.label()
        if function.is_kernel:
            cases = " ".join(f"i64 {k}, label %resume{k}" for k in points.values())
            self.emit(f"switch i64 {self.slot(POINT)}, label %{start} [ {cases} ]")
        else:
            self.emit(f"br label %{start}")
        self.begin(start)
        for index, item in enumerate(function.items):
            if isinstance(item, str):
                if not self.ended:
                    self.emit(f'br label %"L{item}"')
                self.begin(f'"L{item}"')
                continue
            if self.ended:
                self.begin(self.label())
            self.current = item
            if item.is_barrier:
                if index not in points or item.predicate:
                    raise UnsupportedPtx(f"a barrier in a function or under a predicate: {item.text}")
                self._barrier(points[index], live[index])
            elif item.predicate and item.op != "bra":
                self._predicated(item)
            else:
                self._operation(item)
        if not self.ended:
            self.leave(EXITED)

    def _operation(self, item: Instruction) -> None:
        operation = OPERATIONS.get(item.parts[0])
        if operation is None:
            raise UnsupportedPtx(item.text)
        operation(self, item.parts, item.args)

    def _predicated(self, item: Instruction) -> None:
        then, after = self.label(), self.label()
        assert item.predicate is not None
        yes, no = (after, then) if item.negated else (then, after)
        self.emit(f"br i1 {self.read(item.predicate, 'pred')}, label %{yes}, label %{no}")
        self.begin(then)
        self._operation(item)
        if not self.ended:
            self.emit(f"br label %{after}")
        self.begin(after)

    def _barrier(self, point: int, live: list[str]) -> None:
        """Keep what is alive, return, and go on from here in the next call."""
        if "red" in self.current.parts or "warp" in self.current.parts:
            raise UnsupportedPtx(self.current.text)
        widths = [self.function.registers[name] for name in live]
        for k, (name, width) in enumerate(zip(live, widths, strict=True)):
            value = self.value(f'load i{width}, ptr %"R{name}"')
            self.set_slot(SPILLED + k, value if width == 64 else self.cast("zext", f"i{width}", value, "i64"))
        self.set_slot(POINT, str(point))
        self.set_slot(FAULT_NUMBER, str(self.current.number))
        self.leave(AT_BARRIER)
        self.begin(f"resume{point}")
        for k, (name, width) in enumerate(zip(live, widths, strict=True)):
            self.emit(f'store i{width} {self._narrowed(self.slot(SPILLED + k), width)}, ptr %"R{name}"')


def split_address(operand: str) -> tuple[str, int]:
    """Base and offset of `[base+offset]`."""
    match = re.match(r"^\[\s*([^\]+]+?)\s*(?:\+\s*(-?\w+))?\s*\]$", operand)
    if match is None:
        raise UnsupportedPtx(f"address {operand}")
    return match[1], int(match[2] or "0", 0)


def _literal(text: str, kind: str) -> str:
    """A number as LLVM writes it: floats by the bits of the double."""
    if text[1:2] in "dDfF" and text[0] == "0" and len(text) > 2:
        bits = int(f"0x{text[2:]}", 0)
        if kind not in FLOATS:
            return str(bits)
        single = text[1] in "fF"
        number = struct.unpack("<f" if single else "<d", struct.pack("<I" if single else "<Q", bits))[0]
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    number = int(text.rstrip("U"), 0)
    if kind in FLOATS:
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(number)))[0]:016X}"
    if kind == "pred":
        return "true" if number else "false"
    number &= (1 << BITS[kind]) - 1
    return str(number - (1 << BITS[kind]) if number >> (BITS[kind] - 1) else number)
