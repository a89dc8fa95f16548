"""The chain with the real desk: time is bought, quota granted and places taken with the same commits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from chain_rows import NOW, SPEC
from chain_stage import AT, OTHER, SKU, Stage, node

from nanopod.control.capacity import MachineReconciler
from nanopod.control.choosing import choose_sku
from nanopod.control.deployment import DeploymentReconciler, new_instance
from nanopod.control.instance import InstanceReconciler
from nanopod.control.market.desk import Desk, MarketSettings
from nanopod.ledger import chart, recipes
from nanopod.ledger.transfers import AMOUNT_MAX
from nanopod.model.capacity import Capacity, Sku
from nanopod.model.chain import Account, Instance, Workspace
from nanopod.model.endpoint import ImageSpec
from nanopod.model.procurement import Provider
from nanopod.model.wire import WorkerState
from nanopod.server.assemble import _open_market
from nanopod.store.transaction import Transaction


class Cloud(Stage):
    """A stage with the real desk and the provider of the cluster's own nodes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.real = Desk(self.new_id, MarketSettings())
        self.desk: Any = self.real
        self.at = AT
        self.deployments = DeploymentReconciler(self.live, self.new_id, self.real, lambda: self.at)
        self.instances = InstanceReconciler(self.live, self.real, lambda: self.at)
        self.machines = MachineReconciler(self.live, 0.0, self.real, lambda: self.at)

    async def make(self, **more: Any) -> None:
        await super().make(**more)

        def write(write: Transaction) -> None:
            write.add_account(Account("acct_2", "local-node", "provider", AT))
            write.add_workspace(Workspace("w2", "local-node", "acct_2", AT))
            write.add_capacity(Capacity("c2", "w2", "local-node", "originating", account_id="acct_2"), AT)
            write.add_provider(Provider("prov_1", "local-node", "acct_2", "w2", "c2"))
            line = recipes.set_line("line", "w1", AMOUNT_MAX)
            write.open_accounts(chart.accounts_of(line))
            write.post_transfers(line, int(AT * 1_000_000))

        await self.store.write(write)

    async def work(self) -> None:
        """Every instance is looked at until nothing happens any more."""
        for _ in range(10):
            acted = False
            for key in ("d1",):
                plan = await self.step(self.deployments, key)
                acted |= plan is not None and bool(plan.make or plan.stop or plan.choose)
            for row in await self.store.read(lambda read: read.instances_live()):
                plan = await self.step(self.instances, row.instance_id)
                acted |= plan is not None and plan.step in ("place", "end", "ready", "restart")
            if not acted:
                return
        raise AssertionError("it does not calm down")

    async def placed(self) -> list[Instance]:
        return [row for row in await self.rows() if row.node_id is not None and row.intent == "run"]


def on_cloud(test: Callable[[Cloud], Awaitable[None]]) -> Callable[[Path], None]:
    async def run(path: Path) -> None:
        cloud = Cloud(path / "nanopod.db")
        try:
            await cloud.make()
            await test(cloud)
        finally:
            await cloud.store.close()

    def wrapped(tmp_path: Path) -> None:
        asyncio.run(run(tmp_path))

    wrapped.__name__ = test.__name__
    return wrapped


@on_cloud
async def test_an_endpoint_gets_what_there_is_and_says_what_it_lacks(c: Cloud) -> None:
    await c.hello(node(slots=2))
    await c.scale(3)
    await c.work()
    rows = await c.rows()
    assert len(rows) == 3
    assert len(await c.placed()) == 2
    (waits,) = [row for row in rows if row.granted_at is None]
    assert waits.reason.startswith("awaits allocation: no_supply")
    assert all(row.early_until is not None for row in await c.placed()), "before their first block, as nobody owns this"


@on_cloud
async def test_blocks_pass_and_who_is_paid_for_stays(c: Cloud) -> None:
    await c.hello(node(slots=4))
    await c.scale(2)
    await c.work()
    before = await c.placed()
    for _ in range(90):
        c.at += 60
        assert not await c.store.write(lambda write: c.real.boundary(write, c.at))
    await c.work()
    after = await c.placed()
    assert [row.instance_id for row in after] == [row.instance_id for row in before]
    assert all(row.early_until is None and not row.warned for row in after), "a rolling procurement never warns"
    await c.scale(1)
    await c.work()
    c.at += 60
    await c.store.write(lambda write: c.real.boundary(write, c.at))
    assert len(await c.placed()) == 1


@on_cloud
async def test_instances_that_came_before_any_node_are_placed_when_one_joins(c: Cloud) -> None:
    await c.scale(1)
    await c.work()
    (row,) = await c.rows()
    assert (row.granted_at, row.reason) == (None, "no node has joined yet")
    await c.hello(node())
    await c.work()
    (row,) = await c.placed()
    assert row.sku_id == "isku_a"
    kept = await c.store.read(lambda read: read.deployment("d1"))
    assert kept is not None
    assert kept.sku_id == "isku_a"


@on_cloud
async def test_a_place_that_comes_free_goes_to_who_waits(c: Cloud) -> None:
    await c.hello(node(slots=1))
    await c.scale(2)
    await c.work()
    (first,) = await c.placed()
    await c.set(first.instance_id, phase="ended", intent="stop")
    await c.work()
    second = [row for row in await c.placed() if row.instance_id != first.instance_id]
    assert len(second) == 1
    assert len(await c.rows()) == 2, "and another is made in its stead"


@on_cloud
async def test_an_update_without_room_makes_room(c: Cloud) -> None:
    await c.hello(node(slots=1))
    await c.scale(1)
    await c.work()
    (old,) = await c.placed()
    c.live.gateway_up("g1", ())
    c.live.worker("g1", WorkerState(old.instance_id, 1, True, True))
    await c.set(old.instance_id, phase="ready")
    await c.work()

    def update(write: Transaction) -> None:
        write.add_revision("r2", "e1", SPEC, AT)
        found = write.deployment("d1")
        assert found is not None
        write.set_deployment(found, revision_id="r2")

    await c.store.write(update)
    await c.work()
    gone = await c.instance(old.instance_id)
    assert gone.intent == "stop", "nothing more is on sale, so the old one makes room"
    await c.set(old.instance_id, phase="ended")
    await c.work()
    (new,) = await c.placed()
    assert new.revision_id == "r2"


@on_cloud
async def test_a_lost_machine_moves_its_endpoint_to_another_kind(c: Cloud) -> None:
    await c.hello(node(slots=1))
    await c.scale(1)
    await c.work()
    (row,) = await c.placed()
    big = replace(OTHER, sku_id="isku_b")

    def second(write: Transaction) -> None:
        write.put_sku(big)
        write.put_node(replace(node("n2", sku="isku_b"), machine_id="m2"), "b", "1", {}, NOW, "prov_1")
        with c.real.session(write, c.at) as market:
            market.supply_changed("isku_b")

    await c.store.write(second)
    assert (await c.step(c.machines, "m1", NOW + 100)).state == "lost"
    await c.work()
    gone = await c.instance(row.instance_id)
    assert gone.ended_at is not None
    await c.step(c.deployments, "d1", NOW + 200)
    await c.work()
    (moved,) = await c.placed()
    assert (moved.node_id, moved.sku_id) == ("n2", "isku_b")


@on_cloud
async def test_instances_of_an_earlier_version_go_on_without_a_gap(c: Cloud) -> None:
    def before(write: Transaction) -> None:
        write.put_sku(SKU)
        write.put_node(node(), "b", "1", {}, NOW, "prov_1")
        made = write.deployment("d1")
        assert made is not None
        for seq in (1, 2):
            row = replace(new_instance(f"inst_{seq}", seq, made, 4, AT), node_id="n1", phase="ready", granted_at=AT)
            write.add_instance(replace(row, sku_id="isku_a" if seq == 1 else ""))
        _open_market(write, c.real, c.at)

    await c.store.write(before)
    assert {row.intent for row in await c.rows()} == {"run"}
    c.at += 60
    await c.store.write(lambda write: c.real.boundary(write, c.at))
    assert {(row.intent, row.sku_id, row.early_until) for row in await c.rows()} == {("run", "isku_a", None)}


@on_cloud
async def test_the_kind_is_chosen_by_requirements_then_by_what_is_free(c: Cloud) -> None:
    await c.hello(node(), node("n2", slots=4, sku="isku_b"), skus=(SKU, OTHER))

    def ask(query: dict[str, Any]) -> Callable[[Transaction], Any]:
        def write(write: Transaction) -> Any:
            with c.real.session(write, c.at) as market:
                return choose_sku(market, write, replace(SPEC, image=ImageSpec(query=query)), 3)

        return write

    assert (await c.store.write(ask({"num_gpus": {"gte": 1}}))).sku_id == "isku_b"
    assert (await c.store.write(ask({"num_gpus": {"eq": 0}}))).sku_id == "isku_a"
    assert (await c.store.write(ask({}))).sku_id == "isku_b", "only there is room for three"
    assert (await c.store.write(ask({"num_gpus": {"gte": 9}}))).sku_id == ""


def test_equal_kinds_are_one_kind() -> None:
    assert Sku("isku_a", "cpu-4x", num_vcpus=4) == SKU
