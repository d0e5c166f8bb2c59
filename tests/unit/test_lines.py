"""The worker's end of a line, on real sockets: who is let in, what is answered, what is let go."""

import pickle
import socket
import threading
import time
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
