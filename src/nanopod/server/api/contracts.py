"""Contracts: what was bought and sold, at which rate. Each side sees its own; the other side is never shown."""

from __future__ import annotations

from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.money import Money
from nanopod.model.order import Contract, Side
from nanopod.server.api.answers import answer
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import word_of
from nanopod.server.api.orders import SIDES, WORKSPACE, Shown
from nanopod.server.api.pages import PAGING, page_answer, page_of
from nanopod.server.api.references import Scope, find_capacity, find_contract, find_order, find_sku, scope_of
from nanopod.server.api.showing import Owners, ScheduleEntry, Scoped, Summary, entries_of, price, scoped
from nanopod.store.transaction import Transaction

STATUSES: Final = ("upcoming", "active", "expired")
Status = Literal["upcoming", "active", "expired"]


class ContractAnswer(Scoped):
    """A fill as its buyer or its seller sees it. `amount` and `fee` are dollars; the seller pays the fee."""

    side: Literal["buy", "sell"]
    status: Literal["upcoming", "active", "expired"]
    capacity: Summary
    pool: Summary
    buyer_capacity: Summary | None
    seller_capacity: Summary | None
    order: str
    instance_sku: Summary
    allocation_schedule_delta: list[ScheduleEntry]
    price_dollars_per_node_hour: str
    amount: str
    fee: str
    filled_at: int
    refunded_node_blocks: int


def status_of(contract: Contract, now: float) -> Status:
    """Where a contract is in its life."""
    entries = contract.schedule.entries
    if now < entries[0].window.start_at:
        return "upcoming"
    end_at = entries[-1].window.end_at
    return "active" if end_at is None or now < end_at else "expired"


def side_of(contract: Contract, scope: Scope, asked: str | None = None) -> Side:
    """Which side of a contract a request sees: the one of its workspace; else (the operator) the one it asked for, or
    the buyer's."""
    own = scope.workspace.workspace_id
    if own not in (contract.seller_workspace_id, contract.buyer_workspace_id):
        return "sell" if asked == "sell" else "buy"
    return "sell" if contract.seller_workspace_id == own != contract.buyer_workspace_id else "buy"


class Shower:
    """Makes answers of contracts inside one transaction."""

    def __init__(self, read: Transaction, scope: Scope, block_s: int, now: float, side: str | None = None) -> None:
        self._shown = Shown(read, block_s)
        self._owners = Owners(read)
        self._scope = scope
        self._block_s = block_s
        self._now = now
        self._side = side

    def one(self, found: Contract) -> ContractAnswer:
        """One contract."""
        side = side_of(found, self._scope, self._side)
        buying = side == "buy"
        capacity = self._shown.capacity(found.buyer_capacity_id if buying else found.seller_capacity_id)
        workspace_id = found.buyer_workspace_id if buying else found.seller_workspace_id
        return {
            **scoped(self._owners, "contract", found.contract_id, workspace_id, None, found.filled_at),
            "side": side,
            "status": status_of(found, self._now),
            "capacity": capacity,
            "pool": capacity,
            "buyer_capacity": capacity if buying else None,
            "seller_capacity": None if buying else capacity,
            "order": found.buyer_order_id if buying else found.seller_order_id,
            "instance_sku": self._shown.sku(found.sku_id),
            "allocation_schedule_delta": entries_of(found.schedule),
            "price_dollars_per_node_hour": price(found.rate, self._block_s),
            "amount": str(found.amount),
            "fee": str(Money(0) if buying else found.fee),
            "filled_at": int(found.filled_at),
            "refunded_node_blocks": found.refunded,
        }


async def list_contracts(context: Context, request: Request, key: Key) -> Response:
    """Contracts, newest first."""
    page = page_of(request, "cont_")
    status, side = word_of(request, "status", STATUSES), word_of(request, "side", SIDES)
    query = request.query_params
    now = int(context.clock())

    def read(read: Transaction) -> list[ContractAnswer]:
        scope = scope_of(read, key, query.get("workspace"))
        capacity, order = query.get("capacity") or query.get("pool"), query.get("order")
        sku = query.get("instance_sku")
        rows = read.contracts_page(
            scope.listed,
            capacity_id=find_capacity(read, scope, capacity).capacity_id if capacity else None,
            sku_id=find_sku(read, sku).sku_id if sku else None,
            order_id=find_order(read, scope, order, "order").order_id if order else None,
            side=side,
            starts_after=now if status == "upcoming" else None,
            starts_before=now + 1 if status == "active" else None,
            ends_after=now if status == "active" else None,
            ends_before=now + 1 if status == "expired" else None,
            limit=page.fetch,
            after=page.after,
            before=page.before,
        )
        shower = Shower(read, scope, context.block_s, now, side)
        return [shower.one(row) for row in rows]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: row["id"])


async def get_contract(context: Context, request: Request, key: Key) -> Response:
    """One contract."""
    now = context.clock()

    def read(read: Transaction) -> ContractAnswer:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        found = find_contract(read, scope, request.path_params["id"])
        return Shower(read, scope, context.block_s, now).one(found)

    return answer(await context.store.read(read))


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/contracts", list_contracts, "List contracts", scope="read", answer=ContractAnswer, listed=True,
        query=(
            WORKSPACE,
            Query("capacity", "Only contracts of this capacity."),
            Query("pool", "The same as `capacity`."),
            Query("instance_sku", "Only contracts for this kind of node."),
            Query("order", "The fills of this order."),
            Query("side", "Only what was bought, or sold.", values=SIDES),
            Query("status", "Only contracts in this state.", values=STATUSES),
            *PAGING,
        ),
    ),
    Operation(
        "GET", "/v1/contracts/{id}", get_contract, "One contract", scope="read", answer=ContractAnswer,
        query=(WORKSPACE,),
    ),
)  # fmt: skip
