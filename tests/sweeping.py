"""Nothing that a test run starts outlives it: not its processes, not its directories, however the run itself ends.

Whatever a run starts inherits a mark in its environment, and the run's own temporary directories are written down as
they are made. At the end what is left is swept, named, and fails the run. A process beside the run holds the other end of a pipe and
does the same when the run is killed. As a program: MARK, then a directory per line of standard input.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

NAME: Final = "PYTEST_RUN_MARK"
END_S_MAX: Final = 10.0


class Sweeper:
    """Sweeps when this process ends. One per run; it marks the environment of this process."""

    def __init__(self) -> None:
        mark = secrets.token_hex(8)
        command = [sys.executable, "-I", "-S", __file__, mark]
        # Before the mark is set, and in a session of its own: Ctrl-C in a terminal must not end it.
        self._beside = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._made: list[str] = []
        self._mark = mark
        os.environ[NAME] = mark
        sys.addaudithook(self._audit)
        # The first to be registered is the last to be run: what the product removes at exit is removed by then.
        atexit.register(self._finish)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "tempfile.mkdtemp" and self._beside.stdin is not None and not self._beside.stdin.closed:
            path = os.path.abspath(arguments[0])
            self._made.append(path)
            with contextlib.suppress(OSError):
                self._beside.stdin.write(path.encode() + b"\n")
                self._beside.stdin.flush()

    def _finish(self) -> None:
        limit = time.monotonic() + END_S_MAX
        while (left := marked(self._mark)) and time.monotonic() < limit:
            time.sleep(0.05)  # what has just been told to end may need a moment
        found = [f"process {pid}: {' '.join(argv)[:200]}" for pid, argv in left.items()]
        found += [f"directory {path}" for path in self._made if os.path.exists(path)]
        sweep(self._mark, self._made)
        assert self._beside.stdin is not None
        self._beside.stdin.close()
        self._beside.wait(END_S_MAX)
        if found:
            sys.stdout.write("\n".join(["the tests left behind:", *found, ""]))
            sys.stdout.flush()
            os._exit(1)


def marked(mark: str) -> dict[int, list[str]]:
    """{pid: argv} of the living processes, other than this one, that inherited the mark."""
    needle = f"{NAME}={mark}".encode()
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if needle not in Path(entry.path, "environ").read_bytes().split(b"\0"):
                continue
            if Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                continue
            argv = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            found[int(entry.name)] = [word.decode(errors="replace") for word in argv if word.strip(b" -")]
    return found


def sweep(mark: str, directories: Iterable[str]) -> None:
    """End every process that has the mark, then remove the directories."""
    limit = time.monotonic() + END_S_MAX
    while (left := marked(mark)) and time.monotonic() < limit:
        for pid, argv in left.items():
            # A database server that is killed leaves shared memory behind; this is how it ends at once by itself.
            is_database = bool(argv) and os.path.basename(argv[0]) == "postgres"
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGQUIT if is_database else signal.SIGKILL)
        time.sleep(0.05)
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    """Wait for the end of the run, whatever it is, and sweep."""
    lines = sys.stdin.read().splitlines()
    sweep(sys.argv[1], lines)


if __name__ == "__main__":
    main()
