"""The worker's end of a line, on real sockets: who is let in, what is answered, what is let go."""

import pickle
import socket
import threading
import time
import weakref
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.losses import LEAST_SQUARES
from nlsq_nb.engines import lines
from nlsq_nb.engines.parts import Job

pytest.importorskip("distributed", reason="distributed is not installed")
MODEL = Model("a*x")


class Rows:
    """Rows that tell when they are opened and closed."""

    step = 16_384
    lasts = True
    told: ClassVar = []

    def open(self, groups, pieces, retries):
        self.told.append("opened")
        return self

    def chunks(self, first, stop):
        yield Chunk(0, (np.arange(100.0),), (np.arange(100.0),))

    def close(self):
        self.told.append("closed")


@pytest.fixture
def line(monkeypatch):
    """A line to a seat in a thread of this process, and the thread."""
    monkeypatch.setattr(lines, "_PERIOD", 0.2)
    monkeypatch.setattr(lines, "_REACH", 0.5)
    Rows.told.clear()
    door = socket.create_server(("127.0.0.1", 0))
    worker = SimpleNamespace(address="tcp://here", state=SimpleNamespace(nthreads=1))
    seat = lines._Seat(worker, None)
    thread = threading.Thread(target=lines._serve, args=(door, b"k" * 32, None, seat), daemon=True)
    thread.start()
    with socket.create_connection(door.getsockname(), timeout=10.0) as found:
        yield found, thread
    thread.join(10.0)
    assert not thread.is_alive()


def call(job):
    lasting = Rows(), 1, (), ((0, 1),), ()
    return pickle.dumps((pickle.dumps(lasting), pickle.dumps(job)))


def answer(found):
    def look():
        raise AssertionError("no answer")

    return pickle.loads(lines._received(found, look))


def job(theta):
    return Job("sums", "reference", "of test_lines", MODEL.program, "float64", LEAST_SQUARES, np.array([theta]))


@pytest.mark.parametrize("shown", [b"x" * 32, b"short", b""])
def test_nobody_is_answered_who_does_not_know_the_secret(line, shown):
    found, thread = line
    found.sendall(shown)
    assert found.recv(100) == b""
    thread.join(10.0)
    assert not thread.is_alive()


def test_rows_stay_open_from_pass_to_pass_and_are_let_go_in_silence(line):
    found, _ = line
    found.sendall(b"k" * 32)
    for theta in (1.0, 2.0, 3.0):
        lines._send(found, call(job(theta)))
        ((states, rows),) = answer(found)
        assert states[0, 0] == (1.0 - theta) ** 2 * 328_350.0
        assert (states.shape, rows) == ((2, 3), 100)
    assert Rows.told == ["opened"]
    time.sleep(1.0)
    assert Rows.told == ["opened", "closed"]
    lines._send(found, call(job(4.0)))
    answer(found)
    assert Rows.told == ["opened", "closed", "opened"]
    found.close()
    end = time.monotonic() + 10.0
    while len(Rows.told) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert Rows.told[-1] == "closed"


def test_what_cannot_be_done_is_left_to_a_task(line):
    found, _ = line
    found.sendall(b"k" * 32)
    lines._send(found, b"no pickle")
    assert answer(found) is None
    lines._send(found, call("no job"))
    assert answer(found) is None
    lines._send(found, call(job(1.0)))
    assert isinstance(answer(found), list)


def test_threads_never_share_a_line(monkeypatch):
    """Whoever looks for stale lines must not put back what another thread takes meanwhile."""
    clock, go, took, both = time.monotonic, threading.Event(), threading.Event(), threading.Barrier(2)
    taken = {}

    def name():
        return threading.current_thread().name

    def monotonic():
        if name() == "taker":  # between its look at the client and its line
            go.wait(1.0)
        return clock()

    def is_stale(_):
        if name() == "looker":
            go.set()
            took.wait(1.0)
        return False

    def answers(mine, *_):
        taken[name()] = mine
        took.set()
        both.wait(10.0)
        return [[]]

    client, part = Idle(), SimpleNamespace(worker="tcp://here")
    monkeypatch.setattr(lines, "_CLIENTS", weakref.WeakKeyDictionary())
    monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(lines, "_answers", answers)
    monkeypatch.setattr(lines, "_written", lambda *_: b"")
    monkeypatch.setattr(lines._Lines, "is_stale", property(is_stale))
    lines._CLIENTS[client] = lines._Known(free=[lines._Lines(client)], failed=clock() - 1e6)
    threads = [threading.Thread(target=lines.ask, args=(client, [None], [part]), name=n) for n in ("taker", "looker")]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join(20.0)
    assert taken["taker"] is not taken["looker"]
    assert len(lines._CLIENTS[client].free) == 2


class Idle:
    status = "running"

    def submit(self, *_, **__):
        """The scheduler is told nothing."""
