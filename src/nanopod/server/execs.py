"""Commands that run inside instances, as callers of the API see them: each session's output in a bounded ring.

A session lives on the agent's machine; here is what it printed last, by offset, so that a caller who lost an answer
asks again. Sessions are kept in memory alone: a server that starts anew knows none, and agents end them with the link.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from nanopod.model.errors import Conflict, Invalid, NotFound, QuotaExceeded
from nanopod.model.ids import make_id
from nanopod.model.wire import ExecExit, ExecInput, ExecOutput, ExecStart, Message

RING_BYTES_MAX: Final = 4 << 20
"""Output of one session that is kept; older output is dropped, and readers are told so."""
PAGE_BYTES_MAX: Final = 1 << 20
INPUT_BYTES_MAX: Final = 1 << 20
WAIT_S_MAX: Final = 30.0
KEEP_S: Final = 300.0
"""How long an ended session can still be read."""
SESSIONS_MAX: Final = 256
INSTANCE_SESSIONS_MAX: Final = 32
TIMEOUT_S_MAX: Final = 86_400.0
SIGNAL_MAX: Final = 64
COMMAND_BYTES_MAX: Final = 128 << 10
SIDE_MAX: Final = 1000
"""Rows and columns of a terminal."""

Status = Literal["running", "exited", "failed"]
"""`failed`: it could not be started, or was lost with its machine; `error` says why."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output: `stream` 1 (out) or 2 (err), at `offset` bytes of all that the session printed."""

    offset: int
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """What a session printed from an offset on. `truncated`: something between was dropped before it was read."""

    chunks: tuple[Chunk, ...]
    next_offset: int
    truncated: bool
    status: Status
    exit_code: int | None
    error: str


@dataclass(slots=True)
class ExecSession:
    """One command inside one instance."""

    exec_id: str
    workspace_id: str
    instance_id: str
    machine_id: str
    command: tuple[str, ...]
    tty: bool
    created_at: float
    status: Status = "running"
    exit_code: int | None = None
    error: str = ""
    ended_at: float | None = None
    first: int = 0
    """Offset of the oldest output that is still here."""
    end: int = 0
    """Offset behind the newest."""
    chunks: deque[Chunk] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """True once the command is over."""
        return self.status != "running"

    def add(self, stream: int, data: bytes) -> None:
        """Keep output; the oldest goes when there is too much."""
        if not data:
            return
        self.chunks.append(Chunk(self.end, stream, data))
        self.end += len(data)
        while self.end - self.first > RING_BYTES_MAX:
            self.first += len(self.chunks.popleft().data)
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self.news.set()
        self.news = asyncio.Event()

    def page(self, offset: int) -> Page:
        """What is here from `offset` on, at most a page of it."""
        found: list[Chunk] = []
        size = 0
        at = max(offset, self.first)
        for chunk in self.chunks:
            behind = chunk.offset + len(chunk.data)
            if behind <= at:
                continue
            cut = max(0, at - chunk.offset)
            data = chunk.data[cut : cut + PAGE_BYTES_MAX - size]
            found.append(Chunk(chunk.offset + cut, chunk.stream, data))
            size += len(data)
            if size >= PAGE_BYTES_MAX:
                break
        following = found[-1].offset + len(found[-1].data) if found else min(at, self.end)
        # The end is told together with the last output only, so that nobody stops reading too early.
        over = self.ended and following >= self.end
        return Page(
            tuple(found), following, offset < self.first, self.status if over else "running",
            self.exit_code if over else None, self.error if over else "",
        )  # fmt: skip


class ExecSessions:
    """All sessions of this server. `send(machine_id, message)` is False when that machine's agent is not linked."""

    def __init__(self, send: Callable[[str, Message], bool], clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._sessions: dict[str, ExecSession] = {}

    def start(
        self,
        machine_id: str,
        workspace_id: str,
        instance_id: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        timeout_s: float = 3600.0,
    ) -> ExecSession:
        """Start a command inside an instance of a machine.

        Raises `Invalid` for a field that cannot be used, `Conflict` when the machine cannot be reached and
        `QuotaExceeded` beyond the limit of sessions.
        """
        _check(command, env or {}, rows, cols, timeout_s)
        self._make_room(instance_id)
        session = ExecSession(
            make_id("exec", secrets.token_bytes(21)), workspace_id, instance_id, machine_id, tuple(command), tty,
            self._clock(),
        )  # fmt: skip
        message = ExecStart(
            session.exec_id, instance_id, session.command, dict(env or {}), cwd, tty, rows, cols, timeout_s
        )
        if not self._send(machine_id, message):
            raise Conflict("the agent of the instance's machine is not connected at present: try again in some seconds")
        self._sessions[session.exec_id] = session
        return session

    def get(self, exec_id: str) -> ExecSession:
        """A session by its id. Raises `NotFound`."""
        session = self._sessions.get(exec_id)
        if session is None:
            raise NotFound(
                f"there is no exec session {exec_id}: it ended over {KEEP_S:.0f} s ago, or the server was restarted"
            )
        return session

    def of_instance(self, instance_id: str) -> list[ExecSession]:
        """Its sessions, ended ones that are still here too, oldest first."""
        return [session for session in self._sessions.values() if session.instance_id == instance_id]

    async def read(self, exec_id: str, offset: int = 0, wait_s_max: float = 0.0) -> Page:
        """Output from `offset` on; waits for some, or for the end, up to `wait_s_max` seconds (30 at most)."""
        session = self.get(exec_id)
        if offset < 0 or offset > session.end:
            raise Invalid(f"offset must be between 0 and {session.end}, which is what next_offset said last")
        loop = asyncio.get_running_loop()
        limit = loop.time() + min(max(wait_s_max, 0.0), WAIT_S_MAX)
        while session.end <= offset and not session.ended and (left := limit - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await session.news.wait()
            except TimeoutError:
                break
        return session.page(offset)

    def input(
        self,
        exec_id: str,
        data: bytes = b"",
        *,
        eof: bool = False,
        resize: tuple[int, int] | None = None,
        signal: int | None = None,
    ) -> None:
        """Give a running command input, the end of its input, a new size (rows, cols) or a signal.

        Raises `NotFound`, `Invalid`, and `Conflict` when it is over already.
        """
        session = self.get(exec_id)
        if len(data) > INPUT_BYTES_MAX:
            raise Invalid(f"data must be at most {INPUT_BYTES_MAX} bytes: send it in several pieces")
        if signal is not None and not 1 <= signal <= SIGNAL_MAX:
            raise Invalid(f"signal must be between 1 and {SIGNAL_MAX}")
        if resize is not None and not all(1 <= side <= SIDE_MAX for side in resize):
            raise Invalid(f"rows and cols must be between 1 and {SIDE_MAX}")
        if session.ended:
            raise Conflict(f"the command of {exec_id} is over")
        if not self._send(session.machine_id, ExecInput(exec_id, data, eof, resize, signal)):
            raise Conflict("the agent of the instance's machine is not connected at present")

    def kill(self, exec_id: str) -> ExecSession:
        """Kill the command and everything it started; nothing happens to one that is over. Raises `NotFound`."""
        session = self.get(exec_id)
        if not session.ended:
            self._send(session.machine_id, ExecInput(exec_id, signal=9))
        return session

    # --- what agents say ---

    def on_output(self, machine_id: str, message: ExecOutput) -> None:
        """A piece of output arrived."""
        session = self._sessions.get(message.exec_id)
        if session is not None and session.machine_id == machine_id and not session.ended:
            session.add(message.stream, message.data)

    def on_exit(self, machine_id: str, message: ExecExit) -> None:
        """A command is over."""
        session = self._sessions.get(message.exec_id)
        if session is not None and session.machine_id == machine_id:
            self._end(session, "failed" if message.error else "exited", message.exit_code, message.error)

    def on_unlinked(self, machine_id: str) -> None:
        """A machine's agent is gone, and with it its sessions."""
        for session in list(self._sessions.values()):
            if session.machine_id == machine_id:
                self._end(session, "failed", None, "the connection to the instance's machine was lost")

    def on_linked(self, machine_id: str) -> None:
        """An agent connected anew: what an earlier connection ran is over."""
        self.on_unlinked(machine_id)

    def _end(self, session: ExecSession, status: Status, exit_code: int | None, error: str) -> None:
        if session.ended:
            return
        session.status, session.exit_code, session.error = status, exit_code, error
        session.ended_at = self._clock()
        session.wake()
        asyncio.get_running_loop().call_later(KEEP_S, self._sessions.pop, session.exec_id, None)

    def _make_room(self, instance_id: str) -> None:
        """Let the oldest ended session go when there are too many. Raises `QuotaExceeded` when all of them run."""
        running = sum(1 for session in self.of_instance(instance_id) if not session.ended)
        if running >= INSTANCE_SESSIONS_MAX:
            raise QuotaExceeded(
                f"an instance runs at most {INSTANCE_SESSIONS_MAX} exec sessions at once: end one first"
            )
        if len(self._sessions) >= SESSIONS_MAX:
            ended = next((session for session in self._sessions.values() if session.ended), None)
            if ended is None:
                raise QuotaExceeded(f"at most {SESSIONS_MAX} exec sessions run at once: end one first")
            del self._sessions[ended.exec_id]


def _check(command: Sequence[str], env: Mapping[str, str], rows: int, cols: int, timeout_s: float) -> None:
    """Raise `Invalid` for what no machine could run."""
    words = [*command, *env, *env.values()]
    if not command or not command[0]:
        raise Invalid("command must be a list of at least one word, such as ['sh', '-c', 'ls']")
    if any("\0" in word for word in words) or any(not name or "=" in name for name in env):
        raise Invalid("command and env must not hold NUL characters, names of variables no '='")
    if sum(len(word.encode(errors="surrogatepass")) + 1 for word in words) > COMMAND_BYTES_MAX:
        raise Invalid(f"command and env together must be at most {COMMAND_BYTES_MAX} bytes")
    if not (1 <= rows <= SIDE_MAX and 1 <= cols <= SIDE_MAX):
        raise Invalid(f"rows and cols must be between 1 and {SIDE_MAX}")
    if not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise Invalid(f"timeout_s must be above 0 and at most {TIMEOUT_S_MAX:.0f}")
