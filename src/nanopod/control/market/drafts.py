"""What callers ask of the desk, and the settings of a cluster's market."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nanopod.model.errors import Invalid
from nanopod.model.money import Rate
from nanopod.model.order import Side
from nanopod.model.schedule import BLOCK_S

SPOT_MAX_BUY: Final = "20.00"
"""Dollars per node-hour that the procurement of a default capacity pays at most, unless the cluster says otherwise."""
BLOCK_SETTING: Final = "block_s"
CLOCK_SETTING: Final = "test_clock_now"
FEES_SETTING: Final = "market_fees"
GROUP_SETTING: Final = "group_purchase"
SPOT_SETTING: Final = "spot_max_buy_price"
WARNINGS_SETTING: Final = "shutdown_warnings_s"


@dataclass(frozen=True, slots=True)
class OrderDraft:
    """An order as it is asked for; times are Unix seconds. Without an `order_id` one is drawn."""

    workspace_id: str
    account_id: str
    capacity_id: str
    sku_id: str
    side: Side
    start_at: int
    end_at: int
    node_count: int
    limit: Rate
    requested_limit_price: str = ""
    allow_standing: bool = False
    allow_partial: bool = False
    created_by: str = ""
    procurement_id: str = ""
    order_id: str = ""


@dataclass(frozen=True, slots=True)
class TransferDraft:
    """Time to move between two capacities of one account."""

    workspace_id: str
    from_capacity_id: str
    to_capacity_id: str
    sku_id: str
    start_at: int
    end_at: int
    node_count: int
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class Fee:
    """What sellers of a SKU pay: `flat` micro-dollars per node-block and `bps` ten-thousandths of the price."""

    flat: int = 0
    bps: int = 0


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """How the market of this cluster works. `fees` are by SKU; `*` holds for those without an entry."""

    block_s: int = BLOCK_S
    shutdown_warnings_s: tuple[int, ...] = (600, 300)
    group_purchase: bool = False
    early_start: bool = True
    spot_max_buy: Rate = field(default_factory=lambda: Rate.parse(SPOT_MAX_BUY))
    fees: Mapping[str, Fee] = field(default_factory=dict)


def check_block_s(block_s: int) -> int:
    """The length of a block in seconds. Raises `Invalid` unless it divides a minute."""
    if block_s < 1 or 60 % block_s:
        raise Invalid(f"block_s: {block_s} must divide 60, such as 60, 30, 10 or 1", field="block_s")
    return block_s
