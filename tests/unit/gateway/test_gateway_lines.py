"""Lines, the cache of results, and choices that look at revisions, keys and pins: without IO."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_gateway_choice import FakeJob, add, make_pool

from nanopod.gateway.caching import CACHE_BYTES_MAX, CACHE_CALLS_MAX, Results, digest
from nanopod.gateway.callframes import completed, payload_of
from nanopod.gateway.links import WorkerLink
from nanopod.gateway.pool import Pool
from nanopod.gateway.tables import Known, may_call
from nanopod.model import calls
from nanopod.model.endpoint import Traffic
from nanopod.model.wire import KeyRow, RouteRow, Tables, WorkerRow


def queued(pool: Pool, count: int, **fields: Any) -> list[FakeJob]:
    log: list[str] = fields.pop("log", [])
    jobs = [FakeJob(pool, str(n), log, "f", **fields) for n in range(count)]
    for job in jobs:
        assert not pool.submit(job)
    return jobs


def test_ten_thousand_withdrawals_leave_nothing_behind() -> None:
    pool, _ = make_pool()
    stays = FakeJob(pool, "stays", [], "f")
    pool.submit(stays)
    jobs = queued(pool, 10_000)
    random.shuffle(jobs)
    for job in jobs:
        pool.withdraw(job)
    line = pool._lines["f"]
    assert len(line) == 1
    assert len(line._heap) < 200, "entries of withdrawn jobs are swept out"
    assert pool.waiting == 1
    pool.withdraw(stays)
    assert pool._lines == {}


def test_long_queue_leaves_in_order_without_a_look_at_those_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_pool()
    log: list[str] = []
    jobs = queued(pool, 10_000, log=log)
    link = add(pool, slots=1)
    asked: list[str] = []
    has_room = link.has_room
    monkeypatch.setattr(link, "has_room", lambda job, now: asked.append(job.name) or has_room(job, now))
    pool.pump()
    for job in jobs[:2000]:
        link.end(job)
    assert log == [str(n) for n in range(2001)]
    assert len(asked) <= 2 * 2001 + 1, "each call is looked at when it is first in line, and when it does not fit"


def test_withdrawn_and_submitted_again_goes_to_the_end() -> None:
    pool, _ = make_pool()
    log: list[str] = []
    first, second = queued(pool, 2, log=log)
    pool.withdraw(first)
    pool.submit(first)
    link = add(pool, slots=1)
    pool.pump()
    link.end(second)
    link.end(first)
    assert log == ["1", "0"]
    assert (pool.waiting, pool.in_flight) == (0, 0)


def test_pinned_jobs_wait_for_their_worker_and_hold_up_nobody() -> None:
    pool, host = make_pool()
    log: list[str] = []
    busy, free = add(pool, slots=1, instance_id="busy"), add(pool, slots=9, instance_id="free")
    host.links = {"busy": cast(WorkerLink, busy), "free": cast(WorkerLink, free)}
    blocker = FakeJob(pool, "blocker", log, "f")
    blocker.pin = "busy"
    assert pool.submit(blocker)
    pinned = FakeJob(pool, "pinned", log, "f")
    pinned.pin = "busy"
    assert not pool.submit(pinned)
    other = FakeJob(pool, "other", log, "f")
    assert pool.submit(other)
    assert other.taken is free
    busy.end(blocker)
    assert pinned.taken is busy
    gone = FakeJob(pool, "gone", log, "f")
    gone.pin = "lost"
    assert not pool.submit(gone)
    pool.withdraw(gone)
    assert pool._pinned == {}


def test_keys_go_where_they_were_and_new_ones_where_there_is_room() -> None:
    pool, _ = make_pool()
    links = [add(pool, slots=2, instance_id=f"i{n}") for n in range(3)]
    links[1].keys["lora"] = None

    def send(key: str) -> FakeJob:
        job = FakeJob(pool, key, [], "f")
        job.route_key = key
        assert pool.submit(job)
        return job

    assert send("lora").taken is links[1]
    assert send("lora").taken is links[1]
    third = send("lora")
    assert third.taken is not links[1], "it has no free slot left"
    cold = send("new")
    assert cold.taken is not None
    assert cold.taken.keys == {}, "who knows nothing yet loses nothing"


@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_canary_gets_its_share_and_falls_back(percent: int) -> None:
    pool, _ = make_pool(traffic=(Traffic("r2", percent), Traffic("r1", 100 - percent)))
    stable, canary = add(pool, slots=10_000), add(pool, slots=10_000, revision_id="r2")
    prefix = os.urandom(10)
    drawn = 0
    for number in range(2000):
        job = FakeJob(pool, "x", [], "f")
        key = prefix + number.to_bytes(6, "big")
        pool.draw(job, key)
        again = FakeJob(pool, "x", [], "f")
        pool.draw(again, key)
        assert again.wanted == job.wanted, "the same call is drawn the same way everywhere"
        assert pool.submit(job)
        assert job.taken is (canary if job.wanted == "r2" else stable)
        drawn += job.taken is canary
    assert drawn == pytest.approx(20 * percent, abs=120)
    if percent in (0, 100):
        return  # one of them has no share: it is no substitute for the other
    canary.usable = False
    lone = FakeJob(pool, "x", [], "f")
    lone.wanted = "r2"
    assert pool.submit(lone)
    assert lone.taken is stable


def test_full_canary_does_not_hold_up_the_stable_revision() -> None:
    pool, _ = make_pool(traffic=(Traffic("r2", 50), Traffic("r1", 50)))
    stable = add(pool, slots=4)
    add(pool, slots=0, revision_id="r2")
    for wanted in ("r2", "r1"):
        job = FakeJob(pool, wanted, [], "f")
        job.wanted, job.line = wanted, f"f\0{wanted}"
        assert pool.submit(job) == (wanted == "r1")
        assert job.taken is (stable if wanted == "r1" else None)


def test_a_tag_names_the_only_revision_that_may_answer() -> None:
    pool, host = make_pool(traffic=(Traffic("r1", 100), Traffic("r2", 0, "next"), Traffic("r2", 0, "canary")))
    stable = add(pool, slots=100)
    tagged = FakeJob(pool, "tagged", [], "f")
    pool.draw(tagged, b"x", "next")
    assert not pool.submit(tagged), "the other revision is no substitute"
    assert host.asked == [("e", 1, "r2")]
    pool.poke()
    assert len(host.asked) == 1, "once a second"
    plain = FakeJob(pool, "plain", [], "f")
    pool.draw(plain, b"x", "unknown")
    assert pool.submit(plain)
    assert plain.taken is stable, "a tag that nobody has is as none"
    new = add(pool, slots=100, revision_id="r2")
    pool.pump()
    assert tagged.taken is new
    by_name = FakeJob(pool, "named", [], "f")
    by_name.tag = "canary"
    pool.draw(by_name, b"x")
    assert pool.submit(by_name)
    assert by_name.taken is new
    for number in range(50):
        job = FakeJob(pool, "x", [], "f")
        pool.draw(job, number.to_bytes(4, "big"))
        assert pool.submit(job)
        assert job.taken is stable
    stable.usable = False
    waits = FakeJob(pool, "waits", [], "f")
    pool.draw(waits, b"y")
    assert not pool.submit(waits), "calls that name no tag stay away from a revision without a share"


def test_while_an_update_rolls_the_earlier_workers_help_out() -> None:
    pool, _ = make_pool()
    old, new = add(pool, slots=4, revision_id="r0"), add(pool, slots=1)
    jobs = [FakeJob(pool, str(n), [], "f") for n in range(3)]
    assert all(pool.submit(job) for job in jobs)
    assert [job.taken for job in jobs] == [new, old, old]


def test_samples_count_ends_per_revision() -> None:
    pool, host = make_pool()
    for revision, failed in (("r1", False), ("r1", True), ("r2", False)):
        pool.ends.ended(revision, failed)
    host.now += 1
    assert pool.active
    assert pool.sample().revisions == {"r1": (2, 1), "r2": (1, 0)}
    assert pool.sample().revisions == {}


def test_measured_speed_decides_between_two_workers() -> None:
    pool, _ = make_pool()
    slow, fast = add(pool, slots=50, perf=100.0), add(pool, slots=50, perf=300.0)
    for number in range(40):
        job = FakeJob(pool, str(number), [], "f")
        pool.submit(job)
        assert job.taken is not None
        job.taken.load += job.workload
    assert 8 <= slow.in_flight <= 12
    assert fast.in_flight == 40 - slow.in_flight


def frames_of(payload: bytes, call_id: bytes = b"i" * 16) -> list[bytes]:
    return calls.split(calls.Result(call_id, len(payload)), payload)


def test_results_are_kept_for_their_time_and_within_bounds() -> None:
    results = Results()
    key = ("rev", "f", digest([calls.encode(calls.Call(b"a" * 16), b"arguments")]))
    assert key[2] == digest(
        [calls.encode(calls.Call(b"b" * 16, "e"), b"arg"), calls.encode(calls.Part(b"b" * 16), b"uments")]
    )
    results.keep(key, frames_of(b"value"), until=10.0)
    assert results.find(key, 9.9) == b"value"
    assert results.find(("other", *key[1:]), 9.9) is None
    assert results.find(key, 10.0) is None
    assert len(results) == 0
    results.keep(key, [calls.encode(calls.Error(b"i" * 16, "remote_error", "no"))], until=10.0)
    results.keep(key, frames_of(b"x" * (2 << 20)), until=10.0)
    assert len(results) == 0, "errors and large results are not kept"
    for number in range(CACHE_CALLS_MAX + 10):
        results.keep(("rev", "f", number.to_bytes(4, "big")), frames_of(b"v"), until=10.0)
    assert len(results) == CACHE_CALLS_MAX
    big = b"y" * (1 << 20)
    for number in range(100):
        results.keep(("big", "f", number.to_bytes(4, "big")), frames_of(big), until=10.0)
    assert len(results) <= CACHE_BYTES_MAX >> 20
    assert results.find(("big", "f", (99).to_bytes(4, "big")), 1.0) == big


def test_answers_are_completed_without_touching_their_payload() -> None:
    frame = calls.encode(calls.Result(b"i" * 16, 5, calls.Usage(run_us=7)), b"value")
    header, payload = calls.decode(completed(frame, 1, 42))
    assert isinstance(header, calls.Result)
    assert header.usage == calls.Usage(run_us=7, cost_micro=42)
    assert payload == b"value" == payload_of(frame)
    error = calls.decode(completed(calls.encode(calls.Error(b"i" * 16, "remote_error", "no")), 3, 0))[0]
    assert isinstance(error, calls.Error)
    assert (error.attempt, error.usage) == (3, None)
    full = calls.encode(calls.Result(b"i" * 16, 1 << 20), b"z" * (calls.FRAME_BYTES_MAX - 100))
    assert completed(full, 1, 10**9) == full


def test_join_tokens_are_keys_of_their_workspace() -> None:
    import hashlib

    row = WorkerRow("inst_1", "e", "r", 1, 4, hashlib.sha256(b"join").hexdigest())
    stray = WorkerRow("inst_2", "deleted", "r", 1, 4, hashlib.sha256(b"stray").hexdigest())
    route = RouteRow("e", "w1", "maths", "default", "function", "r")
    known = Known(Tables(1, b"p" * 16, {}, {"e": route}, {"inst_1": row, "inst_2": stray}))
    key = known.authenticate("Bearer join")
    assert key == KeyRow("inst_1", "w1", ("call",))
    assert may_call(key)
    assert known.authenticate("Bearer stray") is None
    assert known.authenticate("Bearer " + row.token_digest) is None
    assert may_call(KeyRow("k", "w", ("internal",)))
    assert not may_call(KeyRow("k", "w", ("read",)))


def test_worker_that_is_busy_for_too_long_gets_no_more_unless_its_calls_are_usual_ones() -> None:
    pool, _ = make_pool()
    row = WorkerRow("i", "e", "r1", 1, 8, "")
    link = WorkerLink(cast(Any, SimpleNamespace(now=0.0)), row, pool)
    job = FakeJob(pool, "x", [], "f", concurrency=4)
    job.queue_s_max = 30.0
    link.load = 4000.0
    assert link.has_room(job, 0.0), "nobody knows how fast it is"
    link.perf = 100.0
    assert not link.has_room(job, 0.0), "it has work for 40 s"
    link.load = 3000.0
    assert link.has_room(job, 0.0)
    link.perf, link.load = 1.0, 400.0
    assert link.has_room(job, 0.0), "four usual calls may be there, however slow they are"
    link.load = 401.0
    assert not link.has_room(job, 0.0)
    pool.learn("f", 1000.0)
    assert link.has_room(job, 0.0)
    link.in_flight = 8
    assert not link.has_room(job, 0.0)
    job.slotless = True
    assert link.has_room(job, 0.0)


def test_lent_slots_are_free_until_they_are_taken_back() -> None:
    pool, _ = make_pool()
    loop = SimpleNamespace(call_soon=lambda function: None)
    gateway = SimpleNamespace(now=0.0, loop=loop, dirty=[])
    link = WorkerLink(cast(Any, gateway), WorkerRow("i", "e", "r1", 1, 1, ""), pool)
    parent, child = (FakeJob(pool, name, [], "f", concurrency=1) for name in ("parent", "child"))
    pool.in_flight += 1
    link.open(parent, b"{}", b"")
    assert not link.has_room(child, 0.0)
    link.lend(parent)
    link.lend(parent)
    assert (link.in_flight, pool.in_flight) == (0, 0)
    assert link.has_room(child, 0.0)
    pool.in_flight += 1
    link.open(child, b"{}", b"")
    link.take_back(parent)
    link.take_back(parent)
    assert (link.in_flight, pool.in_flight) == (2, 2), "one too many, for a moment"
    link.close_stream(child)
    assert not link.has_room(child, 0.0)
    link.lend(parent)
    link.close_stream(parent)
    assert (link.in_flight, pool.in_flight, link.load) == (0, 0, 0.0)
    assert link.has_room(child, 0.0)
