"""Small HDF5 files laid out in memory, without the HDF5 library.

The library crashes the process when memory runs out while it writes: what keeps a fit safe may not be what
ends it. The few parts of the HDF5 File Format Specification, version 3.0, that a
checkpoint needs are a superblock of version 2 (II.A), groups whose links are in their object header (IV.A.2),
contiguous data sets, attributes, and a heap of strings (III.E). Any HDF5 tool reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlsq_nb.errors import CheckpointError

__all__ = ["Group", "lay_out"]

_NOWHERE = 0xFFFF_FFFF_FFFF_FFFF
_HEAP = 48  # address of the heap of strings, behind the superblock
_LEAST_HEAP = 4096  # bytes
# of float32 and float64: bit of the sign, first bit and number of bits of exponent and mantissa, bias
_FLOATS = {4: (31, 23, 8, 0, 23, 127), 8: (63, 52, 11, 0, 52, 1023)}
_TEXT = struct.pack("<4BI", 0x19, 1, 1, 0, 16) + struct.pack("<4BI", 0x13, 0, 1, 0, 1)  # of any length, UTF-8


@dataclass(frozen=True, slots=True)
class Group:
    """A group, or the file.

    Attributes
    ----------
    members : mapping of str to Group, array_like or str
        What is in it, by name; numbers are bool, integers, float32 or float64.
    attributes : mapping of str to str or int
        What is said of it.
    """

    members: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, str | int] = field(default_factory=dict)


def lay_out(root: Group, user_block: int) -> tuple[bytearray, dict[str, int]]:
    """Lay out a file.

    Parameters
    ----------
    root : Group
        What is in it.
    user_block : int
        Bytes before the HDF5 part, left zero: 512, or twice that, and so on.

    Returns
    -------
    image : bytearray
        The file, the same bytes for the same arguments.
    places : dict of str to int
        For each data set of the root the byte of the file at which its values begin.

    Raises
    ------
    CheckpointError
        For values of another kind.
    """
    texts = {text: number for number, text in enumerate(dict.fromkeys(_texts(root)), 1)}
    image, places = bytearray(user_block + _HEAP) + _heap(texts), dict[str, int]()

    def put(data: bytes) -> int:
        """Append something; addresses count from the end of the user block."""
        image.extend(bytes(-len(image) % 8))
        at = len(image) - user_block
        image.extend(data)
        return at

    def add(name: str, member: Any) -> int:
        if isinstance(member, Group):
            links = [(6, _link(label, add(label, each))) for label, each in member.members.items()]
            said = [(12, _attribute(label, value, texts)) for label, value in member.attributes.items()]
            plain = [(2, struct.pack("<BBQQ", 0, 0, _NOWHERE, _NOWHERE)), (10, bytes(2))]
            return put(_header([*plain, *links, *said]))
        kind, space, data = _described(member, texts)
        at = put(data)
        if name in root.members and root.members[name] is member:
            places[name] = at + user_block
        layout = struct.pack("<BBQQ", 3, 1, at if data else _NOWHERE, len(data))
        return put(_header([(1, space), (3, kind), (5, b"\x03\x0a"), (8, layout)]))

    start = add("", root)
    head = b"\x89HDF\r\n\x1a\n\x02\x08\x08\x00" + struct.pack("<4Q", user_block, _NOWHERE, len(image), start)
    image[user_block : user_block + _HEAP] = head + _checksum(head)
    return image, places


def _texts(group: Group) -> Iterator[str]:
    """All strings but names."""
    for value in (*group.members.values(), *group.attributes.values()):
        if isinstance(value, Group):
            yield from _texts(value)
        elif isinstance(value, str):
            yield value


def _heap(texts: Mapping[str, int]) -> bytes:
    """The strings as objects of a global heap, the rest of which is free."""
    body = b""
    for text, number in texts.items():
        data = text.encode()
        body += struct.pack("<HHIQ", number, 1, 0, len(data)) + data + bytes(-len(data) % 8)
    size = max(_LEAST_HEAP, 16 + len(body) + 16)
    free = struct.pack("<HHIQ", 0, 0, 0, size - 16 - len(body))
    return (b"GCOL\x01\x00\x00\x00" + struct.pack("<Q", size) + body + free).ljust(size, b"\x00")


def _header(messages: list[tuple[int, bytes]]) -> bytes:
    """An object header of version 2 (IV.A.1.b)."""
    body = b"".join(struct.pack("<BHB", kind, len(data), 0) + data for kind, data in messages)
    whole = b"OHDR\x02\x02" + struct.pack("<I", len(body)) + body
    return whole + _checksum(whole)


def _link(name: str, address: int) -> bytes:
    """A hard link, whose name is UTF-8."""
    label = name.encode()
    return struct.pack("<4B", 1, 0x10, 1, len(label)) + label + struct.pack("<Q", address)


def _attribute(name: str, value: str | int, texts: Mapping[str, int]) -> bytes:
    kind, space, data = _described(value, texts)
    label = name.encode() + b"\x00"
    return struct.pack("<BBHHHB", 3, 0, len(label), len(kind), len(space), 1) + label + kind + space + data


def _described(value: Any, texts: Mapping[str, int]) -> tuple[bytes, bytes, bytes]:
    """Datatype, dataspace and bytes of a value."""
    if isinstance(value, str):
        return _TEXT, bytes((2, 0, 0, 0)), struct.pack("<IQI", len(value.encode()), _HEAP, texts[value])
    array = np.asarray(value)
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    size, bits = array.dtype.itemsize, 8 * array.dtype.itemsize
    if array.dtype.kind == "f" and size in _FLOATS:
        sign, *exponent_and_mantissa = _FLOATS[size]
        kind = struct.pack("<4BIHH4BI", 0x11, 0x20, sign, 0, size, 0, bits, *exponent_and_mantissa)
    elif array.dtype.kind in "biu":
        kind = struct.pack("<4BIHH", 0x10, 8 * (array.dtype.kind == "i"), 0, 0, size, 0, bits)
    else:
        raise CheckpointError(f"values of dtype {array.dtype} cannot be shown in a checkpoint")
    space = struct.pack(f"<4B{array.ndim}Q", 2, array.ndim, 0, int(array.ndim > 0), *array.shape)
    return kind, space, array.tobytes()


def _checksum(data: bytes) -> bytes:
    """Jenkins' lookup3, hashlittle with initial value 0 (public domain, 2006), as HDF5 has it."""
    a = b = c = 0xDEADBEEF + len(data) & 0xFFFF_FFFF
    padded = data + bytes(-len(data) % 12)
    words = struct.unpack(f"<{len(padded) // 4}I", padded)
    for k in range(0, len(words), 3):
        a, b, c = a + words[k] & 0xFFFF_FFFF, b + words[k + 1] & 0xFFFF_FFFF, c + words[k + 2] & 0xFFFF_FFFF
        if k < len(words) - 3:
            a, b, c = _mixed(a, b, c)
    for first, second, turn in ((1, 2, 14), (2, 0, 11), (0, 1, 25), (1, 2, 16), (2, 0, 4), (0, 1, 14), (1, 2, 24)):
        state = [a, b, c]
        state[second] = (state[second] ^ state[first]) - _turned(state[first], turn) & 0xFFFF_FFFF
        a, b, c = state
    return struct.pack("<I", c)


def _mixed(a: int, b: int, c: int) -> tuple[int, int, int]:
    for turn in (4, 6, 8, 16, 19, 4):
        a = (a - c & 0xFFFF_FFFF) ^ _turned(c, turn)
        c = c + b & 0xFFFF_FFFF
        a, b, c = b, c, a
    return a, b, c


def _turned(word: int, by: int) -> int:
    return (word << by | word >> 32 - by) & 0xFFFF_FFFF
