"""Procurements on the desk (R22, R23, protected manual time, lending within an account)."""

from __future__ import annotations

from pathlib import Path

from desk_stage import SKU, T0, Stage

from nanopod.control.market.desk import MarketSettings
from nanopod.market.shape import volume
from nanopod.model.order import Order
from nanopod.store.transaction import Transaction

FIRST = int(T0 // 60) + 1


def orders(stage: Stage, who: str, *statuses: str) -> list[Order]:
    return stage.read(lambda read: read.orders_page(f"wksp_{who}", statuses=statuses, limit=200))


def test_r22_it_buys_its_window_at_once_and_rolls(stage: Stage) -> None:
    stage.nodes(2, floor=10)
    made = stage.procure("ann", target=2, max_buy=20, window=30)
    assert made.status is not None
    assert (made.status.code, made.status.message) == ("running", "running: 2 nodes for the whole window")
    assert [stage.owned("ann", FIRST + at) for at in (0, 29, 30)] == [2, 2, 0]
    stage.blocks(5)
    assert [stage.owned("ann", FIRST + at) for at in (4, 34, 35)] == [2, 2, 0]
    (first, *_) = orders(stage, "ann", "filled")
    assert first.procurement_id == made.procurement_id
    assert 10**12 - stage.balance("prepaid:wksp_ann") == 10 * 2 * 35


def test_r22_node_count_follows_the_instances_up_and_down(stage: Stage) -> None:
    stage.nodes(4, floor=10)
    fleet = stage.deploy("ann", 1)
    made = stage.procure("ann", max_buy=20, min_sell=3, window=30)
    assert stage.owned("ann", FIRST) == 1
    stage.scale(fleet, target_instance_count=4)
    assert stage.owned("ann", FIRST) == 4
    stage.scale(fleet, target_instance_count=1)
    (ask,) = orders(stage, "ann", "standing")
    assert (ask.side, ask.limit.micro_per_block, ask.shape.entries[0].node_count) == ("sell", 3, 3)
    assert stage.order("bob", "buy", 5, 0, 30, 3).status == "filled"
    assert stage.owned("ann", FIRST) == 1
    assert stage.balance("prepaid:wksp_ann") == 10**12 - 10 * 4 * 30 + 3 * 3 * 30
    codes = [one.data["code"] for one in stage.notices("ann", "procurement.status_changed")]
    assert codes == ["running"]
    assert stage.procurement(made.procurement_id).status is not None


def test_r22_price_above_limit_and_no_supply_say_so(stage: Stage) -> None:
    made = stage.procure("ann", target=1, max_buy=20, window=10)
    assert made.status is not None and made.status.code == "no_supply"
    stage.nodes(1, floor=50)
    stage.blocks(1)
    now = stage.procurement(made.procurement_id).status
    assert now is not None and now.code == "price_above_limit"
    assert "0.003000" in now.message and "0.001200" in now.message

    def raise_limit(write: Transaction) -> None:
        with stage.desk.session(write, stage.now) as market:
            seen = write.procurement(made.procurement_id)
            assert seen is not None
            write.set_procurement(seen, max_buy=type(seen.max_buy)(60))
            market.changed("cap_ann")

    stage.write(raise_limit)
    now = stage.procurement(made.procurement_id).status
    assert now is not None and now.code == "running"
    assert [one.data["code"] for one in stage.notices("ann", "procurement.status_changed")] == [
        "no_supply", "price_above_limit", "running",
    ]  # fmt: skip


def test_r22_without_money_it_says_so_and_tries_again(stage: Stage) -> None:
    def poor(write: Transaction) -> None:
        from nanopod.ledger.recipes import pay_back

        assert all(one.done for one in write.post_transfers(pay_back("back", "wksp_ann", 10**12 - 100), int(T0 * 1e6)))

    stage.write(poor)
    stage.nodes(1, floor=10)
    made = stage.procure("ann", target=1, max_buy=20, window=10)
    assert made.status is not None and made.status.code == "insufficient_balance"
    assert "0.000200" in made.status.message and "0.000100" in made.status.message
    assert orders(stage, "ann") == []
    stage.write(lambda write: stage.pay(write, "ann", 1000))
    stage.do(lambda market: market.balance_changed("wksp_ann"))
    now = stage.procurement(made.procurement_id).status
    assert now is not None and now.code == "running"


def test_r22_disabling_cancels_its_orders(stage: Stage) -> None:
    made = stage.procure("ann", target=1, max_buy=20, window=10)
    assert stage.held("ann") == 200

    def off(write: Transaction) -> None:
        with stage.desk.session(write, stage.now) as market:
            seen = write.procurement(made.procurement_id)
            assert seen is not None
            write.set_procurement(seen, enabled=False)
            market.changed("cap_ann")

    stage.write(off)
    assert stage.held("ann") == 0
    (row,) = orders(stage, "ann")
    assert (row.status, row.cancel_reason) == ("cancelled", "automation")


def test_invariant_8_two_looks_in_a_row_change_nothing(stage: Stage) -> None:
    stage.nodes(2, floor=10)
    stage.procure("ann", target=3, max_buy=20, window=10)
    seq = stage.do(lambda market: market.exchange(SKU).seq)
    stage.do(lambda market: market.changed("cap_ann"))
    assert stage.do(lambda market: market.exchange(SKU).seq) == seq


def test_5_1_manual_time_is_kept(stage: Stage) -> None:
    stage.nodes(6, floor=10)
    stage.order("ann", "buy", 10, 0, 30, 4)
    made = stage.procure("ann", target=6, max_buy=20, window=30, min_sell=1)
    assert stage.owned("ann", FIRST) == 6

    def to(target: int, protect: bool) -> None:
        def within(write: Transaction) -> None:
            with stage.desk.session(write, stage.now) as market:
                seen = write.procurement(made.procurement_id)
                assert seen is not None
                write.set_procurement(seen, target=target, protect_manual=protect)
                market.changed("cap_ann")

        stage.write(within)

    to(2, True)
    assert sum(one.open.entries[0].node_count for one in orders(stage, "ann", "standing")) == 2
    now = stage.procurement(made.procurement_id).status
    assert now is not None and now.message == "kept_manual: 2 manually bought nodes above target"
    to(2, False)
    assert sum(one.open.entries[0].node_count for one in orders(stage, "ann", "standing")) == 4


def test_the_default_procurement_is_made_once_and_is_an_ordinary_one(tmp_path: Path) -> None:
    stage = Stage(tmp_path, settings=MarketSettings())
    stage.nodes(2)
    for _ in range(2):
        stage.do(lambda market: market.ensure_procurement("cap_ann", SKU))
    (made,) = stage.read(lambda read: read.procurements("wksp_ann"))
    assert (made.name, made.target, made.managed_window_minutes, made.extend_quantum_minutes) == (
        "default-box", "node_count", 60, 15,
    )  # fmt: skip
    assert (made.max_buy.dollars_per_node_hour(), made.min_sell.micro_per_block) == ("19.999980", 1)
    stage.check()
    stage.close()


def lend(stage: Stage) -> None:
    """`ann` has two nodes by her default procurement and gives them up; `ann2` wants two."""
    stage.write(lambda write: stage.capacity(write, "ann2", "ann"))
    stage.nodes(2)
    fleet = stage.deploy("ann", 2)
    stage.do(lambda market: market.ensure_procurement("cap_ann", SKU))
    assert stage.owned("ann", FIRST) == 2
    stage.scale(fleet, target_instance_count=0)


def test_the_default_chain_lends_what_it_would_sell_to_its_own_account(stage: Stage) -> None:
    lend(stage)
    made = stage.procure("ann", target=2, capacity="ann2", max_buy=20, window=60)
    assert [stage.owned(name, FIRST) for name in ("ann", "ann2")] == [0, 2]
    assert made.status is not None and made.status.code == "running"
    (moved,) = stage.read(lambda read: read.transfers_page("wksp_ann"))
    assert (moved.from_capacity_id, moved.to_capacity_id, moved.status) == ("cap_ann", "cap_ann2", "executed")
    assert orders(stage, "ann", "standing", "partially_filled") == []
    assert stage.held("ann") == 0


def test_a_procurement_made_by_hand_lends_nothing(stage: Stage) -> None:
    stage.write(lambda write: stage.capacity(write, "ann2", "ann"))
    stage.nodes(2)
    fleet = stage.deploy("ann", 2)
    stage.procure("ann", max_buy=20)
    stage.scale(fleet, target_instance_count=0)
    made = stage.procure("ann", target=2, capacity="ann2", max_buy=20, window=60)
    assert [stage.owned(name, FIRST) for name in ("ann", "ann2")] == [2, 0]
    assert made.status is not None and made.status.code == "no_supply"


def test_r23_a_spot_deployment_is_a_deployment_with_a_procurement(stage: Stage) -> None:
    from nanopod.market.procure import spot
    from nanopod.model.money import Rate

    stage.nodes(3, floor=10)

    def make(write: Transaction) -> None:
        from dataclasses import replace

        part = spot("proc_spot", "cap_ann", SKU, Rate(20))
        with stage.desk.session(write, stage.now) as market:
            write.add_procurement(
                replace(part, workspace_id="wksp_ann", name="s", deployment_id="spot_1", created_at=T0)
            )
            market.changed("cap_ann")

    stage.write(make)
    stage.deploy("ann", 3, kind="spot", procurement_id="proc_spot")
    assert stage.owned("ann", FIRST) == 3
    assert stage.do(lambda market: volume(market.exchange(SKU).holdings["cap_ann"].auto.shape())) == 3 * 60
