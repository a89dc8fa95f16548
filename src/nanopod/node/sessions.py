"""Commands that are run inside an instance besides its own process, from the shim's side. Imports little.

They are the shim's children, so nothing they start outlives the instance, whatever becomes of the agent. Each has a
session of its own. Who asked for it holds the other ends of its input, its output and a status pipe; when he closes the
status pipe (or dies), the command is killed with everything it started.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import termios
from collections.abc import Sequence
from typing import Any, Final

from nanopod.node import procs

SESSIONS_MAX: Final = 40
KILL_S_MAX: Final = 1.0
EXIT_NOT_RUN: Final = 127


class Session:
    """One command."""

    __slots__ = ("exec_id", "pid", "status_fd")

    def __init__(self, exec_id: str, pid: int, status_fd: int) -> None:
        self.exec_id = exec_id
        self.pid = pid
        self.status_fd = status_fd


def mark_of(exec_id: str) -> str:
    """What every process of a command carries in its environment."""
    return f"NANOPOD_EXEC={exec_id}"


class Sessions:
    """The commands of one instance. `env` and `cwd` are the instance's; `writers` lead to its log."""

    def __init__(self, env: dict[str, str], cwd: str, writers: tuple[int, int]) -> None:
        self._env = env
        self._cwd = cwd
        self._writers = writers
        self._by_pid: dict[int, Session] = {}

    def start(self, request: dict[str, Any], fds: Sequence[int], poller: select.poll) -> dict[str, Any]:
        """Start `argv`. `fds`: the status pipe, then (unless it prints to the log) input, output, error output."""
        argv = [str(word) for word in request.get("argv") or []]
        if not argv or len(fds) not in (1, 4):
            return {"error": "exec needs argv, and one or four descriptors"}
        if len(self._by_pid) >= SESSIONS_MAX:
            return {"error": f"at most {SESSIONS_MAX} commands run in an instance at once"}
        exec_id = str(request.get("id") or "")
        env = {**self._env, **(request.get("env") or {}), "NANOPOD_EXEC": exec_id}
        cwd = os.path.join(self._cwd, str(request.get("cwd") or ""))
        status_fd = os.dup(fds[0])
        try:
            pid = os.fork()
        except OSError as error:
            os.close(status_fd)
            return {"error": f"no process can be made: {error.strerror}"}
        if pid == 0:
            self._become(argv, env, cwd, fds, status_fd, tty=bool(request.get("tty")))
        self._by_pid[pid] = Session(exec_id, pid, status_fd)
        poller.register(status_fd, 0)  # tells nothing but that the other end was closed
        return {"pid": pid}

    def _become(
        self, argv: list[str], env: dict[str, str], cwd: str, fds: Sequence[int], status_fd: int, *, tty: bool
    ) -> None:
        """In the child: turn into the command. Does not return."""
        try:
            procs.die_with_parent()
            signal.set_wakeup_fd(-1)
            # SIGPIPE: Python ignores it, and what is ignored stays so in the command.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if len(fds) == 4:
                ends = list(fds[1:])
                if tty:
                    fcntl.ioctl(ends[0], termios.TIOCSCTTY, 0)
            else:
                ends = [os.open(os.devnull, os.O_RDONLY), *self._writers]
            # Above 2 first: an end may itself be 0, 1 or 2.
            ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in ends]
            for place, fd in enumerate(ends):
                os.dup2(fd, place)
            os.chdir(cwd)
            os.execvpe(argv[0], argv, env)
        except BaseException as error:  # whatever happens, this is the child: it must not go on as a second shim
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            where = cwd if isinstance(error, OSError) and error.filename == cwd else argv[0]
            with contextlib.suppress(OSError):
                os.write(status_fd, json.dumps({"error": f"{where}: {text}"}).encode() + b"\n")
        finally:
            os._exit(EXIT_NOT_RUN)

    def reaped(self, pid: int, status: int, poller: select.poll | None) -> bool:
        """A child ended: tell who asked for it. False when it is none of ours."""
        session = self._by_pid.pop(pid, None)
        if session is None:
            return False
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):
            os.write(session.status_fd, json.dumps({"exit": code if code >= 0 else 128 - code}).encode() + b"\n")
        if poller is not None:
            with contextlib.suppress(KeyError):
                poller.unregister(session.status_fd)
        os.close(session.status_fd)
        return True

    def signal(self, exec_id: str, number: int) -> dict[str, Any]:
        """Send a signal to the command's process group; SIGKILL goes to everything it started."""
        for session in self._by_pid.values():
            if session.exec_id == exec_id:
                if number == signal.SIGKILL:
                    procs.kill_session(session.pid, mark_of(exec_id), wait_s_max=KILL_S_MAX)
                else:
                    with contextlib.suppress(OSError):
                        os.killpg(session.pid, number)
                return {}
        return {"error": f"no command {exec_id} runs here"}

    def hung_up(self, fd: int, poller: select.poll) -> bool:
        """Who asked for a command is gone: kill it. False when the descriptor is none of ours."""
        for session in self._by_pid.values():
            if session.status_fd == fd:
                poller.unregister(fd)
                procs.kill_session(session.pid, mark_of(session.exec_id), wait_s_max=KILL_S_MAX)
                return True
        return False
