"""The bytes of a checkpoint file: an HDF5 file for people, and one line that vouches for every bit.

The user block, the 512 bytes before the HDF5 part, holds that line: format version, serial number,
where the data set `state` begins, its length and that of the file, and the SHA-256 of everything else.
Reading needs the line and the data set's bytes and never interprets the HDF5 structure, so no link,
filter, virtual or external data set that somebody may have put there is ever followed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlsq_nb.errors import CheckpointError
from nlsq_nb.observe.checkpoint_tree import Tree, from_tree, pack, to_tree, unpack
from nlsq_nb.observe.hdf5_layout import Group, lay_out

__all__ = ["LARGEST", "USER_BLOCK", "Content", "Fingerprint", "claimed_serial", "make_image", "open_image"]

USER_BLOCK = 512
"""Bytes before the HDF5 part."""

LARGEST = 1 << 30
"""Bytes of a file; the sums of 5,000 parameters take a fifth of it."""

Fingerprint = Mapping[str, str | int]
"""What a checkpoint must agree with: digests of the data, the model and the configuration, by name."""

_VERSION = "3.0"
_LAST = 10**18 - 1  # the largest serial number that has room in the line
_ANY_VERSION = re.compile(rb"nlsq_nb checkpoint ([0-9.]{1,9}) ")
_LINE = re.compile(
    rb"nlsq_nb checkpoint 3\.0 serial (?P<serial>[0-9]{1,18}) "
    rb"state (?P<start>[0-9]{1,12})\+(?P<length>[0-9]{1,12}) of (?P<total>[0-9]{1,12}) bytes "
    rb"sha256 (?P<digest>[0-9a-f]{64})\n"
)


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint says.

    Attributes
    ----------
    phase : int
        Number of the phase.
    iteration : int
        Iterations of the phase that are done.
    fingerprint : mapping of str to str or int
        What the state belongs to.
    extra : mapping of str to object
        What else a resumed fit needs, plain values and arrays.
    state : Tree
        The state.
    """

    phase: int
    iteration: int
    fingerprint: Fingerprint
    extra: Mapping[str, Any]
    state: Tree


def make_image(content: Content, serial: int, readable: Mapping[str, Any]) -> bytearray:
    """Lay a checkpoint out as the bytes of a file.

    Parameters
    ----------
    content : Content
        What to keep.
    serial : int
        Rises from checkpoint to checkpoint of a folder.
    readable : mapping of str to array_like or str
        What people find in the group `phase_state`; never read back.

    Returns
    -------
    bytearray
        The same bytes for the same arguments.

    Raises
    ------
    CheckpointError
        When something cannot be kept or is too large.
    """
    document = pack(
        {
            "dict": [
                ["phase", content.phase],
                ["iteration", content.iteration],
                ["fingerprint", to_tree(dict(content.fingerprint))],
                ["extra", to_tree(dict(content.extra))],
                ["state", content.state],
            ]
        }
    )
    said = {"format": "nlsq_nb checkpoint", "version": _VERSION, "sha256": hashlib.sha256(document).hexdigest()}
    shown = {
        "fingerprint": Group(attributes=content.fingerprint),
        "phase_state": Group(readable),
        "state": np.frombuffer(document, np.uint8),
    }
    image, places = lay_out(Group(shown, said), USER_BLOCK)
    start = places["state"]
    if len(image) > LARGEST:
        raise CheckpointError(f"a checkpoint of {len(image)} bytes is too large, {LARGEST} are allowed")
    line = (
        f"nlsq_nb checkpoint {_VERSION} serial {serial} state {start}+{len(document)} "
        f"of {len(image)} bytes sha256 {'0' * 64}\n"
    ).encode("ascii")
    image[: len(line)] = line
    at = len(line) - 65
    image[at : at + 64] = _digest(image, at).encode("ascii")
    return image


def _digest(image: bytes | bytearray, at: int) -> str:
    """SHA-256 of the file but for the 64 characters at `at`, which hold it."""
    total = hashlib.sha256(image[:at])
    total.update(memoryview(image)[at + 64 :])
    return total.hexdigest()


def open_image(data: bytes) -> Content:
    """Verify the bytes of a file and read them.

    Parameters
    ----------
    data : bytes
        From anywhere.

    Returns
    -------
    Content
        Every bit as `make_image` was given it.

    Raises
    ------
    CheckpointError
        When a single bit is not as it was written; says what is wrong.
    """
    if len(data) > LARGEST:
        raise CheckpointError(f"it is too large, more than {LARGEST} bytes")
    if len(data) < USER_BLOCK:
        raise CheckpointError(f"it is truncated to {len(data)} bytes")
    version = _ANY_VERSION.match(data)
    if version is None:
        raise CheckpointError("it is not a checkpoint of nlsq_nb, or its first bytes are damaged")
    if (found := version[1].decode()) != _VERSION:
        raise CheckpointError(f"it has format version {found}, and this release reads {_VERSION}")
    line = _LINE.match(data)
    if line is None:
        raise CheckpointError("its first line is damaged")
    start, length, total = (int(line[name]) for name in ("start", "length", "total"))
    if len(data) < total:
        raise CheckpointError(f"it is truncated to {len(data)} of {total} bytes")
    if line["digest"].decode() != _digest(data, line.start("digest")):
        raise CheckpointError("its SHA-256 does not match, so it was damaged or changed")
    return _content(unpack(data[start : start + length]))


def _content(tree: Tree) -> Content:
    """The parts of a document by name."""
    kinds = {"phase": int, "iteration": int, "fingerprint": dict, "extra": dict}
    try:
        parts = dict(tree["dict"])
        plain = {key: from_tree(parts[key]) for key in kinds}
        state = parts["state"]
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"its content is malformed: {error!r}") from error
    wrong = [key for key, kind in kinds.items() if type(plain[key]) is not kind]
    if wrong:
        raise CheckpointError(f"its content is malformed: {', '.join(wrong)}")
    return Content(**plain, state=state)


def claimed_serial(head: bytes) -> int:
    """Tell the serial number of a file that has not been verified.

    Parameters
    ----------
    head : bytes
        Its first bytes, the user block or more.

    Returns
    -------
    int
        0 when it claims none, or one that has no successor.
    """
    line = _LINE.match(head)
    serial = int(line["serial"]) if line else 0
    return serial if serial < _LAST else 0
