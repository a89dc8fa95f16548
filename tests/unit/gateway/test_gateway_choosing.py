"""Which worker gets a request: by Knative's rules, by predicted wait, by what an engine has seen of the prompt."""

from __future__ import annotations

from collections import Counter

import pytest
from pool_stage import Host, Work, add, pool_with, send, tell

from nanopod.gateway import choosing


def names(jobs: list[Work]) -> list[str]:
    return [job.taken.instance_id if job.taken is not None else "" for job in jobs]


@pytest.mark.parametrize("profile", ["knative", "coreweave"])
def test_few_at_a_time_go_to_the_first_free_by_address(profile: str) -> None:
    host = Host()
    pool = pool_with(host, profile=profile, concurrency=2)
    for name in ("c", "a", "b"):
        add(pool, host, name)
    jobs = [send(pool) for _ in range(7)]
    assert names(jobs) == ["a", "a", "b", "b", "c", "c", ""]
    jobs[2].end()
    assert names(jobs)[-1] == "b", "who waited gets the slot"


def test_from_four_at_a_time_on_they_take_turns() -> None:
    host = Host()
    pool = pool_with(host, profile="knative", concurrency=4)
    for name in ("c", "a", "b"):
        add(pool, host, name)
    jobs = [send(pool) for _ in range(6)]
    assert names(jobs) == ["a", "b", "c", "a", "b", "c"]
    jobs += [send(pool) for _ in range(5)]
    assert names(jobs)[6:] == ["a", "b", "c", "a", "b"]
    jobs += [send(pool), send(pool)]
    assert names(jobs)[-2:] == ["c", ""]
    jobs[0].end()
    assert names(jobs)[-1] == "a"
    jobs[1].end()
    jobs[2].end()
    assert names([send(pool), send(pool)]) == ["b", "c"], "after the last choice"


def test_without_a_limit_the_less_loaded_of_two_wins() -> None:
    host = Host()
    pool = pool_with(host, profile="knative", concurrency=0)
    links = [add(pool, host, name, slots=1) for name in "ab"]
    for _ in range(100):
        send(pool)
    assert [link.in_flight for link in links] == [50, 50], "of two workers both are always drawn"
    links += [add(pool, host, f"c{n}") for n in range(2)]
    for _ in range(400):
        send(pool)
    assert max(link.in_flight for link in links) < 200
    assert not pool.waiting


def test_unstated_concurrency_is_the_slots() -> None:
    host = Host()
    pool = pool_with(host, profile="knative")
    for name in "ba":
        add(pool, host, name, slots=1)
    assert names([send(pool) for _ in range(3)]) == ["a", "b", ""]


def test_a_changed_limit_holds_at_once() -> None:
    host = Host()
    pool = pool_with(host, concurrency=1)
    link = add(pool, host, "a")
    jobs = [send(pool) for _ in range(3)]
    assert (link.in_flight, pool.waiting) == (1, 2)
    pool.routed(pool_with(host, concurrency=0).route)
    pool.pump()
    assert link.in_flight == 3
    assert names(jobs) == ["a"] * 3


@pytest.mark.parametrize("profile", ["auto", "vast"])
def test_shortest_predicted_wait_wins(profile: str) -> None:
    host = Host()
    pool = pool_with(host, profile=profile, kind="function")
    slow = add(pool, host, "slow", slots=99, perf=50.0)
    fast = add(pool, host, "fast", slots=99, perf=200.0)
    for _ in range(50):
        send(pool, 10.0)
    assert fast.in_flight == pytest.approx(40, abs=1)
    assert slow.in_flight + fast.in_flight == 50
    heavy = send(pool, 5000.0)
    assert heavy.taken is not None
    other = slow if heavy.taken is fast else fast
    assert {send(pool, 1.0).taken for _ in range(5)} == {other}


def test_unmeasured_worker_counts_as_the_median_of_the_others() -> None:
    host = Host()
    pool = pool_with(host, kind="function")
    links = [add(pool, host, "a", perf=10.0), add(pool, host, "b", perf=30.0), add(pool, host, "c")]
    assert choosing.speeds(links) == [10.0, 30.0, 20.0]
    assert choosing.speeds(links[2:]) == [1.0]
    assert choosing.speeds(links, 5.0) == [10.0, 30.0, 5.0], "what we are told goes before the median"


def test_equals_are_drawn_at_random() -> None:
    host = Host()
    pool = pool_with(host)
    for name in "abcd":
        add(pool, host, name, slots=100)
    seen = Counter[str]()
    for _ in range(200):
        job = send(pool)
        seen.update(names([job]))
        job.end()
    assert len(seen) == 4
    assert min(seen.values()) > 15


@pytest.mark.parametrize(
    ("prefix", "queued", "kv_use", "score"),
    [(1.0, 0, -1.0, 3.0), (0.5, 0, 0.25, 1.0), (0.0, 5, 0.8, -3.6), (1.0, 9, 0.0, 1.0), (0.0, 1, 0.0, -0.4)],
)
def test_score_of_an_engine(prefix: float, queued: int, kv_use: float, score: float) -> None:
    assert choosing.score(prefix, queued, kv_use) == pytest.approx(score)


@pytest.mark.parametrize(
    ("kv_use", "queued", "full"), [(0.80, 5, False), (0.8001, 0, True), (-1.0, 6, True), (0.0, 0, False)]
)
def test_engines_are_full_above_the_limits_not_at_them(kv_use: float, queued: int, full: bool) -> None:
    assert choosing.saturated(kv_use, queued) is full
    host = Host()
    pool = pool_with(host)
    link = add(pool, host, "a", kv_use=kv_use, queued=queued)
    job = send(pool)
    assert (job.taken is None) is full
    other = pool_with(host, kind="function")
    assert send(other).taken is None
    add(other, host, "b", kv_use=kv_use, queued=queued)
    assert send(other).taken is not None, "only engines have such a queue"
    if full:
        tell(link, kv_use=0.5, queued=1)
        assert job.taken is link


def test_a_prompt_goes_where_its_beginning_was() -> None:
    host = Host()
    pool = pool_with(host)
    links = {name: add(pool, host, name, slots=1000) for name in "abc"}
    story = tuple(range(100, 140))
    first = send(pool, prompt=story)
    assert first.taken is not None
    home = first.taken.instance_id
    assert set(names([send(pool, prompt=(*story, n)) for n in range(20)])) == {home}
    tell(links[home], queued=5, kv_use=0.7)
    assert names([send(pool, prompt=(*story[:16], 1))]) != [home], "3 * 16/17 - 2 - 1.4 is less than nothing"
    tell(links[home], queued=0, kv_use=0.2)
    assert names([send(pool, prompt=story)]) == [home]
    tell(links[home], queued=6, kv_use=0.2)
    away = send(pool, prompt=story)
    assert names([away]) != [home]


def test_all_engines_full_means_waiting_here_in_the_order_of_arrival() -> None:
    host = Host()
    pool = pool_with(host)
    links = [add(pool, host, name, slots=2, kv_use=0.9) for name in "ab"]
    jobs = [send(pool, prompt=(n,)) for n in range(6)]
    assert (pool.waiting, names(jobs)) == (6, [""] * 6)
    tell(links[1], kv_use=0.3)
    assert names(jobs) == ["b", "b", "", "", "", ""]
    jobs[0].end()
    assert names(jobs)[:4] == ["b", "b", "b", ""]


def test_an_engine_works_off_its_queue_between_two_reports() -> None:
    host = Host()
    pool = pool_with(host)
    link = add(pool, host, "a", slots=100)
    jobs = [send(pool) for _ in range(10)]
    tell(link, queued=7)
    late = send(pool)
    assert late.taken is None
    jobs[0].end()
    assert late.taken is None
    jobs[1].end()
    assert late.taken is link, "two ended, so two of the seven run: five wait"


def test_prefixes_are_kept_for_engines_of_several_workers_under_auto_only() -> None:
    host = Host()
    for route, kept in (
        ({}, True),
        ({"profile": "vast"}, False),
        ({"profile": "knative", "concurrency": 0}, False),
        ({"protocols": ("v1", "v2")}, False),
        ({"kind": "function"}, False),
    ):
        pool = pool_with(host, **route)
        add(pool, host, "a")
        send(pool, prompt=(1, 2))
        assert not pool.prefixes, "one worker: there is nothing to choose"
        add(pool, host, "b")
        send(pool, prompt=(1, 2))
        assert bool(pool.prefixes) is kept, route


def test_a_worker_that_starts_anew_has_seen_nothing() -> None:
    host = Host()
    pool = pool_with(host)
    add(pool, host, "a")
    add(pool, host, "b")
    index = pool.prefixes
    assert index is not None
    index.of("a", 1).add((1, 2, 3))
    assert index.of("a", 1).share((1, 2, 3)) == 1.0
    assert index.of("a", 2).share((1, 2, 3)) == 0.0
    index.of("b", 1)
    index.keep(["b"])
    assert len(index) == 1


def test_draining_worker_gets_nothing_new() -> None:
    host = Host()
    pool = pool_with(host)
    first = add(pool, host, "a")
    running = send(pool)
    tell(first, draining=True)
    waiting = send(pool)
    assert waiting.taken is None
    second = add(pool, host, "b")
    assert waiting.taken is second
    assert running.taken is first
    running.end()
    assert first.in_flight == 0
