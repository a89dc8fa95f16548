"""Rollouts as pure plans: what of them reaches the endpoint, its deployment and the routes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, SCALE, FakeDesk, clock, deployment, endpoint, instance, revision

from nanopod.control import rollouts
from nanopod.control.deployment import DeploymentPlan, DeploymentReconciler, DeploymentSnapshot
from nanopod.control.endpoint import EndpointPlan, EndpointReconciler, EndpointSnapshot
from nanopod.control.live import Live
from nanopod.control.replicas import Facts
from nanopod.control.scaling import Watch
from nanopod.control.tables import route_row
from nanopod.control.views import endpoint_view, revision_view
from nanopod.model.endpoint import STOPPED, Failure, RolloutSpec, Traffic
from nanopod.model.errors import Invalid
from nanopod.model.wire import EndpointSample, WorkerState
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
    assert found.reasons == ()


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


def fleet(
    *instances: Any, target: int, ready: tuple[str, ...] = (), runs: str = "r1", asked: tuple[str, ...] = (),
    rests: bool = False, known: tuple[Any, ...] = (STABLE, revision("r2", 2)), **more: Any,
) -> DeploymentPlan:  # fmt: skip
    """The plan of a deployment that runs `runs`, whose endpoint is a canary's unless `more` says otherwise."""
    reconciler = DeploymentReconciler(Live(), lambda kind: kind, FakeDesk(), clock)  # type: ignore[arg-type]
    counts = Counter(i.revision_id for i in instances if i.instance_id in ready)
    of = {one.revision_id: one for one in known}
    shares = rollouts.shares_of(endpoint(**{**CANARY, **more}), known, counts, target)
    made = DeploymentSnapshot(
        deployment(target_instance_count=target, revision_id=runs), of[runs], instances, frozenset(ready),
        shares=shares, revisions=of, asked=frozenset(asked), rests=rests, facts=Facts(ready=frozenset(ready)),
    )  # fmt: skip
    return reconciler.plan(made, NOW)


def makes(plan: DeploymentPlan) -> dict[str, int]:
    return {made.revision_id: count for made, count in plan.make}


def test_both_revisions_have_their_share_of_the_workers() -> None:
    old = [instance(f"old{n}") for n in range(8)]
    first = fleet(*old, target=8, ready=tuple(i.instance_id for i in old))
    assert (makes(first), first.stop) == ({"r2": 2}, ())
    new = [instance(f"new{n}", revision_id="r2") for n in range(2)]
    half = fleet(*old, *new, target=8, ready=("new0",))
    assert half.stop == (), "nothing is given away before the canary is whole"
    whole = fleet(*old, *new, target=8, ready=("new0", "new1", *(i.instance_id for i in old)))
    assert len(whole.stop) == 2
    assert all(i.revision_id == "r1" for i in whole.stop)
    assert makes(fleet(*old, target=8, ready=("old0",), revision_id="r1", stable_revision_id="")) == {}
    earlier = fleet(
        *old, *new, instance("ancient", revision_id="r0"), target=8, ready=tuple(f"old{n}" for n in range(8))
    )
    assert [i.instance_id for i in earlier.stop] == ["ancient"]
    gone = fleet(*old, *new, target=0)
    assert len(gone.stop) == 10


def test_a_pinned_revision_is_tried_once_and_then_only_for_its_tag() -> None:
    pinned: dict[str, Any] = {"canary_percent": 0, "rollout": RolloutSpec(pinned=True, tag_routing=True)}
    old, new = instance("old"), instance("new", revision_id="r2")
    assert makes(fleet(old, target=1, ready=("old",), **pinned)) == {"r2": 1}
    tried = {**pinned, "known": (STABLE, revision("r2", 2, healthy_at=NOW - 5))}
    done = fleet(old, new, target=1, ready=("old", "new"), **tried)
    assert [i.instance_id for i in done.stop] == ["new"]
    assert done.recheck_s is not None
    assert fleet(old, new, target=1, ready=("old", "new"), asked=("r2",), **tried).stop == ()


def test_stated_traffic_moves_workers_when_the_others_are_ready() -> None:
    split: dict[str, Any] = {
        "stable_revision_id": "", "traffic": (Traffic("r1", 100), Traffic("", 0, "next")), "runs": "r2",
        "known": (STABLE, revision("r2", 2, healthy_at=NOW - 5)),
    }  # fmt: skip
    two = [instance(f"two{n}", revision_id="r2") for n in range(2)]
    first = fleet(*two, target=2, ready=("two0", "two1"), **split)
    assert (makes(first), first.stop, first.hibernate) == ({"r1": 2}, (), ()), "nobody leaves before"
    one = [instance(f"one{n}") for n in range(2)]
    whole = fleet(*two, *one, target=2, ready=("two0", "two1", "one0", "one1"), **split)
    assert {i.revision_id for i in whole.stop} == {"r2"}
    assert len(whole.stop) == 2


def test_one_that_rests_runs_nothing() -> None:
    found = fleet(instance("old"), instance("new", revision_id="r2"), target=3, ready=("old",), rests=True)
    assert (len(found.stop), found.make) == (2, ())
    stopped = endpoint(stopped=True)
    row = route_row(stopped, deployment(), STABLE, [], Live())
    assert row.stopped
    assert row.failure is not None
    assert row.failure.type_name == STOPPED


def test_the_route_divides_calls_as_far_as_they_can_be_answered() -> None:
    live = Live()
    rows = [instance("old"), instance("new", revision_id="r2")]
    known = (STABLE, revision("r2", 2))

    def traffic() -> list[tuple[str, int, str]]:
        shown = route_row(endpoint(**CANARY), deployment(), STABLE, rows, live, 0.0, known)
        assert shown.revision_id == "r1"
        return [(row.revision, row.percent, row.tag) for row in shown.traffic]

    assert traffic() == [("r2", 0, ""), ("r1", 100, "prev")]
    live.worker("g1", WorkerState("new", 1, True, True))
    live.worker("g1", WorkerState("old", 1, True, True))
    assert traffic() == [("r2", 25, ""), ("r1", 75, "prev")]
    plain = route_row(endpoint(), deployment(), STABLE, rows, live)
    assert plain.traffic == ()
    tagged = route_row(endpoint(rollout=RolloutSpec(tag_routing=True)), deployment(), STABLE, rows, live)
    assert tagged.traffic == (Traffic("r1", 100, "latest"),)


def test_revisions_have_names() -> None:
    known = [STABLE, revision("r2", 2, version_label="blue")]
    here = endpoint()
    assert rollouts.name_of(here, 7) == "square-00007"
    assert rollouts.name_of(endpoint(tag="dev"), 7) == "square-dev-00007"
    for reference, found in (("r1", "r1"), ("2", "r2"), ("square-00001", "r1"), ("blue", "r2")):
        one = rollouts.named(here, known, reference)
        assert one is not None
        assert one.revision_id == found
    rows = [Traffic("square-00001", 60), Traffic("3", 40), Traffic("latest", 0, "x")]
    assert rollouts.with_ids(here, known, rows, (3, "r3")) == (
        Traffic("r1", 60), Traffic("r3", 40), Traffic("", 0, "x"),
    )  # fmt: skip
    with pytest.raises(Invalid, match=r"square-00001, square-00002"):
        rollouts.with_ids(here, known, [Traffic("square-00009", 100)])


def test_what_a_revision_may_be_pinned_to() -> None:
    out = replace(STABLE, state=rollouts.ROLLED_OUT)
    canary = revision("r2", 2, healthy_at=NOW)
    newest = revision("r3", 3, healthy_at=NOW)
    assert rollouts.previous_rolled_out([out, canary, newest], newest) is out, "a canary never had all calls"
    assert rollouts.previous_rolled_out([STABLE, newest], newest) is STABLE
    assert rollouts.previous_rolled_out([revision("r1", 1), newest], newest) is None


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


def test_who_counts_as_ready() -> None:
    live = Live()
    live.worker("g1", WorkerState("old", 1, True, True))
    rows = [instance("old")]

    def count(**more: Any) -> int:
        shown = endpoint_view(endpoint(**{**CANARY, **more}), deployment(), revision("r2", 2), rows, live)
        return int(shown["ready_instance_count"])

    assert count() == 0, "whoever waits for the canary is not told of the others"
    assert count(canary_percent=0) == 1, "pinned: the earlier one serves"
    assert count(stable_revision_id="", traffic=(Traffic("r1", 100),)) == 1
    assert count(stable_revision_id="", traffic=(Traffic("r1", 50), Traffic("", 50))) == 0


@pytest.mark.parametrize(
    ("rollout", "percent"),
    [
        (RolloutSpec(duration_s=60), 1),
        (RolloutSpec(duration_s=60, canary_percent=40), 1),
        (RolloutSpec(canary_percent=40), 40),
        (RolloutSpec(pinned=True), 0),
        (RolloutSpec(), 100),
    ],
)
def test_a_canary_has_its_first_share_from_the_first_moment(rollout: RolloutSpec, percent: int) -> None:
    fresh = endpoint(revision_id="r2", rollout=rollout, **rollouts.begun("r1", "r2", rollout))
    assert rollouts.percent_of(fresh) == percent
    kept = endpoint(revision_id="r2", rollout=rollout, **rollouts.begun("r1", "r2", rollout, from_percent=100))
    assert rollouts.percent_of(kept) == 100, "until the stable one is ready to take calls back"
