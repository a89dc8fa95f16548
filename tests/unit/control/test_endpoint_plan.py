"""The endpoint reconciler as a pure plan: counts, failed revisions, ttl, deletion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, SCALE, deployment, endpoint, instance, revision

from nanopod.control.endpoint import EndpointReconciler, EndpointSnapshot, slots_of
from nanopod.control.live import Live
from nanopod.control.scaling import Watch
from nanopod.model.endpoint import EndpointSpec, Failure, FunctionSpec, ModelSpec
from nanopod.model.wire import EndpointSample, WorkerState

IMPORT = Failure("import", "No module named 'x'")
SLEEPY = replace(SCALE, cold_workers=0, inactivity_timeout=10)


@pytest.fixture
def live() -> Live:
    made = Live()
    made.gateway_up("g1", ())
    return made


def plan(live: Live, snapshot: EndpointSnapshot, now: float = NOW) -> Any:
    return Planner(live).plan(snapshot, now)


class Planner:
    """A reconciler whose plans are always carried out."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.watch = Watch(live)
        self.reconciler = EndpointReconciler(live, self.watch)

    def plan(self, snapshot: EndpointSnapshot, now: float = NOW) -> Any:
        for one in snapshot.instances:
            if one.instance_id in snapshot.ready:
                self.live.worker("g1", WorkerState(one.instance_id, one.epoch, True, True))
        found = self.reconciler.plan(snapshot, now)
        self.reconciler.applied(found)
        return found


def snapshot(**more: Any) -> EndpointSnapshot:
    made = EndpointSnapshot(endpoint(), deployment(), revision(), [instance()], None)
    return replace(made, **more)


def kept(planner: Planner, snapshot: EndpointSnapshot, found: Any) -> EndpointSnapshot:
    """The snapshot with what a plan wrote."""
    text = found.kept.text if found.kept is not None else snapshot.endpoint.scale_state
    after = replace(snapshot.endpoint, target=found.target, cold=found.cold, scale_state=text)
    return replace(
        snapshot, endpoint=after, deployment=replace(snapshot.deployment, target_instance_count=found.target)
    )


def test_nothing_to_do_writes_nothing(live: Live) -> None:
    planner = Planner(live)
    ready = snapshot(ready=frozenset({"i1"}))
    first = planner.plan(ready)
    again = planner.plan(kept(planner, ready, first), NOW + 1)
    assert (again.changes, again.target, again.reasons) == (False, 1, ())


def test_a_new_endpoint_gets_its_first_worker(live: Live) -> None:
    found = plan(
        live,
        snapshot(
            endpoint=endpoint(target=-1),
            deployment=deployment(target_instance_count=0),
            instances=[],
        ),
    )
    assert (found.changes, found.target) == (True, 1)
    assert found.reasons[0].startswith("0 -> 1 workers")


def test_a_deployment_that_differs_is_brought_in_line(live: Live) -> None:
    assert plan(live, snapshot(deployment=deployment(target_instance_count=0))).changes
    assert plan(live, snapshot(deployment=deployment(revision_id="r0"))).revision_id == "r1"


def test_load_raises_the_count(live: Live) -> None:
    live.sample("g1", NOW - 1, EndpointSample("e1", 20.0, 20, 0, 20), NOW)
    found = plan(live, snapshot(ready=frozenset({"i1"})))
    assert found.target == 6  # 20 / (4 slots * 0.9)


def test_the_second_failure_by_the_users_fault_fails_the_revision(live: Live) -> None:
    once = plan(live, snapshot(revision=revision(failures=1, failure=IMPORT)))
    assert (once.failure, once.target) == (None, 1)
    twice = plan(live, snapshot(revision=revision(failures=2, failure=IMPORT)))
    assert (twice.failure, twice.target, twice.cold) == (IMPORT, 0, 0)
    assert "No module named 'x'" in twice.scale_reasons[0]


def test_a_healthy_worker_of_the_revision_outweighs_failures(live: Live) -> None:
    found = plan(live, snapshot(revision=revision(failures=5, failure=IMPORT), ready=frozenset({"i1"})))
    assert found.failure is None


def test_an_earlier_healthy_revision_takes_over(live: Live) -> None:
    found = plan(
        live,
        snapshot(
            endpoint=endpoint(revision_id="r2"),
            revision=revision("r2", 2, failures=2, failure=IMPORT),
            deployment=deployment(revision_id="r2"),
            older_healthy=revision("r1", 1, healthy_at=NOW - 100),
        ),
    )
    assert (found.failure, found.revision_id, found.target) == (IMPORT, "r1", 1)


def test_a_revision_that_worked_before_is_tried_on(live: Live) -> None:
    worked = revision(failures=2, failure=IMPORT, healthy_at=NOW - 1000)
    found = plan(live, snapshot(revision=worked))
    assert (found.failure, found.target) == (IMPORT, 1)
    asleep = endpoint(target=0, scale=SLEEPY)
    slept = plan(live, snapshot(endpoint=asleep, revision=worked, instances=[]))
    assert slept.failure is None, "asleep, the next demand may try again"


def test_ttl_takes_it_down(live: Live) -> None:
    young = snapshot(endpoint=endpoint(ttl_s=60.0, heartbeat_at=NOW - 59))
    assert plan(live, young).recheck_s == pytest.approx(1.0)
    assert not plan(live, young).delete
    old = plan(live, snapshot(endpoint=endpoint(ttl_s=60.0, heartbeat_at=NOW - 60)))
    assert old.delete
    assert old.target == 0


def test_a_deleted_endpoint_is_purged_once_its_instances_are_gone(live: Live) -> None:
    gone = endpoint(deleted_at=NOW - 1)
    first = plan(live, snapshot(endpoint=gone))
    assert (first.changes, first.purge, first.target) == (True, False, 0)
    down = deployment(target_instance_count=0)
    waiting = plan(live, snapshot(endpoint=gone, deployment=down, instances=[instance(intent="stop")]))
    assert (waiting.changes, waiting.purge) == (False, False)
    asleep = plan(live, snapshot(endpoint=gone, deployment=down, instances=[instance(intent="hibernate")]))
    assert (asleep.changes, asleep.purge) == (True, False), "hibernated ones are to end, too"
    last = plan(live, snapshot(endpoint=gone, instances=[]))
    assert last.purge


def test_slots_of_functions_and_models() -> None:
    functions = (FunctionSpec("a", concurrency=3), FunctionSpec("b", concurrency=2))
    assert slots_of(EndpointSpec("x", functions=functions)) == 5
    assert slots_of(EndpointSpec("x", kind="model", model=ModelSpec("m", slots=8))) == 8
