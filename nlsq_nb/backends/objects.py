"""Compiled entry points: native code that a later process runs without importing Numba.

An entry point is a function of a generated module behind a plain C signature. What Numba compiled it
to is kept as an object file, and LLVM alone, which starts in a fraction of Numba's time, links it
into a process. The file's name is a SHA-256 of everything that decides the code: text, signature,
versions, Numba's settings and the processor; its head holds one of the code itself, so that a
damaged file is compiled anew. Whoever can write to the folder decides what is executed: it must
belong to the user and be closed to others, and so must the file.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import json
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import llvmlite.binding as llvm  # type: ignore[import-untyped]

from nlsq_nb.codegen.module import cache_folder, load, numba_version
from nlsq_nb.errors import BackendUnavailable

__all__ = ["SYMBOL", "Entry", "make_entry"]

SYMBOL = "nlsq_nb_entry"
"""Name of the one function of an object."""

_FORMAT = b"nlsq_nb object 1\n"
_LARGEST = 1 << 26  # bytes of a file that is read
_C = {"int64": ctypes.c_int64, "float64*": ctypes.c_void_p, "void**": ctypes.c_void_p}
_LOCK = threading.RLock()
_NAMES = itertools.count()
_log = logging.getLogger("nlsq_nb.backends")


@dataclass(frozen=True, slots=True)
class Entry:
    """A native function; it lives as long as this object.

    Attributes
    ----------
    call : callable
        Takes integers, addresses included, without the GIL; 0, or 1 when the function raised.
    address : int
        For native callers, which must hold on to this object.
    cached : bool
        Whether it came from disk.
    """

    call: Callable[..., int]
    address: int
    cached: bool
    _owner: Any = field(repr=False, compare=False)


def make_entry(
    text: str,
    name: str,
    signature: tuple[str, ...],
    injected: Mapping[str, Any] | None = None,
) -> Entry:
    """Load an entry point from disk, or compile it and leave it there.

    Parameters
    ----------
    text : str
        A complete generated module, executed only when it must be compiled.
    name : str
        The function in it; returns None.
    signature : tuple of str
        Its arguments: "int64", "float64*" or "void**".
    injected : mapping, optional
        Objects that the text refers to; such an entry point is not kept on disk.

    Returns
    -------
    Entry
        Ready to call. Not remembered: a second call loads it again.

    Raises
    ------
    BackendUnavailable
        When nothing can be compiled or linked here.
    numba.core.errors.NumbaError
        When Numba cannot compile the function.
    """
    with _LOCK:  # Numba and the linker, one at a time
        path = None if injected is not None else _place(text, name, signature)
        if path is not None and (stored := _read(path)) is not None:
            try:
                return _link(*stored, signature, cached=True)
            except BackendUnavailable as error:
                _log.warning("%s cannot be linked; compiling anew: %s", path, error)
        from nlsq_nb.backends.emit import emit

        code = emit(getattr(load(text, injected or {}), name), signature)
        if not code.image:
            return Entry(_callable(code.address, signature), code.address, cached=False, _owner=code.owner)
        if path is not None:
            _write(path, code.image, code.needs)
        return _link(code.image, code.needs, signature, cached=False)


def _callable(address: int, signature: tuple[str, ...]) -> Callable[..., int]:
    return ctypes.CFUNCTYPE(ctypes.c_int32, *(_C[name] for name in signature))(address)


@functools.cache
def _linker() -> Any:
    """LLVM's linker of this process."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()


def _link(image: bytes, needs: tuple[str, ...], signature: tuple[str, ...], *, cached: bool) -> Entry:
    """Bring an object into memory."""
    library = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
    for symbol, address in _addresses(needs).items():
        library.import_symbol(symbol, address)
    try:
        owner = library.export_symbol(SYMBOL).link(_linker(), f"nlsq_nb_{next(_NAMES)}")
    except RuntimeError as error:
        raise BackendUnavailable(f"compiled code cannot be linked: {error}") from error
    address = owner[SYMBOL]
    return Entry(_callable(address, signature), address, cached, owner)


def _addresses(symbols: tuple[str, ...]) -> dict[str, int]:
    """Where functions of Numba's runtime are; Numba is imported if one of them is unknown."""
    found = {name: llvm.address_of_symbol(name) for name in symbols}
    if not all(found.values()):
        from numba.core.registry import cpu_target

        cpu_target.target_context.refresh()  # registers them
        found = {name: llvm.address_of_symbol(name) for name in symbols}
    if missing := [name for name, address in found.items() if not address]:
        raise BackendUnavailable(f"compiled code needs {', '.join(missing)}, which is not here")
    return {name: int(address) for name, address in found.items() if address}


@functools.cache
def _surroundings() -> bytes:
    """Everything beside the text that decides the code."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    processor = [llvm.get_process_triple(), llvm.get_host_cpu_name()]
    features = llvm.get_host_cpu_features().flatten()
    parts = [llvmlite.__version__, *map(str, llvm.llvm_version_info), *processor, features]
    return json.dumps([numba_version(), settings, parts]).encode()


def _place(text: str, name: str, signature: tuple[str, ...]) -> Path | None:
    """The file of an entry point, None without a folder for it."""
    folder = cache_folder()
    if folder is None:
        return None
    key = json.dumps([text, name, signature]).encode()
    digest = hashlib.sha256(b"\0".join([_FORMAT, _surroundings(), key])).hexdigest()
    return folder / f"{name}_{digest[:40]}.o"


def _read(path: Path) -> tuple[bytes, tuple[str, ...]] | None:
    """The object and what it needs; None unless the file is this user's own and intact."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            if not _trusted(os.fstat(handle)):
                return None
            content = file.read(_LARGEST)
    except OSError:
        return None
    if not content.startswith(_FORMAT):
        return None
    digest, _, rest = content[len(_FORMAT) :].partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        return None
    needs, _, image = rest.partition(b"\n")
    return image, tuple(json.loads(needs))


def _trusted(status: os.stat_result) -> bool:
    """Whether only this user can have written a file."""
    if not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


def _write(path: Path, image: bytes, needs: tuple[str, ...]) -> None:
    """Put a file in its place at once, or not at all."""
    rest = json.dumps(needs).encode() + b"\n" + image
    head = _FORMAT + hashlib.sha256(rest).hexdigest().encode() + b"\n"
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(head + rest)
        Path(temporary).replace(path)
    except OSError as error:
        _log.info("%s cannot be written: %s", path, error)
