"""The instance reconciler as a pure plan: placing, restarts under new epochs, blame, loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, FakeDesk, clock, instance

from nanopod.control.instance import (
    CRASH_BACKOFF_S_MAX,
    IN_PLACE_MAX,
    STEADY_S,
    InstancePlan,
    InstanceReconciler,
    InstanceSnapshot,
    backoff_s,
)
from nanopod.control.live import Live
from nanopod.model.capacity import Node
from nanopod.model.endpoint import Failure
from nanopod.model.errors import Conflict
from nanopod.scheduler.placement.place import Candidate

NODE = Node("n1", "m1", "s1", 4)
USER = Failure("import", "No module named 'x'")
INFRA = Failure("bundle", "the disk is full", user_fault=False)


def reconciler(desk: FakeDesk | None = None) -> InstanceReconciler:
    return InstanceReconciler(Live(), desk or FakeDesk(), clock)  # type: ignore[arg-type]


def plan(ready: bool = False, node: Node | None = NODE, candidates: Any = (), **more: Any) -> InstancePlan:
    awaits = more.pop("awaits", "")
    snapshot = InstanceSnapshot(instance(**more), node, candidates, (), ready, awaits, NOW)
    return reconciler().plan(snapshot, NOW)


def test_a_queued_instance_is_placed() -> None:
    found = plan(node_id=None, phase="queued", candidates=[Candidate(NODE, 1)])
    assert (found.step, found.node_id) == ("place", "n1")


def test_without_room_it_says_why_once() -> None:
    full = [Candidate(NODE, 4)]
    found = plan(node_id=None, phase="queued", candidates=full)
    assert (found.step, found.changes) == ("wait", True)
    assert "all 4 slots are taken" in found.reason
    assert not plan(node_id=None, phase="queued", candidates=full, reason=found.reason).changes
    assert found.recheck_s


def test_an_instance_that_is_not_granted_is_not_placed() -> None:
    why = "awaits allocation: no_supply: nothing is on sale"
    free = [Candidate(NODE, 0)]
    found = plan(node_id=None, phase="queued", granted_at=None, awaits=why, candidates=free)
    assert (found.step, found.reason, found.changes) == ("wait", why, True)
    assert not plan(node_id=None, phase="queued", granted_at=None, awaits=why, reason=why).changes
    assert plan(node_id=None, phase="queued", granted_at=None, intent="stop").step == "end"


def test_it_goes_to_its_own_kind_of_node_alone() -> None:
    found = plan(node_id=None, phase="queued", sku_id="s2", candidates=[Candidate(NODE, 0)])
    assert (found.step, found.node_id) == ("wait", None)
    assert "no node of its kind" in found.reason


def test_a_machine_instance_is_not_started_again_once_it_was_ready() -> None:
    crashed = plan(endpoint_id="", phase="failed", ready_at=NOW - 5, exit_code=3, reason="the script ended with 3")
    assert (crashed.step, crashed.blame) == ("end", False)
    assert crashed.failure is not None
    assert plan(endpoint_id="", phase="failed", failure=INFRA).step == "restart"
    assert plan(endpoint_id="", phase="failed", failure=USER).step == "end"


def test_running_and_ready() -> None:
    assert plan(phase="loading").step == "none"
    assert plan(phase="loading", ready=True).step == "ready"
    assert plan(phase="loading", ready=True, ready_at=NOW).step == "none"


def test_a_start_that_failed_by_the_users_fault_is_blamed_and_ended() -> None:
    found = plan(phase="failed", failure=USER)
    assert (found.step, found.blame, found.failure) == ("end", True, USER)


def test_a_crash_after_it_was_ready_starts_the_next_epoch_at_once() -> None:
    found = plan(phase="failed", ready_at=NOW - 5, reason="killed by signal 9")
    assert (found.step, found.not_before) == ("restart", NOW)
    assert "epoch 2" in found.reasons[0]


def test_one_that_crashes_again_and_again_does_not_spin() -> None:
    waits = [
        plan(phase="failed", ready_at=NOW - 1, fails=fails, reason="killed").not_before - NOW for fails in range(12)
    ]
    assert waits[0] == 0
    assert waits[1] > 0.1
    assert waits[-1] == CRASH_BACKOFF_S_MAX
    steady = plan(phase="failed", ready_at=NOW - STEADY_S, fails=9, reason="killed")
    assert (steady.step, steady.not_before, steady.fails) == ("restart", NOW, 0)


def test_an_end_that_nobody_asked_for_is_a_restart_too() -> None:
    assert plan(phase="ended", ready_at=NOW - 5, exit_code=0).step == "restart"


def test_infrastructure_trouble_is_retried_with_back_off_then_elsewhere() -> None:
    first = plan(phase="failed", failure=INFRA)
    assert first.step == "restart"
    assert 0 < first.not_before - NOW < 0.5
    third = plan(phase="failed", failure=INFRA, fails=2)
    assert third.not_before - NOW > 1.0
    last = plan(phase="failed", failure=INFRA, fails=IN_PLACE_MAX)
    assert (last.step, last.blame) == ("end", False)


def test_a_lost_node_ends_it_without_blame() -> None:
    found = plan(phase="loading", node=replace(NODE, state="lost"))
    assert found.step == "end"
    assert found.failure is not None
    assert not found.failure.user_fault


def test_stopping() -> None:
    assert plan(intent="stop", phase="draining").step == "none"
    assert plan(intent="stop", phase="ended").step == "end"
    assert plan(intent="stop", phase="failed").step == "end"
    assert plan(intent="stop", node_id=None, phase="queued").step == "end"
    assert plan(intent="stop", phase="draining", node=replace(NODE, state="lost")).step == "end"


def test_back_off_grows_to_a_minute_with_its_own_jitter() -> None:
    waits = [backoff_s(fails, "i1") for fails in range(12)]
    assert waits[0] == 0
    assert 0.18 <= waits[1] <= 0.22
    assert waits[1:8] == sorted(waits[1:8])
    assert 54 <= waits[11] <= 66
    assert backoff_s(3, "i1") == backoff_s(3, "i1")
    assert backoff_s(3, "i1") != backoff_s(3, "i2")


def test_two_that_saw_the_same_free_slot_do_not_both_get_it() -> None:
    taken = instance("other", node_id="n1")

    class Full:
        """A transaction in which the last slot is taken."""

        def nodes(self) -> list[Node]:
            return [replace(NODE, slots=1)]

        def instances_live(self) -> list[Any]:
            return [taken]

        def tell(self, *words: object) -> None:
            pass

    found = plan(node_id=None, phase="queued", candidates=[Candidate(replace(NODE, slots=1), 0)])
    assert found.step == "place"
    with pytest.raises(Conflict, match="taken meanwhile"):
        reconciler().commit(found, Full(), NOW)  # type: ignore[arg-type]
