"""Starts, finds, asks and ends shims, from the agent's side."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from nanopod.model.endpoint import Failure, InstanceSpec
from nanopod.node import files, procs, records, redact
from nanopod.node.machine import Exited

START_S_MAX: Final = 5.0
ASK_S_MAX: Final = 2.0
PRIVATE: Final = (
    "NANOPOD_API_KEY", "NANOPOD_TOKEN", "NANOPOD_URL", "NANOPOD_DATABASE_URL", "VAST_API_KEY", "NANOPOD_STATUS_FD",
    "NANOPOD_INSTANCE_DIR",
)  # fmt: skip
"""Variables of the agent that user code must not inherit."""


Forking = Callable[[Mapping[str, Any], Sequence[int]], "Starting | None"]
"""Asks a fork server to start a shim, from (request, descriptors of lock and log)."""


class StartTrouble(Exception):
    """The shim did not start."""


def mark_of(instance_id: str) -> str:
    """What every process of an instance carries in its environment."""
    return f"NANOPOD_INSTANCE={instance_id}"


def environment_of(instance_id: str, extra: dict[str, str]) -> dict[str, str]:
    """A worker's environment variables: the agent's without secrets, then the image's, then ours."""
    inherited = {name: value for name, value in os.environ.items() if name not in PRIVATE}
    return {**inherited, **extra, "NANOPOD_MODE": "serve", "NANOPOD_INSTANCE": instance_id}


def own_cloud(spec: InstanceSpec) -> dict[str, str]:
    """Variables by which code in an instance reaches its own cloud; none where that cannot be reached."""
    return {"NANOPOD_URL": spec.url, "NANOPOD_API_KEY": spec.join_token} if spec.url else {}


def told_in(directory: Path) -> dict[str, str]:
    """Variables that say where an instance is told of its end and of itself."""
    return {
        "NANOPOD_SHUTDOWN_FILE": str(directory / files.SHUTDOWN),
        "NANOPOD_METADATA_SOCKET": str(directory / files.METADATA),
    }


def try_lock(directory: Path) -> int | None:
    """The descriptor of the instance's lock, or None while something of the instance lives."""
    fd = os.open(directory / files.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


class Starting(Protocol):
    """A process on its way; `returncode` is None, or how it went as far as is known."""

    returncode: int | None

    def poll(self) -> int | None:
        """Look; the return code."""
        ...


def start(
    directory: Path, instance_id: str, fork: Forking | None = None, secrets: Mapping[str, str] | None = None
) -> Starting:  # fmt: skip
    """Start the shim and return at once; it leaves us within milliseconds and writes instance.json.

    `fork` asks a fork server for it; without one, or when none can be asked, a new interpreter is started. The lock
    goes from us to the shim and the worker without a gap, so two epochs cannot run. `secrets` are variables that no
    file may hold: the shim gets them in its environment. Raises `StartTrouble`.
    """
    lock = try_lock(directory)
    if lock is None:
        raise StartTrouble("processes of an earlier start are still there")
    try:
        for name in (files.INSTANCE, files.EXIT, files.FAILURE):
            (directory / name).unlink(missing_ok=True)
        carried = {redact.CARRIED + name: value for name, value in (secrets or {}).items()}
        env = {**os.environ, "NANOPOD_INSTANCE": instance_id, **carried}
        with open(directory / files.LOG, "ab") as log:
            request = {"directory": str(directory), "env": env}
            if fork is not None and (forked := fork(request, (lock, log.fileno()))) is not None:
                return forked
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "nanopod.node.run", str(directory)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,), close_fds=True, env=env,
            )  # fmt: skip
    except OSError as error:
        raise StartTrouble(f"the shim cannot be started: {error.strerror}") from error
    finally:
        os.close(lock)


async def started(directory: Path, epoch: int, process: Starting) -> records.Running:
    """Wait until the shim of this epoch has introduced itself. Raises `StartTrouble`."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + START_S_MAX
    pause_s = 0.002
    while loop.time() < limit:
        process.poll()
        running = records.read_running(directory)
        if running is not None and running.epoch == epoch:
            return running
        if records.read_verdict(directory) is not None or process.returncode not in (None, 0):
            break
        await asyncio.sleep(pause_s)
        pause_s = min(0.05, pause_s * 1.3)
    running = records.read_running(directory)
    if running is not None and running.epoch == epoch:
        return running
    raise StartTrouble(f"the shim did not start within {START_S_MAX:.0f} s: {files.tail_of(directory / files.LOG, 5)}")


def is_alive(running: records.Running) -> bool:
    """True while this very shim lives: same boot, same pid, same start time."""
    return running.boot_id == procs.boot_id() and procs.start_time(running.pid) == running.start_time


async def ask(
    directory: Path, op: str, *, fds: Sequence[int] = (), wait_s_max: float = ASK_S_MAX, **fields: Any
) -> dict[str, Any] | None:
    """One request on control.sock, with descriptors for the shim; None when nobody answers in time."""
    # Socket paths are short, data directories may not be: go by a descriptor of the directory.
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    loop = asyncio.get_running_loop()
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.setblocking(False)
    try:
        async with asyncio.timeout(wait_s_max):
            await loop.sock_connect(peer, f"/proc/self/fd/{fd}/{files.CONTROL}")
            request = json.dumps({"op": op, **fields}).encode() + b"\n"
            if fds:
                # A fresh connection has room for one byte, which carries them.
                socket.send_fds(peer, [request[:1]], list(fds))
                request = request[1:]
            await loop.sock_sendall(peer, request)
            answer = b""
            while not answer.endswith(b"\n") and (data := await loop.sock_recv(peer, 65536)):
                answer += data
            found = json.loads(answer)
            return found if isinstance(found, dict) else None
    except (OSError, ValueError, TimeoutError):
        return None
    finally:
        os.close(fd)
        peer.close()


def terminate(running: records.Running) -> None:
    """SIGTERM to the shim, which lets its worker drain."""
    if is_alive(running):
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)


def kill(instance_id: str, running: records.Running | None) -> list[int]:
    """SIGKILL everything of the instance; who survived. Blocks for seconds at most."""
    session = running.sid if running is not None and running.boot_id == procs.boot_id() else 0
    mark = mark_of(instance_id)
    if running is not None and is_alive(running):
        # While the shim lives all of them are below it, even those that hide their origin.
        procs.kill_tree(running.pid)
    else:
        # So they are below a machine's guest, which adopts orphans: it must not go before them.
        for pid in procs.members(session, mark):
            procs.kill_tree(pid)
    return procs.kill_session(session, mark)


def exited(directory: Path, epoch: int) -> Exited:
    """How an instance whose shim is gone came to its end, from what it wrote."""
    verdict = records.read_verdict(directory)
    tail = files.tail_of(directory / files.LOG)
    if verdict is None or verdict.epoch != epoch:
        reason = "its shim ended without a word: it was killed, or the machine or the cloud was restarted"
        verdict = records.lost(epoch, reason, tail)
        records.write_verdict(directory, verdict)
        failure = Failure("run", reason, log_tail=tail, user_fault=False)
        return Exited(None, verdict.signal, False, reason, failure)
    if verdict.exit_code == records.EXIT_FENCED:
        return Exited(verdict.exit_code, None, True, "fenced: a newer epoch of it was started")
    if verdict.exit_code == 0 and _once(directory, epoch):
        return Exited(0, None, True, "done")
    if verdict.asked:
        return Exited(verdict.exit_code, verdict.signal, True, verdict.reason)
    failure = records.read_failure(directory) or _death(verdict)
    return Exited(verdict.exit_code, verdict.signal, False, failure.message, failure)


def _once(directory: Path, epoch: int) -> bool:
    """True for a machine that ends by itself, with its one command."""
    try:
        plan = json.loads((directory / files.BOOT).read_bytes())
        return bool(plan["once"]) and plan["epoch"] == epoch
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _death(verdict: records.Verdict) -> Failure:
    """The failure of a worker that ended without saying why."""
    killed = verdict.signal == signal.SIGKILL
    if verdict.signal is not None:
        how = f"was ended by {signal.Signals(verdict.signal).name}" if verdict.signal < 65 else "was ended by a signal"
        how += " (out of memory, or killed by hand)" if killed else ""
    else:
        how = f"ended by itself with exit status {verdict.exit_code}"
    was_ready = verdict.phase in ("ready", "draining")
    return Failure(
        "run" if was_ready else "start", f"the worker {how}", log_tail=verdict.log_tail, user_fault=not killed
    )


def strip(directory: Path) -> None:
    """Remove everything of an ended instance except what it printed and how it ended; links to it elsewhere, too."""
    with contextlib.suppress(OSError):
        for line in (directory / files.LINKS).read_text().splitlines():
            if line and os.path.islink(line) and Path(os.readlink(line)).is_relative_to(directory):
                os.unlink(line)
    for path in list(directory.iterdir()):
        if path.name in (files.LOG, f"{files.LOG}.1", files.JOURNAL, files.EXIT, files.FAILURE):
            continue
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a directory, also where what ran in it took its own permissions away; what cannot go stays."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.is_dir() or path.is_symlink():
        return
    with contextlib.suppress(OSError):
        path.chmod(0o700)
    for top, names, _ in os.walk(path):
        for name in names:
            below = os.path.join(top, name)
            with contextlib.suppress(OSError):
                if not os.path.islink(below):
                    os.chmod(below, 0o700)
    shutil.rmtree(path, ignore_errors=True)
