"""The market's books in a transaction: the log of each SKU, where it ends, and its last snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nanopod.model.errors import Conflict
from nanopod.store.base import Base

EVENTS_MAX: Final = 10_000
"""Most events of one answer."""

_ADD: Final = "INSERT INTO market_event (sku_id, seq, at_us, payload) VALUES (?, ?, ?, ?)"
_ADVANCE: Final = "UPDATE market_book SET seq = ?, block = ? WHERE sku_id = ? AND seq = ?"
_BEGIN: Final = (
    "INSERT INTO market_book (sku_id, seq, block, first_block) VALUES (?, ?, ?, ?) ON CONFLICT (sku_id) DO NOTHING"
)
_BOOK: Final = "SELECT sku_id, seq, block, first_block, snapshot_seq, snapshot FROM market_book WHERE sku_id = ?"
_TAIL: Final = "SELECT seq, payload FROM market_event WHERE sku_id = ? AND seq > ? ORDER BY seq LIMIT ?"


@dataclass(frozen=True, slots=True)
class BookRow:
    """Where the log of a SKU ends: its last event's number, the next block, the block it began with, a snapshot."""

    sku_id: str
    seq: int
    block: int
    first_block: int
    snapshot_seq: int
    snapshot: str
    """An exchange as of `snapshot_seq`, as text; "" for none."""


class MarketRows(Base):
    """Reads and writes of the books' logs."""

    def market_heads(self) -> dict[str, int]:
        """The number of the last event of every SKU that has a book."""
        return dict(self._every("SELECT sku_id, seq FROM market_book ORDER BY sku_id"))

    def market_book(self, sku_id: str) -> BookRow | None:
        """Where the log of a SKU ends; None when it has none."""
        row = self._first(_BOOK, (sku_id,))
        return BookRow(*row) if row else None

    def market_events(self, sku_id: str, after_seq: int, limit: int = EVENTS_MAX) -> list[tuple[int, str]]:
        """(number, payload) of a SKU's events after `after_seq`, oldest first, at most `limit`."""
        return [(seq, payload) for seq, payload in self._every(_TAIL, (sku_id, after_seq, limit))]

    def append_events(
        self, sku_id: str, rows: Sequence[tuple[int, int, str]], block: int, first_block: int
    ) -> None:  # fmt: skip
        """Append (number, microseconds since 1970, payload) to a log and move its end; makes the book if need be.

        Numbers follow one another without a gap, from 1. Raises `Conflict` when the log ends elsewhere: whoever made
        these events had not seen all before them.
        """
        first = rows[0][0] if rows else 0
        last = rows[-1][0] if rows else 0
        if rows and last - first + 1 != len(rows):
            raise Conflict(f"events of {sku_id}: {first} to {last} are not {len(rows)} numbers in a row")
        seen = first - 1
        if not rows or seen == 0:
            self._raw(_BEGIN, (sku_id, 0, block, first_block))
        if not rows:
            self._raw("UPDATE market_book SET block = ? WHERE sku_id = ?", (block, sku_id))
            return
        if self._raw(_ADVANCE, (last, block, sku_id, seen)).rowcount != 1:
            raise Conflict(f"the log of {sku_id} does not end with event {seen}; read it again")
        self._raw_many(_ADD, [(sku_id, *row) for row in rows])

    def put_snapshot(self, sku_id: str, seq: int, text: str) -> None:
        """Keep an exchange as of event `seq`, so that only what follows is replayed."""
        self._raw("UPDATE market_book SET snapshot_seq = ?, snapshot = ? WHERE sku_id = ?", (seq, text, sku_id))
