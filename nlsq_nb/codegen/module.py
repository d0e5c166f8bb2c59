"""Generated text → imported module, from a content-addressed file when there is a safe place.

The file name carries a SHA-256 of the text and of everything that decides how it is compiled, since
Numba's own cache hashes byte code without constants: two models that differ in one literal would
share a kernel. The module is registered in `sys.modules` before it runs, because Numba looks
functions up there when it loads them from disk. What is executed is always the text just
generated; the file exists for Numba's cache and for tracebacks.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import linecache
import os
import stat
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "load", "numba_version"]

GENERATOR = "1"
"""Raised when the same program must be printed or compiled differently."""

_LOCK = threading.Lock()


def load(text: str, injected: Mapping[str, Any] | None = None) -> types.ModuleType:
    """Import generated source text.

    Parameters
    ----------
    text : str
        A complete module. It may read the global `CACHE` (bool): whether compiled code may be
        kept on disk.
    injected : mapping, optional
        Objects that the text refers to; such a module is private to this call and never cached.

    Returns
    -------
    types.ModuleType
        The executed module; the same object for the same text within a process.
    """
    name = f"nlsq_nb_generated_{_digest(text)}"
    with _LOCK:
        if injected is not None:
            name += f"_{os.getpid()}_{len(sys.modules)}"
        elif name in sys.modules:
            return sys.modules[name]
        path = None if injected is not None else _store(name, text)
        module = types.ModuleType(name)
        module.__file__ = str(path) if path is not None else f"<{name}>"
        module.__dict__.update(injected or {}, CACHE=path is not None)
        if path is None:
            linecache.cache[module.__file__] = (
                len(text),
                None,
                text.splitlines(keepends=True),
                module.__file__,
            )
        sys.modules[name] = module
        try:
            # the text comes from this package's printers, whose names are canonical
            exec(compile(text, module.__file__, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def cache_folder() -> Path | None:
    """The folder for generated files: `NLSQ_NB_CACHE`, else the user's cache directory.

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


def _digest(text: str) -> str:
    parts = [GENERATOR, sys.version, numba_version(), text]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


@functools.cache
def numba_version() -> str:
    """What tells one version of Numba from another.

    Returns
    -------
    str
        The text of its version file: importing Numba, or reading the metadata of packages, takes
        longer than loading a kernel. Empty when it is not installed.
    """
    package = importlib.util.find_spec("numba")
    if package is None or package.origin is None:
        return ""
    try:
        return Path(package.origin).with_name("_version.py").read_text("utf-8")
    except (OSError, UnicodeError):
        from importlib.metadata import version

        return version("numba")


def _store(name: str, text: str) -> Path | None:
    """Write the file once; its content is compared, so a foreign file is never trusted."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"{name}.py"
    try:
        if path.is_file() and not path.is_symlink() and path.read_text("utf-8") == text:
            return path
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except (OSError, UnicodeError):
        return None
    return path
