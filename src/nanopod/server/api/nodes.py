"""Nodes and their kinds."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.capacity import Sku
from nanopod.model.chain import Key
from nanopod.server.api.answers import whole_list
from nanopod.server.api.context import Context, Operation
from nanopod.store.nodes import NodeFacts
from nanopod.store.transaction import Transaction


async def list_nodes(context: Context, request: Request, _key: Key) -> Response:
    """Every node with its state and how many of its slots are taken."""

    def read(read: Transaction) -> tuple[list[NodeFacts], dict[str, int]]:
        used: dict[str, int] = {}
        for instance in read.instances_live():
            if instance.node_id is not None:
                used[instance.node_id] = used.get(instance.node_id, 0) + 1
        return read.node_facts(), used

    facts, used = await context.store.read(read)

    def show(known: NodeFacts) -> dict[str, Any]:
        node = known.node
        return {
            "id": node.node_id,
            "object": "node",
            "machine_id": node.machine_id,
            "instance_sku_id": node.sku_id,
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


def show_sku(sku: Sku) -> dict[str, Any]:
    """A kind of node as the API shows it."""
    names = [name for name in sku.__dataclass_fields__ if name not in ("sku_id",)]
    return {"id": sku.sku_id, "object": "instance_sku", **{name: getattr(sku, name) for name in names}}


async def list_skus(context: Context, request: Request, _key: Key) -> Response:
    """Every kind of node that was seen here."""
    return whole_list(request, await context.store.read(lambda read: read.skus()), show_sku)


OPERATIONS: Final = (
    Operation("GET", "/v1/nodes", list_nodes, "List nodes", scope="read", query=("limit", "starting_after")),
    Operation("GET", "/v1/instance_skus", list_skus, "List kinds of nodes", scope="read"),
)
