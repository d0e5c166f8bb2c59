"""The threads of a pass: one leads, the others help in native code; see `small.sharing`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.entries import Bound
from nlsq_nb.backends.objects import Entry
from nlsq_nb.backends.small import sharing
from nlsq_nb.backends.small.layout import HELPING, LEADING, POSTING
from nlsq_nb.core.chunk import address_of

__all__ = ["Team"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pieces = list[tuple[int, int]]
Submit = Callable[[Callable[[], None]], "Future[None]"]
_WORD = ctypes.sizeof(ctypes.c_int64)
_STAYS, _PASS, _FAILED, _YIELD = (
    place // _WORD for place in (sharing.STAYS, sharing.COUNT, sharing.FAILED, sharing.YIELD)
)


class Team:
    """Threads that work at one pass at a time.

    A pass that Ctrl-C has ended stays open: helpers may still be at work, and the team cannot be used again.
    They hold on to the arrays of the pass for as long as they are.

    Parameters
    ----------
    entry : Entry
        `compiled_run`.
    """

    def __init__(self, entry: Entry) -> None:
        self._native = entry
        self._words = np.zeros(sharing.WORDS, np.int64)
        self._words[_YIELD] = _yielding()
        self._task = np.array([address_of(self._words)])
        self._place = address_of(self._task)
        self._helpers = list[Future[None]]()
        self._kept: tuple[Any, ...] = ()

    def stay(self, *, stays: bool) -> None:
        """Let helpers wait for the next pass, for some milliseconds, or go when there is nothing to do.

        Parameters
        ----------
        stays : bool
            Whether they wait.
        """
        self._words[_STAYS] = stays

    @property
    def is_open(self) -> bool:
        """Whether a pass was left before its end."""
        return bool(self._kept)

    def gather(self, helpers: int, submit: Submit) -> None:
        """Call helpers, unless they are there.

        Parameters
        ----------
        helpers : int
            Threads beside the one that leads.
        submit : callable
            Starts one of them.
        """
        self._helpers = [future for future in self._helpers if not future.done()]
        while len(self._helpers) < helpers:
            self._helpers.append(submit(self._help))

    def run(self, work: Bound, pieces: Pieces, theta: Floats, states: Floats, gather: Callable[[], None]) -> None:
        """Fold pieces into their states.

        Parameters
        ----------
        work : Bound
            Sums over rows.
        pieces : list of (int, int)
            Rows of segments, one behind the other; the first may be the rest of one, the last its beginning.
        theta : ndarray, shape (p,)
            Parameters.
        states : ndarray, shape (2k, width)
            High and low sums of each piece.
        gather : callable
            Calls helpers, once there is something to do.

        Raises
        ------
        NumericsError
            When the kernel raised.
        """
        assert not self.is_open
        self._kept = work, theta, states
        posted = _posted(work, pieces, theta, states)
        self._words[_PASS : _PASS + len(posted)] = posted
        self._do(POSTING)
        gather()
        self._do(LEADING)
        self._kept = ()
        if self._words[_FAILED]:
            work.fail()

    def plan(self, work: Bound, pieces: Pieces) -> tuple[int, Any]:
        """What `run_whole` needs for passes over some pieces.

        Parameters
        ----------
        work : Bound
            Sums over rows.
        pieces : list of (int, int)
            Rows of segments.

        Returns
        -------
        int
            The address of the plan.
        object
            What keeps everything where it is.
        """
        states = np.empty((2 * len(pieces), work.width))
        posted = _posted(work, pieces, np.empty(work.n_params), states)
        plan = np.array((len(pieces), work.width, address_of(states), address_of(self._words), *posted))
        return address_of(plan), (self, work, states, plan)

    def _help(self) -> None:
        self._do(HELPING)

    def _do(self, what: int) -> None:
        self._native.call(what, self._place, self._place)


def _posted(work: Bound, pieces: Pieces, theta: Floats, states: Floats) -> tuple[int, ...]:
    """The words of a pass, from COUNT to HI."""
    at, sums = work.places(theta, states, work.width)
    numbers = (work.entry.address, address_of(work.table), at, sums, 2 * work.width)
    return (len(pieces), 0, *numbers, *pieces[0], pieces[-1][1])


@cache
def _yielding() -> int:
    """Address of what lets other threads have the processor; 0 where nothing is known of it."""
    try:
        library = ctypes.CDLL("kernel32") if os.name == "nt" else ctypes.CDLL(None)
        function = library.SwitchToThread if os.name == "nt" else library.sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
