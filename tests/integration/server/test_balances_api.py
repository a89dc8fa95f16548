"""Balances and transactions over the API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers import Answer
from things_stage import Cloud

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("balances") / "data").running() as running:
        yield running


def balance(cloud: Cloud, name: str) -> tuple[str, str, str]:
    shown = cloud.call("GET", f"/v1/balances/{name}")
    return shown["current"], shown["overage_limit"], shown["spending_power"]


def test_top_up(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    made = cloud.make(f"/v1/balances/{name}/top_up", {"amount": "25.00", "reference": "wire 7"})
    assert (made.status, made["current"], made["available"], made["holds"]) == (
        201,
        "25.000000",
        "25.000000",
        "0.000000",
    )
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "0.000001"})
    assert balance(cloud, name) == ("25.000001", "0.000000", "25.000001")
    rows = cloud.call("GET", "/v1/transactions", key=key)["data"]
    assert [(row["kind"], row["amount"], row["balance_after"]) for row in rows] == [
        ("top_up", "0.000001", "25.000001"), ("top_up", "25.000000", "25.000000"),
    ]  # fmt: skip
    assert rows[1]["reference"] == "wire 7"


def test_a_repeated_top_up_adds_nothing(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    path, once = f"/v1/balances/{name}/top_up", {"Idempotency-Key": cloud.name("key")}
    first = cloud.call("POST", path, {"amount": "10.00"}, headers=once)
    assert (first.status, first.headers.get("idempotency-replayed")) == (201, None)
    again = cloud.call("POST", path, {"amount": "10.00"}, headers=once)
    assert (again.status, again.headers["idempotency-replayed"], again["current"]) == (200, "true", "10.000000")
    other, _ = cloud.workspace()
    elsewhere = cloud.call("POST", f"/v1/balances/{other}/top_up", {"amount": "3.00"}, headers=once)
    assert (elsewhere.status, elsewhere["current"]) == (201, "3.000000")


def test_prepaid_money_goes_back(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    path, once = f"/v1/balances/{name}/pay_back", {"Idempotency-Key": cloud.name("key")}
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "10.00"})
    cloud.make(f"/v1/balances/{name}/overage_limit", {"amount": "50.00"})
    for status in (201, 200):
        back = cloud.call("POST", path, {"amount": "4.00"}, headers=once)
        assert (back.status, back["current"]) == (status, "6.000000")
    refused = cloud.call("POST", path, {"amount": "6.01"})
    assert (refused.status, refused.error["details"][0]["field"]) == (422, "amount"), "credit is not paid out"
    assert cloud.call("POST", path, {"amount": "1.00"}, key=key).status == 403
    assert cloud.make(path, {"amount": "6.00"})["current"] == "0.000000"


@pytest.mark.parametrize("amount", ["0.00", "-1.00", "1e3.0", "0.0000001", "ten", "1000000000.01", ""])
def test_wrong_amounts_are_refused(cloud: Cloud, amount: str) -> None:
    refused = cloud.call("POST", "/v1/balances/default/top_up", {"amount": amount})
    assert (refused.status, refused.error["details"][0]["field"]) == (422, "amount")


def test_money_is_the_operators(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    for path in (f"/v1/balances/{name}/top_up", f"/v1/balances/{name}/overage_limit"):
        refused = cloud.call("POST", path, {"amount": "1.00"}, key=key)
        assert (refused.status, refused.error["type"]) == (403, "forbidden")
    assert cloud.call("GET", "/v1/balances/default", key=key).status == 404
    assert [row["workspace"] for row in cloud.call("GET", "/v1/balances", key=key)["data"]] == [name]
    assert name in [row["workspace"] for row in cloud.call("GET", "/v1/balances")["data"]]
    assert cloud.call("GET", "/v1/transactions?workspace=default", key=key).status == 404
    assert cloud.call("POST", "/v1/balances/nobody/top_up", {"amount": "1.00"}).status == 404


def test_overage_limit(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    path = f"/v1/balances/{name}/overage_limit"
    assert cloud.call("POST", path, {"amount": "5.00"})["overage_limit"] == "5.000000"
    assert balance(cloud, name) == ("0.000000", "5.000000", "5.000000")
    assert cloud.call("POST", path, {"amount": "2.50"})["overage_limit"] == "2.500000"
    assert cloud.call("POST", path, {"amount": "2.50"})["overage_limit"] == "2.500000"
    assert cloud.call("POST", path, {"amount": "0.00"})["spending_power"] == "0.000000"


def test_the_default_workspace_can_always_pay(cloud: Cloud) -> None:
    shown = cloud.call("GET", "/v1/balances/default")
    assert shown["overage_limit"] == "1000000000.000000"


def test_transactions_are_paged_and_filtered(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    for amount in ("1.00", "2.00", "3.00"):
        cloud.make(f"/v1/balances/{name}/top_up", {"amount": amount})
    path = f"/v1/transactions?workspace={name}"
    first = cloud.call("GET", f"{path}&limit=2")
    assert [row["amount"] for row in first["data"]] == ["3.000000", "2.000000"]
    assert first["has_more"] is True
    second = cloud.call("GET", f"{path}&limit=2&starting_after={first['cursor']}")
    assert [(row["amount"], row["balance_after"]) for row in second["data"]] == [("1.000000", "1.000000")]
    back = cloud.call("GET", f"{path}&limit=1&ending_before={second['data'][0]['id']}")
    assert [row["amount"] for row in back["data"]] == ["2.000000"]
    assert cloud.call("GET", f"{path}&kind=buy&kind=fee")["data"] == []
    assert len(cloud.call("GET", f"{path}&kind=top_up")["data"]) == 3
    assert cloud.call("GET", f"{path}&created_after=4000000000")["data"] == []
    assert len(cloud.call("GET", f"{path}&created_before=4000000000")["data"]) == 3
    for wrong in ("kind=gift", "created_after=now", "starting_after=use_1", "starting_after=txn_x"):
        assert cloud.call("GET", f"{path}&{wrong}").status == 422


def test_holds_and_what_becomes_of_them(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "10.00"})
    start = (int(time.time()) // 60 + 30 * 1440) * 60

    def order(start: int, **more: Any) -> Answer:
        body = {
            "capacity": "default", "side": "buy", "instance_sku": "isku_cpu", "allow_standing": True,
            "allocation_schedule_delta": [{"start_at": start, "end_at": start + 3600, "node_count": 2}],
            "limit_price_dollars_per_node_hour": "2.40", **more,
        }  # fmt: skip
        return cloud.make("/v1/orders", body, key=key)

    def shown() -> tuple[str, str, str]:
        held = cloud.call("GET", f"/v1/balances/{name}")
        return held["current"], held["holds"], held["available"]

    waiting = order(start)
    assert waiting["status"] == "standing", "nobody offers a month ahead"
    assert shown() == ("10.000000", "4.800000", "5.200000")
    cloud.call("DELETE", f"/v1/orders/{waiting['id']}", key=key)
    assert shown() == ("10.000000", "0.000000", "10.000000")
    filled = order((int(time.time()) // 60 + 60) * 60)
    assert filled["status"] == "filled"
    rows = cloud.call("GET", "/v1/transactions", key=key)["data"]
    seen = [(row["kind"], row["amount"], row["settled"], row["reference"]) for row in rows[::-1]]
    assert seen[:3] == [
        ("top_up", "10.000000", None, seen[0][3]),
        ("hold", "-4.800000", "voided", waiting["id"]),
        ("release", "4.800000", None, waiting["id"]),
    ]
    assert shown() == ("10.000000", "0.000000", "10.000000"), "the floor is 0"
    assert {row["balance_after"] for row in rows} == {"10.000000"}
    assert [row["kind"] for row in cloud.call("GET", "/v1/transactions?kind=hold", key=key)["data"]].count("hold") >= 1
    assert cloud.call("GET", f"/v1/balances/{name}", key=key)["holds"] == "0.000000"
