"""The first process of a machine, `python -m nanopod.node.guest DIR`: runs its start-up, then stays until stopped.

It is to a machine what init is to a system: programs one after the other in a session of their own, orphans collected,
and alive when they are done. A program that fails is written down (state.json) and changes nothing else. A machine with
one command (`once`) ends with it, by its exit status; what it changed in volumes is kept if that is 0. SIGTERM goes
to everything that runs in the machine; once nothing is left, the guest ends. Its parent is the shim; should that be
killed, the guest kills everything and ends, too. Imports little.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import time
from typing import Any, Final

from nanopod.node import files, procs

SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
IDLE_S: Final = 60.0
STOPPING_S: Final = 0.2
"""How often a machine that stops is searched for processes that were made since."""
BUSY_TRIES: Final = 50
BUSY_S: Final = 0.01
EXIT_NOT_RUN: Final = 127
EXIT_STOPPED: Final = 128 + signal.SIGTERM
EXIT_NOT_KEPT: Final = 74
"""The command went well, but what it changed in a volume could not be kept."""


class Guest:
    """The start-up of one machine and what is left of it."""

    def __init__(self, boot: dict[str, Any], status_fd: int, parent: int) -> None:
        self.parent = parent
        self.epoch: int = boot["epoch"]
        self.steps: list[tuple[str, str]] = [(name, path) for name, path in boot["steps"]]
        self.status_fd = status_fd
        self.once: bool = boot.get("once", False)
        self.commit: list[str] = boot.get("commit", [])
        self.code = 0
        """Exit status of the last program that ended."""
        self.ready = False
        self.note = ""
        self.current = 0
        """Pid of the program that runs as a part of the start-up; 0 for none."""
        self.name = ""
        self.stopping = False
        self._told: set[tuple[int, int | None]] = set()

    def tell(self) -> None:
        """Write state.json, and the phase to the shim."""
        state = {
            "epoch": self.epoch,
            "ready": self.ready,
            "note": self.note,
            "done": not self.steps and not self.current,
        }
        with contextlib.suppress(OSError):
            files.write_atomic(files.STATE, json.dumps(state).encode())
        if self.status_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self.status_fd, b'{"phase": "ready"}\n')

    def next(self) -> None:
        """Start the next program; a machine is ready once the first one runs, or there is none."""
        while self.steps and not self.current and not self.stopping:
            self.name, path = self.steps.pop(0)
            self.current = os.fork()
            if self.current == 0:
                self._become(path)
        if not self.ready or not self.current:
            self.ready = True
            self.tell()

    def _become(self, path: str) -> None:
        """In the child: turn into the program. Does not return."""
        try:
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if self.status_fd >= 0:
                os.close(self.status_fd)
            home = os.environ["HOME"]
            os.chdir(home)
            for _ in range(BUSY_TRIES):
                try:
                    os.execv(path, [path])
                except OSError as error:
                    # Another process may have been forked while the file was being written, and hold it open.
                    if error.errno != errno.ETXTBSY:
                        raise
                    time.sleep(BUSY_S)
        except BaseException as error:  # whatever happens, this is the child: it must not go on as a second guest
            os.write(
                2, f"the {self.name} cannot be run: {error}; is the interpreter in its first line here?\n".encode()
            )
        finally:
            os._exit(EXIT_NOT_RUN)

    def reap(self) -> bool:
        """Collect whoever ended; False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.current:
                self.current = 0
                code = os.waitstatus_to_exitcode(status)
                self.code = code if code >= 0 else 128 - code
                if code and not self.stopping:
                    how = f"exited {code}" if code > 0 else f"was ended by {_name(-code)}"
                    self.note = self.note or f"{self.name} {how}"
                    print(f"{self.name} {how}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Ask everything that runs here to end, each process once."""
        self.stopping = True
        for pid in procs.descendants(os.getpid()):
            known = (pid, procs.start_time(pid))
            if known not in self._told:
                self._told.add(known)
                for number in (signal.SIGTERM, signal.SIGCONT):
                    with contextlib.suppress(OSError):
                        os.kill(pid, number)

    def finish(self) -> int:
        """The one command ended: keep what it changed in volumes if it went well; the exit status of the machine."""
        procs.kill_tree(os.getpid())
        if self.code == 0 and self.commit and not keep(self.commit):
            return EXIT_NOT_KEPT
        return self.code

    def run(self) -> int:
        """Until it is told to stop and nothing is left, or the one command ended; the exit status."""
        self.next()
        while True:
            found = signal.sigtimedwait(SIGNALS, STOPPING_S if self.stopping else IDLE_S)
            if found is not None and found.si_signo in (signal.SIGTERM, signal.SIGINT):
                self.stopping = True
            if os.getppid() != self.parent:
                procs.kill_tree(os.getpid())
                return EXIT_STOPPED
            left = self.reap()
            if self.stopping:
                if not left:
                    return EXIT_STOPPED if self.once else 0
                self.stop()
            elif self.once and not self.current and not self.steps:
                return self.finish()
            elif not self.current:
                self.next()


def keep(names: list[str]) -> bool:
    """Make what is in these volumes their next version; False, with the reason printed, where that cannot be."""
    # Imported here: machines without volumes have no use for it.
    from pathlib import Path

    from nanopod.model import registry
    from nanopod.model.errors import NanopodError
    from nanopod.node import mounting, records

    directory = Path.cwd()
    start = records.read_start(directory)
    if start is None:
        print("volumes cannot be kept: spec.json cannot be read", file=sys.stderr, flush=True)
        return False
    mounting.attach(start.instance, directory)
    for name in names:
        try:
            assert registry.mounts is not None, "attached above"
            version = registry.mounts.commit(name)
            print(f"volume {name} is at version {version}", flush=True)
        except (NanopodError, OSError) as error:
            print(f"volume {name} cannot be kept: {error}", file=sys.stderr, flush=True)
            return False
    return True


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main(argv: list[str]) -> int:
    """Run the machine in the directory `argv[1]` until it is stopped."""
    if len(argv) != 2:
        print("usage: python -m nanopod.node.guest DIR", file=sys.stderr)
        return 2
    shim = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    procs.die_with_parent(signal.SIGHUP)  # it only wakes us: what runs here must go first
    if os.getppid() != shim:
        return 1
    status_fd = int(os.environ.pop("NANOPOD_STATUS_FD", "-1"))
    if status_fd >= 0:
        os.set_inheritable(status_fd, False)
    os.chdir(argv[1])
    os.setsid()
    procs.adopt_orphans()
    with open(files.BOOT, "rb") as file:
        guest = Guest(json.load(file), status_fd, shim)
    return guest.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
