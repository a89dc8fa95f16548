"""R1 to R7, R15 and R16: what an order must be, what it holds, what it costs, what the clock takes from it."""

from __future__ import annotations

import pytest
from market_stage import Stage, last, money

from nanopod.market.boundary import STEPS, due, in_turn
from nanopod.market.events import Configure, Open
from nanopod.market.record import average_price, contract_of, posting_of, updated
from nanopod.market.shape import FOREVER, from_schedule, to_schedule
from nanopod.market.terms import Fees, admit_window, blocks_of, hold_of, next_block, parse_rate, rate_of_total
from nanopod.model.errors import Conflict, Denied, Invalid, NotFound, PaymentRequired
from nanopod.model.money import Money, Rate
from nanopod.model.order import Order
from nanopod.model.procurement import Procurement
from nanopod.model.schedule import Entry, Schedule, Window


def test_r1_now_means_the_next_whole_block() -> None:
    assert next_block(0) == 1
    assert next_block(59.9) == 1
    assert next_block(60) == 2
    assert next_block(61, 15) == 5


def test_r1_a_start_up_to_one_block_ago_is_clipped_and_an_older_one_refused() -> None:
    assert admit_window(120, 600, 2, now=130) == ((3, 10, 2),)
    assert admit_window(60, 600, 2, now=120) == ((3, 10, 2),)
    assert admit_window(600, 660, 1, now=130) == ((10, 11, 1),)
    with pytest.raises(Invalid, match="start_at: 60 is past; the next block starts at 180"):
        admit_window(60, 600, 2, now=130)


@pytest.mark.parametrize(
    ("start", "end", "nodes", "field"),
    [
        (61, 600, 1, "start_at"),
        (120, 601, 1, "end_at"),
        (600, 600, 1, "end_at"),
        (600, 540, 1, "end_at"),
        (120, 180, 1, "end_at"),  # nothing is left after the clip
        (600, 600 + 3 * 365 * 86_400 + 60, 1, "end_at"),
        (600, 660, 0, "node_count"),
        (600, 660, 1025, "node_count"),
    ],
)
def test_r1_windows_that_are_refused_name_their_field(start: int, end: int, nodes: int, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        admit_window(start, end, nodes, now=130)
    assert caught.value.field == field


def test_r2_prices_round_half_up_to_a_step_and_are_echoed() -> None:
    assert parse_rate("20.00", "buy").dollars_per_node_hour() == "19.999980"
    assert parse_rate("2.50", "buy").dollars_per_node_hour() == "2.500020"
    assert parse_rate("0.000030", "buy") == Rate(1)  # a half goes up
    assert parse_rate("0.000150", "sell") == Rate(3)  # also where the even neighbour is below
    assert parse_rate("3.00", "sell") == Rate(50_000)


def test_r2_a_rate_of_zero_sells_but_does_not_buy() -> None:
    assert parse_rate("0.00001", "sell") == Rate(0)
    with pytest.raises(Invalid, match=r"rounds to 0; a buy offers at least 0\.000060"):
        parse_rate("0.00001", "buy")
    with pytest.raises(Invalid, match="with a point"):
        parse_rate("20", "buy")
    stage = Stage(minted=1)
    stage.ask("free", "north", 0, 0, 10, 1)
    assert stage.buy("b", "bob", 1, 0, 10, 1).fills[0].amount == 0
    with pytest.raises(Invalid):
        stage.buy("c", "bob", 0, 0, 10, 1)


def test_r2_a_total_becomes_a_rate_rounded_down() -> None:
    rate = rate_of_total(Money.parse("10.00"), 180)
    assert rate == Rate(55_555)
    assert rate.amount(180) <= Money.parse("10.00") < Rate(rate.micro_per_block + 1).amount(180)


def test_r3_money_is_whole_micro_dollars_and_spending_power_bounds_a_hold() -> None:
    stage = Stage(minted=5)
    outcome = stage.order("b", "bob", "buy", 60_000, 0, 90, 2, standing=True, spending=10_800_000)
    assert all(type(line.micro) is int for line in outcome.lines)
    assert posting_of(outcome.lines[0]).amount == Money.parse("10.80")


def test_r4_a_buy_holds_limit_times_node_blocks_and_402_beyond_spending_power() -> None:
    assert hold_of(60_000, ((0, 90, 2),)) == 10_800_000
    assert hold_of(333_333, ((0, 4 * 1440, 1),)) == 1_919_998_080  # 4 nodes x 24 h, limit typed as 20.00
    stage = Stage()
    before = stage.x.digest()
    with pytest.raises(PaymentRequired, match=r"holds \$10\.800000, available are \$10\.799999"):
        stage.order("b", "bob", "buy", 60_000, 0, 90, 2, spending=10_799_999)
    assert stage.x.digest() == before
    outcome = stage.bid("b", "bob", 60_000, 0, 90, 2)
    assert money(outcome, "bob", "hold", "release") == 10_800_000 == stage.x.orders["b"].hold
    assert money(stage.cancel("b"), "bob", "release") == -10_800_000


def test_r5_nobody_sells_what_is_not_owned_or_already_on_sale() -> None:
    stage = Stage()
    stage.mint("north", 0, 60, 3)
    stage.ask("first", "north", 5, 10, 30, 2)
    with pytest.raises(Invalid, match="north lacks 1 free nodes in blocks 20 to 30"):
        stage.ask("second", "north", 5, 20, 40, 2)
    stage.ask("third", "north", 5, 20, 40, 1)
    stage.cancel("first")
    stage.ask("fourth", "north", 5, 20, 40, 2)
    with pytest.raises(Invalid, match="lacks"):
        stage.ask("ghost", "ann", 5, 0, 10, 1)


def test_r5_originating_capacities_do_not_buy_and_read_only_ones_do_nothing() -> None:
    stage = Stage(minted=1)
    stage.x.apply(Open("system", "system", "read_only"))
    with pytest.raises(Invalid, match="originating cannot buy"):
        stage.buy("b", "north", 5, 0, 10, 1)
    for side in ("buy", "sell"):
        with pytest.raises(Invalid, match=f"read_only cannot {side}"):
            stage.order("s", "system", side, 5, 0, 10, 1)
    with pytest.raises(NotFound):
        stage.buy("b", "nobody", 5, 0, 10, 1)


def test_r6_an_open_order_id_places_nothing_again() -> None:
    stage = Stage()
    stage.bid("b", "bob", 5, 0, 10, 1)
    before = stage.x.digest()
    with pytest.raises(Conflict):
        stage.bid("b", "bob", 5, 0, 10, 1)
    assert stage.x.digest() == before


def test_r7_the_default_is_all_or_none_and_immediate() -> None:
    stage = Stage()
    stage.mint("north", 0, 60, 1)
    stage.ask("a", "north", 5, 0, 60, 1)
    outcome = stage.buy("b", "bob", 5, 0, 60, 2)
    assert last(outcome) == ("cancelled", "unfilled")
    assert not outcome.fills and not stage.x.orders.get("b") and stage.left("a") == ((0, 60, 1),)
    assert money(outcome, "bob", "hold", "release") == 0


def test_r15_the_seller_pays_flat_and_bps_from_the_realised_price() -> None:
    assert Fees(flat=3, bps=250).of(1_000_001, 60) == 180 + 25_000
    stage = Stage(minted=1)
    stage.x.apply(Configure(fee_flat=3, fee_bps=250))
    stage.ask("a", "north", 1_000, 0, 60, 1)
    outcome = stage.buy("b", "bob", 9_999, 0, 60, 1)
    assert outcome.fills[0].fee == 180 + 1_500
    assert money(outcome, "north", "sell", "fee") == 60_000 - 1_680
    assert money(outcome, "platform", "fee") == 1_680
    assert money(outcome, "bob", "buy", "fee") == -60_000
    assert money(outcome, "north", "hold") == 60_000 - 1_680  # a provider earns as it delivers


def test_r15_resellers_are_paid_at_the_fill() -> None:
    stage = Stage(minted=1)
    stage.ask("a", "north", 1_000, 0, 60, 1)
    stage.buy("b", "bob", 9_999, 0, 60, 1)
    stage.ask("again", "bob", 2_000, 0, 60, 1)
    assert money(stage.buy("c", "cat", 2_000, 0, 60, 1), "bob", "hold") == 0


def test_r16_the_clock_takes_begun_blocks_and_releases_what_they_held() -> None:
    stage = Stage(minted=2)
    stage.bid("b", "bob", 1_000, 0, 10, 2)
    stage.ask("a", "north", 5_000, 2, 4, 1)
    stage.ask("later", "north", 5_000, 50, 60, 1)
    outcome = stage.clock(3)
    assert money(outcome, "bob", "release") == -3 * 2 * 1_000
    assert stage.left("b") == ((3, 10, 2),) and stage.left("a") == ((3, 4, 1),)
    assert stage.x.orders["b"].hold == 14_000
    assert stage.x.orders["b"].rate == 1_000 and "later" not in {change.order_id for change in outcome.changes}
    outcome = stage.clock(4)
    assert {(c.order_id, c.status, c.reason) for c in outcome.changes} == {
        ("a", "cancelled", "expired"),
        ("b", "standing", None),
    }
    assert money(stage.clock(20), "bob", "release") == -6 * 2 * 1_000
    assert set(stage.x.orders) == {"later"}
    with pytest.raises(Invalid, match="does not go back"):
        stage.clock(19)


def test_r16_a_partly_filled_order_keeps_its_fills_when_it_expires() -> None:
    stage = Stage(minted=1)
    stage.ask("a", "north", 1_000, 0, 10, 1)
    stage.bid("b", "bob", 1_000, 0, 20, 1)
    outcome = stage.clock(20)
    assert [(c.status, c.filled, c.reason) for c in outcome.changes] == [("cancelled", 10, "expired")]


def test_transfers_move_free_time_between_capacities_of_one_account() -> None:
    stage = Stage(minted=2)
    stage.x.apply(Open("ann2", "ann"))
    stage.ask("a", "north", 5, 0, 60, 2)
    stage.buy("b", "ann", 5, 0, 60, 2)
    stage.ask("resale", "ann", 9, 0, 30, 1)
    with pytest.raises(Invalid, match="lacks 1 free nodes in blocks 0 to 30"):
        stage.transfer("ann", "ann2", 0, 60, 2)
    stage.transfer("ann", "ann2", 0, 60, 1)
    assert stage.owned("ann2") == ((0, 60, 1),) == stage.x.holdings["ann2"].manual.shape()
    with pytest.raises(Denied):
        stage.transfer("ann2", "bob", 0, 60, 1)


def test_r24_boundaries_are_passed_one_by_one_and_procurements_go_oldest_first() -> None:
    assert list(due(5, 60 * 8 + 1)) == [6, 7, 8, 9]
    assert list(due(9, 60 * 8 + 1)) == []
    assert STEPS == (
        "clip", "supply", "quota", "deployments", "procurements", "quota", "early_starts", "warnings",
    )  # fmt: skip
    young = Procurement("proc_1", "c", "s", 1, Rate(1), Rate(1), created_at=5.0)
    old = Procurement("proc_2", "c", "s", 1, Rate(1), Rate(1), created_at=4.0)
    assert in_turn([young, old]) == [old, young]


def test_r24_one_jump_clips_like_many_small_steps() -> None:
    stages = Stage(minted=9), Stage(minted=9)
    for stage in stages:
        stage.bid("b", "bob", 7, 0, 40, 2)
        stage.ask("a", "north", 9, 5, 25, 2)
    released = sum(money(stages[0].clock(block), "bob", "release") for block in range(1, 31))
    assert released == money(stages[1].clock(30), "bob", "release")
    assert stages[0].x.canonical()["orders"] == stages[1].x.canonical()["orders"]


def test_orders_and_contracts_are_recorded_in_seconds_and_dollars() -> None:
    stage = Stage(minted=2)
    stage.ask("x", "north", 50_000, 0, 60, 2)
    stage.ask("y", "south", 30_000, 30, 90, 2)
    order = Order("b", "w", "bob", "bob", "isku_test", "buy", to_schedule(((0, 90, 2),)), Rate(60_000))
    outcome = stage.buy("b", "bob", 60_000, 0, 90, 2)
    contracts = [contract_of(fill, "isku_test", f"cont_{fill.number}", 0.0) for fill in outcome.fills]
    order = updated(order, outcome.changes[-1], outcome.fills)
    assert order.status == "filled" and order.filled == Schedule((Entry(Window(0, 5400), 2),))
    assert str(average_price(order, contracts)) == "2.200000"
    assert average_price(order, []) is None


def test_shapes_and_schedules_are_the_same_thing() -> None:
    schedule = Schedule((Entry(Window(60, 180), 2), Entry(Window(240, None), 1)))
    assert from_schedule(schedule) == ((1, 3, 2), (4, FOREVER, 1))
    assert to_schedule(from_schedule(schedule)) == schedule
    assert blocks_of(5, 15) == 20
    with pytest.raises(Invalid, match="not aligned"):
        from_schedule(Schedule((Entry(Window(61, 180), 2),)))
