"""What everyone may see: quotes, depth, windows, fills, previews, kinds of nodes, providers, events, settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from marketplace import (
    DELTA,
    FLOOR,
    LIMIT,
    PRICE,
    Marketplace,
    Trader,
    details,
    frames,
    micro,
    opened,
    stream,
)

pytestmark = pytest.mark.integration
RATE = "dollars_per_node_hour"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marketplace]:
    with opened(tmp_path_factory.mktemp("views") / "data") as market:
        yield market


@pytest.fixture
def market(cluster: Marketplace) -> Marketplace:
    number = next(_numbers)
    cluster.sku = f"isku_v{number}"
    cluster.machine(f"machine_v{number}", 8, cluster.sku)
    cluster.rebase()
    return cluster


@pytest.fixture
def seller(market: Marketplace) -> Trader:
    found = market.trader(f"seller-{market.sku[5:]}", "1.00")
    market.endow(found, 8, 0, 240)
    return found


@pytest.fixture
def buyer(market: Marketplace) -> Trader:
    return market.trader(f"buyer-{market.sku[5:]}", "100.00")


def view(trader: Trader, name: str, start: int, end: int, **more: Any) -> dict[str, Any]:
    market = trader.market
    names = ("range_start_at", "range_end_at") if name == "windows" else ("start_at", "end_at")
    query = {
        "requirements": f"instance_sku:{market.sku}", names[0]: market.base + start * 60,
        names[1]: market.base + end * 60, **more,
    }  # fmt: skip
    found = trader.call("GET", f"/v1/orderbook/{name}", query=query)
    assert found.status == 200, found.body
    assert found["requested_at"] == market.now
    return dict(found.body)


def level(market: Marketplace, one: dict[str, Any]) -> tuple[str, list[tuple[int, int, int]]]:
    return one[RATE], market.minutes(one[DELTA])


# --- the book ---


def test_quotes_are_the_best_levels_clipped_to_the_window(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    assert view(buyer, "quote", 0, 60)["best_bid"] is None
    seller.ask(2, 0, 60, "3.00")
    seller.ask(1, 30, 90, "3.00", allow_partial=False)
    seller.ask(2, 120, 180, "1.80")
    buyer.bid(1, 0, 240, "1.20")
    found = view(buyer, "quote", 20, 60)
    assert level(market, found["best_ask"]) == ("3.000000", [(20, 30, 2), (30, 60, 3)])
    assert market.minutes(found["best_ask"]["all_or_none_schedule_delta"]) == [(30, 60, 1)]
    assert level(market, found["best_bid"]) == ("1.200000", [(20, 60, 1)])
    assert level(market, view(buyer, "quote", 0, 180)["best_ask"]) == ("1.800000", [(120, 180, 2)])


def test_depth_and_windows(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    for price in ("3.00", "1.80", "2.40"):
        seller.ask(1, 0, 60, price)
    for price in ("0.60", "1.20"):
        buyer.bid(1, 0, 60, price)
    buyer.bid(1, 30, 60, "1.20")
    found = view(seller, "depth", 0, 60)
    assert [one[RATE] for one in found["asks"]] == ["1.800000", "2.400000", "3.000000"]
    assert [level(market, one) for one in found["bids"]] == [
        ("1.200000", [(0, 30, 1), (30, 60, 2)]), ("0.600000", [(0, 60, 1)]),
    ]  # fmt: skip
    assert len(view(seller, "depth", 0, 60, depth=1)["asks"]) == 1
    rows = view(seller, "windows", 0, 240)["data"]
    shown = [
        (*market.minutes([{**row, "node_count": 0}])[0][:2], row["total_bid_order_count"], row["total_ask_order_count"])
        for row in rows
    ]
    assert shown == [(0, 60, 2, 3), (30, 60, 1, 0)]
    assert (rows[0]["duration_hours"], rows[0]["duration_minutes"]) == (1.0, 60.0)
    assert (rows[0]["best_bid"][RATE], rows[0]["best_ask"][RATE], rows[1]["best_ask"]) == ("1.200000", "1.800000", None)


def test_past_fills_name_nobody(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(2, 0, 60, "3.00")
    buyer.order("buy", 2, 0, 60, "3.00")
    stranger = market.trader(f"stranger-{market.sku[5:]}", "0.00")
    found = view(stranger, "fills", 30, 240)["data"]
    assert [level(market, one) for one in found] == [("3.000000", [(30, 60, 2)]), ("0.000000", [(30, 240, 8)])]
    assert set(found[0]) == {"instance_sku", RATE, DELTA, "filled_at"}
    assert view(stranger, "fills", 0, 60, since_at=market.now + 60)["data"] == []


# --- previews ---


def preview(trader: Trader, side: str, nodes: int, start: int, minutes: int, **more: Any) -> dict[str, Any]:
    body = {
        "side": side, "requirements": f"instance_sku:{trader.market.sku}", "start_at": trader.market.base + start * 60,
        "duration_seconds": minutes * 60, "node_count": nodes, **more,
    }  # fmt: skip
    found = trader.call("POST", "/v1/order_preview", body)
    assert found.status == 200, found.body
    return dict(found.body)


def test_a_preview_posted_as_it_is_fills_at_its_estimate(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(2, 0, 60, "3.00")
    seller.ask(2, 30, 90, "1.80")
    found = preview(buyer, "buy", 2, 0, 90, capacity="main")
    assert (found["type"], found["estimated_total"], found["estimated_average"]) == ("quoted", "6.600000", "2.200000")
    body = found["post_order_body"]
    assert (body[LIMIT], body["capacity"], body["instance_sku"]) == ("3.000000", buyer.capacity, market.sku)
    placed = buyer.call("POST", "/v1/orders", body)
    assert (placed["status"], placed["total"]) == ("filled", found["estimated_total"])
    assert preview(buyer, "buy", 2, 0, 90)["reason"] == "no_availability"


def test_previews_skip_own_orders_and_unknown_kinds(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(1, 0, 60, "1.20")
    assert preview(seller, "buy", 1, 0, 60)["type"] == "unavailable"
    assert preview(buyer, "buy", 1, 0, 60)["type"] == "quoted"
    nothing = preview(buyer, "buy", 1, 0, 60, requirements="accelerator:H100")
    assert (nothing["type"], nothing["reason"]) == ("unavailable", "no_matching_instance_skus")
    buyer.bid(1, 100, 120, "1.20")
    sold = preview(seller, "sell", 1, 100, 20)
    assert (sold["post_order_body"][LIMIT], sold["estimated_total"]) == ("1.200000", "0.400000")
    wrong = buyer.call("POST", "/v1/order_preview", {"side": "buy", "start_at": market.base, "duration_seconds": 90,
                                                     "node_count": 1})  # fmt: skip
    assert details(wrong) == (422, "unprocessable_entity", "duration_seconds")


def test_a_preview_of_free_time_can_be_posted(market: Marketplace, buyer: Trader) -> None:
    found = preview(buyer, "buy", 1, 0, 60, capacity="main")
    assert (found["estimated_total"], found["post_order_body"][LIMIT]) == ("0.000000", "0.000060")
    placed = buyer.call("POST", "/v1/orders", found["post_order_body"])
    assert (placed["status"], placed["total"]) == ("filled", "0.000000")


def test_r15_fees_are_set_shown_and_paid_by_sellers(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    fees = {market.sku: {f"flat_{RATE}": "0.06", "percentage_bps": 250}}
    changed = market.call("PATCH", "/v1/market_settings", {"fees": fees})
    assert changed["fees"][market.sku] == {f"flat_{RATE}": "0.060000", "percentage_bps": 250}
    seller.ask(1, 0, 60, "3.00")
    assert preview(buyer, "buy", 1, 0, 60)["fee"] == {f"flat_{RATE}": "0.060000", "percentage_bps": 250}
    buyer.order("buy", 1, 0, 60, "3.00")
    assert seller.balance()["current"] == 4_000_000 - 60_000 - 75_000
    assert buyer.balance()["current"] == 97_000_000
    sold = seller.call("GET", "/v1/contracts?side=sell").body["data"][0]
    assert (sold["amount"], sold["fee"]) == ("3.000000", "0.135000")
    bought = buyer.call("GET", "/v1/contracts?side=buy").body["data"][0]
    assert (bought["amount"], bought["fee"]) == ("3.000000", "0.000000")
    assert buyer.call("GET", "/v1/contracts?side=sell").body["data"] == []
    refused = market.call("PATCH", "/v1/market_settings", {"fees": {"isku_none": {}}})
    assert details(refused) == (404, "not_found", "fees.isku_none")


def test_maintenance_is_told_in_previews(market: Marketplace, buyer: Trader) -> None:
    notice = {"start_at": market.now, "end_at": market.now + 600, "title": "books close", "maintenance_type": "info"}
    market.call("PATCH", "/v1/market_settings", {"notices": [notice]})
    found = preview(buyer, "buy", 1, 0, 60)["notices"]
    assert [one["title"] for one in found] == ["books close"]
    market.call("PATCH", "/v1/market_settings", {"notices": []})
    assert preview(buyer, "buy", 1, 0, 60)["notices"] == []


# --- kinds of nodes ---


def test_kinds_of_nodes_are_found_by_their_properties(market: Marketplace, buyer: Trader) -> None:
    found = buyer.call("GET", f"/v1/instance_skus/{market.sku}")
    assert found["properties"]["num_vcpus"] == {"value": 2, "display_value": "2 vCPUs"}
    by_alias = buyer.call("GET", f"/v1/instance_skus/{market.sku.removeprefix('isku_')}")
    assert by_alias.body == found.body
    assert buyer.call("GET", f"/v1/instance_skus/{market.sku.replace('isku_', 'clus_')}").body == found.body
    every = {row["id"] for row in buyer.call("GET", "/v1/instance_skus?num_vcpus=2&region=local").body["data"]}
    assert market.sku in every
    assert buyer.call("GET", "/v1/instance_skus?num_vcpus=3").body["data"] == []
    assert buyer.call("GET", "/v1/instance_skus?requirements=num_vcpus:gt:2").body["data"] == []
    several = buyer.call("GET", f"/v1/instance_skus?id={market.sku}&id=isku_none").body["data"]
    assert [row["id"] for row in several] == [market.sku]
    catalog = {one["key"]: one for one in buyer.call("GET", "/v1/instance_sku_property_catalog").body["data"]}
    assert 2 in [known["value"] for known in catalog["num_vcpus"]["values"]]


def test_availability_is_the_sum_of_resting_asks(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(2, 0, 60, "3.00")
    seller.ask(1, 30, 90, "9.00", allow_partial=False)
    query = {"start_at": market.base, "end_at": market.base + 240 * 60}
    one = buyer.call("GET", f"/v1/instance_skus/{market.sku}/availability", query=query)
    assert market.minutes(one["availability"]) == [(0, 30, 2), (30, 60, 3), (60, 90, 1)]
    several = buyer.call("GET", "/v1/instance_skus/availability", query={**query, "instance_sku": market.sku})
    assert several["data"] == [one.body]


# --- capacities ---


def test_capacities_are_named_tagged_and_found(market: Marketplace, buyer: Trader) -> None:
    made = buyer.call("POST", "/v1/capacities", {"name": "lab", "tags": {"team": "a=b".replace("=", "-"), "x": ""}})
    assert (made.status, made["kind"], made["allocation_schedule"]) == (
        201,
        "market",
        {"total": [], "by_instance_sku": {}},
    )
    path = made["resource_path"]
    assert path == f"np:capacity:{buyer.name}:{buyer.name}:lab"
    for reference in (made["id"], "lab", path, path.replace("np:", "sfc:"), made["id"].replace("cap_", "pool_")):
        assert buyer.call("GET", f"/v1/capacities/{reference}").body == made.body
    pool = buyer.call("GET", "/v1/pools/lab")
    assert pool.body == {**made.body, "object": "pool"}
    for query, names in (("tag=team=a-b", ["lab"]), ("tag=team=c", []), ("tag_key=x", ["lab"]), ("tag_key=y", []),
                         ("id=lab", ["lab"]), ("", ["default", "lab", "main"])):  # fmt: skip
        found = buyer.call("GET", f"/v1/capacities?{query}").body["data"]
        assert sorted(row["name"] for row in found) == names, query
    renamed = buyer.call("PATCH", "/v1/capacities/lab", {"name": "shop"})
    assert (renamed["id"], renamed["name"], renamed["tags"]) == (made["id"], "shop", made["tags"])
    assert buyer.call("PATCH", "/v1/capacities/shop", {"tags": {}})["tags"] == {}
    assert buyer.call("DELETE", "/v1/capacities/shop")["deleted"] is True
    assert buyer.call("GET", f"/v1/capacities/{made['id']}").status == 404


def test_schedules_have_a_past_when_it_is_asked_for(market: Marketplace, buyer: Trader) -> None:
    market.rebase(1)
    assert buyer.order("buy", 3, 0, 30, "0.06")["status"] == "filled"
    market.advance(20)
    now = market.minutes(buyer.call("GET", "/v1/capacities/main")["allocation_schedule"]["total"])
    assert now == [(20, 30, 3)]
    past = buyer.call("GET", "/v1/capacities/main?schedule_history_minutes=10")["allocation_schedule"]["total"]
    assert market.minutes(past) == [(10, 30, 3)]
    whole = buyer.call("GET", "/v1/capacities/main?schedule_history_minutes=1440")["allocation_schedule"]["total"]
    assert market.minutes(whole) == [(0, 30, 3)]


# --- providers ---


def test_a_provider_sees_what_it_earns(market: Marketplace, buyer: Trader) -> None:
    offer = market.call("GET", f"/v1/offers?instance_sku={market.sku}").body["data"][0]
    before = market.call("GET", "/v1/providers/local-node")
    raised = market.call("PATCH", f"/v1/offers/{offer['id']}", {FLOOR: "1.20", "quiet_hours": [], "max_nodes": 4})
    assert (raised[FLOOR], raised["max_nodes"], raised["horizon_minutes"]) == ("1.200000", 4, offer["horizon_minutes"])
    assert buyer.order("buy", 2, 0, 60, "1.00")["status"] == "cancelled"
    assert buyer.order("buy", 2, 0, 60, "1.20")["total"] == "2.400000"
    after = market.call("GET", "/v1/providers/local-node")
    assert micro(after["undelivered"]) - micro(before["undelivered"]) == 2_400_000
    assert micro(after["revenue"]) - micro(before["revenue"]) == 2_400_000
    assert 0 < after["utilisation"] <= 1 and after["open_offers"] > 0
    orders = market.call("GET", "/v1/provider/orders?provider=local-node&limit=5")
    assert orders["summary"]["revenue"] == after["revenue"]
    assert all(row["side"] == "sell" for row in orders["data"])
    market.advance(30)
    half = market.call("GET", "/v1/providers/local-node")
    assert micro(half["released"]) - micro(before["released"]) == pytest.approx(1_200_000, abs=80_000)
    market.advance(61)
    done = market.call("GET", "/v1/providers/local-node")
    assert micro(done["released"]) - micro(before["released"]) == 2_400_000


def test_providers_and_offers_are_made_by_the_operator(market: Marketplace) -> None:
    name = f"lab-{market.sku[5:]}"
    made = market.call("POST", "/v1/providers", {"name": name, "notice_s": 30})
    assert (made.status, made["notice_s"], made["workspace"], made["revenue"]) == (201, 30, name, "0.000000")
    offer = market.call("POST", "/v1/offers", {"provider": name, "instance_sku": market.sku, FLOOR: "2.40",
                                               "quiet_hours": [[22, 6]], "floor_price_by_hour": {"12": "3.60"}})  # fmt: skip
    assert offer.status == 201, offer.body
    assert (offer[FLOOR], offer["quiet_hours"], offer["floor_price_by_hour"]) == (
        "2.400000",
        [[22, 6]],
        {"12": "3.600000"},
    )
    assert market.call("PATCH", f"/v1/providers/{name}", {"notice_s": 120})["notice_s"] == 120
    assert market.call("DELETE", f"/v1/offers/{offer['id']}").status == 200
    assert market.call("DELETE", f"/v1/providers/{made['id']}").status == 200


# --- events ---


def test_events_are_listed_and_streamed(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    live = stream(market, buyer.key)
    assert live.getheader("content-type", "").startswith("text/event-stream")
    assert live.readline() == b": connected\n"
    seller.ask(1, 0, 60, "1.20")
    placed = buyer.order("buy", 1, 0, 60, "1.20")
    seen = frames(live, 3)
    assert {kind for _, kind, _ in seen} == {"order.created", "order.filled", "contract.created"}
    assert all(event["workspace_id"] == buyer.workspace_id and event["id"] == number for number, _, event in seen)
    listed = buyer.call("GET", "/v1/events?limit=3").body
    assert [row["id"] for row in listed["data"]] == [number for number, _, _ in reversed(seen)]
    again = frames(stream(market, buyer.key, **{"Last-Event-ID": seen[0][0]}), 2)
    assert again == seen[1:]
    filled = buyer.call("GET", "/v1/events", query={"type": "order.filled", "object_id": placed["id"]}).body["data"]
    assert [row["object_id"] for row in filled] == [placed["id"]]
    kinds = {row["type"].partition(".")[0] for row in buyer.call("GET", "/v1/events?type=order").body["data"]}
    assert kinds == {"order"}
    older = buyer.call("GET", "/v1/events", query={"starting_after": listed["cursor"] or listed["data"][-1]["id"]}).body
    assert {row["type"] for row in older["data"]} <= {"capacity.created", "balance.topped_up", "workspace.created"}


def test_a_revoked_key_hears_nothing_more(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    made = buyer.call("POST", "/v1/keys", {"name": "listener", "scopes": ["read"]})
    live = stream(market, made["key"])
    assert live.readline() == b": connected\n"
    buyer.call("DELETE", f"/v1/keys/{made['id']}")
    buyer.bid(1, 0, 60, "0.06")
    assert b"order." not in live.read(), "the stream ends"


# --- the clock ---


def test_the_clock_stands_still_and_moves_by_blocks(market: Marketplace) -> None:
    before = market.call("GET", "/v1/test_clock")
    assert (before["frozen"], before["block_s"]) == (True, 60)
    moved = market.call("POST", "/v1/test_clock", {"blocks": 3})
    assert moved["now_at"] == before["now_at"] // 60 * 60 + 180
    assert market.now == moved["now_at"]


def test_amounts_and_rates_agree(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(1, 0, 7, "2.50")
    got = buyer.order("buy", 1, 0, 7, "2.50")
    assert micro(got["total"]) * 60 == micro(got["fills"][0][PRICE]) * 7


def test_lists_keep_to_a_workspace_unless_the_operator_asks_for_all(
    market: Marketplace, seller: Trader, buyer: Trader
) -> None:
    seller.ask(1, 0, 60, "9.00")
    buyer.bid(1, 0, 60, "0.06")

    def owners(key: str | None, **query: str) -> set[str]:
        found = market.call("GET", "/v1/orders", key=key, query={"instance_sku": market.sku, **query})
        return {row["workspace"] for row in found.body["data"]}

    assert owners(None) == set()
    assert owners(None, workspace=buyer.name) == {buyer.name}
    assert {seller.name, buyer.name} <= owners(None, workspace="*")
    assert owners(buyer.key) == owners(buyer.key, workspace="*") == {buyer.name}
