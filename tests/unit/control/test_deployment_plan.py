"""The deployment reconciler as a pure plan: counts, rolling updates, back-off, whom to stop."""

from __future__ import annotations

from typing import Any

import pytest
from chain_rows import NOW, FakeDesk, clock, deployment, instance, revision

from nanopod.control.deployment import DeploymentPlan, DeploymentReconciler, DeploymentSnapshot
from nanopod.control.live import Live
from nanopod.control.replicas import Facts


def plan(
    *instances: Any, ready: tuple[str, ...] = (), in_flight: tuple[tuple[str, int], ...] = (), **more: Any
) -> DeploymentPlan:
    extra = {name: more.pop(name) for name in ("short", "kinds", "misfit", "cold", "rests") if name in more}
    known = {name: more.pop(name) for name in ("waiting", "price", "until", "block_end") if name in more}
    extra["facts"] = Facts(ready=frozenset(ready), in_flight=dict(in_flight), **known)
    reconciler = DeploymentReconciler(Live(), lambda kind: kind, FakeDesk(), clock)  # type: ignore[arg-type]
    current = deployment(**more)
    made = revision(current.revision_id)
    return reconciler.plan(DeploymentSnapshot(current, made, instances, frozenset(ready), **extra), NOW)


def made(found: DeploymentPlan) -> int:
    return sum(count for _, count in found.make)


def ids(rows: Any) -> list[str]:
    return [i.instance_id for i in rows]


def hibernated(name: str, **more: Any) -> Any:
    asleep = {"intent": "hibernate", "phase": "hibernated", "node_id": None, "granted_at": None, "home": "n1"}
    return instance(name, **{**asleep, **more})


def stopped(found: DeploymentPlan) -> list[str]:
    return [i.instance_id for i in found.stop]


def test_missing_instances_are_made() -> None:
    found = plan(instance("i1"), target_instance_count=3)
    assert (made(found), stopped(found)) == (2, [])
    assert found.reasons == ("makes 2: 1 of 3",)


def test_at_its_number_nothing_happens() -> None:
    found = plan(instance("i1"), target_instance_count=1)
    assert (made(found), found.stop, found.changes) == (0, (), False)


def test_those_that_stop_do_not_count() -> None:
    assert made(plan(instance("i1", intent="stop"), target_instance_count=1)) == 1


def test_the_least_missed_go_first() -> None:
    rows = [
        instance("busy", phase="loading", ready_at=NOW, seq=1),
        instance("idle", phase="loading", ready_at=NOW, seq=2),
        instance("young", phase="loading", ready_at=NOW, seq=3),
        instance("awaiting", phase="queued", node_id=None, granted_at=None),
        instance("queued", phase="queued", node_id=None),
        instance("loading", phase="loading"),
    ]
    ready = ("busy", "idle", "young")
    in_flight = (("busy", 3), ("idle", 0), ("young", 0))
    order = ["awaiting", "queued", "loading", "idle", "young", "busy"]
    for target in range(6):
        found = plan(*rows, ready=ready, in_flight=in_flight, target_instance_count=target)
        assert sorted(stopped(found)) == sorted(order[: 6 - target])


def test_zero_stops_all_revisions() -> None:
    found = plan(instance("i1"), instance("i0", revision_id="r0"), target_instance_count=0)
    assert sorted(stopped(found)) == ["i0", "i1"]


def test_an_update_starts_the_new_before_it_stops_the_old() -> None:
    old = [instance(f"old{n}", revision_id="r0") for n in range(2)]
    first = plan(*old, ready=("old0", "old1"), target_instance_count=2)
    assert (made(first), stopped(first)) == (2, [])
    new = [instance(f"new{n}") for n in range(2)]
    waiting = plan(*old, *new, ready=("old0", "old1"), target_instance_count=2)
    assert (made(waiting), stopped(waiting)) == (0, [])
    half = plan(
        *old, *new, ready=("old0", "old1", "new0"), in_flight=(("old0", 1), ("old1", 0)), target_instance_count=2
    )
    assert stopped(half) == ["old1"], "the idle one"
    whole = plan(old[0], *new, ready=("old0", "new0", "new1"), target_instance_count=2)
    assert stopped(whole) == ["old0"]


def test_an_update_without_room_makes_room_one_at_a_time() -> None:
    old = [instance(f"old{n}", revision_id="r0") for n in range(2)]
    queued = instance("new", node_id=None, phase="queued", reason="n1: all 2 slots are taken")
    found = plan(*old, queued, ready=("old0", "old1"), target_instance_count=2, fails=0)
    assert len(stopped(found)) == 1
    stopping = [instance("old0", revision_id="r0", intent="stop"), old[1]]
    assert stopped(plan(*stopping, queued, ready=("old1",), target_instance_count=2)) == []


def test_an_update_makes_room_only_when_no_time_is_to_be_had() -> None:
    old = [instance(f"old{n}", revision_id="r0") for n in range(2)]
    awaiting = instance("new", node_id=None, phase="queued", granted_at=None, reason="awaits allocation: soon")
    soon = plan(*old, awaiting, ready=("old0", "old1"), target_instance_count=2)
    assert stopped(soon) == [], "its first block comes by itself"
    short = plan(*old, awaiting, ready=("old0", "old1"), target_instance_count=2, short="no_supply: 1 node is missing")
    assert len(stopped(short)) == 1


def test_a_kind_of_node_is_chosen_while_there_is_none_or_its_own_is_gone() -> None:
    assert not plan(instance("i1"), target_instance_count=1).choose
    adrift = plan(instance("i1"), target_instance_count=1, kinds=("s2",))
    assert (adrift.choose, adrift.changes) == (True, True)


def test_why_nothing_fits_is_said_once() -> None:
    words = "no kind of node meets its requirements (cpu-2x: num_gpus gte 1 (it has 0))"
    found = plan(instance("i1"), target_instance_count=1, misfit=words)
    assert (found.why, found.choose, found.changes) == ((words,), False, True)
    assert not plan(instance("i1"), target_instance_count=1, misfit=words, reasons=(words,)).changes


def test_a_deployment_of_an_earlier_version_gets_its_template() -> None:
    assert plan(instance("i1"), target_instance_count=1, template_id="").adopt


def test_after_failures_it_waits_and_then_tries_one() -> None:
    waiting = plan(target_instance_count=5, fails=3, not_before=NOW + 4)
    assert (made(waiting), waiting.recheck_s) == (0, pytest.approx(4.0))
    assert "after 3 failed starts" in waiting.why[0]
    assert made(plan(target_instance_count=5, fails=3, not_before=NOW - 1)) == 1


def test_the_same_reasons_are_not_written_again() -> None:
    once = plan(target_instance_count=1, fails=1, not_before=NOW + 4)
    assert once.changes
    assert not plan(target_instance_count=1, fails=1, not_before=NOW + 4, reasons=once.why).changes


def test_the_way_down_is_to_hibernate_while_fewer_are_at_hand_than_wanted() -> None:
    found = plan(instance("i1", ready_at=NOW), ready=("i1",), target_instance_count=0, cold=1)
    assert (ids(found.hibernate), stopped(found)) == (["i1"], [])
    rows = [instance(name, ready_at=NOW) for name in ("i1", "i2", "i3")]
    two = plan(*rows, hibernated("c1"), ready=("i1", "i2", "i3"), target_instance_count=1, cold=2)
    assert (len(two.hibernate), len(two.stop)) == (1, 1)
    enough = plan(instance("i1", ready_at=NOW), hibernated("c1"), ready=("i1",), target_instance_count=0, cold=1)
    assert (ids(enough.hibernate), stopped(enough)) == ([], ["i1"])


def test_the_way_up_wakes_before_it_makes() -> None:
    found = plan(hibernated("c1"), target_instance_count=2, cold=0)
    assert (ids(found.wake), made(found)) == (["c1"], 1)
    draining = plan(instance("i1", intent="hibernate", phase="draining"), target_instance_count=1, cold=0)
    assert (ids(draining.wake), made(draining)) == ([], 1), "one that still drains cannot be taken back"


def test_after_a_failed_wake_one_is_tried_at_a_time_and_then_one_is_made() -> None:
    again = plan(hibernated("c1"), hibernated("c2"), target_instance_count=2, fails=1, not_before=NOW - 1)
    assert (ids(again.wake), made(again)) == (["c1"], 0)
    last = plan(target_instance_count=2, fails=2, not_before=NOW - 1)
    assert (ids(last.wake), made(last)) == ([], 1)


def test_the_cold_tier_is_filled_and_trimmed_one_at_a_time_once_the_load_has_what_it_needs() -> None:
    ready = instance("i1", ready_at=NOW)
    assert plan(ready, ready=("i1",), target_instance_count=1, cold=3).fill == 1
    assert plan(instance("i1"), target_instance_count=1, cold=3).fill == 0, "its first worker still starts"
    coming = instance("f1", start_kind="fill")
    assert plan(ready, coming, ready=("i1",), target_instance_count=1, cold=3).fill == 0
    there = instance("f1", start_kind="fill", ready_at=NOW)
    assert ids(plan(ready, there, ready=("i1", "f1"), target_instance_count=1, cold=3).hibernate) == ["f1"]
    trimmed = plan(ready, hibernated("c1"), hibernated("c2"), ready=("i1",), target_instance_count=1, cold=0)
    assert len(stopped(trimmed)) == 1


def test_one_that_is_filled_stays_when_it_is_needed() -> None:
    coming = instance("f1", start_kind="fill")
    found = plan(coming, target_instance_count=1, cold=1)
    assert (ids(found.keep), made(found)) == (["f1"], 0)


def test_the_only_start_is_not_cancelled_while_somebody_waits() -> None:
    assert stopped(plan(instance("i1"), target_instance_count=0, waiting=True)) == []
    assert stopped(plan(instance("i1"), target_instance_count=0)) == ["i1"]


def test_an_idle_one_stays_for_the_time_that_is_paid_for() -> None:
    ready = instance("i1", ready_at=NOW)
    paid = plan(ready, ready=("i1",), target_instance_count=0, price=3.0, block_end=NOW + 25)
    assert (stopped(paid), paid.later, paid.recheck_s) == ([], {"i1": NOW + 25}, pytest.approx(25))
    over = plan(ready, ready=("i1",), target_instance_count=0, price=3.0, block_end=NOW + 59, until={"i1": NOW - 1})
    assert stopped(over) == ["i1"]
    back = plan(ready, ready=("i1",), target_instance_count=1, price=3.0, block_end=NOW + 25, until={"i1": NOW + 25})
    assert (stopped(back), back.later) == ([], {}), "demand came back"
    free = plan(ready, ready=("i1",), target_instance_count=0, price=0.0, block_end=NOW + 25)
    assert stopped(free) == ["i1"], "time that costs nothing is not waited for"


def test_one_that_is_reclaimed_is_replaced_at_once_and_serves_on() -> None:
    warned = instance("i1", ready_at=NOW, warned='{"at": 10060, "leads_s": [], "reason": "schedule"}')
    found = plan(warned, ready=("i1",), target_instance_count=1)
    assert (made(found), stopped(found)) == (1, [])


def test_hibernated_ones_that_cannot_be_woken_any_more_end() -> None:
    ready = instance("i1", ready_at=NOW)
    rows = [hibernated("old", revision_id="r0"), hibernated("other", sku_id="s2"), hibernated("good")]
    found = plan(ready, *rows, ready=("i1",), target_instance_count=1, cold=3)
    assert sorted(stopped(found)) == ["old", "other"]
    gone = plan(ready, hibernated("c1"), ready=("i1",), target_instance_count=0, cold=0, rests=True)
    assert sorted(stopped(gone)) == ["c1", "i1"]
