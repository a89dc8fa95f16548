"""The deployment reconciler as a pure plan: counts, rolling updates, back-off, whom to stop."""

from __future__ import annotations

from typing import Any

import pytest
from chain_rows import NOW, FakeDesk, clock, deployment, instance, revision

from nanopod.control.deployment import DeploymentPlan, DeploymentReconciler, DeploymentSnapshot
from nanopod.control.live import Live


def plan(
    *instances: Any, ready: tuple[str, ...] = (), in_flight: tuple[tuple[str, int], ...] = (), **more: Any
) -> DeploymentPlan:
    extra = {name: more.pop(name) for name in ("short", "kinds", "misfit") if name in more}
    reconciler = DeploymentReconciler(Live(), lambda kind: kind, FakeDesk(), clock)  # type: ignore[arg-type]
    current = deployment(**more)
    made = revision(current.revision_id)
    return reconciler.plan(DeploymentSnapshot(current, made, instances, frozenset(ready), in_flight, **extra), NOW)


def stopped(found: DeploymentPlan) -> list[str]:
    return [i.instance_id for i in found.stop]


def test_missing_instances_are_made() -> None:
    found = plan(instance("i1"), target_instance_count=3)
    assert (found.make, stopped(found)) == (2, [])
    assert found.reasons == ("makes 2: 1 of 3",)


def test_at_its_number_nothing_happens() -> None:
    found = plan(instance("i1"), target_instance_count=1)
    assert (found.make, found.stop, found.changes) == (0, (), False)


def test_those_that_stop_do_not_count() -> None:
    assert plan(instance("i1", intent="stop"), target_instance_count=1).make == 1


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
    order = ["awaiting", "queued", "loading", "young", "idle", "busy"]
    for target in range(6):
        found = plan(*rows, ready=ready, in_flight=in_flight, target_instance_count=target)
        assert sorted(stopped(found)) == sorted(order[: 6 - target])


def test_zero_stops_all_revisions() -> None:
    found = plan(instance("i1"), instance("i0", revision_id="r0"), target_instance_count=0)
    assert sorted(stopped(found)) == ["i0", "i1"]


def test_an_update_starts_the_new_before_it_stops_the_old() -> None:
    old = [instance(f"old{n}", revision_id="r0") for n in range(2)]
    first = plan(*old, ready=("old0", "old1"), target_instance_count=2)
    assert (first.make, stopped(first)) == (2, [])
    new = [instance(f"new{n}") for n in range(2)]
    waiting = plan(*old, *new, ready=("old0", "old1"), target_instance_count=2)
    assert (waiting.make, stopped(waiting)) == (0, [])
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
    assert (waiting.make, waiting.recheck_s) == (0, pytest.approx(4.0))
    assert "after 3 failed starts" in waiting.why[0]
    assert plan(target_instance_count=5, fails=3, not_before=NOW - 1).make == 1


def test_the_same_reasons_are_not_written_again() -> None:
    once = plan(target_instance_count=1, fails=1, not_before=NOW + 4)
    assert once.changes
    assert not plan(target_instance_count=1, fails=1, not_before=NOW + 4, reasons=once.why).changes
