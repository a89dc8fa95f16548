"""Orders over real HTTP: the worked example to the micro-dollar, roundings, priorities, clipping, transfers."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterator

import pytest
from marketplace import DELTA, LIMIT, PRICE, Marketplace, Trader, details, micro, opened

pytestmark = pytest.mark.integration
_numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marketplace]:
    with opened(tmp_path_factory.mktemp("orders") / "data") as market:
        yield market
        assert {("POST", "/v1/orders", 201), ("POST", "/v1/orders", 402), ("GET", "/v1/contracts", 200)} <= (
            market.document.seen
        )


@pytest.fixture
def market(cluster: Marketplace) -> Marketplace:
    """The cluster with a kind of node that no other test uses: eight of them, all the provider's."""
    number = next(_numbers)
    cluster.sku = f"isku_t{number}"
    cluster.machine(f"machine_t{number}", 8, cluster.sku)
    cluster.rebase()
    return cluster


@pytest.fixture
def seller(market: Marketplace) -> Trader:
    """Somebody who owns all eight nodes for four hours."""
    found = market.trader(f"seller-{market.sku[5:]}", "1.00")
    market.endow(found, 8, 0, 240)
    return found


@pytest.fixture
def buyer(market: Marketplace) -> Trader:
    return market.trader(f"buyer-{market.sku[5:]}", "100.00")


# --- the worked example ---


def test_r10_to_r13_the_worked_example(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    x, y = seller.ask(2, 0, 60, "3.00"), seller.ask(2, 30, 90, "1.80")
    assert (x["status"], y["status"]) == ("standing", "standing")
    got = buyer.order("buy", 2, 0, 90, "3.60")
    assert (got.status, got["status"], got["cancel_reason"]) == (201, "filled", None)
    assert [(market.minutes(fill[DELTA]), fill[PRICE]) for fill in got["fills"]] == [
        ([(30, 90, 2)], "1.800000"), ([(0, 30, 2)], "3.000000"),
    ]  # fmt: skip
    assert (got["total"], got["hold"]) == ("6.600000", "0.000000")
    assert got[f"filled_average_{PRICE}"] == "2.200000"
    assert market.minutes(got[f"filled_{DELTA}"]) == [(0, 90, 2)]
    assert got["open_allocation_schedule_delta"] == []
    assert buyer.balance() == {"current": 93_400_000, "available": 93_400_000, "holds": 0}
    assert seller.balance() == {"current": 7_600_000, "available": 7_600_000, "holds": 0}
    assert seller.get(y)["status"] == "filled"
    rest = seller.get(x)
    assert rest["status"] == "partially_filled"
    assert market.minutes(rest["open_allocation_schedule_delta"]) == [(30, 60, 2)]
    assert buyer.owned() == [(0, 90, 2)]
    bought = buyer.call("GET", f"/v1/contracts?order={got['id']}").body["data"]
    assert sorted(one["amount"] for one in bought) == ["3.000000", "3.600000"]
    assert all(one["side"] == "buy" and one["seller_capacity"] is None for one in bought)
    assert all(one["order"] == got["id"] and one["status"] == "upcoming" for one in bought)
    sold = seller.call("GET", f"/v1/contracts/{bought[0]['id']}")
    assert (sold["side"], sold["buyer_capacity"], sold["workspace_id"]) == ("sell", None, seller.workspace_id)


def test_its_hold_is_what_the_limit_would_cost(market: Marketplace, seller: Trader) -> None:
    seller.ask(2, 0, 60, "3.00")
    seller.ask(2, 30, 90, "1.80")
    poor = market.trader(f"poor-{market.sku[5:]}", "10.799999")
    refused = poor.order("buy", 2, 0, 90, "3.60")
    assert (refused.status, refused.error["type"]) == (402, "payment_required")
    assert "10.800000" in refused.error["message"] and "10.799999" in refused.error["message"]
    assert poor.balance()["holds"] == 0
    assert market.call("POST", f"/v1/balances/{poor.workspace_id}/top_up", {"amount": "0.000001"}).status == 201
    assert poor.order("buy", 2, 0, 90, "3.60")["total"] == "6.600000"
    assert poor.balance() == {"current": 4_200_000, "available": 4_200_000, "holds": 0}


def test_its_limit_is_per_fill(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(2, 0, 60, "3.00")
    seller.ask(2, 30, 90, "1.80")
    got = buyer.order("buy", 2, 0, 90, "2.40")
    assert (got["status"], got["cancel_reason"], got["fills"]) == ("cancelled", "unfilled", [])
    assert buyer.balance() == {"current": 100_000_000, "available": 100_000_000, "holds": 0}


def test_its_mirror_sells(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    x, y = buyer.bid(2, 0, 60, "1.80"), buyer.bid(2, 30, 90, "3.00")
    assert (x["hold"], y["hold"]) == ("3.600000", "6.000000")
    assert buyer.balance()["holds"] == 9_600_000
    got = seller.order("sell", 2, 0, 90, "1.20")
    assert got["status"] == "filled"
    assert [(market.minutes(fill[DELTA]), fill[PRICE]) for fill in got["fills"]] == [
        ([(30, 90, 2)], "3.000000"), ([(0, 30, 2)], "1.800000"),
    ]  # fmt: skip
    assert (got["total"], got[f"filled_average_{PRICE}"]) == ("7.800000", "2.600000")
    rest = buyer.get(x)
    assert (rest["status"], rest["hold"]) == ("partially_filled", "1.800000")
    assert buyer.balance() == {"current": 92_200_000, "available": 90_400_000, "holds": 1_800_000}


def test_its_all_or_none_maker_is_used_whole(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    x, y = seller.ask(2, 0, 60, "3.00", allow_partial=False), seller.ask(2, 30, 90, "1.80")
    got = buyer.order("buy", 2, 0, 90, "3.60")
    assert (got["status"], got["total"]) == ("filled", "7.800000")
    assert seller.get(x)["status"] == "filled"
    assert market.minutes(seller.get(y)["open_allocation_schedule_delta"]) == [(30, 60, 2)]


def test_its_own_maker_is_skipped(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    giver = market.trader(f"giver-{market.sku[5:]}", "0.00")
    lent = seller.ask(2, 0, 60, "0.06")
    assert buyer.order("buy", 2, 0, 60, "0.06")["status"] == "filled"
    assert seller.get(lent)["status"] == "filled"
    own = buyer.ask(2, 0, 60, "3.00")
    seller.ask(2, 30, 90, "1.80")
    got = buyer.order("buy", 2, 0, 90, "3.60")
    assert (got["status"], got["cancel_reason"]) == ("cancelled", "unfilled")
    assert buyer.get(own)["status"] == "standing"
    assert giver.owned() == []


# --- prices ---


@pytest.mark.parametrize(
    ("typed", "echoed"),
    [("20.00", "19.999980"), ("2.50", "2.500020"), ("0.00003", "0.000060"), ("3.00", "3.000000"), ("0.06", "0.060000")],
)
def test_r2_rates_are_rounded_half_up_to_a_step(
    market: Marketplace, buyer: Trader, seller: Trader, typed: str, echoed: str
) -> None:
    got = buyer.bid(1, 0, 1, typed)
    assert (got[LIMIT], got["requested_limit_price"]) == (echoed, typed)
    assert micro(got["hold"]) * 60 == micro(echoed)


@pytest.mark.parametrize("typed", ["20", "", "-1.0", "1e3", "2,50", ".5", "5.", "nan", " 1.0", "0.00002", "0.0"])
def test_r2_nonsense_and_zero_bids_are_refused(market: Marketplace, buyer: Trader, typed: str) -> None:
    assert details(buyer.bid(1, 0, 1, typed)) == (422, "unprocessable_entity", LIMIT)


def test_r2_an_ask_may_be_free(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    free = seller.ask(1, 0, 60, "0.0")
    assert (free.status, free[LIMIT]) == (201, "0.000000")
    assert buyer.order("buy", 1, 0, 60, "1.00")["total"] == "0.000000"


# --- matching ---


def test_r10_best_price_then_first_come(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    second, first, third = (seller.ask(1, 0, 60, price) for price in ("2.00", "1.00", "2.00"))
    for number, expected in ((1, first), (2, second), (3, third)):
        assert buyer.order("buy", 1, 0, 60, "5.00")["status"] == "filled"
        states = [seller.get(one)["status"] for one in (first, second, third)]
        assert states.count("filled") == number
        assert seller.get(expected)["status"] == "filled"


def test_r14_a_partial_taker_keeps_what_it_got(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(2, 0, 60, "1.20")
    got = buyer.order("buy", 4, 0, 60, "2.40", allow_partial=True)
    assert (got["status"], got["cancel_reason"], got["total"]) == ("cancelled", "unfilled", "2.400000")
    assert market.minutes(got[f"filled_{DELTA}"]) == [(0, 60, 2)]
    assert (got["cancelled_at"], got["filled_at"]) == (market.now, market.now)
    assert buyer.balance()["holds"] == 0


def test_r14_the_rest_stands_and_is_filled_later(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(2, 0, 60, "1.20")
    got = buyer.bid(4, 0, 60, "2.40")
    assert (got["status"], got["hold"]) == ("partially_filled", "4.800000")
    late = seller.order("sell", 2, 0, 60, "1.20")
    assert (late["status"], late["total"]) == ("filled", "4.800000")
    done = buyer.get(got)
    assert (done["status"], done["total"], done[f"filled_average_{PRICE}"]) == ("filled", "7.200000", "1.800000")
    assert len(done["fills"]) == 2


def test_r7_all_or_none_and_immediate_are_the_defaults(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    seller.ask(1, 0, 60, "1.20")
    got = buyer.order("buy", 2, 0, 60, "2.40")
    assert (got["allow_standing"], got["allow_partial"], got["status"]) == (False, False, "cancelled")


def test_r5_only_free_time_can_be_sold(market: Marketplace, seller: Trader) -> None:
    assert seller.ask(6, 0, 60, "1.20").status == 201
    refused = seller.ask(3, 30, 60, "1.20")
    assert details(refused) == (422, "unprocessable_entity", DELTA)
    assert "1 free nodes" in refused.error["message"]
    assert seller.ask(2, 30, 60, "1.20").status == 201


# --- cancelling, clipping ---


def test_cancelling_releases_the_hold(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    got = buyer.bid(1, 0, 60, "1.20")
    assert buyer.balance()["holds"] == 1_200_000
    gone = buyer.call("DELETE", f"/v1/orders/{got['id']}")
    assert (gone.status, gone["status"], gone["cancel_reason"], gone["hold"]) == (200, "cancelled", "user", "0.000000")
    assert buyer.balance() == {"current": 100_000_000, "available": 100_000_000, "holds": 0}
    again = buyer.call("DELETE", f"/v1/orders/{got['id']}")
    assert (again.status, again["cancelled_at"]) == (200, gone["cancelled_at"])


def test_r16_the_clock_clips_resting_orders(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    bid, ask = buyer.bid(1, 0, 30, "0.60"), seller.ask(2, 5, 20, "3.00")
    assert bid["hold"] == "0.300000"
    market.advance(10)
    clipped = buyer.get(bid)
    assert (clipped["status"], clipped["hold"]) == ("standing", "0.190000")
    assert market.minutes(clipped["open_allocation_schedule_delta"]) == [(11, 30, 1)]
    assert market.minutes(seller.get(ask)["open_allocation_schedule_delta"]) == [(11, 20, 2)]
    assert buyer.balance()["holds"] == 190_000
    market.advance(30)
    ended = buyer.get(bid)
    assert (ended["status"], ended["cancel_reason"], ended["hold"]) == ("cancelled", "expired", "0.000000")
    assert seller.get(ask)["cancel_reason"] == "expired"
    assert buyer.balance() == {"current": 100_000_000, "available": 100_000_000, "holds": 0}


def test_r1_a_start_in_the_running_block_is_clipped(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    market.advance(2)
    seller.ask(1, 3, 60, "1.20")
    got = buyer.order("buy", 1, 2, 5, "1.20")
    assert got["status"] == "filled"
    assert market.minutes(got[DELTA]) == [(3, 5, 1)]
    old = buyer.order("buy", 1, 0, 5, "1.20")
    assert details(old) == (422, "unprocessable_entity", f"{DELTA}[0].start_at")


# --- the same request twice ---


def test_r6_an_idempotency_key_places_once(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    headers = {"Idempotency-Key": f"one-{market.sku}"}
    first = buyer.bid(1, 0, 60, "1.20", headers=headers)
    second = buyer.bid(3, 0, 90, "2.40", headers=headers)
    assert (first.status, second.status) == (201, 200)
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second["id"] == first["id"]
    assert buyer.balance()["holds"] == 1_200_000
    other = seller.ask(1, 0, 60, "9.00", headers=headers)
    assert other.status == 201, "keys of another workspace are other keys"


def test_r6_at_the_same_time_as_well(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    headers = {"Idempotency-Key": f"race-{market.sku}"}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: buyer.bid(1, 0, 60, "1.20", headers=headers), range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len({answer["id"] for answer in answers}) == 1
    assert buyer.balance()["holds"] == 1_200_000


def test_many_at_once_sell_nothing_twice(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    for _ in range(4):
        seller.ask(2, 0, 60, "1.20")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: buyer.order("buy", 1, 0, 60, "1.20"), range(12)))
    assert sorted(answer["status"] for answer in answers) == ["cancelled"] * 4 + ["filled"] * 8
    assert buyer.owned() == [(0, 60, 8)]
    assert buyer.balance() == {"current": 90_400_000, "available": 90_400_000, "holds": 0}
    assert seller.balance()["current"] == 1_000_000 + 9_600_000


# --- lists ---


def test_lists_filter_sort_and_page(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    made = [buyer.bid(1, start, 60, "0.60")["id"] for start in (30, 10, 20, 0)]
    buyer.call("DELETE", f"/v1/orders/{made[0]}")

    def ids(**query: object) -> list[str]:
        found = buyer.call("GET", "/v1/orders", query=query)
        assert found.status == 200, found.body
        return [row["id"] for row in found.body["data"]]

    assert ids() == made[::-1], "newest first, also within a second"
    assert ids(status="cancelled") == made[:1]
    assert ids(status=["cancelled", "standing"], sort_by="created_at") == made
    assert ids(side="sell") == []
    assert ids(sort_by="start_at") == [made[3], made[1], made[2], made[0]]
    assert ids(sort_by="-start_at") == [made[0], made[2], made[1], made[3]]
    assert ids(id=made[1:3], sort_by="start_at") == [made[1], made[2]]
    assert set(ids(capacity="main", instance_sku=market.sku)) == set(made)
    assert ids(created_after=market.now + 1) == []
    assert ids(created_before=market.now - 1) == []
    page = buyer.call("GET", "/v1/orders?limit=3&sort_by=start_at").body
    assert (page["has_more"], len(page["data"])) == (True, 3)
    rest = buyer.call(
        "GET", "/v1/orders", query={"limit": 3, "sort_by": "start_at", "starting_after": page["cursor"]}
    ).body
    assert ([row["id"] for row in rest["data"]], rest["has_more"], rest["cursor"]) == ([made[0]], False, None)
    back = buyer.call("GET", "/v1/orders", query={"limit": 2, "sort_by": "start_at", "ending_before": made[0]}).body
    assert [row["id"] for row in back["data"]] == [made[1], made[2]]
    wrong = buyer.call("GET", "/v1/orders?starting_after=cap_x")
    assert details(wrong) == (422, "unprocessable_entity", "starting_after")


# --- transfers ---


def test_transfers_move_free_time_of_one_account(market: Marketplace, seller: Trader) -> None:
    other = seller.call("POST", "/v1/capacities", {"name": "other", "tags": {"team": "a"}})
    seller.ask(6, 0, 60, "9.00")
    body = {
        "from_capacity": "main", "to_pool": other["id"], "instance_sku": market.sku, DELTA: [market.entry(2, 0, 60)],
    }  # fmt: skip
    headers = {"Idempotency-Key": f"move-{market.sku}"}
    moved = seller.call("POST", "/v1/capacity_transfers", body, headers=headers)
    assert (moved.status, moved["status"], moved["rejected_reason"]) == (201, "executed", None)
    assert moved["to_capacity"] == moved["to_pool"] == {"id": other["id"], "name": "other"}
    again = seller.call("POST", "/v1/pool_transfers", body, headers=headers)
    assert (again.status, again["id"], again["object"]) == (200, moved["id"], "pool_transfer")
    found = seller.call("GET", "/v1/capacities/other")
    assert market.minutes(found["allocation_schedule"]["total"]) == [(0, 60, 2)]
    refused = seller.call("POST", "/v1/capacity_transfers", body)
    assert (refused.status, refused["status"]) == (201, "rejected")
    assert "2 free nodes" in refused["rejected_reason"]
    listed = seller.call("GET", "/v1/capacity_transfers?status=rejected").body["data"]
    assert [row["id"] for row in listed] == [refused["id"]]
    assert (
        seller.call("GET", f"/v1/pool_transfers/{moved['id'].replace('cxfr_', 'pxfr_')}")["object"] == "pool_transfer"
    )


def test_transfers_stay_inside_an_account(market: Marketplace, seller: Trader, buyer: Trader) -> None:
    body = {"from_capacity": "main", "instance_sku": market.sku, DELTA: [market.entry(1, 0, 60)]}
    foreign = seller.call("POST", "/v1/capacity_transfers", {**body, "to_capacity": buyer.capacity})
    assert details(foreign) == (404, "not_found", "to_capacity")
    same = seller.call("POST", "/v1/capacity_transfers", {**body, "to_capacity": "main"})
    assert details(same) == (422, "unprocessable_entity", "to_capacity")
    operator = market.call(
        "POST", "/v1/capacity_transfers", {**body, "from_capacity": seller.capacity, "to_capacity": buyer.capacity}
    )
    assert operator.status == 403
