"""Instances over the API: made, listed, prioritised, ended, replaced, and what they printed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from things_stage import SCRIPT, Cloud, eventually

from nanopod.model.wire import LogLine

pytestmark = pytest.mark.integration
SSH = {"hostname": "10.0.0.7", "port": 2222, "host_keys": [{"key_type": "ssh-ed25519", "key": "AAAA"}]}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("instances") / "data", ssh=SSH).running() as running:
        yield running


def place(cloud: Cloud) -> str:
    name = cloud.name("place")
    cloud.make("/v1/capacities", {"name": name})
    return name


def test_made_and_waiting_for_time(cloud: Cloud) -> None:
    name = place(cloud)
    made = cloud.make(
        "/v1/instances", {"name": name, "capacity": name, "cloud_init_user_data": SCRIPT, "tags": {"a": "b"}}
    )
    assert (made.status, made["status"], made["name"]) == (201, "awaiting_allocation", name)
    assert made["instance_sku"] == {"id": "isku_cpu", "name": "cpu"}, "the only kind of node there is"
    assert (made["priority_level"], made["managed_by"], made["public_ip"]) == ("normal", None, None)
    assert made["image"]["name"] == "host"
    assert made["capacity"]["name"] == made["pool"]["name"] == name
    assert "cloud_init_user_data" not in made.body
    shown = cloud.call("GET", f"/v1/instances/{name}?include=cloud_init_user_data")
    assert shown["cloud_init_user_data"] == SCRIPT
    assert cloud.call("GET", f"/v1/instances/{made['id'].replace('inst_', 'vm_')}")["id"] == made["id"]
    unnamed = cloud.make("/v1/instances", {"pool": name})
    assert unnamed["name"].count("-") == 2
    assert cloud.call("GET", f"/v1/instances/{made['id']}/ssh").status == 409
    assert cloud.call("GET", f"/v1/instances/{made['id']}/logs").status == 409


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"capacity": None}, 422, "capacity"),
        ({"capacity": "nothing"}, 404, "capacity"),
        ({"image": "nothing"}, 404, "image"),
        ({"instance_sku": "isku_none"}, 404, "instance_sku"),
        ({"priority_level": "high"}, 422, "priority_level"),
        ({"enable_public_ipv4": True}, 422, "enable_public_ipv4"),
        ({"cloud_init_user_data": "!"}, 422, "cloud_init_user_data"),
        ({"name": "a b"}, 422, "name"),
    ],
)
def test_wrong_instances_are_refused(cloud: Cloud, change: dict[str, Any], status: int, field: str) -> None:
    body = {"name": cloud.name("wrong"), "capacity": "default", **change}
    refused = cloud.call("POST", "/v1/instances", body)
    assert refused.status == status, refused.body
    assert refused.error["details"][0]["field"] == field


def test_providers_capacities_run_nothing(cloud: Cloud) -> None:
    body = {"name": cloud.name("wrong"), "capacity": "local-node"}
    refused = cloud.call("POST", "/v1/instances?workspace=local-node", body)
    assert refused.status == 422
    assert "originating" in refused.error["message"]


def test_names_are_unique_among_the_living(cloud: Cloud) -> None:
    name = place(cloud)
    cloud.make("/v1/instances", {"name": name, "capacity": name})
    assert cloud.call("POST", "/v1/instances", {"name": name, "capacity": name}).status == 400
    ended = cloud.call("POST", f"/v1/instances/{name}/terminate")
    assert ended["status"] == "terminated"
    assert cloud.call("POST", "/v1/instances", {"name": name, "capacity": name}).status == 201


def test_terminated_is_for_good(cloud: Cloud) -> None:
    name = place(cloud)
    made = cloud.make("/v1/instances", {"name": name, "capacity": name})
    live = cloud.call("DELETE", f"/v1/instances/{made['id']}")
    assert (live.status, live.error["type"]) == (409, "conflict")
    assert "terminate" in live.error["message"]
    for _ in range(2):
        ended = cloud.call("POST", f"/v1/instances/{made['id']}/terminate")
        assert (ended.status, ended["status"]) == (200, "terminated")
    assert ended["status_reason"] == "terminated by request"
    assert cloud.call("DELETE", f"/v1/instances/{made['id']}")["deleted"] is True
    assert cloud.call("GET", f"/v1/instances/{made['id']}").status == 404


def test_running_and_terminated(cloud: Cloud) -> None:
    up = cloud.runs()
    assert up["status"] == "running"
    spec = cloud.agent.wanted[up["id"]]
    assert (spec.app.kind, spec.cloud_init) == ("machine", SCRIPT)
    cloud.call("POST", f"/v1/instances/{up['id']}/terminate")
    eventually(lambda: cloud.call("GET", f"/v1/instances/{up['id']}")["status"] == "terminated", "it ends")
    assert up["id"] not in cloud.agent.running

    def replaced() -> bool:
        rows = cloud.call("GET", f"/v1/instances?deployment={up['managed_by']['id']}&live=true")["data"]
        return [row["status"] for row in rows] == ["running"]

    eventually(replaced, "its deployment runs another")


def test_priorities_all_or_none(cloud: Cloud) -> None:
    name = place(cloud)
    ids = [cloud.make("/v1/instances", {"capacity": name})["id"] for _ in range(3)]

    def levels() -> list[str]:
        return [cloud.call("GET", f"/v1/instances/{id}")["priority_level"] for id in ids]

    body = {"data": [{"id": ids[0], "priority_level": "critical"}, {"id": ids[1], "priority_level": "yield"},
                     {"id": ids[0], "priority_level": "preferred"}]}  # fmt: skip
    changed = cloud.call("PATCH", "/v1/instances", body)
    assert (changed.status, len(changed["data"])) == (200, 2)
    assert levels() == ["preferred", "yield", "normal"], "the last of two counts"
    wrong = {"data": [{"id": ids[2], "priority_level": "critical"}, {"id": "inst_none", "priority_level": "yield"}]}
    refused = cloud.call("PATCH", "/v1/instances", wrong)
    assert (refused.status, refused.error["details"][0]["field"]) == (404, "data[1].id")
    assert levels() == ["preferred", "yield", "normal"]
    assert cloud.call("PATCH", "/v1/instances", {"data": []}).status == 422
    _, key = cloud.workspace()
    cloud.make("/v1/instances", {"name": "theirs", "capacity": "default"}, key=key)
    theirs = cloud.call("GET", "/v1/instances/theirs", key=key)["id"]
    mixed = {"data": [{"id": ids[2], "priority_level": "critical"}, {"id": theirs, "priority_level": "critical"}]}
    assert cloud.call("PATCH", "/v1/instances", mixed).status == 422
    assert cloud.call("PATCH", "/v1/instances", mixed, key=key).status == 404
    one = cloud.call("PATCH", f"/v1/instances/{ids[2]}", {"priority_level": "critical", "tags": {"x": "y"}})
    assert (one["priority_level"], one["tags"]) == ("critical", {"x": "y"})


def test_replace(cloud: Cloud) -> None:
    name = place(cloud)
    body = {
        "name": name,
        "capacity": name,
        "cloud_init_user_data": SCRIPT,
        "tags": {"a": "b"},
        "priority_level": "yield",
    }
    old = cloud.make("/v1/instances", body)
    once = {"Idempotency-Key": cloud.name("key"), "Content-Type": "application/json"}
    new = cloud.call("POST", f"/v1/instances/{name}/replace", headers=once)
    assert new.status == 201
    assert new["id"] != old["id"]
    for field in ("name", "capacity", "instance_sku", "tags", "priority_level", "image"):
        assert new[field] == old[field], field
    assert cloud.call("GET", f"/v1/instances/{old['id']}")["status"] == "terminated"
    whole = cloud.call("GET", f"/v1/instances/{new['id']}?include=cloud_init_user_data")
    assert whole["cloud_init_user_data"] is None, "the script is not inherited"
    again = cloud.call("POST", f"/v1/instances/{name}/replace", headers=once)
    assert (again.status, again["id"], again.headers["idempotency-replayed"]) == (200, new["id"], "true")
    third = cloud.call("POST", f"/v1/instances/{name}/replace", {"cloud_init_user_data": SCRIPT})
    assert third["id"] not in (old["id"], new["id"])
    live = cloud.call("GET", f"/v1/instances?capacity={name}&live=true")["data"]
    assert [row["id"] for row in live] == [third["id"]]


def test_a_revoked_image_replaces_nothing(cloud: Cloud) -> None:
    name = place(cloud)
    cloud.make("/v1/images", {"name": name})
    assert cloud.call("PUT", f"/v1/images/{name}/parts/1", raw=name.encode()).status == 201
    assert cloud.call("POST", f"/v1/images/{name}/complete").status == 200
    cloud.make("/v1/instances", {"name": name, "capacity": name, "image": name})
    assert cloud.call("DELETE", f"/v1/images/{name}").status == 409, "a live instance is made from it"
    cloud.call("POST", f"/v1/images/{name}/revoke")
    assert cloud.call("POST", f"/v1/instances/{name}/replace").status == 409
    assert cloud.call("POST", f"/v1/instances/{name}/replace", {"image": "host"})["image"]["name"] == "host"


def test_lists(cloud: Cloud) -> None:
    name = place(cloud)
    ids = [cloud.make("/v1/instances", {"capacity": name, "tags": {"n": str(n)}})["id"] for n in range(3)]
    cloud.call("POST", f"/v1/instances/{ids[0]}/terminate")

    def listed(query: str) -> list[str]:
        return [row["id"] for row in cloud.call("GET", f"/v1/instances?capacity={name}&{query}")["data"]]

    assert listed("") == ids[::-1]
    assert listed("status=terminated") == ids[:1]
    assert listed("status=awaiting_allocation") == ids[:0:-1]
    assert listed("status=awaiting_allocation&status=terminated") == ids[::-1]
    assert listed("live=false") == ids[:1]
    assert listed("tag=n=1") == [ids[1]]
    assert listed(f"id={ids[2]}&id={ids[0]}") == [ids[2], ids[0]]
    assert listed("instance_sku=cpu") == ids[::-1]
    assert listed("created_after=4000000000") == []
    assert listed("created_before=4000000000") == ids[::-1]
    page = cloud.call("GET", f"/v1/instances?capacity={name}&limit=2")
    assert (page["has_more"], page["cursor"]) == (True, ids[1])
    assert listed(f"limit=2&starting_after={page['cursor']}") == ids[:1]
    assert listed(f"limit=1&ending_before={ids[0]}") == [ids[1]]
    assert listed("limit=1&tag_key=n&live=true&starting_after=" + ids[2]) == [ids[1]]
    for wrong in ("status=up", "limit=0", "created_after=now", "id=inst_none", "tag=x"):
        assert cloud.call("GET", f"/v1/instances?capacity={name}&{wrong}").status in (404, 422)
    _, key = cloud.workspace()
    assert cloud.call("GET", "/v1/instances", key=key)["data"] == []
    assert cloud.call("GET", f"/v1/instances/{ids[1]}", key=key).status == 404


def test_logs(cloud: Cloud) -> None:
    up = cloud.runs()
    path = f"/v1/instances/{up['id']}/logs"
    assert cloud.call("GET", path).status == 409, "the agent has no log of it"
    cloud.agent.lines[up["id"]] = [
        LogLine(n, 1000.0 + n, n * 1_500_000_000, 1 + n % 2, f"line {n}\n".encode()) for n in range(1, 301)
    ]

    def seen(query: str = "") -> list[int]:
        return [row["seqnum"] for row in cloud.call("GET", f"{path}?{query}")["data"]]

    first = cloud.call("GET", path)
    assert (len(first["data"]), first["has_more"]) == (100, True)
    assert first["data"][1] == {
        "object": "instance_log", "seqnum": 2, "timestamp_realtime": 1002.0, "timestamp_monotonic_secs": 3,
        "timestamp_monotonic_nanos": 0, "stream": 1, "data": base64.b64encode(b"line 2\n").decode(),
    }  # fmt: skip
    assert first["data"][0]["timestamp_monotonic_nanos"] == 500_000_000
    assert seen("seqnum_after=299") == [299, 300]
    assert seen("seqnum_before=2") == [1, 2]
    assert seen("seqnum_after=5&seqnum_before=7&sort_by=-seqnum") == [7, 6, 5]
    assert seen("realtime_after=1299&realtime_before=1300") == [299, 300]
    assert len(seen("limit=2500")) == 300
    for wrong in ("limit=0", "limit=2501", "sort_by=time", "seqnum_after=x", "seqnum_after=1&realtime_after=2"):
        assert cloud.call("GET", f"{path}?{wrong}").status == 422
    _, key = cloud.workspace()
    assert cloud.call("GET", path, key=key).status == 404


def test_ssh(cloud: Cloud) -> None:
    up = cloud.runs()
    shown = cloud.call("GET", f"/v1/instances/{up['id']}/ssh")
    assert (shown.status, shown["hostname"], shown["port"]) == (200, "10.0.0.7", 2222)
    assert shown["host_keys"] == SSH["host_keys"]
    assert shown["username"] == up["name"]
