"""Takes money from a workspace's sources for what it used. What nobody can pay is bad debt of the operator, no stop."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from nanopod.ledger import chart, recipes
from nanopod.ledger.funding import BPS, Part, Source, credit_line, in_order, prepaid, split, subsidy
from nanopod.ledger.plans import Plan
from nanopod.ledger.recipes import Chain
from nanopod.ledger.transfers import AMOUNT_MAX, Account, Outcome, Result, Transfer, verdict
from nanopod.model.errors import Conflict, PaymentRequired

log = logging.getLogger(__name__)

FUNDER: Final = "operator"
"""Who carries the other share of a subsidised plan."""
DONE: Final = (Outcome.CREATED, Outcome.EXISTS)


class Books(Protocol):
    """The ledger's part of a transaction."""

    def open_accounts(self, accounts: Iterable[Account]) -> None: ...
    def post_transfers(self, transfers: Sequence[Transfer], now_us: int) -> tuple[Result, ...]: ...
    def ledger_account(self, account_id: str) -> Account | None: ...


def sources_of(workspace_id: str, plan: Plan | None, now_us: int) -> tuple[Source, ...]:
    """Who pays for a workspace, in order: the subsidy of its plan, its prepaid money, its credit line."""
    found = [prepaid(workspace_id), credit_line(workspace_id)]
    if plan is not None and plan.billing_rate_bps < BPS:
        found.append(subsidy(workspace_id, FUNDER, plan.billing_rate_bps))
    return in_order(found, now_us)


def available(books: Books, account_id: str) -> int:
    """What a guarded account has left."""
    account = books.ledger_account(account_id)
    return account.available if account is not None else 0


def post(books: Books, chain: Chain, now_us: int) -> Outcome:
    """Open the accounts of a chain and post it; its verdict."""
    books.open_accounts(chart.accounts_of(chain))
    return verdict(books.post_transfers(chain, now_us)) if chain else Outcome.CREATED


def must_post(books: Books, chain: Chain, now_us: int) -> None:
    """Post what must succeed: raises `Conflict`, which undoes the whole transaction."""
    outcome = post(books, chain, now_us)
    if outcome not in DONE:
        raise Conflict(f"the ledger refused a posting: {outcome}")


def charge(
    books: Books, workspace_id: str, plan: Plan | None, key: str, amount: int, target: str, ref: str,
    *, charged_before: int, now_us: int,
) -> int:  # fmt: skip
    """Charge `amount` micro-dollars to `target`; how much of it nobody could pay (now bad debt).

    `key` names this charge and no other. `charged_before` is what this plan has charged in this period.
    """
    left, bad = amount, 0
    part = 0
    while left > 0:  # one transfer has a limit; what is beyond it goes into another
        some = min(left, AMOUNT_MAX)
        bad += _charge(books, workspace_id, plan, f"{key}/{part}", some, target, ref, charged_before, now_us)
        left, charged_before, part = left - some, charged_before + some, part + 1
    if bad:
        log.info("workspace=%s bad_debt_micro=%d target=%s", workspace_id, bad, target)
    return bad


def _charge(
    books: Books, workspace_id: str, plan: Plan | None, key: str, amount: int, target: str, ref: str,
    charged_before: int, now_us: int,
) -> int:  # fmt: skip
    sources = sources_of(workspace_id, plan, now_us)
    payable = amount
    try:
        parts: tuple[Part, ...] = split(amount, sources, lambda a: available(books, a), charged_before=charged_before)
    except PaymentRequired:
        own = available(books, chart.prepaid(workspace_id)) + available(books, chart.credit_line(workspace_id))
        payable = max(0, min(amount, own))
        parts = split(payable, sources, lambda a: available(books, a), charged_before=charged_before)
    missing = amount - payable
    chain = recipes.together(
        recipes.use(key, parts, target, ref), recipes.bad_debt(f"{key}/debt", target, missing, ref)
    )
    must_post(books, chain, now_us)
    return missing
