"""Procurements over real HTTP: they buy what is missing, roll on, sell what is spare, keep what was bought by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from marketplace import MAX_BUY, MIN_SELL, Marketplace, Trader, micro, opened

pytestmark = pytest.mark.integration
_numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marketplace]:
    with opened(tmp_path_factory.mktemp("automation") / "data") as market:
        yield market


@pytest.fixture
def market(cluster: Marketplace) -> Marketplace:
    """The cluster with a fresh kind of node, eight of them; minute 0 is the next block."""
    number = next(_numbers)
    cluster.sku = f"isku_a{number}"
    cluster.machine(f"machine_a{number}", 8, cluster.sku)
    cluster.rebase(1)
    return cluster


@pytest.fixture
def trader(market: Marketplace) -> Trader:
    return market.trader(f"trader-{market.sku[5:]}", "1000.00")


def procure(trader: Trader, **more: Any) -> dict[str, Any]:
    body = {
        "capacity": "main", "instance_sku": trader.market.sku, "name": f"keep-{trader.market.sku[5:]}", MAX_BUY: "3.00",
        MIN_SELL: "0.60", "target": 2, **more,
    }  # fmt: skip
    made = trader.call("POST", "/v1/procurements", body)
    assert made.status == 201, made.body
    return dict(made.body)


def change(trader: Trader, procurement: dict[str, Any], **more: Any) -> dict[str, Any]:
    changed = trader.call("PATCH", f"/v1/procurements/{procurement['id']}", more)
    assert changed.status == 200, changed.body
    return dict(changed.body)


def own_orders(trader: Trader, procurement: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    found = trader.call("GET", "/v1/orders", query={"procurement": procurement["id"], **query})
    return list(found.body["data"])


def standing(trader: Trader, procurement: dict[str, Any], side: str) -> list[tuple[int, int, int]]:
    rows = own_orders(trader, procurement, status=["standing", "partially_filled"], side=side)
    return sorted(
        run for row in rows for run in trader.market.minutes(row["open_allocation_schedule_delta"])
    )  # fmt: skip


def code(procurement: dict[str, Any]) -> str:
    return str(procurement["status"]["message"].split(":")[0].split(" ")[0])


def test_r22_it_buys_at_once_rolls_on_and_sells_back(market: Marketplace, trader: Trader) -> None:
    made = procure(trader)
    assert trader.owned() == [(0, 60, 2)]
    assert code(made) == "running"
    assert trader.call("GET", "/v1/orders").body["data"] == [], "lists leave out what automation placed"
    assert {row["created_by"]["type"] for row in own_orders(trader, made)} == {"procurement"}
    market.advance(30)
    assert trader.owned()[-1][1:] == (91, 2)
    made = change(trader, made, target=1)
    assert [run[2] for run in standing(trader, made, "sell")] == [1]
    market.advance(31)
    assert all(nodes == 1 for _, _, nodes in standing(trader, made, "sell"))


def test_r22_what_it_sells_another_may_buy(market: Marketplace, trader: Trader) -> None:
    made = procure(trader, target=8)
    assert trader.owned() == [(0, 60, 8)]
    change(trader, made, target=3)
    assert standing(trader, made, "sell") == [(0, 60, 5)]
    other = market.trader(f"other-{market.sku[5:]}", "10.00")
    got = other.order("buy", 5, 0, 60, "0.60")
    assert (got["status"], got["total"]) == ("filled", "3.000000")
    assert trader.owned() == [(0, 60, 3)]
    assert trader.balance()["current"] == 1_003_000_000


def test_section_5_1_protect_manual(market: Marketplace, trader: Trader) -> None:
    assert trader.order("buy", 4, 0, 120, "0.06")["status"] == "filled"
    made = procure(trader, target=6)
    assert made["protect_manual"] is True
    assert trader.owned() == [(0, 60, 6), (60, 120, 4)], "it buys what is missing beyond what was bought by hand"
    made = change(trader, made, target=2)
    assert standing(trader, made, "sell") == [(0, 60, 2)], "what was bought by hand is kept"
    assert code(made) == "kept_manual"
    assert "2" in made["status"]["message"]
    made = change(trader, made, protect_manual=False)
    assert sum(nodes for _, _, nodes in standing(trader, made, "sell")) == 4
    made = change(trader, made, protect_manual=True)
    assert sum(nodes for _, _, nodes in standing(trader, made, "sell")) == 2


def test_outbid_then_the_limit_is_raised(market: Marketplace, trader: Trader) -> None:
    seller = market.trader(f"seller-{market.sku[5:]}", "1.00")
    market.endow(seller, 8, 0, 7 * 24 * 60 - 120)
    seller.ask(8, 0, 600, "6.00")
    made = procure(trader)
    assert trader.owned() == []
    assert (made["status"]["state"], code(made)) == ("warning", "price_above_limit")
    assert standing(trader, made, "buy") == [(0, 60, 2)]
    assert trader.balance()["holds"] == micro("6.00")
    made = change(trader, made, **{MAX_BUY: "6.00"})
    assert trader.owned() == [(0, 60, 2)]
    assert (made["status"]["state"], code(made)) == ("info", "running")
    assert trader.balance() == {"current": 988_000_000, "available": 988_000_000, "holds": 0}


def test_balance_guards_and_retries(market: Marketplace) -> None:
    seller = market.trader(f"seller-{market.sku[5:]}", "1.00")
    market.endow(seller, 8, 0, 600)
    seller.ask(8, 0, 600, "3.00")
    poor = market.trader(f"poor-{market.sku[5:]}", "5.999999")
    made = procure(poor)
    assert (made["status"]["state"], code(made)) == ("warning", "insufficient_balance")
    assert "6.000000" in made["status"]["message"] and "5.999999" in made["status"]["message"]
    assert poor.balance()["holds"] == 0
    market.call("POST", f"/v1/balances/{poor.workspace_id}/top_up", {"amount": "10.00"})
    market.advance(1)
    assert poor.owned()[-1][2] == 2
    assert code(poor.call("GET", f"/v1/procurements/{made['id']}").body) == "running"


def test_disabling_and_deleting_take_its_orders_back(market: Marketplace, trader: Trader) -> None:
    seller = market.trader(f"seller-{market.sku[5:]}", "1.00")
    market.endow(seller, 8, 0, 600)
    made = procure(trader)
    assert trader.balance()["holds"] == micro("6.00")
    made = change(trader, made, enabled=False)
    assert (code(made), trader.balance()["holds"], standing(trader, made, "buy")) == ("disabled", 0, [])
    assert {row["cancel_reason"] for row in own_orders(trader, made)} == {"automation"}
    made = change(trader, made, enabled=True)
    assert trader.balance()["holds"] == micro("6.00")
    assert trader.call("DELETE", f"/v1/procurements/{made['name']}").status == 200
    assert trader.balance()["holds"] == 0
    assert trader.call("GET", f"/v1/procurements/{made['id']}").status == 404


def test_patch_leaves_out_what_is_left_out(market: Marketplace, trader: Trader) -> None:
    made = procure(trader, managed_window_minutes=120, extend_quantum_minutes=15, target="node_count")
    assert (made["target"], trader.owned()) == ("node_count", [])
    changed = change(trader, made, target=1)
    expected = {**made, "target": 1, "status": changed["status"], "updated_at": changed["updated_at"]}
    assert changed == expected
    fixed = trader.call("PATCH", f"/v1/procurements/{made['id']}", {"capacity": "other"})
    assert (fixed.status, fixed.error["details"][0]["field"]) == (422, "capacity")
    assert trader.call("PATCH", f"/v1/procurements/{made['id']}", {}).body == changed
    listed = trader.call("GET", f"/v1/procurements?capacity=main&instance_sku={market.sku}&enabled=true").body["data"]
    assert [row["id"] for row in listed] == [made["id"]]
