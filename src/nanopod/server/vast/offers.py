"""What is for sale here, in the shape of Vast's offers: one per node, filtered by the same query language."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanopod.model.capacity import Node, Sku
from nanopod.model.errors import Invalid
from nanopod.server.api.context import Context
from nanopod.server.vast.answers import fields_of, keyholder
from nanopod.server.vast.state import Vast

LIMIT_DEFAULT: Final = 64
_OPTIONS: Final = frozenset({"type", "order", "limit", "allocated_storage", "select_cols", "q", "api_key"})
_KINDS: Final = ("on-demand", "reserved", "bid", "ask")


async def search(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /bundles/: `{column: {op: value}}` with `type`, `order`, `limit`; `{"q": {...}}` is taken as well."""
    body = await fields_of(request)
    await keyholder(context, request, body, scope="read")
    wanted = body["q"] if isinstance(body.get("q"), dict) else body
    kind = wanted.get("type", "on-demand")
    if kind not in _KINDS:
        raise Invalid(f"type: {kind!r} is none of {', '.join(_KINDS)}", field="type")
    limit = wanted.get("limit", LIMIT_DEFAULT)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= 10_000:
        raise Invalid(f"limit: {limit!r} is no number from 1 to 10000", field="limit")

    def look(read: Any) -> tuple[list[Node], dict[str, Sku]]:
        nodes = read.nodes()
        return nodes, {node.sku_id: read.sku(node.sku_id) for node in nodes}

    nodes, skus = await context.store.read(look)
    offers = [offer_of(node, skus[node.sku_id], kind) for node in nodes if node.state == "up"]
    conditions = {name: value for name, value in wanted.items() if name not in _OPTIONS}
    found = [offer for offer in offers if matches(offer, conditions)]
    for column, direction in reversed([pair for pair in wanted.get("order") or [] if isinstance(pair, list)]):
        found.sort(key=lambda offer: (offer.get(column) is None, offer.get(column) or 0), reverse=direction == "desc")
    return JSONResponse({"success": True, "offers": found[:limit]})


def offer_of(node: Node, sku: Sku | None, kind: str) -> dict[str, Any]:
    """A node as an offer; sizes in MB (memory) and GB (disk), as Vast counts."""
    number = zlib.crc32(node.node_id.encode())
    sku = sku or Sku(node.sku_id, node.sku_id)
    gpu_ram = sku.accelerator_memory // 1_000_000
    return {
        "id": number,
        "ask_contract_id": number,
        "machine_id": zlib.crc32(node.machine_id.encode()),
        "host_id": 0,
        "type": kind,
        "gpu_name": "" if sku.accelerator == "none" else sku.accelerator,
        "num_gpus": sku.num_accelerators,
        "gpu_ram": gpu_ram,
        "gpu_total_ram": gpu_ram * sku.num_accelerators,
        "cpu_cores": sku.num_vcpus,
        "cpu_ram": sku.memory // 1_000_000,
        "disk_space": sku.local_storage / 1e9,
        "dph_total": 0.0,
        "reliability": 1.0,
        "verified": True,
        "rentable": True,
        "rented": False,
        "start_date": time.time(),
        "geolocation": sku.region,
    }


def matches(offer: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    """Whether an offer meets every condition; one on a column that is not known here is no obstacle."""
    for column, tests in conditions.items():
        if column not in offer or not isinstance(tests, Mapping):
            continue
        for op, value in tests.items():
            if not _holds(offer[column], str(op), value):
                return False
    return True


def _holds(have: Any, op: str, want: Any) -> bool:
    try:
        if op in ("in", "notin"):
            return (have in list(want)) is (op == "in")
        if op in ("eq", "neq"):
            return (have == want) is (op == "eq")
        return bool({"lt": have < want, "lte": have <= want, "gt": have > want, "gte": have >= want}[op])
    except KeyError:
        raise Invalid(f"{op}: is no operator; there are eq, neq, lt, lte, gt, gte, in, notin", field=op) from None
    except TypeError:
        return False
