"""The fork server, `python -P -m nanopod.node.zygote FD [MODULE...]`: an interpreter that has everything loaded.

Its agent asks it over the socket FD to start instances; it forks, and the fork becomes the shim, whose own fork becomes
the worker: no interpreter starts and nothing is imported twice. It forks before any accelerator is initialised and only
while no other thread runs; otherwise it says so and the agent starts processes in the ordinary way. A fork looks like
a started process: own session, descriptors, environment, directory, signals, arguments, random numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NoReturn

from nanopod.node import procs

MARK: Final = "NANOPOD_INSTANCE"
MARK_CHARS: Final = 96
"""Room that is kept for an instance's id where the kernel shows a process's environment."""
TITLE_CHARS: Final = 400
"""Room that is kept where the kernel shows a process's arguments."""
FDS_MAX: Final = 8
_QUIET_THREADS: Final = ("numpy",)
"""Modules whose threads stop by themselves before a fork (OpenBLAS does so)."""
_OWN: Final = (
    "nanopod.node.worker", "nanopod.node.runtime.serving", "nanopod.node.runtime.contexts",
    "nanopod.node.runtime.attending", "nanopod.node.runtime.swapping", "nanopod.client.sdk",
    "nanopod.client.image", "nanopod.client.query", "nanopod.client.autoscaling", "nanopod.data.query", "uvloop",
    "nanopod.node.runtime.hosting", "nanopod.node.engines.command",
)  # fmt: skip


class Trouble(Exception):
    """This process must not be forked; the text says why."""


def preload(names: Collection[str]) -> list[str]:
    """Import what workers need, then `names`; those that could not be imported. Raises `Trouble`."""
    failed = []
    for name in (*_OWN, *(name for name in _QUIET_THREADS if name in names)):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    quiet = len(os.listdir("/proc/self/task"))
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # a library may raise anything; its worker will show it
            failed.append(f"{name}: {type(error).__name__}")
    check(quiet)
    return failed


def check(threads_max: int) -> None:
    """Raise `Trouble` when a fork of this process would not be a sound one."""
    if threading.active_count() > 1:
        raise Trouble(f"threads run: {', '.join(thread.name for thread in threading.enumerate()[1:5])}")
    count = len(os.listdir("/proc/self/task"))
    if count > threads_max:
        raise Trouble(f"{count - 1} threads of a library run")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise Trouble("CUDA is initialised")


def look_like(argv: Sequence[str], mark: str) -> None:
    """Have the kernel show these arguments, and the instance's mark, for this process."""
    fields = procs._stat(os.getpid())
    with contextlib.suppress(IndexError, ValueError):
        arg_start, arg_end, env_start, env_end = (int(field) for field in fields[45:49])
        title = b"\0".join(word.encode() for word in argv) + b"\0"
        if 0 < arg_start < arg_end:
            room = arg_end - arg_start
            ctypes.memmove(arg_start, title[: room - 1].ljust(room, b"\0"), room)
        if 0 < env_start < env_end:
            found = ctypes.string_at(env_start, env_end - env_start)
            name = MARK.encode() + b"="
            at = 0 if found.startswith(name) else found.find(b"\0" + name) + 1
            end = found.find(b"\0", at)
            new = name + mark.encode()
            if (at or found.startswith(name)) and end - at >= len(new):
                ctypes.memmove(env_start + at, new.ljust(end - at, b"\0"), end - at)


def _fresh_streams() -> None:
    """Standard streams as a new interpreter would make them for what is now behind descriptors 0, 1 and 2."""
    for fd, name, mode in ((0, "stdin", "rb"), (1, "stdout", "wb"), (2, "stderr", "wb")):
        old = getattr(sys, name)
        unbuffered = fd == 2 or bool(os.environ.get("PYTHONUNBUFFERED"))
        stream = io.TextIOWrapper(
            open(fd, mode, closefd=False),  # noqa: SIM115 - it lives as long as the process
            encoding=old.encoding, errors=old.errors,
            line_buffering=fd == 2 or (fd == 1 and os.isatty(fd)), write_through=fd > 0 and unbuffered,
        )  # fmt: skip
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def become_worker(argv: Sequence[str], env: dict[str, str], cwd: str, keep: Collection[int]) -> NoReturn:
    """Go on as the worker that `argv` would start. Descriptors but 0, 1, 2 and `keep` are closed. Does not return."""
    status = 1
    try:
        for name in os.listdir("/proc/self/fd"):
            if (fd := int(name)) > 2 and fd not in keep:
                with contextlib.suppress(OSError):
                    os.close(fd)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        os.chdir(cwd)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _fresh_streams()
        look_like(argv, env.get(MARK, ""))
        worker = importlib.import_module(argv[3])
        sys.argv = [str(worker.__file__), *argv[4:]]
        sys.orig_argv = list(argv)
        sys.modules["__main__"] = worker
        if (numpy := sys.modules.get("numpy.random")) is not None:
            numpy.seed()
        status = worker.main(sys.argv)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"the worker cannot go on: {type(error).__name__}: {error}\n".encode())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _become_shim(fds: Sequence[int], shim: Callable[..., int]) -> NoReturn:
    """In the fork: go on as the shim of an instance. `fds`: the request, lock, log. Does not return."""
    status = 1
    try:
        asked, lock, log = fds
        with os.fdopen(asked, "rb") as file:
            file.seek(0)
            request = json.loads(file.read())
        null = os.open(os.devnull, os.O_RDONLY)
        for place, fd in enumerate((null, log, log)):
            os.dup2(fd, place)
        for fd in (null, log):
            os.close(fd)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        keep = (lock,)
        os.set_inheritable(lock, True)
        os.environ.clear()
        os.environ.update(request["env"])
        argv = [sys.executable, "-P", "-m", "nanopod.node.run", request["directory"]]
        look_like(argv, os.environ.get(MARK, ""))
        status = shim(argv[3:], lambda argv, env, cwd, status_fd: become_worker(argv, env, cwd, (*keep, status_fd)))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"the shim cannot go on: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def serve(agent: socket.socket, threads_max: int) -> None:
    """Start instances until the agent closes its end."""
    from nanopod.node import run

    while True:
        data, fds = procs.receive(agent, 1, FDS_MAX)
        if not data:
            return
        answer: dict[str, Any] = {}
        try:
            check(threads_max)
            pid = os.fork()
            if pid == 0:
                agent.close()
                _become_shim(fds, run.main)
            answer["pid"] = pid
        except (Trouble, OSError) as trouble:
            answer["error"] = str(trouble)
        finally:
            for fd in fds:
                os.close(fd)
        agent.sendall(json.dumps(answer).encode() + b"\n")


def main(argv: list[str]) -> int:
    """Load, say whether it may be forked, serve. Ends with its agent."""
    agent = socket.socket(fileno=int(argv[1]))
    procs.die_with_parent()
    os.set_inheritable(agent.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are adopted by the supervisor; none is waited for
    try:
        failed = preload([name for name in argv[2:] if not name.startswith("-")])
    except Trouble as trouble:
        agent.sendall(json.dumps({"error": str(trouble)}).encode() + b"\n")
        return 0
    gc.collect()
    gc.freeze()
    agent.sendall(json.dumps({"ready": True, "failed": failed}).encode() + b"\n")
    with contextlib.suppress(OSError):
        serve(agent, len(os.listdir("/proc/self/task")))
    return 0


if __name__ == "__main__":
    status = main(sys.argv)
    os._exit(status)
