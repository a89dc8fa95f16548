"""Nodes: the places on machines that run instances."""

from __future__ import annotations

from typing import Any, Final, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.server.api.answers import whole_list
from nanopod.server.api.context import Context, Operation
from nanopod.store.nodes import NodeFacts
from nanopod.store.transaction import Transaction


class NodeAnswer(TypedDict):
    """A part of a machine. Each of its `slots` runs one instance; the market counts each as a node."""

    id: str
    object: str
    machine_id: str
    instance_sku_id: str
    provider_id: str | None
    state: Literal["up", "draining", "unreachable", "lost"]
    linked: bool
    slots: int
    slots_used: int
    seen_at: int
    boot_id: str
    version: str
    inventory: dict[str, Any]
    created_at: int


async def list_nodes(context: Context, request: Request, _key: Key) -> Response:
    """Every node with its state and how many of its slots are taken."""

    def read(read: Transaction) -> tuple[list[NodeFacts], dict[str, int]]:
        used: dict[str, int] = {}
        for instance in read.instances_live():
            if instance.node_id is not None:
                used[instance.node_id] = used.get(instance.node_id, 0) + 1
        return read.node_facts(), used

    facts, used = await context.store.read(read)

    def show(known: NodeFacts) -> NodeAnswer:
        node = known.node
        return {
            "id": node.node_id,
            "object": "node",
            "machine_id": node.machine_id,
            "instance_sku_id": node.sku_id,
            "provider_id": node.provider_id or None,
            "state": node.state,
            "linked": node.machine_id in context.live.machines,
            "slots": node.slots,
            "slots_used": used.get(node.node_id, 0),
            "seen_at": int(max(node.seen_at, context.live.machines.get(node.machine_id, 0.0))),
            "boot_id": known.boot_id,
            "version": known.version,
            "inventory": known.inventory,
            "created_at": int(known.created_at),
        }

    return whole_list(request, facts, show)


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/nodes", list_nodes, "List nodes", scope="read", query=("limit", "starting_after"),
        answer=NodeAnswer, listed=True,
    ),
)  # fmt: skip
