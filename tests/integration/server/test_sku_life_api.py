"""The life of a kind of node over the API: named, deprecated, deleted. The cluster's feature flags."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers import Answer, connect
from things_stage import Cloud

from nanopod.model.capacity import Sku
from nanopod.model.wire import AgentHello, AgentWelcome

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("life") / "data").running() as running:
        yield running


def joined(cloud: Cloud, alias: str) -> str:
    """A machine says that it knows a kind of node, of which it has none."""

    async def tell() -> None:
        link = await connect(cloud.server.layout.agent_socket, 30)
        link.send(AgentHello(f"machine_{alias}", "boot-1", "0", [], [Sku(f"isku_{alias}", alias, num_vcpus=9)], []))
        async for message in link:
            if isinstance(message, AgentWelcome):
                break
        link.close()

    cloud.on_loop(tell())
    return f"isku_{alias}"


def change(cloud: Cloud, sku: str, **body: Any) -> Answer:
    return cloud.call("PATCH", f"/v1/instance_skus/{sku}", body)


def names(cloud: Cloud, query: str = "") -> list[str]:
    return [row["name"] for row in cloud.call("GET", f"/v1/instance_skus{query}")["data"]]


def order(sku: str) -> dict[str, Any]:
    start = (int(time.time()) // 60 + 60) * 60
    return {
        "capacity": "default", "side": "buy", "instance_sku": sku, "limit_price_dollars_per_node_hour": "2.40",
        "allocation_schedule_delta": [{"start_at": start, "end_at": start + 3600, "node_count": 1}],
        "allow_standing": True,
    }  # fmt: skip


def test_from_stable_to_deleted(cloud: Cloud) -> None:
    sku = joined(cloud, "old")
    shown = cloud.call("GET", f"/v1/instance_skus/{sku}")
    assert (shown["lifecycle"], shown["deprecated_at"], shown["deleted_at"]) == ("stable", None, None)
    assert change(cloud, sku, lifecycle="deleted").error["details"][0]["field"] == "lifecycle", "no step is left out"
    over = change(cloud, "old", lifecycle="deprecated", audience_hint="batch")
    assert (over.status, over["lifecycle"], over["audience_hint"]) == (200, "deprecated", "batch")
    assert over["deprecated_at"] <= time.time() and over["deleted_at"] is None
    assert change(cloud, sku, lifecycle="stable").status == 422
    assert "old" in names(cloud) and names(cloud, "?lifecycle=deprecated") == ["old"]

    waiting = cloud.make("/v1/orders", order(sku))
    refused = change(cloud, sku, lifecycle="deleted")
    assert (refused.status, "1 open order" in refused.error["message"]) == (422, True)
    assert cloud.call("DELETE", f"/v1/orders/{waiting['id']}").status == 200
    gone = change(cloud, sku, lifecycle="deleted")
    assert (gone.status, gone["lifecycle"]) == (200, "deleted")
    assert gone["deleted_at"] >= over["deprecated_at"]
    assert "old" not in names(cloud) and names(cloud, "?lifecycle=deleted") == ["old"]
    assert "old" not in [
        row["instance_sku"]["name"] for row in cloud.call("GET", "/v1/instance_skus/availability")["data"]
    ]
    for path, body in (
        ("/v1/orders", order(sku)),
        ("/v1/procurements", {
            "capacity": "default", "instance_sku": sku, "target": 1, "max_buy_price_dollars_per_node_hour": "1.00",
            "min_sell_price_dollars_per_node_hour": "1.00", "managed_window_minutes": 60,
        }),
    ):  # fmt: skip
        no = cloud.call("POST", path, body)
        assert (no.status, no.error["details"][0]["field"]) == (422, "instance_sku"), no.body
    assert change(cloud, sku, alias="new").status == 422


def test_a_deprecated_one_is_used_by_those_who_name_it(cloud: Cloud) -> None:
    sku = joined(cloud, "faded")
    change(cloud, sku, lifecycle="deprecated")
    body = {"capacity": "default"}
    named = cloud.make("/v1/instances", {**body, "instance_sku": sku})
    other = cloud.make("/v1/instances", body)
    assert (named["instance_sku"]["name"], other["instance_sku"]["name"]) == ("faded", "cpu")
    told = cloud.call("GET", "/v1/events?type=instance_sku.deprecated")["data"]
    assert [(row["object_id"], row["data"]["alias"]) for row in told] == [(named["id"], "faded")]


def test_a_name_stays_when_nodes_join_again(cloud: Cloud) -> None:
    sku = joined(cloud, "plain")
    assert change(cloud, sku, alias="big-box")["alias"] == "big-box"
    joined(cloud, "plain")
    assert cloud.call("GET", "/v1/instance_skus/big-box")["id"] == sku
    assert change(cloud, sku, alias="cpu").status == 409
    assert change(cloud, sku, alias="no good").status == 422


def test_kinds_of_nodes_are_the_operators(cloud: Cloud) -> None:
    _, key = cloud.workspace()
    assert cloud.call("PATCH", "/v1/instance_skus/cpu", {"alias": "mine"}, key=key).status == 403
    busy = change(cloud, "cpu", lifecycle="deprecated")
    assert busy.status == 200
    refused = change(cloud, "cpu", lifecycle="deleted")
    assert (refused.status, "8 nodes up" in refused.error["message"]) == (422, True)


def test_feature_flags(cloud: Cloud) -> None:
    flags = cloud.call("GET", "/v1/feature_flags")
    assert {row["name"]: row["enabled"] for row in flags["data"]} == {
        "early_start": True, "group_purchase": False, "test_clock": False,
    }  # fmt: skip
    assert all(row["description"] for row in flags["data"])
