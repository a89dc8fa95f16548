"""Offers: how a provider sells the free time of its nodes of one kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from nanopod.market.terms import NODES_MAX, parse_rate
from nanopod.model.chain import Key
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.model.money import Rate
from nanopod.model.procurement import OfferPolicy
from nanopod.model.schedule import Entry, Schedule
from nanopod.model.schedule import Window as Span
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import Price, Window, given
from nanopod.server.api.lifecycle import usable_sku
from nanopod.server.api.orders import WORKSPACE
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.providers import listed
from nanopod.server.api.references import find_offer, find_provider, find_sku, scope_of
from nanopod.server.api.showing import (
    Changeable,
    Owners,
    ScheduleEntry,
    Summary,
    changeable,
    entries_of,
    price,
    sku_summary,
)
from nanopod.store.transaction import Transaction

FLOOR: Final = "floor_price_dollars_per_node_hour"
FLOORS: Final = "floor_price_by_hour"
RANGES: Final[dict[str, tuple[int, int]]] = {
    "horizon_minutes": (60, 129_600),
    "quantum_minutes": (1, 129_600),
    "max_nodes": (0, NODES_MAX),
    "lead_s": (0, 7 * 86_400),
    "ahead_minutes_max": (1, 129_600),
}
RUNS_MAX: Final = 1_000


class Terms(msgspec.Struct, frozen=True):
    """What may be set of an offer. `floor_price_by_hour` maps hours "0" to "23" of the UTC day to prices; quiet hours
    are `[from, to)` in hours of the UTC day ([22, 6] spans midnight); `maintenance` are nodes out of service."""

    floor_price_dollars_per_node_hour: Price | UnsetType = UNSET
    floor_price_by_hour: dict[str, Price] | UnsetType | None = UNSET
    horizon_minutes: int | UnsetType = UNSET
    quantum_minutes: int | UnsetType = UNSET
    max_nodes: int | UnsetType = UNSET
    lead_s: int | UnsetType = UNSET
    quiet_hours: list[tuple[int, int]] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    elastic: bool | UnsetType = UNSET
    ahead_minutes_max: int | UnsetType = UNSET
    maintenance: list[Window] | UnsetType = UNSET


class NewOffer(Terms, frozen=True, kw_only=True):
    """An offer of a provider for one kind of node. Without a floor price it asks for nothing (0)."""

    provider: str
    instance_sku: str


class OfferChange(Terms, frozen=True):
    """What to change of an offer; fields left out stay. What was sold is owed and stays sold."""


class OfferAnswer(Changeable):
    """An offer; `minted_schedule` is what it has put into the world and not withdrawn, sold or not."""

    provider: Summary
    capacity: Summary
    pool: Summary
    instance_sku: Summary
    floor_price_dollars_per_node_hour: str
    floor_price_by_hour: dict[str, str] | None
    horizon_minutes: int
    quantum_minutes: int
    max_nodes: int
    lead_s: int
    quiet_hours: list[tuple[int, int]]
    enabled: bool
    elastic: bool
    ahead_minutes_max: int
    maintenance: list[ScheduleEntry]
    minted_schedule: list[ScheduleEntry]


def columns_of(terms: Terms, block_s: int) -> dict[str, Any]:
    """Terms that were sent as fields of an `OfferPolicy`. Raises `Invalid`."""
    found = {name: value for name, value in given(terms).items() if name not in ("provider", "instance_sku")}
    for name, (least, most) in RANGES.items():
        if name in found and not least <= found[name] <= most:
            raise Invalid(f"{name}: {found[name]} must be from {least} to {most}", field=name)
    if FLOOR in found:
        found["floor"] = parse_rate(found.pop(FLOOR), "sell", block_s=block_s, field=FLOOR)
    if FLOORS in found:
        hours = found.pop(FLOORS)
        found["floor_by_hour"] = None if hours is None else _by_hour(hours, block_s)
    if "quiet_hours" in found:
        found["quiet_hours"] = _quiet(found["quiet_hours"])
    if "maintenance" in found:
        found["maintenance"] = _maintenance(found["maintenance"], block_s)
    return found


def _by_hour(hours: Mapping[str, str], block_s: int) -> dict[int, Rate]:
    found = {}
    for hour, text in hours.items():
        field = f"{FLOORS}.{hour}"
        if not hour.isdigit() or int(hour) > 23:
            raise Invalid(f"{field}: {hour!r} is not an hour of the UTC day, 0 to 23", field=field)
        found[int(hour)] = parse_rate(text, "sell", block_s=block_s, field=field)
    return found


def _quiet(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    for index, (begin, end) in enumerate(spans):
        if not (0 <= begin <= 23 and 0 <= end <= 24 and begin != end):
            field = f"quiet_hours[{index}]"
            raise Invalid(f"{field}: [{begin}, {end}] must be two different hours of the UTC day", field=field)
    return tuple((begin, end) for begin, end in spans)


def _maintenance(windows: Sequence[Window], block_s: int) -> Schedule:
    if len(windows) > RUNS_MAX:
        raise Invalid(f"maintenance: {len(windows)} entries; at most {RUNS_MAX}", field="maintenance")
    last = 0
    entries = []
    for index, window in enumerate(windows):
        field = f"maintenance[{index}]"
        if window.start_at % block_s or window.end_at % block_s or not last <= window.start_at < window.end_at:
            raise Invalid(
                f"{field}: must be on multiples of {block_s} s, end after it starts, and follow the entry before",
                field=field,
            )
        if not 0 <= window.node_count <= NODES_MAX:
            raise Invalid(f"{field}.node_count: {window.node_count} must be from 0 to {NODES_MAX}", field=field)
        last = window.end_at
        entries.append(Entry(Span(window.start_at, window.end_at), window.node_count))
    return Schedule.of(entries)


class Shower:
    """Makes answers of offers inside one transaction."""

    def __init__(self, read: Transaction, block_s: int) -> None:
        self._read = read
        self._owners = Owners(read)
        self._block_s = block_s

    def one(self, found: OfferPolicy) -> OfferAnswer:
        """One offer."""
        provider = self._read.provider(found.provider_id)
        capacity = self._read.capacity(found.capacity_id)
        shown_capacity: Summary = {"id": found.capacity_id, "name": capacity.name if capacity else ""}
        hours = found.floor_by_hour
        return {
            **changeable(
                self._owners, "offer", found.offer_id, provider.workspace_id if provider else "", None,
                found.created_at, found.updated_at,
            ),
            "provider": {"id": found.provider_id, "name": provider.name if provider else ""},
            "capacity": shown_capacity,
            "pool": shown_capacity,
            "instance_sku": sku_summary(self._read.sku(found.sku_id), found.sku_id),
            "floor_price_dollars_per_node_hour": price(found.floor, self._block_s),
            "floor_price_by_hour": None
            if hours is None
            else {str(hour): price(rate, self._block_s) for hour, rate in sorted(hours.items())},
            "horizon_minutes": found.horizon_minutes,
            "quantum_minutes": found.quantum_minutes,
            "max_nodes": found.max_nodes,
            "lead_s": found.lead_s,
            "quiet_hours": list(found.quiet_hours),
            "enabled": found.enabled,
            "elastic": found.elastic,
            "ahead_minutes_max": found.ahead_minutes_max,
            "maintenance": entries_of(found.maintenance),
            "minted_schedule": entries_of(found.minted),
        }  # fmt: skip


async def list_offers(context: Context, request: Request, key: Key) -> Response:
    """Offers, newest first."""
    page = page_of(request, "offr_")
    query = request.query_params

    def read(read: Transaction) -> list[OfferAnswer]:
        scope = scope_of(read, key, query.get("workspace"))
        wanted, sku = query.get("provider"), query.get("instance_sku")
        sku_id = find_sku(read, sku).sku_id if sku else None
        if wanted:
            owners = {find_provider(read, scope, wanted).provider_id}
        else:
            owners = {one.provider_id for one in read.providers() if listed(scope, one)}
        rows = [
            found
            for found in reversed(read.offers())
            if found.provider_id in owners and sku_id in (None, found.sku_id)
        ]  # fmt: skip
        shower = Shower(read, context.block_s)
        return [shower.one(row) for row in cut(page, rows, lambda row: row.offer_id)]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: row["id"])


async def get_offer(context: Context, request: Request, key: Key) -> Response:
    """One offer."""

    def read(read: Transaction) -> OfferAnswer:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        return Shower(read, context.block_s).one(find_offer(read, scope, request.path_params["id"]))

    return answer(await context.store.read(read))


def _named(read: Transaction, offer_id: str) -> OfferPolicy:
    found = read.offer(offer_id)
    if found is None:
        raise NotFound(f"there is no offer {offer_id!r}")
    return found


async def create_offer(context: Context, request: Request, key: Key) -> Response:
    """Make an offer; free time of the provider's nodes is on sale at once."""
    wish = await body_as(request, NewOffer)
    columns = columns_of(wish, context.block_s)
    now, offer_id = context.clock(), context.new_id("offer")

    def write(write: Transaction) -> OfferAnswer:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        provider = find_provider(write, scope, wish.provider)
        sku = usable_sku(write, wish.instance_sku)
        other = write.offer_of_pair(provider.provider_id, sku.sku_id)
        if other is not None:
            raise Conflict(
                f"instance_sku: {provider.name!r} offers {sku.alias!r} already ({other.offer_id}); change that one",
                field="instance_sku",
            )
        blank = OfferPolicy(
            provider.provider_id, provider.capacity_id, sku.sku_id, Rate(0), offer_id=offer_id, created_at=now,
            updated_at=now,
        )  # fmt: skip
        with context.desk.session(write, now) as market:
            write.add_offer(dataclasses.replace(blank, **columns))
            write.add_notice(now, provider.workspace_id, "offer.created", offer_id, {"instance_sku": sku.sku_id})
            market.supply_changed(sku.sku_id)
        return Shower(write, context.block_s).one(_named(write, offer_id))

    return answer(await context.store.write(write), 201)


async def change_offer(context: Context, request: Request, key: Key) -> Response:
    """Change the terms of an offer; its asks follow at once, what was sold stays sold."""
    columns = columns_of(await body_as(request, OfferChange), context.block_s)
    now = context.clock()

    def write(write: Transaction) -> OfferAnswer:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        seen = find_offer(write, scope, request.path_params["id"])
        owner = write.provider(seen.provider_id)
        if columns:
            with context.desk.session(write, now) as market:
                write.set_offer(seen, **columns, updated_at=now)
                fields = {"fields": sorted(columns)}
                write.add_notice(now, owner.workspace_id if owner else "", "offer.updated", seen.offer_id, fields)
                market.supply_changed(seen.sku_id)
        return Shower(write, context.block_s).one(_named(write, seen.offer_id))

    return answer(await context.store.write(write))


async def delete_offer(context: Context, request: Request, key: Key) -> Response:
    """Delete an offer that owes nothing: disable it first, and wait until what it sold is delivered."""
    now, block_s = context.clock(), context.block_s

    def write(write: Transaction) -> Deleted:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        seen = find_offer(write, scope, request.path_params["id"])
        owner = write.provider(seen.provider_id)
        ends = [entry.window.end_at for entry in seen.minted.entries if (entry.window.end_at or 0) > now + block_s]
        if ends:
            raise Conflict(
                f"id: offer {seen.offer_id} has nodes on sale or sold until {ends[-1]}; disable it (enabled: false) "
                "and delete it once what it sold is delivered",
                field="id",
            )
        write.delete_offer(seen.offer_id)
        where = owner.workspace_id if owner else ""
        write.add_notice(now, where, "offer.deleted", seen.offer_id, {"instance_sku": seen.sku_id})
        return {"object": "offer", "id": seen.offer_id, "deleted": True}

    return answer(await context.store.write(write))


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/offers", list_offers, "List offers", scope="read", answer=OfferAnswer, listed=True,
        query=(
            WORKSPACE,
            Query("provider", "Only offers of this provider, by id or name."),
            Query("instance_sku", "Only offers of this kind of node."),
            *PAGING,
        ),
    ),
    Operation(
        "POST", "/v1/offers", create_offer, "Make an offer", body=NewOffer, answer=OfferAnswer, status=201,
        errors=(409,), query=(WORKSPACE,),
    ),
    Operation(
        "GET", "/v1/offers/{id}", get_offer, "One offer", scope="read", answer=OfferAnswer, query=(WORKSPACE,),
    ),
    Operation(
        "PATCH", "/v1/offers/{id}", change_offer, "Change an offer", body=OfferChange, answer=OfferAnswer,
        errors=(409,), query=(WORKSPACE,),
    ),
    Operation(
        "DELETE", "/v1/offers/{id}", delete_offer, "Delete an offer", answer=Deleted, errors=(409,),
        query=(WORKSPACE,),
    ),
)  # fmt: skip
