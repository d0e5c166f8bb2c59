"""Passes over all rows, wherever they are, that native code asks for while it runs the phases of a fit."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Resident, address_of
from nlsq_nb.core.layout import sums_size
from nlsq_nb.core.sums import NormalSums

__all__ = ["WholePasses"]

Floats = NDArray[np.float64]
_DOUBLE, _KEY = ctypes.sizeof(ctypes.c_double), ctypes.c_int64
_SIGNATURE = ctypes.CFUNCTYPE(ctypes.c_int32, _KEY, _KEY, *(ctypes.c_void_p,) * 3)

_ANSWERED = 0x6E6C7371  # what no other return is

_open: dict[int, WholePasses] = {}
_keys = itertools.count(1)


class WholePasses:
    """A kernel for native code that sums over all rows in one call, by Python: threads, files, a cluster.

    It is there as long as it is entered. What goes wrong in a pass, Ctrl-C too, ends the native code and
    waits in `failure` for whom called that. Ctrl-C that strikes before the first line of `_measure` is dropped by
    ctypes, which tells of an exception that was ignored and returns any number: so an answer has a number of its own.

    Parameters
    ----------
    run : callable, optional
        `run(theta)`: the sums of order 2 over all rows, or an exception; None where nothing is left to be run.
    n_params, n_rows : int
        p and n.

    Attributes
    ----------
    failure : BaseException or None
        What ended the passes before their time, there or in between.
    first : float
        The sse of the first pass.
    best : tuple of (ndarray, NormalSums), or None
        The point of lowest sse so far, and its sums.
    count : int
        Passes so far.
    """

    def __init__(self, run: Callable[[Floats], NormalSums] | None, n_params: int, n_rows: int) -> None:
        self._run = run
        self._n_params = n_params
        self._key = next(_keys)
        self.resident = Resident(_ADDRESS, (self._key,), n_rows, None, n_rows, _ANSWERED)
        self.failure: BaseException | None = None
        self.first = math.nan
        self.best: tuple[Floats, NormalSums] | None = None
        self.count = 0

    def __enter__(self) -> Self:
        _open[self._key] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run = None  # who runs the fit may hold on to this
        _open.pop(self._key, None)

    def measure(self, theta: int, state: int) -> None:
        """One pass at the parameters at an address, its sums to another."""
        assert self._run is not None
        point = np.array((ctypes.c_double * self._n_params).from_address(theta))
        sums, size = self._run(point), sums_size(self._n_params, 2)
        self.see(point, sums)
        for part, place in ((sums.high, state), (sums.low, state + size * _DOUBLE)):
            ctypes.memmove(place, address_of(part), size * _DOUBLE)

    def lost(self) -> BaseException:
        """Why a pass was not answered; asked once, as the frames of an error hold on to the fit."""
        failure, self.failure = self.failure, None
        return failure or KeyboardInterrupt()

    def see(self, point: Floats, sums: NormalSums, passes: int = 1) -> None:
        """Take note of a pass, or of the best of some."""
        self.count += max(1, passes)
        if self.best is None:
            self.first = sums.sse
        if self.best is None or sums.sse < self.best[1].sse:
            self.best = point, sums


def _measure(_lo: int, _hi: int, columns: int, theta: int, state: int) -> int:
    """What native code calls: the first and only column is the key of the passes."""
    passes = None
    try:
        passes = _open[_KEY.from_address(columns).value]
        passes.measure(theta, state)
    except BaseException as failure:  # noqa: BLE001 - goes to who called native code
        if passes is not None:
            passes.failure = failure
        return 0
    return _ANSWERED


_CALLED = _SIGNATURE(_measure)  # lives as long as its address is given away
_ADDRESS = ctypes.cast(_CALLED, ctypes.c_void_p).value or 0
