"""What instances are told of the end of their time: a file, a local endpoint, and a command of their own.

| way | what |
| --- | --- |
| `$NANOPOD_SHUTDOWN_FILE` | JSON `{at, lead_s, reason}` while an end is announced, no file otherwise |
| `$NANOPOD_METADATA_SOCKET` | HTTP on a unix socket: `GET /v1/shutdown`, `GET /v1/instance` |
| `on_shutdown` | a program in the instance's directory or its home, run once for each announced end |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nanopod.model.wire import ShutdownNotice
from nanopod.node import execs, files

HOOK_S_MAX: Final = 300.0
HOOK_LOOK_S: Final = 1.0
HOOK_AFTER_S: Final = 5.0
"""A hook is killed so long after the announced end: by then the instance is."""
REQUEST_S_MAX: Final = 5.0
REQUEST_BYTES_MAX: Final = 8192
CONNECTIONS_MAX: Final = 32
Facts = Callable[[], dict[str, Any]]
_log: Final = logging.getLogger("nanopod.node.notices")


@dataclass(slots=True)
class Told:
    """What one instance was told, and where it can ask."""

    directory: Path
    facts: Facts
    notice: ShutdownNotice | None = None
    server: asyncio.Server | None = None
    hook: asyncio.Task[None] | None = None
    hooked: ShutdownNotice | None = None
    """The notice for which its program was run."""


class Notices:
    """The notices of all running instances."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}
        self._look_at = 0.0

    async def open(self, instance_id: str, directory: Path, facts: Facts) -> None:
        """An instance runs (or was adopted): answer its questions from now on."""
        if instance_id in self._told:
            return
        self._told[instance_id] = told = Told(directory, facts, _read(directory / files.SHUTDOWN))
        told.hooked = _read(directory / files.HOOKED)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (directory / files.METADATA).unlink(missing_ok=True)
            # Socket paths are short, data directories may not be: go by a descriptor of the directory.
            path = f"/proc/self/fd/{fd}/{files.METADATA}"
            answering = _Answering(told)
            server = await asyncio.start_unix_server(answering.serve, path, limit=REQUEST_BYTES_MAX)
        except OSError as error:
            _log.warning("instance=%s metadata=not served reason=%s", instance_id, error)
            return
        finally:
            os.close(fd)
        if self._told.get(instance_id) is told:
            told.server = server
        else:
            server.close()  # it ended meanwhile

    def close(self, instance_id: str) -> None:
        """The instance is over."""
        told = self._told.pop(instance_id, None)
        if told is not None:
            if told.server is not None:
                told.server.close()
            if told.hook is not None:
                told.hook.cancel()
            for name in (files.METADATA, files.SHUTDOWN):
                with contextlib.suppress(OSError):
                    (told.directory / name).unlink()

    def tell(self, instance_id: str, notice: ShutdownNotice | None) -> None:
        """Announce an end, or (None) take the announcement back. Said again, the same changes nothing."""
        told = self._told.get(instance_id)
        if told is None or told.notice == notice:
            return
        told.notice = notice
        path = told.directory / files.SHUTDOWN
        try:
            if notice is None:
                path.unlink(missing_ok=True)
            else:
                files.write_atomic(path, json.dumps(as_json(notice)).encode())
        except OSError as error:
            _log.warning("instance=%s notice=not written reason=%s", instance_id, error)
        if notice is None:
            _log.info("instance=%s shutdown=cleared", instance_id)
            return
        _log.info("instance=%s shutdown_at=%d reason=%s", instance_id, notice.at, notice.reason)
        self._start_hook(instance_id, told)

    def tick(self, now: float) -> None:
        """Once a second: a program may come to be after the notice for which it is to run."""
        if now < self._look_at:
            return
        self._look_at = now + HOOK_LOOK_S
        for instance_id, told in self._told.items():
            if told.notice is not None:
                self._start_hook(instance_id, told)

    def _start_hook(self, instance_id: str, told: Told) -> None:
        """Run the instance's program for its present notice, unless that was done."""
        notice = told.notice
        if notice is None or told.hooked == notice or (program := _hook(told.directory)) is None:
            return
        told.hooked = notice
        with contextlib.suppress(OSError):
            files.write_atomic(told.directory / files.HOOKED, json.dumps(as_json(notice)).encode())
        if told.hook is not None:
            told.hook.cancel()
        told.hook = asyncio.create_task(self._run_hook(instance_id, told.directory, program, notice))

    async def _run_hook(self, instance_id: str, directory: Path, program: Path, notice: ShutdownNotice) -> None:
        left_s = max(0.0, notice.at - time.time())
        env = {
            "NANOPOD_SHUTDOWN_AT": str(notice.at),
            "NANOPOD_SHUTDOWN_LEAD_S": str(round(left_s)),
            "NANOPOD_SHUTDOWN_REASON": notice.reason,
        }
        wait_s_max = min(HOOK_S_MAX, left_s + HOOK_AFTER_S)
        name = f"{files.HOOK}-{notice.at}"
        outcome = await execs.run_hook(directory, name, [str(program)], env, wait_s_max)
        _log.info("instance=%s hook=%s %s", instance_id, program.name, outcome)


def as_json(notice: ShutdownNotice | None) -> dict[str, Any]:
    """A notice for the instance: when, how long until then, why. All null while none is given."""
    if notice is None:
        return {"at": None, "lead_s": None, "reason": None}
    return {"at": notice.at, "lead_s": max(0, round(notice.at - time.time())), "reason": notice.reason}


def _read(path: Path) -> ShutdownNotice | None:
    """A notice that an earlier agent wrote down."""
    try:
        found = json.loads(path.read_bytes())
        return ShutdownNotice(int(found["at"]), str(found["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hook(directory: Path) -> Path | None:
    """The instance's own program for this, if it has one."""
    for path in (directory / files.HOOK, directory / files.HOME / files.HOOK):
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


class _Answering:
    """A minimal HTTP server for one instance: two paths, one request per connection."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS_MAX:
                return
            async with asyncio.timeout(REQUEST_S_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = self._answer(head.split(b"\r\n", 1)[0])
                data = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                    + data
                )
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # an instance that does not speak HTTP learns nothing
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, line: bytes) -> tuple[str, dict[str, Any]]:
        method, _, rest = line.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return "405 Method Not Allowed", {"error": "only GET is known here"}
        if path == "/v1/shutdown":
            return "200 OK", as_json(self._told.notice)
        if path == "/v1/instance":
            return "200 OK", {**self._told.facts(), "shutdown": as_json(self._told.notice)}
        return "404 Not Found", {"error": "paths are /v1/shutdown and /v1/instance"}
