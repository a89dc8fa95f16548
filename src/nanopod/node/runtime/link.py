"""The worker's end of its link to a gateway: a thread that dials, reads, answers pings and reports the state.

It never runs user code and never waits for it, so a function that blocks the event loop does not look like death. What
arrives goes to the event loop in batches: one wake-up for everything that came with one read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any, Final, Protocol

import msgspec

from nanopod.model import frames
from nanopod.node.runtime.connection import Connection, Stream

CONNECT_S_MAX: Final = 5.0
WELCOME_S_MAX: Final = 10.0
REDIAL_S_MIN: Final = 0.1
REDIAL_S_MAX: Final = 5.0
REDIAL_S_MAX_HELD: Final = 0.5
"""While calls are unresolved: the gateway waits 5 s for them after a break."""
MISSES_MAX: Final = 3
STATE_S: Final = 0.1
GOODBYE: Final = b"goodbye!"
"""Payload of the last PING."""
GOODBYE_S_MAX: Final = 1.0
READ_BYTES: Final = 256 << 10
HEAD_BYTES_MAX: Final = 16_384

_U32: Final = Struct(">I")
_json: Final = msgspec.json.Encoder().encode
_log: Final = logging.getLogger(__name__)


class Handler(Protocol):
    """Whoever answers. All methods are called on the link's thread and must not block."""

    def hello(self) -> dict[str, Any]:
        """Fields of HELLO."""
        ...

    def on_open(self, stream: Stream, payload: bytes, *, end: bool) -> None:
        """A new request or call; `end`: its body is complete."""
        ...

    def on_data(self, stream: Stream, payload: bytes, *, end: bool) -> None:
        """More of a body, or a frame for a running call."""
        ...

    def on_reset(self, stream: Stream, code: int, text: str) -> None:
        """The gateway ended a stream."""
        ...

    def on_release(self, call_ids: list[bytes]) -> None:
        """Results that need not be kept."""
        ...

    def on_lost(self, streams: list[Stream]) -> None:
        """The connection broke with these streams open."""
        ...

    def on_fenced(self, reason: str) -> None:
        """A newer epoch of this instance exists: end at once."""
        ...

    def holds_calls(self) -> bool:
        """True while a gateway should hear soon about calls that are kept here."""
        ...


class Welcome(msgspec.Struct, frozen=True):
    """The gateway's answer to HELLO."""

    protocol: int
    gateway_id: str = ""
    window_bytes: int = 262_144
    ping_s: float = 2.0


_decode_welcome: Final = msgspec.json.Decoder(Welcome).decode


class Handoff:
    """Work for the event loop from other threads, in order; one wake-up per batch."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._posted = False
        self.batch_done: Callable[[], None] = lambda: None
        """Called on the loop after each batch."""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work goes to this loop from now on, whatever waited included."""
        self._loop = loop
        self.post()

    def put(self, call: Callable[..., None], *args: Any) -> None:
        """Queue `call(*args)`; it runs after the next `post`."""
        self._inbox.append((call, args))

    def post(self) -> None:
        """Wake the loop if there is work that it does not know of."""
        if self._inbox and not self._posted and self._loop is not None:
            self._posted = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._posted = False
        inbox = self._inbox
        while inbox:
            call, args = inbox.popleft()
            try:
                call(*args)
            except Exception:
                _log.exception("a frame of the gateway could not be handled")
        self.batch_done()


class Identity(msgspec.Struct, frozen=True):
    """Who dials, and where to."""

    instance_id: str
    epoch: int
    token: str
    gateways: tuple[str, ...]


class Link(threading.Thread):
    """Keeps one connection to a gateway until `close`."""

    def __init__(self, identity: Identity, handler: Handler, status_fd: int | None = None) -> None:
        super().__init__(name="nanopod-link", daemon=True)
        self.handoff = Handoff()
        self.connection: Connection | None = None
        """The open connection, after WELCOME."""
        self._identity = identity
        self._handler = handler
        self._status_fd = status_fd
        self._state: dict[str, Any] = {}
        self._state_sent_at = 0.0
        self._state_dirty = False
        self._closing = False
        self._answered = False
        """The gateway has heard that no more is taken."""
        self._ping_s = 2.0
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        if status_fd is not None:
            os.set_blocking(status_fd, False)

    # --- for other threads ---

    def set_state(self, **state: Any) -> None:
        """What STATE says from now on; sent at once unless one was sent within the last 0.1 s."""
        self._state = {**self._state, **state}
        self._state_dirty = True
        self.wake()

    def tell_shim(self, **facts: Any) -> None:
        """A line for the shim: `linked`, `phase`."""
        if self._status_fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._status_fd, _json(facts) + b"\n")

    def wake(self) -> None:
        """Make the thread look around."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def close(self, wait_s_max: float) -> None:
        """Send what is queued, close, end the thread; gives up after `wait_s_max` seconds."""
        self._closing = True
        self.wake()
        if self.is_alive():
            self.join(wait_s_max)

    # --- dialling ---

    def run(self) -> None:
        """Dial for ever."""
        attempt = 0
        while not self._closing:
            opened = time.monotonic()
            sock, kept = self._dial()
            if sock is not None:
                try:
                    self._serve(sock, kept)
                except Exception:
                    _log.exception("the link failed")
                    sock.close()
                attempt = 0 if time.monotonic() - opened > 1.0 else attempt + 1
            else:
                attempt += 1
            if not self._closing:
                cap_s = REDIAL_S_MAX_HELD if self._handler.holds_calls() else REDIAL_S_MAX
                limit_s = min(cap_s, REDIAL_S_MIN * 2 ** min(attempt, 10))
                self._sleep(random.uniform(REDIAL_S_MIN / 4, limit_s))

    def _sleep(self, wait_s: float) -> None:
        limit = time.monotonic() + wait_s
        while not self._closing and (left := limit - time.monotonic()) > 0:
            if select.select([self._wake_read], [], [], left)[0]:
                self._drain_wake()

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _dial(self) -> tuple[socket.socket | None, bytes]:
        """(socket after 101, bytes that followed it), or None when no gateway took us."""
        for address in self._identity.gateways:
            try:
                sock = _connect(address)
            except OSError:
                continue
            try:
                status, rest = self._upgrade(sock, address)
            except OSError:
                sock.close()
                continue
            if status == 101:
                sock.setblocking(False)
                return sock, rest
            sock.close()
            if status == 410:
                self._closing = True
                self._handler.on_fenced("the gateway knows a newer epoch of this instance")
                return None, b""
        return None, b""

    def _upgrade(self, sock: socket.socket, address: str) -> tuple[int, bytes]:
        identity = self._identity
        host = address.partition(":")[2] if address.startswith("tcp:") else "gateway"
        sock.sendall(
            f"GET /v1/worker-link HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: {frames.UPGRADE}\r\n"
            f"Authorization: Bearer {identity.token}\r\nX-Nanopod-Instance: {identity.instance_id}\r\n"
            f"X-Nanopod-Epoch: {identity.epoch}\r\n\r\n".encode()
        )
        data = b""
        limit = time.monotonic() + CONNECT_S_MAX
        while b"\r\n\r\n" not in data:
            more = sock.recv(HEAD_BYTES_MAX)
            data += more
            if not more or len(data) > HEAD_BYTES_MAX or time.monotonic() > limit:
                raise OSError("no answer")
        head, _, rest = data.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), rest

    # --- one connection ---

    def _serve(self, sock: socket.socket, kept: bytes) -> None:
        connection = Connection(sock, self.wake)
        self._answered = False
        connection.post(frames.pack(frames.HELLO, 0, _json(self._handler.hello())))
        connection.flush()
        reason = "closed by the gateway"
        try:
            reason = self._read(connection, sock, kept)
        except (frames.ProtocolError, msgspec.MsgspecError, OSError) as error:
            reason = str(error)
        finally:
            self.connection = None
            if self._closing:
                _linger(sock)
            streams = connection.lost()
            self.tell_shim(linked=False)
            if not self._closing:
                _log.info("link lost: %s", reason)
            self._handler.on_lost(streams)
            self.handoff.post()

    def _read(self, connection: Connection, sock: socket.socket, kept: bytes) -> str:
        """Read until the connection ends; why it did."""
        reader = frames.FrameReader()
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        watching = select.POLLIN
        if kept:
            self._take(connection, reader.feed(kept))
        now = time.monotonic()
        misses, ping_at, welcome_by = 0, now + self._ping_s, now + WELCOME_S_MAX
        said_at = 0.0
        while True:
            if self._closing and not connection.has_backlog:
                if not said_at:
                    said_at = self._say_goodbye(connection)
                elif self._answered or self.connection is None or time.monotonic() > said_at + GOODBYE_S_MAX:
                    return "closed"
            wanted = select.POLLIN | (select.POLLOUT if connection.has_backlog else 0)
            if wanted != watching:
                poller.modify(sock, wanted)
                watching = wanted
            due = ping_at if not self._state_dirty else min(ping_at, self._state_sent_at + STATE_S)
            if said_at:
                due = min(due, said_at + GOODBYE_S_MAX)
            for fd, event in poller.poll(max(0.0, due - time.monotonic()) * 1000 + 1):
                if fd == self._wake_read:
                    self._drain_wake()
                    continue
                if event & select.POLLOUT:
                    connection.push()
                if event & ~select.POLLOUT:
                    data = _receive(sock)
                    if data is None:
                        continue
                    if not data:
                        return "closed by the gateway"
                    misses = 0
                    self._take(connection, reader.feed(data))
            now = time.monotonic()
            if self.connection is None and now > welcome_by:
                return f"no WELCOME within {WELCOME_S_MAX:.0f} s"
            if now >= ping_at:
                if misses >= MISSES_MAX:
                    return f"silent for {MISSES_MAX * self._ping_s:.0f} s"
                misses += 1
                ping_at = now + self._ping_s
                connection.post(frames.pack(frames.PING, 0, time.monotonic_ns().to_bytes(8, "big")))
                connection.flush()
            self._send_state(connection, now)

    def _say_goodbye(self, connection: Connection) -> float:
        """Tell the gateway that no more is taken, and ask for an answer; when that was.

        What it sent before it heard of that comes before its answer and is handed back: a call that was left in the
        socket might have started for all the gateway knows.
        """
        connection.post(frames.pack(frames.GOAWAY, 0, b""))
        connection.post(frames.pack(frames.PING, 0, GOODBYE))
        connection.flush()
        return time.monotonic()

    def _send_state(self, connection: Connection, now: float) -> None:
        if self._state_dirty and self.connection is not None and now >= self._state_sent_at + STATE_S:
            self._state_dirty = False
            self._state_sent_at = now
            connection.post(frames.pack(frames.STATE, 0, _json(self._state)))
            connection.flush()

    def _take(self, connection: Connection, arrived: list[frames.Frame]) -> None:
        """One read's worth of frames, then at most one wake-up of the event loop."""
        handler = self._handler
        streams = connection.streams
        # Only what this thread queued is sent here: an answer that the loop is putting together leaves as a whole.
        own = False
        for kind, stream_id, flags, epoch, payload in arrived:
            if kind == frames.OPEN:
                if self._closing:
                    connection.post(frames.pack_reset(stream_id, frames.REFUSED, "draining", epoch))
                    own = True
                    continue
                stream = Stream(connection, stream_id, epoch, connection.window_bytes)
                streams[stream_id] = stream
                handler.on_open(stream, payload, end=bool(flags & frames.FLAG_END))
            elif stream_id == 0:
                self._link_frame(connection, kind, flags, payload)
                own = own or kind == frames.PING
            else:
                known = streams.get(stream_id)
                if known is None:
                    continue  # it ended here while this was on its way
                if kind == frames.DATA:
                    handler.on_data(known, payload, end=bool(flags & frames.FLAG_END))
                elif kind == frames.WINDOW:
                    own = known.give(_U32.unpack(payload)[0]) or own
                elif kind == frames.RESET:
                    streams.pop(stream_id, None)
                    known.abandon()
                    handler.on_reset(known, *frames.unpack_reset(payload))
                elif kind == frames.END:
                    handler.on_data(known, b"", end=True)
                elif not flags & frames.FLAG_OPTIONAL:
                    raise frames.ProtocolError(f"frame {kind} does not belong on a stream")
        if own:
            connection.flush()
        self.handoff.post()

    def _link_frame(self, connection: Connection, kind: int, flags: int, payload: bytes) -> None:
        if kind == frames.PING:
            connection.post(frames.pack(frames.PONG, 0, payload[:8]))
        elif kind == frames.WELCOME:
            welcome = _decode_welcome(payload)
            if welcome.protocol != frames.PROTOCOL:
                raise frames.ProtocolError(f"the gateway speaks protocol {welcome.protocol}, not {frames.PROTOCOL}")
            connection.window_bytes = welcome.window_bytes
            self._ping_s = max(0.1, welcome.ping_s)
            self.connection = connection
            if self._state:
                self._state_dirty = True
            self.tell_shim(linked=True)
        elif kind == frames.RELEASE:
            self._handler.on_release([payload[at : at + 16] for at in range(0, len(payload) - 15, 16)])
        elif kind == frames.PONG:
            self._answered = self._answered or payload == GOODBYE
        elif kind not in (frames.WINDOW, frames.GOAWAY) and not flags & frames.FLAG_OPTIONAL:
            raise frames.ProtocolError(f"frame {kind} does not belong on stream 0")


def _connect(address: str) -> socket.socket:
    """A connected socket for `unix:/path` or `tcp:host:port`."""
    kind, _, where = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_S_MAX)
        try:
            sock.connect(where)
        except OSError:
            sock.close()
            raise
        return sock
    host, _, port = where.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), CONNECT_S_MAX)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _receive(sock: socket.socket) -> bytes | None:
    """What is there; None: nothing, empty: the end."""
    try:
        return sock.recv(READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _linger(sock: socket.socket) -> None:
    """Say that we are done and wait a moment for the other side, so that nothing sent is lost to a reset."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(0.5)
        limit = time.monotonic() + 1.0
        while time.monotonic() < limit and sock.recv(READ_BYTES):
            pass
