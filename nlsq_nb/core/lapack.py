"""LAPACK as SciPy has it, without the rest of `scipy.linalg`.

Importing that package takes twice as long as NumPy, and longer than a small fit; the routines are in
one extension module of it, which needs nothing else.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any

__all__ = ["dpotrf", "dpotrs", "dsyevd", "dtrtri", "dtrtrs"]


def _routines() -> Any:
    """SciPy's extension module, alone where that can be had."""
    package = None if "scipy.linalg" in sys.modules else find_spec("scipy")
    if package is not None:
        folders = [f"{folder}/linalg" for folder in package.submodule_search_locations or ()]
        found = PathFinder.find_spec("_flapack", folders)
        if found is not None and found.loader is not None:
            with suppress(ImportError):  # it may need libraries that only the package knows
                module = module_from_spec(found)
                found.loader.exec_module(module)
                return module
    from scipy.linalg import lapack

    return lapack


_found = _routines()
dpotrf = _found.dpotrf
"""Cholesky factor of a symmetric positive matrix."""
dpotrs = _found.dpotrs
"""Solution of a system from its Cholesky factor."""
dsyevd = _found.dsyevd
"""Eigenvalues and eigenvectors of a symmetric matrix."""
dtrtri = _found.dtrtri
"""Inverse of a triangular matrix."""
dtrtrs = _found.dtrtrs
"""Solution of a triangular system."""
