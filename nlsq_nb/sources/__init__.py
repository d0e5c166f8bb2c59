"""Where rows come from, what they weigh, and samples of them; a source reads the same rows every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from nlsq_nb.errors import SourceError
from nlsq_nb.protocols import Source
from nlsq_nb.sources.rows import Reading

__all__ = ["Unread", "as_source"]

_HDF5 = {".h5", ".hdf5"}


class Unread(Protocol):
    """Data of which it is not known yet what they are data of."""

    def first(self) -> Any:
        """The x of the first row: columns by name, (1,) for one column, or (k, 1)."""

    def open(self, reading: Reading) -> Source:
        """The source that a fit reads."""


def as_source(data: Any) -> Source | Unread:
    """What a user gives instead of x and y.

    Parameters
    ----------
    data : Source, HDF5Source, path, iterator, or callable
        A path ends in .h5 or .hdf5. An iterator gives batches (x, y) or (x, y, sigma) and can be read once; a
        callable returns a fresh one at every call.

    Returns
    -------
    Source or Unread
        A source as it is.

    Raises
    ------
    SourceError
        For anything else.
    """
    from nlsq_nb.sources.hdf5 import HDF5Source
    from nlsq_nb.sources.iterated import FreshIterators, OneIterator

    if (hasattr(data, "chunks") and hasattr(data, "n_rows")) or isinstance(data, HDF5Source):
        return data  # type: ignore[no-any-return]
    if isinstance(data, (str, Path)):
        if Path(data).suffix.lower() not in _HDF5:
            raise SourceError(
                f"{data} is not named .h5 or .hdf5; for an HDF5 file of another name give HDF5Source(path)"
            )
        return HDF5Source(data)
    if isinstance(data, Iterator):
        return OneIterator(data)
    if callable(data):
        return FreshIterators(data)
    raise SourceError(
        f"a data source of type {type(data).__name__} cannot be read; give (x, y) or (x, y, sigma), the path of "
        "an HDF5 file, an iterator of batches, or a function that returns one"
    )
