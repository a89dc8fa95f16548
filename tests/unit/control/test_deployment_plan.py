"""The deployment reconciler as a pure plan: counts, rolling updates, back-off, whom to stop."""

from __future__ import annotations

from typing import Any

import pytest
from chain_rows import NOW, deployment, instance, revision

from nanopod.control.deployment import DeploymentPlan, DeploymentReconciler, DeploymentSnapshot
from nanopod.control.live import Live


def plan(
    *instances: Any, ready: tuple[str, ...] = (), in_flight: tuple[tuple[str, int], ...] = (), **more: Any
) -> DeploymentPlan:
    reconciler = DeploymentReconciler(Live(), lambda kind: kind)
    current = deployment(**more)
    made = revision(current.revision_id)
    return reconciler.plan(DeploymentSnapshot(current, made, instances, frozenset(ready), in_flight), NOW)


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
        instance("busy", phase="loading", ready_at=NOW, created_at=1.0),
        instance("idle", phase="loading", ready_at=NOW, created_at=2.0),
        instance("young", phase="loading", ready_at=NOW, created_at=3.0),
        instance("queued", phase="queued", node_id=None, created_at=0.0),
        instance("loading", phase="loading", created_at=0.0),
    ]
    ready = ("busy", "idle", "young")
    in_flight = (("busy", 3), ("idle", 0), ("young", 0))
    order = ["queued", "loading", "young", "idle", "busy"]
    for target in range(5):
        found = plan(*rows, ready=ready, in_flight=in_flight, target_instance_count=target)
        assert sorted(stopped(found)) == sorted(order[: 5 - target])


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


def test_after_failures_it_waits_and_then_tries_one() -> None:
    waiting = plan(target_instance_count=5, fails=3, not_before=NOW + 4)
    assert (waiting.make, waiting.recheck_s) == (0, pytest.approx(4.0))
    assert "after 3 failed starts" in waiting.why[0]
    assert plan(target_instance_count=5, fails=3, not_before=NOW - 1).make == 1


def test_the_same_reasons_are_not_written_again() -> None:
    once = plan(target_instance_count=1, fails=1, not_before=NOW + 4)
    assert once.changes
    assert not plan(target_instance_count=1, fails=1, not_before=NOW + 4, reasons=once.why).changes
