"""Supply on the desk: nodes become offers, lost nodes become refunds (S1-S8, S10)."""

from __future__ import annotations

from dataclasses import replace

from desk_stage import SKU, T0, Stage

from nanopod.market.shape import volume
from nanopod.model.capacity import Sku
from nanopod.model.order import Order
from nanopod.model.procurement import OfferPolicy
from nanopod.store.transaction import Transaction

FIRST = int(T0 // 60) + 1


def asks(stage: Stage) -> list[Order]:
    return stage.read(
        lambda read: read.orders_page(
            None, capacity_id="cap_north", statuses=("standing", "partially_filled"), limit=200
        )
    )


def supply(stage: Stage) -> int:
    return stage.do(lambda market: volume(market.exchange(SKU).supply.shape(market.exchange(SKU).block)))


def test_s1_s3_s4_a_node_is_on_sale_at_once_over_the_horizon(stage: Stage) -> None:
    stage.nodes(2, floor=70, horizon_minutes=1440)
    (ask,) = asks(stage)
    (entry,) = ask.shape.entries
    assert (entry.node_count, entry.window.start_at, ask.limit.micro_per_block) == (2, T0 + 60, 70)
    assert entry.window.end_at == T0 + 1440 * 60
    assert ask.allow_standing and ask.allow_partial and ask.created_by == "prov_north"
    assert stage.notices("north", "order.created", "order.cancelled") == []


def test_s3_withdrawing_burns_what_is_not_sold(stage: Stage) -> None:
    stage.nodes(3, horizon_minutes=60)
    stage.order("ann", "buy", 1, 0, 10, 1)
    before = supply(stage)
    stage.nodes(1, horizon_minutes=60)
    assert before == 3 * 59
    assert supply(stage) == 59
    stage.nodes(2, horizon_minutes=60)
    assert supply(stage) == 2 * 59


def test_s4_an_old_floor_is_replaced(stage: Stage) -> None:
    stage.nodes(1, floor=70)

    def cheaper(write: Transaction) -> None:
        with stage.desk.session(write, stage.now) as market:
            seen = write.offer_of_pair("prov_north", SKU)
            assert seen is not None
            write.set_offer(seen, floor=replace(seen.floor, micro_per_block=30))
            market.supply_changed(SKU)

    stage.write(cheaper)
    (ask,) = asks(stage)
    assert ask.limit.micro_per_block == 30
    assert stage.order("ann", "buy", 30, 0, 5, 1).status == "filled"


def test_s5_the_far_edge_grows_by_whole_quanta(stage: Stage) -> None:
    stage.nodes(1, horizon_minutes=120, quantum_minutes=60)
    assert supply(stage) == 119
    stage.blocks(58)
    assert supply(stage) == 61
    stage.blocks(1)
    assert supply(stage) == 120
    assert len(asks(stage)) == 2


def test_s3_quiet_hours_are_not_offered(stage: Stage) -> None:
    hour = int(T0 % 86_400 // 3600)
    stage.nodes(1, horizon_minutes=240, quiet_hours=(((hour + 1) % 24, (hour + 2) % 24),))
    assert [
        one.shape.entries[0].window.start_at - T0
        for one in sorted(asks(stage), key=lambda one: one.created_at + one.shape.entries[0].window.start_at)
    ] == [60, 7200]


def test_s7_a_new_kind_of_node_gets_an_offer_without_a_floor(stage: Stage) -> None:
    from nanopod.model.capacity import Node

    def come(write: Transaction) -> None:
        with stage.desk.session(write, stage.now) as market:
            write.put_sku(Sku("isku_new", "new"))
            write.put_node(Node("node_x", "mach_x", "isku_new", 4), "boot", "1", {}, stage.now, "prov_north")
            market.supply_changed("isku_new")

    stage.write(come)
    made = stage.read(lambda read: read.offer_of_pair("prov_north", "isku_new"))
    assert isinstance(made, OfferPolicy)
    assert (made.floor.micro_per_block, made.horizon_minutes, made.quantum_minutes) == (0, 7 * 1440, 60)
    assert stage.do(lambda market: market.exchange("isku_new").supply.at(FIRST)) == 4


def test_s8_unsold_time_goes_first_then_idle_nodes_take_over(stage: Stage) -> None:
    stage.nodes(1, name="a", horizon_minutes=60)
    stage.nodes(1, name="b", horizon_minutes=60)
    stage.order("ann", "buy", 1, 0, 30, 1)
    stage.nodes(1, name="b", state="lost")
    assert stage.owned("ann", FIRST) == 1
    assert stage.do(lambda market: market.exchange(SKU).supply.at(FIRST)) == 1


def test_s8_time_that_cannot_be_delivered_is_lost_rolling_and_refunded(stage: Stage) -> None:
    stage.nodes(2, horizon_minutes=60, floor=100)
    stage.order("ann", "buy", 100, 0, 30, 2)
    stage.nodes(2, state="lost")
    assert [stage.owned("ann", FIRST + at) for at in (0, 9, 10)] == [0, 0, 2]
    assert stage.balance("prepaid:wksp_ann") == 10**12 - 6000 + 2000
    assert stage.balance("undelivered:wksp_north") == 4000
    assert [one.type for one in stage.notices("ann", "contract.refunded")] == ["contract.refunded"]
    stage.blocks(1)
    assert stage.owned("ann", FIRST + 10) == 0
    assert stage.balance("undelivered:wksp_north") == 3800
    stage.nodes(2)
    stage.blocks(30)
    assert stage.balance("undelivered:wksp_north") == 0
    assert stage.balance("supplier_payable:wksp_north") == 6000 - 2200
    assert stage.balance("prepaid:wksp_ann") == 10**12 - 6000 + 2200


def test_s8_the_one_whose_instance_was_there_loses(stage: Stage) -> None:
    stage.nodes(1, name="a", horizon_minutes=60)
    stage.nodes(1, name="b", horizon_minutes=60)
    for who in ("ann", "bob"):
        stage.deploy(who, 1)
        stage.order(who, "buy", 1, 0, 30, 1)
    stage.blocks(1)

    def put(write: Transaction) -> None:
        for who, node in (("ann", "node_a"), ("bob", "node_b")):
            (one,) = write.instances_on_capacity(f"cap_{who}")
            assert one.granted_at is not None
            write.set_instance(one, node_id=node)

    stage.write(put)
    stage.nodes(1, name="b", state="lost")
    at = FIRST + 2
    assert (stage.owned("ann", at), stage.owned("bob", at)) == (1, 0)


def test_s10_revenue_is_released_as_blocks_pass_exactly(stage: Stage) -> None:
    stage.nodes(1, horizon_minutes=60, floor=7)
    stage.order("ann", "buy", 7, 0, 3, 1)
    released = []
    for _ in range(5):
        stage.blocks(1)
        released.append(stage.balance("supplier_payable:wksp_north"))
    assert released == [0, 7, 14, 21, 21]
    contract = stage.read(lambda read: read.contracts_page(None)[0])
    assert contract.delivered == 3
    assert stage.read(lambda read: read.contracts_undelivered("prov_north")) == []


def test_s10_a_restart_forgets_no_delivery(stage: Stage) -> None:
    stage.nodes(1, horizon_minutes=60, floor=7)
    stage.order("ann", "buy", 7, 0, 10, 1)
    stage.blocks(4)
    stage.restart()
    stage.blocks(8)
    assert stage.balance("supplier_payable:wksp_north") == 70
