"""Canaries, judged with a clock of our own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model.endpoint import RolloutSpec
from nanopod.scheduler.rollout.decide import CHECK_S, RolloutState, Seen, decide, shares

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


def test_shares_are_rounded_up_and_the_stable_one_gives_nothing_away_early() -> None:
    assert shares(0, 10, 0) == (0, 0)
    assert shares(1, 10, 0) == (1, 1)
    assert shares(1, 10, 1) == (1, 1)
    assert shares(10, 10, 0) == (10, 1)
    assert shares(10, 10, 1) == (9, 1)
    assert shares(10, 25, 2) == (10, 3)
    assert shares(10, 25, 3) == (8, 3)


@given(st.integers(0, 1000), st.integers(1, 99), st.integers(0, 1000))
def test_shares_never_leave_less_than_the_target(target: int, percent: int, ready: int) -> None:
    stable, canary = shares(target, percent, ready)
    assert stable + min(canary, ready) >= target
    assert (target == 0) is (stable == 0) is (canary == 0)
    assert stable <= target
    assert stable + canary <= target + max(1, canary)
