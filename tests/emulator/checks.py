"""What is looked at when a thread touches memory: bounds, alignment, races in shared memory, uninitialised reads.

Two threads race for a shared word when both touch it between the same two barriers and one of them writes. A word
of shared memory that its block has not written yet is uninitialised.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from .ptx import PtxError

__all__ = ["COUNTERS", "FAULTS", "Table", "checker"]

FAULTS = {
    1: "access outside every buffer of global memory",
    2: "access outside the block's shared memory",
    3: "misaligned access",
    4: "race: write to a shared word that another thread touched since the last barrier",
    5: "race: read of a shared word that another thread wrote since the last barrier",
    6: "read of uninitialised shared memory",
    77: "trap",
}
"""Number of a fault → what it means."""

COUNTERS = ("loads", "stores", "bytes_loaded", "bytes_stored", "shared_loads", "shared_stores")
"""What a launch counts."""


class Table:
    """Places in the array of 64-bit numbers that the checker reads."""

    BUFFERS, EPOCH, SHARED, SHARED_SIZE, BLOCK, LIST, MARKS, COUNTS = range(8)
    SIZE = COUNTS + len(COUNTERS)


@cache
def checker() -> Any:  # noqa: C901 - one function to the compiler
    """The compiled checker (context, address, size, kind) → fault or 0.

    `kind` has bit 0 for shared memory, bit 1 for a write, bit 2 for a generic address. The context holds the
    address of the table in slot 19 and tid, ntid in its first six slots.
    """
    import numba
    from numba import carray, types
    from numba.extending import intrinsic

    @intrinsic
    def pointer(context: Any, number: Any) -> Any:
        def build(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], target.get_value_type(signature.return_type))

        return types.CPointer(types.int64)(types.int64), build

    counts, length = Table.COUNTS, Table.SIZE

    @numba.njit
    def shared_fault(context: Any, table: Any, offset: int, size: int, write: bool) -> int:
        # per word: barrier interval, who wrote in it, who read in it (-1: several), the block that wrote last
        marks = carray(pointer(table[6]), (table[3] // 4 * 4 + 8,))
        thread = context[0] + context[3] * (context[1] + context[4] * context[2]) + 1
        for word in range(offset // 4, (offset + size - 1) // 4 + 1):
            at = 4 * word
            if marks[at] != table[1]:
                marks[at] = table[1]
                marks[at + 1] = 0
                marks[at + 2] = 0
            writer, reader = marks[at + 1], marks[at + 2]
            if write:
                if (writer not in (0, thread)) or (reader not in (0, thread)):
                    return 4
                marks[at + 1] = thread
                marks[at + 3] = table[4]
            else:
                if marks[at + 3] != table[4]:
                    return 6
                if writer not in (0, thread):
                    return 5
                marks[at + 2] = thread if reader in (0, thread) else -1
        return 0

    @numba.cfunc(types.int64(types.CPointer(types.int64), types.int64, types.int64, types.int64))
    def check(slots: Any, address: int, size: int, kind: int) -> int:
        context = carray(slots, (20,))
        table = carray(pointer(context[19]), (length,))
        write = (kind & 2) != 0
        inside = table[2] <= address < table[2] + table[3]
        if address % min(size, 16) != 0:
            return 3
        if (kind & 1) or ((kind & 4) and inside):
            offset = address - table[2]
            if offset < 0 or offset + size > table[3]:
                return 2
            table[counts + (5 if write else 4)] += 1
            return shared_fault(context, table, offset, size, write)
        buffers = carray(pointer(table[5]), (2 * table[0] + 2,))
        for k in range(table[0]):
            if buffers[2 * k] <= address and address + size <= buffers[2 * k + 1]:
                table[counts + (1 if write else 0)] += 1
                table[counts + (3 if write else 2)] += size
                return 0
        return 1

    return check


def fault(number: int, address: int, thread: int, block: int, text: str) -> PtxError:
    """The error of a thread."""
    what = FAULTS.get(number, f"fault {number}")
    return PtxError(f"{what}: address 0x{address:x}, thread {thread} of block {block}: {text}")
