"""Data files as named columns: delimited text, NPZ and HDF5.

The content decides the format, not the name. Nothing that a file says is executed or followed: no
pickles, no links, no storage outside the file.
"""

from __future__ import annotations

import csv
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.errors import DataError, SourceError
from nlsq_nb.sources.hdf5_checks import BROKEN, misdeed, step, unfit

__all__ = ["Table", "read_table"]

Floats = NDArray[np.float64]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_HDF5_SUFFIXES = {".h5", ".hdf5", ".hdf"}  # a user block may hide the signature
_BY_POSITION = ("x", "y", "sigma")
_MAX_OBJECTS = 100_000
# what NumPy, zipfile and h5py raise on damaged files
_BROKEN = (*BROKEN, BadZipFile, zlib.error)


@dataclass(frozen=True)
class Table:
    """Columns of a file, by name.

    Attributes
    ----------
    path : str
        The file, for messages.
    names : tuple of str
        Every column in file order: header names, keys, or paths of data sets.
    candidates : tuple of str
        The columns that hold numbers, from which defaults are chosen.
    named : bool
        Whether the names are the file's own; else they are x, y, sigma, c4, c5, … by position.
    refused : mapping of str to str
        Why a column cannot be read.
    """

    path: str
    names: tuple[str, ...]
    candidates: tuple[str, ...]
    named: bool
    refused: Mapping[str, str]
    _read: Callable[[str], Floats] = field(repr=False)
    _by_position: bool = False
    _aliases: tuple[str, ...] = ()
    _lines: Sequence[int] = field(default=(), repr=False)

    def resolve(self, reference: str) -> str:
        """The column that a user means.

        Parameters
        ----------
        reference : str
            A name; in text files also a 1-based number, or c1, c2, …; for NPZ and HDF5 also the
            last part of a path, when only one column ends in it.

        Returns
        -------
        str
            One of `names`.

        Raises
        ------
        DataError
            When no column is meant, or several.
        """
        wanted = reference if self._by_position else reference.strip("/")
        if wanted in self.names:
            return wanted
        if self._by_position:
            if wanted in self._aliases[: len(self.names)]:
                return self.names[self._aliases.index(wanted)]
            digits = wanted.removeprefix("c")
            if digits.isdecimal() and 1 <= int(digits[:9]) <= len(self.names):
                return self.names[int(digits[:9]) - 1]
        found = [name for name in self.names if self.label(name) == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{self.path}: {reference!r} may be {' or '.join(found[:5])}")
        raise DataError(f"{self.path} has no column {reference!r}; it has {self.listing()}")

    def label(self, name: str) -> str:
        """The last part of a column's name, under which a model may use it.

        Parameters
        ----------
        name : str
            One of `names`.

        Returns
        -------
        str
            The part of a key or path after its last slash; a header's name as it is.
        """
        return name if self._by_position else name.rsplit("/", 1)[-1]

    def listing(self) -> str:
        """The columns for a message.

        Returns
        -------
        str
            A few names, comma-separated.
        """
        more = ", …" if len(self.names) > 12 else ""
        return f"{len(self.names)} columns: {', '.join(self.names[:12])}{more}"

    def column(self, name: str) -> Floats:
        """Read a column.

        Parameters
        ----------
        name : str
            One of `names`.

        Returns
        -------
        ndarray, shape (n,)
            float64; may hold nan and inf.

        Raises
        ------
        DataError, SourceError
            When it is not a column of numbers, or cannot be read.
        """
        if name in self.refused:
            raise DataError(f"{self.path}: column {name!r} cannot be used: {self.refused[name]}")
        return self._read(name)

    def where(self, row: int) -> str:
        """Name a row as a person would count it.

        Parameters
        ----------
        row : int
            From 0.

        Returns
        -------
        str
            The data row from 1 and, for text, the line of the file.
        """
        line = f" (line {self._lines[row]})" if row < len(self._lines) else ""
        return f"data row {row + 1}{line}"


def read_table(path: str) -> Table:
    """Open a data file.

    Parameters
    ----------
    path : str
        Text with columns separated by comma, semicolon, tab or blanks, with # comments and at most
        one header row; an NPZ archive; or an HDF5 file.

    Returns
    -------
    Table
        Its columns. Those of an HDF5 file are read when asked for.

    Raises
    ------
    SourceError
        When the file cannot be opened or is in none of these formats.
    DataError
        When it holds no data, or its rows differ in length.
    """
    try:
        with Path(path).open("rb") as file:  # opened once, so that a pipe can be read as well
            head = file.read(8)
            is_hdf5 = head == _HDF5 or Path(path).suffix.lower() in _HDF5_SUFFIXES
            is_zip = head[:4] == _ZIP
            rest = b"" if is_hdf5 or is_zip else file.read()
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if is_hdf5:
        return _from_hdf5(path)
    return _from_npz(path) if is_zip else _from_text(path, head + rest)


# -- text ------------------------------------------------------------------------------------
def _from_text(path: str, data: bytes) -> Table:
    lines = _text_lines(path, data)
    rows = [k for k, line in enumerate(lines) if _content(line)]
    if not rows:
        raise DataError(f"{path} holds no data")
    first = lines[rows[0]]
    delimiter = _delimiter(_content(first))
    head = _cells(first, delimiter)
    has_header = all(_number(cell) is None for cell in head)
    names = head if has_header else _comment_header(lines[: rows[0]], delimiter, len(head))
    if has_header and len(rows) == 1:
        raise DataError(f"{path} holds no row of numbers, only line {rows[0] + 1}: {_content(first)[:60]!r}")
    rows = rows[has_header:]
    named = bool(names)
    by_position = [*_BY_POSITION, *(f"c{k}" for k in range(4, len(head) + 1))][: len(head)]
    names = _distinct(path, names) if named else by_position
    aliases = () if has_header else _BY_POSITION
    values, refused, wordy = _numbers(path, [lines[k] for k in rows], rows, delimiter, names)
    candidates = tuple(name for name in names if name not in wordy)
    counted = [k + 1 for k in rows]
    return Table(
        path,
        tuple(names),
        candidates,
        named=named,
        refused=refused,
        _read=values.__getitem__,
        _by_position=True,
        _aliases=aliases,
        _lines=counted,
    )


def _text_lines(path: str, data: bytes) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise SourceError(f"{path} is neither UTF-8 text nor an NPZ or HDF5 file")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _content(line: str) -> str:
    return line.split("#", 1)[0].strip()


def _delimiter(line: str) -> str | None:
    """What separates the cells; None for blanks, which tabs are as long as that makes no difference."""
    for mark in ";,":
        if mark in line:
            return mark
    return "\t" if len(line.split("\t")) > 1 and len(line.split("\t")) != len(line.split()) else None


def _cells(line: str, delimiter: str | None) -> list[str]:
    # the end of the line is kept: a tab there is an empty cell
    text = line.split("#", 1)[0]
    if delimiter is None:
        return [cell.strip('"') for cell in text.split()]
    if '"' not in text:
        return [cell.strip() for cell in text.split(delimiter)]
    return [cell.strip() for row in csv.reader([text], delimiter=delimiter, skipinitialspace=True) for cell in row]


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _comment_header(before: Sequence[str], delimiter: str | None, width: int) -> list[str]:
    """Names from the last comment above the data, as `numpy.savetxt(header=…)` writes them."""
    comments = [line.strip().lstrip("#") for line in before if line.strip()]
    names = _cells(comments[-1], delimiter) if comments else []
    usable = len(set(names)) == width == len(names) and all(name.isidentifier() for name in names)
    return names if usable else []


def _distinct(path: str, names: Sequence[str]) -> list[str]:
    filled = [name or f"c{k}" for k, name in enumerate(names, 1)]
    for name, count in Counter(filled).items():
        if count > 1:
            raise DataError(f"{path}: the header has two columns called {name!r}; rename one")
    return filled


def _numbers(
    path: str, texts: list[str], rows: list[int], delimiter: str | None, names: Sequence[str]
) -> tuple[dict[str, Floats], dict[str, str], set[str]]:
    """Columns, why some cannot be used, and those that hold no number at all."""
    try:
        table = np.loadtxt(texts, delimiter=delimiter, comments="#", quotechar='"', ndmin=2)
    except ValueError:
        table = np.empty((0, 0))
    if table.shape == (len(texts), len(names)):
        return {name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(names)}, {}, set()
    # something is wrong, or a column is text: cell by cell, to say where
    cells = [_cells(text, delimiter) for text in texts]
    for row, found in zip(rows, cells, strict=True):
        if len(found) != len(names):
            raise DataError(f"{path}: line {row + 1} has {len(found)} columns where {len(names)} are expected")
    values, refused, wordy = {}, {}, set()
    for k, name in enumerate(names):
        parsed = [_number(row[k]) for row in cells]
        if None in parsed:
            at = parsed.index(None)
            what = repr(cells[at][k][:40]) if cells[at][k] else "an empty cell"
            refused[name] = f"line {rows[at] + 1} has {what} where a number is expected"
            wordy |= {name} if all(value is None for value in parsed) else set()
        else:
            values[name] = np.array(parsed, dtype=np.float64)
    return values, refused, wordy


# -- NPZ -------------------------------------------------------------------------------------
def _from_npz(path: str) -> Table:
    values: dict[str, Floats] = {}
    refused: dict[str, str] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = tuple(archive.files)
            for name in names:
                try:
                    array = np.asarray(archive[name])
                except ValueError as error:  # Python objects, or a broken member
                    refused[name] = str(error)
                    continue
                reason = _unfit(array.dtype, array.shape)
                if reason:
                    refused[name] = reason
                else:
                    values[name] = array.astype(np.float64)
    except _BROKEN as error:
        raise SourceError(f"cannot read {path} as an NPZ archive: {_reason(error)}") from None
    return Table(path, names, tuple(values), named=True, refused=refused, _read=values.__getitem__)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _unfit(dtype: np.dtype[Any], shape: tuple[int, ...] | None) -> str:
    if dtype.kind not in "fiub":
        return f"its dtype is {dtype}, real numbers are needed"
    if shape is None or len(shape) != 1:
        return f"its shape is {shape}, one dimension is needed"
    return ""


# -- HDF5 ------------------------------------------------------------------------------------
def _from_hdf5(path: str) -> Table:
    import h5py

    def guarded(action: Callable[[Any], Any]) -> Any:
        try:
            with h5py.File(path, "r") as file:
                return action(file)
        except _BROKEN as error:
            raise SourceError(f"cannot read {path} as HDF5: {_reason(error)}") from None

    with Path(path).open("rb") as raw:
        found: dict[str, str] = guarded(lambda file: dict(_data_sets(file, raw)))
    refused = {name: reason for name, reason in found.items() if reason}
    usable = tuple(name for name in found if name not in refused)

    def read(name: str) -> Floats:
        return np.asarray(guarded(lambda file: file[name][...]), dtype=np.float64)

    return Table(path, tuple(found), usable, named=True, refused=refused, _read=read)


def _data_sets(file: Any, raw: Any) -> Iterator[tuple[str, str]]:
    """Path of everything below that is no group, and why it cannot be read, or ""."""
    import h5py

    waiting, seen, count = deque([("", file)]), set(), 0
    size = Path(file.filename).stat().st_size
    while waiting:
        prefix, group = waiting.popleft()
        info = h5py.h5o.get_info(group.id)
        if (info.fileno, info.addr) in seen:  # hard links may run in circles
            continue
        seen.add((info.fileno, info.addr))
        for name in group:
            count += 1
            if count > _MAX_OBJECTS:
                raise ValueError(f"it holds more than {_MAX_OBJECTS} objects")
            item, reason = step(group, name, raw)
            if isinstance(item, h5py.Group):
                waiting.append((f"{prefix}{name}/", item))
            elif isinstance(item, h5py.Dataset):
                yield prefix + name, unfit(item) or _unfit(item.dtype, item.shape) or misdeed(item, size)
            elif reason:
                yield prefix + name, reason
