"""The agent's fork servers: one per interpreter, and one per set of libraries that deployments import.

The first start of a deployment that imports libraries goes by the interpreter's plain fork server; soon after, one with
those libraries loaded is started beside it, for the next starts (updates, further workers). What cannot be forked, or
does not answer, is started in the ordinary way: a fork server saves time and is never needed.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nanopod.node.zygote import MARK, MARK_CHARS, TITLE_CHARS

SWITCH: Final = "NANOPOD_ZYGOTE"
ANSWER_S_MAX: Final = 2.0
LOADED_AFTER_S: Final = 2.0
"""Libraries are loaded so long after a first start, when that has done most of its own work."""
SERVERS_MAX: Final = 4
"""Fork servers with libraries; the one not used for longest goes."""
GONE: Final = "it ended"
BACKOFF_S: Final = (1.0, 60.0)
IMPORTS_MAX: Final = 64
_SPAWNED: Final = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
"""How variables begin that an interpreter reads before it runs anything: a fork would be too late for them."""
_log: Final = logging.getLogger(__name__)


def is_on() -> bool:
    """Whether fork servers are used: unless `NANOPOD_ZYGOTE` is 0."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("0", "false", "no", "off")


def may_fork(env: Mapping[str, str]) -> bool:
    """True when an environment holds nothing that only a new interpreter would heed."""
    return not any(
        name.startswith(_SPAWNED) and os.environ.get(name) != value for name, value in env.items()
    )  # fmt: skip


def libraries_of(directory: Path, module: str) -> tuple[str, ...]:
    """Libraries that a deployment's file imports at its top level before it looks at the environment's variables.

    Modules of the deployment itself, of Python and of nanopod are left out. Nothing is imported to find out.
    """
    path = directory.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ()
    found: dict[str, None] = {}
    for node in tree.body:
        if "environ" in (text := ast.dump(node)) or "putenv" in text:
            break
        if isinstance(node, ast.Import):
            found.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found[node.module] = None
    own = {entry.name.partition(".")[0] for entry in directory.iterdir()} | {"nanopod", module.partition(".")[0]}
    tops = sys.stdlib_module_names
    names = [name for name in found if (top := name.partition(".")[0]) not in own and top not in tops]
    return tuple(sorted(names)[:IMPORTS_MAX])


class Fork:
    """A start that a fork server was asked for; has what `launch.started` needs of a process."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._until = time.monotonic() + ANSWER_S_MAX
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """None while it may still come, 0 once forked, 1 when it will not come."""
        if self.returncode is None:
            answer = self._server.answer()
            if answer is not None:
                self.returncode = 0 if "pid" in answer else 1
                if self.returncode:
                    self._server.end(str(answer.get("error", "it ended")))
            elif time.monotonic() > self._until:
                self.returncode = 1
                self._server.end(f"no answer within {ANSWER_S_MAX:.0f} s")
        return self.returncode


@dataclass(slots=True)
class Server:
    """One fork server and the socket to it."""

    python: str
    libraries: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    peer: socket.socket | None = None
    ready: bool = False
    refused: str = ""
    """Why it must not be forked; final."""
    used_at: float = 0.0
    fails: int = 0
    again_at: float = 0.0
    said: bytes = field(default=b"")
    busy: Fork | None = None

    def start(self) -> None:
        """Start the interpreter; it says later that it is ready."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        env = {**os.environ, MARK: "-" * MARK_CHARS}
        argv = [self.python, "-P", "-m", "nanopod.node.zygote", str(theirs.fileno()), *self.libraries]
        argv.append("-" * max(1, TITLE_CHARS - sum(map(len, argv))))
        try:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd="/",
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            self.refused = f"cannot be started: {error.strerror}"
        else:
            self.peer, self.ready, self.said = ours, False, b""
        finally:
            theirs.close()

    def answer(self) -> dict[str, Any] | None:
        """What it said last; None while it says nothing."""
        if self.peer is None:
            return {"error": "it is not there"}
        with contextlib.suppress(BlockingIOError, InterruptedError):
            try:
                data = self.peer.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                return {"error": GONE}
            self.said += data
        if not self.said.endswith(b"\n"):
            return None
        said, self.said = self.said, b""
        found = json.loads(said.splitlines()[-1])
        return found if isinstance(found, dict) else None

    def look(self, now: float) -> None:
        """Notice that it became ready, refused, or ended; start it again when that is due."""
        if self.refused:
            return
        if self.busy is not None:
            if self.busy.poll() is None:
                return
            self.busy = None
        if self.peer is None:
            if now >= self.again_at:
                self.start()
            return
        answer = self.answer()
        if answer is None:
            return
        if answer.get("ready"):
            self.ready, self.fails = True, 0
            _log.info("fork server ready: %s %s", self.python, " ".join(self.libraries))
        elif "pid" not in answer:
            why = str(answer.get("error", "it says nothing"))
            if not self.ready and why != GONE:
                self.refused = why  # it loads the same next time
            self.end(why)

    def send(self, request: Mapping[str, Any], fds: Sequence[int]) -> Fork | None:
        """Ask for a start; None when it cannot be asked now."""
        self.look(time.monotonic())
        if not self.ready or self.peer is None or self.busy is not None:
            return None
        # Only the fork reads the request, so that no later fork finds another instance's secrets in its memory.
        sealed = os.memfd_create("nanopod-start", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(sealed), "wb") as file:
                file.write(json.dumps(request).encode())
            socket.send_fds(self.peer, [b"\n"], [sealed, *fds])
        except OSError:
            self.end("it does not listen")
            return None
        finally:
            os.close(sealed)
        self.used_at = time.monotonic()
        self.busy = Fork(self)
        return self.busy

    def end(self, why: str = "") -> None:
        """End it; it is started again after a pause unless it was refused."""
        if self.peer is not None:
            self.peer.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if why:
            _log.info("fork server %s %s ended: %s", self.python, " ".join(self.libraries), why)
        self.peer = self.process = None
        self.ready, self.busy = False, None
        self.fails += 1
        self.again_at = time.monotonic() + min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** min(self.fails - 1, 10))


class Zygotes:
    """All fork servers of an agent. Used on its event loop; nothing here waits."""

    def __init__(self) -> None:
        self._servers: dict[tuple[str, tuple[str, ...]], Server] = {}
        self._on = is_on()

    def open(self) -> None:
        """Start the one for the agent's own interpreter."""
        if self._on:
            self._server(sys.executable, ())

    def start(
        self, python: str, libraries: tuple[str, ...], request: Mapping[str, Any], fds: Sequence[int]
    ) -> Fork | None:
        """Ask the best fork server for a start; None when none can be asked now."""
        if not self._on:
            return None
        for wanted in dict.fromkeys((libraries, ())):
            known = self._servers.get((python, wanted))
            fork = known.send(request, fds) if known is not None else None
            if fork is not None:
                return fork
        return None

    def expect(
        self, python: str, libraries: tuple[str, ...], later: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        """More starts of this kind may come: have a fork server for them, soon."""
        if not self._on:
            return
        for wanted in dict.fromkeys(((), libraries)):
            if (python, wanted) not in self._servers:
                later(LOADED_AFTER_S, lambda wanted=wanted: self._server(python, wanted))  # type: ignore[misc]

    def _server(self, python: str, libraries: tuple[str, ...]) -> None:
        if (python, libraries) in self._servers or not self._on:
            return
        extra = [
            server for server in self._servers.values() if (server.python, server.libraries) != (sys.executable, ())
        ]
        if len(extra) >= SERVERS_MAX:
            oldest = min(extra, key=lambda server: server.used_at)
            oldest.end()
            del self._servers[oldest.python, oldest.libraries]
        server = self._servers[python, libraries] = Server(python, libraries, used_at=time.monotonic())
        server.start()

    def tick(self, now: float) -> None:
        """Notice what became of them."""
        for server in self._servers.values():
            server.look(now)

    def close(self) -> None:
        """End all; instances go on."""
        self._on = False
        for server in self._servers.values():
            server.end()
