"""Instance SKUs: the kinds of nodes, what is on offer of each, and the properties by which they are found."""

from __future__ import annotations

from typing import Any, Final, Literal, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.market.shape import to_schedule
from nanopod.market.views import availability
from nanopod.model.capacity import Sku, SkuLife
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import time_of, words_of
from nanopod.server.api.lifecycle import STABLE, STEPS, SkuChange, change_life
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.references import canonical, find_sku
from nanopod.server.api.requirements import NUMBERS, PROPERTIES, Rule, matching, parse
from nanopod.server.api.showing import ScheduleEntry, Summary, entries_of
from nanopod.server.api.tenants import operator_only
from nanopod.store.transaction import Transaction

_UNITS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20))


class Property(TypedDict):
    """A property: its value, and how people read it."""

    value: str | int | bool
    display_value: str


class SkuAnswer(TypedDict):
    """A kind of node. All nodes of one are interchangeable. Properties are also there by their plain values."""

    object: Literal["instance_sku"]
    id: str
    name: str
    alias: str
    properties: dict[str, Property]
    audience_hint: str
    fungible: bool
    latency_class: Literal["lan", "wan"]
    lifecycle: Literal["stable", "deprecated", "deleted"]
    deprecated_at: float | None
    deleted_at: float | None
    region: str
    availability_zone: str
    accelerator: str
    form_factor: str
    rdma_type: str
    num_accelerators: int
    num_vcpus: int
    memory: int
    local_storage: int
    supports_public_ipv4: bool
    accelerator_memory: int
    provider: str
    federated: bool
    max_watts: int


class AvailabilityAnswer(TypedDict):
    """Nodes of one kind on offer over time, at any price."""

    object: Literal["availability"]
    instance_sku: Summary
    availability: list[ScheduleEntry]


class AvailabilityList(TypedDict):
    """What is on offer of every kind."""

    object: Literal["list"]
    requested_at: int
    cursor: None
    has_more: bool
    data: list[AvailabilityAnswer]


class KnownValue(TypedDict):
    """A value that some kind of node has."""

    value: str | int | bool
    display_value: str
    stable_at: int | None
    deprecated_at: int | None


class CatalogEntry(TypedDict):
    """A property by which kinds of nodes can be found."""

    key: str
    type: Literal["string", "integer", "boolean"]
    values: list[KnownValue]
    stable_at: int | None
    deprecated_at: int | None


class Catalog(TypedDict):
    """All properties."""

    object: Literal["instance_sku_property_catalog"]
    data: list[CatalogEntry]


def display(name: str, value: Any) -> str:
    """A property as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("memory", "local_storage", "accelerator_memory"):
        for unit, size in _UNITS:
            if value >= size:
                return f"{value / size:g} {unit}" if value % size == 0 else f"{value / size:.1f} {unit}"
        return f"{value} B" if value else "none"
    if name == "max_watts":
        return f"{value} W" if value else "not capped"
    if name == "num_vcpus":
        return f"{value} vCPUs"
    return str(value)


def show_sku(sku: Sku, life: SkuLife = STABLE) -> SkuAnswer:
    """A kind of node as the API shows it."""
    return {
        "object": "instance_sku",
        "id": sku.sku_id,
        "name": sku.alias,
        "alias": sku.alias,
        "properties": {
            name: {"value": getattr(sku, name), "display_value": display(name, getattr(sku, name))}
            for name in PROPERTIES
        },
        "audience_hint": life.audience_hint or ("tolerant" if sku.latency_class == "wan" else "general"),
        "fungible": True,
        "latency_class": sku.latency_class,
        "lifecycle": life.lifecycle,
        "deprecated_at": life.deprecated_at,
        "deleted_at": life.deleted_at,
        "region": sku.region,
        "availability_zone": sku.availability_zone,
        "accelerator": sku.accelerator,
        "form_factor": sku.form_factor,
        "rdma_type": sku.rdma_type,
        "num_accelerators": sku.num_accelerators,
        "num_vcpus": sku.num_vcpus,
        "memory": sku.memory,
        "local_storage": sku.local_storage,
        "supports_public_ipv4": sku.supports_public_ipv4,
        "accelerator_memory": sku.accelerator_memory,
        "provider": sku.provider,
        "federated": sku.federated,
        "max_watts": sku.max_watts,
    }


def _rules(request: Request) -> tuple[Rule, ...]:
    """The filters of a request: each property, and `requirements`."""
    rules = [Rule(name, "in", found) for name in (*PROPERTIES, "latency_class") if (found := words_of(request, name))]
    named = (*words_of(request, "id"), *words_of(request, "instance_sku"))
    if named:
        rules.append(Rule("id", "in", tuple(map(canonical, named))))
    return (*rules, *parse(request.query_params.get("requirements", "")))


def _living(read: Transaction) -> list[Sku]:
    """The kinds of nodes that are not deleted."""
    lives = read.sku_lives()
    return [sku for sku in read.skus() if lives.get(sku.sku_id, STABLE).lifecycle != "deleted"]


async def list_skus(context: Context, request: Request, _key: Key) -> Response:
    """The kinds of nodes, by id; every property is a filter. Deleted ones only with `lifecycle=deleted`."""
    page, rules = page_of(request, "isku_"), _rules(request)
    wanted = words_of(request, "lifecycle", STEPS) or STEPS[:2]

    def read(read: Transaction) -> tuple[list[Sku], dict[str, SkuLife]]:
        lives = read.sku_lives()
        return [sku for sku in read.skus() if lives.get(sku.sku_id, STABLE).lifecycle in wanted], lives

    skus, lives = await context.store.read(read)
    found = cut(page, matching(rules, skus), lambda sku: sku.sku_id)
    return page_answer(
        page, found, lambda sku: show_sku(sku, lives.get(sku.sku_id, STABLE)), lambda sku: sku.sku_id
    )  # fmt: skip


def _one(read: Transaction, reference: str) -> SkuAnswer:
    sku = find_sku(read, reference, None)
    return show_sku(sku, read.sku_lives().get(sku.sku_id, STABLE))


async def get_sku(context: Context, request: Request, _key: Key) -> Response:
    """One kind of node by id, alias or resource path."""
    return answer(await context.store.read(lambda read: _one(read, request.path_params["id"])))


async def change_sku(context: Context, request: Request, key: Key) -> Response:
    """Name a kind of node, say whom it is for, deprecate it, delete it."""
    change = await body_as(request, SkuChange)
    now = context.clock()

    def write(write: Transaction) -> SkuAnswer:
        operator_only(write, key, "change a kind of node")
        sku = find_sku(write, request.path_params["id"], None)
        with context.desk.session(write, now) as market:
            change_life(write, market, sku, change, now)
        return _one(write, sku.sku_id)

    return answer(await context.store.write(write))


def _window(context: Context, request: Request) -> tuple[int, int]:
    """(first block, end block) of what is asked for; the market's horizon unless given."""
    block_s = context.block_s
    first = int(context.clock() // block_s) + 1
    start_at, end_at = time_of(request, "start_at"), time_of(request, "end_at")
    start = max(first, start_at // block_s) if start_at is not None else first
    end = -(-end_at // block_s) if end_at is not None else 1 << 40
    if end <= start:
        raise Invalid(f"end_at: {end_at} must be after start_at, and after now", field="end_at")
    return start, end


def _available(context: Context, sku: Sku, start: int, end: int) -> AvailabilityAnswer:
    exchange = context.books.exchange(sku.sku_id)
    shape = availability(exchange, start, end) if exchange is not None else ()
    return {
        "object": "availability",
        "instance_sku": {"id": sku.sku_id, "name": sku.alias},
        "availability": entries_of(to_schedule(shape, context.block_s)),
    }


async def list_availability(context: Context, request: Request, _key: Key) -> Response:
    """Nodes on offer per block, of every kind that fits the filters: the sum of resting asks."""
    rules, (start, end) = _rules(request), _window(context, request)
    skus = matching(rules, await context.store.read(_living))
    shown: AvailabilityList = {
        "object": "list",
        "requested_at": int(context.clock()),
        "cursor": None,
        "has_more": False,
        "data": [_available(context, sku, start, end) for sku in skus],
    }
    return answer(shown)


async def get_availability(context: Context, request: Request, _key: Key) -> Response:
    """Nodes of one kind on offer per block."""
    start, end = _window(context, request)
    sku = await context.store.read(lambda read: find_sku(read, request.path_params["id"], None))
    return answer(_available(context, sku, start, end))


async def property_catalog(context: Context, _request: Request, _key: Key) -> Response:
    """The properties of kinds of nodes, with the values that there are."""

    def read(read: Transaction) -> Catalog:
        skus = _living(read)
        return {"object": "instance_sku_property_catalog", "data": [_entry(name, skus) for name in PROPERTIES]}

    return answer(await context.store.read(read))


def _entry(name: str, skus: list[Sku]) -> CatalogEntry:
    values = sorted({getattr(sku, name) for sku in skus}, key=lambda value: (str(type(value)), value))
    kind: Literal["string", "integer", "boolean"] = "integer" if name in NUMBERS else "string"
    if isinstance(getattr(Sku("", ""), name), bool):
        kind = "boolean"
    return {
        "key": name,
        "type": kind,
        "values": [
            {"value": value, "display_value": display(name, value), "stable_at": 0, "deprecated_at": None}
            for value in values
        ],
        "stable_at": 0,
        "deprecated_at": None,
    }


_FILTERS: Final = (
    Query("requirements", "`key[:op]:v1,v2;key2:v` over the properties below."),
    Query("id", "Only these, by id or alias.", repeated=True),
    Query("instance_sku", "The same as `id`.", repeated=True),
    *(Query(name, f"Only kinds with this {name}.", repeated=True) for name in (*PROPERTIES, "latency_class")),
)
_TIMES: Final = (
    Query("start_at", "From this time on, Unix seconds; the next block unless given.", "integer"),
    Query("end_at", "Until this time, Unix seconds.", "integer"),
)
OPERATIONS: Final = (
    Operation(
        "GET", "/v1/instance_skus", list_skus, "List kinds of nodes", scope="read", answer=SkuAnswer, listed=True,
        query=(
            *_FILTERS,
            Query("lifecycle", "Only these; stable and deprecated unless given.", repeated=True, values=STEPS),
            *PAGING,
        ),
    ),
    Operation("GET", "/v1/instance_skus/{id}", get_sku, "One kind of node", scope="read", answer=SkuAnswer),
    Operation(
        "PATCH", "/v1/instance_skus/{id}", change_sku, "Change a kind of node", body=SkuChange, answer=SkuAnswer,
        errors=(403, 404, 409),
    ),
    Operation(
        "GET", "/v1/instance_skus/availability", list_availability, "What is on offer", scope="read",
        answer=AvailabilityList, query=(*_FILTERS, *_TIMES),
    ),
    Operation(
        "GET", "/v1/instance_skus/{id}/availability", get_availability, "What is on offer of one kind", scope="read",
        answer=AvailabilityAnswer, query=_TIMES,
    ),
    Operation(
        "GET", "/v1/instance_sku_property_catalog", property_catalog, "Properties of kinds of nodes", scope="read",
        answer=Catalog,
    ),
)  # fmt: skip
