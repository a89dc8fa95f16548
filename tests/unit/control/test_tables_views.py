"""What gateways are told and what users see of the same rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, SPEC, deployment, endpoint, instance, revision

from nanopod.control.live import Live
from nanopod.control.tables import key_rows, phase_text, route_row, worker_row
from nanopod.control.views import deployment_view, endpoint_view, instance_view, template_view
from nanopod.model.chain import Key, Template
from nanopod.model.endpoint import Failure, FunctionSpec
from nanopod.model.wire import WorkerState

IMPORT = Failure("import", "No module named 'x'")


@pytest.fixture
def live() -> Live:
    made = Live()
    made.gateway_up("g1", ())
    return made


def ready(live: Live, *ids: str) -> None:
    for instance_id in ids:
        live.worker("g1", WorkerState(instance_id, 1, True, True, in_flight=1))


def test_only_good_keys_travel() -> None:
    def key(key_id: str, **more: Any) -> Key:
        return replace(Key(key_id, "w1", key_id, f"d-{key_id}", ("call",), None, 1.0, None, None, None), **more)

    class Reads:
        def api_keys(self) -> list[Key]:
            return [
                key("good"),
                key("late", expires_at=NOW),
                key("soon", expires_at=NOW + 1),
                key("gone", revoked_at=1),
            ]

    rows = key_rows(Reads(), NOW)  # type: ignore[arg-type]
    assert set(rows) == {"d-good", "d-soon"}
    assert rows["d-soon"].expires_at == NOW + 1


def test_a_route_shows_what_its_deployment_runs(live: Live) -> None:
    spec = replace(SPEC, functions=(FunctionSpec("a", timeout_s=5), FunctionSpec("b", timeout_s=9)))
    row = route_row(endpoint(), deployment(), revision(spec=spec), [], live)
    assert (row.revision_id, row.timeout_s, set(row.functions), row.failure) == ("r1", 9, {"a", "b"}, None)


def test_a_failure_travels_only_while_nothing_older_takes_over(live: Live) -> None:
    failed = endpoint(failure=IMPORT, revision_id="r2")
    alone = route_row(failed, deployment(revision_id="r2"), revision("r2"), [], live)
    assert alone.failure == IMPORT
    saved = route_row(failed, deployment(revision_id="r1"), revision("r1"), [], live)
    assert saved.failure is None


@pytest.mark.parametrize(
    ("instances", "text"),
    [
        ([], "starting 1 worker"),
        ([instance(phase="queued", node_id="n1")], "starting 1 worker"),
        ([instance(phase="queued", node_id=None, reason="no node")], "starting 1 worker (no node)"),
        ([instance("a", phase="preparing"), instance("b", phase="loading")], "preparing 1 worker, loading 1 worker"),
        ([instance("a", phase="starting"), instance("b", phase="starting")], "starting 2 workers"),
    ],
)
def test_phase_texts(live: Live, instances: list[Any], text: str) -> None:
    assert phase_text(endpoint(), deployment(), instances, live) == text


def test_nobody_waits_where_a_worker_is_ready(live: Live) -> None:
    ready(live, "i1")
    assert phase_text(endpoint(), deployment(), [instance()], live) == ""


def test_a_worker_row_knows_its_token_by_digest_only() -> None:
    row = worker_row(instance(intent="stop"), "secret")
    assert row.draining
    assert row.token_digest == "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"


def status(live: Live, *instances: Any, **more: Any) -> str:
    names = {name: more.pop(name) for name in ("target_instance_count", "revision_id") if name in more}
    found = endpoint_view(endpoint(**more), deployment(**names), revision(), instances, live)
    return str(found["status"])


def test_statuses(live: Live) -> None:
    ready(live, "up", "old")
    up, loading = instance("up"), instance("loading")
    old = instance("old", revision_id="r0")
    assert status(live, up) == "ready"
    assert status(live, loading) == "waking"
    assert status(live, target=-1) == "waking"
    assert status(live, target=0) == "asleep"
    assert status(live, up, loading, target=2) == "scaling"
    assert status(live, up, target=3) == "scaling"
    assert status(live, old, loading) == "updating"
    assert status(live, failure=IMPORT, target=0) == "failed"
    assert status(live, up, failure=IMPORT) == "ready"


def test_only_the_newest_revision_counts_as_ready(live: Live) -> None:
    ready(live, "old")
    found = endpoint_view(
        endpoint(), deployment(), revision(), [instance("old", revision_id="r0"), instance("new")], live
    )
    assert found["ready_instance_count"] == 0
    assert [row["ready"] for row in found["instances"]] == [True, False]


def test_an_instance_is_ready_only_while_it_is_linked(live: Live) -> None:
    assert instance_view(instance(ready_at=NOW), live)["phase"] == "loading"
    ready(live, "i1")
    shown = instance_view(instance(ready_at=NOW), live)
    assert (shown["phase"], shown["in_flight"], shown["status"]) == ("ready", 1, "running")
    assert instance_view(instance(intent="stop"), live)["phase"] == "draining"
    awaiting = instance_view(instance(node_id=None, phase="queued", granted_at=None), live)
    assert (awaiting["status"], awaiting["market_phase"]) == ("awaiting_allocation", None)
    placing = instance_view(instance(node_id=None, phase="queued", early_until=170), live)
    assert (placing["status"], placing["market_phase"], placing["early_start"]) == ("running", "placing", True)
    assert instance_view(instance(phase="failed", ended_at=NOW), live)["status"] == "failed"


def test_a_machine_instance_is_ready_when_its_agent_says_so(live: Live) -> None:
    shown = instance_view(instance(endpoint_id="", phase="ready"), live)
    assert (shown["ready"], shown["phase"], shown["endpoint_id"]) == (True, "ready", None)
    assert not instance_view(instance(endpoint_id="", phase="preparing"), live)["ready"]


def test_a_deployment_says_why_it_has_fewer_than_its_target(live: Live) -> None:
    ready(live, "up")
    why = "awaits allocation: no_supply: nothing is on sale at 20.00"
    rows = [instance("up"), *(instance(f"w{n}", node_id=None, granted_at=None, reason=why) for n in range(2))]
    shown = deployment_view(deployment(target_instance_count=3), endpoint(), rows, live)
    assert (shown["instance_count"], shown["running_instance_count"], shown["ready_instance_count"]) == (3, 1, 1)
    assert shown["reasons"] == [f"2 instances wait: {why}"]
    assert shown["status"]["state"] == "warning"
    assert shown["status"]["code"] == "no_supply"
    assert shown["status"]["message"].startswith("no_supply: 1 of 3 instances run; ")


def test_the_states_of_a_deployment(live: Live) -> None:
    def state(*rows: Any, **more: Any) -> tuple[str, str]:
        found = deployment_view(deployment(**more), None, rows, live)["status"]
        return found["state"], found["code"]

    assert state(instance()) == ("info", "running")
    assert state(instance(), enabled=False) == ("info", "disabled")
    fresh = deployment_view(deployment(), None, [instance(node_id=None, granted_at=None)], live)["status"]
    assert fresh["message"] == "running: 0 of 1 instances run; 1 await allocation"
    assert state(instance(), fails=2) == ("warning", "failing")


def test_an_end_that_was_announced_reaches_the_gateway() -> None:
    assert worker_row(instance(), "t").doomed_at is None
    assert worker_row(instance(warned='{"at": 12000, "leads_s": [600]}'), "t").doomed_at == 12000
    assert worker_row(instance(warned="not json"), "t").doomed_at is None


def test_a_template_shows_its_script_on_demand_alone() -> None:
    made = Template("t1", "w1", "worker", "image_1", "IyEvYmluL3NoCg==", "", {"a": "b"}, NOW, NOW)
    shown = template_view(made)
    assert shown["cloud_init_user_data_used"]
    assert "cloud_init_user_data" not in shown
    assert template_view(made, cloud_init=True)["cloud_init_user_data"] == made.cloud_init
