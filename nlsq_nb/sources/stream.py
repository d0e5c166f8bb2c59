"""Rows that are read anew in every pass, from wherever they lie: one source over any kind of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK, SEGMENT
from nlsq_nb.sources.retrying import Reader, close
from nlsq_nb.sources.rows import Reading, RowFormat

__all__ = ["Rows", "StreamSource", "chunk_length"]

Floats = NDArray[np.float64]


class Rows(Protocol):
    """Where the rows of a `StreamSource` come from."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    @property
    def n_omitted(self) -> int:
        """Rows that are left out of them."""

    def reader(self, form: RowFormat, step: int, groups: Floats | None) -> Reader:
        """Begin a pass."""

    def verify(self) -> None:
        """Raise a SourceError when they are known not to be what they were."""

    def close(self) -> None:
        """Let go of files, threads and buffers."""


class StreamSource:
    """Rows outside the memory; one chunk is held, and the next while it is read ahead.

    Parameters
    ----------
    rows : Rows
        Where they come from.
    form : RowFormat
        What their columns are.
    step : int
        Rows per chunk, whole blocks.
    reading : Reading
        What the fit asks for.

    Attributes
    ----------
    dtype : numpy.dtype
        Storage dtype.
    """

    is_streamed = True
    """Says that the rows are not in memory: nothing as long as the data may be made of them."""

    def __init__(self, rows: Rows, form: RowFormat, step: int, reading: Reading) -> None:
        self._rows = rows
        self._form = form
        self._step = step
        self._group_weights = reading.group_weights
        self.dtype: np.dtype[Any] = form.dtype

    @property
    def n_rows(self) -> int:
        """Number of rows n."""
        return self._rows.n_rows

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass."""
        return -(-self.n_rows // self._step)

    @property
    def step(self) -> int:
        """Rows per chunk."""
        return self._step

    @property
    def group_values(self) -> Floats | None:
        """The weights of the groups at this moment."""
        return None if self._group_weights is None else self._group_weights.values

    @property
    def n_omitted(self) -> int:
        """Rows that were left out since a value is not finite."""
        return self._rows.n_omitted

    @property
    def revision(self) -> int:
        """How often the group weights were set."""
        return 0 if self._group_weights is None else self._group_weights.revision

    def reader(self) -> Reader:
        """One pass, with the weights of this moment.

        Returns
        -------
        Reader
            Reads any chunk by its number.

        Raises
        ------
        SourceError
            When what holds the rows cannot be opened, or is not what it was.
        """
        return self._rows.reader(self._form, self._step, self.group_values)

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order; a chunk is valid until the next one is read."""
        reader = self.reader()
        try:
            for k in range(self.n_chunks):
                yield reader.read(k)
        finally:
            close(reader)

    def verify(self) -> None:
        """Raise a SourceError when the rows are known not to be what they were."""
        self._rows.verify()

    def close(self) -> None:
        """Let go of files, threads and buffers; where the rows still are, a later pass opens them anew."""
        self._rows.close()


def chunk_length(reading: Reading, row_bytes: int, budget: int) -> int:
    """Rows per chunk.

    Parameters
    ----------
    reading : Reading
        What the fit asks for.
    row_bytes : int
        Size of a row where it comes from.
    budget : int
        Bytes that a chunk may have when the fit leaves it to the source.

    Returns
    -------
    int
        Whole blocks.
    """
    if reading.resident == "loop":
        return -(-reading.chunk_rows // BLOCK) * BLOCK
    roomy = max(reading.chunk_rows, budget // max(1, row_bytes))
    return -(-roomy // SEGMENT) * SEGMENT

