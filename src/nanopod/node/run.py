"""The shim of one instance, `python -m nanopod.node.run DIR`: parent of one worker, child of the cloud's supervisor.

It is not the agent's child, so an agent may crash and be started again while workers go on serving. It starts the
worker, records what it prints, forwards SIGTERM, collects whatever it left behind, writes how it ended, answers on
control.sock (and runs further commands inside the instance), and fences: a worker that neither agent nor gateway has
been in touch with for `lease_s` seconds is stopped, because by then the server may have started another one in its
place. Everything dies with the shim and the shim with the supervisor. A machine's guest is a worker like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from nanopod.node import files, procs, redact
from nanopod.node.journal import Capture, Journal
from nanopod.node.sessions import Sessions

REPARENT_S_MAX: Final = 2.0
KILL_AFTER_S: Final = 2.0
STOPS: Final = (signal.SIGTERM, signal.SIGINT)
"""The worker has its grace and so much more, then it is killed."""
FENCED_GRACE_S: Final = 3.0
"""A fenced worker ends faster: another one may be running in its place."""
POLL_S_MAX: Final = 1.0
LOG_BYTES_MAX: Final = 64 << 20
LOG_BYTES_KEPT: Final = 8 << 20
REQUEST_BYTES_MAX: Final = 1 << 20
STATUS_BYTES_MAX: Final = 4096
FDS_MAX: Final = 4
CLIENTS_MAX: Final = 16
CLIENT_S_MAX: Final = 5.0


Become = Callable[[list[str], dict[str, str], str, int], None]
"""Goes on as a worker, from (argv, environment, directory, status descriptor); does not return."""


class Client:
    """A connection on control.sock: what it said so far, and the descriptors that came with it."""

    __slots__ = ("fds", "peer", "said", "until")

    def __init__(self, peer: socket.socket, until: float) -> None:
        self.peer = peer
        self.until = until
        self.said = b""
        self.fds: list[int] = []


class Shim:
    """One worker process and what is known of it."""

    def __init__(
        self, spec: dict[str, Any], become: Become | None = None, secrets: dict[str, str] | None = None
    ) -> None:  # fmt: skip
        launch = spec["launch"]
        self.become = become if launch.get("fork") else None
        self.epoch: int = spec["instance"]["epoch"]
        self.argv: list[str] = launch["argv"]
        self.env: dict[str, str] = launch["env"]
        if secrets:
            self.env = {**self.env, **secrets, redact.NAMES: ",".join(secrets)}
        self.cwd: str = launch["cwd"]
        self.lease_s: float = launch["lease_s"]
        self.grace_s: float = launch["grace_s"]
        self.worker = 0
        self.status: int | None = None
        self.asked = False
        self.reason = ""
        self.linked = False
        self.phase = "starting"
        self.started = self.touched = time.monotonic()
        """`touched`: when the agent pinged last, or the gateway link was last seen up."""
        self.kill_at: float | None = None
        self.capture = Capture(2, Journal(files.JOURNAL), redact.Redactor((secrets or {}).values()))
        self.sessions = Sessions(self.env, self.cwd, self.capture.writers)
        self._said = b""
        self._clients: dict[int, Client] = {}

    # --- the worker ---

    def start(self, status_fd: int) -> None:
        """Fork and exec the worker; what it prints and its state come by pipes.

        `STOPS` are to be blocked: a stop that comes before there is a worker to tell would reach nobody.
        """
        shim = os.getpid()
        self.worker = os.fork()
        if self.worker:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            return
        try:
            procs.die_with_parent()
            if os.getppid() != shim:
                os._exit(1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            for place, writer in enumerate(self.capture.writers, 1):
                os.dup2(writer, place)
            os.set_inheritable(status_fd, True)
            env = {**self.env, "NANOPOD_STATUS_FD": str(status_fd)}
            if self.become is not None and self.argv[0] == sys.executable:
                self.become(self.argv, env, self.cwd, status_fd)
            os.chdir(self.cwd)
            os.execve(self.argv[0], self.argv, env)
        except BaseException as error:  # whatever happens, this is the child: it must not go on as a second shim
            os.write(self.capture.writers[1], f"cannot start {self.argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)

    def stop(self, reason: str, grace_s: float | None = None) -> None:
        """Ask the worker to drain and end; it is killed after its grace."""
        if self.asked or self.status is not None:
            return
        self.asked, self.reason = True, reason
        self.kill_at = time.monotonic() + (self.grace_s if grace_s is None else grace_s) + KILL_AFTER_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker, signal.SIGTERM)

    def reap(self, poller: select.poll | None = None) -> None:
        """Collect every child that ended, the worker's orphans too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.worker:
                self.status = status
            else:
                self.sessions.reaped(pid, status, poller)

    def on_time(self, now: float) -> None:
        """The lease, the end of the grace period, the size of the log."""
        if self.linked:
            self.touched = now
        if now - self.touched > self.lease_s:
            reason = f"neither agent nor gateway was in touch for {self.lease_s:.0f} s: fenced"
            self.stop(reason, min(self.grace_s, FENCED_GRACE_S))
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + KILL_AFTER_S
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.worker, signal.SIGKILL)
        self.capture.flush(now)
        trim_log()

    def heard(self, data: bytes) -> None:
        """Lines of JSON of the worker: whether it is linked, and what it is doing."""
        lines = (self._said + data).split(b"\n")
        self._said = lines.pop()[-STATUS_BYTES_MAX:]
        for line in lines:
            with contextlib.suppress(ValueError, AttributeError):
                told = json.loads(line)
                self.linked = bool(told.get("linked", self.linked))
                self.phase = str(told.get("phase", self.phase))
        self.touched = time.monotonic()

    # --- control.sock ---

    def accept(self, listener: socket.socket, poller: select.poll) -> None:
        """A new connection; the oldest one goes when there are too many."""
        try:
            client, _ = listener.accept()
        except OSError:
            return
        client.setblocking(False)
        if len(self._clients) >= CLIENTS_MAX:
            self.hang_up(next(iter(self._clients)), poller)
        self._clients[client.fileno()] = Client(client, time.monotonic() + CLIENT_S_MAX)
        poller.register(client, select.POLLIN)

    def answer(self, fd: int, poller: select.poll) -> None:
        """One line of JSON in (with descriptors, for `exec`), one out."""
        client = self._clients[fd]
        try:
            data, fds = procs.receive(client.peer, 65536, FDS_MAX)
        except OSError:
            data, fds = b"", []
        client.said += data
        client.fds += fds
        if b"\n" not in data and data and len(client.said) < REQUEST_BYTES_MAX:
            return
        with contextlib.suppress(OSError, ValueError):
            answer = self.do(json.loads(client.said), client.fds, poller)
            client.peer.sendall(json.dumps(answer).encode() + b"\n")
        self.hang_up(fd, poller)

    def do(self, request: dict[str, Any], fds: list[int], poller: select.poll) -> dict[str, Any]:
        """`ping` (renews the lease), `status`, `stop`, `exec`, `signal`."""
        op = request.get("op")
        if op == "ping":
            self.touched = time.monotonic()
        elif op == "stop":
            self.stop(str(request.get("reason") or "stopped"))
        elif op == "exec":
            return self.sessions.start(request, fds, poller)
        elif op == "signal":
            return self.sessions.signal(str(request.get("id")), int(request.get("number") or 0))
        elif op != "status":
            return {"error": "op is one of: ping, status, stop, exec, signal"}
        return {
            "epoch": self.epoch, "pid": os.getpid(), "worker": self.worker, "linked": self.linked,
            "phase": "stopping" if self.asked else self.phase, "up_s": round(time.monotonic() - self.started, 3),
        }  # fmt: skip

    def hang_up(self, fd: int, poller: select.poll) -> None:
        """Close one connection, and what came with it."""
        client = self._clients.pop(fd)
        poller.unregister(fd)
        client.peer.close()
        for received in client.fds:
            os.close(received)

    def hang_up_late(self, poller: select.poll) -> None:
        """Close connections that say nothing."""
        now = time.monotonic()
        for fd in [fd for fd, client in self._clients.items() if client.until < now]:
            self.hang_up(fd, poller)

    # --- the loop ---

    def watch(self, listener: socket.socket, status_fd: int, wake_fd: int) -> None:
        """Until the worker ended."""
        poller = select.poll()
        for fd in (listener.fileno(), status_fd, wake_fd, *self.capture.fds):
            poller.register(fd, select.POLLIN)
        while self.status is None:
            now = time.monotonic()
            due = [at for at in (self.touched + self.lease_s, self.kill_at, self.capture.due) if at is not None]
            wait_s = min(POLL_S_MAX, max(0.001, min(due) - now + 0.001))
            for fd, event in poller.poll(wait_s * 1000):
                if fd == wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_fd, 4096)
                elif fd == status_fd:
                    data = os.read(status_fd, 65536)
                    if data:
                        self.heard(data)
                    else:
                        self.linked = False
                        poller.unregister(status_fd)
                elif fd == listener.fileno():
                    self.accept(listener, poller)
                elif fd in self.capture.fds:
                    self.capture.read(fd)
                elif fd in self._clients:
                    self.answer(fd, poller)
                elif event and not self.sessions.hung_up(fd, poller):
                    poller.unregister(fd)
            self.reap(poller)
            self.on_time(time.monotonic())
            self.hang_up_late(poller)

    def finish(self) -> None:
        """Kill what the worker left behind, then say how it ended."""
        limit = time.monotonic() + KILL_AFTER_S
        while (left := procs.children_of(os.getpid())) and time.monotonic() < limit:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.reap()
            time.sleep(0.002)
        self.capture.finish()
        code = os.waitstatus_to_exitcode(self.status) if self.status is not None else -9
        verdict = {
            "epoch": self.epoch,
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "asked": self.asked,
            "reason": self.reason,
            "phase": self.phase,
            "log_tail": files.tail_of(files.LOG),
            "at": time.time(),
        }
        files.write_atomic(files.EXIT, json.dumps(verdict).encode())


def trim_log() -> None:
    """Keep the end of a log that grew too long. The worker appends, so the file can be shortened under it."""
    with contextlib.suppress(OSError):
        size = os.stat(files.LOG).st_size
        if size > LOG_BYTES_MAX:
            with open(files.LOG, "rb+") as log:
                log.seek(size - LOG_BYTES_KEPT)
                kept = log.read()
                files.write_atomic(f"{files.LOG}.1", kept)
                log.truncate(0)


def detach() -> None:
    """Leave the agent: second fork, own session, new parent (the supervisor or init), and die with a supervisor."""
    up_pid = int(os.environ.get("NANOPOD_UP_PID") or 0)
    starter = os.getpid()
    if os.fork():
        os._exit(0)
    os.setsid()
    limit = time.monotonic() + REPARENT_S_MAX
    while os.getppid() == starter and time.monotonic() < limit:
        time.sleep(0.0005)
    if up_pid:
        if os.getppid() == up_pid:
            procs.die_with_parent()
        if os.getppid() != up_pid and procs.start_time(up_pid) is None:
            # The supervisor ended before we could ask to end with it.
            os._exit(1)
    procs.adopt_orphans()


def introduce(epoch: int) -> None:
    """Write instance.json, by which a later agent recognises this shim."""
    running = {
        "epoch": epoch,
        "boot_id": procs.boot_id(),
        "pid": os.getpid(),
        "start_time": procs.start_time(os.getpid()),
        "sid": os.getsid(0),
    }
    files.write_atomic(files.INSTANCE, json.dumps(running).encode())


def main(argv: list[str], become: Become | None = None) -> int:
    """Run the instance in the directory `argv[1]` to its end; `become` turns a fork into its worker without an exec."""
    if len(argv) != 2:
        print("usage: python -m nanopod.node.run DIR", file=sys.stderr)
        return 2
    # Socket paths are short: control.sock is reached from here, however deep the directory lies.
    os.chdir(argv[1])
    with open(files.SPEC, "rb") as file:
        shim = Shim(json.load(file), become, redact.taken(os.environ))
    detach()
    introduce(shim.epoch)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(files.CONTROL)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(files.CONTROL)
    os.chmod(files.CONTROL, 0o600)
    listener.listen(CLIENTS_MAX)
    listener.setblocking(False)
    wake_read, wake_write = os.pipe()
    status_read, status_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            shim.stop(f"{signal.Signals(number).name} was sent to it")

    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    shim.start(status_write)
    os.close(status_write)
    try:
        shim.watch(listener, status_read, wake_read)
    finally:
        shim.finish()
        with contextlib.suppress(OSError):
            os.unlink(files.CONTROL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
