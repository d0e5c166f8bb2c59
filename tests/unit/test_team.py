"""Threads that share a pass: every segment once, whoever takes it, and the same bits."""

import ctypes
import multiprocessing
import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb import Model
from nlsq_nb.backends import team as teams
from nlsq_nb.backends.cpu import CpuBackend
from nlsq_nb.backends.entries import Bound
from nlsq_nb.backends.objects import Entry
from nlsq_nb.backends.small import compiled, driver, native, sharing
from nlsq_nb.backends.team import Team
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import RESIDENT_ROWS, SEGMENT, SHARED_ROWS
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.errors import NumericsError

ROWS = 12 * SEGMENT + 345
X = np.linspace(0.0, 9.0, ROWS)
Y = 5.0 * np.exp(-0.5 * X) + 1.0 + np.sin(1e3 * X)
THETA = np.array([4.0, 0.4, 1.1])
MODEL = Model("a*exp(-b*x) + c")
KERNEL = CpuBackend(1).compile(MODEL.program, np.float64)
C_SIGNATURE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 5)


def sums(backend, rows=ROWS, skipped=0):
    """One pass, the first piece of which goes on with a segment."""
    into = Accumulator(3, 2)
    for lo, hi in ((0, skipped), (skipped, rows))[not skipped :]:
        backend.reduce(KERNEL, Chunk(lo, (X[lo:hi],), (Y[lo:hi],)), THETA, 2, into)
    found = into.result()
    return found.high.tobytes() + found.low.tobytes()


def whole(resident):
    """One pass that native code is led through."""
    theta, state = THETA.copy(), np.full((2, 10), 9.0)
    columns = np.array(resident.columns)
    status = compiled("run_whole").call(0, resident.n_rows, *(a.ctypes.data for a in (columns, theta, state)))
    return status, state.tobytes()


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(threads):
    alone, many = CpuBackend(1), CpuBackend(threads)
    expected = sums(alone)
    assert sums(many) == expected
    assert sums(many, skipped=SEGMENT + 4096) == sums(alone, skipped=SEGMENT + 4096)
    with many.in_use():
        resident = many.resident(KERNEL, Chunk(0, (X,), (Y,)))
        for _ in range(300):
            assert whole(resident) == (0, expected)
            assert sums(many) == expected
    many.release()


@pytest.mark.parametrize("rows", [SHARED_ROWS, SHARED_ROWS + 1, RESIDENT_ROWS, RESIDENT_ROWS + 1])
def test_threads_at_hand_share_rows_that_one_would_sum_alone(rows):
    backend, chunk = CpuBackend(2), Chunk(0, (X[:rows],), (Y[:rows],))
    before = backend.resident(KERNEL, chunk)
    with backend.in_use(), backend.in_use():
        here = backend.resident(KERNEL, chunk)
    assert (before is None) == (rows > RESIDENT_ROWS)
    assert (here.span == SEGMENT) == (rows == SHARED_ROWS)
    backend.release()


def test_longer_passes_are_left_to_python(monkeypatch):
    monkeypatch.setattr("nlsq_nb.backends.cpu._AT_ONCE", ROWS * KERNEL.seconds_per_row(2) * 0.99)
    backend = CpuBackend(2)
    with backend.in_use():
        assert backend.resident(KERNEL, Chunk(0, (X,), (Y,))) is None
    backend.release()


@given(first=st.integers(1, SEGMENT), rest=st.integers(0, 5), last=st.integers(1, SEGMENT), failing=st.integers(-1, 6))
@settings(max_examples=40, deadline=None)
def test_every_segment_is_summed_once(first, rest, last, failing):
    """Of a kernel that writes down what it is asked, and is Python, as is all that surrounds it."""
    edges = [7, *range(7 + first, 8 + first + rest * SEGMENT, SEGMENT)]
    pieces = [*pairwise(edges), (edges[-1], edges[-1] + last)]
    asked = []

    @C_SIGNATURE
    def kernel(lo, hi, table, theta, state):
        k = len(asked)
        asked.append((lo, hi, table, theta, state))
        return int(k == failing)

    place = ctypes.cast(kernel, ctypes.c_void_p).value
    bound = Bound("sums", Entry(kernel, place, False, None), np.zeros(1, np.uintp), pieces[-1][1], 1, 3, ())  # noqa: FBT003
    theta, states = np.zeros(1), np.zeros((2 * len(pieces), 3))

    def run(work):
        asked.clear()
        if 0 <= failing < len(pieces):
            with pytest.raises(NumericsError, match="no memory"):
                work()
        else:
            work()
        assert [given[:2] for given in asked] == pieces
        assert [given[4] for given in asked] == [states[2 * k :].ctypes.data for k in range(len(pieces))]
        assert {given[2:4] for given in asked} == {(bound.table.ctypes.data, theta.ctypes.data)}

    team = Team()
    run(lambda: team.run(bound, pieces, theta, states, 0))
    after = team._words.tolist()

    def in_python(phase, task, _):
        return driver.run(phase, np.ctypeslib.as_array((ctypes.c_int64 * 1).from_address(task)), None)

    team._native = SimpleNamespace(call=in_python)
    run(lambda: team.run(bound, pieces, theta, states, 0))
    assert team._words.tolist() == after
    assert team.present == 0


def test_the_text_of_a_whole_pass_does_in_python_what_it_does_in_native_code():
    rows = SHARED_ROWS + 99
    backend = CpuBackend(2)
    with backend.in_use():
        resident = backend.resident(KERNEL, Chunk(0, (X[:rows],), (Y[:rows],)))
        plan = native.ints_at(resident.columns[0])
        plan[sharing.PASS + 2] = 0  # no helpers: in Python they would not be counted rightly
        expected = whole(resident)
        state, columns = np.full(20, 9.0), np.array(resident.columns)
        place = int(plan[sharing.SUMS])
        numbers = np.ctypeslib.as_array((ctypes.c_double * (2 * 10 * 5)).from_address(place))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(native.COLUMNS, place, numbers)
            assert sharing.run_whole(0, rows, columns, THETA.copy(), state) == expected[0]
    assert state.tobytes() == expected[1]
    backend.release()


def test_threads_that_fit_at_once_do_not_mix():
    backend, expected = CpuBackend(2), sums(CpuBackend(1))

    def often(k):
        found = set()
        for _ in range(100):
            if k % 2:
                with backend.in_use():
                    found.add(whole(backend.resident(KERNEL, Chunk(0, (X,), (Y,))))[1])
            found.add(sums(backend))
        return found

    with ThreadPoolExecutor(5) as pool:
        assert set().union(*pool.map(often, range(5))) == {expected}
    backend.release()


def wait_until(what):
    end = time.monotonic() + 60
    while not what() and time.monotonic() < end:
        time.sleep(0.001)
    return what()


TASKS = Path("/proc/self/task")


def threads_of_the_process():
    return len(list(TASKS.iterdir()))


def test_helpers_go_when_there_is_nothing_to_do():
    backend, expected = CpuBackend(2), sums(CpuBackend(1))
    assert wait_until(lambda: not any(team.present for team in teams._every))
    with backend.in_use():
        team = backend._team
        assert sums(backend) == expected
        assert wait_until(lambda: team.present == 0)  # they are patient, but not for ever
        assert sums(backend) == expected
    assert backend._team is None
    assert wait_until(lambda: team.present == 0)


@pytest.mark.skipif(not TASKS.is_dir(), reason="no /proc here")
def test_helpers_come_and_stay_for_a_fit():
    backend = CpuBackend(3)
    wait_until(lambda: not any(team.present for team in teams._every))
    with backend.in_use():
        backend._team.stay(stays=True)  # whatever cores there are
        before, most = threads_of_the_process(), 0
        for _ in range(50):
            sums(backend)
            most = max(most, threads_of_the_process())
        assert backend._team.present == 2
        assert most >= before + 2
    wait_until(lambda: not any(team.present for team in teams._every))


def test_one_thread_is_enough_where_no_other_can_be_started():
    backend, expected = CpuBackend(2), sums(CpuBackend(1))

    @ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 4)
    def refuse(*_):
        return 11  # EAGAIN

    with backend.in_use():
        words = backend._team._words
        kept = words[sharing.START // 8]
        wait_until(lambda: backend._team.present == 0)
        words[sharing.START // 8] = ctypes.cast(refuse, ctypes.c_void_p).value
        try:
            assert sums(backend) == expected
            assert whole(backend.resident(KERNEL, Chunk(0, (X,), (Y,)))) == (0, expected)
            assert backend._team.present == 0
        finally:
            words[sharing.START // 8] = kept


def test_what_a_signal_keeps_from_being_left_ends_with_it():
    """Ctrl-C between `__enter__` and the block: nobody calls `__exit__`."""
    backend = CpuBackend(2)
    use = backend.in_use()
    use.__enter__()
    assert backend._team is not None
    with backend.in_use():
        assert backend._team is use.team
    del use
    assert backend._team is None
    with backend.in_use():
        assert sums(backend) == sums(CpuBackend(1))


def a_child(queue):
    backend = CpuBackend(2)
    queue.put((sums(backend), any(team.present for team in teams._free)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_no_helpers_and_calls_its_own():
    backend, queue = CpuBackend(2), multiprocessing.get_context("fork").SimpleQueue()
    with backend.in_use():
        expected = sums(backend)
        child = multiprocessing.get_context("fork").Process(target=a_child, args=(queue,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of threads
            child.start()
        assert queue.get()[0] == expected
        child.join()
    assert child.exitcode == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_signals_that_raise_leave_nothing_behind(error):
    """Of whatever exception: a later pass neither hangs nor differs."""
    backend, expected, struck = CpuBackend(2), sums(CpuBackend(1)), 0

    def strike(*_):
        raise error

    def attempt():
        """Passes that a signal may end; whatever it strikes, it is heard in here."""
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 1e-3))
            with backend.in_use():
                found = whole(backend.resident(KERNEL, Chunk(0, (X,), (Y,))))[1], sums(backend)
            assert set(found) == {expected}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(0)

    before = signal.signal(signal.SIGALRM, strike)
    draw = np.random.default_rng(0)
    try:
        for _ in range(1500):
            try:
                attempt()
            except error:
                struck += 1
            with backend.in_use():
                assert sums(backend) == expected
    finally:
        signal.signal(signal.SIGALRM, before)
    assert struck > 100


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_who_waits_gives_way():
    place = teams._known()[0]
    assert place
    assert ctypes.CFUNCTYPE(ctypes.c_int)(place)() == 0
