"""Standing wishes: a procurement keeps a capacity supplied, an offer policy keeps a provider's free time on sale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nanopod.model.money import Rate
from nanopod.model.schedule import Schedule

State = Literal["info", "warning", "error"]
StatusCode = Literal["running", "insufficient_balance", "price_above_limit", "no_supply", "kept_manual", "disabled"]
WINDOW_MINUTES_MAX = 129_600
"""90 days."""


@dataclass(frozen=True, slots=True)
class Status:
    """What an automation says of itself; `message` starts with `code`."""

    state: State
    code: StatusCode
    message: str


@dataclass(frozen=True, slots=True)
class Procurement:
    """Keep `target` nodes of a SKU in a capacity for a rolling window; `node_count` follows its live instances.

    What is missing is bought at no more than `max_buy`, what is spare is sold at no less than `min_sell`.
    `protect_manual` keeps time that was bought by hand. Runs at the far edge that are shorter than
    `extend_quantum_minutes` wait until they are as long.
    """

    procurement_id: str
    capacity_id: str
    sku_id: str
    target: int | Literal["node_count"]
    max_buy: Rate
    min_sell: Rate
    managed_window_minutes: int = 60
    enabled: bool = True
    protect_manual: bool = True
    extend_quantum_minutes: int = 1
    created_at: float = 0.0
    workspace_id: str = ""
    name: str = ""
    deployment_id: str = ""
    """The spot deployment it is a part of, or ""."""
    status: Status | None = None
    """As of its last reconciliation."""
    generation: int = 0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class OfferPolicy:
    """How a provider sells the free time of its nodes of one SKU.

    `floor` holds all day; `floor_by_hour` overrides it for hours 0..23 of the UTC day. `quiet_hours` are `[from, to)`
    in hours of the UTC day (22, 6 spans midnight): no time is offered then. `lead_s` is how long a node needs from
    wish to ready. An elastic fleet (`elastic`) offers up to `max_nodes` that it rents only after the fill, and no
    further ahead than `ahead_minutes_max`.
    """

    provider_id: str
    capacity_id: str
    sku_id: str
    floor: Rate
    floor_by_hour: Mapping[int, Rate] | None = None
    horizon_minutes: int = 7 * 24 * 60
    quantum_minutes: int = 60
    max_nodes: int = 1024
    lead_s: int = 0
    quiet_hours: tuple[tuple[int, int], ...] = ()
    enabled: bool = True
    elastic: bool = False
    ahead_minutes_max: int = 129_600
    offer_id: str = ""
    minted: Schedule = Schedule()
    """Everything put into the world and not withdrawn, sold or not."""
    maintenance: Schedule = Schedule()
    """Nodes that are out of service, by time."""
    generation: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Provider:
    """A seller of time on nodes. It has an account of its own, so nobody's orders meet their own on his machine."""

    provider_id: str
    name: str
    account_id: str
    workspace_id: str
    capacity_id: str
    """Its originating capacity."""
    notice_s: int = 0
    """How long before it takes a machine away it says so: 0, 30 or 120 s."""
    created_at: float = 0.0
