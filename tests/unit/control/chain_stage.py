"""A store with a workspace, a capacity and an endpoint, and the chain's reconcilers on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from chain_rows import NOW, SPEC, FakeDesk

from nanopod.control.capacity import MachineReconciler, register_machine
from nanopod.control.choosing import template_of
from nanopod.control.deployment import DeploymentReconciler
from nanopod.control.endpoint import EndpointReconciler, Watch
from nanopod.control.instance import InstanceReconciler
from nanopod.control.live import Live
from nanopod.model.capacity import Capacity, Node, Sku
from nanopod.model.chain import Account, Deployment, Instance, Workspace
from nanopod.model.wire import AgentHello
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

AT = 5_000_000.0
"""The cluster's time in these tests, far from wall time (`NOW`)."""
SKU = Sku("isku_a", "cpu-4x", num_vcpus=4)
OTHER = Sku("isku_b", "1x-rtx-4090", "RTX 4090", 1, 24 << 30)


class Stage:
    """A store with a workspace, a capacity and an endpoint; reconcilers whose desk only remembers."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path)
        self.desk = FakeDesk()
        self.live = Live()
        self.ids = 0
        any_desk: Any = self.desk
        self.deployments = DeploymentReconciler(self.live, self.new_id, any_desk, lambda: AT)
        self.instances = InstanceReconciler(self.live, any_desk, lambda: AT)
        self.machines = MachineReconciler(self.live, 0.0, any_desk, lambda: AT)
        self.endpoints = EndpointReconciler(self.live, Watch(self.live))

    def new_id(self, kind: str) -> str:
        self.ids += 1
        return f"{kind}_{self.ids:06d}"

    async def make(self, **more: Any) -> None:
        def write(write: Transaction) -> None:
            write.add_account(Account("acct_1", "local", "user", AT))
            write.add_workspace(Workspace("w1", "default", "acct_1", AT))
            write.add_capacity(Capacity("c1", "w1", "default", account_id="acct_1"), AT)
            write.add_endpoint("e1", "w1", SPEC, "r1", AT)
            write.add_revision("r1", "e1", SPEC, AT)
            write.add_template(template_of(write, "w1", "square", "e1", "itmpl_1", AT))
            made = Deployment("d1", "e1", "w1", "c1", "r1", 0, 0, (), 0, 0.0, AT, AT, "square", template_id="itmpl_1")
            write.add_deployment(replace(made, **more))

        await self.store.write(write)

    async def step(self, reconciler: Any, key: str, now: float = NOW) -> Any:
        """Observe, plan, commit; returns the plan (None when there is nothing to look at)."""
        snapshot = await self.store.read(lambda read: reconciler.observe(read, key))
        if snapshot is None:
            return None
        plan = reconciler.plan(snapshot, now)
        if plan.changes:
            await self.store.write(lambda write: reconciler.commit(plan, write, now))
        return plan

    async def set(self, key: str, **values: Any) -> None:
        def write(write: Transaction) -> None:
            found = write.instance(key)
            assert found is not None
            write.set_instance(found, **values)

        await self.store.write(write)

    async def scale(self, target: int) -> None:
        def write(write: Transaction) -> None:
            found = write.deployment("d1")
            assert found is not None
            write.set_deployment(found, target_instance_count=target)

        await self.store.write(write)

    async def instance(self, key: str) -> Instance:
        found = await self.store.read(lambda read: read.instance(key))
        assert found is not None
        return found

    async def rows(self) -> list[Instance]:
        return await self.store.read(lambda read: read.instances_of("e1"))

    async def notices(self) -> list[str]:
        return [e.type for e in await self.store.read(lambda read: read.notices_after("w1", 0))]

    async def hello(self, *nodes: Node, skus: tuple[Sku, ...] = (SKU,), **more: Any) -> None:
        said = AgentHello("m1", "boot", "1", list(nodes), list(skus), [], **more)
        desk: Any = self.desk
        await self.store.write(lambda write: register_machine(write, desk, said, NOW, AT))


def on_stage(**more: Any) -> Callable[[Callable[[Stage], Awaitable[None]]], Callable[[Path], None]]:
    """A test on a stage whose deployment has these values."""

    def decorate(test: Callable[[Stage], Awaitable[None]]) -> Callable[[Path], None]:
        async def run(path: Path) -> None:
            stage = Stage(path / "nanopod.db")
            try:
                await stage.make(**more)
                await test(stage)
            finally:
                await stage.store.close()

        def wrapped(tmp_path: Path) -> None:
            asyncio.run(run(tmp_path))

        wrapped.__name__ = test.__name__
        return wrapped

    return decorate


def node(name: str = "n1", slots: int = 2, state: Any = "up", sku: str = "isku_a") -> Node:
    return Node(name, "m1", sku, slots, state)
