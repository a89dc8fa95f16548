"""Local mode: a cloud of one's own, started as a child process when no server is known, gone when this program ends.

Its state is in `.nanopod/` beside the user's file. A second program in the same directory uses the cloud that runs
there, or a private one when that cannot be. The child holds the other end of a pipe that only this process keeps open,
so it ends even when this process is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nanopod.client.config import Target, running_cloud
from nanopod.model.errors import DeploymentFailed
from nanopod.model.layout import Layout

READY_S_MAX: Final = 60.0
END_S_MAX: Final = 10.0
JOIN_S_MAX: Final = 10.0
"""How long a second program waits for the cloud that a first one is just starting."""
LOG_LINES: Final = 30
_HIDDEN: Final = ("NANOPOD_URL", "NANOPOD_API_KEY", "NANOPOD_MODE", "IS_DEPLOYMENT", "NANOPOD_HOME")


@dataclass(slots=True)
class LocalCloud:
    """A running cloud. `child` is None when another program started it."""

    target: Target
    pid: int
    directory: Path
    child: subprocess.Popen[bytes] | None = None

    def is_alive(self) -> bool:
        """True while its supervisor runs."""
        if self.child is not None:
            return self.child.poll() is None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


_lock = threading.Lock()
_clouds: dict[Path, LocalCloud] = {}


def cloud_for(directory: Path) -> LocalCloud:
    """The cloud of the user's directory; started when none runs. Raises `DeploymentFailed` when it does not start."""
    with _lock:
        known = _clouds.get(directory)
        if known is not None and known.is_alive():
            return known
        _clouds[directory] = cloud = _join(directory / ".nanopod") or _start(_writable(directory))
        return cloud


def _join(data: Path, *, state: Mapping[str, Any] | None = None) -> LocalCloud | None:
    """The cloud that another program runs in `data`, when it answers."""
    state = state or running_cloud(data)
    if state is None:
        return None
    try:
        key = Path(state.get("key_file") or Layout(data).admin_key).read_text().strip()
    except OSError:
        return None
    return LocalCloud(Target(str(state["url"]), key), int(state["pid"]), data) if _answers(str(state["url"])) else None


def _answers(url: str) -> bool:
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=2.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _writable(directory: Path) -> Path:
    data = directory / ".nanopod"
    try:
        data.mkdir(mode=0o700, exist_ok=True)
        if os.access(data, os.W_OK):
            return data
    except OSError:
        pass
    return _private()


def _private() -> Path:
    """A data directory of this process alone, removed at its end."""
    data = Path(tempfile.mkdtemp(prefix="nanopod-"))
    atexit.register(shutil.rmtree, data, ignore_errors=True)
    return data


def start_private(*flags: str) -> LocalCloud:
    """A cloud of this program alone, in a directory of its own; `end_private` ends it and removes that directory.

    Raises `DeploymentFailed` when it does not start.
    """
    data = Path(tempfile.mkdtemp(prefix="nanopod-"))
    child, line, log = _spawn(data, flags)
    if not line:
        _end(child)
        shutil.rmtree(data, ignore_errors=True)
        raise DeploymentFailed(f"the cloud for this test did not start:\n{log}", stage="start", log_tail=log)
    # The other way round than they are run: for programs that end without `end_private`.
    atexit.register(shutil.rmtree, data, ignore_errors=True)
    atexit.register(_end, child)
    facts = json.loads(line)
    return LocalCloud(Target(facts["url"], facts["key"]), int(facts["pid"]), data, child)


def end_private(cloud: LocalCloud) -> None:
    """End a cloud of `start_private`, drained, and forget everything in it."""
    if cloud.child is not None:
        _end(cloud.child)
    shutil.rmtree(cloud.directory, ignore_errors=True)


def _start(data: Path) -> LocalCloud:
    child, line, log = _spawn(data)
    if not line and (cloud := _wait_for_other(data)) is not None:
        _end(child)
        return cloud
    if not line and child.poll() is not None and "already" in log:
        # Somebody holds this directory but does not answer: do not wait for them, do not disturb them.
        data = _private()
        child, line, log = _spawn(data)
    if not line:
        code = child.poll()
        _end(child)
        what = f"ended with status {code}" if code is not None else f"was not ready within {READY_S_MAX:.0f} s"
        raise DeploymentFailed(f"the local cloud in {data} {what}:\n{log}", stage="start", log_tail=log)
    facts = json.loads(line)
    atexit.register(_end, child, _log_file(data))
    return LocalCloud(Target(facts["url"], facts["key"]), int(facts["pid"]), data, child)


def _spawn(data: Path, flags: Sequence[str] = ()) -> tuple[subprocess.Popen[bytes], bytes, str]:
    """Start a cloud; (process, its line of facts or nothing, the last lines of its log)."""
    ready, told = os.pipe()
    (data / "logs").mkdir(parents=True, exist_ok=True)
    log = _log_file(data)
    environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    command = [sys.executable, "-m", "nanopod", "up", "--embedded", "--data-dir", str(data), "--ready-fd", str(told)]
    command += flags
    try:
        with open(log, "wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[told],
                env=environment,
                # Its own session: Ctrl-C reaches this program, whose end then ends the cloud in good order.
                start_new_session=True,
            )
    finally:
        os.close(told)
    line = _read_line(ready, READY_S_MAX)
    if not line:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
    return child, line, _tail(log)


def _read_line(descriptor: int, timeout_s: float) -> bytes:
    """One line from a pipe; empty when it closes or the time is over."""
    deadline = time.monotonic() + timeout_s
    found = b""
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while not found.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                return b""
            part = pipe.read(65536)
            if not part:
                return b""
            found += part
    return found


def _wait_for_other(data: Path) -> LocalCloud | None:
    """Another program took the directory in the same moment: wait until its cloud is ready."""
    deadline = time.monotonic() + JOIN_S_MAX
    while "already" in _tail(_log_file(data)) or running_cloud(data) is not None:
        if (cloud := _join(data)) is not None:
            return cloud
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    return None


def _log_file(data: Path) -> Path:
    """What the supervisor says; each program that tries to start one writes its own."""
    return data / "logs" / f"local-{os.getpid()}.log"


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    except OSError:
        return ""


def _end(child: subprocess.Popen[bytes], log: Path | None = None) -> None:
    """Let a child drain and end, with force when it takes too long; its log goes when all was well."""
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    try:
        child.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(2.0)
    if log is not None and child.returncode == 0:
        log.unlink(missing_ok=True)


def _forget() -> None:
    """A forked child must neither end nor use its parent's cloud as its own child."""
    global _lock
    _lock = threading.Lock()
    for cloud in _clouds.values():
        if cloud.child is not None:
            atexit.unregister(_end)
            if cloud.child.stdin is not None:
                cloud.child.stdin.close()
            cloud.child = None


os.register_at_fork(after_in_child=_forget)
