"""A source whose first pass is shown to others, who need the same rows and would read them once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.protocols import Source

__all__ = ["TappedSource"]


class TappedSource:
    """The rows of another source.

    Parameters
    ----------
    source : Source
        The rows.
    taps : sequence of callable
        Each gets every chunk of the first pass, before who makes it.
    """

    def __init__(self, source: Source, taps: Sequence[Callable[[Chunk], None]]) -> None:
        self._source, self._taps = source, tuple(taps)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self._source.n_rows

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass."""
        return self._source.n_chunks

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored columns."""
        return self._source.dtype

    @property
    def revision(self) -> int:
        """That of the source."""
        return self._source.revision

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order; see `Source.chunks`."""
        taps, self._taps = self._taps, ()
        for chunk in self._source.chunks():
            for tap in taps:
                tap(chunk)
            yield chunk
