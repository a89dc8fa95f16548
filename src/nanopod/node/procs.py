"""Facts and verbs about Linux processes that the standard library lacks. Imports little: the shim's start counts it."""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import signal
import socket
import time
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel for `number` when the present parent ends. Check `os.getppid()` afterwards: it may be gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none escapes."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def receive(peer: socket.socket, size: int, fds_max: int) -> tuple[bytes, list[int]]:
    """Data and descriptors from a unix socket; no program that is executed later inherits one.

    `socket.recv_fds` takes the flag for that and forgets it: whatever a command left in the background would hold the
    other ends of its pipes, and its end would not be seen.
    """
    fds = array.array("i")
    data, ancillary, _, _ = peer.recvmsg(size, socket.CMSG_LEN(fds_max * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def boot_id() -> str:
    """An id of this boot of the kernel; pids mean nothing across two of them."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat from the state on; empty for no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command may hold spaces and parentheses: the other fields start after its last ")".
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; with the pid it names one process for good.

    None when there is no such process, or only its zombie is left.
    """
    fields = _stat(pid)
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def parent_of(pid: int) -> int | None:
    """The parent's pid, None for no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children_of(pid: int) -> list[int]:
    """Living direct children."""
    return [child for child in _pids() if parent_of(child) == pid and start_time(child) is not None]


def descendants(pid: int) -> list[int]:
    """Living children, their children, and so on; those nearest first."""
    by_parent: dict[int, list[int]] = {}
    for child in _pids():
        fields = _stat(child)
        if fields and fields[0] not in (b"Z", b"X"):
            by_parent.setdefault(int(fields[1]), []).append(child)
    found = []
    todo = [pid]
    while todo:
        children = by_parent.get(todo.pop(0), [])
        found += children
        todo += children
    return found


def kill_tree(pid: int, *, wait_s_max: float = 2.0) -> list[int]:
    """SIGKILL all descendants of a process, but not itself, until none is left; returns who survived the limit.

    Finds even those that changed their session and environment, as long as the process adopts orphans.
    """
    limit = time.monotonic() + wait_s_max
    while left := descendants(pid):
        for child in left:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        if time.monotonic() > limit:
            return left
        time.sleep(0.005)
    return []


def members(session: int, mark: str = "") -> list[int]:
    """Living processes of a session, and those whose environment holds `mark` (a whole NAME=value)."""
    found = []
    needle = mark.encode()
    for pid in _pids():
        fields = _stat(pid)
        if not fields or fields[0] in (b"Z", b"X") or pid == os.getpid():
            continue
        if session > 0 and int(fields[3]) == session:
            found.append(pid)
        elif needle:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                if needle in file.read().split(b"\0"):
                    found.append(pid)
    return found


def kill_session(session: int, mark: str = "", *, wait_s_max: float = 5.0) -> list[int]:
    """SIGKILL a session and everything that carries `mark`, until none is left; returns who survived the limit."""
    limit = time.monotonic() + wait_s_max
    while left := members(session, mark):
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > limit:
            return left
        time.sleep(0.005)
    return []
