"""What the desk keeps in memory between transactions. All of it can be made again from the store at any moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nanopod.control.market.replay import load
from nanopod.control.ports import NewId, Reads
from nanopod.market.exchange import Exchange
from nanopod.market.quota import GAMING_BLOCKS
from nanopod.market.shape import Shape

EARLY_MAX: Final = 10_000


@dataclass(slots=True)
class Sold:
    """A contract that a provider still delivers: micro-dollars net of the fee, node-blocks in all and so far."""

    contract_id: str
    workspace_id: str
    shape: Shape
    amount: int
    fee: int
    total: int
    delivered: int
    refunded: int


@dataclass(frozen=True, slots=True)
class Early:
    """An instance of a capacity that was started in `block`, before its first block."""

    capacity_id: str
    sku_id: str
    block: int
    instance_id: str


class Floor:
    """Exchanges by SKU, and what would be slow to look up for every order."""

    def __init__(self, new_id: NewId) -> None:
        self.new_id = new_id
        self.exchanges: dict[str, Exchange] = {}
        self.first: dict[str, int] = {}
        self.saved: dict[str, int] = {}
        """Up to which event there is a snapshot."""
        self.busy: set[str] | None = None
        """Capacities that may have instances, deployments or procurements; more than they are, never fewer."""
        self.sold: dict[str, Sold] | None = None
        self.opened: set[str] = set()
        """Ledger accounts that exist."""
        self.offered: dict[str, int] = {}
        """Up to which generation of its settings each offer was planned."""
        self._early: deque[Early] | None = None
        self.lost: dict[tuple[str, str], int] = {}
        """Until which block a machine's loss is the reason why a (capacity, SKU) is short."""

    def check(self, read: Reads) -> None:
        """Forget every exchange that is not where its log ends: something was rolled back, or written elsewhere."""
        heads = read.market_heads()
        stale = [sku_id for sku_id, one in self.exchanges.items() if heads.get(sku_id, 0) != one.seq]
        if stale:
            self.drop(stale)

    def drop(self, sku_ids: Iterable[str]) -> None:
        """Forget these exchanges and everything that is derived from rows."""
        for sku_id in sku_ids:
            self.exchanges.pop(sku_id, None)
        self.busy = self.sold = self._early = None
        self.opened.clear()
        self.offered.clear()

    def early(self, read: Reads, block: int) -> deque[Early]:
        """The early starts of the last blocks; instances remember theirs, also those that have ended."""
        if self._early is None:
            since = block - 1 - GAMING_BLOCKS
            self._early = deque((Early(*row) for row in read.early_starts(since, EARLY_MAX)), maxlen=EARLY_MAX)
        return self._early

    def exchange(self, read: Reads, sku_id: str, block: int) -> Exchange:
        """The exchange of a SKU; a new one begins at `block`."""
        found = self.exchanges.get(sku_id)
        if found is None:
            row = read.market_book(sku_id)
            found = load(read, row) if row is not None else Exchange(sku_id, block)
            self.first[sku_id] = row.first_block if row is not None else block
            self.saved[sku_id] = row.snapshot_seq if row is not None else 0
            self.exchanges[sku_id] = found
        return found
