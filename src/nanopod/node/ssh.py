"""An SSH front for the instances of this machine, when the extra `ssh` (asyncssh) is installed.

It listens on the loopback interface. The user is an instance's name or id; who may enter is said by the instance
itself, in `~/.ssh/authorized_keys` of its home directory, which its start-up script writes. Sessions are commands like
any other (`execs`): in the instance, with its environment, ended with it. No forwarding of ports, agents or displays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanopod.model.ids import make_id
from nanopod.model.wire import ExecInput, ExecOutput, ExecStart, Message
from nanopod.node import execs, files

if TYPE_CHECKING:
    from nanopod.node.fleet import Fleet

HOSTNAME: Final = "127.0.0.1"
KEY_FILE: Final = "ssh_host_ed25519_key"
PORT_FILE: Final = "ssh.json"
KEYS_FILE: Final = ".ssh/authorized_keys"
KEYS_BYTES_MAX: Final = 64 << 10
CONNECTIONS_MAX: Final = 64
LOGIN_S_MAX: Final = 20.0
SESSION_S_MAX: Final = 86_400.0
_log: Final = logging.getLogger("nanopod.node.ssh")


class Front:
    """The listening server. `facts` is what others need to know to come in; empty when there is no front."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self._fleet = fleet
        self._directory = directory
        self._open = 0
        self._listener: Any = None
        self.facts: dict[str, Any] = {}

    async def start(self) -> None:
        """Listen, on the port of the last time where that is free. Without the extra nothing happens."""
        try:
            asyncssh = await asyncio.to_thread(_asyncssh)
        except ImportError:
            return
        try:
            key = _host_key(asyncssh, self._directory / KEY_FILE)
            for port in dict.fromkeys((_last_port(self._directory), 0)):
                with contextlib.suppress(OSError):
                    self._listener = await self._listen(asyncssh, key, port)
                    break
            else:
                raise OSError("no port is free")
        except (OSError, ValueError, asyncssh.Error) as error:
            _log.warning("ssh=off reason=%s", error)
            return
        port = self._listener.get_port()
        files.write_atomic(self._directory / PORT_FILE, json.dumps({"port": port}).encode())
        kind, public = key.export_public_key("openssh").decode().split()[:2]
        self.facts = {"hostname": HOSTNAME, "port": port, "host_keys": [{"key_type": kind, "key": public}]}
        _log.info("ssh=on port=%d", port)

    async def _listen(self, asyncssh: Any, key: Any, port: int) -> Any:
        return await asyncssh.create_server(
            lambda: _server(asyncssh, self), HOSTNAME, port, server_host_keys=[key], process_factory=self._serve,
            encoding=None, line_editor=False, login_timeout=LOGIN_S_MAX, agent_forwarding=False, x11_forwarding=False,
            allow_scp=False, keepalive_interval=30,
        )  # fmt: skip

    def close(self) -> None:
        """Listen no more; the connections end."""
        if self._listener is not None:
            self._listener.close()

    def came(self, count: int) -> bool:
        """One connection more or less; False when there are too many."""
        self._open += count
        return self._open <= CONNECTIONS_MAX

    def authorized(self, user: str) -> str:
        """The keys that may enter as `user`: text of authorized_keys, empty for nobody."""
        try:
            directory = self._fleet.running_directory(self._fleet.named(user))
            fd = os.open(directory / files.HOME / KEYS_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                return file.read(KEYS_BYTES_MAX).decode(errors="replace")
        except OSError:
            return ""

    async def _serve(self, process: Any) -> None:
        """One session: a command, or a shell."""
        import asyncssh

        code = execs.EXIT_KILLED
        try:
            instance_id = self._fleet.named(process.get_extra_info("username"))
            session = self._session(asyncssh, process, instance_id)
            code = await _run(asyncssh, session, process)
        except OSError as error:
            with contextlib.suppress(asyncssh.Error, OSError):
                process.stderr.write(f"{error}\n".encode())
        finally:
            with contextlib.suppress(asyncssh.Error, OSError):
                process.exit(code)

    def _session(self, asyncssh: Any, process: Any, instance_id: str) -> execs.Session:
        directory = self._fleet.running_directory(instance_id)
        terminal = process.get_terminal_type()
        cols, rows = (process.get_terminal_size() or (80, 24))[:2]
        command = ("sh", "-c", process.command) if process.command else (_shell(), "-l")
        env = {name: value for name, value in process.env.items() if isinstance(name, str) and isinstance(value, str)}
        message = ExecStart(
            make_id("exec", os.urandom(21)), instance_id, command, {**env, **({"TERM": terminal} if terminal else {})},
            tty=bool(terminal), rows=rows or 24, cols=cols or 80, timeout_s=SESSION_S_MAX,
        )  # fmt: skip

        async def say(output: Message) -> None:
            if isinstance(output, ExecOutput):
                stream = process.stdout if output.stream == 1 else process.stderr
                try:
                    stream.write(output.data)
                    await stream.drain()
                except asyncssh.Error as error:
                    raise ConnectionError(str(error)) from error

        return execs.Session(message, directory, say)


async def _run(asyncssh: Any, session: execs.Session, process: Any) -> int:
    """Until the command ends, or whoever sits at the other end is gone."""
    running = asyncio.ensure_future(session.run())
    feeding = asyncio.ensure_future(_feed(asyncssh, session, process))
    gone = asyncio.ensure_future(process.channel.wait_closed())
    try:
        await asyncio.wait((running, gone), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            return execs.EXIT_KILLED
        ended = running.result()
        if ended.error:
            raise OSError(ended.error)
        return ended.exit_code
    finally:
        for task in (running, feeding, gone):
            task.cancel()
        # What it leaves behind is closed before the session counts as over.
        await asyncio.wait((running, feeding, gone), timeout=2.0)


async def _feed(asyncssh: Any, session: execs.Session, process: Any) -> None:
    """Pass on what is typed, sizes of the terminal and signals."""
    exec_id = session.message.exec_id
    while True:
        try:
            data = await process.stdin.read(execs.CHUNK_BYTES)
        except asyncssh.TerminalSizeChanged as change:
            session.take(ExecInput(exec_id, resize=(change.height or 24, change.width or 80)))
            continue
        except asyncssh.SignalReceived as sent:
            with contextlib.suppress(KeyError):
                session.take(ExecInput(exec_id, signal=int(signal.Signals[f"SIG{sent.signal}"])))
            continue
        except asyncssh.BreakReceived:
            session.take(ExecInput(exec_id, signal=int(signal.SIGINT)))
            continue
        except (asyncssh.Error, OSError):
            return
        session.take(ExecInput(exec_id, data, eof=not data))
        if not data:
            return
        await session.room()


def _server(asyncssh: Any, front: Front) -> Any:
    """One connection, before anybody is let in."""
    base: type = asyncssh.SSHServer

    def connection_made(self: Any, connection: Any) -> None:
        self.connection = connection
        if not front.came(1):
            connection.abort()

    def connection_lost(self: Any, error: Exception | None) -> None:
        front.came(-1)

    def begin_auth(self: Any, user: str) -> bool:
        text = front.authorized(user)
        if text:
            with contextlib.suppress(ValueError, asyncssh.KeyImportError):
                self.connection.set_authorized_keys(asyncssh.import_authorized_keys(text))
        return True

    members = {"connection_made": connection_made, "connection_lost": connection_lost, "begin_auth": begin_auth}
    return type("Server", (base,), members)()


def _asyncssh() -> Any:
    import asyncssh

    asyncssh.set_log_level(logging.ERROR)
    return asyncssh


def _host_key(asyncssh: Any, path: Path) -> Any:
    """The machine's key, made once."""
    if path.exists():
        return asyncssh.read_private_key(str(path))
    key = asyncssh.generate_private_key("ssh-ed25519", comment="nanopod")
    files.write_atomic(path, key.export_private_key("openssh"))
    return key


def _last_port(directory: Path) -> int:
    try:
        port = json.loads((directory / PORT_FILE).read_bytes())["port"]
        return port if isinstance(port, int) and 0 < port < 65536 else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _shell() -> str:
    return "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
