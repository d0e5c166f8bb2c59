"""The threads of a pass: one leads, the others help, in native code; see `small.sharing`."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import time
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.entries import Bound
from nlsq_nb.backends.small import compiled, sharing
from nlsq_nb.backends.small.layout import SHARING
from nlsq_nb.core.chunk import address_of

__all__ = ["Team", "free_team", "give_back"]

Floats = NDArray[np.float64]
Pieces = list[tuple[int, int]]
_WORD = ctypes.sizeof(ctypes.c_int64)
_STAYS, _PRESENT, _PASS, _FAILED, _SYSTEM = (
    place // _WORD for place in (sharing.STAYS, sharing.PRESENT, sharing.COUNT, sharing.FAILED, sharing.YIELD)
)
_GOODBYE = 1.0  # seconds for which the end of the process waits for helpers

_every: list[Team] = []  # words must be there until the last helper has left
_free: list[Team] = []


class Team:
    """Threads that work at one pass at a time. A pass is one call, so Ctrl-C finds it ended or not begun."""

    def __init__(self) -> None:
        run = compiled("run")
        assert run is not None
        self._native = run
        self._words = np.zeros(sharing.WORDS, np.int64)
        system = _system(address_of(self._words))
        self._words[_SYSTEM : _SYSTEM + len(system)] = system
        self._task = np.array([address_of(self._words)])
        self._place = address_of(self._task)
        _every.append(self)

    def stay(self, *, stays: bool) -> None:
        """Let helpers wait for the next pass, for some milliseconds, or go when there is nothing to do.

        Parameters
        ----------
        stays : bool
            Whether they wait.
        """
        self._words[_STAYS] = stays

    @property
    def present(self) -> int:
        """Helpers that are there, or on their way."""
        return int(self._words[_PRESENT])

    def run(self, work: Bound, pieces: Pieces, theta: Floats, states: Floats, helpers: int) -> None:
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
        helpers : int
            Threads beside this one.

        Raises
        ------
        NumericsError
            When the kernel raised.
        """
        posted = _posted(work, pieces, theta, states, helpers)
        self._words[_PASS : _PASS + len(posted)] = posted
        self._native.call(SHARING, self._place, self._place)
        if self._words[_FAILED]:
            work.fail()

    def plan(self, work: Bound, pieces: Pieces, helpers: int) -> tuple[int, Any]:
        """What `run_whole` needs for passes over some pieces.

        Parameters
        ----------
        work : Bound
            Sums over rows.
        pieces : list of (int, int)
            Rows of segments.
        helpers : int
            Threads beside the one that calls it.

        Returns
        -------
        int
            The address of the plan.
        object
            What keeps everything where it is.
        """
        states = np.empty((2 * len(pieces) + 4, work.width))
        posted = _posted(work, pieces, np.empty(work.n_params), states, helpers)
        plan = np.array((len(pieces), work.width, address_of(states), address_of(self._words), *posted))
        return address_of(plan), (self, work, states, plan)

    def forget(self) -> None:
        """There are no helpers: this is another process."""
        self._words[[_PRESENT, 0]] = 0


def free_team() -> Team:
    """A team that nobody has.

    Returns
    -------
    Team
        For this thread, until it gives it back.
    """
    try:
        return _free.pop()
    except IndexError:
        return Team()


def give_back(team: Team) -> None:
    """Let others have a team.

    Parameters
    ----------
    team : Team
        From `free_team`.
    """
    team.stay(stays=False)
    _free.append(team)


def _posted(work: Bound, pieces: Pieces, theta: Floats, states: Floats, helpers: int) -> tuple[int, ...]:
    """The words of a pass, from COUNT to HI."""
    at, sums = work.places(theta, states, work.width)
    numbers = (helpers, work.entry.address, address_of(work.table), at, sums, 2 * work.width)
    return (len(pieces), 0, *numbers, *pieces[0], pieces[-1][1])


def _system(team: int) -> tuple[int, ...]:
    """The words from YIELD to STARTED for the team at an address."""
    gives_way, starts, *given = _known()
    if os.name == "nt":
        return gives_way, starts, *given, team, _LONG, 0, 1
    return gives_way, starts, *given, team, 0


@cache
def _known() -> tuple[int, ...]:
    """Addresses of what gives way and of what starts a thread, and what that is given; 0 where it is not known here."""
    helper = compiled("help_on")
    assert helper is not None
    try:
        if os.name == "nt":
            library = ctypes.CDLL("kernel32")
            return _address(library.SwitchToThread), _address(library.QueueUserWorkItem), helper.address
        library = ctypes.CDLL(None)
        place, kind = _kept
        library.pthread_attr_init(kind)
        library.pthread_attr_setdetachstate(kind, 2 if sys.platform == "darwin" else 1)  # nobody waits for them
        functions = _address(library.sched_yield), _address(library.pthread_create)
    except (OSError, AttributeError):
        return (0,) * (3 if os.name == "nt" else 5)
    return *functions, ctypes.addressof(place), ctypes.addressof(kind), helper.address


_LONG = 0x10  # WT_EXECUTELONGFUNCTION
_kept = ctypes.create_string_buffer(64), ctypes.create_string_buffer(256)  # a pthread_t, a pthread_attr_t, and more


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _dismiss() -> None:
    """Wait for helpers, as the code that they run goes with the interpreter."""
    end = time.monotonic() + _GOODBYE
    for team in _every:
        team.stay(stays=False)
    while any(team.present for team in _every) and time.monotonic() < end:
        time.sleep(1e-4)


def _renew() -> None:
    """After a fork."""
    for team in _every:
        team.forget()


atexit.register(_dismiss)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
