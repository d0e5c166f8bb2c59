"""Compiled entry points: native code that a later process runs without importing Numba.

An entry point is a function of a generated module behind a plain C signature. What Numba compiled it
to is kept as an object file, and LLVM alone, which starts in a fraction of Numba's time, links it
into a process. The file's name is a SHA-256 of everything that decides the code: text, signature,
versions, Numba's settings and the processor; its head holds one of the code itself, so that a
damaged file is compiled anew. Whoever can write to the folder decides what is executed: it must
belong to the user and be closed to others, and so must the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
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

from nlsq_nb.codegen.module import load
from nlsq_nb.errors import BackendUnavailable

__all__ = [
    "CODE_MODEL", "SYMBOL", "Code", "Entry", "cache_folder", "host_features", "kept_code", "load_code", "make_entry",
]  # fmt: skip

CODE_MODEL = "large"
"""Code, constants and tables of one object may come to lie anywhere: large mappings leave gaps apart."""

SYMBOL = "nlsq_nb_entry"
"""Name of the function of a compiled entry point."""

_FORMAT = b"nlsq_nb object 1\n"  # raised when the same text must be compiled differently
_LARGEST = 1 << 26  # bytes of a file that is read
_C = {"int64": ctypes.c_int64, "float64*": ctypes.c_void_p, "void**": ctypes.c_void_p}
_LOCK = threading.RLock()  # taken before every other: of generated modules, of Numba, LLVM and drivers
_NAMES = itertools.count()
_log = logging.getLogger("nlsq_nb.backends")


@dataclass(frozen=True, slots=True)
class Code:
    """What came of a compilation.

    Attributes
    ----------
    image : bytes
        An object; empty where only this process can run the code.
    needs : tuple of str
        Symbols of Numba's runtime that it refers to; what libm and libc have is not listed.
    address : int
        Of the function in this process when there is no image, else 0.
    owner : object
        Keeps `address` valid.
    """

    image: bytes = b""
    needs: tuple[str, ...] = ()
    address: int = 0
    owner: Any = None


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

    def compile_it() -> Code:
        from nlsq_nb.backends.emit import emit

        return emit(getattr(load(text, injected or {}), name), signature)

    key = json.dumps([text, name, signature]) if injected is None else None
    return load_code(key, name, {SYMBOL: signature}, compile_it)[SYMBOL]


def load_code(
    key: str | None,
    name: str,
    exports: Mapping[str, tuple[str, ...]],
    make: Callable[[], Code],
) -> dict[str, Entry]:
    """Load native code from disk, or make it and leave it there.

    Parameters
    ----------
    key : str or None
        Everything that decides the code beside versions and processor; None: it is not kept.
    name : str
        First part of the file's name.
    exports : mapping of str to tuple of str
        Functions that are asked for and their arguments; see `make_entry`.
    make : callable
        Compiles.

    Returns
    -------
    dict of str to Entry
        One for each function, in the order of `exports`.

    Raises
    ------
    BackendUnavailable
        When the code cannot be linked here.
    """
    with _LOCK:  # Numba and the linker, one at a time
        path = _place(key, name) if key is not None else None
        if path is not None and (stored := _read(path)) is not None:
            try:
                return _link(stored, exports, cached=True)
            except BackendUnavailable as error:
                _log.warning("%s cannot be linked; compiling anew: %s", path, error)
        code = make()
        if code.address:
            ((symbol, signature),) = exports.items()
            entry = Entry(_callable(code.address, signature), code.address, cached=False, _owner=code.owner)
            return {symbol: entry}
        if path is not None:
            _write(path, code)
        return _link(code, exports, cached=False)


def kept_code(key: str | None, name: str, make: Callable[[], Code]) -> Code:
    """Code that something else than this process's linker loads: from disk, or made and left there.

    Parameters
    ----------
    key : str or None
        Everything that decides the code beside versions and processor; None: it is not kept.
    name : str
        First part of the file's name.
    make : callable
        Compiles.

    Returns
    -------
    Code
        `needs` is as it was made.
    """
    with _LOCK:
        path = _place(key, name) if key is not None else None
        code = _read(path) if path is not None else None
        if code is None:
            code = make()
            if path is not None:
                _write(path, code)
        return code


def _callable(address: int, signature: tuple[str, ...]) -> Callable[..., int]:
    return ctypes.CFUNCTYPE(ctypes.c_int32, *(_C[name] for name in signature))(address)


@functools.cache
def _linker() -> Any:
    """LLVM's linker of this process."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()


def _link(code: Code, exports: Mapping[str, tuple[str, ...]], *, cached: bool) -> dict[str, Entry]:
    """Bring an object into memory."""
    library = llvm.JITLibraryBuilder().add_object_img(code.image).add_current_process()
    for symbol, address in _addresses(code.needs).items():
        library.import_symbol(symbol, address)
    for symbol in exports:
        library.export_symbol(symbol)
    try:
        owner = library.link(_linker(), f"nlsq_nb_{next(_NAMES)}")
    except RuntimeError as error:
        raise BackendUnavailable(f"compiled code cannot be linked: {error}") from error
    return {
        symbol: Entry(_callable(owner[symbol], signature), owner[symbol], cached, owner)
        for symbol, signature in exports.items()
    }


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
def _numba_version() -> str:
    """What tells one version of Numba from another, without importing it; "" when it is not installed."""
    package = importlib.util.find_spec("numba")
    if package is None or package.origin is None:
        return ""
    try:
        # its metadata, and that of all other packages, takes longer to read than a kernel
        return Path(package.origin).with_name("_version.py").read_text("utf-8")
    except (OSError, UnicodeError):
        from importlib.metadata import version

        return version("numba")


@functools.cache
def host_features() -> str:
    """What the processor can do, as LLVM reads it, and which of it is used.

    LLVM avoids vectors of 512 bits, which made early processors that had them lower their clock; a
    kernel of nothing but arithmetic is 1.2 to 1.5 times as fast with them.
    """
    features = llvm.get_host_cpu_features()
    return str(features.flatten()) + (",-prefer-256-bit" if features.get("avx512f") else "")


@functools.cache
def _surroundings() -> bytes:
    """Everything beside the text that decides the code."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    processor = [llvm.get_process_triple(), llvm.get_host_cpu_name()]
    parts = [llvmlite.__version__, *map(str, llvm.llvm_version_info), *processor, host_features(), CODE_MODEL]
    return json.dumps([_numba_version(), settings, parts]).encode()


def cache_folder() -> Path | None:
    """The folder for compiled code: `NLSQ_NB_CACHE`, else the user's cache directory.

    Returns
    -------
    pathlib.Path or None
        None when no folder exists that only this user can write to.
    """
    chosen = os.environ.get("NLSQ_NB_CACHE")
    if chosen:
        folder = Path(chosen)
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(base) if base else Path("~/.cache").expanduser()) / "nlsq_nb"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _place(key: str, name: str) -> Path | None:
    """The file of some code, None without a folder for it."""
    folder = cache_folder()
    if folder is None:
        _log.info("no folder that only this user can write to: kernels are compiled anew in each process")
        return None
    digest = hashlib.sha256(b"\0".join([_FORMAT, _surroundings(), key.encode()])).hexdigest()
    return folder / f"{name}_{digest[:40]}.o"


def _read(path: Path) -> Code | None:
    """What a file holds; None unless the file is this user's own and intact."""
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
    return Code(image, tuple(json.loads(needs)))


def _trusted(status: os.stat_result) -> bool:
    """Whether only this user can have written a file."""
    if not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


def _write(path: Path, code: Code) -> None:
    """Put a file in its place at once, or not at all."""
    rest = json.dumps(code.needs).encode() + b"\n" + code.image
    head = _FORMAT + hashlib.sha256(rest).hexdigest().encode() + b"\n"
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(head + rest)
        Path(temporary).replace(path)
    except OSError as error:
        _log.info("%s cannot be written: %s", path, error)
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
