"""What an HDF5 file may not do to us: point elsewhere, promise more than it holds, or load code.

A file is somebody else's input. Only hard links are followed, so that a name stands for something in
this file; values stored in other files are refused; so are filters that HDF5 would load from a plug-in,
and data sets whose declared size has no relation to what is stored.
"""

from __future__ import annotations

import math
from typing import Any

from nlsq_nb.sources.hdf5_header import ELSEWHERE, layout_fault

__all__ = ["ABSENT", "BROKEN", "find", "misdeed", "step", "unfit"]

BROKEN = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, MemoryError, AttributeError)
"""What h5py raises on damaged files."""

ABSENT = "does not exist"

_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_RATIO = 1100  # deflate reaches 1032
_CHUNK = 1 << 26  # bytes of the largest chunk, which is held as a whole to read any of it
_MOST_ROWS = 1 << 53


def find(file: Any, path: str, raw: Any) -> tuple[Any, str]:
    """Follow a path by hard links.

    Parameters
    ----------
    file : h5py.File
        Open.
    path : str
        Names of groups and of a data set, separated by slashes.
    raw : binary file
        The same file.

    Returns
    -------
    tuple of (object or None, str)
        The data set and "", or None and what is in the way.
    """
    import h5py

    here, done = file, ""
    for name in filter(None, path.split("/")):
        done += f"/{name}"
        if not isinstance(here, h5py.Group) or name in {".", ".."}:
            return None, f"{done} {ABSENT}"
        here, reason = step(here, name, raw)
        if reason:
            return None, f"/{path.strip('/')} {reason}" if reason == ABSENT else f"{done} is refused: {reason}"
    return (here, "") if isinstance(here, h5py.Dataset) else (None, f"{done or '/'} is not a data set")


def step(group: Any, name: str, raw: Any) -> tuple[Any, str]:
    """Open what a name in a group stands for.

    Parameters
    ----------
    group : h5py.Group
        Open.
    name : str
        Without slashes.
    raw : binary file
        The same file.

    Returns
    -------
    tuple of (object or None, str)
        The object and "", or None and why not.
    """
    import h5py

    links, key = group.id.links, name.encode()
    if not links.exists(key):
        return None, ABSENT
    link = links.get_info(key)
    if link.type != h5py.h5l.TYPE_HARD:
        return None, "it is a soft or external link; give the path of the data set itself"
    reason = layout_fault(raw, link.u + group.file.userblock_size)
    return (None, reason) if reason else (group[name], "")


def unfit(data_set: Any) -> str:
    """Why a data set cannot be data.

    Parameters
    ----------
    data_set : h5py.Dataset
        Open.

    Returns
    -------
    str
        The reason, or "".
    """
    if data_set.external or data_set.is_virtual:  # before its size, for which HDF5 opens those files
        return ELSEWHERE
    if data_set.dtype.kind not in "fiub":
        return f"its dtype is {data_set.dtype}, real numbers are needed"
    return ""


def misdeed(data_set: Any, file_bytes: int) -> str:
    """Why the storage of a data set is not to be trusted.

    Parameters
    ----------
    data_set : h5py.Dataset
        One that is not `unfit`.
    file_bytes : int
        Size of the file.

    Returns
    -------
    str
        The reason, or "".
    """
    import h5py

    made, shape = data_set.id.get_create_plist(), data_set.shape
    if not shape:
        return "it is a single value, rows are needed" if shape == () else "it is empty"
    declared = math.prod(shape) * data_set.dtype.itemsize
    if max(shape) > _MOST_ROWS:
        return f"its shape is {shape}"
    stored = data_set.id.get_storage_size()
    if stored > file_bytes or (declared and not stored):
        return f"it declares {declared} bytes, of which {stored} are said to be stored in a file of {file_bytes}"
    if made.get_layout() != h5py.h5d.CHUNKED:
        return _of_one_piece(data_set, declared, stored, file_bytes)
    return _of_chunks(data_set, made, declared, stored)


def _of_one_piece(data_set: Any, declared: int, stored: int, file_bytes: int) -> str:
    offset = data_set.id.get_offset()  # None for compact storage, inside the header
    if stored != declared or (offset or 0) + declared > file_bytes:
        return f"it declares {declared} bytes, the file of {file_bytes} does not hold them"
    return ""


def _of_chunks(data_set: Any, made: Any, declared: int, stored: int) -> str:
    chunks = data_set.chunks
    size = math.prod(chunks) * data_set.dtype.itemsize
    if size > _CHUNK:
        return f"its chunks are {size} bytes each, which are held to read a row; write it in smaller ones"
    filters = [made.get_filter(k)[0] for k in range(made.get_nfilters())]
    foreign = [code for code in filters if code not in _FILTERS]
    if foreign:
        return f"its filter {foreign[0]} needs a plug-in"
    if declared > _RATIO * stored:
        return f"it declares {declared} bytes and stores {stored}, more than any compression explains"
    needed = math.prod(-(-n // c) for n, c in zip(data_set.shape, chunks, strict=True))
    present = data_set.id.get_num_chunks()
    if present < needed:
        return f"{needed - present} of its {needed} chunks were never written"
    if not filters and stored < needed * size:
        return f"it declares {declared} bytes and stores {stored}"
    return ""
