"""Deployments over the API: generic and spot ones, and those that endpoints keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from peers import model
from things_stage import SCRIPT, Cloud, eventually

pytestmark = pytest.mark.integration
MAX_BUY = "max_buy_price_dollars_per_node_hour"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("deployments") / "data", slots=16).running() as running:
        yield running


def place(cloud: Cloud) -> str:
    """A capacity and a template of one new name."""
    name = cloud.name("place")
    cloud.make("/v1/capacities", {"name": name})
    cloud.make("/v1/instance_templates", {"name": name, "cloud_init_user_data": SCRIPT})
    return name


def body(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "capacity": name, "instance_template": name, "target_instance_count": 2, **more}


def spot(name: str, **more: Any) -> dict[str, Any]:
    return body(name, kind="spot", instance_sku="isku_cpu", **{MAX_BUY: "1.00", **more})


def instances(cloud: Cloud, name: str, live: bool = True) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = cloud.call("GET", f"/v1/instances?deployment={name}&live={str(live).lower()}")["data"]
    return rows


def test_instances_exist_when_it_is_answered(cloud: Cloud) -> None:
    name = place(cloud)
    made = cloud.make("/v1/deployments", body(name, instance_name_template="web-{{nanoid(10)}}", tags={"a": "b"}))
    assert made.status == 201
    assert made["id"].startswith("depl_")
    assert (made["kind"], made["object"], made["target_instance_count"]) == ("generic", "deployment", 2)
    assert made["capacity"] == made["pool"]
    assert made["capacity"]["name"] == name
    assert made["instance_template"]["name"] == name
    assert made["resource_path"] == f"np:deployment:local:default:{name}"
    assert made["enabled"] is True
    rows = instances(cloud, name)
    assert len(rows) == 2
    for row in rows:
        assert row["name"].startswith("web-")
        assert row["status"] == "awaiting_allocation", "the capacity owns no time"
        assert row["managed_by"] == {"object": "deployment", "id": made["id"], "name": name}


def test_the_target_is_followed_at_once(cloud: Cloud) -> None:
    name = place(cloud)
    cloud.make("/v1/deployments", body(name))
    for target in (5, 1, 0, 3):
        changed = cloud.call("PATCH", f"/v1/deployments/{name}", {"target_instance_count": target})
        assert (changed.status, changed["target_instance_count"], changed["tags"]) == (200, target, {})
        assert len([row for row in instances(cloud, name) if row["intent"] == "run"]) == target
    frozen = cloud.call("PATCH", f"/v1/deployments/{name}", {"enabled": False, "target_instance_count": 9})
    assert frozen["enabled"] is False
    assert len(instances(cloud, name)) == 3


def test_a_spot_deployment_buys_what_it_runs(cloud: Cloud) -> None:
    name = place(cloud)
    made = cloud.make("/v1/deployments", spot(name))
    assert made["id"].startswith("spot_")
    assert (made["kind"], made["object"]) == ("spot", "spot_deployment")
    assert (made[MAX_BUY], made["managed_window_minutes"], made["protect_manual"]) == ("1.000020", 60, True)
    bought = cloud.call("GET", f"/v1/procurements/{made['procurement']['id']}")
    assert (bought["target"], bought["min_sell_price_dollars_per_node_hour"]) == ("node_count", "0.000060")
    assert bought["deployment"] == made["id"]
    eventually(lambda: all(row["status"] == "running" for row in instances(cloud, name)), "both run")
    eventually(lambda: {row["id"] for row in instances(cloud, name)} <= set(cloud.agent.running), "on the machine")
    changed = cloud.call("PATCH", f"/v1/deployments/{name}", {MAX_BUY: "2.50", "managed_window_minutes": 30})
    assert (changed[MAX_BUY], changed["managed_window_minutes"]) == ("2.500020", 30)
    assert cloud.call("PATCH", f"/v1/procurements/{bought['id']}", {"target": 1}).status == 409
    assert cloud.call("DELETE", f"/v1/deployments/{name}?cascade=true").status == 200
    assert cloud.call("GET", f"/v1/procurements/{bought['id']}").status == 404
    eventually(lambda: not cloud.call(
        "GET", f"/v1/instances?capacity={name}&live=true")["data"], "its instances ended")  # fmt: skip
    open_orders = cloud.call("GET", f"/v1/orders?capacity={name}&status=standing")["data"]
    assert open_orders == []


def test_deleting_leaves_instances_unless_told(cloud: Cloud) -> None:
    name = place(cloud)
    cloud.make("/v1/deployments", body(name))
    assert cloud.call("DELETE", f"/v1/deployments/{name}")["deleted"] is True
    rows = cloud.call("GET", f"/v1/instances?capacity={name}&live=true")["data"]
    assert [row["managed_by"] for row in rows] == [None, None]
    cloud.make("/v1/deployments", body(name))
    assert len(cloud.call("GET", f"/v1/instances?capacity={name}&live=true")["data"]) == 4
    assert cloud.call("DELETE", f"/v1/deployments/{name}?cascade=true").status == 200
    eventually(
        lambda: len(cloud.call("GET", f"/v1/instances?capacity={name}&live=true")["data"]) == 2, "its own two are gone"
    )


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"target_instance_count": -1}, 422, "target_instance_count"),
        ({"instance_template": "nothing"}, 404, "instance_template"),
        ({"capacity": "nothing"}, 404, "capacity"),
        ({"pool": "other"}, 422, "capacity"),
        ({"instance_sku": "isku_nothing"}, 404, "instance_sku"),
        ({"instance_name_template": "worker"}, 422, "instance_name_template"),
        ({"instance_name_template": "w-{{colour}}"}, 422, "instance_name_template"),
        ({MAX_BUY: "1.00"}, 422, MAX_BUY),
        ({"kind": "spot"}, 422, MAX_BUY),
        ({"kind": "spot", MAX_BUY: "1"}, 422, MAX_BUY),
        ({"kind": "spot", MAX_BUY: "0.000001"}, 422, MAX_BUY),
        ({"kind": "spot", MAX_BUY: "1.00", "managed_window_minutes": 0}, 422, "managed_window_minutes"),
        ({"kind": "other"}, 422, "kind"),
        ({"tags": {"": "x"}}, 422, "tags"),
        ({"replicas": 2}, 422, "replicas"),
    ],
)
def test_wrong_deployments_are_refused(cloud: Cloud, change: dict[str, Any], status: int, field: str) -> None:
    name = place(cloud)
    refused = cloud.call("POST", "/v1/deployments", body(name, **change))
    assert refused.status == status, refused.body
    assert refused.error["details"][0]["field"] == field
    assert cloud.call("GET", f"/v1/deployments/{name}").status == 404


def test_names_and_second_automations(cloud: Cloud) -> None:
    name = place(cloud)
    cloud.make("/v1/deployments", spot(name))
    assert cloud.call("POST", "/v1/deployments", spot(name)).status == 400
    second = cloud.call("POST", "/v1/deployments", spot(name) | {"name": cloud.name("second")})
    assert (second.status, second.error["type"]) == (409, "conflict")
    other = cloud.make("/v1/deployments", body(name) | {"name": cloud.name("second")})
    assert cloud.call("PATCH", f"/v1/deployments/{other['id']}", {"name": name}).status == 400
    renamed = cloud.call("PATCH", f"/v1/deployments/{other['id']}", {"name": cloud.name("third")})
    assert renamed["id"] == other["id"]
    assert cloud.call("GET", f"/v1/deployments/{renamed['name']}")["id"] == other["id"]
    assert cloud.call("PATCH", f"/v1/deployments/{other['id']}", {MAX_BUY: "1.00"}).status == 422


def test_endpoints_decide_about_their_deployments(cloud: Cloud) -> None:
    name = cloud.name("model")
    endpoint = cloud.server.call("POST", "/v1/endpoints", model(name))["endpoint"]
    shown = cloud.call("GET", f"/v1/deployments/{name}")
    assert shown["endpoint_id"] == endpoint["id"]
    assert shown["id"] in [row["id"] for row in cloud.call("GET", "/v1/deployments")["data"]]
    for method, path, change in (
        ("PATCH", f"/v1/deployments/{shown['id']}", {"target_instance_count": 3}),
        ("DELETE", f"/v1/deployments/{shown['id']}", None),
    ):
        refused = cloud.call(method, path, change)
        assert (refused.status, refused.error["type"]) == (409, "conflict")
        assert "endpoint" in refused.error["message"]
    assert cloud.server.call("DELETE", f"/v1/endpoints/{name}").status == 200


def test_lists(cloud: Cloud) -> None:
    name, tag = place(cloud), cloud.name("tag")
    generic = cloud.make("/v1/deployments", body(name, target_instance_count=0, tags={tag: "1"}))
    bought = cloud.make("/v1/deployments", spot(place(cloud), target_instance_count=0, tags={tag: "2"}))
    newest_first = [bought["id"], generic["id"]]
    assert [row["id"] for row in cloud.call("GET", f"/v1/deployments?tag_key={tag}")["data"]] == newest_first
    assert [row["id"] for row in cloud.call("GET", f"/v1/deployments?capacity={name}")["data"]] == [generic["id"]]
    assert [row["id"] for row in cloud.call("GET", f"/v1/deployments?tag_key={tag}&kind=spot")["data"]] == [
        bought["id"]
    ]
    page = cloud.call("GET", f"/v1/deployments?tag_key={tag}&limit=1")
    assert (page["has_more"], page["cursor"]) == (True, bought["id"])
    rest = cloud.call("GET", f"/v1/deployments?tag_key={tag}&limit=1&starting_after={page['cursor']}")
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == ([generic["id"]], False)
    _, key = cloud.workspace()
    assert cloud.call("GET", "/v1/deployments", key=key)["data"] == []
    assert cloud.call("GET", f"/v1/deployments/{generic['id']}", key=key).status == 404


def test_a_revoked_image_makes_no_instances(cloud: Cloud) -> None:
    name = place(cloud)
    cloud.make("/v1/images", {"name": name})
    assert cloud.call("PUT", f"/v1/images/{name}/parts/1", raw=name.encode()).status == 201
    assert cloud.call("POST", f"/v1/images/{name}/complete").status == 200
    assert cloud.call("PATCH", f"/v1/instance_templates/{name}", {"image": name}).status == 200
    cloud.make("/v1/deployments", body(name, target_instance_count=1))
    assert cloud.call("POST", f"/v1/images/{name}/revoke").status == 200
    scaled = cloud.call("PATCH", f"/v1/deployments/{name}", {"target_instance_count": 3})
    assert (scaled["instance_count"], scaled["status"]["code"]) == (1, "image_revoked")
    assert cloud.call("POST", f"/v1/images/{name}/reinstate").status == 200
    again = cloud.call("GET", f"/v1/deployments/{name}")
    assert (again["instance_count"], again["status"]["state"]) == (3, "info")
