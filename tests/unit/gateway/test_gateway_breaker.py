"""Who may come in and wait: the limits as they are written, inclusive and exclusive."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from pool_stage import Host, add, pool_with, send, tell

from nanopod.gateway import breaker
from nanopod.gateway.breaker import QUEUE_DEPTH


@pytest.mark.parametrize("profile", ["auto", "vast", "knative", "coreweave"])
def test_ten_thousand_may_wait_for_a_revision_and_no_more(profile: str) -> None:
    host = Host()
    pool = pool_with(host, profile=profile, eta_s=12.3)
    for _ in range(QUEUE_DEPTH - 1):
        send(pool)
    assert breaker.check(pool, "") is None
    last = send(pool)
    refused = breaker.check(pool, "")
    assert refused is not None
    assert (refused.status, refused.code) == (503, "queue_full")
    assert "pending request queue full" in refused.message
    assert refused.extra == "retry-after: 13\r\n"
    assert breaker.check(pool, "r2") is None, "another revision has a queue of its own"
    pool.withdraw(last)
    assert breaker.check(pool, "") is None


@pytest.mark.parametrize(
    ("profile", "units", "limit_s", "status", "retry"),
    [
        ("auto", 300.0, 10.0, 0, ""),
        ("auto", 300.0001, 10.0, 429, "1"),
        ("vast", 345.0, 10.0, 429, "2"),
        ("auto", 330.0, 10.0, 429, "1"),
        ("auto", 330.1, 10.0, 429, "2"),
        ("auto", 0.0, 0.0, 0, ""),
        ("knative", 1e6, 10.0, 0, ""),
        ("coreweave", 1e6, 10.0, 0, ""),
    ],
)
def test_more_work_than_the_limit_is_429(profile: str, units: float, limit_s: float, status: int, retry: str) -> None:
    host = Host()
    pool = pool_with(host, profile=profile, kind="function", max_queue_time_s=limit_s)
    add(pool, host, "a", slots=1, perf=10.0)
    add(pool, host, "b", slots=1, perf=20.0)
    for share in (0.25, 0.25, 0.5):
        if units:
            send(pool, units * share)
    assert pool.waiting == (1 if units else 0), "what waits counts like what runs"
    refused = breaker.check(pool, "")
    assert (refused.status if refused else 0) == status
    if refused is not None:
        assert refused.code == "queue_too_long"
        assert refused.extra == f"retry-after: {retry}\r\n"


def test_nothing_is_predicted_of_unknown_speeds_or_without_a_ready_worker() -> None:
    host = Host()
    pool = pool_with(host, kind="function", max_queue_time_s=0.0)
    link = add(pool, host, "a", slots=1)
    send(pool, 1e9)
    send(pool, 1e9)
    assert pool.predicted_wait_s("") is None
    assert breaker.check(pool, "") is None
    tell(link, perf=10.0)
    assert breaker.check(pool, "") is not None
    link.usable = False
    assert pool.predicted_wait_s("") is None
    assert breaker.check(pool, "") is None, "while none is ready everybody is held"


def test_a_speed_that_the_tables_tell_counts_for_workers_that_measured_none() -> None:
    host = Host()
    pool = pool_with(host, kind="function", max_queue_time_s=10.0)
    add(pool, host, "a", slots=1)
    send(pool, 150.0)
    assert breaker.check(pool, "") is None
    pool.routed(replace(pool.route, units_per_s=10.0))
    assert pool.slowest == 10.0
    assert pool.predicted_wait_s("") == 15.0
    refused = breaker.check(pool, "")
    assert refused is not None and refused.status == 429
    add(pool, host, "b", slots=1, perf=20.0)
    assert pool.predicted_wait_s("") == 5.0, "its own measure goes first"
    assert breaker.check(pool, "") is None
    pool.routed(replace(pool.route, units_per_s=0.0))
    assert pool.slowest == 20.0


def test_work_of_another_revision_is_not_waited_for() -> None:
    host = Host()
    pool = pool_with(host, kind="function", max_queue_time_s=10.0)
    own = add(pool, host, "a", slots=1, perf=10.0)
    other = add(pool, host, "b", slots=1, perf=10.0)
    other.revision_id = "r2"
    own.load, other.load = 50.0, 500.0
    assert breaker.check(pool, "") is None
    assert breaker.check(pool, "r2") is not None


@pytest.mark.parametrize(("seconds", "whole"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (599.5, 600)])
def test_retry_after_is_in_whole_seconds_from_one_on(seconds: float, whole: int) -> None:
    assert breaker.retry_after(seconds) == f"retry-after: {whole}\r\n"


def test_expected_time_runs_from_the_tables_on() -> None:
    host = Host()
    pool = pool_with(host, eta_s=40.0, phase_text="loading  1\nworker")
    assert breaker.awaited(pool) == "waking replica, about 40 s (loading 1 worker)"
    host.now += 35.2
    assert breaker.awaited(pool) == "waking replica, about 5 s (loading 1 worker)"
    host.now += 10
    assert pool.eta_s() == 0.0
    assert breaker.awaited(pool) == "waking replica, loading 1 worker"
    add(pool, host, "a")
    assert breaker.awaited(pool) == "waiting for a free slot"


def test_waited_out_is_504_or_503_by_profile_and_by_reason() -> None:
    host = Host()
    pool = pool_with(host, eta_s=40.0, phase_text="loading 1 worker")
    failed = breaker.waited_out(pool, 600.0)
    assert (failed.status, failed.code) == (504, "wake_timeout")
    assert "retry-after: 40\r\n" in failed.extra
    assert "within 600 s (loading 1 worker)" in failed.message
    strict = breaker.waited_out(pool_with(host, profile="knative"), 300.0)
    assert (strict.status, strict.code, strict.extra) == (503, "queue_timeout", "retry-after: 1\r\n")
    add(pool, host, "a", slots=1, perf=10.0)
    send(pool, 95.0)
    busy = breaker.waited_out(pool, 1.0)
    assert (busy.status, busy.code) == (504, "queue_timeout")
    assert "retry-after: 10\r\n" in busy.extra
