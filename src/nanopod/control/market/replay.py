"""A book out of its log: the last snapshot, and what came after it."""

from __future__ import annotations

import json
from typing import Final

from nanopod.control.ports import BookRow, MarketReads
from nanopod.market.events import decode
from nanopod.market.exchange import Exchange

PAGE: Final = 5_000


def load(read: MarketReads, row: BookRow) -> Exchange:
    """The exchange of a SKU as its log says."""
    exchange = Exchange.restore(json.loads(row.snapshot)) if row.snapshot else Exchange(row.sku_id, row.first_block)
    return _tail(read, exchange)


def replay_all(read: MarketReads, row: BookRow) -> Exchange:
    """The same from the first event on, without the snapshot: what an audit compares with."""
    return _tail(read, Exchange(row.sku_id, row.first_block))


def _tail(read: MarketReads, exchange: Exchange) -> Exchange:
    while True:
        page = read.market_events(exchange.sku_id, exchange.seq, PAGE)
        for _, payload in page:
            exchange.apply(decode(payload))
        if len(page) < PAGE:
            return exchange
