"""Joins requests that arrive within a moment of each other into one prediction.

A batch runs when it has `rows_max` rows or its first request has waited `wait_s_max`. Requests are joined when their
key is the same; a batch that is refused is run one by one, so that a bad request fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nanopod.node.engines.serving.answers import Refused

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(slots=True)
class _Batch(Generic[Given, Made]):
    given: list[Given] = field(default_factory=list)
    waiters: list[asyncio.Future[Made]] = field(default_factory=list)
    rows: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher(Generic[Given, Made]):
    """Used on one loop. `run` gets a key and what was given under it, and returns one result each."""

    def __init__(
        self, run: Callable[[Hashable, Sequence[Given]], Awaitable[Sequence[Made]]], rows_max: int, wait_s_max: float
    ) -> None:
        self._run = run
        self._rows_max = max(1, rows_max)
        self._wait_s_max = wait_s_max
        self._open: dict[Hashable, _Batch[Given, Made]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.batches = 0
        """Run so far."""

    async def submit(self, key: Hashable, given: Given, rows: int) -> Made:
        """This request's share of its batch's result; raises what the batch raised."""
        loop = asyncio.get_running_loop()
        batch = self._open.get(key)
        if batch is not None and batch.rows + rows > self._rows_max:
            self._close(key)
            batch = None
        if batch is None:
            batch = self._open[key] = _Batch()
            batch.timer = loop.call_later(self._wait_s_max, self._close, key)
        waiter: asyncio.Future[Made] = loop.create_future()
        batch.given.append(given)
        batch.waiters.append(waiter)
        batch.rows += rows
        if batch.rows >= self._rows_max:
            self._close(key)
        return await waiter

    def _close(self, key: Hashable) -> None:
        batch = self._open.pop(key, None)
        if batch is None:
            return
        if batch.timer is not None:
            batch.timer.cancel()
        task = asyncio.get_running_loop().create_task(self._go(key, batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _go(self, key: Hashable, batch: _Batch[Given, Made]) -> None:
        there = [(given, waiter) for given, waiter in zip(batch.given, batch.waiters, strict=True) if not waiter.done()]
        if not there:
            return
        self.batches += 1
        try:
            made = await self._run(key, [given for given, _ in there])
        except Refused as error:
            if len(there) == 1:
                _tell(there[0][1], error)
                return
            for given, waiter in there:
                await self._alone(key, given, waiter)
            return
        except BaseException as error:
            for _, waiter in there:
                _tell(waiter, error)
            return
        for (_, waiter), result in zip(there, made, strict=True):
            if not waiter.done():
                waiter.set_result(result)

    async def _alone(self, key: Hashable, given: Given, waiter: asyncio.Future[Made]) -> None:
        try:
            (result,) = await self._run(key, [given])
        except BaseException as error:
            _tell(waiter, error)
            return
        if not waiter.done():
            waiter.set_result(result)


def _tell(waiter: asyncio.Future[Made], error: BaseException) -> None:
    if waiter.done():
        return
    if isinstance(error, asyncio.CancelledError):
        waiter.cancel()
    else:
        waiter.set_exception(error)
