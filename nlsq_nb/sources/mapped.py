"""Files that are read in place, in the page cache, with faults of reading as errors and not as signals.

A mapped file saves the copy that every read makes, which is as much work as a pass of a cheap
model. What speaks against maps is that a fault is not an OSError but SIGBUS, which ends the process.
There are two kinds. Pages that cannot be read are met by MADV_POPULATE_READ, which gives an error
instead (Linux 5.14). A file that somebody shortens is met by a lease (fcntl F_SETLEASE): while we
have it nobody can open the file for writing; whoever tries waits until the pass is over (the kernel
lets him go on after 45 seconds), and what we read meanwhile goes into buffers. Where the system has
no such means, all files are read into buffers.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Lease", "MappedFile"]

_POPULATE_READ = 22
_SETSIG = 10


class Lease:
    """The kernel's word that nobody writes to a file, taken for the time of a pass.

    Parameters
    ----------
    path : str
        The file. It is opened once more: a lock that HDF5 has on it would last as long as the map.

    Attributes
    ----------
    fd : int
        The file, open for reading until the lease is closed.

    Raises
    ------
    OSError
        When the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def take(self) -> bool:
        """Ask for it, unless it is held.

        Returns
        -------
        bool
            Whether it is held, and nobody is waiting to write: who does goes on waiting. Never on
            systems without leases, nor for files of other users or on some file systems.
        """
        try:
            import fcntl

            if fcntl.fcntl(self.fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
                return True
            # the signal that announces a writer must not end the process: SIGURG is ignored
            fcntl.fcntl(self.fd, _SETSIG, signal.SIGURG)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except (ImportError, AttributeError, OSError):
            return False  # not released: rows that were shown before may be in use
        return True

    def release(self) -> None:
        """Let writers go on."""
        with suppress(ImportError, AttributeError, OSError):
            import fcntl

            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def close(self) -> None:
        """Release it and close the file, once."""
        self.release()  # by name: a map has a copy of fd
        os.close(self.fd)


class MappedFile:
    """A whole file as memory, of which parts are loaded and dropped.

    Parameters
    ----------
    fd : int
        The file, open for reading; may be closed afterwards.

    Raises
    ------
    OSError, ValueError
        When it cannot be mapped, or faults would not be told.
    """

    def __init__(self, fd: int) -> None:
        self.size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.size, access=mmap.ACCESS_READ)
        self._base = np.frombuffer(self._map, np.uint8).__array_interface__["data"][0]
        self._page = mmap.PAGESIZE
        try:  # the GIL is free meanwhile, as it is not in mmap.madvise
            self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        except (OSError, AttributeError, TypeError) as error:
            raise OSError("no madvise on this system") from error
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.load(0, 1)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
        """Part of the file as an array.

        Parameters
        ----------
        shape : tuple of int
            Its shape, in C order.
        dtype : numpy.dtype
            Of its elements.
        offset : int
            Byte at which it begins.

        Returns
        -------
        ndarray
            Read-only, not loaded yet.

        Raises
        ------
        OSError
            When the file ends before it.
        """
        try:
            return np.ndarray(shape, dtype, self._map, offset)
        except (TypeError, ValueError) as error:
            raise OSError(f"the file ends before byte {offset + dtype.itemsize}: {error}") from error

    def load(self, start: int, length: int) -> None:
        """Bring bytes into memory.

        Parameters
        ----------
        start, length : int
            Which bytes.

        Raises
        ------
        OSError
            When they cannot be read.
        """
        first = start // self._page * self._page
        self._advise(first, start + length - first, _POPULATE_READ)

    def drop(self, start: int, length: int) -> None:
        """Let bytes go out of the resident memory; they can still be read.

        Parameters
        ----------
        start, length : int
            Which bytes; a page that ends beyond them stays.
        """
        first, end = start // self._page * self._page, (start + length) // self._page * self._page
        if end > first:
            with suppress(OSError):  # then they stay, and their rows are right all the same
                self._advise(first, end - first, mmap.MADV_DONTNEED)

    def _advise(self, start: int, length: int, advice: int) -> None:
        while self._madvise(self._base + start, length, advice):
            code = ctypes.get_errno()
            if code not in {11, 4}:  # EAGAIN and EINTR: once more
                raise OSError(code, os.strerror(code))
