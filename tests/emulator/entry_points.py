"""The functions of libcuda that numba-cuda calls, on a `Driver`, and how they get into the process."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from .driver import Driver, Event, Stream
from .ptx import PtxError

__all__ = ["install", "load_ptx_into_the_driver"]

V, S, I, U, P = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint, ctypes.c_uint64  # noqa: E741
_ENTRIES: dict[str, tuple[tuple[Any, ...], Callable[..., int | None], bool]] = {}
_installed: list[Driver] = []  # C holds addresses of what they keep
_handles = itertools.count(0x1000, 16)
_INVALID, _NO_MEMORY, _NOT_READY, _NOT_FOUND, _FAILED, _UNKNOWN = 1, 2, 600, 500, 719, 999
_CONTEXT = 0xC0000  # a context is this plus 16 times its device
_ATTRIBUTES = {
    1: 1024, 2: 1024, 3: 1024, 4: 64, 5: 2147483647, 6: 65535, 7: 65535, 8: 49152, 9: 65536, 10: 32, 11: 2147483647,
    12: 65536, 13: 1980000, 14: 512, 15: 1, 16: 132, 19: 1, 31: 1, 36: 2619000, 37: 5120, 38: 52428800, 39: 2048,
    40: 3, 41: 1, 81: 233472, 82: 65536, 83: 1, 95: 1, 96: 1, 97: 232448, 115: 1,
}  # fmt: skip
_ERRORS = {
    code: ctypes.create_string_buffer(name)
    for code, name in {
        0: b"CUDA_SUCCESS", 1: b"CUDA_ERROR_INVALID_VALUE", 2: b"CUDA_ERROR_OUT_OF_MEMORY",
        500: b"CUDA_ERROR_NOT_FOUND", 600: b"CUDA_ERROR_NOT_READY", 719: b"CUDA_ERROR_LAUNCH_FAILED",
        801: b"CUDA_ERROR_NOT_SUPPORTED", 999: b"CUDA_ERROR_UNKNOWN",
    }.items()
}  # fmt: skip


def entry(*types: Any, locked: bool = True) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Enter a function under its own name, with the C types of its arguments after the driver; run in its lock."""

    def enter(function: Callable[..., int | None]) -> Callable[..., int | None]:
        _ENTRIES[function.__name__] = (types, function, locked)
        return function

    return enter


def put(pointer: Any, kind: Any, value: Any) -> None:
    """Store a result."""
    ctypes.cast(pointer, ctypes.POINTER(kind))[0] = value


# -- devices and contexts -----------------------------------------------------------------------
@entry(U)
def cuInit(d, flags): ...
@entry(V)
def cuDriverGetVersion(d, out): put(out, I, 13050)
@entry(V)
def cuDeviceGetCount(d, out): put(out, I, d.devices)
@entry(V, I)
def cuDeviceGet(d, out, number): put(out, I, number)
@entry(V, I, I)
def cuDeviceGetName(d, out, size, device): ctypes.memmove(out, b"Stand-in\0", 9)
@entry(V, I)
def cuDeviceTotalMem(d, out, device): put(out, S, d.memory)
@entry(V, I, I)
def cuDeviceGetAttribute(d, out, which, device):
    put(out, I, {75: d.compute[0], 76: d.compute[1]}.get(which, _ATTRIBUTES.get(which, 0)))
@entry(V, I)
def cuDeviceGetUuid(d, out, device): ctypes.memmove(out, bytes([device + 1]) * 16, 16)
@entry(V, I, I)
def cuDeviceCanAccessPeer(d, out, one, other): put(out, I, 0)
@entry(V, I)
def cuDevicePrimaryCtxRetain(d, out, device): put(out, V, _CONTEXT + 16 * device)
@entry(I)
def cuDevicePrimaryCtxRelease(d, device): ...
@entry(I)
def cuDevicePrimaryCtxReset(d, device): ...
@entry(I, V, V)
def cuDevicePrimaryCtxGetState(d, device, flags, active):
    put(flags, U, 0)
    put(active, I, 1)
@entry(V)
def cuCtxGetCurrent(d, out): put(out, V, _CONTEXT + 16 * d.contexts[-1] if d.contexts else None)
@entry(V)
def cuCtxSetCurrent(d, context): d.contexts[-1:] = [(context - _CONTEXT) // 16] if context else []
@entry(V)
def cuCtxPushCurrent(d, context): d.contexts.append((context - _CONTEXT) // 16)
@entry(V)
def cuCtxPopCurrent(d, out): put(out, V, _CONTEXT + 16 * d.contexts.pop())
@entry(V)
def cuCtxGetDevice(d, out):
    if not d.contexts:
        return 201
    put(out, I, d.device)
    return 0
@entry(V, V)
def cuCtxGetId(d, context, out): put(out, P, context or _CONTEXT + 16 * d.device)
@entry()
def cuCtxSynchronize(d):
    d.counts["context_waits"] += 1
    d.drain_all()


# -- memory -------------------------------------------------------------------------------------
@entry(V, S)
def cuMemAlloc(d, out, size):
    address = d.allocate(size)
    if address is None:
        return _NO_MEMORY
    put(out, P, address)
    return 0
@entry(P)
def cuMemFree(d, address): d.free(address)
@entry(P, V, S)
def cuMemcpyHtoD(d, target, source, size): d.copy("HtoD", target, source, size, None)
@entry(V, P, S)
def cuMemcpyDtoH(d, target, source, size): d.copy("DtoH", target, source, size, None)
@entry(P, P, S)
def cuMemcpyDtoD(d, target, source, size): d.copy("DtoD", target, source, size, None)
@entry(P, V, S, V)
def cuMemcpyHtoDAsync(d, target, source, size, stream): d.copy("HtoD", target, source, size, stream or 0)
@entry(V, P, S, V)
def cuMemcpyDtoHAsync(d, target, source, size, stream): d.copy("DtoH", target, source, size, stream or 0)
@entry(P, P, S, V)
def cuMemcpyDtoDAsync(d, target, source, size, stream): d.copy("DtoD", target, source, size, stream or 0)
@entry(P, ctypes.c_ubyte, S, V)
def cuMemsetD8Async(d, address, value, size, stream): d.fill(address, value, size, stream or 0)
@entry(P, ctypes.c_ubyte, S)
def cuMemsetD8(d, address, value, size): d.fill(address, value, size, 0)
@entry(V, V)
def cuMemGetInfo(d, free, total):
    put(free, S, max(0, d.memory - d.held(d.device)))
    put(total, S, d.memory)
@entry(V, V, P)
def cuMemGetAddressRange(d, begin, size, address):
    found = d.allocation(address)
    if found is None:
        return _INVALID
    for pointer, kind, value in ((begin, P, found[0]), (size, S, found[1])):
        if pointer:
            put(pointer, kind, value)
    return 0
@entry(V, I, P)
def cuPointerGetAttribute(d, out, which, address):
    found = d.allocation(address)
    if found is None or which not in (1, 2, 3, 9):
        return _INVALID
    device = d.allocations[found[0]][1]
    kind, value = {1: (V, _CONTEXT + 16 * device), 2: (U, 2), 3: (P, address), 9: (I, device)}[which]
    put(out, kind, value)
    return 0
@entry(V, S, U)
def cuMemHostAlloc(d, out, size, flags):
    buffer = ctypes.create_string_buffer(size + 64)
    address = -(-ctypes.addressof(buffer) // 64) * 64
    d.keep.append(buffer)
    d.pinned[address] = size
    put(out, V, address)
@entry(V)
def cuMemFreeHost(d, address): d.pinned.pop(address, None)
@entry(V, S, U)
def cuMemHostRegister(d, address, size, flags): d.pinned[address] = size
@entry(V)
def cuMemHostUnregister(d, address): d.pinned.pop(address, None)


# -- streams and events -------------------------------------------------------------------------
@entry(V, U)
def cuStreamCreate(d, out, flags):
    handle = next(_handles)
    d.streams[handle] = Stream(blocking=not flags & 1, device=d.device)
    put(out, V, handle)
@entry(V, U, I)
def cuStreamCreateWithPriority(d, out, flags, priority): return cuStreamCreate(d, out, flags)
@entry(V)
def cuStreamDestroy(d, stream):
    d.drain(stream)
    d.streams.pop(stream, None)
@entry(V)
def cuStreamSynchronize(d, stream):
    d.counts["stream_waits"] += 1
    d.drain(stream) if stream in d.streams else d.drain_all()
@entry(V)
def cuStreamQuery(d, stream): return _NOT_READY if stream in d.streams and d.streams[stream].waiting else 0
@entry(V, V, U)
def cuStreamWaitEvent(d, stream, event, flags):
    reached = d.events[event]
    d.submit(stream or 0, lambda: d.await_event(reached))
@entry(V, V)
def cuStreamGetCtx(d, stream, out): put(out, V, _CONTEXT + 16 * d.device)
@entry(V, V)
def cuStreamIsCapturing(d, stream, out): put(out, I, 0)
@entry(V, U)
def cuEventCreate(d, out, flags):
    handle = next(_handles)
    d.events[handle] = Event()
    put(out, V, handle)
@entry(V, V)
def cuEventRecord(d, event, stream): d.events[event] = d.record(stream or 0)
@entry(V)
def cuEventSynchronize(d, event): d.await_event(d.events[event])
@entry(V)
def cuEventQuery(d, event):
    e = d.events[event]
    return _NOT_READY if e.stream in d.streams and d.streams[e.stream].done < e.position else 0
@entry(V)
def cuEventDestroy(d, event): d.events.pop(event, None)


# -- code ---------------------------------------------------------------------------------------
def _library(d, out, image):
    if ctypes.string_at(image, 4) == b"\x7fELF":
        raise PtxError("machine code was loaded; only PTX can be executed here")
    handle = next(_handles)
    d.libraries[handle] = ctypes.string_at(image).decode()
    put(out, V, handle)
@entry(V, V, V, V, U, V, V, U)
def cuLibraryLoadData(d, out, image, *options): _library(d, out, image)
@entry(V, V)
def cuModuleLoadData(d, out, image): _library(d, out, image)
@entry(V, V, U, V, V)
def cuModuleLoadDataEx(d, out, image, *options): _library(d, out, image)
@entry(V, V, ctypes.c_char_p)
def cuLibraryGetKernel(d, out, library, name):
    handle = next(_handles)
    d.kernels[handle] = (d.libraries[library], name.decode())
    put(out, V, handle)
@entry(V, V, ctypes.c_char_p)
def cuModuleGetFunction(d, out, library, name): return cuLibraryGetKernel(d, out, library, name)
@entry(V, V)
def cuKernelGetFunction(d, out, kernel): put(out, V, kernel)
@entry(V)
def cuLibraryUnload(d, library): ...
@entry(V)
def cuModuleUnload(d, library): ...
@entry(V, V, V, ctypes.c_char_p)
def cuLibraryGetGlobal(d, out, size, library, name): return _NOT_FOUND
@entry(V, V, V, ctypes.c_char_p)
def cuModuleGetGlobal(d, out, size, library, name): return _NOT_FOUND
@entry(V, I, V, I)
def cuKernelGetAttribute(d, out, which, kernel, device):
    put(out, I, {0: 1024, 4: 64, 5: 10 * d.compute[0], 6: 10 * d.compute[0]}.get(which, 0))
@entry(V, I, V)
def cuFuncGetAttribute(d, out, which, kernel): return cuKernelGetAttribute(d, out, which, kernel, 0)
@entry(I, I, V, I)
def cuKernelSetAttribute(d, which, value, kernel, device): ...
@entry(V, I)
def cuFuncSetCacheConfig(d, kernel, which): ...
@entry(V, U, U, U, U, U, U, U, V, V, V, locked=False)
def cuLaunchKernel(d, kernel, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):  # noqa: PLR0917 - CUDA's
    d.launch(kernel, (gx, gy, gz), (bx, by, bz), parameters, stream or 0)


class _Launch(ctypes.Structure):
    _fields_ = (("grid", U * 3), ("block", U * 3), ("shared", U), ("stream", V), ("attributes", V), ("count", U))


@entry(V, V, V, V, locked=False)
def cuLaunchKernelEx(d, how, kernel, parameters, extra):
    how = ctypes.cast(how, ctypes.POINTER(_Launch))[0]
    d.launch(kernel, tuple(how.grid), tuple(how.block), parameters, how.stream or 0)
@entry(I, V)
def cuGetErrorName(d, code, out): put(out, V, ctypes.addressof(_ERRORS.get(code, _ERRORS[_UNKNOWN])))
@entry(I, V)
def cuGetErrorString(d, code, out): return cuGetErrorName(d, code, out)


def install(driver: Driver) -> None:
    """Put the driver where the process looks for libcuda; before numba.cuda is imported, once."""
    _installed.append(driver)
    folder = Path(tempfile.mkdtemp(prefix="stand_in_driver_"))
    library = folder / "libcuda.so.1"
    source = Path(__file__).with_name("stub.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True)
    stub = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    driver.keep += [stub, folder]
    for name, (types, function, locked) in _ENTRIES.items():
        lock = driver.lock if locked else nullcontext()
        callback = ctypes.CFUNCTYPE(I, *types)(_guarded(driver, name, function, lock))
        driver.keep.append(callback)
        if stub.stand_in_register(name.encode(), ctypes.cast(callback, V)):
            raise RuntimeError("stub.c has room for no more functions")
    atexit.register(stub.stand_in_end)


def _guarded(
    driver: Driver, name: str, function: Callable[..., int | None], lock: AbstractContextManager[Any]
) -> Callable[..., int]:
    """An entry point that turns an exception into an error code, and keeps the first one for the test."""

    def call(*args: Any) -> int:
        try:
            with lock:
                return function(driver, *args) or 0
        except Exception as error:  # noqa: BLE001 - nothing may pass through C
            driver.error = driver.error or error
            sys.stderr.write(f"stand-in driver, {name}: {type(error).__name__}: {error}\n")
            return _FAILED if isinstance(error, PtxError) else _UNKNOWN

    return call


def load_ptx_into_the_driver() -> None:
    """Let PTX be handed to the driver in place of machine code."""
    from nlsq_nb.backends.cuda import native

    native.machine_code = lambda ptx, compute: ptx.encode()
