"""Runs kernels: blocks one after the other, the threads of a block in any order from barrier to barrier."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from . import emitter as at
from .checks import COUNTERS, Table, checker, fault
from .emitter import Emitter
from .ptx import Instruction, Module, PtxError

__all__ = ["Kernel", "array_arguments", "load_kernel", "pack_arguments"]

ORDERS = ("forward", "reverse", "random")
_TRANSLATION = threading.Lock()
_ROUND = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)


class Kernel:
    """A kernel of a PTX text, ready to run on the CPU.

    Parameters
    ----------
    text : str
        PTX.
    name : str, optional
        Which kernel; the first by default.

    Attributes
    ----------
    function : Function
        Its parameters and instructions.
    shared_size : int
        Bytes of shared memory of a block.

    Raises
    ------
    UnsupportedPtx
        When the text holds something that is not known.
    """

    def __init__(self, text: str, name: str | None = None) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = Module(text)
        self.function = module.kernels[0] if name is None else module.functions[name]
        self.shared_size = -(-module.shared_size // 16) * 16
        self._checker = checker()
        source = Emitter(module, self._checker.address).text()
        self._engine = _compiled(source)
        address = self._engine.get_function_address(f"round_{self.function.name}")
        self._round = _ROUND(address)
        self._globals = [
            (self._engine.get_global_value_address(f"global_{key}"), len(data))
            for key, (data, _) in module.globals.items()
        ]
        self._width = at.SPILLED + len(self.function.registers) + 1

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        parameters: bytes,
        buffers: Sequence[tuple[int, int]],
        *,
        order: str = "random",
        seed: int = 0,
    ) -> dict[str, int]:
        """Run all blocks.

        Parameters
        ----------
        grid, block : sequence of int
            Up to three numbers each.
        parameters : bytes
            As `pack_arguments` makes them.
        buffers : sequence of (int, int)
            Address and bytes of what the kernel may touch.
        order : {"forward", "reverse", "random"}
            In which blocks and threads run.
        seed : int
            Of the random order.

        Returns
        -------
        dict
            Accesses and bytes, see `checks.COUNTERS`.

        Raises
        ------
        PtxError
            For a fault, see `checks.FAULTS`, and for threads that wait at different barriers.
        """
        blocks, threads = (np.array([*size, 1, 1][:3], np.int64) for size in (grid, block))
        count, total = int(threads.prod()), int(blocks.prod())
        contexts = np.zeros((count, self._width), np.int64)
        shared = np.zeros(self.shared_size + 32, np.uint8)
        base = -(-shared.ctypes.data // 16) * 16
        local = np.zeros((count + 1, self.function.local_size + 16), np.uint8)
        packed = np.frombuffer(parameters + b"\0" * 16, np.uint8).copy()
        allowed = np.array([*buffers, *self._globals, (0, 0)], np.int64)
        allowed[:, 1] += allowed[:, 0]
        marks = np.full(self.shared_size // 4 * 4 + 16, -1, np.int64)
        table = np.zeros(Table.SIZE, np.int64)
        table[Table.BUFFERS], table[Table.LIST] = len(allowed) - 1, allowed.ctypes.data
        table[Table.SHARED], table[Table.SHARED_SIZE] = base, self.shared_size
        table[Table.MARKS] = marks.ctypes.data
        thread = np.arange(count)
        start = np.zeros_like(contexts)
        for k in range(3):
            start[:, at.TID + k] = thread // threads[:k].prod() % threads[k]
        start[:, at.NTID : at.NTID + 3], start[:, at.NCTAID : at.NCTAID + 3] = threads, blocks
        start[:, at.LOCAL] = -(-(local.ctypes.data + thread * local.strides[0]) // 16) * 16
        start[:, at.SHARED], start[:, at.TABLE] = base, table.ctypes.data
        random = np.random.default_rng(seed)
        for number in _ordered(order, total, random):
            shared[:] = 0xA5
            contexts[:] = start
            for k in range(3):
                contexts[:, at.CTAID + k] = number // blocks[:k].prod() % blocks[k]
            table[Table.BLOCK] += 1
            self._run_block(contexts, table, packed, int(number), lambda: _ordered(order, count, random))
        return dict(zip(COUNTERS, table[Table.COUNTS :].tolist(), strict=True))

    def _run_block(self, contexts: Any, table: Any, packed: Any, number: int, ordered: Any) -> None:
        """Run one block to its end."""
        while True:
            table[Table.EPOCH] += 1
            turn = ordered()
            failed = self._round(
                contexts.ctypes.data, contexts.shape[1], len(contexts), turn.ctypes.data, packed.ctypes.data
            )
            if failed >= 0:
                context = contexts[failed]
                raise fault(
                    int(context[at.FAULT]),
                    int(context[at.FAULT_ADDRESS]),
                    failed,
                    number,
                    self._text(int(context[at.FAULT_NUMBER])),
                )
            states = contexts[:, at.STATE]
            waiting = states == at.AT_BARRIER
            if not waiting.any():
                return
            points = np.unique(contexts[waiting, at.FAULT_NUMBER])
            if not waiting.all() or len(points) > 1:
                where = ", ".join(self._text(int(p)) for p in points)
                raise PtxError(f"divergent barrier in block {number}: {int(waiting.sum())} threads wait at {where}")
            states[:] = at.READY

    def _text(self, number: int) -> str:
        """An instruction by its number; those of device functions count on their own."""
        items = self.function.items
        found = [i.text for i in items if isinstance(i, Instruction) and i.number == number]
        return found[0] if found else f"instruction {number}"


def load_kernel(text: str, name: str) -> Kernel:
    """A kernel, translated once per process, also when several threads ask for it."""
    with _TRANSLATION:
        return _kernel(text, name)


@lru_cache(maxsize=256)
def _kernel(text: str, name: str) -> Kernel:
    return Kernel(text, name)


def _ordered(order: str, count: int, random: np.random.Generator) -> Any:
    """Numbers below `count` in an order."""
    numbers = np.arange(count)
    if order == "random":
        return random.permutation(count)
    return numbers if order == "forward" else np.ascontiguousarray(numbers[::-1])


def _compiled(source: str) -> Any:
    """An execution engine for LLVM text."""
    module = llvm.parse_assembly(source)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1
    )
    module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    llvm.create_pass_builder(machine, options).getModulePassManager().run(
        module, llvm.create_pass_builder(machine, options)
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


def pack_arguments(kernel: Kernel, values: Sequence[Any]) -> bytes:
    """The parameter block of a launch.

    Parameters
    ----------
    kernel : Kernel
        Knows its parameters.
    values : sequence of (int or float)
        One per PTX parameter, see `array_arguments`.

    Returns
    -------
    bytes
        As the driver would copy them.
    """
    out = bytearray(kernel.function.parameter_size)
    for parameter, value in zip(kernel.function.parameters, values, strict=True):
        if parameter.type in ("f64", "f32"):
            data = struct.pack("<d" if parameter.type == "f64" else "<f", value)
        else:
            data = (int(value) & ((1 << 8 * parameter.size) - 1)).to_bytes(parameter.size, "little")
        out[parameter.offset : parameter.offset + parameter.size] = data
    return bytes(out)


def array_arguments(arguments: Sequence[Any]) -> tuple[list[Any], list[tuple[int, int]]]:
    """Arguments as numba-cuda passes them, and the buffers that they open.

    Parameters
    ----------
    arguments : sequence of (ndarray or number)
        An array becomes meminfo, parent, items, item size, data, shape and strides.

    Returns
    -------
    list, list of (int, int)
        One value per PTX parameter; address and bytes of each array.
    """
    values: list[Any] = []
    buffers = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            data = argument.ctypes.data
            values += [0, 0, argument.size, argument.itemsize, data, *argument.shape, *argument.strides]
            buffers.append((data, argument.nbytes))
        else:
            values.append(argument)
    return values, buffers
