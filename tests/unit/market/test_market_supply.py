"""S1 to S10 and R18: what providers declare, offer, earn and owe."""

from __future__ import annotations

from dataclasses import replace

import pytest
from market_stage import Stage, money

from nanopod.market.events import Burn, Cancel, Configure, Mint, Place
from nanopod.market.offers import (
    OfferPlan,
    check,
    declared,
    default_floor,
    earned,
    far_edge,
    floor_at,
    loss_of,
    non_delivery,
    plan_offers,
    refund,
    rented_floor,
    repartition,
    supply_change,
)
from nanopod.market.shape import minus, rect, total, volume
from nanopod.model.errors import Invalid
from nanopod.model.money import Money, Rate
from nanopod.model.procurement import OfferPolicy

DAY = 1440
POLICY = OfferPolicy("north", "north", "isku_test", Rate(100), horizon_minutes=600, quantum_minutes=60)


def offer(stage: Stage, policy: OfferPolicy = POLICY, who: str = "north", **more: object) -> OfferPlan:
    """Plan and carry out."""
    own = list(stage.x.of_capacity[who].values())
    plan = plan_offers(policy, stage.x.holdings[who], own, stage.x.block, **more)  # type: ignore[arg-type]
    for gone in plan.cancels:
        stage.done(stage.x.apply(Cancel(gone.order_id, "automation")))
    for order in plan.orders:
        place = Place(next(stage.ids()), who, order.side, order.rate, order.shape, True, True, owner="north")
        stage.done(stage.x.apply(place))
    return plan


def asks(stage: Stage, who: str = "north") -> list[tuple[int, tuple[tuple[int, int, int], ...]]]:
    return [(order.rate, order.left) for order in stage.x.of_capacity[who].values()]


def supply(stage: Stage, nodes: int, policy: OfferPolicy = POLICY, sold: int = 0) -> None:
    """Declare nodes at this moment."""
    wanted = declared(policy, nodes, stage.x.block)
    minted = stage.x.supply.shape(stage.x.block)
    change = supply_change(wanted, minted, stage.x.holdings["north"], stage.x.block)
    for run in change.mint:
        stage.x.apply(Mint("north", (run,)))
    for run in change.burn:
        stage.x.apply(Burn("north", (run,)))


def test_r18_every_node_block_of_supply_belongs_to_exactly_one_capacity() -> None:
    stage = Stage(minted=3)
    stage.ask("a", "north", 5, 0, 60, 3)
    stage.buy("b", "bob", 5, 10, 50, 2)
    holdings = [holding.owned() for holding in stage.x.holdings.values()]
    assert total(holdings) == stage.x.supply.shape() == ((0, 600, 6),)
    with pytest.raises(Invalid):
        stage.x.apply(Burn("bob", ((0, 20, 1),)))


@pytest.mark.parametrize(
    "bad",
    [
        {"horizon_minutes": 59},
        {"horizon_minutes": 129_601},
        {"quantum_minutes": 0},
        {"max_nodes": 0},
        {"quiet_hours": ((7, 7),)},
    ],
)
def test_s1_settings_out_of_range_are_refused(bad: dict[str, object]) -> None:
    check(POLICY)
    with pytest.raises(Invalid):
        check(replace(POLICY, **bad))  # type: ignore[arg-type]


def test_s1_a_provider_has_its_own_account_so_its_machine_can_serve_its_owner() -> None:
    stage = Stage(minted=1)
    stage.ask("a", "north", 0, 0, 60, 1)
    assert stage.buy("b", "ann", 1, 0, 60, 1).fills[0].amount == 0


def test_s2_repartitioning_takes_unsold_minutes_only() -> None:
    stage = Stage()
    stage.mint("north", 0, 60, 2)
    stage.ask("a", "north", 5, 0, 30, 1)
    stage.buy("b", "bob", 5, 0, 30, 1)
    change = repartition(((0, 60, 2),), ((0, 30, 1), (30, 60, 1)), stage.x.holdings["north"])
    assert change.burn == ((0, 30, 1), (30, 60, 2)) and change.mint == ((30, 60, 1),)
    stage.x.apply(Burn("north", change.burn))
    assert stage.x.supply.shape() == ((0, 30, 1),)


def test_s3_a_node_adds_one_for_each_block_outside_quiet_hours_and_maintenance() -> None:
    quiet = replace(POLICY, horizon_minutes=2 * DAY, quiet_hours=((22, 6),))
    day = declared(quiet, 2, 0)
    assert day == ((6 * 60, 22 * 60, 2), (30 * 60, 46 * 60, 2))
    assert declared(POLICY, 2, 0, maintenance=[(60, 120, 1)]) == ((0, 60, 2), (60, 120, 1), (120, 600, 2))
    assert declared(replace(POLICY, max_nodes=1), 5, 0) == ((0, 600, 1),)
    assert declared(replace(POLICY, enabled=False), 5, 0) == ()


def test_s3_withdrawing_takes_unsold_blocks_only() -> None:
    stage = Stage()
    supply(stage, 2)
    offer(stage)
    stage.buy("b", "bob", 100, 0, 60, 2)
    gone = supply_change(declared(POLICY, 1, 0), stage.x.supply.shape(), stage.x.holdings["north"], 0)
    assert gone.mint == () and gone.burn == ((60, 600, 1),)
    offer(stage, leaving=gone.burn)
    stage.x.apply(Burn("north", gone.burn))
    assert stage.owned("north") == ((60, 600, 1),) and stage.owned("bob") == ((0, 60, 2),)


def test_s4_free_time_is_on_sale_at_the_floor_without_a_hold() -> None:
    stage = Stage()
    supply(stage, 2)
    outcome = offer(stage)
    assert asks(stage) == [(100, ((0, 600, 2),))] and len(outcome.orders) == 1
    again = offer(stage)
    assert again.cancels == again.orders == ()
    stage.buy("b", "bob", 100, 10, 20, 1)
    assert offer(stage).orders == ()
    assert asks(stage) == [(100, ((0, 10, 2), (10, 20, 1), (20, 600, 2)))]


def test_s4_an_old_floor_is_replaced_and_own_use_is_kept() -> None:
    stage = Stage()
    supply(stage, 2)
    offer(stage)
    offer(stage, replace(POLICY, floor=Rate(120)))
    assert asks(stage) == [(120, ((0, 600, 2),))]
    offer(stage, replace(POLICY, floor=Rate(120)), kept=((0, 60, 1),))
    assert sorted(asks(stage)) == [(120, ((0, 60, 1),)), (120, ((60, 600, 2),))]
    offer(stage, replace(POLICY, enabled=False))
    assert asks(stage) == []


def test_s4_more_asks_than_wanted_go_newest_first() -> None:
    stage = Stage()
    stage.mint("north", 0, 600, 2)
    stage.ask("old", "north", 100, 0, 600, 1)
    stage.ask("new", "north", 100, 0, 600, 1)
    plan = offer(stage, kept=((0, 600, 1),))
    assert [gone.order_id for gone in plan.cancels] == ["new"]


def test_s5_the_far_edge_grows_by_whole_quanta() -> None:
    assert [far_edge(POLICY, block) for block in (0, 1, 59, 60)] == [600, 600, 600, 660]
    week = replace(POLICY, horizon_minutes=7 * DAY)
    stage = Stage()
    for hour in range(7 * 24 + 5):
        if hour:
            stage.clock(hour * 60)
        supply(stage, 1, week)
        assert len(offer(stage, week).orders) == 1
    assert len(asks(stage)) == 168


def test_s5_too_many_fragments_are_posted_anew() -> None:
    stage = Stage()
    stage.mint("north", 0, 600, 1)
    for k in range(41):  # 4 x 600 / 60 = 40
        stage.ask(f"f{k}", "north", 100, 10 * k, 10 * k + 10, 1)
    plan = offer(stage)
    assert len(plan.cancels) == 41 and asks(stage) == [(100, ((0, 600, 1),))]
    assert offer(stage).cancels == ()


def test_s6_floors_by_the_hour_cut_the_offers() -> None:
    tariff = replace(POLICY, floor_by_hour={0: Rate(50), 1: Rate(50), 2: Rate(70)})
    assert [floor_at(tariff, block).micro_per_block for block in (0, 119, 120, 180, DAY)] == [50, 50, 70, 100, 50]
    stage = Stage()
    supply(stage, 1, tariff)
    offer(stage, tariff)
    assert sorted(asks(stage)) == [(50, ((0, 120, 1),)), (70, ((120, 180, 1),)), (100, ((180, 600, 1),))]
    assert offer(stage, tariff).cancels == ()
    assert not stage.buy("b", "bob", 49, 0, 60, 1).fills  # nothing is sold below the floor


def test_s6_default_floors_cover_power_or_rent() -> None:
    # 700 W at $0.30 per kWh is $0.21 an hour; with 10 % on top 0.231, which is 3,850 steps of 60 micro-dollars.
    assert default_floor(700, Money.parse("0.30"), 1000) == Rate(3_850)
    assert default_floor(0, Money.parse("0.30")) == Rate(0)
    assert rented_floor(Money.parse("2.00"), 500) == Rate(35_000)
    assert rented_floor(Money.parse("0.000061"), 0) == Rate(2)  # rounded up: never below cost


def test_s6_an_elastic_fleet_offers_what_it_could_rent_after_its_lead_and_not_too_far_ahead() -> None:
    fleet = replace(POLICY, elastic=True, max_nodes=5, lead_s=601, ahead_minutes_max=300)
    assert declared(fleet, 0, 0) == ((11, 300, 5),)
    stage = Stage()
    supply(stage, 0, fleet)
    offer(stage, fleet)
    assert asks(stage) == [(100, ((11, 300, 5),))]


def test_s7_a_lone_user_gets_compute_at_floor_zero_without_fees() -> None:
    free = replace(POLICY, floor=Rate(0))
    stage = Stage()
    supply(stage, 1, free)
    offer(stage, free)
    outcome = stage.buy("b", "ann", 1, 0, 600, 1)
    assert money(outcome, "ann", "buy") == 0 and stage.owned("ann") == ((0, 600, 1),)


def test_s8_unsold_blocks_go_first_and_idle_nodes_take_over() -> None:
    supplied, unsold = rect(0, 60, 4), rect(0, 60, 2)
    assert non_delivery(supplied, unsold, 2, 0) == ()
    assert non_delivery(supplied, unsold, 1, 0) == ((0, 10, 1),)  # the next ten blocks, rolling


def test_s8_lost_node_blocks_are_taken_and_refunded_exactly() -> None:
    stage = Stage()
    stage.x.apply(Configure(fee_flat=1, fee_bps=333))
    stage.mint("north", 0, 60, 2)
    stage.ask("a", "north", 1_000, 0, 60, 1)
    stage.ask("c", "north", 2_000, 0, 60, 1)
    fills = stage.buy("b", "bob", 9_999, 0, 60, 2).fills
    stage.ask("resale", "bob", 9_999, 0, 60, 1)
    loss = loss_of("bob", ((0, 10, 2),), stage.x.holdings["bob"], list(stage.x.of_capacity["bob"].values()))
    assert [gone.order_id for gone in loss.cancels] == ["resale"]
    stage.cancel("resale")
    stage.x.apply(Burn("bob", loss.shape))
    assert stage.x.supply.shape() == ((10, 60, 2),)
    lines, uncovered = refund(((0, 10, 1),), fills)
    assert uncovered == () and [line.micro for line in lines if line.account_id == "bob"] == [20_000]  # newest first
    assert sum(line.micro for line in lines) == 0
    # Refunding a whole contract in pieces gives back exactly what it cost, fee included.
    done: dict[int, int] = {}
    back = {"bob": 0, "north": 0, "platform": 0}
    for start in range(0, 60, 7):
        part = rect(start, min(60, start + 7), 1)
        lines, _ = refund(part, fills[1:], done)
        done[2] = done.get(2, 0) + volume(part)
        for line in lines:
            back[line.account_id] += line.micro
    assert back == {"bob": fills[1].amount, "north": fills[1].fee - fills[1].amount, "platform": -fills[1].fee}
    assert refund(((100, 110, 1),), fills) == ([], ((100, 110, 1),))


def test_s9_partners_sell_in_a_market_of_their_own() -> None:
    ours, partner = Stage(minted=1), Stage(minted=1)
    partner.x.sku_id = "isku_partner"
    partner.ask("p", "north", 1, 0, 60, 1)
    assert not ours.buy("b", "bob", 9, 0, 60, 1).fills
    assert partner.buy("b", "bob", 9, 0, 60, 1).fills


def test_s10_revenue_is_released_as_it_is_delivered_and_exact_at_the_end() -> None:
    assert [earned(1_001, 60, done) for done in (0, 1, 30, 59, 60)] == [0, 16, 500, 984, 1_001]


def test_the_book_is_never_empty_while_a_provider_has_free_time() -> None:
    stage = Stage()
    for block in range(0, 240, 7):
        if block:
            stage.clock(block)
        supply(stage, 2)
        offer(stage)
        free = stage.x.holdings["north"].free.shape(block, far_edge(POLICY, block))
        assert free == ()
        stage.buy(f"b{block}", "bob", 100, block, block + 30, 1, partial=True)
    assert volume(minus(stage.x.supply.shape(), stage.owned("north"))) > 0
