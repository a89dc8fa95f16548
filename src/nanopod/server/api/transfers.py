"""Capacity transfers: time moved between two capacities of one account."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.market.drafts import TransferDraft
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.order import Transfer
from nanopod.server.api import once
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import Window, window_of, words_of
from nanopod.server.api.orders import WORKSPACE, Shown
from nanopod.server.api.pages import PAGING, page_answer, page_of
from nanopod.server.api.references import (
    capacity_reference,
    find_capacity,
    find_sku,
    find_transfer,
    scope_of,
    workspace_reference,
)
from nanopod.server.api.showing import Owners, ScheduleEntry, Scoped, Summary, entries_of, scoped
from nanopod.store.transaction import Transaction

MOVE: Final = "capacity_transfer.create"
STATUSES: Final = ("pending", "executed", "rejected")


class NewTransfer(msgspec.Struct, frozen=True):
    """Time to move. `from_pool` and `to_pool` are read as `from_capacity` and `to_capacity`."""

    instance_sku: str
    allocation_schedule_delta: list[Window]
    from_capacity: str | None = None
    to_capacity: str | None = None
    from_pool: str | None = None
    to_pool: str | None = None
    workspace: str | None = None


class TransferAnswer(Scoped):
    """A transfer; `rejected_reason` says which free time its source lacked."""

    status: Literal["pending", "executed", "rejected"]
    from_capacity: Summary
    to_capacity: Summary
    from_pool: Summary
    to_pool: Summary
    instance_sku: Summary
    allocation_schedule_delta: list[ScheduleEntry]
    rejected_reason: str | None


def _shower(context: Context, request: Request, read: Transaction) -> Shower:
    word = "pool_transfer" if request.url.path.startswith("/v1/pool_transfers") else "capacity_transfer"
    return Shower(Shown(read, context.block_s), Owners(read), word)


class Shower:
    """Makes answers of transfers inside one transaction."""

    def __init__(self, shown: Shown, owners: Owners, word: str) -> None:
        self._shown = shown
        self._owners = owners
        self._word = word

    def one(self, found: Transfer) -> TransferAnswer:
        """One transfer."""
        source, target = self._shown.capacity(found.from_capacity_id), self._shown.capacity(found.to_capacity_id)
        own = scoped(
            self._owners, "capacity_transfer", found.transfer_id, found.workspace_id, None, found.created_at,
            shown_as=self._word,
        )  # fmt: skip
        return {
            **own,
            "status": found.status,
            "from_capacity": source,
            "to_capacity": target,
            "from_pool": source,
            "to_pool": target,
            "instance_sku": self._shown.sku(found.sku_id),
            "allocation_schedule_delta": entries_of(found.schedule),
            "rejected_reason": found.rejected_reason or None,
        }


async def create_transfer(context: Context, request: Request, key: Key) -> Response:
    """Move time. It is executed at once, or rejected when the source lacks free time in some block."""
    wish = await body_as(request, NewTransfer)
    idempotency = once.key_of(request)
    source = capacity_reference(wish.from_capacity, wish.from_pool, field="from_capacity")
    target = capacity_reference(wish.to_capacity, wish.to_pool, field="to_capacity")
    place = workspace_reference(request, wish.workspace)
    now, block_s = context.clock(), context.block_s

    def write(write: Transaction) -> tuple[TransferAnswer, bool]:
        scope = scope_of(write, key, place)
        shower = _shower(context, request, write)
        workspace_id = scope.workspace.workspace_id
        seen = once.replayed(write, workspace_id, MOVE, idempotency)
        if seen is not None and (first := write.transfer(seen)) is not None:
            return shower.one(first), True
        giver = find_capacity(write, scope, source, "from_capacity")
        taker = find_capacity(write, scope, target, "to_capacity")
        if giver.capacity_id == taker.capacity_id:
            raise Invalid("to_capacity: is the same as from_capacity; name another one", field="to_capacity")
        sku = find_sku(write, wish.instance_sku)
        _, start_at, end_at, nodes = window_of(wish.allocation_schedule_delta, now=now, block_s=block_s)
        draft = TransferDraft(
            workspace_id=giver.workspace_id, from_capacity_id=giver.capacity_id, to_capacity_id=taker.capacity_id,
            sku_id=sku.sku_id, start_at=start_at, end_at=end_at, node_count=nodes, created_by=key.key_id,
        )  # fmt: skip
        with context.desk.session(write, now) as market:
            made = market.transfer(draft)
        once.remember(write, workspace_id, MOVE, idempotency, made.transfer_id, now)
        return shower.one(made), False

    shown, repeat = await context.store.write(write)
    return answer(shown, 200 if repeat else 201, once.REPLAYED if repeat else {})


async def list_transfers(context: Context, request: Request, key: Key) -> Response:
    """Transfers, newest first."""
    page = page_of(request, "cxfr_")
    statuses = words_of(request, "status", STATUSES)
    query = request.query_params
    wanted = query.get("capacity") or query.get("pool")

    def read(read: Transaction) -> list[TransferAnswer]:
        scope = scope_of(read, key, query.get("workspace"))
        capacity_id = find_capacity(read, scope, wanted).capacity_id if wanted else None
        rows = read.transfers_page(
            scope.listed, capacity_id=capacity_id, statuses=statuses, limit=page.fetch,
            after=page.after, before=page.before,
        )  # fmt: skip
        shower = _shower(context, request, read)
        return [shower.one(row) for row in rows]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: row["id"])


async def get_transfer(context: Context, request: Request, key: Key) -> Response:
    """One transfer."""

    def read(read: Transaction) -> TransferAnswer:
        scope = scope_of(read, key, request.query_params.get("workspace"))
        return _shower(context, request, read).one(find_transfer(read, scope, request.path_params["id"]))

    return answer(await context.store.read(read))


def _operations(base: str) -> tuple[Operation, ...]:
    filters = (
        WORKSPACE,
        Query("capacity", "Only transfers from or to this capacity."),
        Query("pool", "The same as `capacity`."),
        Query("status", "Only transfers in this state.", values=STATUSES, repeated=True),
    )
    return (
        Operation(
            "POST", base, create_transfer, "Move time between capacities", body=NewTransfer, answer=TransferAnswer,
            status=201, once=True, query=(WORKSPACE,),
        ),
        Operation(
            "GET", base, list_transfers, "List transfers", scope="read", answer=TransferAnswer, listed=True,
            query=(*filters, *PAGING),
        ),
        Operation(
            "GET", f"{base}/{{id}}", get_transfer, "One transfer", scope="read", answer=TransferAnswer,
            query=(WORKSPACE,),
        ),
    )  # fmt: skip


OPERATIONS: Final = (*_operations("/v1/capacity_transfers"), *_operations("/v1/pool_transfers"))
