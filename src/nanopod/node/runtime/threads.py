"""Threads for functions that are not asynchronous: as many as there are calls at once, reused, never waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import Any

Work = tuple[Callable[[Any], None], Any]


class Threads:
    """Runs `function(argument)` on a thread, each in an empty context. The caller bounds how many run at once."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def run(self, function: Callable[[Any], None], argument: Any) -> None:
        """Run it on an idle thread, or on a new one. `function` must not raise."""
        if not self._idle.acquire(blocking=False):
            self._count += 1
            threading.Thread(target=self._loop, name=f"nanopod-call-{self._count}", daemon=True).start()
        self._work.put((function, argument))

    def close(self) -> None:
        """Let every thread end that is idle, now or later. Nothing runs afterwards."""
        for _ in range(self._count):
            self._work.put(None)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            function, argument = work
            Context().run(function, argument)
            # Nothing of the call may stay alive on a thread that idles.
            del function, argument, work
            self._idle.release()
