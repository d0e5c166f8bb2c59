"""Connections straight to the workers of a Dask cluster: a pass is one message to each worker and one back.

A line is a socket between two threads that wait for it, as Dask's own messages pass through four event loops; its
first message is a secret that the worker has given over Dask's connection. It is encrypted where the cluster is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import selectors
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nlsq_nb.engines.parts import OpenPart
from nlsq_nb.engines.placing import Part
from nlsq_nb.engines.tasks import Parcel, opened, outcome

__all__ = ["ask"]

_SIZE = struct.Struct("<Q")  # before each message: its bytes
_KEY = 32  # bytes of the secret
_REACH = 2.0  # seconds in which a worker must be reached
_WELCOME = 30.0  # seconds for which a worker waits to be called
_PATIENCE = 60.0  # seconds that a message may take
_PERIOD = 1.0  # seconds of silence after which each side looks what is the matter
_IDLE = 60.0  # seconds of silence after which a line is given up
_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}  # the last in ms
_AGAIN = 60.0  # seconds before workers that could not be reached are tried again
_log = logging.getLogger("nlsq_nb.engines")


# -- both sides ----------------------------------------------------------------------------------
def _ready(line: socket.socket, context: Any, *, called: bool) -> socket.socket:
    """For messages that are answered at once, and encrypted where the cluster is."""
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    line.settimeout(_REACH)
    return line if context is None else context.wrap_socket(line, server_side=called)


def _send(line: socket.socket, message: bytes) -> None:
    line.settimeout(_PATIENCE)
    line.sendall(_SIZE.pack(len(message)) + message)
    line.settimeout(_PERIOD)


def _received(line: socket.socket, look: Callable[[], None]) -> bytearray:
    """A message; `look` is called while there is none."""
    (size,) = _SIZE.unpack(_read(line, _SIZE.size, look))
    return _read(line, size, look)


def _read(line: socket.socket, size: int, look: Callable[[], None] | None = None) -> bytearray:
    found, done = bytearray(size), 0
    while done < size:
        try:
            count = line.recv_into(memoryview(found)[done:])
        except TimeoutError:
            if look is None:
                raise
            look()
            continue
        if not count:
            raise EOFError("the line was closed")
        done += count
    return found


# -- here ----------------------------------------------------------------------------------------
class _Lines:
    """Connections to workers, for one pass at a time."""

    def __init__(self, client: Any) -> None:
        self._client = weakref.ref(client)
        self._open: dict[str, socket.socket] = {}
        self._used = time.monotonic()
        self.close = weakref.finalize(self, _close, self._open, os.getpid())

    @property
    def is_stale(self) -> bool:
        """Whether the workers may hang up any moment."""
        return time.monotonic() - self._used > _IDLE / 2

    def connect(self, workers: Collection[str]) -> bool:
        """See that there is one to each of these and no other; False where a worker has gone.

        Raises OSError where one cannot be reached.
        """
        for worker in self._open.keys() - set(workers):
            self._open.pop(worker).close()
        wanted = [worker for worker in workers if worker not in self._open]
        if not wanted:
            return True
        client = self._client()
        assert client is not None
        # to all that are there: the scheduler tries for half a minute to speak to one that has just gone
        doors = client.run(_listen, wanted, on_error="return")
        if any(worker not in doors for worker in wanted):
            return False
        for worker in wanted:
            if not isinstance(doors[worker], tuple):
                raise OSError(f"{worker} cannot listen: {doors[worker]}")
        context = client.security.get_connection_args("client").get("ssl_context")
        for worker in wanted:
            self._open[worker] = _called(worker, doors[worker], context)
        return True

    def send(self, worker: str, message: bytes) -> None:
        """To a worker that has a line."""
        _send(self._open[worker], message)

    def received(self) -> dict[str, bytearray]:
        """The answers of all, in the order in which they come; raises OSError or EOFError where there will be none."""
        found: dict[str, bytearray] = {}
        with selectors.DefaultSelector() as waiting:
            for worker, line in self._open.items():
                waiting.register(line, selectors.EVENT_READ, worker)
            while waiting.get_map():
                ready = waiting.select(_PERIOD)
                if not ready:
                    self._look(waiting)
                for key, _ in ready:
                    found[key.data] = _received(self._open[key.data], partial(self._look, waiting))
                    waiting.unregister(key.fileobj)
        self._used = time.monotonic()
        return found

    def _look(self, waiting: selectors.BaseSelector) -> None:
        client = self._client()
        there = () if client is None else client.nthreads()
        for key in waiting.get_map().values():
            if key.data not in there:
                raise EOFError(f"{key.data} has gone")


def _close(lines: dict[str, socket.socket], process: int) -> None:
    while lines:
        _, line = lines.popitem()
        with contextlib.suppress(OSError), line:
            if process == os.getpid():  # else it is the parent's, who goes on
                line.shutdown(socket.SHUT_RDWR)


def _called(worker: str, door: tuple[int, bytes], context: Any) -> socket.socket:
    """A connection to a worker that listens."""
    from distributed.comm import get_address_host

    port, key = door
    line = socket.create_connection((get_address_host(worker), port), timeout=_REACH)
    try:
        line = _ready(line, context, called=False)
        line.sendall(key)
    except BaseException:
        line.close()
        raise
    return line


@dataclass(slots=True)
class _Known:
    """What this process knows of a client: lines that no fit uses, and since when its workers are out of reach."""

    process: int = field(default_factory=os.getpid)
    free: list[_Lines] = field(default_factory=list)
    failed: float | None = None
    shown: float = 0.0


_CLIENTS: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()  # around changes to it and to free lines; the handler of a signal may fit meanwhile


def ask(client: Any, parcels: Sequence[Parcel], parts: Sequence[Part]) -> list[list[Any]] | None:
    """A pass without the scheduler, in a tenth of the time that tasks take.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    parcels : sequence of Parcel
        One for each part.
    parts : sequence of Part
        Each of another worker, which holds its blocks.

    Returns
    -------
    list or None
        Results by part; None where a worker could not be reached or could not do its part, so that tasks have to:
        they go elsewhere, wait for blocks, and say what is wrong.
    """
    pairs = list(zip(parcels, parts, strict=True))
    asked = {str(part.worker): pair for pair in pairs for part in pair[1:]}
    with _LOCK:
        known = _known_of(client)
        if len(asked) < len(parts) or (known.failed is not None and time.monotonic() - known.failed < _AGAIN):
            return None
        lines = known.free.pop() if known.free else _Lines(client)
    try:
        done = _answers(lines, {worker: _written(*pair) for worker, pair in asked.items()}, known)
    except BaseException:
        lines.close()
        raise
    if done is None:
        lines.close()
        return None
    with _LOCK:
        known.free.append(lines)
    if time.monotonic() - known.shown > _PERIOD:  # the scheduler may end a cluster that it takes for idle
        known.shown = time.monotonic()
        client.submit(int, pure=False)
    return done if all(isinstance(found, list) for found in done) else None


def _known_of(client: Any) -> _Known:
    """What is known; of clients that have been closed nothing has to be."""
    for other, of in list(_CLIENTS.items()):
        of.free[:] = [lines for lines in of.free if not lines.is_stale]
        if other.status == "closed":
            _CLIENTS.pop(other, None)
    known = _CLIENTS.setdefault(client, _Known())
    if known.process != os.getpid():  # lines are the parent's
        known = _CLIENTS[client] = _Known()
    return known


def _written(parcel: Parcel, part: Part) -> bytes:
    """A call, apart what does not change from pass to pass."""
    from distributed.protocol.pickle import dumps  # which knows functions of __main__

    lasting = parcel.rows, parcel.share, parcel.starts, part.spans, tuple(block.key for block in part.blocks)
    return dumps((dumps(lasting), dumps(parcel.job)))  # type: ignore[no-any-return]


def _answers(lines: _Lines, messages: Mapping[str, bytes], known: _Known) -> list[Any] | None:
    """What the workers answer; None where a line is not to be had, or has been cut."""
    from distributed.protocol.pickle import loads

    try:
        if not lines.connect(messages):
            return None
    except Exception as error:  # noqa: BLE001 - of the cluster; tasks deal with it or name it
        _log.info("workers cannot be reached directly, which costs time: %s", error)
        known.failed = time.monotonic()
        return None
    try:
        for worker, message in messages.items():
            lines.send(worker, message)
        found = lines.received()
        return [loads(found[worker]) for worker in messages]
    except (OSError, EOFError) as error:
        _log.debug("a pass without tasks failed: %s", error)
        return None


# -- on the workers ------------------------------------------------------------------------------
async def _listen(asked: Collection[str], dask_worker: Any) -> tuple[int, bytes] | str:
    """Wait for one caller, who is answered as long as the line holds; the port, and the secret that it has to show."""
    if dask_worker.address not in asked:
        return "nobody has asked"
    from distributed.comm import get_address_host

    host, key = get_address_host(dask_worker.address), secrets.token_bytes(_KEY)
    context = dask_worker.security.get_listen_args("worker").get("ssl_context")
    try:
        door = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1)
    except OSError as error:  # its address is not one of its machine
        return str(error)
    seat = _Seat(dask_worker, asyncio.get_running_loop())
    threading.Thread(target=_serve, args=(door, key, context, seat), name="nlsq_nb-line", daemon=True).start()
    return door.getsockname()[1], key


def _serve(door: socket.socket, key: bytes, context: Any, seat: _Seat) -> None:
    """Answer calls until the caller hangs up."""
    with contextlib.suppress(OSError, EOFError):
        with door:
            door.settimeout(_WELCOME)
            plain, _ = door.accept()
        with _ready(plain, context, called=True) as line:
            if not hmac.compare_digest(_read(line, _KEY), key):
                return
            line.settimeout(_PERIOD)
            while True:
                _send(line, seat.answer(_received(line, seat.wait)))
    seat.rest()


class _Seat:
    """The place of a worker where a caller's parts are reduced, beside its threads for tasks."""

    def __init__(self, dask_worker: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._worker = dask_worker
        self._loop = loop
        self._lasting = b""  # what the open part was made of
        self._part: OpenPart | None = None
        self._silence = 0.0

    def answer(self, message: bytearray) -> bytes:
        """What came of the part that is called for; pickled None where it could not be done."""
        from distributed.protocol.pickle import dumps, loads

        self._silence = 0.0
        try:
            lasting, job = loads(message)
            return dumps(outcome(self._opened(lasting), loads(job), self._worker.address))  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001 - a task will meet and name it
            _log.debug("a part is left to a task: %s", error)
            return dumps(None)  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Nobody has called for a moment."""
        self.rest()
        self._silence += _PERIOD
        if self._silence >= _IDLE:
            raise EOFError

    def rest(self) -> None:
        """Let go of blocks, as no pass follows at once."""
        part, self._part = self._part, None
        if part is not None:
            part.close()

    def _opened(self, lasting: bytes) -> OpenPart:
        """The part, as the last pass left it if that was of the same."""
        if self._part is None or lasting != self._lasting:
            self.rest()
            from distributed.protocol.pickle import loads

            rows, share, starts, spans, keys = loads(lasting)
            blocks = asyncio.run_coroutine_threadsafe(self._held(keys), self._loop).result() if keys else ()
            self._part = opened(rows, share, starts, spans, blocks, self._worker.state.nthreads)
            self._lasting = lasting
        return self._part

    async def _held(self, keys: tuple[str, ...]) -> list[Any]:
        """The blocks of these keys; raises KeyError for one that is not here, or not yet."""
        return [self._worker.data[key] for key in keys]
