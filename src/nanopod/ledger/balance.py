"""What a workspace has, out of its accounts: current, held, available, and how far below zero it may go."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nanopod.ledger import chart
from nanopod.ledger.transfers import Account


class Balance(msgspec.Struct, frozen=True):
    """Micro-dollars. `current` falls below zero by what is owed on the credit line."""

    current: int
    holds: int
    overage_limit: int

    @property
    def available(self) -> int:
        """Current less holds."""
        return self.current - self.holds

    @property
    def spending_power(self) -> int:
        """What may still be held: available and the unused credit line."""
        return self.available + self.overage_limit


def balance(workspace_id: str, account: Callable[[str], Account | None]) -> Balance:
    """The balance of a workspace; accounts that do not exist count as empty. Grants are not in it."""

    def found(account_id: str) -> Account:
        return account(account_id) or Account(account_id)

    paid = found(chart.prepaid(workspace_id))
    owed = found(chart.receivable(workspace_id))
    line = found(chart.credit_line(workspace_id))
    return Balance(
        current=paid.balance + owed.balance,
        holds=paid.debits_pending + owed.debits_pending,
        overage_limit=line.balance - owed.balance,
    )


def runway_s(available: int, burnt: int, over_s: int) -> int | None:
    """Seconds until `available` is gone when `burnt` went in the last `over_s` seconds; None: nothing is burning."""
    return max(0, available) * over_s // burnt if burnt > 0 else None
