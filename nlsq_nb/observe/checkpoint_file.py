"""Checkpoint files in a folder: written whole or not at all, believed only when every bit is right."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlsq_nb.errors import CheckpointError
from nlsq_nb.observe.checkpoint_image import (
    LARGEST,
    USER_BLOCK,
    Content,
    Fingerprint,
    claimed_serial,
    make_image,
    open_image,
)
from nlsq_nb.observe.checkpoint_tree import Tree

__all__ = ["Loaded", "newest", "read", "sweep", "write"]

_LOGGER = logging.getLogger("nlsq_nb.checkpoint")
_KEPT = 3
_NAME = re.compile(r"checkpoint_phase([0-9]{1,2})_iter([0-9]{1,18})\.h5(\.prev)?")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A verified checkpoint.

    Attributes
    ----------
    path : Path
        The file it came from, which may be a `.prev`.
    phase : int
        Number of the phase.
    iteration : int
        Iterations of the phase that are done.
    tree : Tree
        The state, for `from_tree`.
    extra : mapping of str to object
        What else was kept.
    """

    path: Path
    phase: int
    iteration: int
    tree: Tree
    extra: Mapping[str, Any]


def write(
    folder: str | os.PathLike[str],
    phase: int,
    iteration: int,
    state_tree: Tree,
    fingerprint: Fingerprint,
    extra: Mapping[str, Any],
    readable: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoint_phase{phase}_iter{iteration}.h5` and remove all but the last three.

    A file of that name becomes its `.prev` unless it is damaged. At every moment the folder holds
    whole checkpoints only, and those it held before until the new one is in its place.

    Parameters
    ----------
    folder : path-like
        Made if it does not exist. It belongs to one running fit at a time.
    phase, iteration : int
        Phase and iterations done in it.
    state_tree : Tree
        From `to_tree`.
    fingerprint : mapping of str to str or int
        What the state belongs to; compared by `read`.
    extra : mapping of str to object
        What else a resumed fit needs, plain values and arrays.
    readable : mapping of str to array_like or str, optional
        What people find in the group `phase_state`; never read back.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    CheckpointError
        When it could not be written, the disk being full for instance.
    """
    folder = Path(folder)
    target = folder / f"checkpoint_phase{phase}_iter{iteration}.h5"
    content = Content(phase, iteration, fingerprint, extra, state_tree)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        serial = 1 + max((_serial(path) for path in _found(folder)), default=0)
        _put(target, make_image(content, serial, readable or {}))
    except OSError as error:
        raise CheckpointError(
            f"{target} could not be written: {error}; free space or choose another checkpoint_dir"
        ) from error
    _prune(folder)
    return target


def _put(target: Path, image: bytearray) -> None:
    """Bring the bytes under the name; when this fails, nothing of them is left."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o666)
        try:
            left = memoryview(image)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _keep_previous(target)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _keep_previous(target: Path) -> None:
    """Let `.prev` name the present file too; when that is damaged, an older `.prev` is worth more."""
    try:
        _load(target)
    except CheckpointError:
        return
    previous = _previous(target)
    previous.unlink(missing_ok=True)
    try:
        os.link(target, previous)
    except OSError:  # a file system without hard links
        target.replace(previous)


def _sync(folder: Path) -> None:
    """Make a renaming survive a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # network file systems that do not know this of a folder
            raise
    finally:
        os.close(descriptor)


def _prune(folder: Path) -> None:
    """Remove all but the last checkpoints, each with its `.prev`."""
    try:
        names = {folder / path.name.removesuffix(".prev") for path in _found(folder)}
        ranked = sorted(names, key=lambda path: max(_rank(path), _rank(_previous(path))))
        for path in ranked[:-_KEPT]:
            _previous(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    except OSError as error:
        _LOGGER.warning("old checkpoints in %s could not be removed: %s", folder, error)


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed process has left.

    Parameters
    ----------
    folder : Path
        Of checkpoints; no other fit may be writing there.

    Raises
    ------
    OSError
        When one cannot be removed.
    """
    for path in folder.glob(".checkpoint_phase*.h5.*.tmp"):
        path.unlink(missing_ok=True)


def read(where: str | os.PathLike[str], fingerprint: Fingerprint) -> Loaded:
    """Load a checkpoint that belongs to this fit.

    Parameters
    ----------
    where : path-like
        A file, whose `.prev` is used when it is damaged, or a folder, whose newest valid
        checkpoint is used.
    fingerprint : mapping of str to str or int
        Of the fit that is to go on.

    Returns
    -------
    Loaded
        Verified.

    Raises
    ------
    CheckpointError
        When there is none, when it is unreadable, truncated, damaged or of another format version,
        or when it belongs to other data, another model or another configuration; says which.
    """
    path, content = _newest(Path(where))
    kept = content.fingerprint
    differing = sorted(
        key for key in kept.keys() | fingerprint.keys() if kept.get(key) != fingerprint.get(key)
    )
    if differing:
        raise CheckpointError(
            f"{path} belongs to another fit: other {', '.join(differing)}; resume with "
            "those that it was written with, or start afresh"
        )
    return Loaded(path, content.phase, content.iteration, content.state, content.extra)


def newest(where: str | os.PathLike[str]) -> Path:
    """Find the checkpoint that `read` would load.

    Parameters
    ----------
    where : path-like
        A file or a folder.

    Returns
    -------
    Path
        The newest valid checkpoint of the folder; the file, or its `.prev` if it is damaged.

    Raises
    ------
    CheckpointError
        When there is none; says what is wrong with each.
    """
    return _newest(Path(where))[0]


def _newest(where: Path) -> tuple[Path, Content]:
    """The first candidate that can be believed, and its content."""
    try:
        folder = where.is_dir()
        candidates = sorted(_found(where), key=_claimed_rank, reverse=True) if folder else [where]
        if not folder and _previous(where).exists():
            candidates.append(_previous(where))
    except OSError as error:
        raise CheckpointError(f"checkpoint {where} is unreadable: {error}") from error
    faults: list[str] = []
    for path in candidates:
        try:
            content = _load(path)
        except CheckpointError as error:
            faults.append(f"{path.name}: {error}")
            continue
        for fault in faults:
            _LOGGER.warning("checkpoint %s; %s is used instead", fault, path.name)
        return path, content
    found = "; ".join(faults) or "no file is named checkpoint_phase*_iter*.h5"
    advice = "start afresh" if folder else "give its folder to resume from another, or start afresh"
    raise CheckpointError(f"no valid checkpoint at {where} ({found}); {advice}")


def _load(path: Path) -> Content:
    """The verified content of one file."""
    try:
        data = _first_bytes(path, LARGEST + 1)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"it is unreadable ({error})") from error
    return open_image(data)


def _first_bytes(path: Path, most: int) -> bytes:
    """The beginning of a regular file; a pipe would keep us waiting for ever."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError("it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".prev")


def _found(folder: Path) -> list[Path]:
    """Everything in the folder that is named like a checkpoint."""
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]


def _rank(path: Path) -> tuple[int, bool, int, int]:
    """Order of writing; clocks do not enter, since they are set back and copies get new times."""
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return _serial(path), named[3] is None, int(named[1]), int(named[2])


def _claimed_rank(path: Path) -> tuple[int, bool, int, int]:
    """The rank, or the lowest for what cannot be read."""
    try:
        return _rank(path)
    except OSError:
        return (-1, False, 0, 0)


def _serial(path: Path) -> int:
    """Serial number that a file claims, 0 when it claims none or does not exist.

    An error in reading it is not passed over: a checkpoint numbered without it would look older.
    """
    try:
        return claimed_serial(_first_bytes(path, USER_BLOCK))
    except (FileNotFoundError, CheckpointError):
        return 0
