"""What a kernel becomes for a device that is not there: PTX, machine code, registers."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

from nlsq_nb.backends.cuda.toolkit import toolkit
from nlsq_nb.codegen.skeletons import render

__all__ = [
    "Assembled", "assemble", "compile_kernel", "disassemble", "disassembler", "loop_of", "machine_loop_of", "opcode",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assembled:
    """Machine code.

    Attributes
    ----------
    cubin : bytes
        An ELF file.
    registers, spilled : int
        Registers per thread, and bytes that are spilled.
    """

    cubin: bytes
    registers: int
    spilled: int


def compile_kernel(
    program: Any, name: str, cc: tuple[int, int], dtype: str = "float64", *, weighted: bool = False
) -> str:
    """PTX of a sums kernel; the stand-in driver, or a real one, must be there.

    Parameters
    ----------
    program : Program
        The model.
    name : str
        Of the kernel.
    cc : (int, int)
        Compute capability.
    dtype : {"float64", "float32"}
        Storage dtype of the columns.
    weighted : bool
        Whether there are weights.

    Returns
    -------
    str
        PTX.
    """
    tools = toolkit()
    cuda, types = tools.cuda, importlib.import_module(f"{tools.package}.types")
    column, sums = (types.Array(getattr(types, d), 1, "C") for d in (dtype, "float64"))
    count = program.n_vars + program.n_outputs * (2 if weighted else 1)
    signature = types.void(*[column] * count, types.int64, types.int64, sums, sums, types.int64)
    kernel = getattr(tools.load(render(program, "cuda", weighted)), name).py_func
    text, _ = cuda.compile(kernel, signature, cc=cc, device=False, abi="numba", output="ptx")
    return str(text)


def assemble(text: str, cc: tuple[int, int]) -> Assembled:
    """What the assembler of nvJitLink makes of PTX.

    Parameters
    ----------
    text : str
        PTX.
    cc : (int, int)
        Compute capability.

    Returns
    -------
    Assembled
        Machine code, and what a thread needs.
    """
    from cuda.bindings import nvjitlink

    arch = f"-arch=sm_{cc[0]}{cc[1]}"
    handle = nvjitlink.create(4, [arch, "-Xptxas=-v", "-verbose", "-O3"])
    data = text.encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel.ptx")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
    nvjitlink.get_linked_cubin(handle, cubin)
    nvjitlink.destroy(handle)
    found = log.decode(errors="replace")
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", found)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", found)]
    if not registers:
        raise RuntimeError(f"the assembler does not say what it used: {found}")
    return Assembled(bytes(cubin), max(registers), sum(spilled))


def disassembler() -> str | None:
    """Where NVIDIA's disassembler is; None without the package nvidia-cuda-nvdisasm."""
    from cuda.pathfinder import find_nvidia_binary_utility

    found = find_nvidia_binary_utility("nvdisasm")
    return None if found is None else str(found)


def disassemble(cubin: bytes) -> dict[str, list[str]]:
    """Machine code as text; `disassembler` must be there.

    Parameters
    ----------
    cubin : bytes
        From `assemble`.

    Returns
    -------
    dict
        Name of a function → its labels, with a colon, and its instructions, in order.
    """
    tool = disassembler()
    if tool is None:
        raise RuntimeError("needs NVIDIA's disassembler: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-c", file.name], check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"\.text\.(\S+):", line):
            name = match[1]
            found[name] = []
        elif match := re.match(r"(\.L_\S+:)|\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            found[name].append(match[1] or match[2])
    return found


def machine_loop_of(cubin: bytes) -> list[str]:
    """Opcodes of the loop over the points in machine code; see `loop_of`.

    Parameters
    ----------
    cubin : bytes
        With one kernel, from `assemble`.

    Returns
    -------
    list of str
        In order.
    """
    best: list[str] = []
    for lines in disassemble(cubin).values():
        for end, line in enumerate(lines):
            target = re.search(r"\bBRA.*`\((\S+)\)", line)
            begin = lines.index(f"{target[1]}:") if target and f"{target[1]}:" in lines else end
            inside = [opcode(text) for text in lines[begin : end + 1] if not text.endswith(":")]
            if begin < end and len(inside) > len(best) and not any(op.startswith("BAR.") for op in inside):
                best = inside
    return best


def opcode(instruction: str) -> str:
    """The opcode of an instruction of machine code, without its predicate."""
    return re.sub(r"^@!?\w+\s+", "", instruction).split()[0]


def loop_of(text: str) -> list[str]:
    """Opcodes of the loop over the points: the longest stretch that a backward branch closes.

    Parameters
    ----------
    text : str
        PTX of a kernel.

    Returns
    -------
    list of str
        In order.
    """
    from .ptx import Instruction, Module

    items, best = Module(text).kernels[0].items, []
    for end, item in enumerate(items):
        if isinstance(item, Instruction) and item.op.startswith("bra"):
            begin = items.index(item.args[0])
            inside = [i.op for i in items[begin:end] if isinstance(i, Instruction)]
            if begin < end and len(inside) > len(best) and not any(op.startswith("bar") for op in inside):
                best = inside
    return best
