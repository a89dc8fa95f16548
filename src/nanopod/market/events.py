"""What can happen to a market, and its one canonical text. Replaying a log gives the same state, byte by byte.

Times are blocks, money is micro-dollars. Every event carries all that decides its effect, such as the spending power
that the ledger saw, so a log needs nothing beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from nanopod.market.shape import Shape
from nanopod.model.errors import Invalid
from nanopod.model.order import CancelReason, Side

CapacityKind = Literal["market", "originating", "read_only"]


@dataclass(frozen=True, slots=True)
class Open:
    """A capacity may hold time of this SKU from now on; `kind` as in `model.capacity.Capacity`."""

    capacity_id: str
    account_id: str
    kind: CapacityKind = "market"


@dataclass(frozen=True, slots=True)
class Configure:
    """Fees and flags of this SKU. They hold for later fills."""

    fee_flat: int = 0
    fee_bps: int = 0
    group_purchase: bool = False


@dataclass(frozen=True, slots=True)
class Mint:
    """Nodes were declared available: the capacity owns `shape` more, and so does the world (S3)."""

    capacity_id: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Burn:
    """Free time is withdrawn from the world (S3, S8)."""

    capacity_id: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Place:
    """A new order, clipped to the next block already. `spending` is the account's spending power, None without limit.

    `owner` names the procurement or provider that placed it, "" for a person.
    """

    order_id: str
    capacity_id: str
    side: Side
    rate: int
    shape: Shape
    allow_standing: bool = False
    allow_partial: bool = False
    owner: str = ""
    spending: int | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """An open order ends."""

    order_id: str
    reason: CancelReason = "user"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Free time moves between two capacities of one account."""

    from_capacity: str
    to_capacity: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Clock:
    """`block` is the first one that has not begun: orders lose what is before it."""

    block: int


Event: TypeAlias = Open | Configure | Mint | Burn | Place | Cancel | Transfer | Clock
_KINDS: Final[dict[str, type[Any]]] = {
    "open": Open, "configure": Configure, "mint": Mint, "burn": Burn,
    "place": Place, "cancel": Cancel, "transfer": Transfer, "clock": Clock,
}  # fmt: skip
_NAMES: Final = {cls: name for name, cls in _KINDS.items()}


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def encode(event: Event) -> str:
    """One line of a log."""
    payload = {field.name: getattr(event, field.name) for field in fields(event)}
    return canonical([_NAMES[type(event)], payload])


def decode(line: str) -> Event:
    """The event of one line. Raises `Invalid` for anything that `encode` does not write."""
    try:
        kind, payload = json.loads(line)
        if "shape" in payload:
            payload["shape"] = tuple((int(s), int(e), int(n)) for s, e, n in payload["shape"])
        event: Event = _KINDS[kind](**payload)
    except (KeyError, TypeError, ValueError) as error:
        raise Invalid(f"event: {line[:80]!r} is not a market event", field="event") from error
    return event
