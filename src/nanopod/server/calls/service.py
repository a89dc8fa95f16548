"""Everything of spawned calls and schedules that a server runs, joined."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from nanopod.server.calls.dispatcher import Dispatcher
from nanopod.server.calls.hooks import HookSender
from nanopod.server.calls.payloads import Payloads
from nanopod.server.calls.schedules import Scheduler
from nanopod.store.writer import GroupStore


class SpawnedCalls:
    """The parts that handlers of the API use. Times are wall time: calls and their limits are about machines."""

    def __init__(
        self, store: GroupStore, *, directory: Path, socket: Path, pepper: bytes, new_id: Callable[[str], str]
    ) -> None:
        self.wall: Callable[[], float] = time.time
        self.payloads = Payloads(directory)
        self.dispatcher = Dispatcher(store, self.payloads, pepper, socket, self.wall)
        self.scheduler = Scheduler(store, self.dispatcher, new_id, self.wall)
        self.hooks = HookSender(store, self.payloads, pepper, self.wall)
        self.dispatcher.on_ended = self.hooks.wake

    def close(self) -> None:
        """The server stops: whoever waits for a call is to ask the next one."""
        self.dispatcher.close()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What is to run as long as the server does."""
        return {
            "calls": self.dispatcher.run(),
            "schedules": self.scheduler.run(),
            "call-webhooks": self.hooks.run(),
        }
