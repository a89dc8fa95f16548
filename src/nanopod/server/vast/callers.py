"""How the server itself calls remote functions: a link per workspace to the gateway, calls sent again if it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from nanopod.client.pending import Pending, error_of
from nanopod.control.tables import internal_key
from nanopod.model import calls
from nanopod.model.errors import NanopodError, NoCapacity, RemoteError
from nanopod.server.calls.link import WorkspaceLink

OPEN_CALLS_MAX: Final = 10_000
SLACK_S: Final = 30.0
"""The gateway keeps the deadlines of calls; one that hears nothing gives up this much later."""


class _Line:
    """The link of one workspace and the calls that wait on it."""

    def __init__(self, socket: Path, key: str) -> None:
        self.waiting: dict[bytes, Pending] = {}
        self.sessions: dict[bytes, tuple[bytes, asyncio.Future[calls.SessionState]]] = {}
        self.link = WorkspaceLink(socket, key, self._opened, self._received)
        self.task: asyncio.Task[None] | None = None

    def use(self) -> None:
        """Somebody needs the link: have it dialled if it is not."""
        self.link.idle_since = None
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self.link.run())

    def leave(self) -> None:
        """A call ended; a link without any closes after a while."""
        if not self.waiting and not self.sessions:
            self.link.idle_since = asyncio.get_running_loop().time()

    def _opened(self) -> None:
        for pending in self.waiting.values():
            for frame in pending.frames:
                self.link.send(frame)
        for frame, _ in self.sessions.values():
            self.link.send(frame)

    def _received(self, header: calls.Header, payload: bytes) -> None:
        if isinstance(header, calls.SessionState):
            asked = self.sessions.pop(header.id, None)
            if asked is not None and not asked[1].done():
                asked[1].set_result(header)
            return
        if isinstance(header, calls.Error) and header.id in self.sessions:
            _, answer = self.sessions.pop(header.id)
            if not answer.done():
                answer.set_exception(error_of(header, payload, ""))
            return
        pending = self.waiting.get(header.id)
        if pending is None:
            return
        if isinstance(header, calls.Part):
            done = pending.add(payload)
            if done is not None:
                self._end(pending, *done)
        elif isinstance(header, calls.Result | calls.Error):
            if pending.whole(header, payload):
                self._end(pending, header, payload)
        elif isinstance(header, calls.Item | calls.End):
            pending.fail(RemoteError("the remote function sent items where one value was wanted"))

    def _end(self, pending: Pending, header: calls.Header, payload: bytes) -> None:
        if isinstance(header, calls.Error):
            pending.fail(error_of(header, payload, ""))
        else:
            pending.succeed(payload)
        self.link.send(calls.encode(calls.Ack(b"", [pending.id])))


class LinkCallers:
    """Calls over the gateway's socket, with the key that gateways know as the server's own for a workspace."""

    def __init__(self, socket: Path, pepper: bytes) -> None:
        self._socket = socket
        self._pepper = pepper
        self._lines: dict[str, _Line] = {}

    def _line(self, workspace_id: str) -> _Line:
        line = self._lines.get(workspace_id)
        if line is None:
            line = self._lines[workspace_id] = _Line(self._socket, internal_key(self._pepper, workspace_id))
        if len(line.waiting) >= OPEN_CALLS_MAX:
            raise NoCapacity(f"{OPEN_CALLS_MAX} calls of this workspace are open; try again", retry_after_s=1.0)
        line.use()
        return line

    async def call(self, workspace_id: str, header: calls.Call, payload: bytes) -> bytes:
        """Run a call; the payload of its value. Raises what it raised, and `NoCapacity` when no gateway answers."""
        line = self._line(workspace_id)
        loop = asyncio.get_running_loop()
        limit_s = header.timeout_s + header.queue_timeout_s + SLACK_S
        sent = calls.split(replace(header, size=len(payload)), payload)
        pending = Pending(header, sent, loop.time() + limit_s, "")
        pending.future = loop.create_future()
        line.waiting[header.id] = pending
        for frame in sent:
            line.link.send(frame)
        try:
            async with asyncio.timeout(limit_s):
                return await pending.future
        except TimeoutError:
            if pending.future.done() and not pending.future.cancelled():
                raise
            raise NoCapacity(f"no gateway answered within {limit_s:.0f} s", retry_after_s=5.0) from None
        except asyncio.CancelledError:
            line.link.send(calls.encode(calls.Cancel(header.id, "the caller left")))
            raise
        finally:
            line.waiting.pop(header.id, None)
            line.leave()

    async def open_session(self, workspace_id: str, endpoint: str, lifetime_s: float) -> str:
        """Pin a session to a worker; its id."""
        opened = await self._ask(workspace_id, calls.SessionOpen(os.urandom(16), endpoint, lifetime_s))
        return opened.session

    async def close_session(self, workspace_id: str, session: str) -> None:
        """End a session; one that is over is no error."""
        with contextlib.suppress(NanopodError, TimeoutError):
            await self._ask(workspace_id, calls.SessionClose(os.urandom(16), session))

    async def _ask(self, workspace_id: str, header: calls.SessionOpen | calls.SessionClose) -> calls.SessionState:
        line = self._line(workspace_id)
        answer: asyncio.Future[calls.SessionState] = asyncio.get_running_loop().create_future()
        frame = calls.encode(header)
        line.sessions[header.id] = (frame, answer)
        line.link.send(frame)
        try:
            async with asyncio.timeout(SLACK_S + (header.wait_s if isinstance(header, calls.SessionOpen) else 0.0)):
                return await answer
        finally:
            line.sessions.pop(header.id, None)
            line.leave()

    async def close(self) -> None:
        """End every link."""
        tasks = [line.task for line in self._lines.values() if line.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
