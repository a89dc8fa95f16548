"""What a second at an endpoint looks like to the autoscaler: concurrency, first requests, waiting work, what ended."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_stage import Host, Work, add, pool_with, send

from nanopod.gateway.process import Gateway
from nanopod.gateway.resending import KEPT_MAX, KEPT_S, Unacked
from nanopod.gateway.stats import MEDIAN_OF, Median, RequestStats
from nanopod.model.layout import Layout
from nanopod.model.wire import LATENCY_BUCKETS_S, RouteRow, Samples, SamplesAck


def test_average_is_over_the_time_since_the_first_event_then_since_the_last_report() -> None:
    stats = RequestStats()
    assert stats.enter(10.9, 7.0)
    assert stats.report(11.0) == (pytest.approx(1.0), 1, 7.0), "it was one for as long as anything was known"
    stats.leave(11.25)
    assert stats.report(12.0) == (pytest.approx(0.25), 0, 0.0)
    assert not stats.live or stats.now_in == 0
    assert stats.report(13.0)[0] == 0
    assert not stats.live


def test_events_that_take_no_time_average_to_zero_and_keep_their_count() -> None:
    stats = RequestStats()
    stats.enter(5.0, 1.0)
    stats.leave(5.0)
    assert stats.report(5.0) == (0.0, 1, 1.0)
    assert not stats.live, "as Knative: no activity in the period, so the next one is a first request"


def test_clock_that_steps_back_is_ignored() -> None:
    stats = RequestStats()
    stats.enter(10.0, 0.0)
    stats.enter(9.0, 0.0)
    stats.leave(9.5)
    assert stats.report(11.0)[0] == pytest.approx(1.0)


def test_first_request_is_told_at_once_and_left_out_of_the_next_report() -> None:
    host = Host()
    pool = pool_with(host)
    pool.enter(30.0)
    pool.enter(5.0)
    assert host.pokes == [30.0], "only the first of a quiet endpoint"
    host.now += 0.5
    sample = pool.sample()
    assert (sample.concurrency, sample.requests, sample.workload) == (pytest.approx(1.0), 1, 5.0)
    host.now += 1.0
    assert (pool.sample().concurrency, pool.requests) == (pytest.approx(2.0), 0)
    pool.leave()
    pool.leave()
    host.now += 1.0
    assert pool.sample().concurrency == 0.0
    assert not pool.active
    host.now += 50.0
    pool.enter(1.0)
    assert host.pokes == [30.0, 1.0]
    host.now += 0.25
    pool.leave()
    host.now += 0.75
    sample = pool.sample()
    assert (sample.concurrency, sample.requests) == (0.0, 0), "a quarter less the one that was told is none, not less"


def test_first_request_without_a_server_stays_in_its_report() -> None:
    host = Host()
    host.linked = False
    pool = pool_with(host)
    pool.enter(30.0)
    host.now += 1.0
    sample = pool.sample()
    assert (sample.concurrency, sample.requests, sample.workload) == (pytest.approx(1.0), 1, 30.0)


@given(st.lists(st.tuples(st.sampled_from(["in", "out", "report"]), st.floats(0, 2)), max_size=40))
def test_reports_add_up_to_the_whole(events: list[tuple[str, float]]) -> None:
    stats = RequestStats()
    now, area, inside, count, since = 0.0, 0.0, 0, 0, None
    found_area, found_count = 0.0, 0
    for what, after in events:
        area += inside * after
        now += after
        if what == "in":
            if not stats.live:
                since = now
            stats.enter(now, 1.0)
            inside, count = inside + 1, count + 1
        elif what == "out" and inside:
            stats.leave(now)
            inside -= 1
        elif what == "report" and since is not None:
            mean, arrived, load = stats.report(now)
            assert load == arrived
            found_area += mean * (now - since)
            found_count += arrived
            since = now
    if since is not None:
        mean, arrived, _ = stats.report(now)
        found_area += mean * (now - since)
        found_count += arrived
    assert found_count == count
    assert found_area == pytest.approx(area, abs=1e-6)


def test_waiting_requests_count_and_say_what_they_are_worth() -> None:
    host = Host()
    pool = pool_with(host)
    first, second = Work(pool, 40.0), Work(pool, 2.5)
    for job in (first, second):
        pool.enter(job.workload)
        assert not pool.submit(job)
        host.now += 0.25
    host.now += 0.5
    sample = pool.sample()
    assert sample.concurrency == pytest.approx(0.75), "both count while they wait, less the one that was told"
    assert (sample.parked, sample.waiting_load) == (2, 42.5)
    assert sample.oldest_wait_s == pytest.approx(1.0)
    pool.withdraw(first)
    host.now += 1.0
    assert pool.sample().oldest_wait_s == pytest.approx(1.75)
    link = add(pool, host, "i1")
    assert second.taken is link
    sample = pool.sample()
    assert (sample.parked, sample.in_flight, sample.waiting_load, sample.oldest_wait_s) == (0, 1, 0.0, 0.0)


def test_what_was_completed_is_counted_by_units_seconds_and_latency() -> None:
    host = Host()
    pool = pool_with(host)
    add(pool, host, "i1")
    for took_s, units in ((0.005, 10.0), (0.0051, 20.0), (700.0, 30.0)):
        job = send(pool, units)
        host.now += took_s
        job.end()
        pool.ends.served("r1", units, took_s, 3, 4)
    sample = pool.sample()
    units, seconds, count = sample.served
    assert (units, count, sample.tokens) == (60.0, 3, 21)
    assert sample.revisions == {"r1": (3, 0)}
    assert seconds == pytest.approx(700.0101)
    buckets = sample.latency["r1"]
    assert len(buckets) == len(LATENCY_BUCKETS_S) + 1
    assert (buckets[0], buckets[1], buckets[-1], sum(buckets)) == (1, 1, 1, 3), "upper bounds belong to their bucket"
    assert pool.ends.outputs.value == 4.0
    again = pool.sample()
    assert (again.served, again.latency, again.tokens) == ((0.0, 0.0, 0), {}, 0)


def test_an_idle_endpoint_is_not_sampled_at_all() -> None:
    pool = pool_with(Host())
    assert not pool.active
    pool.ends.ended("r1", True)
    assert pool.active, "an end without a request of its own is still told"
    pool.sample()
    assert not pool.active


def test_running_median_is_that_of_the_newest() -> None:
    found = Median()
    assert found.value == 128.0
    found.settle()
    assert found.value == 128.0
    values = [random.randrange(1000) for _ in range(3 * MEDIAN_OF)]
    for count, value in enumerate(values, 1):
        found.newest.append(value)
        found.settle()
        assert found.value == median(values[max(0, count - MEDIAN_OF) : count])


def test_samples_are_kept_until_they_are_acknowledged_and_not_for_ever() -> None:
    unacked = Unacked()
    for second in range(10):
        unacked.keep(Samples(100.0 + second, []))
    unacked.acked(104.0)
    assert [samples.at for samples in unacked.all()] == [105.0, 106.0, 107.0, 108.0, 109.0]
    for second in range(700):
        unacked.keep(Samples(200.0 + second, []))
    assert len(unacked) == KEPT_S == 600
    assert unacked.all()[0].at == 300.0
    for part in range(KEPT_MAX + 1):
        unacked.keep(Samples(900.0 + part / 1e6, []))
    assert len(unacked) == KEPT_MAX
    unacked.acked(1e12)
    assert not len(unacked)


def test_a_first_request_whose_news_is_lost_with_the_link_is_told_again_and_counted_once(tmp_path: Path) -> None:
    class Control:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def send(self, message: Any) -> None:
            self.told.append(message)

        def samples(self) -> list[Samples]:
            return [message for message in self.told if isinstance(message, Samples)]

    async def scene() -> None:
        gateway = Gateway(Layout(tmp_path), "g1", asyncio.get_running_loop())
        first, second = Control(), Control()
        gateway.linked(first)
        pool = gateway.pool(RouteRow("e", "w", "n", "default", "model", "r1"))
        pool.enter(30.0)
        (poke,) = first.samples()
        assert (poke.poke, poke.endpoints[0].requests) == (True, 1)
        gateway.unlinked()
        assert pool.sample().requests == 0, "it was told"
        gateway.linked(second)
        assert second.samples() == [poke]
        gateway.on_message(SamplesAck(poke.at))
        gateway.linked(third := Control())
        assert third.samples() == []
        gateway.meter.close()
        gateway.journal.close()

    asyncio.run(scene())
