"""Faults on purpose, for tests of what users build: workers that go away, links that break, contexts that fail.

A cloud has them only when it was started with `nanopod up --faults`. Contexts that are to fail are named in a file that
every worker of the cloud can read (`NANOPOD_FAULTS`); links are the gateway's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Final

from nanopod.model.wire import Fault
from nanopod.node.procs import children_of
from nanopod.server.links import GatewayLinks

VARIABLE: Final = "NANOPOD_FAULTS"
"""Names the file; set for every process of a cloud that was started with faults."""


class Faults:
    """What a server with faults can break."""

    def __init__(self, path: Path, gateways: GatewayLinks) -> None:
        self._path = path
        self._gateways = gateways
        self._contexts: set[str] = set()
        self._later: set[asyncio.Task[None]] = set()
        self._write()

    def _write(self) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.write_text(json.dumps({"contexts": sorted(self._contexts)}))
        os.replace(fresh, self._path)

    def fail_context(self, name: str) -> None:
        """Workers that start from now on fail to enter this context."""
        self._contexts.add(name)
        self._write()

    def clear(self) -> None:
        """Nothing fails on purpose any more."""
        self._contexts.clear()
        self._write()
        self._gateways.tell(Fault("slow", seconds=0.0))

    def slow(self, seconds: float) -> None:
        """What callers send reaches the gateway so much later."""
        self._gateways.tell(Fault("slow", seconds=seconds))

    def drop_link(self, instance_id: str) -> None:
        """Cut the link of a worker, or with "" the links of all callers."""
        self._gateways.tell(Fault("drop_link", instance_id))

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to something that is still to happen."""
        self._later.add(task)
        task.add_done_callback(self._later.discard)


def kill_worker(pid: int) -> int:
    """SIGKILL the worker below a shim of this machine; how many processes that were."""
    found = children_of(pid)
    for child in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    return len(found)
