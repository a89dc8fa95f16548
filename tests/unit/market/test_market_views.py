"""What anyone may see of a book, and that a preview's order fills at its estimate."""

from __future__ import annotations

import pytest
from market_stage import Stage

from nanopod.market.events import Place, decode, encode
from nanopod.market.outcome import Fill
from nanopod.market.views import Preview, availability, best_preview, depth, fills, preview, quote, windows
from nanopod.model.errors import Invalid


def book() -> Stage:
    stage = Stage(minted=20)
    stage.ask("a1", "north", 50, 0, 60, 2)
    stage.ask("a2", "south", 50, 30, 90, 1, partial=False)
    stage.ask("a3", "north", 70, 0, 60, 4)
    stage.bid("b1", "bob", 40, 0, 60, 1)
    stage.bid("b2", "ann", 30, 30, 90, 2)
    return stage


def test_quote_gives_the_best_level_of_each_side_clipped_to_the_window() -> None:
    seen = quote(book().x, 20, 40)
    assert seen.best_ask is not None and seen.best_bid is not None
    assert (seen.best_ask.rate, seen.best_ask.shape) == (50, ((20, 30, 2), (30, 40, 3)))
    assert seen.best_ask.whole_shape == ((30, 40, 1),)
    assert (seen.best_bid.rate, seen.best_bid.shape) == (40, ((20, 40, 1),))
    assert quote(book().x, 200, 300) == type(seen)(None, None)


def test_depth_lists_bids_down_and_asks_up() -> None:
    bids, asks = depth(book().x, 0, 100)
    assert [level.rate for level in bids] == [40, 30] and [level.rate for level in asks] == [50, 70]
    assert len(depth(book().x, 0, 100, 1)[1]) == 1
    for count in (0, 101):
        with pytest.raises(Invalid):
            depth(book().x, 0, 100, count)


def test_windows_have_one_row_per_open_extent() -> None:
    rows = windows(book().x, 0, 100)
    assert [(row.start, row.end, row.bids, row.asks) for row in rows] == [(0, 60, 1, 2), (30, 90, 1, 1)]
    best = rows[0].best_ask
    assert best is not None and best.rate == 50


def test_fills_are_newest_first_and_reach_back_thirty_days_at_most() -> None:
    stage = book()
    history: list[Fill] = list(stage.buy("t", "cat", 60, 0, 10, 1).fills)
    stage.clock(5)
    history += stage.buy("u", "cat", 60, 5, 15, 1).fills
    seen = fills(history, 0, 100, block=5)
    assert [past.block for past in seen] == [5, 0]
    assert [past.shape for past in fills(history, 0, 8, block=5)] == [((5, 8, 1),), ((0, 8, 1),)]
    assert len(fills(history, 0, 100, block=5, since=1)) == 1
    with pytest.raises(Invalid, match="30 days"):
        fills(history, 0, 100, block=50_000, since=0)


def test_availability_sums_resting_asks() -> None:
    assert availability(book().x, 20, 80) == ((20, 30, 6), (30, 60, 7), (60, 80, 1))


def test_a_preview_sets_the_worst_rate_used_and_its_order_fills_at_the_estimate() -> None:
    stage = book()
    before = stage.x.digest()
    seen = preview(stage.x, "buy", 0, 60, 3, "cat")
    assert (seen.rate, seen.amount, seen.node_blocks) == (70, 2 * 60 * 50 + 60 * 70, 180)
    assert stage.x.digest() == before
    outcome = stage.buy("t", "cat", seen.rate, 0, 60, 3)
    assert sum(fill.amount for fill in outcome.fills) == seen.amount
    sold = preview(stage.x, "sell", 40, 60, 2, "south")
    assert (sold.rate, sold.amount) == (30, 20 * 40 + 20 * 30)
    done = stage.order("s", "south", "sell", sold.rate, 40, 60, 2)
    assert sum(fill.amount for fill in done.fills) == sold.amount


def test_a_preview_skips_own_orders_and_says_when_there_is_nothing() -> None:
    stage = book()
    assert preview(stage.x, "buy", 60, 90, 1, "south").unavailable == "no_availability"
    assert preview(stage.x, "buy", 0, 60, 500).unavailable == "no_availability"
    for start, end, nodes in ((0, 60, 0), (60, 60, 1)):
        with pytest.raises(Invalid):
            preview(stage.x, "buy", start, end, nodes)


def test_the_best_preview_is_the_cheapest_to_buy_and_the_dearest_to_sell() -> None:
    found = [Preview("a", 1, 20, 1), Preview("b", 9, 10, 1), Preview("c", unavailable="no_availability")]
    assert best_preview(found, "buy").sku_id == "b" and best_preview(found, "sell").sku_id == "a"
    assert best_preview(found[2:], "buy").unavailable == "no_availability"
    assert best_preview([], "buy").unavailable == "no_matching_instance_skus"


def test_events_are_one_canonical_line_each() -> None:
    place = Place("o", "c", "buy", 5, ((0, 10, 1),), spending=7)
    assert decode(encode(place)) == place
    assert encode(place).startswith('["place",{"allow_partial":false,')
    for line in ("", "[]", '["place",{}]', '["steal",{}]', "{}"):
        with pytest.raises(Invalid):
            decode(line)
