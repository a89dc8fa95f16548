"""Hibernated instances on a real store: drained, kept without time and place, woken under a new epoch, ended."""

from __future__ import annotations

from typing import Any

from chain_rows import NOW
from chain_stage import AT, Stage, node, on_stage

from nanopod.control.market.rows import Rows, wanted
from nanopod.control.observe import observe_machine
from nanopod.control.starts import Starts, eta_s
from nanopod.control.views import instance_view, market_status
from nanopod.model.chain import Instance
from nanopod.model.endpoint import Failure, ObservedInstance
from nanopod.model.wire import WorkerState

AWAITS = "awaiting_allocation"


async def running(s: Stage, cold: int = 1) -> Instance:
    """One ready instance of an endpoint that wants so many hibernated ones."""
    await s.hello(node())
    await s.scale(1)
    await s.step(s.deployments, "d1")
    (row,) = await s.rows()
    await s.set(row.instance_id, granted_at=AT, sku_id="isku_a")
    await s.step(s.instances, row.instance_id)
    s.live.worker("g1", WorkerState(row.instance_id, 1, True, True))
    await s.step(s.instances, row.instance_id, NOW + 3)
    await keep(s, cold)
    return await s.instance(row.instance_id)


async def keep(s: Stage, cold: int) -> None:
    def write(write: Any) -> None:
        found = write.endpoint("e1")
        assert found is not None
        write.set_endpoint(found, cold=cold)

    await s.store.write(write)


async def hibernated(s: Stage) -> Instance:
    row = await running(s)
    await s.scale(0)
    await s.step(s.deployments, "d1")
    await s.store.write(lambda write: observe_machine(write, "m1", [], NOW))
    await s.set(row.instance_id, phase="ended")
    await s.step(s.instances, row.instance_id)
    return await s.instance(row.instance_id)


@on_stage(sku_id="isku_a")
async def test_the_way_down_keeps_the_row_and_nothing_else(s: Stage) -> None:
    row = await running(s)
    assert (row.ready_at, row.start_at) == (NOW + 3, NOW), "how long its start took is known"
    await s.scale(0)
    plan = await s.step(s.deployments, "d1")
    assert [i.instance_id for i in plan.hibernate] == [row.instance_id]
    draining = await s.instance(row.instance_id)
    assert (draining.intent, draining.node_id, market_status(draining)) == ("hibernate", "n1", "running")
    assert not wanted(draining), "the market gives it no more time"
    seen = ObservedInstance(row.instance_id, 1, "draining")
    await s.store.write(lambda write: observe_machine(write, "m1", [seen], NOW))
    assert instance_view(await s.instance(row.instance_id), s.live)["phase"] == "draining"
    s.desk.market.capacities.clear()
    await s.store.write(lambda write: observe_machine(write, "m1", [], NOW))
    assert (await s.step(s.instances, row.instance_id)).step == "hibernate"
    kept = await s.instance(row.instance_id)
    assert (kept.phase, kept.node_id, kept.home, kept.pid) == ("hibernated", None, "n1", None)
    assert (kept.ended_at, kept.hibernated_at) == (None, AT)
    assert s.desk.market.capacities == ["c1"], "its time is free"
    assert (await s.notices())[-1] == "instance.hibernated"
    assert not (await s.step(s.instances, row.instance_id)).changes, "and so it stays"


@on_stage(sku_id="isku_a")
async def test_it_is_listed_by_its_status_and_counts_for_no_quota(s: Stage) -> None:
    row = await hibernated(s)
    assert market_status(row) == "hibernated"

    def look(read: Any) -> tuple[list[str], list[str], int]:
        names = ("hibernated", AWAITS, "running")
        by = {one: [i.instance_id for i in read.instances_page("w1", statuses=(one,))] for one in names}
        return by["hibernated"], by[AWAITS] + by["running"], len(Rows(read).live("c1"))

    assert await s.store.read(look) == ([row.instance_id], [], 0)


@on_stage(sku_id="isku_a")
async def test_it_is_woken_as_a_new_epoch_near_its_home(s: Stage) -> None:
    row = await hibernated(s)
    await s.hello(node("n0", slots=8), node())
    await s.scale(1)
    plan = await s.step(s.deployments, "d1", NOW + 60)
    assert ([i.instance_id for i in plan.wake], plan.make) == ([row.instance_id], ())
    woken = await s.instance(row.instance_id)
    assert (woken.intent, woken.phase, woken.epoch, woken.start_kind) == ("run", "queued", 2, "wake")
    assert (woken.start_at, woken.ready_at, woken.granted_at, woken.hibernated_at) == (NOW + 60, None, None, None)
    await s.set(row.instance_id, granted_at=AT)
    assert (await s.step(s.instances, row.instance_id)).node_id == "n1", "not where most is free"
    s.live.worker("g1", WorkerState(row.instance_id, 2, True, True))
    await s.step(s.instances, row.instance_id, NOW + 62)
    assert (await s.notices())[-1] == "instance.running"
    known = Starts()
    known.learn(await s.rows())
    assert known.measured() == {"wake": 2.0, "provision": None}
    known.learn(await s.rows())
    assert known.wake == [2.0], "each start counts once"


@on_stage(sku_id="isku_a")
async def test_a_wake_that_fails_ends_and_another_one_is_made(s: Stage) -> None:
    row = await hibernated(s)
    await s.scale(1)
    await s.step(s.deployments, "d1")
    gone = Failure("start", "no such file", user_fault=False)
    await s.set(row.instance_id, granted_at=AT, node_id="n1", phase="failed", failure=gone)
    plan = await s.step(s.instances, row.instance_id)
    assert (plan.step, plan.reason) == ("end", "could not be woken: no such file")
    again = await s.step(s.deployments, "d1", NOW + 5)
    assert sum(count for _, count in again.make) == 1


@on_stage(sku_id="isku_a")
async def test_a_wake_that_is_taken_back_hibernates_again(s: Stage) -> None:
    row = await hibernated(s)
    await s.scale(1)
    await s.step(s.deployments, "d1")
    await s.scale(0)
    plan = await s.step(s.deployments, "d1")
    assert [i.instance_id for i in plan.hibernate] == [row.instance_id]
    assert (await s.step(s.instances, row.instance_id)).step == "hibernate"
    again = await s.instance(row.instance_id)
    assert (again.phase, again.home, again.epoch) == ("hibernated", "n1", 2)


@on_stage(sku_id="isku_a")
async def test_it_ends_with_its_node(s: Stage) -> None:
    row = await hibernated(s)
    plan = await s.step(s.machines, "m1", NOW + 100)
    assert plan.state == "lost"
    assert (
        await s.step(s.instances, row.instance_id, NOW + 100)
    ).reason == "the node that it would be woken on is gone"
    assert (await s.instance(row.instance_id)).phase == "ended"


@on_stage(sku_id="isku_a")
async def test_it_ends_with_its_endpoint_and_with_its_revision(s: Stage) -> None:
    row = await hibernated(s)

    def update(write: Any) -> None:
        found = write.deployment("d1")
        write.set_deployment(found, revision_id="r2")
        write.add_revision("r2", "e1", write.revision("r1").spec, AT)

    await s.store.write(update)
    plan = await s.step(s.deployments, "d1")
    assert [i.instance_id for i in plan.stop] == [row.instance_id]
    assert (await s.step(s.instances, row.instance_id)).step == "end"


@on_stage(sku_id="isku_a")
async def test_what_never_ran_is_not_kept(s: Stage) -> None:
    await s.hello(node())
    await s.scale(1)
    await s.step(s.deployments, "d1")
    (row,) = await s.rows()
    await s.set(row.instance_id, intent="hibernate")
    assert (await s.step(s.instances, row.instance_id)).step == "end"


@on_stage(sku_id="isku_a")
async def test_the_next_start_is_foreseen(s: Stage) -> None:
    row = await running(s)
    assert eta_s([row], None, NOW, {row.instance_id}) == 0.0, "nothing starts"
    known = Starts(provision=[40.0, 20.0, 30.0])
    assert eta_s([row], known, NOW + 12) == 18.0
    assert eta_s([row], known, NOW + 300) == 1.0, "overdue"
