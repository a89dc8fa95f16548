"""Balances of workspaces and what moved them. Amounts are dollars as decimal text with 6 decimals."""

from __future__ import annotations

from typing import Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.ledger import chart, recipes
from nanopod.ledger.balance import Balance, balance
from nanopod.ledger.transfers import AMOUNT_MAX, Outcome
from nanopod.model.chain import Key, Workspace
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.money import Money
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.once import REPLAYED, key_of, remember, replayed
from nanopod.server.api.tenants import operator_only, reachable, workspace_path
from nanopod.server.billing.charging import available, must_post, post
from nanopod.store.transaction import Transaction


class Amount(msgspec.Struct, frozen=True):
    """Dollars as decimal text, such as "25.00"; `reference` is the payment's own name, for the books."""

    amount: str
    reference: str = ""


def amount_of(text: str, *, least: int) -> int:
    """Micro-dollars of a body's amount. Raises `Invalid`."""
    micro = Money.parse(text, "amount").micro
    if not least <= micro <= AMOUNT_MAX:
        raise Invalid(f"amount: {text!r} must be from {Money(least)} to {Money(AMOUNT_MAX)} dollars", field="amount")
    return micro


class BalanceAnswer(TypedDict):
    """What a workspace has, in dollars as decimal text: `available` is `current` without `holds`."""

    object: str
    id: str
    workspace_id: str
    workspace: str
    currency: str
    current: str
    available: str
    holds: str
    overage_limit: str
    spending_power: str


def show(found: Workspace, held: Balance) -> BalanceAnswer:
    """A balance as the API shows it."""
    return {
        "object": "balance",
        "id": found.workspace_id,
        "workspace_id": found.workspace_id,
        "workspace": found.name,
        "currency": "USD",
        "current": str(Money(held.current)),
        "available": str(Money(held.available)),
        "holds": str(Money(held.holds)),
        "overage_limit": str(Money(held.overage_limit)),
        "spending_power": str(Money(held.spending_power)),
    }


def _balance(read: Transaction, found: Workspace) -> BalanceAnswer:
    return show(found, balance(found.workspace_id, read.ledger_account))


async def list_balances(context: Context, request: Request, key: Key) -> Response:
    """The balance of the workspace; for the operator, of every workspace (or of `?workspace=`)."""

    def read(read: Transaction) -> list[BalanceAnswer]:
        return [_balance(read, found) for found in reachable(read, key, request)]

    data = await context.store.read(read)
    return answer({"object": "list", "data": data, "has_more": False, "cursor": None})


async def get_balance(context: Context, request: Request, key: Key) -> Response:
    """The balance of one workspace."""
    return answer(await context.store.read(lambda read: _balance(read, workspace_path(read, key, request))))


async def top_up(context: Context, request: Request, key: Key) -> Response:
    """Add a payment to a workspace's prepaid balance. With an Idempotency-Key, a repeat adds nothing."""
    wish = await body_as(request, Amount)
    micro = amount_of(wish.amount, least=1)
    idempotency = key_of(request)
    now = context.clock()
    business = context.new_id("event")

    def write(write: Transaction) -> tuple[BalanceAnswer, bool]:
        operator_only(write, key, "top up a balance")
        found = workspace_path(write, key, request)
        fresh = replayed(write, found.workspace_id, "top_up", idempotency) is None
        if fresh:
            remember(write, found.workspace_id, "top_up", idempotency, business, now)
            chain = recipes.top_up(business, found.workspace_id, micro, wish.reference or business)
            with context.desk.session(write, now) as market:
                must_post(write, chain, int(now * 1_000_000))
                market.balance_changed(found.workspace_id)
            write.add_notice(now, found.workspace_id, "balance.topped_up", found.workspace_id, {"amount": wish.amount})
        return _balance(write, found), fresh

    shown, fresh = await context.store.write(write)
    return answer(shown, 201 if fresh else 200, {} if fresh else REPLAYED)


async def pay_back(context: Context, request: Request, key: Key) -> Response:
    """Give prepaid money back to the customer. With an Idempotency-Key, a repeat gives nothing."""
    wish = await body_as(request, Amount)
    micro = amount_of(wish.amount, least=1)
    idempotency, now, business = key_of(request), context.clock(), context.new_id("event")

    def write(write: Transaction) -> tuple[BalanceAnswer, bool]:
        operator_only(write, key, "pay money back")
        found = workspace_path(write, key, request)
        fresh = replayed(write, found.workspace_id, "pay_back", idempotency) is None
        if fresh:
            remember(write, found.workspace_id, "pay_back", idempotency, business, now)
            most = available(write, chart.prepaid(found.workspace_id))
            if micro > most:
                text = f"amount: {wish.amount} is more than the {Money(most)} dollars of prepaid money that are free"
                raise Invalid(text, field="amount")
            chain = recipes.pay_back(business, found.workspace_id, micro, wish.reference or business)
            with context.desk.session(write, now) as market:
                must_post(write, chain, int(now * 1_000_000))
                market.balance_changed(found.workspace_id)
            write.add_notice(now, found.workspace_id, "balance.paid_back", found.workspace_id, {"amount": wish.amount})
        return _balance(write, found), fresh

    shown, fresh = await context.store.write(write)
    return answer(shown, 201 if fresh else 200, {} if fresh else REPLAYED)


async def set_overage_limit(context: Context, request: Request, key: Key) -> Response:
    """Set how far below zero a workspace may go. What is in use already cannot be taken away."""
    wish = await body_as(request, Amount)
    micro = amount_of(wish.amount, least=0)
    now = context.clock()
    business = context.new_id("event")

    def write(write: Transaction) -> BalanceAnswer:
        operator_only(write, key, "set an overage limit")
        found = workspace_path(write, key, request)
        change = micro - balance(found.workspace_id, write.ledger_account).overage_limit
        if change:
            steps = recipes.set_line(business, found.workspace_id, change, wish.reference or business)
            with context.desk.session(write, now) as market:
                if post(write, steps, int(now * 1_000_000)) is not Outcome.CREATED:
                    raise _in_use(write, found.workspace_id)
                market.balance_changed(found.workspace_id)
        return _balance(write, found)

    return answer(await context.store.write(write))


def _in_use(read: Transaction, workspace_id: str) -> Conflict:
    """Why a limit cannot be lowered so far."""
    line = read.ledger_account(chart.credit_line(workspace_id))
    used = balance(workspace_id, read.ledger_account).overage_limit - (line.available if line else 0)
    return Conflict(f"amount: {Money(used)} dollars of the limit are in use; it cannot be less now", field="amount")


_WORKSPACE: Final = Query("workspace", "Another workspace; for the operator.")
OPERATIONS: Final = (
    Operation(
        "GET", "/v1/balances", list_balances, "List balances", scope="read", query=(_WORKSPACE,), answer=BalanceAnswer,
        listed=True,
    ),
    Operation(
        "GET", "/v1/balances/{workspace}", get_balance, "The balance of a workspace", scope="read",
        answer=BalanceAnswer, errors=(404,),
    ),
    Operation(
        "POST", "/v1/balances/{workspace}/top_up", top_up, "Add a payment to a balance", body=Amount,
        answer=BalanceAnswer, status=201, once=True, errors=(403, 404),
    ),
    Operation(
        "POST", "/v1/balances/{workspace}/pay_back", pay_back, "Give prepaid money back", body=Amount,
        answer=BalanceAnswer, status=201, once=True, errors=(403, 404),
    ),
    Operation(
        "POST", "/v1/balances/{workspace}/overage_limit", set_overage_limit, "Set how far a balance may go below zero",
        body=Amount, answer=BalanceAnswer, errors=(403, 404, 409),
    ),
)  # fmt: skip
