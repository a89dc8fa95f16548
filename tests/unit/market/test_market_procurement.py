"""R22, R23 and protected manual time: what a procurement buys, sells, takes back, and says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from market_stage import Stage

from nanopod.market.procure import Reconciled, check, expected_cost, reconcile, spot
from nanopod.model.errors import Invalid
from nanopod.model.money import Money, Rate
from nanopod.model.procurement import Procurement

WINDOW = 60


def wish(target: int | str = 4, **other: object) -> Procurement:
    base = Procurement("proc_1", "bob", "isku_test", target, Rate(20), Rate(10), WINDOW)  # type: ignore[arg-type]
    return replace(base, **other)  # type: ignore[arg-type]


def act(stage: Stage, procurement: Procurement, live: int = 0, spending: int | None = None) -> Reconciled:
    done = reconcile(stage.x, procurement, live, stage.ids(), spending)
    for outcome in done.outcomes:
        stage.done(outcome)
    return done


def opened(stage: Stage, side: str) -> list[tuple[int, int, int]]:
    mine = (one for one in stage.x.orders.values() if one.owner == "proc_1" and one.side == side)
    return sorted(run for one in mine for run in one.left)


def give(stage: Stage, who: str, start: int, end: int, nodes: int, *, auto: bool = False) -> None:
    stage.x.supply.add(((start, end, nodes),))
    stage.x.holdings[who].gain(((start, end, nodes),), auto=auto)


def test_r22_missing_time_is_bid_for_in_maximal_runs() -> None:
    stage = Stage()
    give(stage, "bob", 10, 20, 4)
    give(stage, "bob", 20, 40, 1)
    act(stage, wish())
    assert opened(stage, "buy") == [(0, 10, 4), (20, 40, 3), (40, 60, 4)]
    assert all(one.rate == 20 and not one.whole for one in stage.x.orders.values())
    assert act(stage, wish()).events == ()


def test_r22_target_node_count_follows_live_instances() -> None:
    stage = Stage()
    act(stage, wish("node_count"), live=3)
    assert opened(stage, "buy") == [(0, 60, 3)]


def test_r22_the_window_rolls_one_block_at_a_time() -> None:
    stage = Stage(minted=8)
    stage.ask("a", "north", 15, 0, 600, 8)
    assert act(stage, wish()).status.code == "running"
    stage.clock(1)
    done = act(stage, wish())
    assert [fill.shape for outcome in done.outcomes for fill in outcome.fills] == [((60, 61, 4),)]
    assert stage.owned("bob") == ((1, 61, 4),)


def test_r22_a_new_price_replaces_open_orders() -> None:
    stage = Stage()
    act(stage, wish())
    done = act(stage, wish(max_buy=Rate(21)))
    assert len(done.events) == 2 and opened(stage, "buy") == [(0, 60, 4)]
    assert {one.rate for one in stage.x.orders.values()} == {21}


def test_r22_too_many_bids_go_newest_first_and_the_good_part_comes_back() -> None:
    stage = Stage()
    act(stage, wish(2))
    stage.clock(1)
    act(stage, wish(4))
    assert opened(stage, "buy") == [(1, 60, 2), (1, 60, 2), (60, 61, 4)]
    first = next(iter(stage.x.orders))
    act(stage, wish(2))
    assert opened(stage, "buy") == [(1, 60, 2), (60, 61, 2)] and first in stage.x.orders


def test_r22_spare_time_is_offered_and_withdrawn_when_it_is_needed() -> None:
    stage = Stage()
    give(stage, "bob", 0, 60, 6, auto=True)
    act(stage, wish(2))
    assert opened(stage, "sell") == [(0, 60, 4)]
    assert {one.rate for one in stage.x.orders.values()} == {10}
    act(stage, wish(5))
    assert opened(stage, "sell") == [(0, 60, 1)]
    act(stage, wish(7))
    assert opened(stage, "sell") == [] and opened(stage, "buy") == [(0, 60, 1)]


def test_r22_without_balance_the_order_is_left_out_and_retried() -> None:
    stage = Stage(minted=8)
    done = act(stage, wish(), spending=4 * 60 * 20 - 1)
    assert done.events == () and done.status.state == "warning"
    assert done.status.message.startswith("insufficient_balance: ") and "$0.004800" in done.status.message
    assert act(stage, wish(), spending=4 * 60 * 20).events


def test_r22_each_order_is_matched_before_the_next_so_unspent_holds_help() -> None:
    stage = Stage(minted=8)
    give(stage, "bob", 20, 40, 4)
    stage.ask("a", "north", 1, 0, 60, 4)
    # Each of the two runs holds 4 x 20 x 20 = 1,600, and costs 80 once it is matched.
    done = act(stage, wish(), spending=1_700)
    assert len(done.events) == 2 and done.status.code == "running"


def test_r22_disabling_cancels_and_says_so() -> None:
    stage = Stage()
    act(stage, wish())
    done = act(stage, wish(enabled=False))
    assert not stage.x.orders and done.status.code == "disabled"


def test_r22_a_shorter_window_takes_back_what_reaches_beyond_it() -> None:
    stage = Stage()
    act(stage, wish())
    act(stage, wish(managed_window_minutes=30))
    assert opened(stage, "buy") == [(0, 30, 4)]


def test_r22_short_runs_at_the_far_edge_wait_for_the_quantum() -> None:
    stage = Stage(minted=8)
    stage.ask("a", "north", 15, 0, 600, 8)
    steady = wish(extend_quantum_minutes=10)
    act(stage, steady)
    for block in range(1, 10):
        stage.clock(block)
        assert act(stage, steady).events == ()
    stage.clock(10)
    assert len(act(stage, steady).events) == 1 and stage.owned("bob") == ((10, 70, 4),)
    # A run inside the first quantum is bought however short it is.
    stage = Stage()
    act(stage, wish(managed_window_minutes=5, extend_quantum_minutes=10))
    assert opened(stage, "buy") == [(0, 5, 4)]


def test_r22_status_names_the_price_or_the_lack_of_supply() -> None:
    stage = Stage(minted=8)
    assert act(stage, wish()).status.code == "no_supply"
    stage.ask("dear", "north", 50_000, 0, 60, 8)
    said = act(stage, wish()).status
    assert said.code == "price_above_limit" and "3.000000" in said.message


@pytest.mark.parametrize(
    "bad",
    [
        {"managed_window_minutes": 0},
        {"managed_window_minutes": 129_601},
        {"target": -1},
        {"max_buy": Rate(0)},
        {"extend_quantum_minutes": 0},
    ],
)
def test_r22_settings_out_of_range_are_refused(bad: dict[str, object]) -> None:
    check(wish())
    with pytest.raises(Invalid):
        check(wish(**bad))


def test_r23_a_spot_deployment_sells_at_the_smallest_price_for_an_hour_ahead() -> None:
    inner = spot("proc_1", "bob", "isku_test", Rate(20))
    assert inner.target == "node_count" and inner.managed_window_minutes == 60 and inner.protect_manual
    assert inner.min_sell.dollars_per_node_hour() == "0.000060"
    assert expected_cost(inner, 3) == Money(3 * 60 * 20)


def six() -> Stage:
    """Six owned: four bought by hand, two by automation."""
    stage = Stage()
    give(stage, "bob", 0, 60, 4)
    give(stage, "bob", 0, 60, 2, auto=True)
    return stage


def test_protect_manual_example_of_section_5_1() -> None:
    stage = six()
    done = act(stage, wish(2))
    assert opened(stage, "sell") == [(0, 60, 2)]
    assert done.status.message == "kept_manual: 2 manually bought nodes above target"
    stage = six()
    act(stage, wish(2, protect_manual=False))
    assert opened(stage, "sell") == [(0, 60, 4)]
    for protect in (True, False):
        stage = Stage()
        give(stage, "bob", 0, 60, 4)
        act(stage, wish(6, protect_manual=protect))
        assert opened(stage, "buy") == [(0, 60, 2)]


def test_protect_manual_turned_on_takes_sells_back() -> None:
    stage = six()
    act(stage, wish(2, protect_manual=False))
    act(stage, wish(2))
    assert opened(stage, "sell") == [(0, 60, 2)]


def test_protect_manual_sells_reserve_manual_time_first() -> None:
    stage = six()
    stage.ask("by hand", "bob", 99, 0, 60, 5)  # four manual, one auto
    holding = stage.x.holdings["bob"]
    assert holding.auto_free(0, 60).shape() == ((0, 60, 1),)
    act(stage, wish(0))
    assert opened(stage, "sell") == [(0, 60, 1)]


def test_protect_manual_fills_spend_the_right_kind_of_time() -> None:
    stage = six()
    act(stage, wish(3))
    stage.buy("t", "ann", 99, 0, 60, 1)
    holding = stage.x.holdings["bob"]
    assert (holding.manual.shape(), holding.auto.shape()) == (((0, 60, 4),), ((0, 60, 1),))
    stage.ask("by hand", "bob", 1, 0, 60, 4)
    stage.buy("u", "ann", 1, 0, 60, 4)
    assert (holding.manual.shape(), holding.auto.shape()) == ((), ((0, 60, 1),))
    act(stage, wish(2))
    stage.ask("more", "ann", 5, 0, 60, 1)
    assert holding.auto.shape() == ((0, 60, 2),)
