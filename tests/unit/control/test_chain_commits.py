"""What the chain's reconcilers write, on a real store: instances with their notices, sessions of the desk, machines."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from chain_rows import NOW, clock
from chain_stage import AT, OTHER, SKU, Stage, node, on_stage

from nanopod.control.capacity import register_machine
from nanopod.control.choosing import free_name, instance_name, name_of, retire_template
from nanopod.control.deployment import new_instance
from nanopod.control.observe import observe_machine
from nanopod.control.wanted import WantedPusher
from nanopod.model.chain import Deployment, Image, Instance
from nanopod.model.endpoint import Failure, ObservedInstance
from nanopod.model.money import Rate
from nanopod.model.procurement import Procurement, Status
from nanopod.model.wire import AgentHello
from nanopod.store.transaction import Transaction


class Secrets:
    pepper = b"p"

    def join_token(self, instance_id: str, epoch: int) -> str:
        return f"{instance_id}/{epoch}"


@on_stage(sku_id="isku_a")
async def test_instances_are_made_within_a_session_and_told(s: Stage) -> None:
    await s.hello(node())
    await s.scale(2)
    plan = await s.step(s.deployments, "d1")
    assert (sum(count for _, count in plan.make), plan.durable) == (2, True)
    rows = await s.rows()
    assert [row.seq for row in rows] == [1, 2]
    assert {(row.sku_id, row.template_id, row.granted_at, row.created_at) for row in rows} == {
        ("isku_a", "itmpl_1", None, AT)
    }
    assert len({row.name for row in rows}) == 2
    assert all(row.name.startswith("square-") for row in rows)
    assert s.desk.market.capacities == ["c1"]
    assert s.desk.market.procured == [("c1", "isku_a")]
    assert s.desk.times[-1] == AT, "the market goes by the cluster's clock"
    assert await s.notices() == ["instance.created"] * 2
    await s.scale(0)
    await s.step(s.deployments, "d1")
    assert {(row.intent, row.reason) for row in await s.rows()} == {("stop", "deployment square wants 0")}
    assert s.desk.market.capacities == ["c1", "c1"]


@on_stage(sku_id="isku_a")
async def test_only_granted_instances_are_placed(s: Stage) -> None:
    await s.hello(node(slots=1))
    await s.scale(2)
    await s.step(s.deployments, "d1")
    first, second = [row.instance_id for row in await s.rows()]
    assert (await s.step(s.instances, first)).step == "wait"
    assert "awaits allocation" in (await s.instance(first)).reason
    assert not (await s.step(s.instances, first)).changes
    for key in (first, second):
        await s.set(key, granted_at=AT)
    assert (await s.step(s.instances, first)).step == "place"
    assert (await s.instance(first)).node_id == "n1"
    waits = await s.step(s.instances, second)
    assert (waits.step, waits.reason) == ("wait", "n1: all 1 slots are taken")


@on_stage(sku_id="isku_a")
async def test_an_instance_says_what_its_procurement_lacks(s: Stage) -> None:
    await s.hello(node())
    await s.scale(1)
    await s.step(s.deployments, "d1")
    (row,) = await s.rows()
    words = "no_supply: 1 node is missing, nothing is on sale at 19.999980"

    def write(write: Transaction) -> None:
        made = Procurement("proc_1", "c1", "isku_a", "node_count", Rate(5), Rate(1), workspace_id="w1", name="p")
        write.add_procurement(made)
        write.set_procurement_status("proc_1", Status("warning", "no_supply", words))

    await s.store.write(write)
    assert (await s.step(s.instances, row.instance_id)).reason == f"awaits allocation: {words}"
    snapshot = await s.store.read(lambda read: s.deployments.observe(read, "d1"))
    assert snapshot is not None
    assert snapshot.short == words


@on_stage(sku_id="isku_a")
async def test_its_end_is_told_to_the_market(s: Stage) -> None:
    await s.hello(node())
    await s.scale(1)
    await s.step(s.deployments, "d1")
    (row,) = await s.rows()
    await s.set(row.instance_id, granted_at=AT, node_id="n1", phase="failed", failure=Failure("import", "no x"))
    s.desk.market.capacities.clear()
    assert (await s.step(s.instances, row.instance_id)).step == "end"
    gone = await s.instance(row.instance_id)
    assert (gone.phase, gone.ended_at) == ("failed", AT)
    assert s.desk.market.capacities == ["c1"]
    assert (await s.notices())[-1] == "instance.failed"
    kept = await s.store.read(lambda read: read.deployment("d1"))
    assert kept is not None
    assert kept.fails == 1
    assert NOW < kept.not_before < NOW + 1, "back-off is wall time"


@on_stage(sku_id="isku_a")
async def test_what_the_quota_stopped_is_told_once_and_killed(s: Stage) -> None:
    await s.hello(node())
    await s.scale(1)
    await s.step(s.deployments, "d1")
    (row,) = await s.rows()
    reason = "quota: the capacity holds no time for it any more"
    await s.set(row.instance_id, granted_at=AT, node_id="n1", phase="ready", intent="stop", reason=reason)
    seen = ObservedInstance(row.instance_id, 1, "stopping", reason="no longer wanted")
    await s.store.write(lambda write: observe_machine(write, "m1", [seen], NOW))
    assert (await s.instance(row.instance_id)).reason == reason, "why it stops says more than how"
    orders = await s.store.read(lambda read: wanted(s).build(read, "m1", NOW))
    assert (orders.instances, orders.killed) == ([], [row.instance_id])
    await s.set(row.instance_id, phase="ended")
    await s.step(s.instances, row.instance_id)
    assert await s.notices() == ["instance.created"], "the desk told it when it decided"


@on_stage(sku_id="isku_a")
async def test_a_start_that_no_agent_heard_of_ends_when_it_is_wanted_no_more(s: Stage) -> None:
    await s.hello(node())
    await s.scale(2)
    await s.step(s.deployments, "d1")
    forgotten, named = await s.rows()
    # Both failed at epoch 1 and are about to start again; of one the agent still says that.
    seen = [ObservedInstance(named.instance_id, 1, "failed")]
    again = {"granted_at": AT, "node_id": "n1", "phase": "queued", "epoch": 2, "not_before": NOW + 5}
    for row in (forgotten, named):
        await s.set(row.instance_id, **again)
        await s.store.write(lambda write: observe_machine(write, "m1", seen, NOW))
        assert (await s.instance(row.instance_id)).phase == "queued", "it is wanted"
        await s.set(row.instance_id, intent="stop", reason="deleted")
        await s.store.write(lambda write: observe_machine(write, "m1", seen, NOW))
        assert (await s.step(s.instances, row.instance_id)).step == "end"
        assert (await s.instance(row.instance_id)).ended_at == AT


def wanted(s: Stage) -> WantedPusher:
    secrets: Any = Secrets()
    none: Any = None
    return WantedPusher(none, s.live, none, secrets, clock, 1)


async def machine(s: Stage, **more: Any) -> Instance:
    """An instance of a template, placed and granted."""

    def write(write: Transaction) -> None:
        write.add_image(Image("image_1", "w1", "ubuntu", "completed", "ab" * 32, 5, False, (), AT, AT))
        made = Deployment("d2", "", "w1", "c1", "", 1, 0, (), 0, 0.0, AT, AT, "batch", sku_id="isku_a")
        write.add_deployment(made)
        row = replace(
            new_instance("inst_m", 9, made, 1, AT), image_id="image_1", cloud_init="IyEvYmluL3NoCg==", granted_at=AT,
            node_id="n1", name="calm-otter",
        )  # fmt: skip
        write.add_instance(replace(row, **more))

    await s.store.write(write)
    return await s.instance("inst_m")


@on_stage()
async def test_a_machine_instance_is_wanted_with_its_script_and_image(s: Stage) -> None:
    await s.hello(node())
    await machine(s, warned=json.dumps({"at": 6000, "leads_s": [600], "reason": "price"}))
    orders = await s.store.read(lambda read: wanted(s).build(read, "m1", NOW))
    (spec,) = orders.instances
    assert (spec.app.kind, spec.name, spec.endpoint_id) == ("machine", "calm-otter", "")
    assert (spec.cloud_init, spec.image_sha256) == ("IyEvYmluL3NoCg==", "ab" * 32)
    assert (orders.notices["inst_m"].at, orders.notices["inst_m"].reason) == (6000, "price")


@on_stage()
async def test_a_machine_instance_is_ready_without_a_link_and_fails_for_good(s: Stage) -> None:
    await s.hello(node())
    await machine(s, phase="ready")
    assert (await s.step(s.instances, "inst_m")).step == "ready"
    assert (await s.notices())[-1] == "instance.running"
    await s.set("inst_m", phase="failed", exit_code=3, reason="its script ended with exit code 3")
    assert (await s.step(s.instances, "inst_m")).step == "end"
    assert (await s.instance("inst_m")).phase == "failed"
    assert s.desk.market.capacities[-1] == "c1", "the desk replaces it"
    story = await s.store.read(lambda read: read.story("d2"))
    assert any("its script ended" in message for *_, message in story)


@on_stage()
async def test_the_history_of_a_deployment_is_bounded(s: Stage) -> None:
    await s.hello(node())
    row = await machine(s, phase="ready")

    def past(write: Transaction) -> None:
        for seq in range(-250, 0):
            gone = replace(row, instance_id=f"inst_{seq}", seq=seq, node_id=None, phase="ended", ended_at=AT + seq)
            write.add_instance(gone)

    await s.store.write(past)
    await s.set("inst_m", phase="failed", exit_code=1, ready_at=NOW)
    await s.step(s.instances, "inst_m")
    left = await s.store.read(lambda read: read.instances_of_deployment("d2", ended=True))
    assert len(left) == 200
    assert {"inst_m", "inst_-1"} <= {one.instance_id for one in left}


@on_stage()
async def test_a_deployment_without_an_endpoint_is_left_to_the_desk(s: Stage) -> None:
    await machine(s)
    assert await s.store.read(lambda read: s.deployments.observe(read, "d2")) is None


@on_stage()
async def test_a_machine_that_appears_or_goes_is_told_to_the_market(s: Stage) -> None:
    await s.hello(node(), node("n2", sku="isku_b"), skus=(SKU, OTHER))
    assert s.desk.market.kinds == ["isku_a", "isku_b"]
    plan = await s.step(s.machines, "m1", NOW + 100)
    assert plan.state == "lost"
    assert s.desk.market.kinds[2:] == ["isku_a", "isku_b"]
    states = await s.store.read(lambda read: {n.state for n in read.nodes()})
    assert states == {"lost"}


@on_stage()
async def test_a_node_keeps_its_provider_and_a_changed_kind_is_told_too(s: Stage) -> None:
    await s.hello(node())
    await s.store.write(lambda write: write.set_node_provider("n1", "prov_partner"))
    await s.hello(node(sku="isku_b"), skus=(OTHER,))
    (row,) = await s.store.read(lambda read: read.nodes())
    assert (row.provider_id, row.sku_id) == ("prov_partner", "isku_b")
    assert s.desk.market.kinds == ["isku_a", "isku_a", "isku_b"]


@on_stage()
async def test_on_a_test_clock_machines_come_at_the_clusters_time(s: Stage) -> None:
    await s.store.write(lambda write: write.put_setting("test_clock_now", "777"))
    desk: Any = s.desk
    said = AgentHello("m1", "boot", "1", [node()], [SKU], [])
    await s.store.write(lambda write: register_machine(write, desk, said, NOW))
    assert s.desk.times == [777.0]


@on_stage()
async def test_a_deleted_endpoint_leaves_no_template_and_no_deployment(s: Stage) -> None:

    def delete(write: Transaction) -> None:
        found, deployment = write.endpoint("e1"), write.deployment_of("e1")
        assert found is not None
        assert deployment is not None
        write.set_endpoint(found, deleted_at=AT)
        retire_template(write, deployment)
        assert write.template_named("w1", "square") is None, "its name is free at once"

    await s.store.write(delete)
    assert (await s.step(s.endpoints, "e1")).purge
    left = await s.store.read(lambda read: (read.endpoint("e1"), read.deployment("d1"), read.template("itmpl_1")))
    assert left == (None, None, None)


def test_names() -> None:
    assert name_of("square", "default") == "square"
    assert name_of("square", "v2") == "square-v2"
    taken = {"square", "square-2"}
    assert free_name("square", taken.__contains__) == "square-3"
    made = Deployment("d1", "e1", "w1", "c1", "r1", 0, 0, (), 0, 0.0, AT, AT, "square")
    assert instance_name(made, "inst_0123456789ABCDEF") == "square-ABCDEF"
