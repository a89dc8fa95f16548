"""What is done at the start of a block, in which order, and for whom first (R24)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from nanopod.market.terms import next_block
from nanopod.model.procurement import Procurement
from nanopod.model.schedule import BLOCK_S

Step = Literal["clip", "supply", "quota", "deployments", "procurements", "early_starts", "warnings"]
STEPS: Final[tuple[Step, ...]] = (
    "clip",
    "supply",
    "quota",
    "deployments",
    "procurements",
    "quota",
    "early_starts",
    "warnings",
)
"""The quota is applied twice: what has run out stops before anything is bought, what was bought starts at once."""


def due(block: int, now: float, block_s: int = BLOCK_S) -> range:
    """The boundaries that a market at `block` has to pass to be at `now`, one by one, also after downtime."""
    return range(block + 1, next_block(now, block_s) + 1)


def in_turn(procurements: Iterable[Procurement]) -> list[Procurement]:
    """Procurements oldest first; each is matched before the next one plans."""
    return sorted(procurements, key=lambda one: (one.created_at, one.procurement_id))
