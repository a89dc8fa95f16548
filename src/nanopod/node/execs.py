"""Commands that callers run inside instances, from the agent's side: pipes or a terminal, input, limits, the end.

The shim starts them (`sessions`), so they belong to the instance; here are the other ends of their pipes. What they
print goes to the server in order, no faster than the link takes it. With the link, all of them end: nobody would hear.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import struct
import termios
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nanopod.model.wire import ExecExit, ExecInput, ExecOutput, ExecStart, Message
from nanopod.node import launch

CHUNK_BYTES: Final = 32_768
INPUT_BYTES_MAX: Final = 4 << 20
"""Input that a command has not read yet; beyond that it is killed."""
SESSIONS_MAX: Final = 32
"""Commands of one instance at once."""
QUIET_S: Final = 0.25
"""After a command ended: its pipes are closed once nothing came for so long, though others may hold them open."""
DRAIN_S_MAX: Final = 30.0
START_S_MAX: Final = 10.0
"""A shim is quick; a machine with more processes than it can bear is not."""
EXIT_TIMEOUT: Final = 124
EXIT_KILLED: Final = 128 + signal.SIGKILL
_log: Final = logging.getLogger("nanopod.node.execs")


class ExecTrouble(Exception):
    """The command was not started."""


class Pipes:
    """Our ends of a command's descriptors. `close` may be called at any time, and more than once."""

    def __init__(self, *, tty: bool, rows: int, cols: int) -> None:
        self.tty = tty
        self._theirs: list[int] = []
        self.status_fd, status = os.pipe()
        self.out_fds: list[int] = []
        if tty:
            ours, terminal = os.openpty()
            resize(ours, rows, cols)
            self.out_fds = [ours]
            self.in_fd = os.dup(ours)
            self.fds = [status, terminal, terminal, terminal]
            self._theirs = [status, terminal]
        else:
            theirs_in, self.in_fd = os.pipe()
            out, theirs_out = os.pipe()
            err, theirs_err = os.pipe()
            self.out_fds = [out, err]
            self.fds = self._theirs = [status, theirs_in, theirs_out, theirs_err]

    def given(self) -> None:
        """The shim has its ends; ours of them are closed, so that their end can be seen."""
        for fd in self._theirs:
            os.close(fd)
        self._theirs = []


def resize(fd: int, rows: int, cols: int) -> None:
    """Set the size of a terminal."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


class Flow(asyncio.Protocol):
    """Knows whether the pipe to a command has room."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        """The command reads slower than we write."""
        self.room.clear()

    def resume_writing(self) -> None:
        """It read."""
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """It reads no more: nothing is left to wait for."""
        self.room.set()


class Session:
    """One command: started, fed and listened to until it ends."""

    def __init__(self, message: ExecStart, directory: Path, say: Callable[[Message], Awaitable[None]]) -> None:
        self.message = message
        self.directory = directory
        self.task: asyncio.Task[None] | None = None
        self._say = say
        self._input: asyncio.WriteTransport | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._transports: list[asyncio.BaseTransport] = []
        self._outs: list[asyncio.BaseTransport] = []
        self._heard = 0
        self._saying = 0
        self._early: list[ExecInput] | None = []
        """Input that came before the command ran."""
        self._began = asyncio.Event()
        self._flow = Flow()

    async def run(self) -> ExecExit:
        """From the start to the end."""
        message = self.message
        pipes = Pipes(tty=message.tty, rows=message.rows, cols=message.cols)
        readers: list[asyncio.Task[None]] = []
        try:
            try:
                status, outs = await self._connect(pipes)
                env = {"TERM": "xterm-256color", **message.env} if message.tty else message.env
                started = await launch.ask(
                    self.directory, "exec", fds=pipes.fds, id=message.exec_id, argv=list(message.command), env=env,
                    cwd=message.cwd, tty=message.tty, wait_s_max=START_S_MAX,
                )  # fmt: skip
            finally:
                pipes.given()
            if started is None or "error" in started:
                reason = started["error"] if started else "the instance does not answer: it may be ending"
                return ExecExit(message.exec_id, EXIT_KILLED, str(reason))
            early, self._early = self._early or [], None
            self._began.set()
            for held in early:
                self.take(held)
            readers = [asyncio.create_task(self._hear(out, n)) for n, out in enumerate(outs, 1)]
            return await self._end(status, readers)
        finally:
            for reader in readers:
                reader.cancel()
            for transport in self._transports:
                transport.close()

    async def _connect(self, pipes: Pipes) -> tuple[asyncio.StreamReader, list[asyncio.StreamReader]]:
        loop = asyncio.get_running_loop()

        async def reader_of(fd: int) -> asyncio.StreamReader:
            reader = asyncio.StreamReader(CHUNK_BYTES)
            transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
            )
            self._transports.append(transport)
            return reader

        status = await reader_of(pipes.status_fd)
        outs = [await reader_of(fd) for fd in pipes.out_fds]
        self._outs = self._transports[1:]
        self._input, _ = await loop.connect_write_pipe(lambda: self._flow, os.fdopen(pipes.in_fd, "wb", 0))
        self._transports.append(self._input)
        return status, outs

    async def _hear(self, reader: asyncio.StreamReader, stream: int) -> None:
        """Pass output on until it ends."""
        exec_id = self.message.exec_id
        while True:
            try:
                data = await reader.read(CHUNK_BYTES)
            except OSError:
                return  # a terminal ends this way
            if not data:
                return
            self._heard += len(data)
            self._saying += 1
            try:
                await self._say(ExecOutput(exec_id, stream, data))
            except ConnectionError:
                return  # the link is gone, and everything here ends with it
            finally:
                self._saying -= 1

    async def _end(self, status: asyncio.StreamReader, readers: Sequence[asyncio.Task[None]]) -> ExecExit:
        """Wait for the command's end, and for the rest of its output."""
        message, late = self.message, False
        try:
            async with asyncio.timeout(message.timeout_s):
                told = await _told(status)
        except TimeoutError:
            late = True
            await self.kill()
            told = await _told(status)
        await self._drain(readers)
        if late:
            text = f"nanopod: killed, for it ran longer than its timeout_s of {message.timeout_s:g} s\n"
            await self._say(ExecOutput(message.exec_id, 1 if message.tty else 2, text.encode()))
            return ExecExit(message.exec_id, EXIT_TIMEOUT)
        if "error" in told:
            return ExecExit(message.exec_id, 127, f"it cannot be run: {told['error']}")
        if "exit" not in told:
            return ExecExit(message.exec_id, EXIT_KILLED, "the instance ended")
        return ExecExit(message.exec_id, int(told["exit"]))

    async def _drain(self, readers: Sequence[asyncio.Task[None]]) -> None:
        """Wait for the rest of the output: until it ends, or only something in the background holds on to it."""
        limit = time.monotonic() + DRAIN_S_MAX
        while time.monotonic() < limit:
            before = self._heard
            _, left = await asyncio.wait(readers, timeout=QUIET_S)
            if not left or (self._heard == before and not self._saying and not self._waiting()):
                return

    def _waiting(self) -> bool:
        """True when something lies in a pipe that was not read yet."""
        poller = select.poll()
        for transport in self._outs:
            if not transport.is_closing():
                poller.register(transport.get_extra_info("pipe").fileno(), select.POLLIN)
        return bool(poller.poll(0))

    def take(self, message: ExecInput) -> None:
        """Input, the end of input, a new size, a signal. Raises `ExecTrouble`."""
        if self._early is not None:
            if sum(len(held.data) for held in self._early) + len(message.data) > INPUT_BYTES_MAX:
                raise ExecTrouble("too much input came before the command ran")
            self._early.append(message)
            return
        if self._input is not None and not self._input.is_closing():
            self._feed(self._input, message)
        if message.signal is not None:
            self._ask_signal(message.signal)

    async def room(self) -> None:
        """Wait until the command has read most of its input; for callers who can hold theirs back."""
        await self._began.wait()
        await self._flow.room.wait()

    def _feed(self, transport: asyncio.WriteTransport, message: ExecInput) -> None:
        if message.resize is not None and self.message.tty:
            with contextlib.suppress(OSError):
                resize(transport.get_extra_info("pipe").fileno(), *message.resize)
        if message.data:
            transport.write(message.data)
        if transport.get_write_buffer_size() > INPUT_BYTES_MAX:
            _log.warning("exec=%s killed: it does not read its input", message.exec_id)
            self._ask_signal(signal.SIGKILL)
        elif message.eof and self.message.tty:
            transport.write(b"\x04")
        elif message.eof:
            transport.write_eof()

    def _ask_signal(self, number: int) -> None:
        asked = launch.ask(self.directory, "signal", id=self.message.exec_id, number=int(number))
        task = asyncio.create_task(asked)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def kill(self) -> None:
        """Kill the command and everything it started."""
        await launch.ask(self.directory, "signal", id=self.message.exec_id, number=int(signal.SIGKILL))


async def _told(status: asyncio.StreamReader) -> dict[str, Any]:
    """Everything the shim says of a command, once that ended: `error`, or `exit`."""
    found: dict[str, Any] = {}
    while line := await status.readline():
        with contextlib.suppress(ValueError):
            found.update(json.loads(line))
    return found


class Execs:
    """All commands of this machine. `find` gives the directory of an instance that runs, or says why there is none."""

    def __init__(self, find: Callable[[str], Path], say: Callable[[Message], Awaitable[None]]) -> None:
        self._find = find
        self._say = say
        self._sessions: dict[str, Session] = {}

    def start(self, message: ExecStart) -> None:
        """Start a command; its end is told in any case."""
        self._sessions[message.exec_id] = session = Session(message, Path(), self._say)
        session.task = asyncio.create_task(self._run(session))

    async def _run(self, session: Session) -> None:
        message = session.message
        try:
            session.directory = self._find(message.instance_id)
            same = [s for s in self._sessions.values() if s.message.instance_id == message.instance_id]
            if len(same) > SESSIONS_MAX:
                raise ExecTrouble(f"at most {SESSIONS_MAX} commands run in an instance at once: end one first")
            ended = await session.run()
        except (ExecTrouble, OSError) as error:
            ended = ExecExit(message.exec_id, EXIT_KILLED, str(error))
        finally:
            self._sessions.pop(message.exec_id, None)
        with contextlib.suppress(ConnectionError):
            await self._say(ended)

    def take(self, message: ExecInput) -> None:
        """Pass input on; nothing happens when the command is over."""
        session = self._sessions.get(message.exec_id)
        if session is not None:
            try:
                session.take(message)
            except ExecTrouble as error:
                _log.warning("exec=%s input lost: %s", message.exec_id, error)

    async def close(self) -> None:
        """End all of them: the shims kill what nobody listens to."""
        tasks = [session.task for session in self._sessions.values() if session.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)


async def run_hook(directory: Path, name: str, argv: Sequence[str], env: Mapping[str, str], wait_s_max: float) -> str:
    """Run a command of the instance itself, which prints to its log; what became of it, in words."""
    status_fd, theirs = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(status_fd, "rb", 0)
    )
    try:
        try:
            started = await launch.ask(
                directory, "exec", fds=[theirs], wait_s_max=START_S_MAX, id=name, argv=list(argv), env=dict(env)
            )
        finally:
            os.close(theirs)
        if started is None or "error" in started:
            return f"was not started: {started['error'] if started else 'the instance does not answer'}"
        try:
            async with asyncio.timeout(wait_s_max):
                told = await _told(reader)
        except TimeoutError:
            await launch.ask(directory, "signal", id=name, number=int(signal.SIGKILL))
            return f"was killed after {wait_s_max:.0f} s"
        if "error" in told:
            return f"cannot be run: {told['error']}"
        return f"exited {told['exit']}" if "exit" in told else "ended with the instance"
    finally:
        transport.close()
