"""A cluster whose blocks are shorter than a minute: windows, steps of prices and conversions follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from marketplace import DELTA, LIMIT, MAX_BUY, PRICE, Marketplace, details, opened

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marketplace]:
    with opened(tmp_path_factory.mktemp("blocks") / "data", "--block-s", "10") as market:
        market.machine("machine_s", 4, market.sku)
        market.rebase()
        yield market


def test_the_block_is_ten_seconds(market: Marketplace) -> None:
    assert market.call("GET", "/v1/test_clock")["block_s"] == 10
    assert market.call("GET", "/v1/market_settings")["block_s"] == 10


def test_r1_r2_windows_and_steps(market: Marketplace) -> None:
    trader = market.trader("short", "10.00")
    body = {
        "capacity": "main", "side": "buy", "instance_sku": market.sku, LIMIT: "20.00", "allow_standing": True,
        DELTA: [{"start_at": market.base + 10, "end_at": market.base + 30, "node_count": 3}],
    }  # fmt: skip
    got = trader.call("POST", "/v1/orders", body)
    assert got["status"] == "filled"
    # One step is 3600 / 10 = 360 micro-dollars per node-hour, and 20.00 is between two of them.
    assert (got[LIMIT], got["requested_limit_price"]) == ("20.000160", "20.00")
    assert got["fills"][0][PRICE] == "0.000000"
    entries = trader.call("GET", "/v1/capacities/main")["allocation_schedule"]["total"]
    assert entries == [{"start_at": market.base + 10, "end_at": market.base + 30, "node_count": 3}]
    wrong = [{**body[DELTA][0], "end_at": market.base + 25}]
    assert details(trader.call("POST", "/v1/orders", {**body, DELTA: wrong}))[::2] == (422, f"{DELTA}[0].end_at")


def test_minutes_of_procurements_are_wall_minutes(market: Marketplace) -> None:
    trader = market.trader("keeper", "10.00")
    body = {
        "capacity": "main", "instance_sku": market.sku, MAX_BUY: "1.00", "target": 1, "managed_window_minutes": 5,
    }  # fmt: skip
    made = trader.call("POST", "/v1/procurements", body)
    assert made["status"]["message"].startswith("running")
    first = (market.now // 10 + 1) * 10
    [entry] = trader.call("GET", "/v1/capacities/main")["allocation_schedule"]["total"]
    assert (entry["start_at"], entry["end_at"]) == (first, first + 300)
    assert market.call("POST", "/v1/test_clock", {"blocks": 3})["now_at"] == first + 20
    [entry] = trader.call("GET", "/v1/capacities/main")["allocation_schedule"]["total"]
    assert entry["end_at"] == first + 300, "the far edge grows by whole quanta, a minute unless told otherwise"
    market.call("POST", "/v1/test_clock", {"blocks": 3})
    [entry] = trader.call("GET", "/v1/capacities/main")["allocation_schedule"]["total"]
    assert entry["end_at"] == first + 360
