"""One open connection to a gateway and the streams on it. Any thread may write; one thread reads.

Frames leave by a plain `send` on the thread that made them, so an answer needs no hand-over to another thread; only
what the socket does not take at once waits for the link's thread. DATA and TOKENS are under the stream's credit.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from nanopod.model import frames

DATA_BYTES: Final = 256 << 10
"""Longer bodies are cut into frames of this size."""


class Stream:
    """One request or call of the gateway. `target` is whoever works on it."""

    __slots__ = ("_closing", "_connection", "_pending", "_waiters", "credit", "epoch", "id", "target")

    def __init__(self, connection: Connection, stream_id: int, epoch: int, credit: int) -> None:
        self._connection = connection
        self._pending: deque[tuple[bytes, int]] = deque()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._closing = False
        self.id = stream_id
        self.epoch = epoch
        self.credit = credit
        self.target: Any = None

    @property
    def connection(self) -> Connection:
        """The connection it belongs to."""
        return self._connection

    @property
    def is_open(self) -> bool:
        """True while the connection is up and the gateway knows the stream."""
        return self._connection.is_up and self._connection.streams.get(self.id) is self

    def post(self, frame: bytes, cost: int = 0, *, last: bool = False) -> None:
        """Queue whole frames, of which `cost` payload bytes need credit; `last` ends the stream.

        They leave with `Connection.flush`, or when the gateway gives credit.
        """
        connection = self._connection
        with connection.lock:
            if self._pending or (cost and self.credit <= 0):
                self._pending.append((frame, cost))
                self._closing = self._closing or last
                return
            self.credit -= cost
            connection.out.append(frame)
        if last:
            connection.streams.pop(self.id, None)

    def data(self, payload: bytes) -> None:
        """DATA frames of a body."""
        for at in range(0, len(payload), DATA_BYTES):
            part = payload[at : at + DATA_BYTES]
            self.post(frames.pack(frames.DATA, self.id, part, 0, self.epoch), len(part))

    def reset(self, code: int, text: str = "") -> None:
        """End the stream with an error, at once; what still waits for credit is dropped."""
        connection = self._connection
        with connection.lock:
            self._pending.clear()
            if connection.streams.pop(self.id, None) is not self:
                return
            connection.out.append(frames.pack_reset(self.id, code, text, self.epoch))
        connection.flush()
        self._let_go()

    def give(self, credit: int) -> bool:
        """WINDOW of the gateway: queue what waited for it; whether there was any. Called by the link's thread."""
        connection = self._connection
        if not self._pending:
            with connection.lock:
                self.credit += credit
                waited = bool(self._pending)
            if not waited:
                return False
            credit = 0
        with connection.lock:
            self.credit += credit
            pending = self._pending
            while pending and (self.credit > 0 or not pending[0][1]):
                frame, cost = pending.popleft()
                self.credit -= cost
                connection.out.append(frame)
            empty = not pending
        if empty:
            if self._closing:
                connection.streams.pop(self.id, None)
            self._let_go()
        return True

    @property
    def is_waiting(self) -> bool:
        """True while something waits for credit."""
        return bool(self._pending)

    async def drained(self) -> None:
        """Until nothing waits for credit, or the stream is over."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._connection.lock:
            if not self._pending or not self._connection.is_up:
                return
            self._waiters.append((loop, waiter))
        self._connection.flush()
        await waiter

    def _let_go(self) -> None:
        with self._connection.lock:
            waiters, self._waiters = self._waiters, []
        for loop, waiter in waiters:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, waiter)

    def abandon(self) -> None:
        """The connection is gone."""
        with self._connection.lock:
            self._pending.clear()
        self._let_go()


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Connection:
    """A socket after its 101. `wake` makes the reading thread look at the connection again."""

    def __init__(self, sock: socket.socket, wake: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.out: list[bytes] = []
        """Frames to be sent by the next `flush`; under `lock`."""
        self.streams: dict[int, Stream] = {}
        self.window_bytes = 262_144
        self.is_up = True
        self._sock = sock
        self._wake = wake
        self._backlog: deque[memoryview] = deque()

    @property
    def has_backlog(self) -> bool:
        """True while the socket did not take everything."""
        return bool(self._backlog)

    def flush(self) -> None:
        """Send what was queued. Never blocks and never raises: a broken socket is noticed by its reader."""
        if not self.out:
            return
        with self.lock:
            out, self.out = self.out, []
            if not out or not self.is_up:
                return
            data = out[0] if len(out) == 1 else b"".join(out)
            if self._backlog:
                self._backlog.append(memoryview(data))
                return
            sent = self._send(data)
            if sent == len(data):
                return
            self._backlog.append(memoryview(data)[sent:])
        self._wake()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def push(self) -> None:
        """The socket takes more: send from the backlog."""
        with self.lock:
            while self._backlog:
                data = self._backlog[0]
                sent = self._send(data)
                if sent < len(data):
                    self._backlog[0] = data[sent:]
                    return
                self._backlog.popleft()

    def post(self, frame: bytes) -> None:
        """Queue a frame of the link itself."""
        with self.lock:
            self.out.append(frame)

    def lost(self) -> list[Stream]:
        """The socket is gone; the streams that were open."""
        with self.lock:
            self.is_up = False
            self.out.clear()
            self._backlog.clear()
            streams = list(self.streams.values())
            self.streams.clear()
        for stream in streams:
            stream.abandon()
        self._sock.close()
        return streams
