"""Canaries, judged with a clock of our own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nanopod.model.endpoint import RolloutSpec
from nanopod.model.wire import LATENCY_BUCKETS_S
from nanopod.scheduler.rollout.decide import CHECK_S, RolloutState, Seen, decide, median_s

SPEC = RolloutSpec(canary_percent=10, bake_s=300, max_error_percent=5, min_calls=20)
CANARY = RolloutState("canary", "r2")


def look(spec: RolloutSpec = SPEC, *, at: float = 10.0, ready: float | None = 0.0, **seen: object) -> tuple[str, str]:
    _, verdict = decide(spec, CANARY, replace(Seen(ready), **seen), at)  # type: ignore[arg-type]
    return verdict.action, verdict.reason


def test_it_waits_until_it_has_baked_and_is_promoted_then() -> None:
    assert look(ready=None) == ("wait", "the canary has no ready worker yet")
    assert look(at=299.9)[0] == "wait"
    assert look(at=300.0) == ("promote", "it ran for 300 s and 0 of 0 calls of the canary failed")
    assert look(replace(SPEC, bake_s=0), at=1e9)[1].endswith("it waits to be promoted by hand")


@pytest.mark.parametrize(
    ("canary", "stable", "at", "action"),
    [
        ((19, 19), (100, 0), 10, "wait"),  # too few calls to tell
        ((20, 1), (100, 0), 10, "wait"),  # 5 % more is allowed
        ((20, 2), (100, 0), 10, "roll_back"),
        ((20, 2), (100, 10), 10, "wait"),  # the stable one fails as much
        ((20, 4), (100, 10), 10, "roll_back"),
        ((20, 2), (0, 0), 10, "roll_back"),
        ((3, 3), (100, 0), 300, "roll_back"),  # at the end, what is known counts
        ((3, 0), (100, 0), 300, "promote"),
    ],
)
def test_its_errors_are_weighed_against_those_of_the_stable_one(
    canary: tuple[int, int], stable: tuple[int, int], at: float, action: str
) -> None:
    assert look(at=at, canary=canary, stable=stable)[0] == action


def test_one_that_cannot_start_goes_back_at_once() -> None:
    found = look(ready=None, cannot_start="import: No module named 'x'")
    assert found == ("roll_back", "the canary cannot start: import: No module named 'x'")


def test_without_auto_rollback_it_is_only_told_and_never_promoted() -> None:
    spec = replace(SPEC, auto_rollback=False)
    for at in (10.0, 1000.0):
        action, reason = look(spec, at=at, canary=(20, 20))
        assert action == "wait"
        assert "auto_rollback is off" in reason


def test_counts_add_up_and_it_is_looked_at_again() -> None:
    state, verdict = decide(SPEC, CANARY, Seen(0.0, (2, 1), (5, 0)), 1.0)
    state, verdict = decide(SPEC, state, Seen(0.0, (3, 0), (5, 1)), 2.0)
    assert (state.canary, state.stable, verdict.recheck_s) == ((5, 1), (10, 1), CHECK_S)
    assert decide(SPEC, state, Seen(0.0), 299.5)[1].recheck_s == pytest.approx(0.5)


def test_one_that_is_pinned_or_promoted_by_hand_waits() -> None:
    pinned = replace(SPEC, canary_percent=0, pinned=True)
    assert look(pinned, at=1e6)[1].startswith("it is pinned to the previous revision")
    by_hand = replace(SPEC, auto_promote=False)
    assert look(by_hand, at=1e6) == ("wait", "0 of 0 calls of the canary failed; it waits to be promoted by hand")
    assert look(by_hand, canary=(20, 20))[0] == "roll_back", "it is judged all the same"


GRADUAL = RolloutSpec(duration_s=100.0, min_calls=10)


def test_a_gradual_takeover_moves_in_steps_and_ends_in_a_promotion() -> None:
    state, seen = CANARY, Seen(0.0, goal=100)
    found = []
    for at in (0.0, 10.0, 50.0, 99.5):
        state, verdict = decide(GRADUAL, state, seen, at)
        assert verdict.action == "wait"
        assert verdict.recheck_s is not None
        assert verdict.recheck_s <= CHECK_S
        found.append(state.percent)
    assert found == [1, 10, 50, 99]
    state, verdict = decide(GRADUAL, state, seen, 100.0)
    assert (state.percent, verdict.action) == (100, "promote")
    assert decide(GRADUAL, CANARY, replace(seen, ready_at=None), 1e6)[1].action == "wait", "its time begins when ready"
    assert decide(GRADUAL, CANARY, replace(seen, canary=(10, 5), stable=(10, 0)), 5.0)[1].action == "roll_back"


def test_a_share_grows_from_what_it_was_and_shrinks_at_once() -> None:
    moving = replace(CANARY, from_percent=20, moved_at=1000.0)
    assert decide(GRADUAL, moving, Seen(0.0, goal=60), 1000.0)[0].percent == 21
    assert decide(GRADUAL, moving, Seen(0.0, goal=60), 1100.0)[0].percent == 60
    assert decide(GRADUAL, moving, Seen(0.0, goal=10), 1000.0)[0].percent == 10


def test_calls_go_back_to_a_pinned_revision_once_it_is_ready() -> None:
    spec = RolloutSpec(pinned=True)
    state = replace(CANARY, from_percent=100, percent=100)
    seen = Seen(0.0, goal=0, stable_ready=False)
    state, verdict = decide(spec, state, seen, 5.0)
    assert (state.percent, state.moved_at, verdict.action) == (100, None, "wait")
    state, _ = decide(spec, state, replace(seen, stable_ready=True), 6.0)
    assert (state.percent, state.moved_at) == (0, 6.0)
    state, _ = decide(spec, state, seen, 7.0)
    assert state.percent == 0, "a crash of the stable revision does not bring the other one back"


def buckets(**counts: int) -> tuple[int, ...]:
    """`s1=20`: 20 requests in the bucket that ends at 1 s."""
    names = {f"s{bound:g}".replace(".", "_"): index for index, bound in enumerate(LATENCY_BUCKETS_S)}
    made = [0] * (len(LATENCY_BUCKETS_S) + 1)
    for name, count in counts.items():
        made[names[name]] = count
    return tuple(made)


def test_medians_come_from_buckets() -> None:
    assert median_s(()) == 0.0
    assert median_s(buckets(s0_1=10)) == pytest.approx(0.075)
    assert median_s(buckets(s0_1=10, s0_25=10)) == pytest.approx(0.1)
    assert median_s(buckets(s0_1=10, s0_25=30)) == pytest.approx(0.15)
    assert median_s((0,) * len(LATENCY_BUCKETS_S) + (5,)) == pytest.approx(900.0)


@pytest.mark.parametrize(
    ("canary", "stable", "action"),
    [
        ({"s1": 20}, {"s0_1": 20}, "roll_back"),
        ({"s1": 19}, {"s0_1": 20}, "wait"),  # too few calls to tell
        ({"s1": 20}, {"s0_1": 19}, "wait"),
        ({"s0_25": 20}, {"s0_1": 20}, "wait"),  # neighbours may be closer than they look
        ({"s0_1": 20}, {"s0_1": 20}, "wait"),
        ({"s0_1": 20}, {"s1": 20}, "wait"),
        ({"s1": 9, "s0_1": 11}, {"s0_1": 20}, "wait"),  # the median is what counts
    ],
)
def test_a_slow_canary_is_rolled_back(canary: dict[str, int], stable: dict[str, int], action: str) -> None:
    seen: dict[str, Any] = {"canary_latency": buckets(**canary), "stable_latency": buckets(**stable)}
    spec = replace(SPEC, max_slowdown_percent=50.0)
    found = look(spec, **seen)
    assert found[0] == action, found
    assert look(SPEC, **seen)[0] == "wait", "0: not judged"
    if action == "roll_back":
        assert "took more than about" in found[1]


def test_latencies_add_up() -> None:
    state, _ = decide(SPEC, CANARY, Seen(0.0, canary_latency=buckets(s1=2)), 1.0)
    state, _ = decide(SPEC, state, Seen(0.0, canary_latency=buckets(s1=3), stable_latency=buckets(s5=1)), 2.0)
    assert state.canary_latency == buckets(s1=5)
    assert state.stable_latency == buckets(s5=1)
