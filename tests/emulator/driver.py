"""The state of a stand-in CUDA driver: device memory, lazy streams, events, a ledger of every transfer.

The real host code of numba-cuda runs on it. Device memory is one range of addresses that the host may not touch
while no device operation runs: a stray access is a segmentation fault. Asynchronous work waits in its stream until
something forces it, so a missing synchronisation gives a wrong result every time, not now and then. Threads of the
host enter one at a time, and each has its own stack of current devices.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .machine import load_kernel
from .ptx import PtxError

__all__ = ["Driver", "Transfer"]

_PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A copy or a launch, as it was asked for.

    Attributes
    ----------
    kind : {"HtoD", "DtoH", "DtoD", "launch"}
        What.
    size : int
        Bytes, or thread blocks of a launch.
    mode : {"sync", "async", "pageable"}
        Pageable: asynchronous in name, but from or to memory that is not pinned.
    device : int
        Where.
    name : str
        Of the kernel.
    """

    kind: str
    size: int
    mode: str
    device: int
    name: str = ""


@dataclass(slots=True)
class Stream:
    """Work in order; `done` counts what has run."""

    blocking: bool
    device: int
    waiting: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0


@dataclass(slots=True)
class Event:
    """A place in a stream: reached when `done` of it is `position`."""

    stream: int = 0
    position: int = 0


class Driver:
    """Devices, memory, streams.

    Parameters
    ----------
    devices : int
        How many there are.
    compute : (int, int)
        Compute capability.
    memory : int
        Bytes of each device; beyond that an allocation fails as on a device.
    order : {"random", "forward", "reverse"}
        In which a kernel's threads run.

    Attributes
    ----------
    ledger : list of Transfer
        Every copy and launch since `forget`.
    counts : Counter
        Allocations, synchronisations, and the like.
    pooled : int
        Bytes of a pool of the stand-in for CuPy, which are not free to others.
    largest : int
        Bytes that one allocation can have, as when free memory is in pieces.
    error : Exception or None
        The first one of an entry point; C sees a code only.
    lock : lock
        Held by whoever is in the driver; device memory may be touched by one thread at a time. Callers may hold
        any lock, so nothing is done under it that waits for another.
    """

    def __init__(
        self, devices: int = 1, compute: tuple[int, int] = (9, 0), memory: int = 1 << 31, order: str = "random"
    ) -> None:
        self.devices, self.compute, self.memory, self.order = devices, compute, memory, order
        self.ledger: list[Transfer] = []
        self.counts: Counter[str] = Counter()
        self.random = random.Random(0)
        self.largest, self.pooled = memory, 0
        self.keep: list[object] = []  # what C holds the addresses of
        self.error: BaseException | None = None
        self._reserved = 1 << 36
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # no swap is reserved for it
        # far from everything else: a gap between two pieces of compiled code may be too wide for a jump
        self._begin = _libc.mmap(1 << 44, self._reserved, 0, flags, -1, 0)
        self._used = 0
        self._depth = 0
        self.allocations: dict[int, tuple[int, int]] = {}  # address → bytes, device
        self.pinned: dict[int, int] = {}
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.libraries: dict[int, str] = {}
        self.kernels: dict[int, tuple[str, str]] = {}
        self.lock = threading.RLock()
        self._own = threading.local()

    def forget(self) -> None:
        """Begin a new ledger."""
        self.ledger.clear()
        self.counts.clear()

    @property
    def contexts(self) -> list[int]:
        """This thread's stack of current devices."""
        own: dict[str, list[int]] = self._own.__dict__
        return own.setdefault("contexts", [])

    @property
    def device(self) -> int:
        """The current device."""
        return self.contexts[-1] if self.contexts else 0

    # -- memory ---------------------------------------------------------------------------------
    def __enter__(self) -> None:
        """A device operation runs: memory may be touched."""
        self.lock.acquire()
        if self._depth == 0:
            self._protect(mmap.PROT_READ | mmap.PROT_WRITE)
        self._depth += 1

    def __exit__(self, *args: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._protect(0)
        self.lock.release()

    def _protect(self, mode: int) -> None:
        if self._used:
            _libc.mprotect(self._begin, self._used, mode)

    def held(self, device: int) -> int:
        """Bytes that are allocated on a device."""
        return sum(size for size, where in self.allocations.values() if where == device)

    def allocate(self, size: int) -> int | None:
        """Address of new, poisoned memory of the current device; None when it is full."""
        with self.lock:
            if size > self.largest or self.held(self.device) + size > self.memory + self.pooled:
                return None
            address = self._begin + self._used
            self._used += -(-(size + _PAGE) // _PAGE) * _PAGE  # a gap after each allocation, never used again
            self.allocations[address] = (size, self.device)
            self.counts["allocations"] += 1
            with self:
                ctypes.memset(address, 0xA5, size)
            return address

    def free(self, address: int) -> None:
        """Give memory back, once all work is done."""
        self.drain_all()
        self.allocations.pop(address, None)

    def allocation(self, address: int) -> tuple[int, int] | None:
        """Begin and size of the allocation that an address lies in."""
        for begin, (size, _) in self.allocations.items():
            if begin <= address < begin + size:
                return begin, size
        return None

    def is_device(self, address: int) -> bool:
        """Whether an address is one of device memory, allocated or not."""
        return self._begin <= address < self._begin + self._reserved

    def is_pinned(self, address: int, size: int) -> bool:
        """Whether host memory was allocated or registered for transfers."""
        return any(b <= address and address + size <= b + n for b, n in self.pinned.items())

    def require(self, address: int, size: int) -> None:
        """Refuse a copy that leaves its allocation."""
        found = self.allocation(address)
        if found is None or address + size > sum(found):
            raise PtxError(f"copy outside device memory: 0x{address:x}, {size} bytes")

    # -- streams --------------------------------------------------------------------------------
    def submit(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work; the default stream waits for the blocking ones and runs at once."""
        if stream in self.streams:
            self.streams[stream].waiting.append(work)
            return
        for handle, other in list(self.streams.items()):
            if other.blocking:
                self.drain(handle)
        work()

    def drain(self, stream: int, upto: int | None = None) -> None:
        """Run the work of a stream, all or up to a position."""
        queue = self.streams.get(stream)
        while queue and queue.waiting and (upto is None or queue.done < upto):
            work = queue.waiting.pop(0)
            work()
            queue.done += 1

    def drain_all(self) -> None:
        """Run everything, streams in random order."""
        with self.lock:
            handles = list(self.streams)
            self.random.shuffle(handles)
            for handle in handles:
                self.drain(handle)

    def record(self, stream: int) -> Event:
        """An event at the end of what a stream holds now."""
        if stream not in self.streams:
            self.drain_all()
            return Event()
        queue = self.streams[stream]
        return Event(stream, queue.done + len(queue.waiting))

    def await_event(self, event: Event) -> None:
        """Run what lies before an event."""
        if event.stream:
            self.drain(event.stream, event.position)

    # -- copies and launches --------------------------------------------------------------------
    def copy(self, kind: str, target: int, source: int, size: int, stream: int | None) -> None:
        """A copy; synchronous without a stream."""
        if (kind[0] == "H" and self.is_device(source)) or (kind[-1] == "H" and self.is_device(target)):
            raise PtxError(f"{kind} with a device address where a host address belongs")
        host = source if kind[0] == "H" else target
        pageable = kind != "DtoD" and stream is not None and not self.is_pinned(host, size)
        mode = "sync" if stream is None else "pageable" if pageable else "async"
        self.ledger.append(Transfer(kind, size, mode, self.device))
        staged = None
        if pageable and kind == "HtoD":  # the driver reads pageable memory when it is called
            staged = ctypes.create_string_buffer(ctypes.string_at(source, size), size)

        def work() -> None:
            with self:
                if kind[-1] == "D":
                    self.require(target, size)
                if kind[0] == "D":
                    self.require(source, size)
                ctypes.memmove(target, staged if staged is not None else source, size)

        if stream is None:
            self.drain_all()
            work()
            return
        self.submit(stream, work)
        if pageable and kind == "DtoH":
            self.drain(stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Set bytes."""

        def work() -> None:
            with self:
                self.require(address, size)
                ctypes.memset(address, value, size)

        self.submit(stream, work)

    def launch(
        self, kernel: int, grid: tuple[int, ...], block: tuple[int, ...], parameters: int, stream: int
    ) -> None:
        """Queue a kernel; it may touch the memory of its own device and pinned memory.

        It is translated before the lock is taken: that waits for locks of Numba and LLVM, whose holders may be
        waiting for the driver.
        """
        text, name = self.kernels[kernel]
        compiled = load_kernel(text, name)
        pointers = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        blob = bytearray(compiled.function.parameter_size)
        for k, parameter in enumerate(compiled.function.parameters):
            end = parameter.offset + parameter.size
            blob[parameter.offset : end] = ctypes.string_at(pointers[k], parameter.size)
        device = self.device

        def work() -> None:
            own = [(a, size) for a, (size, where) in self.allocations.items() if where == device]
            buffers = own + list(self.pinned.items())
            with self:
                compiled.launch(grid, block, bytes(blob), buffers, order=self.order, seed=seed)

        with self.lock:
            seed = self.random.randrange(1 << 30)
            self.ledger.append(Transfer("launch", grid[0] * grid[1] * grid[2], "async", device, name))
            self.submit(stream, work)
