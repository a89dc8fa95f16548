"""What an endpoint pays and holds, with the real desk: price limits, held time, other kinds of nodes, old revisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chain_rows import NOW, SCALE, SPEC
from chain_stage import AT, OTHER, SKU, node
from test_chain_on_desk import Cloud, on_cloud

from nanopod.model.endpoint import ImageSpec, ScaleSpec
from nanopod.model.money import Rate
from nanopod.model.order import Order
from nanopod.model.procurement import Procurement
from nanopod.store.transaction import Transaction


async def settings(c: Cloud, **more: Any) -> None:
    """Give the endpoint these settings of its scale."""

    def write(write: Transaction) -> None:
        found = write.endpoint("e1")
        assert found is not None
        write.set_endpoint(found, scale=replace(SCALE, **more))

    await c.store.write(write)


async def floor(c: Cloud, sku_id: str, dollars: str) -> None:
    """Sell a kind of node for no less than this, per hour."""

    def write(write: Transaction) -> None:
        offer = write.offer_of_pair("prov_1", sku_id)
        assert offer is not None
        write.set_offer(offer, floor=Rate.parse(dollars))
        with c.real.session(write, c.at) as market:
            market.supply_changed(sku_id)

    await c.store.write(write)


async def procurement(c: Cloud, sku_id: str = "isku_a") -> Procurement:
    found = await c.store.read(lambda read: read.procurement_of_pair("c1", sku_id))
    assert found is not None
    return found


async def held(c: Cloud) -> list[Order]:
    """The deployment's own orders, newest first."""
    orders = await c.store.read(lambda read: read.orders_page("w1", capacity_id="c1", side="buy"))
    return [one for one in orders if one.created_by == "d1"]


@on_cloud
async def test_a_price_limit_caps_what_the_procurement_pays(c: Cloud) -> None:
    await c.hello(node(slots=4))
    await floor(c, "isku_a", "2.00")
    await settings(c, max_price=1.0)
    await c.scale(1)
    await c.work()
    assert (await procurement(c)).max_buy == Rate.parse("0.999960")
    (row,) = await c.rows()
    assert row.reason.startswith("awaits allocation: price_above_limit")
    await settings(c, max_price=2.5)

    def reprice(write: Transaction) -> None:
        with c.real.session(write, c.at) as market:
            market.reprice("c1", "isku_a")

    await c.store.write(reprice)
    await c.work()
    assert len(await c.placed()) == 1
    await settings(c)
    await c.store.write(reprice)
    assert (await procurement(c)).max_buy == c.real.settings.spot_max_buy, "without a limit it is the cluster's"


@on_cloud
async def test_without_spot_all_of_it_is_held_and_renewed(c: Cloud) -> None:
    await c.hello(node(slots=4))
    await settings(c, spot=False)
    await c.scale(2)
    await c.work()
    (first,) = await held(c)
    assert (first.status, first.filled.entries[0].node_count) == ("filled", 2)
    assert len(await c.placed()) == 2
    end = first.filled.entries[0].window.end_at
    assert end is not None and end - AT > 3500
    await c.step(c.deployments, "d1")
    assert len(await held(c)) == 1, "it is bought once"
    for _ in range(40):
        c.at += 60
        await c.store.write(lambda write: c.real.boundary(write, c.at))
    await c.step(c.deployments, "d1")
    second, _ = await held(c)
    assert second.filled.entries[0].window.start_at == end, "the next window joins the first"
    assert len(await c.placed()) == 2


@on_cloud
async def test_the_fallback_is_held_only_while_time_is_scarce(c: Cloud) -> None:
    await c.hello(node(slots=8))
    await settings(c, on_demand_fallback=0.5)
    await c.scale(2)
    await c.work()
    assert await held(c) == [], "there is enough"
    await floor(c, "isku_a", "3.00")

    def cheap(write: Transaction) -> None:
        write.set_procurement(write.procurement_of_pair("c1", "isku_a"), max_buy=Rate.parse("1.00"))  # type: ignore[arg-type]

    await c.store.write(cheap)
    await c.scale(4)
    await c.step(c.deployments, "d1")
    waits = [row for row in await c.rows() if row.granted_at is None]
    assert len(waits) == 2
    assert (await procurement(c)).status.code == "price_above_limit"  # type: ignore[union-attr]
    await c.step(c.deployments, "d1")
    (order,) = await held(c)
    assert (order.status, order.filled.entries[0].node_count) == ("filled", 2), "half of four, at the cluster's price"
    await c.work()


@on_cloud
async def test_an_order_that_nobody_fills_is_told_and_tried_again_later(c: Cloud) -> None:
    await c.hello(node(slots=1))
    await settings(c, spot=False)
    await c.scale(2)
    await c.step(c.deployments, "d1")
    await c.step(c.deployments, "d1")
    (order,) = await held(c)
    assert order.status == "cancelled"
    story = await c.store.read(lambda read: [line for _, _, _, line in read.story("e1")])
    assert any("2 held for 60 minutes cannot be had for 19.999980" in line for line in story), story
    await c.step(c.deployments, "d1")
    assert len(await held(c)) == 1
    c.at += 61
    await c.step(c.deployments, "d1")
    assert len(await held(c)) == 2


@on_cloud
async def test_the_next_preferred_kind_is_taken_while_the_first_cannot_be_had(c: Cloud) -> None:
    await c.hello(node(slots=1, sku="isku_b"), node("n2", slots=4), skus=(SKU, OTHER))
    prefer = ({"gpu_name": {"eq": "RTX 4090"}}, {"num_gpus": {"eq": 0}})

    def write(write: Transaction) -> None:
        write.set_revision("r1", spec=replace(SPEC, image=ImageSpec(prefer=prefer)))

    await c.store.write(write)
    await c.scale(1)
    await c.work()
    (first,) = await c.placed()
    assert first.sku_id == "isku_b"
    await c.scale(2)
    await c.work()
    assert sorted(row.sku_id for row in await c.placed()) == ["isku_a", "isku_b"]
    kept = await c.store.read(lambda read: read.deployment("d1"))
    assert kept is not None and kept.sku_id == "isku_a"


@on_cloud
async def test_nothing_is_made_while_no_kind_of_node_will_do(c: Cloud) -> None:
    def ask(query: dict[str, Any]) -> Callable[[Transaction], None]:
        return lambda write: write.set_revision("r1", spec=replace(SPEC, image=ImageSpec(query=query, strict=True)))

    await c.store.write(ask({"num_gpus": {"gte": 1}}))
    await c.hello(node(slots=4))
    await c.scale(1)
    await c.work()
    assert await c.rows() == []
    kept = await c.store.read(lambda read: read.deployment("d1"))
    assert kept is not None
    assert "no kind of node meets its requirements (cpu-4x: num_gpus gte 1 (it has 0))" in kept.reasons
    await c.hello(node(slots=4), node("n2", sku="isku_b"), skus=(SKU, OTHER))
    await c.work()
    (row,) = await c.placed()
    assert row.sku_id == "isku_b"


@on_cloud
async def test_old_revisions_are_forgotten_but_not_those_in_use(c: Cloud) -> None:
    def write(write: Transaction) -> list[str]:
        for number in range(2, 31):
            write.add_revision(f"r{number}", "e1", replace(SPEC, bundle=f"{number:064d}", scale=ScaleSpec()), NOW)
        found = write.endpoint("e1")
        assert found is not None
        write.set_endpoint(found, revision_id="r30", stable_revision_id="r3")
        return write.prune_revisions("e1", 20)

    gone = await c.store.write(write)
    left = await c.store.read(lambda read: [one.revision_id for one in read.revisions_of("e1")])
    assert left == ["r1", "r3", *(f"r{number}" for number in range(11, 31))], "r1 is what its deployment runs"
    assert set(gone).isdisjoint(left)
    bundles = await c.store.read(lambda read: read.bundles())
    assert f"{3:064d}" in bundles and f"{5:064d}" not in bundles
