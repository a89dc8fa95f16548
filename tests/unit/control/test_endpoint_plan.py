"""The endpoint reconciler as a pure plan: counts, failed revisions, ttl, deletion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, SCALE, deployment, endpoint, instance, revision

from nanopod.control.endpoint import EndpointReconciler, EndpointSnapshot, Watch, slots_of
from nanopod.control.live import Live, Load
from nanopod.model.endpoint import EndpointSpec, Failure, FunctionSpec, ModelSpec
from nanopod.model.wire import EndpointSample
from nanopod.scheduler.autoscale.decide import ScaleState

IMPORT = Failure("import", "No module named 'x'")
SLEEPY = replace(SCALE, cold_workers=0, inactivity_timeout=10)


@pytest.fixture
def live() -> Live:
    made = Live()
    made.gateway_up("g1", ())
    return made


def plan(live: Live, snapshot: EndpointSnapshot, now: float = NOW) -> Any:
    return EndpointReconciler(live, Watch(live)).plan(snapshot, now)


def snapshot(**more: Any) -> EndpointSnapshot:
    made = EndpointSnapshot(endpoint(), deployment(), revision(), [instance()], None, state=ScaleState(target=1))
    return replace(made, **more)


def test_nothing_to_do_writes_nothing(live: Live) -> None:
    found = plan(live, snapshot(stored_at=NOW))
    assert (found.changes, found.target, found.reasons) == (False, 1, ())


def test_a_new_endpoint_gets_its_first_worker(live: Live) -> None:
    found = plan(
        live,
        snapshot(
            endpoint=endpoint(target=-1),
            deployment=deployment(target_instance_count=0),
            instances=[],
            state=ScaleState(),
        ),
    )
    assert (found.changes, found.target) == (True, 1)
    assert found.reasons[0].startswith("0 -> 1 workers")


def test_a_deployment_that_differs_is_brought_in_line(live: Live) -> None:
    assert plan(live, snapshot(deployment=deployment(target_instance_count=0), stored_at=NOW)).changes
    assert plan(live, snapshot(deployment=deployment(revision_id="r0"), stored_at=NOW)).revision_id == "r1"


def test_load_raises_the_count(live: Live) -> None:
    live.sample("g1", NOW - 1, EndpointSample("e1", 20.0, 20, 0, 20))
    found = plan(live, snapshot())
    assert found.target == 6  # 20 / (4 slots * 0.9)


def test_the_second_failure_by_the_users_fault_fails_the_revision(live: Live) -> None:
    once = plan(live, snapshot(revision=revision(failures=1, failure=IMPORT)))
    assert (once.failure, once.target) == (None, 1)
    twice = plan(live, snapshot(revision=revision(failures=2, failure=IMPORT)))
    assert (twice.failure, twice.target, twice.stopped) == (IMPORT, 0, True)
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
    assert (found.failure, found.target, found.stopped) == (IMPORT, 1, False)
    asleep = endpoint(target=0, scale=SLEEPY)
    slept = plan(live, snapshot(endpoint=asleep, revision=worked, instances=[], state=ScaleState(target=0)))
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
    waiting = plan(live, snapshot(endpoint=gone, deployment=deployment(target_instance_count=0)))
    assert (waiting.changes, waiting.purge) == (False, False)
    last = plan(live, snapshot(endpoint=gone, instances=[]))
    assert last.purge


def test_the_state_is_stored_now_and_then(live: Live) -> None:
    assert plan(live, snapshot(stored_at=NOW - 11)).changes
    assert not plan(live, snapshot(stored_at=NOW - 9)).changes


def test_slots_of_functions_and_models() -> None:
    functions = (FunctionSpec("a", concurrency=3), FunctionSpec("b", concurrency=2))
    assert slots_of(EndpointSpec("x", functions=functions)) == 5
    assert slots_of(EndpointSpec("x", kind="model", model=ModelSpec("m", slots=8))) == 8


def test_the_watch_asks_for_a_look_only_when_the_count_would_change(live: Live) -> None:
    watch = Watch(live)
    reconciler = EndpointReconciler(live, watch)
    assert watch.step("e1", NOW), "it is not known yet"
    made = reconciler.plan(snapshot(endpoint=endpoint(scale=SCALE)), NOW)
    reconciler.applied(made)
    live.sample("g1", NOW + 1, EndpointSample("e1", 1.0, 1, 0, 1))
    assert not watch.step("e1", NOW + 1)
    live.sample("g1", NOW + 2, EndpointSample("e1", 40.0, 40, 0, 40))
    assert watch.step("e1", NOW + 2)


def test_the_watch_sees_the_time_pass(live: Live) -> None:
    watch = Watch(live)
    reconciler = EndpointReconciler(live, watch)
    live.loads["e1"] = Load(state=ScaleState(target=1, active_at=NOW))
    state = ScaleState(target=1, active_at=NOW, ready=1)
    idle = snapshot(endpoint=endpoint(scale=SLEEPY), state=state, ready=frozenset({"i1"}))
    reconciler.applied(reconciler.plan(idle, NOW))
    assert watch.due(NOW + 5) == []
    assert watch.due(NOW + 10.5) == ["e1"]


def test_a_stopped_endpoint_is_left_alone_whatever_is_asked_of_it(live: Live) -> None:
    watch = Watch(live)
    reconciler = EndpointReconciler(live, watch)
    reconciler.applied(reconciler.plan(snapshot(revision=revision(failures=2, failure=IMPORT)), NOW))
    live.demand("e1", 5, NOW)
    assert not watch.step("e1", NOW)


def test_activity_is_stored_now_and_then_without_a_change_of_the_count(live: Live) -> None:
    watch = Watch(live)
    reconciler = EndpointReconciler(live, watch)
    made = reconciler.plan(snapshot(stored_at=NOW - 60), NOW)
    assert made.changes
    reconciler.applied(made)
    for second in range(1, 10):
        live.sample("g1", NOW + second, EndpointSample("e1", 1.0, 1, 0, 1))
        assert not watch.step("e1", NOW + second)
        assert watch.due(NOW + second) == []
    live.sample("g1", NOW + 11, EndpointSample("e1", 1.0, 1, 0, 1))
    assert not watch.step("e1", NOW + 11)
    assert watch.due(NOW + 11) == ["e1"]
