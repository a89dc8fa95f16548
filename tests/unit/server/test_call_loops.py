"""Schedules, recovery and webhooks of spawned calls on a store and a clock of the test's own; no gateway is there."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanopod.model import calls, codec
from nanopod.model.capacity import Capacity
from nanopod.model.chain import Account, Deployment, Key, Workspace
from nanopod.model.endpoint import EndpointSpec, FunctionSpec, ScheduleSpec
from nanopod.server.calls import wire
from nanopod.server.calls.dispatcher import AWAY_S_MAX, Dispatcher
from nanopod.server.calls.hooks import HookSender
from nanopod.server.calls.making import Draft, Maker
from nanopod.server.calls.payloads import Payloads
from nanopod.server.calls.schedules import FAR_S, LATE_S, Scheduler
from nanopod.server.calls.tail import Tail
from nanopod.server.webhooks import GIVE_UP_S
from nanopod.store.calls import StoredCall
from nanopod.store.schedules import StoredSchedule
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

NOW = 1_700_000_000.0
"""A multiple of 100 s."""
EACH_100_S = ScheduleSpec(period_s=100.0)


class Bench:
    """A store with one endpoint, and the loops of spawned calls on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = NOW
        self.numbers = itertools.count(1)
        self.store = SqliteStore(path / "nanopod.db")
        self.payloads = Payloads(path / "calls")
        self.dispatcher = self.another_dispatcher()
        self.scheduler = self.another_scheduler()

    def another_dispatcher(self) -> Dispatcher:
        return Dispatcher(self.store, self.payloads, b"p" * 32, self.path / "no.sock", lambda: self.now)

    def another_scheduler(self) -> Scheduler:
        return Scheduler(
            self.store, self.dispatcher, lambda kind: f"{kind}_{next(self.numbers)}", lambda: self.now
        )  # fmt: skip

    async def deploy(self, schedule: ScheduleSpec | None, revision: str = "r1", ttl_s: float | None = None) -> None:
        """Make the endpoint, or another revision of it."""
        functions = (FunctionSpec("job", schedule=schedule), FunctionSpec("safe", idempotent=True))
        spec = EndpointSpec("app", functions=functions, ttl_s=ttl_s)

        def write(write: Transaction) -> None:
            found = write.endpoint("e1")
            if found is None:
                write.add_account(Account("a1", "local", "user", NOW))
                write.add_workspace(Workspace("w1", "default", "a1", NOW))
                write.add_capacity(Capacity("c1", "w1", "default", account_id="a1"), NOW)
                write.add_endpoint("e1", "w1", spec, revision, NOW)
                write.add_deployment(Deployment("d1", "e1", "w1", "c1", revision, 0, 0, (), 0, 0.0, NOW, NOW, "app"))
            else:
                write.set_endpoint(found, revision_id=revision)
            write.add_revision(revision, "e1", spec, NOW)

        await self.store.write(write)

    async def tick(self) -> list[StoredCall]:
        """One round of the scheduler; all calls so far, oldest first."""
        await self.scheduler._sync_all()
        await self.scheduler._start_due()
        await self.scheduler._beat()
        found = await self.store.read(lambda read: read.calls_page("w1", limit=100))
        return found[::-1]

    async def schedules(self) -> list[StoredSchedule]:
        return await self.store.read(lambda read: read.schedules())

    async def spawn(self, function: str = "job", *, webhook: str = "") -> str:
        """Keep a call."""
        payload = codec.encode(((), {}))
        call_id = next(self.numbers).to_bytes(16, "big")
        key = Key("k1", "w1", "k", "", ("call",), None, NOW, None, None, None)
        idempotent = function == "safe"
        header = calls.Call(call_id, "app", function, timeout_s=-1.0, queue_timeout_s=-1.0, idempotent=idempotent)
        draft = Draft(header, len(payload), payload, "")
        made = await self.store.write(lambda write: Maker(write, key, "spawn", self.now).make([draft], webhook))
        return made[0].call_id

    async def call(self, call_id: str) -> StoredCall:
        found = await self.store.read(lambda read: read.call(call_id))
        assert found is not None
        return found


def on_bench(path: Path, test: Callable[[Bench], Awaitable[None]]) -> None:
    """Run a test on a fresh bench."""

    async def run() -> None:
        bench = Bench(path)
        try:
            await test(bench)
        finally:
            await bench.store.close()

    asyncio.run(run())


# --- schedules ---


def test_a_tick_starts_once_whoever_looks(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await bench.deploy(EACH_100_S)
        assert await bench.tick() == []
        bench.now += 100.5
        assert len(await bench.tick()) == 1
        other = bench.another_scheduler()
        await asyncio.gather(other._start_due(), bench.scheduler._start_due())
        assert len(await bench.tick()) == 1
        bench.now += 100.0
        started = await bench.tick()
        assert [(one.function, one.origin, one.key_id) for one in started[1:]] == [
            ("job", "schedule", started[0].schedule_id)
        ]  # fmt: skip
        (row,) = await bench.schedules()
        assert (row.next_at, row.last_at, row.last_call_id) == (NOW + 300, NOW + 200, started[1].call_id)

    on_bench(tmp_path, test)


@pytest.mark.parametrize(("catch_up", "late_s", "count"), [(True, 5_000, 1), (False, 5_000, 0), (False, LATE_S - 1, 1)])
def test_missed_ticks_run_once_or_are_skipped(tmp_path: Path, catch_up: bool, late_s: float, count: int) -> None:
    async def test(bench: Bench) -> None:
        await bench.deploy(replace(EACH_100_S, catch_up=catch_up))
        await bench.tick()
        bench.now = NOW + 100 + late_s
        assert len(await bench.tick()) == count
        (row,) = await bench.schedules()
        assert row.next_at > bench.now
        bench.now = row.next_at
        assert len(await bench.tick()) == count + 1

    on_bench(tmp_path, test)


def test_schedules_follow_the_newest_revision(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await bench.deploy(EACH_100_S)
        await bench.tick()
        (first,) = await bench.schedules()
        await bench.store.write(lambda write: write.set_schedule(first.schedule_id, paused=True))
        await bench.deploy(EACH_100_S, "r2")
        await bench.tick()
        assert [(row.schedule_id, row.paused) for row in await bench.schedules()] == [(first.schedule_id, True)]
        bench.now += 10
        await bench.deploy(ScheduleSpec("0 3 * * *", "Europe/Berlin"), "r3")
        await bench.tick()
        (changed,) = await bench.schedules()
        assert changed.schedule_id == first.schedule_id
        assert NOW < changed.next_at < NOW + 86_400
        await bench.deploy(None, "r4")
        await bench.tick()
        assert await bench.schedules() == []
        await bench.deploy(EACH_100_S, "r5")
        await bench.tick()

        def delete(write: Transaction) -> None:
            found = write.endpoint("e1")
            assert found is not None
            write.set_endpoint(found, deleted_at=bench.now)

        await bench.store.write(delete)
        await bench.tick()
        assert await bench.schedules() == []

    on_bench(tmp_path, test)


def test_a_schedule_of_an_unknown_zone_waits_instead_of_failing(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await bench.deploy(ScheduleSpec("0 3 * * *", "Atlantis/Center"))
        await bench.tick()
        (row,) = await bench.schedules()
        assert row.next_at == NOW + FAR_S

    on_bench(tmp_path, test)


def test_schedules_and_open_calls_count_as_clients(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await bench.deploy(EACH_100_S, ttl_s=40.0)

        async def beat() -> float:
            await bench.tick()
            found = await bench.store.read(lambda read: read.endpoint("e1"))
            assert found is not None
            return found.heartbeat_at

        bench.now += 5
        assert await beat() == NOW + 5
        bench.now += 1
        assert await beat() == NOW + 5, "a few times within a ttl are enough"
        bench.now += 10
        assert await beat() == NOW + 16
        (row,) = await bench.schedules()
        await bench.store.write(lambda write: write.set_schedule(row.schedule_id, paused=True))
        bench.now += 10
        assert await beat() == NOW + 16
        bench.dispatcher.added([("w1", "e1")])
        assert await beat() == NOW + 26

    on_bench(tmp_path, test)


# --- recovery ---


@pytest.mark.parametrize(
    ("away_s", "function", "only_asked"),
    [(AWAY_S_MAX + 1, "job", True), (AWAY_S_MAX + 1, "safe", False), (AWAY_S_MAX - 1, "job", False)],
)
def test_after_a_long_absence_a_call_is_asked_for_and_not_started(
    tmp_path: Path, away_s: float, function: str, only_asked: bool
) -> None:
    async def test(bench: Bench) -> None:
        await bench.deploy(None)
        sent, unsent = await bench.spawn(function), await bench.spawn(function)
        await bench.store.write(lambda write: write.claim_calls("e1", 1, bench.now))
        await bench.store.write(lambda write: write.start_calls([(bench.now, "inst_1", 1, sent)]))
        before = Tail()
        before.add(bench.now, "stdout", "said before")
        await bench.store.write(lambda write: write.keep_logs([(before.text(), sent)]))
        bench.now += away_s
        dispatcher = bench.another_dispatcher()
        await dispatcher._recover()
        flight = dispatcher.flight(wire.bytes_of(sent))
        assert flight is not None
        assert flight.only_asked is only_asked
        assert [line.line for line in flight.tail.lines] == ["said before"]
        assert dispatcher.endpoints == {"e1"}
        refusal = calls.Error(flight.id, "call_timeout", "past its deadline", started=False)
        dispatcher._on_frame(refusal, b"")
        await dispatcher._write()
        found = await bench.call(sent)
        assert (found.status, found.error_code) == ("failed", "worker_lost" if only_asked else "call_timeout")
        assert (await bench.call(unsent)).status == "queued"
        for task in list(dispatcher._tasks):
            task.cancel()
        await asyncio.gather(*dispatcher._tasks, return_exceptions=True)

    on_bench(tmp_path, test)


def test_a_header_that_starts_nothing() -> None:
    header = calls.encode(calls.Call(bytes(16), "e", "f", timeout_s=5.0))
    found = calls.decode(wire.never_starting(header))[0]
    assert isinstance(found, calls.Call)
    assert (found.deadline_at, found.timeout_s) == (1.0, 5.0)


# --- webhooks ---


def test_a_webhook_that_nobody_takes_is_given_up_after_a_day(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        from nanopod.model.errors import Cancelled
        from nanopod.server.calls.dispatcher import never_sent

        await bench.deploy(None)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        call_id = await bench.spawn(webhook=url)

        def end(write: Transaction) -> None:
            write.end_calls([never_sent(write, call_id, Cancelled("cancelled"), bench.now)])

        await bench.store.write(end)
        sender = HookSender(bench.store, bench.payloads, b"p" * 32, lambda: bench.now)

        async def tried() -> tuple[StoredCall, dict[str, Any]]:
            await sender._deliver(call_id)
            found = await bench.call(call_id)
            return found, json.loads(found.webhook_state)

        found, state = await tried()
        assert (state["state"], state["attempts"]) == ("retrying", 1)
        assert found.webhook_at is not None
        assert found.webhook_at > bench.now
        bench.now += GIVE_UP_S
        found, state = await tried()
        assert (state["state"], state["attempts"], found.webhook_at) == ("given_up", 2, None)
        assert "no connection" in state["message"]

    on_bench(tmp_path, test)
