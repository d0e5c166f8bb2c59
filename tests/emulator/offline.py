"""What a kernel becomes for a device that is not there: its PTX, and the registers that the linker gives it."""

from __future__ import annotations

import re
from typing import Any

from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render

__all__ = ["assemble", "compile_kernel", "loop_of"]


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
    from numba import cuda, types

    column, sums = (types.Array(getattr(types, d), 1, "C") for d in (dtype, "float64"))
    count = program.n_vars + program.n_outputs * (2 if weighted else 1)
    signature = types.void(*[column] * count, types.int64, types.int64, sums, sums, types.int64)
    kernel = getattr(load(render(program, "cuda", weighted)), name).py_func
    text, _ = cuda.compile(kernel, signature, cc=cc, device=False, abi="numba", output="ptx")
    return str(text)


def assemble(text: str, cc: tuple[int, int]) -> dict[str, int]:
    """Registers per thread, and bytes that are spilled, after the assembler of nvJitLink.

    Parameters
    ----------
    text : str
        PTX.
    cc : (int, int)
        Compute capability.

    Returns
    -------
    dict
        "registers" and "spilled".
    """
    from cuda.bindings import nvjitlink

    arch = f"-arch=sm_{cc[0]}{cc[1]}"
    handle = nvjitlink.create(4, [arch, "-Xptxas=-v", "-verbose", "-O3"])
    data = text.encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel.ptx")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    nvjitlink.destroy(handle)
    found = log.decode(errors="replace")
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", found)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", found)]
    if not registers:
        raise RuntimeError(f"the assembler does not say what it used: {found}")
    return {"registers": max(registers), "spilled": sum(spilled)}


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
