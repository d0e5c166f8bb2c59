"""PTX text → functions, registers and instructions, as far as compilers emit it for kernels."""

from __future__ import annotations

import itertools
import re
import struct
from dataclasses import dataclass, field

__all__ = ["BITS", "BarrierOps", "Function", "Instruction", "Module", "PtxError", "UnsupportedPtx"]

INTEGERS = {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)} | {"pred": 1}
FLOATS = {"f16": 16, "f32": 32, "f64": 64}
BITS = INTEGERS | FLOATS
"""Width of each PTX type."""

BarrierOps = ("bar.", "barrier.")
"""How instructions begin at which a thread waits for others."""

_HEADER = re.compile(r"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\b")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|common|weak)\s+)*\.(global|const|shared)\s+((?:\.(?:align\s+\d+|attribute\([^)]*\)|ptr)"
    r"\s*)*)\.(\w+)\s+([\w$.]+)\s*(\[\s*(\d*)\s*\])?\s*(=\s*(\{.*?\}|[^;]+))?;",
    re.DOTALL,
)
_PARAMETER = re.compile(
    r"\.param\s+((?:\.(?:align\s+\d+|ptr(?:\s*\.\w+)?)\s*)*)\.(\w+)\s+(?:\.ptr\s*(?:\.\w+\s*)*(?:\.align\s+\d+\s*)?)?"
    r"([\w$.]+)(\[(\d+)\])?"
)
_DECLARATION = r"^\.{}\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d+)\])?"
_LOCAL, _SHARED, _PARAM = (re.compile(_DECLARATION.format(space)) for space in ("local", "shared", "param"))
_WORDS = re.compile(r"[%$\w.]+")


class PtxError(Exception):
    """The kernel did something that a device would not forgive."""


class UnsupportedPtx(PtxError):
    """The text holds something that this executor does not know."""


@dataclass(slots=True)
class Instruction:
    """One instruction: `@[!]predicate op args`, with the registers of inner scopes renamed."""

    op: str
    args: list[str]
    text: str
    number: int
    predicate: str | None = None
    negated: bool = False

    @property
    def parts(self) -> list[str]:
        """The op split at its dots."""
        return self.op.replace("::", "_").split(".")

    @property
    def is_barrier(self) -> bool:
        """Whether threads wait here for each other."""
        return self.op.startswith(BarrierOps)


@dataclass(slots=True)
class Parameter:
    """A parameter of a function: its place in the block of all of them, in bytes."""

    name: str
    type: str
    offset: int
    size: int


@dataclass(slots=True)
class Function:
    """A kernel or a device function.

    Attributes
    ----------
    registers : dict
        Name → bits.
    items : list of (str or Instruction)
        Labels and instructions in order.
    locals, slots : dict
        Offsets of local variables; sizes of the parameter space of calls.
    """

    name: str
    is_kernel: bool
    parameters: list[Parameter] = field(default_factory=list)
    returns: list[Parameter] = field(default_factory=list)
    registers: dict[str, int] = field(default_factory=dict)
    items: list[str | Instruction] = field(default_factory=list)
    locals: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    local_size: int = 0

    @property
    def parameter_size(self) -> int:
        """Bytes of all parameters."""
        return max((p.offset + p.size for p in self.parameters), default=0)

    def uses(self, item: Instruction) -> tuple[set[str], set[str]]:
        """Registers that an instruction writes, and those that it reads."""
        found = [[word for word in _WORDS.findall(arg) if word in self.registers] for arg in item.args]
        writes: set[str] = set()
        no_result = ("st.", *BarrierOps, "bra", "ret", "exit", "trap", "call", "membar", "fence")
        if found and not item.op.startswith(no_result):
            writes = set(found.pop(0))
        reads = {word for words in found for word in words}
        return writes, reads | ({item.predicate} if item.predicate else set())


def split_arguments(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    out, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            out.append(current.strip())
            current = ""
        else:
            current += letter
    return [*out, current.strip()] if current.strip() else out


class Module:
    """Everything in a PTX text.

    Attributes
    ----------
    globals : dict
        Name → (bytes, alignment) of constants and global variables.
    shared : dict
        Name → offset in the shared memory of a block, of `shared_size` bytes.
    functions : dict
        Name → Function.
    """

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        self.text = re.sub(r"//[^\n]*", "", text)
        self.globals: dict[str, tuple[bytes, int]] = {}
        self.shared: dict[str, int] = {}
        self.shared_size = 0
        self.functions: dict[str, Function] = {}
        place = 0
        while True:
            header, variable = (pattern.search(self.text, place) for pattern in (_HEADER, _VARIABLE))
            if variable and (not header or variable.start() < header.start()):
                self._take_variable(variable)
                place = variable.end()
            elif header:
                place = self._take_function(header)
            else:
                return

    @property
    def kernels(self) -> list[Function]:
        """The functions that can be launched."""
        return [f for f in self.functions.values() if f.is_kernel]

    def reached(self) -> list[Function]:
        """The kernels, and the functions that they call; what was inlined everywhere is left out."""
        found = {f.name: f for f in self.kernels}
        rest = list(found.values())
        while rest:
            calls = (i for i in rest.pop().items if isinstance(i, Instruction) and i.op.startswith("call"))
            for name in {arg for call in calls for arg in call.args} & self.functions.keys() - found.keys():
                found[name] = self.functions[name]
                rest.append(found[name])
        return list(found.values())

    def _take_variable(self, match: re.Match[str]) -> None:
        space, qualifiers, kind, name, array, count, _, init = match.groups()
        align = re.search(r"align\s+(\d+)", qualifiers or "")
        alignment = int(align[1]) if align else BITS[kind] // 8
        if array and not count:
            raise UnsupportedPtx(f"dynamic shared memory: {match[0]}")
        size = BITS[kind] // 8 * int(count or 1)
        if space == "shared":
            self._share(name, alignment, size)
            return
        values = [v.strip() for v in (init or "").strip("{} \n").split(",") if v.strip()]
        self.globals[name] = (b"".join(_encoded(v, kind) for v in values).ljust(size, b"\0"), alignment)

    def _share(self, name: str, alignment: int, size: int) -> None:
        self.shared_size = -(-self.shared_size // alignment) * alignment
        self.shared[name] = self.shared_size
        self.shared_size += size

    def _take_function(self, match: re.Match[str]) -> int:
        text, begin = self.text, match.end()
        end = min(place for place in (text.find("{", begin), text.find(";", begin)) if place >= 0)
        head = text[begin:end]
        if text[end] == ";":  # a prototype
            return end + 1
        close, depth = end, 0
        while True:
            depth += (text[close] == "{") - (text[close] == "}")
            if depth == 0:
                break
            close += 1
        name = re.sub(r"\([^()]*\)", " ", head).split()[0]
        before, after = head[: head.find(name)], head[head.find(name) + len(name) :]
        function = Function(name, match[1] == "entry")
        function.returns, function.parameters = (_parameters(part) for part in (before, after))
        _Body(self, function).read(text[end + 1 : close])
        self.functions[name] = function
        return close + 1


class _Body:
    """Reads the statements of one function."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function = module, function
        self.scopes: list[dict[str, str]] = [{}]
        self.count, self.numbers = itertools.count(), itertools.count()

    def read(self, text: str) -> None:
        """Take all statements."""
        for statement in _statements(text):
            if statement == "{":
                self.scopes.append({})
            elif statement == "}":
                self.scopes.pop()
            elif statement.endswith(":"):
                self.function.items.append(statement[:-1])
            elif statement.startswith("."):
                self._declare(statement)
            else:
                self.function.items.append(self._instruction(statement))
        self.function.local_size = -(-self.function.local_size // 16) * 16

    def _renamed(self, match: re.Match[str]) -> str:
        for scope in reversed(self.scopes):
            if match[0] in scope:
                return scope[match[0]]
        return match[0]

    def _declare(self, statement: str) -> None:
        function = self.function
        if match := re.match(r"^\.reg\s+\.(\w+)\s+(.*)$", statement, re.DOTALL):
            for name in match[2].split(","):
                self._registers(name.strip(), BITS[match[1]])
        elif match := _LOCAL.match(statement):
            alignment, size = int(match[1] or 8), BITS[match[2]] // 8 * int(match[4] or 1)
            function.local_size = -(-function.local_size // alignment) * alignment
            function.locals[match[3]] = function.local_size
            function.local_size += size
        elif match := _SHARED.match(statement):
            self.module._share(match[3], int(match[1] or 8), BITS[match[2]] // 8 * int(match[4] or 1))
        elif match := _PARAM.match(statement):
            name = f"{match[3]}.p{next(self.count)}"
            self.scopes[-1][match[3]] = name
            function.slots[name] = BITS[match[2]] // 8 * int(match[4] or 1)
        elif not statement.startswith((".pragma", ".loc", ".file", ".callprototype")):
            raise UnsupportedPtx(statement)

    def _registers(self, name: str, bits: int) -> None:
        if match := re.match(r"(.+)<(\d+)>$", name):
            self.function.registers |= {f"{match[1]}{k}": bits for k in range(int(match[2]))}
            return
        own = name
        if len(self.scopes) > 1:
            own = self.scopes[-1][name] = f"{name}.s{next(self.count)}"
        self.function.registers[own] = bits

    def _instruction(self, statement: str) -> Instruction:
        predicate, negated, rest = None, False, statement
        if match := re.match(r"^@(!?)([%\w.$]+)\s+(.*)$", statement, re.DOTALL):
            negated, rest = bool(match[1]), match[3]
            predicate = _WORDS.sub(self._renamed, match[2])
        op, arguments = re.match(r"^([\w.:]+)\s*(.*)$", rest.strip(), re.DOTALL).groups()
        args = [_WORDS.sub(self._renamed, a) for a in split_arguments(arguments)]
        return Instruction(op, args, statement, next(self.numbers), predicate, negated)


def _statements(text: str) -> list[str]:
    """Braces, labels with their colon, and statements without their semicolon."""
    out, pending = [], ""
    for line in text.split("\n"):
        rest = line.strip()
        while rest:
            if not pending and rest[0] in "{}" and not re.match(r"\{[^;]*\}\s*,", rest):
                out.append(rest[0])
                rest = rest[1:].strip()
            elif not pending and (match := re.match(r"^([\w$%][\w$%.]*):", rest)):
                out.append(match[0])
                rest = rest[match.end() :].strip()
            elif not pending and re.match(r"^\.(loc|file|section)\b", rest):
                rest = ""
            elif ";" in rest:
                statement, _, rest = rest.partition(";")
                out.append(f"{pending} {statement}".strip())
                pending, rest = "", rest.strip()
            else:
                pending, rest = f"{pending} {rest}", ""
    return out


def _parameters(text: str) -> list[Parameter]:
    """The parameters in brackets, placed one after the other."""
    lists, out, offset = re.findall(r"\(([^()]*)\)", text), [], 0
    for part in split_arguments(lists[0]) if lists else []:
        match = _PARAMETER.match(part)
        if match is None:
            raise UnsupportedPtx(f"parameter {part}")
        size = BITS[match[2]] // 8
        align = re.search(r"align\s+(\d+)", match[1] or "")
        alignment = int(align[1]) if align else size
        offset = -(-offset // alignment) * alignment
        out.append(Parameter(match[3], match[2], offset, size * int(match[5] or 1)))
        offset += out[-1].size
    return out


def _encoded(value: str, kind: str) -> bytes:
    """A literal of a global variable, as bytes."""
    if kind not in FLOATS:
        return (int(value, 0) & ((1 << BITS[kind]) - 1)).to_bytes(BITS[kind] // 8, "little")
    if value[:2].lower() in ("0d", "0f"):
        return int(f"0x{value[2:]}", 0).to_bytes(BITS[kind] // 8, "little")
    return struct.pack("<d" if kind == "f64" else "<f", float(value))
