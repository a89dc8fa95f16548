"""The supervisor of `nanopod up`: one process tree that restarts what dies and takes everything with it when it ends.

```
up ── server ── (API, reconcilers, store)
   ├─ gateway   (the front door)
   ├─ agent     (this machine as a node)
   └─ shims     (one per instance, started by the agent, re-parented to us because we are their subreaper)
```
Every child asks the kernel to be killed with us (PR_SET_PDEATHSIG), so `kill -9` of this process leaves nothing behind.
The shims are not the agent's children: an agent that crashes is restarted and finds its workers still serving.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

from nanopod.model.errors import Conflict, Invalid, NanopodError
from nanopod.model.layout import Layout
from nanopod.node.procs import adopt_orphans, children_of, die_with_parent

BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 10.0
STEADY_S: Final = 10.0
"""A child that lived this long starts its back-off anew."""
DRAIN_S_MAX: Final = 15.0
"""How long a Ctrl-C waits for each layer of the tree to finish its work."""
LOG_BYTES_MAX: Final = 32 << 20
FREE_BYTES_MIN: Final = 8 << 20
EXIT_USAGE: Final = 2
"""Exit status of a child whose settings cannot work (a port in use): restarting it would not help."""


@dataclass(slots=True)
class Child:
    """One supervised process and its restart state."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    fails: int = 0
    restart_at: float | None = None
    last_exit: str = ""


def data_directory(text: str | None) -> Path:
    """The data directory: `text`, else NANOPOD_HOME, else `$XDG_DATA_HOME/nanopod`, else `~/.local/share/nanopod`."""
    chosen = text or os.environ.get("NANOPOD_HOME")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "nanopod")
    return Path(chosen).expanduser().absolute()


def prepare(layout: Layout) -> IO[str]:
    """Make the directories and take the lock. Raises `Conflict` when another cloud owns the directory."""
    try:
        for directory in (layout.data, layout.logs, layout.blobs, layout.gateway, layout.instances, layout.run):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)
        if layout.run.stat().st_uid != os.getuid():
            raise Invalid(f"{layout.run} belongs to another user; remove it or choose another --data-dir")
        lock = open(layout.lock, "a+")  # noqa: SIM115 - held until the process ends
    except OSError as error:
        raise Invalid(f"cannot use {layout.data}: {error.strerror}; choose another with --data-dir") from error
    free = shutil.disk_usage(layout.data).free
    if free < FREE_BYTES_MIN:
        lock.close()
        raise Invalid(
            f"only {free >> 10} KiB of disk space are free at {layout.data}; nanopod needs {FREE_BYTES_MIN >> 20} MiB "
            "to record what it does: free some, or choose another place with --data-dir"
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        known = read_state(layout) or {}
        raise Conflict(
            f"a cloud already runs in {layout.data} (pid {known.get('pid', '?')}, {known.get('url', 'starting')}); "
            "use it, stop it with `nanopod down`, or choose another directory with --data-dir"
        ) from None
    return lock


def is_locked(layout: Layout) -> bool:
    """True while a `nanopod up` owns the directory."""
    try:
        with open(layout.lock) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
    except OSError:
        return False
    return False


def read_state(layout: Layout) -> dict[str, Any] | None:
    """What the running (or last) cloud wrote about itself, or None."""
    try:
        found = json.loads(layout.up_state.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_port(host: str, port: int) -> int:
    """A port that can be bound: `port`, or a free one for 0. Raises `Invalid` naming the fix."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Invalid(
                f"port {port} on {host} cannot be used ({error.strerror}): stop what listens there, "
                f"or choose another with --port {port + 1}",
                field="port",
            ) from error
        return int(probe.getsockname()[1])


class Supervisor:
    """Starts, watches, restarts and ends the processes of one cloud. `run` blocks until a signal, or `stdin` EOF."""

    def __init__(
        self, layout: Layout, host: str, port: int, *, embedded: bool = False, server_flags: Sequence[str] = ()
    ) -> None:
        self.layout = layout
        self.host = host
        self.port = port
        self.embedded = embedded
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.started_at = time.time()
        self.fatal: str | None = None
        self._stop_signals = 0
        data = str(layout.data)
        extra = {"NANOPOD_UP_PID": str(os.getpid())} | ({"NANOPOD_LOCAL": "1"} if embedded else {})
        python = [sys.executable, "-m"]
        listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.children = [
            Child("server", [*python, "nanopod.server", "--data-dir", data, *server_flags], extra),
            Child("gateway", [*python, "nanopod.gateway", "--data-dir", data, "--listen", listen], extra),
            Child("agent", [*python, "nanopod.node.agent", "--data-dir", data], extra),
        ]

    # --- starting ---

    def _start(self, child: Child) -> None:
        log = self.layout.logs / f"{child.name}.log"
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_BYTES_MAX:
                log.replace(log.with_suffix(".log.1"))
        parent = os.getpid()

        def bind() -> None:
            die_with_parent()
            if os.getppid() != parent:
                os._exit(1)  # the parent died before the request took effect

        with open(log, "ab") as output:
            child.popen = subprocess.Popen(
                child.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **child.env},
                start_new_session=True,  # a terminal's Ctrl-C reaches us alone; we drain in order
                preexec_fn=bind,
            )
        child.started_at = time.monotonic()
        child.restart_at = None

    def _write_state(self) -> None:
        state = {
            "pid": os.getpid(),
            "url": self.url,
            "data_dir": str(self.layout.data),
            "key_file": str(self.layout.admin_key),
            "started_at": self.started_at,
            "embedded": self.embedded,
            "processes": {
                child.name: {"pid": child.popen.pid if child.popen else None, "restarts": child.fails}
                for child in self.children
            },
        }
        part = self.layout.up_state.with_suffix(".part")
        # A full disk must not bring the cloud down: this file only tells others where we are.
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(state, indent=1))
            part.replace(self.layout.up_state)

    # --- watching ---

    def _reap(self) -> None:
        """Collect every ended child, ours and adopted; plan restarts."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self.children:
                if child.popen is not None and child.popen.pid == pid:
                    self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        assert child.popen is not None
        child.popen.returncode = code
        child.popen = None
        child.last_exit = f"signal {-code}" if code < 0 else f"status {code}"
        lived_s = time.monotonic() - child.started_at
        if self._stop_signals:
            return
        if code == EXIT_USAGE and lived_s < STEADY_S:
            self.fatal = f"the {child.name} cannot start:\n{self.tail(child.name)}"
            return
        child.fails = 1 if lived_s > STEADY_S else child.fails + 1
        delay_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** (child.fails - 1))
        child.restart_at = time.monotonic() + delay_s
        print(f"{child.name} ended with {child.last_exit}; restarting in {delay_s:.1f} s", file=sys.stderr, flush=True)

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a child's log."""
        try:
            text = (self.layout.logs / f"{name}.log").read_bytes()[-16384:].decode(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stop_signals += 1

    def run(self, on_tick: Callable[[], None]) -> None:
        """Start everything and watch until told to stop; `on_tick` is called a few times a second meanwhile.

        Raises `NanopodError` when a child says that its settings cannot work.
        """
        adopt_orphans()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        try:
            for child in self.children:
                self._start(child)
            self._write_state()
            while not self._stop_signals and self.fatal is None:
                self._watch(wake_read)
                on_tick()
            if self.fatal is not None:
                raise NanopodError(self.fatal)
        finally:
            self._stop()

    def _watch(self, wake_read: int) -> None:
        """Wait for a signal, the parent's end (embedded), or the next restart that is due; then act on it."""
        now = time.monotonic()
        due = [child.restart_at - now for child in self.children if child.restart_at is not None]
        watched = [wake_read, *([0] if self.embedded else [])]
        ready, _, _ = select.select(watched, [], [], max(0.0, min([0.25, *due])))
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        if 0 in ready and not os.read(0, 4096):
            self._stop_signals += 1
        self._reap()
        now = time.monotonic()
        for child in self.children:
            if child.restart_at is not None and child.restart_at <= now and not self._stop_signals:
                self._start(child)
                self._write_state()

    # --- stopping ---

    def _stop(self) -> None:
        """Drain in order: agent (so that it replaces nothing), gateway, instances, server. A second signal kills."""
        self._stop_signals = max(1, self._stop_signals)
        agent, gateway, server = self.children[2], self.children[1], self.children[0]
        self._end(lambda: self._pids(agent), signal.SIGTERM)
        self._end(lambda: self._pids(gateway), signal.SIGTERM)
        self._end(self._adopted, signal.SIGTERM)
        self._end(lambda: self._pids(server), signal.SIGTERM)
        self.layout.up_state.unlink(missing_ok=True)

    def _pids(self, child: Child) -> list[int]:
        return [child.popen.pid] if child.popen is not None else []

    def _adopted(self) -> list[int]:
        """Shims: children that others started and the kernel gave to us."""
        ours = {pid for child in self.children for pid in self._pids(child)}
        return [pid for pid in children_of(os.getpid()) if pid not in ours]

    def _end(self, pids: Callable[[], list[int]], number: signal.Signals) -> None:
        """Ask those processes to end; after `DRAIN_S_MAX`, or at a second signal, kill them."""
        limit = time.monotonic() + DRAIN_S_MAX
        asked: set[int] = set()
        patience = self._stop_signals
        while remaining := pids():
            late = time.monotonic() > limit or self._stop_signals > patience
            for pid in remaining:
                if late or pid not in asked:
                    asked.add(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL if late else number)
            time.sleep(0.01)
            self._reap()
