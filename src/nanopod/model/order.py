"""The market's nouns as everyone else sees them: an order, the contract of a fill, and what a ledger has to post."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanopod.model.money import Money, Rate
from nanopod.model.schedule import Schedule

Side = Literal["buy", "sell"]
OrderStatus = Literal["pending", "standing", "partially_filled", "filled", "cancelled", "rejected"]
"""`pending -> standing, partially_filled, filled, cancelled or rejected`; `standing -> partially_filled -> filled`;
`standing` and `partially_filled -> cancelled`. Filled, cancelled and rejected are final."""
CLOSED: tuple[OrderStatus, ...] = ("filled", "cancelled", "rejected")
CancelReason = Literal["unfilled", "user", "expired", "automation"]
"""`unfilled`: immediate and not (wholly) matched; `expired`: its time has passed; `automation`: its procurement or
provider took it back."""
TransferStatus = Literal["pending", "executed", "rejected"]
PostingKind = Literal["hold", "release", "buy", "sell", "fee", "refund"]


@dataclass(frozen=True, slots=True)
class Order:
    """A wish to buy or sell time on nodes of one SKU, within a limit per node-hour.

    `shape` is what was asked for, `open` what is neither filled, clipped nor cancelled. `requested_limit_price` is the
    price as it was typed; `limit` is what it was rounded to.
    """

    order_id: str
    workspace_id: str
    account_id: str
    capacity_id: str
    sku_id: str
    side: Side
    shape: Schedule
    limit: Rate
    allow_standing: bool = False
    allow_partial: bool = False
    status: OrderStatus = "pending"
    open: Schedule = Schedule()
    filled: Schedule = Schedule()
    cancel_reason: CancelReason | None = None
    requested_limit_price: str = ""
    procurement_id: str = ""
    created_at: float = 0.0
    created_by: str = ""
    """Id of the key that placed it; the id of its procurement or provider for automation."""
    filled_at: float | None = None
    """When its last fill happened."""
    cancelled_at: float | None = None


@dataclass(frozen=True, slots=True)
class Contract:
    """One fill: what changed hands between a resting order and an incoming one, at the resting one's rate.

    `amount` is exact; it equals `rate` times the node-blocks except for the taker of a group purchase, who pays the
    rest of a whole block of time. `number` counts the contracts of one SKU.
    """

    contract_id: str
    sku_id: str
    number: int
    buyer_order_id: str
    seller_order_id: str
    buyer_capacity_id: str
    seller_capacity_id: str
    schedule: Schedule
    rate: Rate
    amount: Money
    fee: Money
    filled_at: float
    buyer_workspace_id: str = ""
    seller_workspace_id: str = ""
    provider_id: str = ""
    """Who delivers it, when a provider sold it; "" for a resale."""
    delivered: int = 0
    """Node-blocks whose revenue was released to the provider."""
    refunded: int = 0
    """Node-blocks that were not delivered and paid back."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Time moved between two capacities of one account."""

    transfer_id: str
    workspace_id: str
    from_capacity_id: str
    to_capacity_id: str
    sku_id: str
    schedule: Schedule
    status: TransferStatus
    rejected_reason: str = ""
    created_at: float = 0.0
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class Posting:
    """One line for the ledger: `amount` is added to the account's balance, or to its holds for `hold` and `release`.

    The lines of one contract other than holds sum to zero. `reference` names the order or the contract (`SKU#number`).
    """

    account_id: str
    kind: PostingKind
    amount: Money
    reference: str
