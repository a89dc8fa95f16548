"""Which replicas are taken back, woken, made, drained, hibernated, ended."""

from __future__ import annotations

from typing import Any

from nanopod.scheduler.autoscale.replan import replan
from nanopod.scheduler.autoscale.values import Action, Phase, Replica

NOW = 1_800_000_000.0


def one(key: str, phase: Phase = "ready", **values: Any) -> Replica:
    return Replica(id=key, phase=phase, **values)


def said(desired: int, cold: int, replicas: list[Replica], waiting: bool = False) -> list[str]:
    found = replan(desired, cold, replicas, NOW, waiting)
    return [" ".join(filter(None, (action.kind, action.id, action.then))) for action in found]


def test_up_takes_back_then_wakes_then_makes() -> None:
    fleet = [
        one("a"),
        one("slow", "cold", eta_s=9.0),
        one("quick", "cold", eta_s=2.0),
        one("gone", "draining", reclaimed=True),
        one("back", "draining"),
    ]
    assert said(6, 0, fleet) == ["undrain back", "wake quick", "wake slow", "provision", "provision"]
    assert said(2, 0, fleet) == ["undrain back"]


def test_leaving_failed_and_hibernating_ones_do_not_count() -> None:
    fleet = [one("a", leaving=True), one("b", "failed"), one("c", "gone"), one("d", "hibernating"), one("e", "waking")]
    assert said(2, 0, fleet) == ["provision"]


def test_down_cancels_the_start_that_is_furthest_from_ready() -> None:
    fleet = [
        one("r", in_flight=2),
        one("far", "provisioning", eta_s=40.0),
        one("near", "loading", eta_s=3.0),
        one("middle", "benchmarking", eta_s=9.0),
    ]
    assert said(3, 0, fleet) == ["cancel far destroy"]
    assert said(1, 0, fleet) == ["cancel far destroy", "cancel middle destroy", "cancel near destroy"]
    assert said(0, 0, fleet)[-1] == "drain r destroy"
    even = [one("x", "benchmarking"), one("y", "provisioning"), one("z", "loading")]
    assert said(2, 0, even) == ["cancel y destroy"], "by phase where no time is known"


def test_the_only_start_is_kept_while_requests_wait() -> None:
    starts = [one("far", "loading", eta_s=30.0), one("near", "waking", eta_s=2.0)]
    assert said(0, 0, starts, waiting=True) == ["cancel far destroy"]
    assert said(0, 0, starts) == ["cancel far destroy", "cancel near destroy"]
    assert said(0, 1, starts) == ["cancel far destroy", "cancel near hibernate"], "a wake leaves its volume"
    assert said(1, 0, [one("r"), *starts], waiting=True) == ["cancel far destroy", "cancel near destroy"]


def test_victims_are_those_that_are_missed_least() -> None:
    fleet = [
        one("busy", in_flight=3),
        one("warm", prefix=0.9),
        one("dear", price=2.0, born_at=NOW - 60.0),
        one("cheap", price=1.0, born_at=NOW - 60.0),
        one("old", born_at=NOW - 600.0),
        one("young", born_at=NOW - 6.0),
    ]
    order = ["dear", "cheap", "young", "old", "warm", "busy"]
    for count in range(6):
        assert said(count, 0, fleet) == [f"drain {key} destroy" for key in order[: 6 - count]]


def test_equals_are_decided_by_id() -> None:
    assert said(1, 0, [one("b"), one("a"), one("c")]) == ["drain a destroy", "drain b destroy"]


def test_victims_hibernate_until_there_are_enough_cold_ones() -> None:
    fleet = [one("a"), one("b"), one("c"), one("asleep", "cold")]
    assert said(0, 3, fleet) == ["drain a hibernate", "drain b hibernate", "drain c destroy"]
    assert said(0, 1, fleet) == ["drain a destroy", "drain b destroy", "drain c destroy"]


def test_an_idle_victim_is_taken_at_the_end_of_its_paid_minute() -> None:
    fleet = [one("a", price=1.0, born_at=NOW - 90.0), one("b", price=1.0, born_at=NOW - 500.0, in_flight=1)]
    assert replan(1, 0, fleet, NOW, False) == [Action(kind="drain", id="a", at=NOW + 30.0, then="destroy")]
    assert [action.at for action in replan(0, 0, fleet, NOW, False)] == [NOW + 30.0, NOW], "a busy one drains now"
    planned = [one("a", price=1.0, born_at=NOW - 90.0, until=NOW + 30.0), one("b", price=1.0, born_at=NOW - 119.0)]
    assert [action.id for action in replan(1, 0, planned, NOW, False)] == ["a"], "the plan stays"
    assert replan(2, 0, planned, NOW, False) == [Action(kind="keep", id="a", at=NOW)], "demand is back"
    due = [one("a", price=1.0, born_at=NOW - 120.0, until=NOW)]
    assert replan(0, 0, due, NOW, False)[0].at == NOW
    assert replan(0, 0, [one("a", price=1.0, born_at=NOW - 120.0)], NOW, False)[0].at == NOW
    assert replan(0, 0, [one("a", price=1.0, born_at=NOW)], NOW, False)[0].at == NOW + 60.0
    assert replan(0, 0, [one("a", born_at=NOW - 90.0)], NOW, False)[0].at == NOW, "what costs nothing is not waited for"


def test_a_plan_moves_on_when_its_victim_became_busy() -> None:
    fleet = [
        one("a", price=1.0, born_at=NOW - 90.0, until=NOW + 30.0, in_flight=1),
        one("b", price=1.0, born_at=NOW - 80),
    ]
    assert said(1, 0, fleet) == ["drain b destroy", "keep a"]


def test_the_cold_tier_is_filled_and_trimmed_slowly() -> None:
    ready = [one("a"), one("b")]
    assert said(2, 2, ready) == ["fill hibernate"]
    assert said(2, 2, [*ready, one("f", "loading", filling=True)]) == [], "one at a time"
    assert said(2, 2, [*ready, one("h", "hibernating")]) == []
    assert said(2, 2, [one("a"), one("s", "loading")]) == [], "hot ones come first"
    cold = [one("c1", "cold", eta_s=3.0), one("c2", "cold", eta_s=8.0), one("c3", "cold", eta_s=8.0)]
    assert said(2, 1, [*ready, *cold]) == ["trim c2 destroy"]
    assert said(2, 3, [*ready, *cold]) == []


def test_one_that_was_to_be_hibernated_is_kept_when_it_is_needed() -> None:
    fleet = [one("a"), one("f", "loading", filling=True, eta_s=5.0), one("c", "cold", eta_s=2.0)]
    assert said(4, 0, fleet) == ["wake c", "keep f", "provision"]
    assert said(2, 0, [one("a"), one("f", filling=True), one("c", "cold")]) == ["keep f"], "it is ready already"
