"""What happens, as it happens: fans committed events out to everybody who listens.

Listeners read the store for what they missed; what arrives here tells them that there is more, and mostly what. A
listener that does not keep up is told so and reads the store again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from nanopod.model.chain import Event

QUEUE_EVENTS_MAX: Final = 1_000
"""Events that wait for one listener; beyond them it has to look in the store."""
LISTENERS_MAX: Final = 1_000


class Listener:
    """One who listens: events of `workspace_id` (None: of all workspaces) since it began."""

    def __init__(self, workspace_id: str | None) -> None:
        self.workspace_id = workspace_id
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()
        self._behind = False
        self.closed = False
        """True once nothing comes any more: the server stops."""

    def close(self) -> None:
        """Nothing comes any more."""
        self.closed = True
        self._news.set()

    def offer(self, event: Event) -> None:
        """Queue an event that concerns it."""
        if self.workspace_id is not None and event.workspace_id != self.workspace_id:
            return
        if len(self._waiting) >= QUEUE_EVENTS_MAX:
            self._waiting.clear()
            self._behind = True
        if not self._behind:
            self._waiting.append(event)
        self._news.set()

    def take(self) -> tuple[list[Event], bool]:
        """(what waits, in order; whether some was lost and the store has to be read)."""
        found, behind = list(self._waiting), self._behind
        self._waiting.clear()
        self._behind = False
        self._news.clear()
        return found, behind

    async def wait(self, wait_s_max: float) -> bool:
        """Wait for something; False when the time is over. Raises `CancelledError` only."""
        try:
            async with asyncio.timeout(wait_s_max):
                await self._news.wait()
        except TimeoutError:
            return False
        return True


class NewsFeed:
    """All listeners. Fed by `store.on_news` in the event loop, in the order of commits."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._closed = False

    def publish(self, items: Iterable[object]) -> None:
        """Pass on the events among what was committed."""
        if not self._listeners:
            return
        for item in items:
            if isinstance(item, Event):
                for listener in self._listeners:
                    listener.offer(item)

    @property
    def full(self) -> bool:
        """True when nobody else can listen."""
        return len(self._listeners) >= LISTENERS_MAX

    def close(self) -> None:
        """End every stream; the server stops."""
        self._closed = True
        for listener in self._listeners:
            listener.close()

    @contextmanager
    def listen(self, workspace_id: str | None) -> Iterator[Listener]:
        """Listen while the block lasts."""
        listener = Listener(workspace_id)
        self._listeners.add(listener)
        if self._closed:
            listener.close()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
