"""Where an HDF5 data set keeps its values, read from the bytes of its object header.

HDF5 loads the mapping of a virtual data set when the data set is opened, or facts about it are asked for, and
mappings that are damaged, or made to be, end the process or never end (seen with HDF5 2.0). So the header is
looked at before: HDF5 file format specification 3.0, IV.A.1 (headers), IV.A.2.i (layout), IV.A.2.q (continuation).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

__all__ = ["ELSEWHERE", "layout_fault"]

ELSEWHERE = "its values are stored in other files"
_LAYOUT, _EXTERNAL, _CONTINUATION = 0x08, 0x07, 0x10
_VIRTUAL = 3
_MOST_BLOCKS = 1000  # continuations may run in circles
_MOST_BYTES = 1 << 24


def layout_fault(raw: Any, address: int) -> str:
    """Why an object must not be opened.

    Parameters
    ----------
    raw : binary file
        The HDF5 file.
    address : int
        Byte at which the header of the object begins; a group has no layout.

    Returns
    -------
    str
        The reason, or "".
    """
    layouts = 0
    try:
        for kind, body in _messages(raw, address):
            if kind == _EXTERNAL:
                return ELSEWHERE
            if kind == _LAYOUT:
                layouts += 1
                # before version 3 the class is the third byte, and there are no virtual data sets
                if body[0] > 4 or (body[0] >= 3 and body[1] == _VIRTUAL):
                    return ELSEWHERE
    except (ValueError, IndexError, OSError, OverflowError) as error:
        return f"its object header cannot be read: {error}"
    return "" if layouts <= 1 else f"its object header has {layouts} layouts instead of one"


def _messages(raw: Any, address: int) -> Iterator[tuple[int, bytes]]:
    """Type and content of every message of an object header."""
    start = _read(raw, address, 16)
    if start[:4] == b"OHDR":
        yield from _second(raw, address)
    elif start[0] == 1:
        yield from _first(raw, address + 16, int.from_bytes(start[8:12], "little"))
    else:
        raise ValueError("it has no known version")


def _first(raw: Any, start: int, length: int) -> Iterator[tuple[int, bytes]]:
    """Of version 1: eight bytes before each message."""
    blocks, count = deque([(start, length)]), 0
    while blocks:
        count += 1
        data, at = _block(raw, *blocks.popleft(), count), 0
        while at + 8 <= len(data):
            kind, size = (int.from_bytes(data[at + k : at + k + 2], "little") for k in (0, 2))
            body, at = data[at + 8 : at + 8 + size], at + 8 + size
            if kind == _CONTINUATION:
                blocks.append(_continuation(body))
            yield kind, body


def _second(raw: Any, address: int) -> Iterator[tuple[int, bytes]]:
    """Of version 2: signature, flags, messages, checksum."""
    flags = _read(raw, address, 6)[5]
    at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width = 1 << (flags & 3)
    length = int.from_bytes(_read(raw, address + at, width), "little")
    blocks, count = deque([(address + at + width, length)]), 0
    head = 6 if flags & 0x04 else 4
    while blocks:
        count += 1
        data, at = _block(raw, *blocks.popleft(), count), 0
        while at + head <= len(data):
            kind, size = data[at], int.from_bytes(data[at + 1 : at + 3], "little")
            body, at = data[at + head : at + head + size], at + head + size
            if kind == _CONTINUATION:
                where, size = _continuation(body)
                blocks.append((where + 4, size - 8))  # between signature and checksum
            yield kind, body


def _continuation(body: bytes) -> tuple[int, int]:
    if len(body) < 16:
        raise ValueError("a continuation is cut off")
    return int.from_bytes(body[:8], "little"), int.from_bytes(body[8:16], "little")


def _block(raw: Any, start: int, length: int, count: int) -> bytes:
    if count > _MOST_BLOCKS or not 0 <= length <= _MOST_BYTES:
        raise ValueError("it does not end")
    return _read(raw, start, length)


def _read(raw: Any, start: int, length: int) -> bytes:
    raw.seek(start)
    data: bytes = raw.read(length)
    if len(data) < length:
        raise ValueError("it lies beyond the end of the file")
    return data
