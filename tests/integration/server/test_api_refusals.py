"""Every kind of refusal of the market's API, provoked: the status, the type, and the field that is to blame."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from marketplace import DELTA, LIMIT, MAX_BUY, Marketplace, Trader, details, opened

pytestmark = pytest.mark.integration
_numbers = itertools.count()


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marketplace]:
    with opened(tmp_path_factory.mktemp("refusals") / "data") as market:
        market.sku = "isku_r"
        market.machine("machine_r", 4, market.sku)
        market.rebase()
        yield market


@pytest.fixture
def trader(market: Marketplace) -> Trader:
    return market.trader(f"trader-{next(_numbers)}", "10.00")


def order(market: Marketplace, **more: Any) -> dict[str, Any]:
    body = {
        "capacity": "main", "side": "buy", "instance_sku": market.sku, LIMIT: "1.20", DELTA: [market.entry(1, 0, 60)],
        **more,
    }  # fmt: skip
    return {name: value for name, value in body.items() if value is not None}


# --- 400 ---


@pytest.mark.parametrize("raw", [b"", b"{", b"side=buy", b"\xff"])
def test_400_what_is_not_json(market: Marketplace, raw: bytes) -> None:
    answer = market.call("POST", "/v1/orders", raw=raw)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


def test_400_a_name_that_is_taken(market: Marketplace, trader: Trader) -> None:
    again = trader.call("POST", "/v1/capacities", {"name": "main"})
    assert details(again) == (400, "invalid_request_error", "name")
    other = trader.call("POST", "/v1/pools", {"name": "other"})
    assert (other.status, other["object"]) == (201, "pool")
    renamed = trader.call("PATCH", f"/v1/capacities/{other['id']}", {"name": "main"})
    assert details(renamed) == (400, "invalid_request_error", "name")
    body = {"capacity": "main", "instance_sku": market.sku, MAX_BUY: "1.20", "enabled": False, "name": "keeper"}
    assert trader.call("POST", "/v1/procurements", body).status == 201
    assert details(trader.call("POST", "/v1/procurements", {**body, "capacity": "other"}))[::2] == (400, "name")
    assert details(market.call("POST", "/v1/providers", {"name": "local-node"})) == (
        400,
        "invalid_request_error",
        "name",
    )


# --- 401, 402, 403 ---


def test_401_without_a_key(market: Marketplace) -> None:
    for path in ("/v1/orders", "/v1/capacities", "/v1/events", "/v1/orderbook/quote", "/v1/test_clock"):
        answer = market.call("GET", path, key="none")
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")


def test_402_a_hold_beyond_the_balance(market: Marketplace, trader: Trader) -> None:
    refused = trader.order("buy", 4, 0, 180, "1.20")
    assert (refused.status, refused.error["type"]) == (402, "payment_required")
    assert trader.balance() == {"current": 10_000_000, "available": 10_000_000, "holds": 0}
    assert trader.call("GET", "/v1/orders").body["data"] == []


def test_403_what_a_key_may_not_do(market: Marketplace, trader: Trader) -> None:
    reader = trader.call("POST", "/v1/keys", {"name": "reader", "scopes": ["read"]})["key"]
    assert market.call("GET", "/v1/orders", key=reader).status == 200
    assert market.call("POST", "/v1/order_preview", {}, key=reader).status == 422, "a preview only reads"
    denied = market.call("POST", "/v1/orders", order(market), key=reader)
    assert (denied.status, denied.error["type"]) == (403, "forbidden")
    for method, path, body in (
        ("POST", "/v1/test_clock", {"blocks": 1}), ("POST", "/v1/providers", {"name": "mine"}),
        ("PATCH", "/v1/market_settings", {"notices": []}),
    ):  # fmt: skip
        answer = trader.call(method, path, body)
        assert (answer.status, answer.error["type"]) == (403, "forbidden"), path


# --- 404 ---


def test_404_unknown_and_invisible_objects(market: Marketplace, trader: Trader) -> None:
    stranger = market.trader(f"stranger-{next(_numbers)}", "10.00")
    placed = stranger.bid(1, 0, 60, "0.06")
    paths = [
        f"/v1/orders/{placed['id']}", f"/v1/capacities/{stranger.capacity}", "/v1/capacities/nothing", "/v1/orders/x",
        "/v1/contracts/cont_x", "/v1/capacity_transfers/cxfr_x", "/v1/procurements/proc_x", "/v1/offers/offr_x",
        "/v1/providers/local-node", "/v1/instance_skus/isku_x",
    ]  # fmt: skip
    for path in paths:
        answer = trader.call("GET", path)
        assert (answer.status, answer.error["type"]) == (404, "not_found"), path
        assert path.rpartition("/")[2] in answer.error["message"]
    assert trader.call("DELETE", f"/v1/orders/{placed['id']}").status == 404
    assert market.call("GET", f"/v1/orders/{placed['id']}").status == 200, "the operator sees everything"
    unseen = trader.call("POST", "/v1/orders", order(market, capacity=stranger.capacity))
    assert details(unseen) == (404, "not_found", "capacity")
    assert details(trader.call("POST", "/v1/orders", order(market, instance_sku="H999")))[::2] == (404, "instance_sku")
    assert trader.call("GET", f"/v1/orders?workspace={stranger.workspace_id}").status == 404
    operator = market.call("POST", "/v1/orders", order(market, workspace=stranger.name, **{LIMIT: "0.06"}))
    assert (operator.status, operator["workspace"]) == (201, stranger.name)


# --- 409 ---


def test_409_a_second_automation(market: Marketplace, trader: Trader) -> None:
    body = {"capacity": "main", "instance_sku": market.sku, MAX_BUY: "1.20", "enabled": False}
    first = trader.call("POST", "/v1/procurements", body)
    assert (first.status, first["name"]) == (201, "main-r")
    second = trader.call("POST", "/v1/procurements", {**body, "name": "second"})
    assert details(second) == (409, "conflict", "capacity")
    assert first["id"] in second.error["message"]


def test_409_a_second_offer_and_offers_that_owe(market: Marketplace) -> None:
    found = market.call("GET", f"/v1/offers?instance_sku={market.sku}").body["data"]
    assert [row["provider"]["name"] for row in found] == ["local-node"]
    twice = market.call("POST", "/v1/offers", {"provider": "local-node", "instance_sku": market.sku})
    assert details(twice) == (409, "conflict", "instance_sku")
    assert market.call("DELETE", f"/v1/offers/{found[0]['id']}").status == 409
    assert market.call("DELETE", "/v1/providers/local-node").status == 409


# --- 413, 422 ---


def test_413_a_body_that_is_too_long(market: Marketplace) -> None:
    answer = market.call("POST", "/v1/orders", raw=b'{"x": "' + b"x" * (5 << 20) + b'"}')
    assert (answer.status, answer.error["type"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"side": None}, "side"),
        ({"side": "hold"}, "side"),
        ({"instance_sku": None}, "instance_sku"),
        ({"instance_sku": 7}, "instance_sku"),
        ({LIMIT: None}, LIMIT),
        ({LIMIT: 1.2}, LIMIT),
        ({LIMIT: "1"}, LIMIT),
        ({"capacity": None}, "capacity"),
        ({"pool": "other"}, "capacity"),
        ({"allow_standing": "yes"}, "allow_standing"),
        ({"allow_partal": True}, "allow_partal"),
        ({DELTA: None}, DELTA),
        ({DELTA: []}, DELTA),
        ({DELTA: {}}, DELTA),
        ({DELTA: [{"start_at": 0, "node_count": 1}]}, f"{DELTA}[0].end_at"),
    ],
)
def test_422_bodies_that_cannot_be(market: Marketplace, trader: Trader, more: dict[str, Any], field: str) -> None:
    assert details(trader.call("POST", "/v1/orders", order(market, **more))) == (422, "unprocessable_entity", field)


@pytest.mark.parametrize(
    ("window", "field"),
    [
        ({"start_at": 30}, "start_at"),
        ({"end_at": 3630}, "end_at"),
        ({"end_at": 0}, "end_at"),
        ({"start_at": -360_000}, "start_at"),
        ({"end_at": 4 * 365 * 86_400}, "end_at"),
        ({"node_count": 0}, "node_count"),
        ({"node_count": 1025}, "node_count"),
    ],
)
def test_422_windows_that_cannot_be(market: Marketplace, trader: Trader, window: dict[str, int], field: str) -> None:
    shifted = {name: value if name == "node_count" else market.base + value for name, value in window.items()}
    entry = {**market.entry(1, 0, 60), **shifted}
    refused = trader.call("POST", "/v1/orders", order(market, **{DELTA: [entry]}))
    assert details(refused) == (422, "unprocessable_entity", f"{DELTA}[0].{field}")
    assert str(entry[field]) in refused.error["message"] or field == "end_at"


def test_422_time_that_is_not_owned(market: Marketplace, trader: Trader) -> None:
    assert details(trader.ask(1, 0, 60, "1.20")) == (422, "unprocessable_entity", DELTA)


def test_422_the_wrong_kind_of_capacity(market: Marketplace) -> None:
    capacity = market.call("GET", "/v1/providers/local-node")["capacity"]["id"]
    refused = market.call("POST", "/v1/orders", order(market, capacity=capacity))
    assert details(refused) == (422, "unprocessable_entity", "capacity")
    body = {"capacity": capacity, "instance_sku": market.sku, MAX_BUY: "1.20"}
    assert details(market.call("POST", "/v1/procurements", body))[::2] == (422, "capacity")
    assert market.call("DELETE", f"/v1/capacities/{capacity}").status == 422


def test_422_deleting_what_is_in_use(market: Marketplace, trader: Trader) -> None:
    body = {"capacity": "main", "instance_sku": market.sku, MAX_BUY: "1.20", "enabled": False}
    made = trader.call("POST", "/v1/procurements", body)
    placed = trader.bid(1, 0, 60, "0.06")
    refused = trader.call("DELETE", "/v1/capacities/main")
    assert (refused.status, refused.error["type"]) == (422, "unprocessable_entity")
    assert "1 procurement" in refused.error["message"]
    assert ("1 active order" in refused.error["message"]) == (placed["status"] == "standing")
    assert trader.call("DELETE", f"/v1/procurements/{made['id']}").body == {
        "object": "procurement", "id": made["id"], "deleted": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/orders?limit=0", "limit"),
        ("/v1/orders?limit=201", "limit"),
        ("/v1/orders?side=both", "side"),
        ("/v1/orders?status=open", "status"),
        ("/v1/orders?sort_by=price", "sort_by"),
        ("/v1/orders?created_after=yesterday", "created_after"),
        ("/v1/orders?starting_after=ordr_a&ending_before=ordr_b", "ending_before"),
        ("/v1/capacities?schedule_history_minutes=1441", "schedule_history_minutes"),
        ("/v1/capacities?tag=novalue", "tag"),
        ("/v1/contracts?status=late", "status"),
        ("/v1/orderbook/quote", "start_at"),
        ("/v1/orderbook/quote?start_at=60&end_at=60", "end_at"),
        ("/v1/orderbook/depth?start_at=0&end_at=60&depth=101", "depth"),
        ("/v1/orderbook/quote?start_at=0&end_at=60&requirements=colour:red", "requirements"),
        ("/v1/orderbook/quote?start_at=0&end_at=60&requirements=region", "requirements"),
        ("/v1/orderbook/quote?start_at=0&end_at=60&requirements=region:above:local", "requirements"),
        ("/v1/orderbook/quote?start_at=0&end_at=60&requirements=region:gte:local", "requirements"),
        ("/v1/orderbook/fills?since_at=60", "since_at"),
        ("/v1/events?starting_after=evnt_x", "starting_after"),
        ("/v1/instance_skus?starting_after=cap_1", "starting_after"),
    ],
)
def test_422_queries_that_cannot_be(market: Marketplace, path: str, field: str) -> None:
    assert details(market.call("GET", path)) == (422, "unprocessable_entity", field)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"target": -1}, "target"),
        ({"target": "all"}, "target"),
        ({"target": 1.5}, "target"),
        ({"managed_window_minutes": 0}, "managed_window_minutes"),
        ({"managed_window_minutes": 129_601}, "managed_window_minutes"),
        ({"extend_quantum_minutes": 0}, "extend_quantum_minutes"),
        ({"extend_quantum_minutes": 61}, "extend_quantum_minutes"),
        ({MAX_BUY: "0.0"}, MAX_BUY),
        ({"min_sell_price_dollars_per_node_hour": "-1.0"}, "min_sell_price_dollars_per_node_hour"),
        ({"name": "-"}, "name"),
    ],
)
def test_422_procurements_that_cannot_be(market: Marketplace, trader: Trader, more: dict[str, Any], field: str) -> None:
    body = {"capacity": "main", "instance_sku": market.sku, MAX_BUY: "1.20", **more}
    assert details(trader.call("POST", "/v1/procurements", body)) == (422, "unprocessable_entity", field)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"horizon_minutes": 59}, "horizon_minutes"),
        ({"max_nodes": 1025}, "max_nodes"),
        ({"quiet_hours": [[6, 6]]}, "quiet_hours[0]"),
        ({"quiet_hours": [[6, 25]]}, "quiet_hours[0]"),
        ({"floor_price_dollars_per_node_hour": "1"}, "floor_price_dollars_per_node_hour"),
        ({"floor_price_by_hour": {"24": "1.20"}}, "floor_price_by_hour.24"),
        ({"maintenance": [{"start_at": 1, "end_at": 60, "node_count": 1}]}, "maintenance[0]"),
        ({"provider": "local-node"}, "provider"),
    ],
)
def test_422_offers_that_cannot_be(market: Marketplace, more: dict[str, Any], field: str) -> None:
    offer = market.call("GET", f"/v1/offers?instance_sku={market.sku}").body["data"][0]
    assert details(market.call("PATCH", f"/v1/offers/{offer['id']}", more)) == (422, "unprocessable_entity", field)


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "to_at"), ({"blocks": 0}, "blocks"), ({"blocks": 1, "to_at": 1}, "to_at"), ({"to_at": 60}, "to_at")],
)
def test_422_clocks_do_not_go_back(market: Marketplace, body: dict[str, Any], field: str) -> None:
    assert details(market.call("POST", "/v1/test_clock", body)) == (422, "unprocessable_entity", field)


def test_tags_are_checked(market: Marketplace, trader: Trader) -> None:
    refused = trader.call("PATCH", "/v1/capacities/main", {"tags": {"a": "x,y"}})
    assert details(refused) == (422, "unprocessable_entity", "tags.a")
    long_key = trader.call("POST", "/v1/orders", order(market), headers={"Idempotency-Key": "x" * 256})
    assert details(long_key) == (422, "unprocessable_entity", "Idempotency-Key")
