"""A temporary file that keeps the rows of what can be read only once."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.errors import SourceError
from nlsq_nb.sources.ahead import Rooms
from nlsq_nb.sources.mapped import MappedFile
from nlsq_nb.sources.rows import in_frames

__all__ = ["Spool"]


class Spool:
    """Columns of rows in a temporary file without a name, which is gone when it is closed or we die.

    The file is cut into frames of `step` rows, in each of which every column is in one piece, so
    that a chunk can be read in place.

    Parameters
    ----------
    dtypes : sequence of numpy.dtype
        Of each column.
    step : int
        Rows of a frame.

    Attributes
    ----------
    n_rows : int
        Rows that were written.
    """

    def __init__(self, dtypes: Sequence[np.dtype[Any]], step: int) -> None:
        self._dtypes = tuple(dtypes)
        self._step = step
        sizes = [step * d.itemsize for d in self._dtypes]
        *self._offsets, self._frame = accumulate(sizes, initial=0)
        self._map: MappedFile | None = None
        self._lock = threading.Lock()
        self.n_rows = 0
        try:
            self._file: Any = tempfile.TemporaryFile(prefix="nlsq_nb-", buffering=0)  # noqa: SIM115 - see close
        except OSError as error:
            raise _without_room(error, 0) from error

    def write(self, parts: Iterable[Sequence[NDArray[Any]]]) -> None:
        """Write all rows; on any error the file is gone.

        Parameters
        ----------
        parts : iterable of sequence of ndarray
            Consecutive rows, column by column, in pieces of any length and any real dtype.

        Raises
        ------
        SourceError
            When there is no room.
        """
        try:
            for frame in in_frames(parts, self._dtypes, self._step):
                self._put(frame)
            self._map = self._mapped()
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        """See `Store.open`; what is closed is gone."""
        if self._file is None:
            raise SourceError(
                "the rows came from an iterator and were kept for the time of the fit only; to read "
                "them again give a function that returns a fresh iterator"
            )

    def block(
        self, field: int, lo: int, hi: int, rooms: Rooms, *, in_place: bool = False
    ) -> NDArray[Any]:
        """Some rows of a column; see `Store.block`."""
        dtype, first = self._dtypes[field], lo // self._step
        if in_place and self._map is not None and (hi - 1) // self._step == first:
            start, length = self._place(field, lo), (hi - lo) * dtype.itemsize
            self._map.load(start, length)
            return self._map.array((hi - lo,), dtype, start)
        room = rooms.get(field)
        if room is None:
            room = rooms[field] = np.empty(self._step, dtype)
        out = room[: hi - lo]
        at = lo
        while at < hi:
            end = min(hi, (at // self._step + 1) * self._step)
            self._get(out[at - lo : end - lo], self._place(field, at))
            at = end
        return out

    def check(self) -> None:
        """Nobody else can reach the file."""

    def drop(self, lo: int, hi: int) -> None:
        """See `Store.drop`."""
        if self._map is not None and (hi - 1) // self._step == lo // self._step:
            for field, dtype in enumerate(self._dtypes):
                self._map.drop(self._place(field, lo), (hi - lo) * dtype.itemsize)

    def rest(self) -> None:
        """Nothing: nobody waits for the file."""

    def close(self) -> None:
        """Remove the file."""
        file, self._file, self._map = self._file, None, None
        if file is not None:
            file.close()

    def _place(self, field: int, row: int) -> int:
        """Byte at which the row of a column begins."""
        frame, within = divmod(row, self._step)
        return frame * self._frame + self._offsets[field] + within * self._dtypes[field].itemsize

    def _put(self, frame: Sequence[NDArray[Any]]) -> None:
        try:
            for field, room in enumerate(frame):
                self._file.seek(self._place(field, self.n_rows))
                left = memoryview(room.view(np.uint8).data)
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            raise _without_room(error, self.n_rows) from error
        self.n_rows += len(frame[0])

    def _get(self, out: NDArray[Any], start: int) -> None:
        left = memoryview(out.view(np.uint8).data)
        with self._lock:
            self._file.seek(start)
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise OSError("the temporary file ends too early")
                left = left[count:]

    def _mapped(self) -> MappedFile | None:
        try:
            return MappedFile(self._file.fileno())
        except (OSError, ValueError):
            return None


def _without_room(error: OSError, rows: int) -> SourceError:
    try:
        folder = tempfile.gettempdir()
    except OSError:  # there is none that can be written to
        folder = "any folder"
    return SourceError(
        f"the rows of an iterator are kept in a temporary file in {folder}, which failed after "
        f"{rows} rows: {error}; set TMPDIR to a folder with more room, or give a function that returns a "
        "fresh iterator, which needs no file"
    )
