"""What moved a workspace's money: the entries of its accounts in the ledger, newest first."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.ledger import chart
from nanopod.ledger.recipes import CODES
from nanopod.ledger.transfers import Entry, Settlement, id_text
from nanopod.model.chain import Key, Workspace
from nanopod.model.errors import Invalid
from nanopod.model.money import Money
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import time_of, words_of
from nanopod.server.api.pages import PAGING, page_answer, page_of
from nanopod.server.api.tenants import workspace_of
from nanopod.store.transaction import Transaction

CURSOR: Final = "txn_"
KINDS: Final = tuple(sorted(CODES))


class TransactionAnswer(TypedDict):
    """One entry: `amount` is positive for money in; `balance_after` what the workspace had then, holds not counted
    (null in a list that is filtered by kind)."""

    id: str
    object: str
    workspace_id: str
    workspace: str
    kind: str
    amount: str
    balance_after: str | None
    currency: str
    reference: str
    transfer: str
    settled: str | None
    at: int
    created_at: int


def accounts_of(workspace_id: str) -> tuple[str, ...]:
    """The ledger's accounts whose entries are a workspace's transactions."""
    return (
        chart.prepaid(workspace_id), chart.receivable(workspace_id), chart.undelivered(workspace_id),
        chart.supplier_payable(workspace_id),
    )  # fmt: skip


def amount_of(entry: Entry, accounts: tuple[str, ...]) -> int:
    """What an entry adds to the accounts together."""
    return (entry.amount if entry.credit in accounts else 0) - (entry.amount if entry.debit in accounts else 0)


def _freed(read: Transaction, entry: Entry) -> int:
    """What a release gives back: the amount of the hold that it ends."""
    held = read.ledger_entry(entry.transfer.pending_id) if entry.transfer.kind == "void" else None
    return held[0].amount if held is not None else 0


def show(
    found: Workspace, entry: Entry, settled: Settlement | None, balance: int | None, freed: int = 0
) -> TransactionAnswer:
    """An entry as the workspace sees it. Holds set money aside, releases give it back; neither moves the balance."""
    asked = entry.transfer
    kind = "hold" if asked.kind == "pending" else "release" if asked.kind == "void" else asked.code
    amount = freed if asked.kind == "void" else amount_of(entry, accounts_of(found.workspace_id))
    return {
        "id": f"{CURSOR}{entry.seq}",
        "object": "transaction",
        "workspace_id": found.workspace_id,
        "workspace": found.name,
        "kind": kind,
        "amount": str(Money(amount)),
        "balance_after": None if balance is None else str(Money(balance)),
        "currency": "USD",
        "reference": asked.ref,
        "transfer": id_text(asked.id),
        "settled": settled,
        "at": entry.at_us // 1_000_000,
        "created_at": entry.at_us // 1_000_000,
    }


def _seq(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    number = cursor.removeprefix(CURSOR)
    if not number.isdigit():
        raise Invalid(f"starting_after: {cursor!r} is not a cursor of this list", field="starting_after")
    return int(number)


def _rows(read: Transaction, found: Workspace, limit: int, **filters: Any) -> list[TransactionAnswer]:
    """A page with the balance after each entry, counted back from the one of now; not where entries are left out."""
    accounts = accounts_of(found.workspace_id)
    rows = read.entries_page(accounts, limit, **filters)
    if not rows:
        return []
    if filters["codes"]:
        return [show(found, entry, settled, None, _freed(read, entry)) for entry, settled in rows]
    shown: list[TransactionAnswer] = []
    balance = read.balance_through(accounts, rows[0][0])
    for entry, settled in rows:
        shown.append(show(found, entry, settled, balance, _freed(read, entry)))
        if entry.transfer.kind != "pending":
            balance -= amount_of(entry, accounts)
    return shown


async def list_transactions(context: Context, request: Request, key: Key) -> Response:
    """Transactions, newest first."""
    page = page_of(request, CURSOR)
    kinds = words_of(request, "kind", KINDS)
    after, before = time_of(request, "created_after"), time_of(request, "created_before")
    filters = {
        "below": _seq(page.after),
        "above": _seq(page.before),
        "codes": kinds,
        "start_us": None if after is None else after * 1_000_000,
        "end_us": None if before is None else before * 1_000_000,
    }

    def read(read: Transaction) -> list[TransactionAnswer]:
        found = workspace_of(read, key, request.query_params.get("workspace"))
        return _rows(read, found, page.fetch, **filters)

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: row["id"])


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/transactions", list_transactions, "List what moved a balance", scope="read",
        query=(
            Query("workspace", "Another workspace; for the operator."),
            Query("kind", "Only these.", values=KINDS, repeated=True),
            Query("created_after", "Unix seconds; from then on.", "integer"),
            Query("created_before", "Unix seconds; before then.", "integer"),
            *PAGING,
        ),
        answer=TransactionAnswer, listed=True,
    ),
)  # fmt: skip
