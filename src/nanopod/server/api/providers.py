"""Providers: who sells time on nodes, and what it brought."""

from __future__ import annotations

from typing import Final, Literal, NotRequired, TypedDict

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from nanopod.ledger import chart
from nanopod.market.shape import cut, excess, from_schedule, volume
from nanopod.model.capacity import Capacity
from nanopod.model.chain import Account, Key, Workspace
from nanopod.model.errors import Conflict, Invalid, NotFound, count_of
from nanopod.model.money import Money, Rate
from nanopod.model.order import Contract
from nanopod.model.procurement import Provider
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import given, words_of
from nanopod.server.api.orders import STATUSES, WORKSPACE, OrderAnswer, Shown
from nanopod.server.api.pages import PAGING, page_answer, page_of
from nanopod.server.api.pages import cut as cut_rows
from nanopod.server.api.references import Scope, check_name, find_provider, scope_of
from nanopod.server.api.showing import Owners, Scoped, Summary, scoped, summary_of
from nanopod.server.api.tenants import operator_only
from nanopod.store.transaction import Transaction

NOTICES_S: Final = (0, 30, 120)
AVERAGED_MAX: Final = 1_000
"""The newest contracts whose prices are averaged."""
UTILISATION_S: Final = 86_400
"""How far ahead utilisation looks."""


class NewProvider(msgspec.Struct, frozen=True):
    """A seller with an account, a workspace and an originating capacity of its own; all have its name."""

    name: str
    notice_s: int = 0


class ProviderChange(msgspec.Struct, frozen=True):
    """What to change of a provider; fields left out stay."""

    name: str | UnsetType = UNSET
    notice_s: int | UnsetType = UNSET


class ProviderAnswer(Scoped):
    """A provider. `revenue` is what its sales brought after fees and refunds, `undelivered` the part that is still to
    be delivered, `released` the part that is paid out or can be; dollars. `utilisation` is the share of the nodes it
    offers for the next 24 hours that is sold; `open_offers` are its resting asks."""

    capacity: Summary
    pool: Summary
    notice_s: Literal[0, 30, 120]
    revenue: str
    undelivered: str
    released: str
    average_price_dollars_per_node_hour: str | None
    utilisation: float
    open_offers: int


class RevenueSummary(TypedDict):
    """What all providers of a list earned together."""

    revenue: str
    undelivered: str
    average_price_dollars_per_node_hour: str | None
    utilisation: float
    open_offers: int


class ProviderOrders(TypedDict):
    """A provider's orders with a summary of what they brought."""

    object: Literal["list"]
    cursor: str | None
    has_more: bool
    data: list[OrderAnswer]
    summary: NotRequired[RevenueSummary]


class Market:
    """What the books say of a provider; made in the event loop."""

    def __init__(self, context: Context, now: float) -> None:
        self._context = context
        self._first = int(now // context.block_s)
        self._end = self._first + UTILISATION_S // context.block_s

    def open_offers(self, provider: Provider) -> int:
        """Asks of a provider that rest."""
        books = self._context.books
        found = (books.exchange(sku_id) for sku_id in books.skus())
        return sum(len(book.of_capacity.get(provider.capacity_id, ())) for book in found if book is not None)

    def sold(self, read: Transaction, provider: Provider) -> tuple[int, int]:
        """(node-blocks sold, node-blocks put on sale) of the next day."""
        sold = offered = 0
        for offer in read.offers(provider.provider_id):
            book = self._context.books.exchange(offer.sku_id)
            holding = book.holdings.get(provider.capacity_id) if book is not None else None
            if book is None or holding is None:
                continue
            start = max(self._first, book.block)
            minted = cut(from_schedule(offer.minted, self._context.block_s), start, self._end)
            offered += volume(minted)
            sold += volume(excess(minted, holding.owned(start, self._end)))
        return sold, offered


def average(contracts: list[Contract], block_s: int) -> str | None:
    """The mean price of contracts, weighted by node-blocks; None for none."""
    blocks = sum(volume(from_schedule(contract.schedule, block_s)) for contract in contracts)
    if not blocks:
        return None
    amount = sum(contract.amount.micro for contract in contracts)
    return str(Money(round(amount * Rate.step(block_s) / blocks)))


class Shower:
    """Makes answers of providers inside one transaction."""

    def __init__(self, context: Context, read: Transaction, now: float) -> None:
        self._read = read
        self._block_s = context.block_s
        self._market = Market(context, now)
        self._owners = Owners(read)

    def _money(self, found: Provider) -> tuple[int, int]:
        """(undelivered, released) micro-dollars."""
        held = self._read.ledger_account(chart.undelivered(found.workspace_id))
        paid = self._read.ledger_account(chart.supplier_payable(found.workspace_id))
        return held.balance if held else 0, paid.credits_posted if paid else 0

    def one(self, found: Provider) -> ProviderAnswer:
        """One provider."""
        undelivered, released = self._money(found)
        sold, offered = self._market.sold(self._read, found)
        contracts = self._read.contracts_page(provider_id=found.provider_id, limit=AVERAGED_MAX)
        capacity = summary_of(self._read.capacity(found.capacity_id), found.capacity_id)
        notice_s: Literal[0, 30, 120] = 120 if found.notice_s == 120 else 30 if found.notice_s == 30 else 0
        return {
            **scoped(
                self._owners, "provider", found.provider_id, found.workspace_id, found.name, found.created_at
            ),
            "capacity": capacity,
            "pool": capacity,
            "notice_s": notice_s,
            "revenue": str(Money(undelivered + released)),
            "undelivered": str(Money(undelivered)),
            "released": str(Money(released)),
            "average_price_dollars_per_node_hour": average(contracts, self._block_s),
            "utilisation": round(sold / offered, 4) if offered else 0.0,
            "open_offers": self._market.open_offers(found),
        }  # fmt: skip

    def summary(self, providers: list[Provider]) -> RevenueSummary:
        """Several providers together."""
        money = [self._money(found) for found in providers]
        sold = [self._market.sold(self._read, found) for found in providers]
        offered = sum(every for _, every in sold)
        contracts = [
            contract
            for found in providers
            for contract in self._read.contracts_page(provider_id=found.provider_id, limit=AVERAGED_MAX)
        ]
        undelivered = sum(held for held, _ in money)
        return {
            "revenue": str(Money(undelivered + sum(paid for _, paid in money))),
            "undelivered": str(Money(undelivered)),
            "average_price_dollars_per_node_hour": average(contracts, self._block_s),
            "utilisation": round(sum(one for one, _ in sold) / offered, 4) if offered else 0.0,
            "open_offers": sum(self._market.open_offers(found) for found in providers),
        }


def visible(read: Transaction, key: Key, request: Request) -> list[Provider]:
    """The providers that a request lists, newest first."""
    scope = scope_of(read, key, request.query_params.get("workspace"))
    return [found for found in reversed(read.providers()) if listed(scope, found)]


def listed(scope: Scope, provider: Provider) -> bool:
    """Is a provider in a request's lists? The operator sees all of them unless it names a workspace."""
    if scope.operator and not scope.named:
        return True
    return provider.workspace_id == scope.workspace.workspace_id


async def list_providers(context: Context, request: Request, key: Key) -> Response:
    """Providers, newest first."""
    page, now = page_of(request, "prov_"), context.clock()

    def read(read: Transaction) -> list[ProviderAnswer]:
        shower = Shower(context, read, now)
        rows = cut_rows(page, visible(read, key, request), lambda found: found.provider_id)
        return [shower.one(row) for row in rows]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: row["id"])


async def get_provider(context: Context, request: Request, key: Key) -> Response:
    """One provider by id or name."""
    now = context.clock()

    def read(read: Transaction) -> ProviderAnswer:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        return Shower(context, read, now).one(find_provider(read, scope, request.path_params["id"], None))

    return answer(await context.store.read(read))


def _check_notice(notice_s: int) -> None:
    if notice_s not in NOTICES_S:
        words = ", ".join(map(str, NOTICES_S))
        raise Invalid(f"notice_s: {notice_s} must be one of {words}", field="notice_s")


def _check_free(read: Transaction, name: str) -> None:
    check_name(name)
    if read.provider_named(name) is not None:
        raise BadRequest(f"name: a provider {name!r} exists; choose another name", field="name")


async def create_provider(context: Context, request: Request, key: Key) -> Response:
    """Make a provider. It sells nothing until it has nodes and offers."""
    wish = await body_as(request, NewProvider)
    _check_notice(wish.notice_s)
    now = context.clock()
    ids = {kind: context.new_id(kind) for kind in ("account", "workspace", "capacity", "provider")}

    def write(write: Transaction) -> ProviderAnswer:
        operator_only(write, key, "make a provider")
        _check_free(write, wish.name)
        for there, noun in ((write.account_named, "account"), (write.workspace_named, "workspace")):
            if there(wish.name) is not None:
                raise BadRequest(f"name: {noun} {wish.name!r} exists; choose another name", field="name")
        write.add_account(Account(ids["account"], wish.name, "provider", now))
        write.add_workspace(Workspace(ids["workspace"], wish.name, ids["account"], now))
        capacity = Capacity(
            ids["capacity"], ids["workspace"], wish.name, "originating", account_id=ids["account"], created_at=now,
            updated_at=now,
        )  # fmt: skip
        write.add_capacity(capacity, now)
        made = Provider(
            ids["provider"], wish.name, ids["account"], ids["workspace"], ids["capacity"], wish.notice_s, now
        )
        write.add_provider(made)
        write.add_notice(now, ids["workspace"], "provider.created", ids["provider"], {"name": wish.name})
        return Shower(context, write, now).one(made)

    return answer(await context.store.write(write), 201)


async def change_provider(context: Context, request: Request, key: Key) -> Response:
    """Rename a provider, or change how long before it takes a machine away it says so."""
    change = given(await body_as(request, ProviderChange))
    if "notice_s" in change:
        _check_notice(change["notice_s"])
    now = context.clock()

    def write(write: Transaction) -> ProviderAnswer:
        scope = scope_of(write, key, request.query_params.get("workspace"))
        seen = find_provider(write, scope, request.path_params["id"], None)
        if change.get("name", seen.name) != seen.name:
            _check_free(write, change["name"])
        if change:
            write.set_provider(seen.provider_id, **change)
            write.add_notice(now, seen.workspace_id, "provider.updated", seen.provider_id, {"fields": sorted(change)})
        found = write.provider(seen.provider_id)
        if found is None:
            raise NotFound(f"there is no provider {seen.provider_id!r}")
        return Shower(context, write, now).one(found)

    return answer(await context.store.write(write))


async def delete_provider(context: Context, request: Request, key: Key) -> Response:
    """Delete a provider that has neither offers nor nodes."""
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        operator_only(write, key, "delete a provider")
        scope = scope_of(write, key, None)
        seen = find_provider(write, scope, request.path_params["id"], None)
        offers = len(write.offers(seen.provider_id))
        nodes = sum(node.provider_id == seen.provider_id for node in write.nodes())
        if offers or nodes:
            has = f"{count_of(offers, 'offer')} and {count_of(nodes, 'node')}"
            raise Conflict(f"id: provider {seen.name!r} still has {has}", field="id")
        write.delete_provider(seen.provider_id)
        write.add_notice(now, seen.workspace_id, "provider.deleted", seen.provider_id, {"name": seen.name})
        return {"object": "provider", "id": seen.provider_id, "deleted": True}

    return answer(await context.store.write(write))


async def list_provider_orders(context: Context, request: Request, key: Key) -> Response:
    """The orders of providers, newest first, with what they brought; `provider=` narrows to one."""
    page, now = page_of(request, "ordr_"), context.clock()
    statuses = words_of(request, "status", STATUSES)
    wanted = request.query_params.get("provider")

    def read(read: Transaction) -> ProviderOrders:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        found = [find_provider(read, scope, wanted)] if wanted else visible(read, key, request)
        if len(found) > 1:
            raise Invalid(
                f"provider: there are several ({', '.join(one.name for one in found)}); name one", field="provider"
            )
        rows = []
        if found:
            rows = read.orders_page(
                capacity_id=found[0].capacity_id, statuses=statuses, limit=page.fetch, after=page.after,
                before=page.before,
            )  # fmt: skip
        more = len(rows) > page.limit
        kept = rows[-page.limit :] if page.before else rows[: page.limit]
        edge = kept[0] if page.before and kept else kept[-1] if kept else None
        return {
            "object": "list",
            "cursor": edge.order_id if more and edge is not None else None,
            "has_more": more,
            "data": Shown(read, context.block_s).all(kept),
            "summary": Shower(context, read, now).summary(found),
        }

    return answer(await context.store.read(read))


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/providers", list_providers, "List providers", scope="read", answer=ProviderAnswer, listed=True,
        query=(WORKSPACE, *PAGING),
    ),
    Operation(
        "POST", "/v1/providers", create_provider, "Make a provider", body=NewProvider, answer=ProviderAnswer,
        status=201,
    ),
    Operation(
        "GET", "/v1/providers/{id}", get_provider, "One provider", scope="read", answer=ProviderAnswer,
        query=(WORKSPACE,),
    ),
    Operation(
        "PATCH", "/v1/providers/{id}", change_provider, "Change a provider", body=ProviderChange,
        answer=ProviderAnswer, query=(WORKSPACE,),
    ),
    Operation("DELETE", "/v1/providers/{id}", delete_provider, "Delete a provider", answer=Deleted, errors=(409,)),
    Operation(
        "GET", "/v1/provider/orders", list_provider_orders, "A provider's orders and revenue", scope="read",
        answer=ProviderOrders,
        query=(
            WORKSPACE,
            Query("provider", "Which provider; needed where there are several."),
            Query("status", "Only orders in one of these states.", values=STATUSES, repeated=True),
            *PAGING,
        ),
    ),
)  # fmt: skip
