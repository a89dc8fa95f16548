"""Runs the reconcilers: claims what is due, lets each observe, plan and commit, and gives it back.

A signal wakes the driver in the same process within microseconds; without any, it looks once a second. The lease of a
claim is longer than any piece of work may take, so it needs no renewal; a plan commits only while its lease holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable
from typing import Any, Final

from nanopod.control.ports import Clock, Plan, Reads, Reconciler, Store, Writes
from nanopod.model.errors import Conflict, NanopodError

log = logging.getLogger(__name__)

LEASE_S: Final = 30.0
WORK_S_MAX: Final = 20.0
PERIOD_S: Final = 15.0
PERIOD_S_MAX: Final = 240.0
"""Period of an object that needed no change for long: each such look doubles it, so that thousands may idle."""
JITTER: Final = 0.1
IDLE_S_MAX: Final = 1.0
"""Longest time between two claims, hints or not."""
BACKOFF_S_MIN: Final = 1.0
BACKOFF_S_MAX: Final = 60.0
CLAIM_MAX: Final = 20
AT_ONCE_MAX: Final = 20
"""Objects worked on at the same time."""


class Driver:
    """Signal and period for a set of reconcilers."""

    def __init__(self, store: Store, reconcilers: Iterable[Reconciler[Any, Any]], clock: Clock, owner: str) -> None:
        self._store = store
        self._reconcilers = {reconciler.kind: reconciler for reconciler in reconcilers}
        self._clock = clock
        self._owner = owner
        self._wake = asyncio.Event()
        self._hinted: set[str] = set(self._reconcilers)
        self._due: dict[str, float] = {}
        self._room = asyncio.Semaphore(AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokens = 0
        self._calm: dict[tuple[str, str], int] = {}
        """Looks in a row that changed nothing."""

    def hint(self, kinds: Iterable[str]) -> None:
        """Some objects of these kinds may be due."""
        for kind in kinds:
            if kind in self._reconcilers:
                self._hinted.add(kind)
                self._wake.set()

    async def run(self) -> None:
        """Work until cancelled; what is running then is finished first, within `WORK_S_MAX` seconds."""
        await self._store.write(lambda write: write.release_others(self._owner))
        looked_at = 0.0
        try:
            while True:
                now = self._clock()
                kinds = self._hinted | {kind for kind, due in self._due.items() if due <= now}
                if now - looked_at >= IDLE_S_MAX or now < looked_at:
                    kinds, looked_at = set(self._reconcilers), now
                if kinds:
                    self._hinted -= kinds
                    for kind in kinds:
                        self._due.pop(kind, None)
                    await self._claim(kinds)
                await self._sleep()
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=WORK_S_MAX)

    async def _sleep(self) -> None:
        """Until a hint, or until something is due."""
        if self._hinted:
            return
        now = self._clock()
        wait_s = min(IDLE_S_MAX, min(self._due.values(), default=now + IDLE_S_MAX) - now)
        if wait_s <= 0:
            return
        handle = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
        await self._wake.wait()
        handle.cancel()
        self._wake.clear()

    async def _claim(self, kinds: set[str]) -> None:
        """Take what is due of these kinds and start to work on it."""
        self._tokens += 1
        token = f"{self._owner}/{self._tokens}"

        def claim(write: Writes) -> list[tuple[str, str, int, int]]:
            now = self._clock()
            return [
                (kind, *claimed)
                for kind in sorted(kinds)
                for claimed in write.claim(kind, token, self._owner, now, LEASE_S, CLAIM_MAX)
            ]

        try:
            # A lock that a crash forgets is a lock that nobody holds: it need not survive.
            claimed = await self._store.write(claim, durable=False)
        except NanopodError as error:
            log.error("driver=blocked reason=%s", error)
            await asyncio.sleep(random.uniform(0.5, 1.0))
            self._hinted |= kinds
            return
        counts: dict[str, int] = {}
        for kind, key, seq, fails in claimed:
            counts[kind] = counts.get(kind, 0) + 1
            await self._room.acquire()
            task = asyncio.create_task(self._work(kind, key, token, seq, fails))
            self._tasks.add(task)
            task.add_done_callback(self._done)
        self._hinted |= {kind for kind, count in counts.items() if count >= CLAIM_MAX}

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("driver=failed", exc_info=task.exception())

    async def _work(self, kind: str, key: str, token: str, seq: int, fails: int) -> None:
        """One object: observe, plan, commit. Any failure is retried later, further and further apart."""
        reconciler = self._reconcilers[kind]
        try:
            async with asyncio.timeout(WORK_S_MAX):
                await self._reconcile(reconciler, key, token, seq)
            return
        except Conflict:
            # It changed between the look and the write: look again at once.
            delay_s, fails = 0.0, 0
        except Exception as error:
            fails += 1
            delay_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** (fails - 1)) * random.uniform(1 - JITTER, 1 + JITTER)
            known = isinstance(error, (NanopodError, TimeoutError))
            log.error(
                "%s=%s action=failed fails=%d retry_s=%.1f reason=%s",
                *(kind, key, fails, delay_s, error or type(error).__name__),
                exc_info=None if known else error,
            )
        await self._give_back(kind, key, token, seq, delay_s, fails)

    async def _give_back(self, kind: str, key: str, token: str, seq: int, delay_s: float, fails: int) -> None:
        """Finish a claim that came to nothing; while nothing can be written, again until its lease is over anyway."""
        limit = self._clock() + LEASE_S
        while (now := self._clock()) < limit:

            def finish(write: Writes, now: float = now) -> float | None:
                return write.finish(kind, key, token, seq, now, now + delay_s, fails)

            with contextlib.suppress(NanopodError):
                self._is_due(kind, await self._store.write(finish, durable=False))
                return
            await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _reconcile(self, reconciler: Reconciler[Any, Any], key: str, token: str, seq: int) -> None:
        kind = reconciler.kind

        def observe(read: Reads) -> Any:
            return reconciler.observe(read, key)

        snapshot = await self._store.read(observe)
        now = self._clock()
        if snapshot is None:
            self._calm.pop((kind, key), None)
            await self._store.write(lambda write: write.drop(kind, key, token, seq), durable=False)
            return
        plan: Plan = reconciler.plan(snapshot, now)
        calm = 0 if plan.changes else self._calm.get((kind, key), 0) + 1
        self._calm[kind, key] = calm
        period_s = min(PERIOD_S_MAX, PERIOD_S * 2.0 ** min(calm, 10))
        if plan.recheck_s is not None:
            period_s = min(period_s, plan.recheck_s)
        next_at = now + max(0.0, period_s) * random.uniform(1 - JITTER, 1 + JITTER)

        def commit(write: Writes) -> float | None:
            # Giving it back comes first: that matches nothing when the lease was lost, and a signal that the plan
            # itself sends to its object afterwards makes it due again.
            due = write.finish(kind, key, token, seq, now, next_at)
            if plan.changes:
                if due is None:
                    raise Conflict(f"the lease of {kind} {key} was lost")
                reconciler.commit(plan, write, now)
            return due

        due = await self._store.write(commit, durable=plan.changes and plan.durable)
        reconciler.applied(plan)
        for reason in plan.reasons if plan.changes else ():
            log.info("%s=%s decision=%s", kind, key, reason)
        self._is_due(kind, due)

    def _is_due(self, kind: str, due: float | None) -> None:
        if due is not None and due < self._due.get(kind, float("inf")):
            self._due[kind] = due
            self._wake.set()
