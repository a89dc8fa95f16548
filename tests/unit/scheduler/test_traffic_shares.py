"""Traffic by revision, and the workers that go with it: stated, by a canary, over a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model.endpoint import Traffic
from nanopod.scheduler.rollout.shares import workers
from nanopod.scheduler.rollout.traffic import Known, Share, moved, needed, of_rollout, of_traffic

ONE = Known("r1", 1, healthy=True, ready=4)
TWO = Known("r2", 2, healthy=True, ready=4)
NEW = Known("r3", 3)


def calls(shares: tuple[Share, ...]) -> dict[str, int]:
    return {share.revision_id: share.percent for share in shares}


def test_stated_traffic_names_revisions_or_the_newest() -> None:
    found = of_traffic([Traffic("r1", 90), Traffic("", 10, "latest")], [ONE, TWO])
    assert calls(found) == {"r1": 90, "r2": 10}
    assert [share.tags for share in found] == [(), ("latest",)]
    assert calls(of_traffic([Traffic("r1", 100)], [ONE, TWO])) == {"r1": 100}, "the newest is not reachable"
    twice = of_traffic([Traffic("r2", 60), Traffic("", 40, "a"), Traffic("r2", 0, "b")], [ONE, TWO])
    assert [(share.percent, share.tags) for share in twice] == [(100, ("a", "b"))]
    assert calls(of_traffic([Traffic("gone", 50), Traffic("", 50)], [TWO])) == {"r2": 50}


def test_the_newest_gets_calls_once_it_was_ready() -> None:
    rows = [Traffic("r1", 80), Traffic("", 20)]
    starting = of_traffic(rows, [ONE, TWO, NEW])
    assert calls(starting) == {"r1": 80, "r2": 20, "r3": 0}
    assert {share.revision_id: share.workers for share in starting} == {"r1": 80, "r2": 20, "r3": 20}
    assert calls(of_traffic(rows, [ONE, TWO, replace(NEW, healthy=True)])) == {"r1": 80, "r3": 20}
    assert calls(of_traffic(rows, [ONE, TWO, replace(NEW, given_up=True)])) == {"r1": 80, "r2": 20}
    assert calls(of_traffic([Traffic()], [NEW])) == {"r3": 100}, "the first of all has them from the start"
    assert calls(of_traffic([Traffic()], [ONE, TWO, replace(NEW, healthy=True)], "r1")) == {"r1": 100}


def test_a_canary_gets_its_share_when_its_workers_are_there() -> None:
    def shares(ready: int, percent: int = 25, goal: int = 25, stable: int = 8) -> tuple[Share, ...]:
        return of_rollout(replace(NEW, ready=ready), replace(ONE, ready=stable), percent, goal, target=8)

    assert calls(shares(0)) == {"r3": 0, "r1": 100}
    assert calls(shares(1)) == {"r3": 12, "r1": 88}, "no more than its ready workers stand for"
    assert calls(shares(2)) == {"r3": 25, "r1": 75}
    assert calls(shares(1, stable=0))["r3"] == 25, "somebody must answer"
    assert [share.tags for share in shares(2)] == [(), ("prev",)]
    pinned = of_rollout(replace(NEW, ready=1), ONE, 0, 0, target=8, tag_routing=True)
    assert calls(pinned) == {"r3": 0, "r1": 100}
    assert [share.tags for share in pinned] == [("latest",), ("prev",)]


def test_workers_follow_the_shares_and_nobody_gives_any_away_early() -> None:
    def plan(target: int, percent: int, ready: int) -> dict[str, int]:
        found = of_rollout(replace(NEW, ready=ready), replace(ONE, ready=target), percent, percent, target=target)
        return workers(target, found, "r1")

    assert plan(0, 10, 0) == {"r1": 0, "r3": 0}
    assert plan(1, 10, 0) == {"r1": 1, "r3": 1}
    assert plan(1, 10, 1) == {"r1": 1, "r3": 1}
    assert plan(10, 10, 0) == {"r1": 10, "r3": 1}
    assert plan(10, 10, 1) == {"r1": 9, "r3": 1}
    assert plan(10, 25, 2) == {"r1": 10, "r3": 3}
    assert plan(10, 25, 3) == {"r1": 8, "r3": 3}


def test_a_revision_that_only_a_tag_reaches_has_a_worker_while_somebody_asks() -> None:
    shares = of_traffic([Traffic("r1", 100), Traffic("r2", 0, "old"), Traffic("r3", 0, "next")], [ONE, TWO, NEW])
    assert workers(3, shares, "r1") == {"r1": 3, "r2": 0, "r3": 1}, "a new one is tried once"
    assert workers(3, shares, "r1", {"r2"}) == {"r1": 3, "r2": 1, "r3": 1}
    assert workers(0, shares, "r1", {"r2"}) == {"r1": 0, "r2": 1, "r3": 0}
    untagged = of_rollout(replace(NEW, healthy=True, ready=1), ONE, 0, 0, target=3)
    assert workers(3, untagged, "r1", {"r3"}) == {"r1": 3, "r3": 0}, "no call can reach it"
    assert untagged[0].reachable is False


def test_shares_that_grow_are_ready_before_others_shrink() -> None:
    rows = [Traffic("r1", 20), Traffic("r2", 80)]
    before = of_traffic(rows, [replace(ONE, ready=5), replace(TWO, ready=5)])
    assert workers(10, before, "r2") == {"r1": 5, "r2": 8}
    assert workers(10, of_traffic(rows, [replace(ONE, ready=5), replace(TWO, ready=8)]), "r2") == {"r1": 2, "r2": 8}


@given(st.integers(0, 1000), st.integers(1, 99), st.integers(0, 1000))
def test_workers_never_fall_below_the_target(target: int, percent: int, ready: int) -> None:
    shares = of_rollout(replace(NEW, ready=ready), replace(ONE, ready=target), percent, percent, target=target)
    found = workers(target, shares, "r1")
    assert found["r1"] + min(found["r3"], ready) >= target
    assert (target == 0) is (found["r1"] == 0) is (found["r3"] == 0)
    assert found["r1"] <= target


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), min_size=1, max_size=6), st.integers(0, 200))
def test_percents_and_workers_hold_for_any_traffic(parts: list[tuple[int, int]], target: int) -> None:
    rows = [Traffic(f"r{index}", percent) for index, (percent, _) in enumerate(parts)]
    known = [Known(f"r{index}", index + 1, True, ready) for index, (_, ready) in enumerate(parts)]
    shares = of_traffic(rows, known)
    assert sum(share.percent for share in shares) == sum(percent for percent, _ in parts)
    for revision_id, count in workers(target, shares, "r0").items():
        share = next(one for one in shares if one.revision_id == revision_id)
        assert needed(target, share.workers) <= count <= max(target, needed(target, share.workers))


@pytest.mark.parametrize(
    ("before", "goal", "since_s", "duration_s", "expected"),
    [
        (0, 100, 0, 100, (1, pytest.approx(100 / 99))),
        (0, 100, 100, 100, (100, None)),
        (0, 100, 5, 10, (46, 1.0)),  # ten steps of nine
        (0, 100, 9.5, 10, (82, 0.5)),
        (0, 10, 1800, 3600, (5, 200.0)),  # never less than one percent a step
        (50, 100, 0, 10, (51, pytest.approx(1.0))),
        (0, 100, 0, 0, (100, None)),
        (0, 100, 0, 0.5, (1, 0.5)),
        (40, 10, 0, 100, (10, None)),  # down at once
        (0, 1, 0, 100, (1, None)),
    ],
)
def test_a_share_moves_in_steps(
    before: int, goal: int, since_s: float, duration_s: float, expected: tuple[int, float | None]
) -> None:
    assert moved(before, goal, since_s, duration_s) == expected


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_share_never_goes_back_nor_too_far(
    before: int, goal: int, one_s: float, other_s: float, duration_s: float
) -> None:
    early, late = sorted((one_s, other_s))
    first, left_s = moved(before, goal, early, duration_s)
    second, _ = moved(before, goal, late, duration_s)
    assert left_s is None or left_s > 0 or first == goal
    if before <= goal:
        assert before <= first <= second <= goal
    else:
        assert first == second == goal
