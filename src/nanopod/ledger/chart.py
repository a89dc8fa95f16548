"""The chart of accounts: which accounts there are and which of them are guarded ("X -> Y" debits X and credits Y).

| account | guarded | what moves |
| --- | --- | --- |
| `prepaid:<workspace>` | yes | top-up `cash -> prepaid`; use `prepaid -> revenue`; refund `prepaid -> cash` |
| `credit_line:<workspace>` | yes | granted `line_control -> credit_line`; use `credit_line -> line_control` |
| `receivable:<workspace>` | no | use `receivable -> revenue`, with the line; payment `cash -> receivable` |
| `grant:<grant>` | yes | issue `grant_budget -> grant`; use and expiry `grant -> grant_budget` |
| `subsidy_expense:<funder>`, `discount_expense` | no | `-> revenue`: what somebody pays in the customer's place |
| `revenue:<sku>`, `cash`, `tax`, `rounding`, `bad_debt` | no | |
| `supply_cost:<sku>`, `supplier_payable:<owner>` | no | delivered `supply_cost -> supplier_payable`; payout `-> cash` |
| `orders` | no | bought time passes through: `buyer -> orders -> seller`; 0 between contracts but for holds |
| `undelivered:<owner>` | yes | a provider's sale until its blocks are delivered; then `-> supplier_payable` |
| `fees:<sku>` | no | what sellers pay to the platform |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nanopod.ledger.transfers import Account, Transfer
from nanopod.model.errors import Invalid

CASH: Final = "cash"
TAX: Final = "tax"
ROUNDING: Final = "rounding"
DISCOUNT_EXPENSE: Final = "discount_expense"
BAD_DEBT: Final = "operator:bad_debt"
LINE_CONTROL: Final = "line_control"
GRANT_BUDGET: Final = "grant_budget"
ORDERS: Final = "orders"

_SINGLE: Final = frozenset({CASH, TAX, ROUNDING, DISCOUNT_EXPENSE, BAD_DEBT, LINE_CONTROL, GRANT_BUDGET, ORDERS})
_FAMILIES: Final = {
    "prepaid": True,
    "credit_line": True,
    "receivable": False,
    "grant": True,
    "revenue": False,
    "subsidy_expense": False,
    "supply_cost": False,
    "supplier_payable": False,
    "undelivered": True,
    "fees": False,
}
"""Whether the accounts of a family are guarded."""


def prepaid(workspace_id: str) -> str:
    """Money a workspace paid in and has not used."""
    return f"prepaid:{workspace_id}"


def credit_line(workspace_id: str) -> str:
    """How much more a workspace may use before it pays."""
    return f"credit_line:{workspace_id}"


def receivable(workspace_id: str) -> str:
    """What a workspace owes (a negative balance)."""
    return f"receivable:{workspace_id}"


def grant(grant_id: str) -> str:
    """What is left of a grant or coupon."""
    return f"grant:{grant_id}"


def revenue(sku: str) -> str:
    """What was earned with one kind of hardware or model."""
    return f"revenue:{sku}"


def subsidy_expense(funder: str) -> str:
    """What `funder` pays for others."""
    return f"subsidy_expense:{funder}"


def supply_cost(sku: str) -> str:
    """What delivered units of a kind cost the platform."""
    return f"supply_cost:{sku}"


def supplier_payable(owner: str) -> str:
    """What a node's owner has earned and was not yet paid."""
    return f"supplier_payable:{owner}"


def undelivered(owner: str) -> str:
    """What a provider sold and has not yet delivered."""
    return f"undelivered:{owner}"


def fees(sku: str) -> str:
    """Fees of sales of one kind of hardware."""
    return f"fees:{sku}"


def account_of(account_id: str) -> Account:
    """The empty account of this id with the guard that the chart gives it. Raises `Invalid` for one it lacks."""
    if account_id in _SINGLE:
        return Account(account_id)
    family, colon, name = account_id.partition(":")
    if not colon or not name or family not in _FAMILIES:
        raise Invalid(
            f"account: {account_id!r} is not in the chart; known are {', '.join(sorted(_SINGLE))} and "
            f"{', '.join(f'{known}:<id>' for known in _FAMILIES)}",
            field="account",
        )
    return Account(account_id, _FAMILIES[family])


def accounts_of(transfers: Iterable[Transfer]) -> tuple[Account, ...]:
    """Every account that the transfers name, to be opened before they are posted."""
    ids = {side: None for transfer in transfers for side in (transfer.debit, transfer.credit) if side}
    return tuple(map(account_of, ids))
