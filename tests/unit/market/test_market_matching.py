"""R8 to R14 and R17: who trades with whom, in what order, at whose price."""

from __future__ import annotations

import pytest
from market_stage import Stage, last, money, trades

from nanopod.market import match
from nanopod.market.shape import volume
from nanopod.model.errors import NotFound


def example(*, x_whole: bool = False, x_of: str = "north") -> Stage:
    """X = 2 nodes [0,60) at 3.00, Y = 2 nodes [30,90) at 1.80."""
    stage = Stage(minted=10)
    if x_of == "bob":
        stage.ask("seed", "north", 1, 0, 60, 2)
        stage.buy("seeded", "bob", 1, 0, 60, 2)
    stage.ask("X", x_of, 50_000, 0, 60, 2, partial=not x_whole)
    stage.ask("Y", "south", 30_000, 30, 90, 2)
    return stage


def test_worked_example_r10_to_r13() -> None:
    stage = example()
    outcome = stage.buy("t", "bob", 60_000, 0, 90, 2)
    assert money(outcome, "bob", "hold") == 10_800_000
    assert trades(outcome) == [("Y", ((30, 90, 2),), 3_600_000), ("X", ((0, 30, 2),), 3_000_000)]
    assert money(outcome, "bob", "buy") == -6_600_000
    assert money(outcome, "bob", "release") + money(outcome, "bob", "hold") == 0  # 4.20 of it unspent
    assert last(outcome) == ("filled", None)
    assert "Y" not in stage.x.orders
    assert stage.left("X") == ((30, 60, 2),) and stage.x.orders["X"].status == "partially_filled"


def test_worked_example_the_limit_holds_per_fill_not_on_average() -> None:
    stage = example()
    outcome = stage.buy("t", "bob", 40_000, 0, 90, 2)
    assert not outcome.fills and last(outcome) == ("cancelled", "unfilled")


def test_worked_example_mirrored_for_a_sell() -> None:
    stage = Stage(minted=10)
    stage.bid("X", "ann", 30_000, 0, 60, 2)
    stage.bid("Y", "bob", 50_000, 30, 90, 2)
    outcome = stage.order("t", "north", "sell", 20_000, 0, 90, 2)
    assert trades(outcome) == [("Y", ((30, 90, 2),), 6_000_000), ("X", ((0, 30, 2),), 1_800_000)]
    assert money(outcome, "north", "sell") == 7_800_000
    assert stage.left("X") == ((30, 60, 2),) and stage.x.orders["X"].hold == 30_000 * 60
    assert not stage.order("u", "north", "sell", 40_000, 30, 60, 2).fills


def test_worked_example_with_x_all_or_none_uses_the_search() -> None:
    stage = example(x_whole=True)
    outcome = stage.buy("t", "bob", 60_000, 0, 90, 2)
    assert sorted(trades(outcome)) == [("X", ((0, 60, 2),), 6_000_000), ("Y", ((60, 90, 2),), 1_800_000)]
    assert stage.left("Y") == ((30, 60, 2),)


def test_worked_example_with_x_of_the_buyer_does_not_trade() -> None:
    stage = example(x_of="bob")
    assert last(stage.buy("t", "bob", 60_000, 0, 90, 2)) == ("cancelled", "unfilled")
    partial = stage.buy("u", "bob", 60_000, 0, 90, 2, partial=True)
    assert trades(partial) == [("Y", ((30, 90, 2),), 3_600_000)]
    assert stage.left("X") == ((0, 60, 2),)


def test_r8_resting_orders_are_never_retried_so_a_book_may_stay_crossed() -> None:
    stage = Stage(minted=10)
    stage.ask("a", "north", 5, 0, 60, 2, partial=False)
    stage.bid("b", "bob", 9, 0, 60, 1, partial=False)
    assert set(stage.x.orders) == {"a", "b"}
    stage.cancel("a")
    with pytest.raises(NotFound):
        stage.cancel("a")
    stage.ask("c", "north", 5, 0, 60, 1)
    assert set(stage.x.orders) == set()  # a new order does meet what rests


def test_r8_sequence_numbers_are_one_counter_per_book() -> None:
    stage = Stage(minted=10)
    first = stage.ask("a", "north", 5, 0, 60, 2)
    assert [stage.bid("b", "bob", 1, 0, 60, 1).seq, stage.clock(1).seq] == [first.seq + 1, first.seq + 2]


def test_r9_own_orders_are_skipped_not_cancelled() -> None:
    stage = Stage(minted=10)
    stage.ask("seed", "north", 1, 0, 60, 1)
    stage.buy("s", "bob", 1, 0, 60, 1)
    stage.ask("own", "bob", 2, 0, 60, 1)
    stage.ask("other", "south", 3, 0, 60, 1)
    assert trades(stage.buy("t", "bob", 9, 0, 60, 1)) == [("other", ((0, 60, 1),), 180)]
    assert stage.left("own") == ((0, 60, 1),)


def test_r10_best_price_first_then_the_lowest_sequence() -> None:
    stage = Stage(minted=10)
    for name, who, rate in (("late", "north", 5), ("cheap", "south", 4), ("later", "south", 5)):
        stage.ask(name, who, rate, 0, 60, 1)
    outcome = stage.buy("t", "bob", 9, 0, 60, 3)
    assert [maker for maker, _, _ in trades(outcome)] == ["cheap", "late", "later"]


def test_r10_a_fill_and_a_clip_keep_the_place_and_a_new_order_goes_last() -> None:
    stage = Stage(minted=10)
    stage.ask("first", "north", 5, 0, 60, 2)
    stage.ask("second", "south", 5, 0, 60, 2)
    stage.buy("t", "bob", 9, 20, 40, 1)
    stage.clock(2)
    assert trades(stage.buy("u", "bob", 9, 2, 60, 1))[0][0] == "first"
    stage.cancel("first")
    stage.ask("first", "north", 5, 10, 60, 1)
    assert trades(stage.buy("v", "bob", 9, 10, 60, 1))[0][0] == "second"


def test_r11_a_partial_maker_gives_any_part() -> None:
    stage = Stage(minted=10)
    stage.ask("a", "north", 5, 0, 60, 3)
    stage.buy("t", "bob", 5, 20, 30, 2)
    assert stage.left("a") == ((0, 20, 3), (20, 30, 1), (30, 60, 3))


def test_r11_a_whole_maker_is_used_whole_or_skipped_and_keeps_its_place() -> None:
    stage = Stage(minted=10)
    stage.ask("whole", "north", 4, 0, 60, 2, partial=False)
    stage.ask("other", "south", 5, 0, 60, 4)
    assert trades(stage.buy("t", "bob", 9, 0, 60, 1)) == [("other", ((0, 60, 1),), 300)]
    assert trades(stage.buy("u", "bob", 9, 0, 60, 3)) == [("whole", ((0, 60, 2),), 480), ("other", ((0, 60, 1),), 300)]


def test_r12_the_greedy_cover_stands_even_if_another_is_cheaper() -> None:
    stage = Stage(minted=10)
    stage.ask("best", "north", 4, 0, 30, 1)
    stage.ask("rest", "south", 9, 0, 60, 1)
    stage.ask("whole", "south", 5, 0, 60, 1, partial=False)  # alone it would cost 300 instead of 120 + 270
    assert [name for name, _, _ in trades(stage.buy("t", "bob", 9, 0, 60, 1))] == ["best", "rest"]


def test_r12_the_search_takes_the_cheapest_cover_then_the_fewest_then_the_earliest() -> None:
    stage = Stage(minted=10)
    stage.ask("p", "north", 1, 0, 10, 1)  # what makes the greedy walk miss
    stage.ask("w1", "north", 6, 0, 60, 1, partial=False)
    stage.ask("w2", "south", 5, 0, 60, 1, partial=False)
    stage.ask("w3", "north", 5, 0, 60, 1, partial=False)
    assert [name for name, _, _ in trades(stage.buy("t", "bob", 9, 0, 60, 1))] == ["w2"]
    stage = Stage(minted=10)
    stage.ask("p", "north", 1, 0, 10, 1)
    stage.ask("half1", "north", 5, 0, 30, 1, partial=False)
    stage.ask("half2", "north", 5, 30, 60, 1, partial=False)
    stage.ask("one", "south", 5, 0, 60, 1, partial=False)
    assert [name for name, _, _ in trades(stage.buy("t", "bob", 9, 0, 60, 1))] == ["one"]


def test_r12_a_sell_seeks_the_highest_proceeds() -> None:
    stage = Stage(minted=10)
    stage.bid("p", "bob", 9, 0, 10, 1)
    stage.bid("low", "ann", 5, 0, 60, 1, partial=False)
    stage.bid("high", "ann", 6, 0, 60, 1, partial=False)
    assert [n for n, _, _ in trades(stage.order("t", "north", "sell", 1, 0, 60, 1))] == ["high"]


def test_r12_the_search_is_bounded_and_not_found_is_normal() -> None:
    stage = Stage(minted=100)
    stage.ask("p", "north", 1, 0, 1, 1)
    for k in range(match.TOGETHER_MAX + 1):
        stage.ask(f"w{k}", "north", 5, 12 * k, 12 * (k + 1), 1, partial=False)
    assert not stage.buy("t", "bob", 9, 0, 60, 1).fills  # five pieces are needed, four may be combined
    stage.cancel("p")
    assert len(stage.buy("u", "bob", 9, 0, 60, 1).fills) == 5  # the greedy walk has no such bound


def test_r13_each_fill_is_at_the_makers_rate_with_one_contract_per_pair() -> None:
    stage = Stage(minted=10)
    stage.ask("a", "north", 5, 0, 60, 2)
    stage.buy("hole", "ann", 5, 20, 30, 2)
    outcome = stage.order("t", "bob", "buy", 9, 0, 60, 2, partial=True)
    assert trades(outcome) == [("a", ((0, 20, 2), (30, 60, 2)), 500)]
    assert outcome.fills[0].rate == 5 and volume(outcome.fills[0].shape) == 100


def test_r14_a_partial_taker_keeps_its_fills_and_the_rest_stands_or_is_cancelled() -> None:
    stage = Stage(minted=10)
    stage.ask("a", "north", 5, 0, 30, 1)
    stage.ask("b", "north", 5, 30, 60, 1)
    outcome = stage.order("t", "bob", "buy", 9, 20, 40, 3, partial=True)
    assert last(outcome) == ("cancelled", "unfilled") and outcome.changes[-1].filled == 20
    assert money(outcome, "bob", "hold", "release") == 0
    outcome = stage.bid("u", "bob", 9, 0, 40, 1)
    assert last(outcome) == ("partially_filled", None)
    assert stage.left("u") == ((20, 40, 1),) and stage.x.orders["u"].hold == 180


def test_r14_an_all_or_none_taker_stands_as_a_whole() -> None:
    stage = Stage(minted=10)
    stage.ask("a", "north", 5, 0, 30, 1)
    assert last(stage.bid("t", "bob", 9, 0, 60, 1, partial=False)) == ("standing", None)
    assert stage.left("t") == ((0, 60, 1),) and stage.left("a") == ((0, 30, 1),)
    stage.order("s", "south", "sell", 1, 0, 60, 1)
    assert stage.left("t") == ()


def grouped(*, on: bool = True) -> Stage:
    """An ask of 4 nodes x 60 for 13 each, and a bid of 10 for 3 of them."""
    stage = Stage(minted=10, group_purchase=on)
    stage.ask("block", "north", 13, 0, 60, 4, partial=False)
    stage.bid("ann's", "ann", 10, 0, 60, 3)
    return stage


def test_r17_off_nothing_of_it_is_reachable() -> None:
    assert last(grouped(on=False).buy("t", "bob", 99, 0, 60, 1)) == ("cancelled", "unfilled")


def test_r17_the_taker_pays_what_the_bids_leave_of_a_whole_ask() -> None:
    stage = grouped()
    outcome = stage.buy("t", "bob", 22, 0, 60, 1)
    assert [(f.buyer_order, f.amount) for f in outcome.fills] == [("ann's", 1_800), ("t", 13 * 240 - 1_800)]
    assert money(outcome, "north", "sell") == 13 * 240
    assert outcome.fills[1].rate == 22 and not stage.x.orders
    assert money(outcome, "bob", "hold", "release") == 0
    assert stage.owned("ann") == ((0, 60, 3),) and stage.owned("bob") == ((0, 60, 1),)


def test_r17_not_above_the_takers_limit_and_only_a_whole_remainder() -> None:
    assert not grouped().buy("t", "bob", 21, 0, 60, 1).fills
    stage = grouped()
    stage.cancel("ann's")
    stage.bid("short", "ann", 10, 0, 59, 3)
    assert not stage.buy("t", "bob", 99, 0, 60, 1).fills


def test_r17_the_lowest_cost_wins_then_the_earliest_ask() -> None:
    stage = grouped()
    stage.ask("cheaper", "south", 12, 0, 60, 4, partial=False)
    stage.ask("same", "north", 12, 0, 60, 4, partial=False)
    assert stage.buy("t", "bob", 99, 0, 60, 1).fills[-1].seller_order == "cheaper"
