"""Keys, names, deadlines and the choice of a worker, without IO."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from nanopod.gateway import tables
from nanopod.gateway.jobs import Job
from nanopod.gateway.links import WorkerLink, admit
from nanopod.gateway.pool import WAITING_MAX, Pool
from nanopod.gateway.tables import Known
from nanopod.gateway.wheel import TICK_S, Timed, Wheel
from nanopod.model.endpoint import Failure
from nanopod.model.wire import KeyRow, RouteRow, Tables, WorkerRow

PEPPER = b"p" * 16


def digest(key: str) -> str:
    return hmac.digest(PEPPER, key.encode(), hashlib.sha256).hex()


def known() -> Known:
    routes = {
        "e1": RouteRow("e1", "w1", "tiny", "default", "model", "r", model_ids=("tiny", "org/tiny")),
        "e2": RouteRow("e2", "w1", "tiny", "beta", "model", "r", model_ids=("tiny-beta",)),
        "e3": RouteRow("e3", "w2", "tiny", "default", "model", "r", model_ids=("theirs",)),
        "e4": RouteRow("e4", "w1", "maths", "v2", "function", "r"),
    }
    keys = {
        digest("good"): KeyRow("k1", "w1"),
        digest("old"): KeyRow("k2", "w1", expires_at=time.time() - 1),
        digest("soon"): KeyRow("k3", "w1", ("call",), ("tiny:beta",), time.time() + 0.2),
    }
    return Known(Tables(1, PEPPER, keys, routes, {}))


def test_keys_are_found_by_their_hmac_only() -> None:
    table = known()
    for _ in range(2):
        found = table.authenticate("Bearer good")
        assert found is not None
        assert found.key_id == "k1"
    for wrong in (
        "",
        "good",
        "Basic good",
        "Bearer",
        "Bearer goo",
        "Bearer old",
        "Bearer " + "x" * 1000,
        digest("good"),
    ):
        assert table.authenticate(wrong) is None
    assert table.authenticate("bearer soon") is not None
    time.sleep(0.25)
    assert table.authenticate("bearer soon") is None, "a cached key must expire too"


def test_endpoints_by_id_name_and_tag_within_the_workspace() -> None:
    table = known()
    names = {"e1": "e1", "tiny": "e1", "tiny:default": "e1", "tiny:beta": "e2", "maths": "e4", "maths:v2": "e4"}
    for name, endpoint in names.items():
        found = table.endpoint("w1", name)
        assert found is not None
        assert found.endpoint_id == endpoint
    assert table.endpoint("w1", "e3") is None
    assert table.endpoint("w2", "maths") is None
    for model, endpoint in {"tiny": "e1", "org/tiny": "e1", "tiny-beta": "e2", "tiny:beta": "e2"}.items():
        found = table.model("w1", model)
        assert found is not None
        assert found.endpoint_id == endpoint
    assert table.model("w1", "theirs") is None
    assert table.model("w1", "maths") is None
    key = KeyRow("k", "w1", endpoints=("tiny:beta",))
    assert [tables.may_use(key, route) for route in table.routes.values()] == [False, True, False, False]


def test_dialling_workers_are_checked_against_the_table() -> None:
    rows = {"i": WorkerRow("i", "e", "r", 3, 1, hashlib.sha256(b"t").hexdigest())}
    assert admit(rows, "i", "3", "t") == 101
    assert admit(rows, "i", "2", "t") == 410
    for instance, epoch, token in (
        ("j", "3", "t"),
        ("i", "4", "t"),
        ("i", "3", "u"),
        ("i", "", "t"),
        ("i", "-3", "t"),
        ("i", "²", "t"),
    ):
        assert admit(rows, instance, epoch, token) == 403


class Due(Timed):
    __slots__ = ("again", "fired")

    def __init__(self, again: float = 0.0) -> None:
        super().__init__()
        self.fired: list[float] = []
        self.again = again

    def on_timer(self, now: float) -> None:
        self.fired.append(now)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=20), st.floats(0.01, 3.0))
def test_every_deadline_fires_once_within_a_tick(deadlines: list[tuple[float, bool]], step: float) -> None:
    wheel = Wheel(1000.0)
    made = []
    for after, clear in deadlines:
        due = Due()
        wheel.at(due, 1000.0 + after)
        if clear:
            wheel.clear(due)
        made.append((due, 1000.0 + after, clear))
    now = 1000.0
    while now < 1032:
        now += step
        wheel.advance(now)
    for due, when, cleared in made:
        assert len(due.fired) == (0 if cleared else 1)
        if due.fired:
            assert when - 1e-6 <= due.fired[0] <= when + 2 * TICK_S + step + 1e-6
    assert len(wheel) == 0


def test_deadlines_move_and_a_long_stop_is_caught_up_with() -> None:
    wheel = Wheel(0.0)
    due = Due()
    wheel.at(due, 5.0)
    wheel.by(due, 9.0)
    wheel.advance(6.0)
    assert len(due.fired) == 1
    wheel.at(due, 7.0)
    wheel.at(due, 8.0)
    wheel.by(due, 7.5)
    wheel.advance(7.8)
    assert len(due.fired) == 2
    wheel.at(due, 9.0)
    began = time.perf_counter()
    wheel.advance(1e9)
    assert time.perf_counter() - began < 5, "tick by tick it would take an hour"
    assert len(due.fired) == 3


@dataclass
class FakeHost:
    now: float = 100.0
    waiting_bytes: int = 0
    links: dict[str, WorkerLink] = field(default_factory=dict)
    demands: list[tuple[str, int]] = field(default_factory=list)
    asked: list[tuple[str, int, str]] = field(default_factory=list)
    """Demands for a revision."""
    active: int = 0
    linked: bool = True

    def demand(self, endpoint_id: str, waiting: int, revision_id: str = "") -> None:
        self.demands.append((endpoint_id, waiting))
        if revision_id:
            self.asked.append((endpoint_id, waiting, revision_id))

    def became_active(self, pool: Pool, workload: float) -> bool:
        self.active += 1
        return self.linked


@dataclass(eq=False)
class FakeLink:
    """The part of a worker link that a pool looks at."""

    pool: Pool
    slots: int = 2
    kv_use: float = -1.0
    queued: int = 0
    epoch: int = 1
    usable: bool = True
    revision_id: str = "r1"
    doomed_at: float | None = None
    in_flight: int = 0
    instance_id: str = ""
    perf: float | None = None
    load: float = 0.0
    keys: dict[str, None] = field(default_factory=dict)
    by_function: Counter[str] = field(default_factory=Counter)

    @property
    def limit(self) -> int:
        return self.slots

    def bound(self) -> None:
        """Its limit does not depend on the route."""

    def has_room(self, job: Job, now: float) -> bool:
        return self.in_flight < self.slots and self.by_function[job.function] < job.concurrency

    def open(self, job: Job) -> None:
        self.in_flight += 1
        self.by_function[job.function] += 1

    def end(self, job: Job) -> None:
        self.in_flight -= 1
        self.by_function[job.function] -= 1
        self.pool.released(cast(WorkerLink, self))


class FakeJob(Job):
    __slots__ = ("failed", "log", "name", "taken")

    def __init__(self, pool: Pool, name: str, log: list[str], function: str = "", **limits: Any) -> None:
        super().__init__(pool, function, **limits)
        self.name = name
        self.log = log
        self.taken: FakeLink | None = None
        self.failed = False

    def dispatch(self, link: WorkerLink) -> None:
        self.taken = cast(FakeLink, link)
        self.taken.open(self)
        self.log.append(self.name)

    def on_route_failed(self) -> None:
        self.failed = True
        self.pool.withdraw(self)


def make_pool(**fields: Any) -> tuple[Pool, FakeHost]:
    host = FakeHost()
    return Pool(host, RouteRow("e", "w", "n", "default", "function", "r1", **fields)), host


def add(pool: Pool, **fields: Any) -> FakeLink:
    link = FakeLink(pool, **fields)
    pool.links.append(cast(WorkerLink, link))
    return link


def test_undoomed_and_current_workers_come_first() -> None:
    pool, _ = make_pool()
    doomed = add(pool, doomed_at=200.0, slots=9)
    old = add(pool, revision_id="r0", slots=9)
    safe = add(pool, slots=3)
    log: list[str] = []
    jobs = [FakeJob(pool, str(n), log) for n in range(4)]
    for job in jobs:
        assert pool.submit(job)
    assert [job.taken for job in jobs] == [safe, safe, safe, doomed]
    safe.usable = doomed.usable = False
    last = FakeJob(pool, "last", log)
    pool.submit(last)
    assert last.taken is old, "an older revision serves while none of the current one is ready"


def test_load_is_spread_over_equal_workers() -> None:
    pool, _ = make_pool()
    links = [add(pool, slots=100) for _ in range(4)]
    for n in range(200):
        pool.submit(FakeJob(pool, str(n), []))
    assert all(35 <= link.in_flight <= 65 for link in links)


def test_waiting_jobs_leave_by_priority_then_arrival_and_only_into_free_slots() -> None:
    pool, host = make_pool()
    log: list[str] = []
    names = [("a", 0), ("b", 0), ("c", 5), ("d", 0)]
    jobs = {name: FakeJob(pool, name, log, priority=priority) for name, priority in names}
    for job in jobs.values():
        assert not pool.submit(job)
    assert host.demands == [("e", 1)]
    host.now += 1.1
    pool.poke()
    assert host.demands[-1] == ("e", 4)
    link = add(pool, slots=2)
    pool.pump()
    assert log == ["c", "a"]
    jobs["b"].pool.withdraw(jobs["b"])
    link.end(jobs["a"])
    assert log == ["c", "a", "d"]
    assert (pool.waiting, pool.in_flight) == (0, 2)


def test_returned_job_keeps_its_place() -> None:
    pool, _ = make_pool()
    link = add(pool, slots=1)
    log: list[str] = []
    first, second = FakeJob(pool, "first", log), FakeJob(pool, "second", log)
    pool.submit(first)
    pool.submit(second)
    link.usable = False
    link.end(first)
    pool.submit(first)
    link.usable = True
    pool.pump()
    assert log == ["first", "first"]


def test_full_function_does_not_hold_up_another() -> None:
    pool, _ = make_pool()
    link = add(pool, slots=4)
    log: list[str] = []
    slow = [FakeJob(pool, f"slow{n}", log, "slow", concurrency=1) for n in range(3)]
    for job in slow:
        pool.submit(job)
    quick = FakeJob(pool, "quick", log, "quick", concurrency=2)
    assert pool.submit(quick)
    assert log == ["slow0", "quick"]
    link.end(slow[0])
    assert log[-1] == "slow1"


def test_failed_route_fails_waiting_jobs_unless_a_worker_still_serves() -> None:
    pool, _ = make_pool(failure=Failure("import", "no"))
    link = add(pool, slots=0)
    job = FakeJob(pool, "a", [])
    pool.submit(job)
    assert not job.failed
    link.usable = False
    pool.poke()
    assert job.failed
    assert pool.waiting == 0
    direct = FakeJob(pool, "b", [])
    pool.submit(direct)
    assert direct.failed


def test_queue_is_bounded_in_number_and_bytes() -> None:
    pool, host = make_pool()
    big = FakeJob(pool, "big", [])
    big.bytes_held = 60 << 20
    pool.submit(big)
    assert pool.full(10 << 20)
    assert not pool.full(1 << 20)
    pool.withdraw(big)
    assert host.waiting_bytes == 0
    for _ in range(WAITING_MAX):
        pool.submit(FakeJob(pool, "x", []))
    assert pool.full(0)
