"""Calls over one websocket: many at once, each finished exactly once although connections come and go.

One link per (process, event loop, server). A call's frames are kept until its answer is here, and sent again under the
same call id after a reconnection: the gateway answers with the state or result of the call that it already knows, so
nothing starts twice. One coarse timer does everything that is about time; a call costs no timer and no task.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from msgspec.structs import replace

from nanopod import __version__
from nanopod.client import printing
from nanopod.client.connection import Address, Connection, mask_fast, unreachable
from nanopod.client.pending import CREDIT_STEP, OnState, Pending, PendingItems, PendingSession, error_of
from nanopod.model import calls
from nanopod.model.errors import CallTimeout, Invalid, NanopodError, QueueTimeout, Unauthenticated

TICK_S: Final = 0.25
ACKS_MAX: Final = 256
CONNECT_S_MAX: Final = 10.0
"""One attempt, handshake and welcome included."""
FIRST_CONNECT_S_MAX: Final = 15.0
RECONNECT_S_MAX: Final = 120.0
"""How long calls in flight wait for a gateway that went away."""
REFUSED_S_MAX: Final = 3.0
"""How long a key that was good before may be refused after a reconnection."""
DEADLINE_SLACK_S: Final = 30.0
"""The gateway keeps the deadlines of calls; a client that hears nothing gives up this much later."""
CANCELLED_MAX: Final = 4096
BACKOFF_BASE_S: Final = 0.1
BACKOFF_CAP_S: Final = 5.0


def backoff_s(attempt: int) -> float:
    """How long to wait before try `attempt` + 2: uniform up to a doubling limit, never quite nothing."""
    return 0.01 + random.uniform(0.0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempt, 16)))


class Link:
    """Calls to the server at `url`, made on the event loop that is running now."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._address = Address(url)
        self._key = key
        self._loop = asyncio.get_running_loop()
        self._client_id = os.urandom(16)
        self._prefix = os.urandom(10)
        self._count = itertools.count(1)
        self._calls: dict[bytes, Pending] = {}
        self._cancelled: dict[bytes, None] = {}
        self._acks: list[bytes] = []
        self._batch: list[bytes] = []
        self._parts: deque[Iterator[bytes]] = deque()
        self._connection: Connection | None = None
        self._open = False
        self._ever_open = False
        self._task: asyncio.Task[None] | None = None
        self._settled: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_fast = False
        self._ping_s = 15.0
        self._pinged_at = self._checked_at = self._loop.time()
        self._payload_bytes_max = calls.INLINE_BYTES_MAX
        self.gateway_id = b""
        self.prints = printing.is_on()

    @property
    def is_open(self) -> bool:
        """True while calls go out at once."""
        return self._open

    @property
    def in_flight(self) -> int:
        """Calls without an answer."""
        return len(self._calls)

    def new_id(self) -> bytes:
        """A call id that no other client, and no other call of this one, has."""
        return self._prefix + next(self._count).to_bytes(6, "big")

    async def call(
        self,
        header: calls.Call,
        payload: bytes,
        *,
        module: str = "",
        on_state: OnState | None = None,
        patience_s: float = 0.0,
    ) -> bytes:
        """Run a remote function; the payload of its value. Raises what it raised, and the errors of the link.

        Cancelling the awaiting task cancels the call. For `patience_s` an unknown endpoint is asked for again.
        """
        pending = Pending(header, self._frames(header, payload), self._deadline(header), module)
        if patience_s > 0.0:
            pending.patient_until = self._loop.time() + patience_s
        pending.on_state = on_state
        pending.future = self._loop.create_future()
        self._start(pending)
        try:
            return await pending.future
        except asyncio.CancelledError:
            self.cancel(pending)
            raise

    def open_items(
        self, header: calls.Call, payload: bytes, *, module: str = "", patience_s: float = 0.0
    ) -> PendingItems:
        """Run a remote generator; take its items from the result. `cancel` it unless it came to its end."""
        pending = PendingItems(header, self._frames(header, payload), self._deadline(header), module)
        if patience_s > 0.0:
            pending.patient_until = self._loop.time() + patience_s
        pending.give_credit = self._give_credit
        self._start(pending)
        return pending

    async def session(
        self, header: calls.SessionOpen | calls.SessionClose, wait_s: float, payload: bytes = b""
    ) -> calls.SessionState:
        """Open or close a session. Raises the error that the gateway answers; cancelling gives the session up."""
        pending = PendingSession(header, self._loop.time() + wait_s + DEADLINE_SLACK_S, payload)
        self._start(pending)
        try:
            return await pending.opened
        except asyncio.CancelledError:
            self.cancel(pending)
            raise

    def prepared(self, header: calls.Call, payload: bytes) -> tuple[list[bytes], float]:
        """(frames, deadline on the loop's clock) of a call, for `begin`; in any thread. Raises `Invalid`."""
        return self._frames(header, payload), self._deadline(header)

    def begin(self, pending: Pending) -> None:
        """Send a call whose answer goes to `pending`; on the loop."""
        self._start(pending)

    def cancel(self, pending: Pending) -> None:
        """Withdraw a call; nothing happens when its answer is here already."""
        if self._calls.pop(pending.id, None) is None:
            return
        # Kept until the gateway has answered, so that a cancellation also survives a lost connection.
        self._cancelled[pending.id] = None
        while len(self._cancelled) > CANCELLED_MAX:
            del self._cancelled[next(iter(self._cancelled))]
        self._write(calls.encode(calls.Cancel(pending.id, reason="cancelled by the caller")))

    def close(self) -> None:
        """Drop the connection; calls in flight fail."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            if self._open:
                self._send_acks()
                self._flush()
            self._connection.close(reason="the client ends")
        self._connection, self._open = None, False
        self._fail_all(NanopodError("the link was closed by this program"))

    # --- calls ---

    def _frames(self, header: calls.Call, payload: bytes) -> list[bytes]:
        if len(payload) <= calls.PART_BYTES:
            return [calls.encode(header, payload)]
        if len(payload) > self._payload_bytes_max:
            raise Invalid(
                f"the arguments of {header.function} are {len(payload) >> 20} MiB; at most "
                f"{self._payload_bytes_max >> 20} MiB travel with a call: pass a path or URL, or use image.copy()",
                field="args",
            )
        mask_fast()
        return calls.split(replace(header, size=len(payload)), payload)

    def _deadline(self, header: calls.Call) -> float:
        return self._loop.time() + header.timeout_s + header.queue_timeout_s + DEADLINE_SLACK_S

    def _start(self, pending: Pending) -> None:
        self._calls[pending.id] = pending
        if self._open:
            self._transmit(pending)
            if not self._is_fast:
                self._arm(TICK_S)
        elif self._task is None:
            self._task = self._loop.create_task(self._connect())

    def _transmit(self, pending: Pending) -> None:
        if len(pending.frames) == 1:
            self._write(pending.frames[0])
            return
        # Parts of large payloads take turns with each other, and small calls overtake them.
        self._parts.append(self._unsent(pending))
        if len(self._parts) == 1:
            self._loop.call_soon(self._pump)

    def _again(self, pending: Pending) -> None:
        if self._open and pending.id in self._calls:
            self._transmit(pending)

    def _unsent(self, pending: Pending) -> Iterator[bytes]:
        for frame in pending.frames:
            if pending.id not in self._calls:
                return
            yield frame

    def _write(self, frame: bytes) -> None:
        """Send a frame: at once when it is alone, else together with the others of this turn of the loop."""
        if not self._open or self._connection is None:
            return
        if not self._batch and len(self._calls) < 2:
            self._connection.send(frame)
            return
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(frame)

    def _flush(self) -> None:
        if self._batch and self._connection is not None:
            batch, self._batch = self._batch, []
            self._connection.send(*batch)

    def _pump(self) -> None:
        """Send one part of the large payload whose turn it is."""
        if not self._open or self._connection is None or self._connection.is_full or not self._parts:
            return
        self._flush()
        frames = self._parts.popleft()
        frame = next(frames, None)
        if frame is not None:
            self._connection.send(frame)
            self._parts.append(frames)
        if self._parts:
            self._loop.call_soon(self._pump)

    def _give_credit(self, call_id: bytes, items: int) -> None:
        self._write(calls.encode(calls.Credit(call_id, items=items)))

    # --- what the connection tells ---

    def opened(self) -> None:
        """The websocket is open: introduce this client."""
        if self._connection is not None:
            version = ".".join(map(str, sys.version_info[:3]))
            self._connection.send(calls.encode(calls.Hello(self._client_id, python=version, sdk=__version__)))

    def received(self, header: calls.Header, payload: bytes) -> None:
        """A frame of the gateway."""
        if type(header) is calls.Welcome:
            self._welcomed(header)
            return
        pending = self._calls.get(header.id)
        if pending is None:
            if type(header) in (calls.Result, calls.Error, calls.End):
                # The answer of a call that was cancelled, or was answered before: let the gateway forget it.
                self._cancelled.pop(header.id, None)
                self._ack(header.id)
            return
        if type(header) is calls.Part:
            done = pending.add(payload)
            if done is None:
                return
            header, payload = done
        elif isinstance(header, calls.Result | calls.Error | calls.Item) and not pending.whole(header, payload):
            return
        if type(header) is calls.Result:
            self._finished(pending)
            pending.succeed(payload)
        elif type(header) is calls.Item:
            pending.started = True
            pending.item(header, payload)
        elif type(header) is calls.Error:
            if header.code == "not_found" and header.started is False and self._loop.time() < pending.patient_until:
                self._loop.call_later(random.uniform(0.03, 0.06), self._again, pending)
                return
            self._finished(pending)
            pending.fail(error_of(header, payload, pending.module))
        elif type(header) is calls.End:
            self._finished(pending)
            pending.end()
        elif type(header) is calls.State:
            pending.started = pending.started or header.state == "started"
            if header.attempt > 1:
                # The time limits hold for each try; how many there are is the gateway's to count.
                pending.deadline = max(pending.deadline, self._loop.time() + pending.limit_s)
            if pending.on_state is not None:
                pending.on_state(header)
        elif type(header) is calls.SessionState:
            self._calls.pop(pending.id, None)
            pending.session(header)
        elif type(header) is calls.Log and self.prints:
            printing.show(header, pending.function, several=len(self._calls) > 1)

    def lost(self, error: BaseException | None) -> None:
        """The connection is gone: dial again while anybody waits."""
        self._connection, self._open = None, False
        self._batch.clear()
        self._parts.clear()
        for pending in self._calls.values():
            pending.forget_parts()
        if self._settled is not None and not self._settled.done():
            self._settled.set_exception(error or ConnectionError("the gateway closed the connection"))
        elif isinstance(error, NanopodError):
            self._fail_all(error)
        elif (self._calls or self._cancelled) and self._task is None and not self._loop.is_closed():
            self._task = self._loop.create_task(self._connect())

    def writable(self) -> None:
        """There is room to send again."""
        self._pump()

    def _welcomed(self, welcome: calls.Welcome) -> None:
        self._open = self._ever_open = True
        self.gateway_id = welcome.id
        self._ping_s = max(0.5, welcome.ping_s)
        self._payload_bytes_max = welcome.inline_bytes_max
        self._pinged_at = self._loop.time()
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        for pending in list(self._calls.values()):
            self._transmit(pending)
            if isinstance(pending, PendingItems) and pending.taken:
                # Credit may have been lost with the old connection; a little too much of it does no harm.
                self._give_credit(pending.id, CREDIT_STEP)
        for call_id in self._cancelled:
            self._write(calls.encode(calls.Cancel(call_id, reason="cancelled by the caller")))
        self._arm(TICK_S)

    def _finished(self, pending: Pending) -> None:
        self._calls.pop(pending.id, None)
        pending.frames = []
        self._ack(pending.id)

    def _ack(self, call_id: bytes) -> None:
        self._acks.append(call_id)
        if len(self._acks) >= ACKS_MAX:
            self._send_acks()

    def _send_acks(self) -> None:
        if self._acks and self._open:
            acks, self._acks = self._acks, []
            self._write(calls.encode(calls.Ack(b"", ids=acks)))
        elif len(self._acks) > ACKS_MAX * 16:
            self._acks.clear()  # nobody to tell for long: the gateway forgets old results by itself

    # --- time ---

    def _arm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_fast = delay_s <= TICK_S
        self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        busy = bool(self._calls or self._acks)
        self._send_acks()
        if self._calls and now - self._checked_at >= 1.0:
            self._checked_at = now
            self._check_deadlines(now)
        if self._open and self._connection is not None and now - self._pinged_at >= self._ping_s:
            if now - self._connection.heard_at > 3 * self._ping_s:
                self._connection.abort(ConnectionError("the gateway answers no ping"))
            else:
                self._pinged_at = now
                self._connection.ping()
        if self._open or self._calls:
            self._arm(TICK_S if busy else self._ping_s)
        else:
            self._timer, self._is_fast = None, False

    def _check_deadlines(self, now: float) -> None:
        for pending in [pending for pending in self._calls.values() if now >= pending.deadline]:
            self.cancel(pending)
            if pending.started:
                pending.fail(CallTimeout("the call did not end within its timeout, and the gateway says nothing"))
            else:
                pending.fail(QueueTimeout("the call was not started within its queue timeout"))

    # --- connecting ---

    async def _connect(self) -> None:
        try:
            await self._dial_until_open()
        finally:
            self._task = None
        if not self._open and self._calls:
            # A call came in the very moment in which the dialling gave up: it deserves its own attempts.
            self._task = self._loop.create_task(self._connect())

    async def _dial_until_open(self) -> None:
        begin = self._loop.time()
        limit_s = RECONNECT_S_MAX if self._ever_open else FIRST_CONNECT_S_MAX
        for attempt in itertools.count():
            try:
                await self._dial()
                return
            except NanopodError as error:
                # A gateway that just started may not know any key yet: one that knew this one is asked again.
                known = self._ever_open and isinstance(error, Unauthenticated)
                if not known or self._loop.time() - begin > REFUSED_S_MAX:
                    self._fail_all(error)
                    return
                self._drop()
            except (TimeoutError, OSError) as error:
                self._drop()
                waited_s = self._loop.time() - begin
                if waited_s >= limit_s or not (self._calls or self._cancelled):
                    self._cancelled.clear()
                    self._fail_all(unreachable(self.url, error, waited_s))
                    return
            await asyncio.sleep(backoff_s(attempt))
            self._check_deadlines(self._loop.time())

    async def _dial(self) -> None:
        connection = Connection(self, self._address, self._key)
        self._settled = self._loop.create_future()
        options: dict[str, Any] = {}
        if self._address.secure:
            import ssl

            options["ssl"] = ssl.create_default_context()
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                self._connection = connection
                await self._loop.create_connection(
                    lambda: connection, self._address.host, self._address.port, **options
                )
                await self._settled
        finally:
            settled, self._settled = self._settled, None
            if settled is not None and settled.done() and not settled.cancelled():
                settled.exception()  # it was raised above, or nobody is left to hear it

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._open = None, False

    def _fail_all(self, error: NanopodError) -> None:
        waiting, self._calls = self._calls, {}
        for pending in waiting.values():
            pending.fail(error if len(waiting) == 1 else _copy(error))


def _copy(error: NanopodError) -> NanopodError:
    """One exception object for each of several callers: a shared one would collect all their tracebacks."""
    twin = error.__class__.__new__(error.__class__, *error.args)
    twin.__dict__.update(error.__dict__)
    twin.args = error.args
    return twin


_links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], Link]] = weakref.WeakKeyDictionary()


def link_to(url: str, key: str) -> Link:
    """The link of the running loop to a server; made when there is none yet."""
    loop = asyncio.get_running_loop()
    here = _links.get(loop)
    if here is None:
        here = _links[loop] = {}
    link = here.get((url, key))
    if link is None:
        link = here[url, key] = Link(url, key)
    return link


# A child process must not share its parent's sockets and call ids.
os.register_at_fork(after_in_child=_links.clear)
