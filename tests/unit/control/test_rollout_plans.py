"""Rollouts as pure plans: what of them reaches the endpoint, its deployment and the routes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, SCALE, FakeDesk, clock, deployment, endpoint, instance, revision

from nanopod.control import rollouts
from nanopod.control.deployment import DeploymentPlan, DeploymentReconciler, DeploymentSnapshot
from nanopod.control.endpoint import EndpointPlan, EndpointReconciler, EndpointSnapshot, Watch
from nanopod.control.live import Live
from nanopod.control.tables import route_row
from nanopod.control.views import endpoint_view, revision_view
from nanopod.model.endpoint import Failure, RolloutSpec
from nanopod.model.wire import EndpointSample, WorkerState
from nanopod.scheduler.autoscale.decide import ScaleState
from nanopod.scheduler.rollout.decide import RolloutState

IMPORT = Failure("import", "No module named 'x'")
SPEC = RolloutSpec(canary_percent=25, bake_s=100, min_calls=4)
CANARY: dict[str, Any] = {
    "revision_id": "r2", "stable_revision_id": "r1", "canary_percent": 25, "rollout": SPEC, "target": 4,
    "canary_state": rollouts.text_of(RolloutState("canary", "r2")),
}  # fmt: skip
STABLE = revision("r1", 1, healthy_at=NOW - 500)


def plan(live: Live | None = None, **more: Any) -> EndpointPlan:
    values: dict[str, Any] = {
        "endpoint": endpoint(**CANARY), "deployment": deployment(target_instance_count=4), "revision": revision("r2", 2),
        "instances": [instance("old"), instance("new", revision_id="r2")], "older_healthy": STABLE, "serving": STABLE,
        "state": ScaleState(target=4), "stored_at": NOW,
    }  # fmt: skip
    made = live or Live()
    return EndpointReconciler(made, Watch(made)).plan(EndpointSnapshot(**{**values, **more}), NOW)


def judged(found: EndpointPlan) -> Any:
    assert found.judged is not None
    return found.judged


def test_a_canary_waits_beside_the_stable_revision() -> None:
    found = plan()
    assert (found.revision_id, found.failure, judged(found).rolled_back) == ("r1", None, False)
    assert "canary_at" not in judged(found).columns
    ready = plan(ready=frozenset({"new", "old"}))
    assert judged(ready).columns["canary_at"] == NOW
    assert ready.recheck_s == pytest.approx(1.0)


def test_it_is_promoted_or_goes_back_by_its_calls() -> None:
    running = endpoint(**CANARY, canary_at=NOW - 50)
    good = plan(endpoint=replace(running, canary_at=NOW - 100), outcomes={"r1": (10, 0), "r2": (5, 0)})
    assert good.revision_id == "r2"
    assert judged(good).columns["stable_revision_id"] == ""
    assert any("promoted" in reason for reason in good.reasons)
    bad = plan(endpoint=running, outcomes={"r1": (10, 0), "r2": (5, 2)})
    assert (bad.revision_id, judged(bad).rolled_back) == ("r1", True)
    assert bad.failure is not None
    assert "2 of 5 calls of the canary failed" in bad.failure.message


def test_a_canary_that_cannot_start_goes_back_with_its_own_failure() -> None:
    found = plan(revision=revision("r2", 2, failures=2, failure=IMPORT))
    assert (found.revision_id, found.failure, judged(found).rolled_back) == ("r1", IMPORT, True)
    once = plan(revision=revision("r2", 2, failures=1, failure=IMPORT))
    assert not judged(once).rolled_back, "one failed start is not enough"


def test_what_was_rolled_back_stays_so() -> None:
    back = revision("r2", 2, failures=2, failure=IMPORT, state="rolled_back")
    found = plan(endpoint=endpoint(revision_id="r2", target=4, failure=IMPORT), revision=back)
    assert (found.revision_id, found.failure, judged(found).columns) == ("r1", IMPORT, {})
    assert not found.changes


def test_a_plain_update_that_fails_is_rolled_back_unless_that_is_off() -> None:
    values: dict[str, Any] = {
        "deployment": deployment(revision_id="r2", target_instance_count=4), "serving": None,
        "revision": revision("r2", 2, failures=2, failure=IMPORT),
    }  # fmt: skip
    found = plan(endpoint=endpoint(revision_id="r2", target=4), **values)
    assert (found.revision_id, judged(found).rolled_back) == ("r1", True)
    kept = plan(endpoint=endpoint(revision_id="r2", target=4, rollout=RolloutSpec(auto_rollback=False)), **values)
    assert (kept.revision_id, judged(kept).rolled_back, kept.failure) == ("r1", False, IMPORT)


def test_samples_are_counted_once_and_taken_once() -> None:
    live = Live()
    sample = EndpointSample("e1", 1.0, 3, 0, 1, 0.0, {"r2": (3, 1)})
    live.sample("g1", NOW, sample)
    live.sample("g1", NOW, sample)
    live.sample("g1", NOW + 1, sample)
    assert live.outcomes("e1") == {"r2": (6, 2)}
    seen = live.outcomes("e1")
    live.sample("g1", NOW + 2, sample)
    live.taken("e1", seen)
    assert live.outcomes("e1") == {"r2": (3, 1)}


def fleet(*instances: Any, target: int, ready: tuple[str, ...] = ()) -> DeploymentPlan:
    reconciler = DeploymentReconciler(Live(), lambda kind: kind, FakeDesk(), clock)  # type: ignore[arg-type]
    made = DeploymentSnapshot(
        deployment(target_instance_count=target), STABLE, instances, frozenset(ready), canary=revision("r2", 2),
        canary_percent=25,
    )  # fmt: skip
    return reconciler.plan(made, NOW)


def test_both_revisions_have_their_share_of_the_workers() -> None:
    old = [instance(f"old{n}") for n in range(8)]
    first = fleet(*old, target=8, ready=tuple(i.instance_id for i in old))
    assert (first.make, first.make_canary, first.stop) == (0, 2, ())
    new = [instance(f"new{n}", revision_id="r2") for n in range(2)]
    half = fleet(*old, *new, target=8, ready=("new0",))
    assert half.stop == (), "nothing is given away before the canary is whole"
    whole = fleet(*old, *new, target=8, ready=("new0", "new1", *(i.instance_id for i in old)))
    assert len(whole.stop) == 2
    assert all(i.revision_id == "r1" for i in whole.stop)
    earlier = fleet(
        *old, *new, instance("ancient", revision_id="r0"), target=8, ready=tuple(f"old{n}" for n in range(8))
    )
    assert [i.instance_id for i in earlier.stop] == ["ancient"]
    gone = fleet(*old, *new, target=0)
    assert len(gone.stop) == 10


def test_the_route_names_a_canary_only_while_it_can_answer() -> None:
    live = Live()
    rows = [instance("old"), instance("new", revision_id="r2")]
    shown = route_row(endpoint(**CANARY), deployment(), STABLE, rows, live)
    assert (shown.revision_id, shown.canary_revision_id, shown.canary_percent) == ("r1", "", 0)
    live.worker("g1", WorkerState("new", 1, True, True))
    shown = route_row(endpoint(**CANARY), deployment(), STABLE, rows, live)
    assert (shown.revision_id, shown.canary_revision_id, shown.canary_percent) == ("r1", "r2", 25)


def test_a_route_without_any_kind_of_node_fails_with_no_capacity() -> None:
    why = "no kind of node meets its requirements (cpu-2x: num_gpus gte 1 (it has 0))"
    found = route_row(endpoint(), deployment(sku_id="", reasons=(why,)), STABLE, [], Live()).failure
    assert found is not None
    assert (found.type_name, found.user_fault) == ("NoCapacity", False)
    assert "num_gpus gte 1" in found.message


def test_the_queue_limit_of_the_endpoint_reaches_its_functions() -> None:
    strict = endpoint(scale=replace(SCALE, max_queue_time=3.0))
    (function,) = route_row(strict, deployment(), STABLE, [], Live()).functions.values()
    assert function.max_queue_time_s == 3.0


def test_a_route_says_what_a_second_of_a_worker_costs() -> None:
    assert route_row(endpoint(), deployment(), STABLE, [], Live(), 0.5).price_micro_per_s == 0.5


def test_what_people_are_shown() -> None:
    shown = endpoint_view(endpoint(**CANARY), deployment(), revision("r2", 2), [], Live())
    assert (shown["rollout"]["state"], shown["rollout"]["stable_revision_id"]) == ("canary", "r1")
    names = {"r1": STABLE, "r2": revision("r2", 2)}
    states = {key: revision_view(endpoint(**CANARY), deployment(), one)["state"] for key, one in names.items()}
    assert states == {"r1": "stable", "r2": "canary"}
    failed = revision("r2", 2, failures=2, failure=IMPORT)
    alone = endpoint(revision_id="r2", failure=IMPORT)
    assert revision_view(alone, deployment(revision_id="r2"), failed)["state"] == "failed"
    assert revision_view(endpoint(revision_id="r2"), deployment(revision_id="r2"), STABLE)["state"] == "old"


def test_where_a_rollback_goes() -> None:
    third = revision("r3", 3)
    known = [STABLE, revision("r2", 2, healthy_at=NOW, state="rolled_back"), third]
    found = rollouts.previous_healthy(endpoint(revision_id="r3"), deployment(revision_id="r3"), known)
    assert found is STABLE, "not to one that was rolled back itself"
    assert rollouts.previous_healthy(endpoint(**CANARY), deployment(), known) is STABLE
    assert rollouts.previous_healthy(endpoint(), deployment(), [STABLE]) is None
