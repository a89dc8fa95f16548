"""The management API over its real socket, against a real server process with a fake gateway and node agent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from described import Document
from peers import FakeAgent, FakeGateway, ServerProcess, model, record, until

from nanopod.control.driver import PERIOD_S
from nanopod.model.endpoint import Failure
from nanopod.server.api.auth import digest_of

pytestmark = pytest.mark.integration
BUNDLE = b"not really a bundle"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()
ASLEEP = {"cold_workers": 0, "min_load": 0, "inactivity_timeout": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("server") / "data").start()
    process.judge = Document(process.call("GET", "/openapi.json").body).check
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.log(), process.log()[-4000:]


def square(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "bundle": DIGEST, "functions": [{"name": "square", "concurrency": 4}], **more}


def delete_all(server: ServerProcess) -> None:
    for row in server.call("GET", "/v1/endpoints").body["data"]:
        server.call("DELETE", f"/v1/endpoints/{row['id']}")


# --- who may ---


def test_without_a_key_nothing_is_said(server: ServerProcess) -> None:
    wrong = server.key[:-9] + ("0" if server.key[-9] != "0" else "1") + server.key[-8:]
    for key in ("none", "sk_np_wrongkey_0", wrong, server.key + "x"):
        answer = server.call("GET", "/v1/status", key=key)
        assert answer.status == 401
        assert answer.error["type"] == "authentication_error"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert wrong not in str(answer.body)


def test_keys_live_and_die(server: ServerProcess) -> None:
    made = server.call("POST", "/v1/keys", {"name": "reader", "scopes": ["read"]})
    assert made.status == 201
    key = made["key"]
    assert server.call("GET", "/v1/endpoints", key=key).status == 200
    refused = server.call("POST", "/v1/keys", {"name": "more"}, key=key)
    assert (refused.status, refused.error["type"]) == (403, "forbidden")
    listed = server.call("GET", "/v1/keys").body["data"]
    assert key not in str(listed)
    assert next(row for row in listed if row["id"] == made["id"])["last_used_at"] > 0
    assert server.call("DELETE", f"/v1/keys/{made['id']}")["revoked_at"] > 0
    assert server.call("GET", "/v1/endpoints", key=key).status == 401
    assert server.call("DELETE", "/v1/keys/nothing").status == 404


def test_a_key_that_may_call_sees_what_it_may_call(server: ServerProcess) -> None:
    for name in ("open", "closed"):
        server.call("POST", "/v1/endpoints", model(name))
    key = server.call("POST", "/v1/keys", {"name": "caller", "scopes": ["call"], "endpoints": ["open"]})["key"]
    assert server.call("GET", "/v1/endpoints/open", key=key).status == 200
    assert server.call("GET", "/v1/endpoints/closed", key=key).status == 404
    assert server.call("GET", "/v1/endpoints", key=key).status == 403
    assert server.call("DELETE", "/v1/endpoints/open", key=key).status == 403
    delete_all(server)


def test_keys_expire(server: ServerProcess) -> None:
    made = server.call("POST", "/v1/keys", {"name": "brief", "expires_in_s": 0.5})
    assert server.call("GET", "/v1/status", key=made["key"]).status == 200
    time.sleep(0.6)
    assert server.call("GET", "/v1/status", key=made["key"]).status == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [({"name": "-"}, "name"), ({"name": "a", "scopes": ["god"]}, "scopes"), ({"name": "a", "expires_in_s": -1}, "expires_in_s"),
     ({"name": "a", "scope": ["read"]}, "scope")],
)  # fmt: skip
def test_wrong_keys_are_refused(server: ServerProcess, body: Any, field: str) -> None:
    answer = server.call("POST", "/v1/keys", body)
    assert answer.status == 422
    assert answer.error["details"][0]["field"] == field


# --- blobs ---


def test_blobs(server: ServerProcess) -> None:
    data = os.urandom(300_000)
    digest = hashlib.sha256(data).hexdigest()
    assert server.call("HEAD", f"/v1/blobs/{digest}").status == 404
    assert server.call("PUT", f"/v1/blobs/{digest}", raw=data[:-1]).status == 422
    assert server.call("PUT", f"/v1/blobs/{digest}", raw=data).status == 201
    assert server.call("PUT", f"/v1/blobs/{digest}", raw=data).status == 200
    assert server.call("HEAD", f"/v1/blobs/{digest}").status == 204
    assert server.call("HEAD", "/v1/blobs/xyz").status == 422
    assert server.layout.blob(digest).read_bytes() == data


# --- endpoints ---


def test_a_function_endpoint_needs_its_bundle(server: ServerProcess) -> None:
    refused = server.call("POST", "/v1/endpoints", square("needs-bundle"))
    assert refused.status == 409
    assert refused.error["code"] == "blob_missing"
    assert server.call("GET", "/v1/endpoints/needs-bundle").status == 404
    planned = server.call("POST", "/v1/endpoints?dry_run=1", square("needs-bundle"))
    assert (planned.status, planned["action"], planned["tier"]) == (200, "created", 4)
    server.call("PUT", f"/v1/blobs/{DIGEST}", raw=BUNDLE)
    made = server.call("POST", "/v1/endpoints", square("needs-bundle"))
    assert (made.status, made["action"], made["endpoint"]["kind"]) == (201, "created", "function")
    assert made["endpoint"]["functions"][0]["name"] == "square"
    delete_all(server)


def test_tiers_over_the_wire(server: ServerProcess) -> None:
    def put(**more: Any) -> tuple[int, str, int]:
        answer = server.call("POST", "/v1/endpoints", model("tiers", **more))
        return answer.status, answer["action"], answer["tier"]

    assert put() == (201, "created", 4)
    assert put() == (200, "exists", 0)
    assert put(scale={"max_workers": 3}) == (200, "autoscale_update", 1)
    assert put(scale={"max_workers": 3}, model={"slots": 2}) == (200, "soft_update", 2)
    assert put(scale={"max_workers": 3}, model={"slots": 2}, image={"env": {"A": "1"}}) == (200, "hard_update", 3)
    shown = server.call("GET", "/v1/endpoints/tiers:default")
    assert (shown["revision_number"], shown["scale"]["max_workers"], shown["model"]["slots"]) == (3, 3, 2)
    events = server.call("GET", "/v1/endpoints/tiers/events").body["data"]
    assert any("soft_update" in event["message"] for event in events)
    delete_all(server)


def test_a_model_id_is_served_once(server: ServerProcess) -> None:
    server.call("POST", "/v1/endpoints", model("first", model={"model_id": "org/m"}))
    refused = server.call("POST", "/v1/endpoints", model("second", model={"model_id": "org/m"}))
    assert refused.status == 409
    assert "first:default" in refused.error["message"]
    other = server.call("POST", "/v1/endpoints", {**square("first"), "kind": "function"})
    assert (other.status, other.error["details"][0]["field"]) == (409, "kind")
    delete_all(server)
    assert server.call("POST", "/v1/endpoints", model("second", model={"model_id": "org/m"})).status == 201
    delete_all(server)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (model("x", scale={"max_worker": 1}), 422, "max_workers"),
        (model("x", model={"slots": "many"}), 422, "model.slots"),
        ({"name": "x y", "kind": "model", "model": {"model_id": "m", "source": "s"}}, 422, "name"),
        ({"kind": "model"}, 422, "name"),
        ({"name": "x", "kind": "function"}, 422, "functions"),
    ],
)
def test_what_is_wrong_is_named(server: ServerProcess, body: Any, status: int, words: str) -> None:
    answer = server.call("POST", "/v1/endpoints", body)
    assert answer.status == status
    assert words in answer.error["message"]


def test_malformed_requests(server: ServerProcess) -> None:
    assert server.call("POST", "/v1/endpoints", raw=b"{").status == 400
    assert server.call("POST", "/v1/endpoints", raw=b"").status == 400
    assert server.call("POST", "/v1/endpoints", raw=b" " * (5 << 20)).status == 413
    assert server.call("GET", "/v1/nothing").status == 404
    assert server.call("PATCH", "/v1/endpoints").status == 405
    assert server.call("GET", "/v1/endpoints?limit=0").status == 422
    assert server.call("GET", "/v1/usage?start=yesterday").status == 422
    assert server.call("GET", "/v1/usage?group_by=colour").status == 422


def test_lists_are_paged(server: ServerProcess) -> None:
    for number in range(5):
        server.call("POST", "/v1/endpoints", model(f"page-{number}"))
    first = server.call("GET", "/v1/endpoints?limit=2")
    assert [row["name"] for row in first["data"]] == ["page-0", "page-1"]
    assert first["has_more"]
    rest = server.call("GET", f"/v1/endpoints?limit=200&starting_after={first['cursor']}")
    assert [row["name"] for row in rest["data"]] == ["page-2", "page-3", "page-4"]
    assert not rest["has_more"]
    delete_all(server)


def test_every_noun_answers(server: ServerProcess) -> None:
    for path in ("deployments", "instances", "nodes", "capacities", "instance_skus", "workspaces", "keys"):
        answer = server.call("GET", f"/v1/{path}")
        assert (answer.status, answer["object"]) == (200, "list"), path
    assert server.call("GET", "/v1/capacities/default")["kind"] == "market"
    status = server.call("GET", "/v1/status")
    assert status["cluster_id"].startswith("cluster_")
    document = server.call("GET", "/openapi.json", key="none")
    assert "/v1/endpoints" in document["paths"]
    assert "EndpointSpec" in document["components"]["schemas"]


# --- with a gateway and an agent ---


def test_from_a_specification_to_a_ready_worker_and_to_sleep(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway)
        async with gateway.linked(), agent.linked():
            made = await server.acall("POST", "/v1/endpoints", model("life", scale=ASLEEP))
            endpoint_id = made["endpoint"]["id"]
            assert made["endpoint"]["status"] == "waking"
            await until(lambda: agent.wanted, what="the agent is told")
            spec = next(iter(agent.wanted.values()))
            assert (spec.slots, spec.node_id, spec.app.model.model_id) == (4, "node_machine_test", "life")  # type: ignore[union-attr]

            def status() -> dict[str, Any]:
                return dict(server.call("GET", "/v1/endpoints/life").body)

            await until(lambda: status()["status"] == "ready", what="ready")
            await until(lambda: spec.instance_id in gateway.tables.workers, what="the worker is in the tables")  # type: ignore[union-attr]
            row = gateway.tables.workers[spec.instance_id]  # type: ignore[union-attr]
            assert row.token_digest == hashlib.sha256(spec.join_token.encode()).hexdigest()
            assert spec.join_token not in server.log()
            await until(lambda: not agent.wanted, 10, "it sleeps again")
            await until(lambda: status()["status"] == "asleep", what="asleep")
            assert any(reason.startswith("0: ") for reason in status()["reasons"])
            gateway.demand(endpoint_id)
            began = time.monotonic()
            await until(lambda: agent.wanted, what="woken")
            assert time.monotonic() - began < PERIOD_S / 4, "at once, not when the reconciler looks again by itself"
            nodes = server.call("GET", "/v1/nodes")["data"]
            assert (nodes[0]["state"], nodes[0]["slots_used"]) == ("up", 1)
            owned = server.call("GET", "/v1/capacities/default")["allocation_schedule"]["total"]
            assert max(entry["node_count"] for entry in owned) >= 1, "what it needs was bought"
            assert server.call("GET", "/v1/deployments/life")["target_instance_count"] == 1
            assert server.call("GET", f"/v1/instances/{next(iter(agent.wanted))}")["endpoint"] == "life:default"
            await server.acall("DELETE", "/v1/endpoints/life")
            await until(lambda: not agent.wanted, what="stopped")
            assert (await server.acall("GET", "/v1/endpoints/life")).status == 404
            await until(lambda: endpoint_id not in gateway.tables.routes)  # type: ignore[union-attr]

    asyncio.run(test())


def test_waking_takes_milliseconds(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway)
        async with gateway.linked(), agent.linked():
            made = await server.acall("POST", "/v1/endpoints", model("quick", scale=ASLEEP))
            waits = []
            for _ in range(3):
                await until(lambda: agent.wanted)
                await until(lambda: not agent.wanted, 10)
                await asyncio.sleep(0.1)
                began = time.monotonic()
                gateway.demand(made["endpoint"]["id"])
                await until(lambda: agent.wanted)
                waits.append(time.monotonic() - began)
            print("demand to wanted, ms:", [round(wait * 1000, 1) for wait in waits])
            assert min(waits) < 0.05
            await server.acall("DELETE", "/v1/endpoints/quick")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


def test_settings_change_without_touching_workers(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway)
        async with gateway.linked(), agent.linked():
            await server.acall("POST", "/v1/endpoints", model("settings", scale={"max_workers": 2}))
            await until(lambda: agent.wanted)
            first = set(agent.wanted)
            changed = await server.acall("POST", "/v1/endpoints", model("settings", scale={"tuning": {"min_scale": 2}}))
            assert changed["action"] == "autoscale_update"
            await until(lambda: len(agent.wanted) == 2)
            assert first < set(agent.wanted)
            assert [epoch for _, epoch in agent.started] == [1, 1]
            await server.acall("DELETE", "/v1/endpoints/settings")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


def test_a_rolling_update_keeps_a_worker_ready(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway, auto=False)
        async with gateway.linked(), agent.linked():
            await server.acall("POST", "/v1/endpoints", model("rolling"))
            await until(lambda: agent.wanted)
            old = next(iter(agent.wanted))
            gateway.worker(old)
            await until(lambda: server.call("GET", "/v1/endpoints/rolling")["status"] == "ready")
            await server.acall("POST", "/v1/endpoints", model("rolling", model={"slots": 2}))
            await until(lambda: len(agent.wanted) == 2, what="the new one beside the old one")
            shown = server.call("GET", "/v1/endpoints/rolling")
            assert (shown["status"], shown["ready_instance_count"]) == ("updating", 0)
            await asyncio.sleep(0.2)
            assert old in agent.wanted, "the old one serves until the new one is ready"
            new = next(key for key in agent.wanted if key != old)
            gateway.worker(new)
            await until(lambda: set(agent.wanted) == {new}, what="the old one goes")
            await until(lambda: server.call("GET", "/v1/endpoints/rolling")["status"] == "ready")
            await server.acall("DELETE", "/v1/endpoints/rolling")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


BROKEN = Failure("import", "No module named 'nowhere'", "ModuleNotFoundError", log_tail="line 1")


def test_a_broken_deployment_fails_after_two_starts_and_is_tried_again_when_asked(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway, breaks=lambda spec: BROKEN)
        async with gateway.linked(), agent.linked():
            made = await server.acall("POST", "/v1/endpoints", model("broken"))
            endpoint_id = made["endpoint"]["id"]
            await until(lambda: gateway.tables.routes[endpoint_id].failure, what="the route fails")  # type: ignore[union-attr]
            shown = server.call("GET", "/v1/endpoints/broken")
            assert (shown["status"], shown["failure"]["message"]) == ("failed", BROKEN.message)
            assert shown["failure"]["log_tail"] == "line 1"
            assert len(agent.started) == 2
            await asyncio.sleep(0.3)
            assert len(agent.started) == 2, "it is not tried for ever"
            agent.breaks = lambda spec: None
            again = await server.acall("POST", "/v1/endpoints", model("broken"))
            assert (again["action"], again["endpoint"]["failure"]) == ("exists", None)
            await until(lambda: server.call("GET", "/v1/endpoints/broken")["status"] == "ready")
            # An update that breaks leaves the healthy revision in place, and says what is wrong.
            agent.breaks = lambda spec: BROKEN if spec.slots == 1 else None
            await server.acall("POST", "/v1/endpoints", model("broken", model={"slots": 1}))
            await until(lambda: server.call("GET", "/v1/endpoints/broken")["failure"], what="the update fails")
            shown = server.call("GET", "/v1/endpoints/broken")
            assert shown["status"] == "ready"
            assert shown["ready_instance_count"] == 0, "of what was asked for, nothing is ready"
            assert shown["serving_revision_id"] != shown["revision_id"]
            assert gateway.tables.routes[endpoint_id].failure is None  # type: ignore[union-attr]
            await server.acall("DELETE", "/v1/endpoints/broken")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


def test_a_crashed_worker_starts_again_under_the_next_epoch(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway)
        async with gateway.linked(), agent.linked():
            await server.acall("POST", "/v1/endpoints", model("crash"))
            await until(lambda: server.call("GET", "/v1/endpoints/crash")["status"] == "ready")
            instance_id = next(iter(agent.wanted))

            def known_ready() -> bool:
                # A crash counts as one of a worker that had been ready only once that was written down.
                return server.call("GET", f"/v1/instances/{instance_id}")["ready_at"] is not None

            for epoch in (2, 3):
                await until(known_ready)
                agent.crash(instance_id)
                began = time.monotonic()
                await until(lambda epoch=epoch: (instance_id, epoch) in agent.started)  # type: ignore[misc]
                assert time.monotonic() - began < PERIOD_S / 4, "at once, not when the reconciler looks again by itself"
                await until(lambda: server.call("GET", "/v1/endpoints/crash")["status"] == "ready")
            await until(lambda: gateway.tables.workers[instance_id].epoch == 3)  # type: ignore[union-attr]
            await server.acall("DELETE", "/v1/endpoints/crash")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


def test_more_instances_than_slots_wait_and_say_why(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway, slots=2)
        async with gateway.linked(), agent.linked():
            await server.acall("POST", "/v1/endpoints", model("wide", scale={"tuning": {"min_scale": 3}}))
            await until(lambda: len(agent.wanted) == 2)
            await until(lambda: "an instance waits: " in str(server.call("GET", "/v1/endpoints/wide")["reasons"]))
            assert server.call("GET", "/v1/endpoints/wide")["status"] == "scaling"
            await server.acall(
                "POST", "/v1/endpoints", model("wide", scale={"max_workers": 2, "tuning": {"min_scale": 2}})
            )
            await until(lambda: server.call("GET", "/v1/endpoints/wide")["status"] == "ready", 40)
            await server.acall("DELETE", "/v1/endpoints/wide")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


def test_load_scales_out(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway, slots=8)
        async with gateway.linked(), agent.linked():
            made = await server.acall("POST", "/v1/endpoints", model("load", scale={"max_workers": 4}))
            await until(lambda: agent.wanted)
            gateway.sample(made["endpoint"]["id"], 100.0)
            await until(lambda: len(agent.wanted) == 4, what="max_workers")
            reasons = server.call("GET", "/v1/endpoints/load")["reasons"]
            assert any("at most 4: max_workers" in reason for reason in reasons)
            await server.acall("DELETE", "/v1/endpoints/load")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


def test_ttl_takes_an_abandoned_endpoint_down(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        agent = FakeAgent(server.layout, gateway=gateway)
        async with gateway.linked(), agent.linked():
            await server.acall("POST", "/v1/endpoints", model("brief", ttl_s=1.0))
            for _ in range(4):
                await asyncio.sleep(0.4)
                assert (await server.acall("POST", "/v1/endpoints/brief/heartbeat")).status == 200
            await until(lambda: server.call("GET", "/v1/endpoints/brief").status == 404, what="taken down")
            await until(lambda: not agent.wanted)

    asyncio.run(test())


# --- gateways ---


def test_a_revoked_key_leaves_the_tables_at_once(server: ServerProcess) -> None:
    async def test() -> None:
        gateway = FakeGateway(server.layout)
        async with gateway.linked():
            made = await server.acall("POST", "/v1/keys", {"name": "revoked", "endpoints": ["tiny"]})
            digest = digest_of(gateway.tables.pepper, made["key"])  # type: ignore[union-attr]
            await until(lambda: digest in gateway.tables.keys)  # type: ignore[union-attr]
            assert gateway.tables.keys[digest].endpoints == ("tiny",)  # type: ignore[union-attr]
            began = time.monotonic()
            await server.acall("DELETE", f"/v1/keys/{made['id']}")
            await until(lambda: digest not in gateway.tables.keys, 1.0)  # type: ignore[union-attr]
            print(f"revoked after {(time.monotonic() - began) * 1000:.1f} ms")
            assert gateway.versions == sorted(set(gateway.versions))

    asyncio.run(test())


def test_usage_counts_exactly_once_however_often_it_is_sent(server: ServerProcess) -> None:
    workspace = server.call("GET", "/v1/workspaces")["data"][0]["id"]

    def mine(record_id: str, **more: Any) -> Any:
        return record(record_id, workspace_id=workspace, **more)

    async def test() -> None:
        gateway = FakeGateway(server.layout)
        async with gateway.linked():
            gateway.meter("s1", mine("a"), mine("b", status=0, completion_tokens=2, t_end=1000.9))
            gateway.meter("s2", mine("b", completion_tokens=6), mine("c", kind="call", key_id="other"))
            await until(lambda: {"s1", "s2"} <= set(gateway.acks))
            gateway.meter("s1", mine("a"), mine("b", status=0, completion_tokens=2, t_end=1000.9))
            gateway.meter("s2", mine("b", completion_tokens=6), mine("c", kind="call", key_id="other"))
            await until(lambda: len(gateway.acks) == 4)
        usage = server.call("GET", "/v1/usage?group_by=kind")
        assert usage["total"] == {
            "requests": 3, "prompt_tokens": 9, "completion_tokens": 16, "compute_us": 3000
        }  # fmt: skip
        assert [(row["kind"], row["requests"]) for row in usage["data"]] == [("call", 1), ("chat", 2)]
        first = server.call("GET", "/v1/usage/records?limit=2")
        assert first["has_more"]
        rest = server.call("GET", f"/v1/usage/records?limit=2&starting_after={first['cursor']}")
        assert {row["record_id"] for row in [*first["data"], *rest["data"]]} == {"a", "b", "c"}
        assert server.call("GET", "/v1/usage?start=1002")["total"]["requests"] == 0

    asyncio.run(test())


def test_strangers_on_the_sockets_do_no_harm(server: ServerProcess) -> None:
    async def test() -> None:
        for path in (server.layout.control_socket, server.layout.agent_socket):
            assert path.stat().st_mode & 0o777 == 0o600
            _, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"\x00\x00\x00\x03abc")
            await writer.drain()
            writer.close()
        assert (await server.acall("GET", "/v1/status")).status == 200

    asyncio.run(test())


def test_wall_time_cannot_be_moved(server: ServerProcess) -> None:
    shown = server.call("GET", "/v1/test_clock")
    assert (shown["frozen"], shown["block_s"]) == (False, 60)
    assert abs(shown["now_at"] - time.time()) < 5
    refused = server.call("POST", "/v1/test_clock", {"blocks": 1})
    assert (refused.status, refused.error["type"]) == (403, "forbidden")
    assert "--test-clock" in refused.error["message"]
