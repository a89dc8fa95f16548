"""The driver on a real store: signals, conflicts, failures, periods, and objects that go away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanopod.control import driver as driver_module
from nanopod.control.driver import Driver
from nanopod.control.ports import Plan
from nanopod.model.errors import Conflict
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction


@dataclass
class Scripted:
    """A reconciler that does what the test says."""

    kind: str = "endpoint"
    seen: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    recheck_s: float | None = None
    on_commit: Callable[[Transaction], None] = lambda write: None
    on_plan: Callable[[], None] = lambda: None
    applied_count: int = 0

    def observe(self, read: Any, key: str) -> str | None:
        return None if key in self.gone else key

    def plan(self, snapshot: str, now: float) -> Plan:
        self.seen.append(snapshot)
        self.on_plan()
        return Plan((), True, self.recheck_s)

    def commit(self, plan: Plan, write: Any, now: float) -> None:
        self.on_commit(write)

    def applied(self, plan: Plan) -> None:
        self.applied_count += 1


def run(tmp_path: Path, reconciler: Scripted, test: Callable[[SqliteStore], Awaitable[None]]) -> None:
    async def inner() -> None:
        store = SqliteStore(tmp_path / "x.db")
        driver = Driver(store, [reconciler], time.time, "me")
        store.on_hints = driver.hint
        task = asyncio.create_task(driver.run())
        try:
            await test(store)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await store.close()

    asyncio.run(inner())


def signal(key: str = "e1") -> Callable[[Transaction], None]:
    return lambda write: write.signal("endpoint", key, time.time())


async def until(test: Callable[[], Any], wait_s_max: float = 5.0) -> None:
    limit = time.monotonic() + wait_s_max
    while not test():
        assert time.monotonic() < limit, "it did not come true"
        await asyncio.sleep(0.002)


def test_a_signal_starts_the_work_within_milliseconds(tmp_path: Path) -> None:
    reconciler = Scripted()

    async def test(store: SqliteStore) -> None:
        await store.write(signal())
        await until(lambda: reconciler.seen)
        waits = []
        for _ in range(20):
            count, began = len(reconciler.seen), time.monotonic()
            await store.write(signal())
            await until(lambda count=count: len(reconciler.seen) > count)  # type: ignore[misc]
            waits.append(time.monotonic() - began)
        assert sorted(waits)[10] < 0.1

    run(tmp_path, reconciler, test)


def test_a_signal_during_the_work_is_not_lost(tmp_path: Path) -> None:
    reconciler = Scripted()
    rounds = 0

    def again(write: Transaction) -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 5:
            write.signal("endpoint", "e1", time.time())

    reconciler.on_commit = again

    async def test(store: SqliteStore) -> None:
        await store.write(signal())
        await until(lambda: rounds == 5)
        await asyncio.sleep(0.05)
        assert rounds == 5

    run(tmp_path, reconciler, test)


def test_a_conflict_is_looked_at_again_at_once(tmp_path: Path) -> None:
    reconciler = Scripted()
    tries = 0

    def refuse(write: Transaction) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Conflict("stale")
        write.put_setting("done", "1")

    reconciler.on_commit = refuse

    async def test(store: SqliteStore) -> None:
        began = time.monotonic()
        await store.write(signal())
        await until(lambda: reconciler.applied_count == 1)
        assert time.monotonic() - began < 1.0
        assert await store.read(lambda read: read.setting("done")) == "1"

    run(tmp_path, reconciler, test)


def test_a_failure_backs_off_and_is_tried_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(driver_module, "BACKOFF_S_MIN", 0.05)
    reconciler = Scripted()

    def broken() -> None:
        if len(reconciler.seen) < 3:
            raise RuntimeError("a bug")

    reconciler.on_plan = broken

    async def test(store: SqliteStore) -> None:
        began = time.monotonic()
        await store.write(signal())
        await until(lambda: reconciler.applied_count == 1)
        assert time.monotonic() - began > 0.12, "0.05 s and then 0.1 s"

    run(tmp_path, reconciler, test)


def test_the_period_comes_without_a_signal(tmp_path: Path) -> None:
    reconciler = Scripted(recheck_s=0.05)

    async def test(store: SqliteStore) -> None:
        await store.write(signal())
        await until(lambda: len(reconciler.seen) >= 4)

    run(tmp_path, reconciler, test)


def test_what_is_gone_is_not_looked_at_again(tmp_path: Path) -> None:
    reconciler = Scripted(gone={"e1"}, recheck_s=0.02)

    async def test(store: SqliteStore) -> None:
        def left(read: Transaction) -> int:
            return int(read.connection.exec_driver_sql("SELECT count(*) FROM activation").scalar_one())

        await store.write(signal())
        async with asyncio.timeout(10):
            while await store.read(left):
                await asyncio.sleep(0.01)
        assert reconciler.seen == []

    run(tmp_path, reconciler, test)


def test_many_objects_are_all_worked_on(tmp_path: Path) -> None:
    reconciler = Scripted()

    async def test(store: SqliteStore) -> None:
        def all_of_them(write: Transaction) -> None:
            for number in range(150):
                write.signal("endpoint", f"e{number}", time.time())

        await store.write(all_of_them)
        await until(lambda: len(set(reconciler.seen)) == 150)
        assert len(reconciler.seen) == 150, "each once"

    run(tmp_path, reconciler, test)


def test_what_a_dead_process_held_goes_on_at_once(tmp_path: Path) -> None:
    reconciler = Scripted()

    async def dead() -> None:
        store = SqliteStore(tmp_path / "x.db")
        await store.write(signal())
        await store.write(lambda write: write.claim("endpoint", "t", "dead", time.time(), 30))
        await store.close()

    asyncio.run(dead())

    async def test(store: SqliteStore) -> None:
        await until(lambda: reconciler.seen == ["e1"], 2.0)

    run(tmp_path, reconciler, test)
