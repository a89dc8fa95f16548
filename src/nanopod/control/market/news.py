"""What the desk announces once it is committed."""

from __future__ import annotations

from dataclasses import dataclass

from nanopod.market.events import Event
from nanopod.market.quota import Claim


@dataclass(frozen=True, slots=True)
class Applied:
    """The book of a SKU took an event; `seq` is its number in that book's log, `first_block` where the log began."""

    sku_id: str
    seq: int
    event: Event
    first_block: int = 0


@dataclass(frozen=True, slots=True)
class Ranked:
    """The live instances of a capacity as rankings see them, each with its kind of node ("": not pinned)."""

    capacity_id: str
    claims: tuple[tuple[str, Claim], ...]
