"""The buffer's arithmetic: capacity, slices, breaker, choice, what is counted."""

from __future__ import annotations

import pytest

from nanopod.scheduler.autoscale.capacity import (
    CAPACITY_MAX,
    Breaker,
    Report,
    RequestStats,
    activators,
    assigned,
    breaker_capacity,
    first_free,
    policy,
    queue_depth,
    random_two,
    round_robin,
    sample_size,
    sampled,
)


def test_activators() -> None:
    assert activators(100, 10.0, 0.0, 100.0) == 2
    assert activators(30, 10.0, 211.0, 100.0) == 6
    assert activators(30, 10.0, -1.0, 100.0) == 3
    assert activators(0, 10.0, 10.0, 100.0) == 2


def test_capacity() -> None:
    assert breaker_capacity(10, 3, 9, 4) == 30
    assert breaker_capacity(10, 0, 9, 4) == 22
    assert breaker_capacity(1, 0, 2, 9) == 1
    assert breaker_capacity(10, 0, 3, 0) == 30
    assert breaker_capacity(0, 0, 3, 2) == CAPACITY_MAX == 2**31 - 1
    assert breaker_capacity(0, 0, 0, 2) == 0
    assert breaker_capacity(10, 0, 0, 2) == 0


def test_slices() -> None:
    pods = [f"10.0.0.{i}" for i in range(5)]
    assert assigned(pods, 1, 2) == [pods[2], pods[3]]
    assert assigned(pods, 0, 2) == [pods[0], pods[1], pods[4]]
    assert assigned(pods, 6, 7) == [pods[1]]
    for everything in (assigned(pods, -1, 2), assigned(pods, 0, 1), assigned(pods, 0, 2, concurrency=0)):
        assert everything == pods
    assert assigned(pods[:1], 3, 9) == pods[:1]
    assert sorted(one for index in range(3) for one in assigned(pods, index, 3)) == pods


def test_a_breaker_runs_holds_and_refuses() -> None:
    breaker = Breaker(depth=2, most=1)
    assert breaker.enter() == "wait", "no replica yet"
    assert breaker.resize(1) == 1
    assert [breaker.enter(), breaker.enter(), breaker.enter()] == ["wait", "wait", "full"]
    assert not breaker.reserve()
    assert (breaker.leave(), breaker.running, breaker.inside) == (1, 1, 2)
    breaker.give_up()
    assert (breaker.leave(), breaker.inside) == (0, 0)
    assert breaker.reserve() and breaker.running == 1
    assert breaker.resize(0) == 0 and breaker.running == 1, "who runs goes on"
    for wrong in ({"depth": 0, "most": 1}, {"depth": 1, "most": -1}, {"depth": 1, "most": 1, "capacity": 2}):
        with pytest.raises(ValueError):
            Breaker(**wrong)
    breaker.leave()
    with pytest.raises(ValueError):
        breaker.leave()
    with pytest.raises(ValueError):
        breaker.give_up()


def test_queues() -> None:
    assert queue_depth(7) == 10_000
    assert queue_depth(7, proxy=True) == 70


def test_choices() -> None:
    assert [policy(limit) for limit in (0, 1, 3, 4)] == ["random2", "first", "first", "round_robin"]
    assert first_free([False, True, True]) == 1
    assert first_free([False]) is None
    assert round_robin([True, True, True], 1) == (1, 2)
    assert round_robin([True, False, False], 1) == (0, 1)
    assert round_robin([False, False], 1) == (None, 1)
    assert round_robin([True, True], 5) == (0, 1), "fewer replicas than before"
    assert random_two([5], 0, 0, False) == 0
    assert random_two([5, 2], 0, 0, False) == 1
    assert random_two([5, 2, 1], 1, 1, False) == 2, "the second is drawn from the others"
    assert random_two([3, 9, 3], 0, 1, False) == 0
    assert random_two([3, 9, 3], 0, 1, True) == 2


def test_sample_sizes() -> None:
    assert [sample_size(n) for n in (-1, 0, 1, 3, 4, 10, 100, 1000, 10**6)] == [0, 0, 1, 3, 4, 7, 14, 16, 16]


def test_request_stats_average_over_the_time_in_between() -> None:
    stats = RequestStats(0.0)
    stats.enter(0.0)
    stats.enter(0.5)
    stats.leave(0.75)
    assert stats.report(1.0) == (1.25, 0.0, 2, 0)
    assert stats.report(2.0) == (1.0, 0.0, 0, 0), "concurrency is kept, counts are not"
    stats.leave(1.5)
    assert stats.report(2.0) == (0.0, 0.0, 0, 0), "steps back are ignored, and no time is no average"


def test_a_request_that_both_sides_see_counts_once() -> None:
    stats = RequestStats(0.0)
    stats.enter(0.0, proxied=True)
    stats.enter(0.0)
    stats.leave(0.5, proxied=True)
    found = stats.report(1.0)
    assert (found.concurrency, found.proxied_concurrency, found.requests, found.proxied_requests) == (1.5, 0.5, 2, 1)
    assert (found.value, found.rps) == (1.0, 1.0)


def test_samples_stand_for_all_and_one_that_fails_spoils_them() -> None:
    reports = [Report(1.0, 0.5, 4.0, 0.0), Report(2.0, 0.5, 6.0, 2.0)]
    assert sampled(reports, 10) == (15.0, 5.0, 50.0, 10.0)
    assert sampled([*reports, None], 10) is None
    assert sampled([], 10) is None
