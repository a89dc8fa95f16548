"""Orders on the desk: rows, holds, contracts, refusals (R1-R17) on a real store."""

from __future__ import annotations

from pathlib import Path

import pytest
from desk_stage import SKU, T0, Stage

from nanopod.control.market.desk import Fee, MarketSettings, OrderDraft
from nanopod.market.shape import from_schedule, volume
from nanopod.model.errors import Conflict, Denied, Invalid, NotFound, PaymentRequired
from nanopod.model.money import Rate


def give(stage: Stage, who: str, nodes: int, blocks: int) -> None:
    """Somebody owns time, bought for nothing."""
    stage.nodes(nodes)
    assert stage.order(who, "buy", 1, 0, blocks, nodes).status == "filled"


def test_r1_now_is_the_next_block_and_the_past_is_refused(stage: Stage) -> None:
    stage.nodes(1)
    stage.now = T0 + 30.0
    made = stage.order("ann", "buy", 1, -1, 3, 1)  # the block that runs: a preview a moment ago
    assert made.shape.entries[0].window.start_at == T0 + 60
    with pytest.raises(Invalid, match="start_at"):
        stage.order("ann", "buy", 1, -3, 4, 1)


def test_r3_r4_a_buy_holds_its_limit_and_no_more_than_there_is(stage: Stage) -> None:
    order = stage.order("ann", "buy", 100, 0, 10, 2, standing=True)
    assert order.status == "standing"
    assert stage.held("ann") == 2000
    assert stage.spending("ann") == 10**12 - 2000
    with pytest.raises(PaymentRequired, match="available"):
        stage.order("ann", "buy", 10**9, 0, 1000, 1, standing=True)
    assert stage.held("ann") == 2000


def test_r4_the_credit_line_counts_and_prepaid_money_goes_first(stage: Stage) -> None:
    stage.write(lambda write: stage.line(write, "bob", 5000))
    stage.nodes(1, floor=10**9)
    assert stage.spending("bob") == 10**12 + 5000
    made = stage.order("bob", "buy", 10**9, 0, 1000, 1)
    assert made.status == "filled"
    assert stage.balance("prepaid:wksp_bob") == 0
    assert stage.order("bob", "buy", 5000, 0, 1, 1, standing=True).status == "standing"
    with pytest.raises(PaymentRequired):
        stage.order("bob", "buy", 1, 2, 1, 1)


def test_an_amount_beyond_the_ledger_names_the_field(stage: Stage) -> None:
    with pytest.raises(Invalid) as caught:
        stage.order("ann", "buy", 10**14, 0, 11, 1, standing=True)
    assert caught.value.field == "limit_price_dollars_per_node_hour"
    with pytest.raises(Invalid):
        stage.order("ann", "sell", 10**14, 0, 11, 1, standing=True)


def test_r5_sells_need_free_time_and_kinds_of_capacities_have_their_limits(stage: Stage) -> None:
    give(stage, "ann", 2, 20)
    assert stage.order("ann", "sell", 5, 0, 10, 2, standing=True).status == "standing"
    with pytest.raises(Invalid, match="lacks 1 free"):
        stage.order("ann", "sell", 5, 9, 2, 1, standing=True)
    with pytest.raises(Invalid, match="originating"):
        stage.order("north", "buy", 5, 0, 1, 1)


def test_a_refused_order_leaves_the_book_in_memory(stage: Stage) -> None:
    """A 4xx costs no reload: nothing was changed, so nothing is dropped."""
    give(stage, "ann", 1, 10)
    book = stage.desk.floor.exchanges[SKU]
    for refused in (
        lambda: stage.order("bob", "sell", 1, 0, 1, 1),
        lambda: stage.order("bob", "buy", 10**11, 0, 100, 1),
    ):
        with pytest.raises((Invalid, PaymentRequired)):
            refused()
    assert stage.desk.floor.exchanges[SKU] is book


def test_r7_r14_an_immediate_order_that_does_not_trade_is_cancelled_and_holds_nothing(stage: Stage) -> None:
    made = stage.order("ann", "buy", 100, 0, 10, 2)
    assert (made.status, made.cancel_reason, made.open.entries) == ("cancelled", "unfilled", ())
    assert stage.held("ann") == 0
    stage.nodes(1, floor=100)
    partly = stage.order("ann", "buy", 150, 0, 10, 2, partial=True)
    assert (partly.status, partly.cancel_reason) == ("cancelled", "unfilled")
    assert volume(from_schedule(partly.filled)) == 10
    assert stage.balance("prepaid:wksp_ann") == 10**12 - 1000


def test_r9_own_orders_are_skipped(stage: Stage) -> None:
    give(stage, "ann", 1, 10)
    stage.order("ann", "sell", 5, 0, 10, 1, standing=True)
    assert stage.order("ann", "buy", 9, 0, 10, 1).status == "cancelled"
    assert stage.order("bob", "buy", 9, 0, 10, 1).status == "filled"


def test_r10_to_r13_the_worked_example(stage: Stage) -> None:
    """X 2 x [0,60) at 50,000; Y 2 x [30,90) at 30,000; a buy of 2 x [0,90) within 60,000 pays 6.60 dollars."""
    stage.nodes(4, horizon_minutes=120, floor=1)
    for who, first in (("bob", 0), ("cat", 30)):
        assert stage.order(who, "buy", 1, first, 60, 2).status == "filled"
    stage.nodes(4, state="draining", horizon_minutes=120)  # nothing else is on offer
    before = {who: stage.balance(f"prepaid:wksp_{who}") for who in ("ann", "bob", "cat")}
    x = stage.order("bob", "sell", 50_000, 0, 60, 2, standing=True, partial=True)
    y = stage.order("cat", "sell", 30_000, 30, 60, 2, standing=True, partial=True)
    none = stage.order("ann", "buy", 40_000, 0, 90, 2)
    assert none.status == "cancelled"
    made = stage.order("ann", "buy", 60_000, 0, 90, 2)
    assert made.status == "filled"
    assert before["ann"] - stage.balance("prepaid:wksp_ann") == 6_600_000
    assert stage.balance("prepaid:wksp_bob") - before["bob"] == 3_000_000
    assert stage.balance("prepaid:wksp_cat") - before["cat"] == 3_600_000
    assert stage.held("ann") == 0
    rows = stage.read(lambda read: [read.order(one.order_id) for one in (x, y)])
    assert [one.status for one in rows if one] == ["partially_filled", "filled"]
    contracts = stage.read(lambda read: read.contracts_of([made.order_id]))
    assert sorted(one.amount.micro for one in contracts) == [3_000_000, 3_600_000]
    assert [one.seller_workspace_id for one in contracts] == ["wksp_cat", "wksp_bob"]


def test_r15_the_seller_pays_the_fee_and_it_never_exceeds_the_price(tmp_path: Path) -> None:
    stage = Stage(tmp_path, settings=MarketSettings(fees={SKU: Fee(flat=3, bps=1000)}))
    stage.nodes(2, floor=100)
    stage.order("ann", "buy", 100, 0, 10, 1)
    assert stage.balance(f"fees:{SKU}") == 3 * 10 + 100
    assert stage.balance("undelivered:wksp_north") == 1000 - 130
    stage.order("ann", "sell", 2, 0, 10, 1, standing=True)
    stage.order("bob", "buy", 2, 0, 10, 1)
    assert stage.balance(f"fees:{SKU}") == 130 + 20
    stage.do(lambda market: market.configure(SKU, 0, 0))
    stage.order("bob", "sell", 50, 0, 10, 1, standing=True)
    stage.order("ann", "buy", 50, 0, 10, 1)
    assert stage.balance(f"fees:{SKU}") == 150
    stage.restart()
    assert stage.do(lambda market: market.exchange(SKU).fees.flat) == 3, "the settings it is started with"
    stage.check()
    stage.close()


def test_r16_a_block_that_begins_is_lost_and_its_hold_released(stage: Stage) -> None:
    order = stage.order("ann", "buy", 100, 0, 3, 2, standing=True, partial=True)
    assert stage.held("ann") == 600
    stage.blocks(1)
    assert stage.held("ann") == 400
    stage.blocks(2)
    assert stage.held("ann") == 0
    row = stage.read(lambda read: read.order(order.order_id))
    assert row is not None
    assert (row.status, row.cancel_reason) == ("cancelled", "expired")
    assert [one.type for one in stage.notices("ann")] == ["order.created", "order.cancelled"]


def test_r17_group_purchase_only_where_it_is_switched_on(tmp_path: Path) -> None:
    for on in (False, True):
        place = tmp_path / str(on)
        place.mkdir()
        stage = Stage(place, settings=MarketSettings(group_purchase=on))
        give(stage, "bob", 2, 10)
        stage.order("bob", "sell", 100, 0, 10, 2, standing=True)  # only whole
        stage.order("cat", "buy", 60, 0, 10, 1, standing=True, partial=True)
        made = stage.order("ann", "buy", 150, 0, 10, 1)
        assert made.status == ("filled" if on else "cancelled")
        if on:
            assert 10**12 - stage.balance("prepaid:wksp_ann") == 2000 - 600 + 10**12 - 10**12
            assert 10**12 - stage.balance("prepaid:wksp_cat") == 600
        stage.check()
        stage.close()


def test_cancelling(stage: Stage) -> None:
    order = stage.order("ann", "buy", 100, 0, 10, 2, standing=True)
    ended = stage.cancel(order)
    assert (ended.status, ended.cancel_reason, ended.cancelled_at) == ("cancelled", "user", stage.now)
    assert stage.held("ann") == 0
    with pytest.raises(Conflict, match="cancelled already"):
        stage.cancel(order)
    with pytest.raises(NotFound):
        stage.do(lambda market: market.cancel("ordr_nobody"))


def test_unknown_things_are_not_found(stage: Stage) -> None:
    draft = OrderDraft("wksp_ann", "acct_ann", "cap_ann", "isku_nobody", "buy", int(T0) + 60, int(T0) + 120, 1, Rate(1))
    with pytest.raises(NotFound, match="instance_sku"):
        stage.do(lambda market: market.place(draft))
    with pytest.raises(NotFound, match="capacity"):
        stage.order("ann", "buy", 1, 0, 1, 1, capacity="bob")


def test_transfers_move_free_time_within_an_account(stage: Stage) -> None:
    stage.write(lambda write: stage.capacity(write, "ann2", "ann"))
    give(stage, "ann", 2, 20)
    done = stage.transfer("ann", "ann", "ann2", 0, 10, 1)
    assert (done.status, done.rejected_reason) == ("executed", "")
    refused = stage.transfer("ann", "ann", "ann2", 5, 10, 2)
    assert refused.status == "rejected"
    assert "lacks 1 free" in refused.rejected_reason
    with pytest.raises(Denied):
        stage.transfer("ann", "ann", "bob", 0, 1, 1)
    first = int(T0 // 60) + 1
    assert [stage.owned(name, first) for name in ("ann", "ann2")] == [1, 1]
    kept = stage.read(lambda read: read.transfers_page("wksp_ann"))
    assert {one.status for one in kept} == {"executed", "rejected"}
    assert {one.type for one in stage.notices("ann", "transfer.executed", "transfer.rejected")} == {
        "transfer.executed",
        "transfer.rejected",
    }


def test_what_keeps_a_capacity_from_being_deleted(stage: Stage) -> None:
    stage.do(lambda market: market.delete_check("cap_ann"))
    give(stage, "ann", 1, 10)
    stage.order("ann", "sell", 5, 0, 5, 1, standing=True)
    stage.procure("ann", target=0)
    stage.deploy("ann", 1)
    with pytest.raises(Invalid) as caught:
        stage.do(lambda market: market.delete_check("cap_ann"))
    for part in (
        "1 active order",
        f"future allocation of {SKU}",
        "1 active instance",
        "1 deployment",
        "1 procurement",
    ):
        assert part in caught.value.message


def test_a_failed_write_leaves_nothing_behind(stage: Stage) -> None:
    """The function fails after its session was saved: disk and memory go back together."""
    stage.nodes(1, floor=100)

    class Boom(Exception):
        pass

    def fail(write: object) -> None:
        with stage.desk.session(write, stage.now) as market:  # type: ignore[arg-type]
            draft = OrderDraft("wksp_ann", "acct_ann", "cap_ann", SKU, "buy", T0 + 60, T0 + 120, 1, Rate(100))
            assert market.place(draft).status == "filled"
        raise Boom

    with pytest.raises(Boom):
        stage.write(fail)
    assert stage.owned("ann", int(T0 // 60) + 1) == 0
    assert stage.balance("prepaid:wksp_ann") == 10**12
    assert stage.order("ann", "buy", 100, 0, 1, 1).status == "filled"
