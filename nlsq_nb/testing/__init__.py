"""Conformance tests as classes: tests of a backend inherit `BackendTests`, those of a source `SourceTests`.

Nothing here needs pytest to be imported; pytest finds the tests in a subclass by their names.
"""

from __future__ import annotations

from nlsq_nb.testing.accuracy import TOLERANCE, scaled_error, sums_error
from nlsq_nb.testing.backends import ROWS, BackendTests
from nlsq_nb.testing.sources import SourceTests
from nlsq_nb.testing.table import EXPRESSIONS, Data, Entry

__all__ = [
    "EXPRESSIONS",
    "ROWS",
    "TOLERANCE",
    "BackendTests",
    "Data",
    "Entry",
    "SourceTests",
    "scaled_error",
    "sums_error",
]
