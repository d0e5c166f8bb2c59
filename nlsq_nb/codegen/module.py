"""Generated text → imported module.

A module is registered in `sys.modules` and its lines in `linecache`, so that compilers and tracebacks find
it. Nothing is read from disk: what is executed is always the text just generated.
"""

from __future__ import annotations

import hashlib
import itertools
import linecache
import sys
import threading
import types
from collections.abc import Mapping
from typing import Any

__all__ = ["load"]

_LOCK = threading.Lock()
_PRIVATE = itertools.count()


def load(text: str, injected: Mapping[str, Any] | None = None) -> types.ModuleType:
    """Import generated source text.

    Parameters
    ----------
    text : str
        A complete module.
    injected : mapping, optional
        Objects that the text refers to; such a module is private to this call.

    Returns
    -------
    types.ModuleType
        The executed module; without `injected`, the same object for the same text within a process.
    """
    name = f"nlsq_nb_generated_{hashlib.sha256(text.encode()).hexdigest()[:40]}"
    with _LOCK:
        if injected is not None:
            name += f"_{next(_PRIVATE)}"
        elif name in sys.modules:
            return sys.modules[name]
        module = types.ModuleType(name)
        module.__file__ = f"<{name}>"
        module.__dict__.update(injected or {})
        linecache.cache[module.__file__] = len(text), None, text.splitlines(keepends=True), module.__file__
        sys.modules[name] = module
        try:
            # the text comes from this package's printers, whose names are canonical
            exec(compile(text, module.__file__, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module
