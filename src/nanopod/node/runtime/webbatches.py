"""Web requests of a batched function that run together: the function takes a list for each parameter, returns a list.

A batch leaves when it is full, when its first request has waited long enough, and at once when the function is idle. A
request whose caller leaves is taken out while it waits; afterwards the function runs on for the others.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from nanopod.model.endpoint import FunctionSpec

Arguments = dict[str, Any]
Run = Callable[[str, tuple[Any, ...], dict[str, Any]], Awaitable[Any]]
"""Runs the function, on the loop or on a thread, with its columns; the id is that of the first request."""


class WebBatches:
    """The waiting and running batches of one function. Used on the event loop."""

    def __init__(self, spec: FunctionSpec, signature: inspect.Signature, run: Run) -> None:
        self._size_max = max(1, spec.batch_max)
        self._wait_s = spec.batch_wait_ms / 1000
        self._at_once_max = max(1, spec.concurrency // self._size_max)
        self._signature = signature
        self._run = run
        self._waiting: deque[tuple[float, str, Arguments, asyncio.Future[Any]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looking = False

    async def call(self, args: list[Any], kwargs: dict[str, Any], call_id: str = "") -> Any:
        """One request's result. Raises what the function raised, or returned in its place."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((time.monotonic(), call_id, dict(bound.arguments), result))
        if not self._looking:
            # Whatever arrives in the same turn of the loop goes together.
            self._looking = True
            loop.call_soon(self._look)
        return await result

    def _look(self) -> None:
        """Start every batch that is due."""
        self._looking = False
        waiting = self._waiting
        while waiting:
            if waiting[0][3].done():  # its caller left
                waiting.popleft()
                continue
            if len(self._running) >= self._at_once_max:
                return
            due, now = waiting[0][0] + self._wait_s, time.monotonic()
            if self._running and len(waiting) < self._size_max and now < due:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(due - now, self._on_time)
                return
            taken = [waiting.popleft() for _ in range(min(self._size_max, len(waiting)))]
            members = [(row, result) for _, _, row, result in taken if not result.done()]
            first = next(call_id for _, call_id, _, result in taken if not result.done())
            task = asyncio.ensure_future(self._batch(first, members))
            self._running.add(task)
            task.add_done_callback(self._over)

    def _on_time(self) -> None:
        self._timer = None
        self._look()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._look()

    async def _batch(self, call_id: str, members: list[tuple[Arguments, asyncio.Future[Any]]]) -> None:
        try:
            found = await self._run(call_id, *self._columns([row for row, _ in members]))
            if not isinstance(found, list | tuple) or len(found) != len(members):
                what = f"{len(found)} results" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
                raise TypeError(f"a batch of {len(members)} returned {what}; return a list with a result for each")
        except Exception as error:
            found = [error] * len(members)
        for (_, result), value in zip(members, found, strict=True):
            if result.done():
                continue
            if isinstance(value, Exception):
                result.set_exception(value)
            else:
                result.set_result(value)

    def _columns(self, rows: list[Arguments]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(positional, named) lists: one for each parameter."""
        places: list[Any] = []
        named: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            column = [row[name] for row in rows]
            if parameter.kind is parameter.POSITIONAL_ONLY:
                places.append(column)
            else:
                named[name] = column
        return tuple(places), named
