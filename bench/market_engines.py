"""The exchange against lightmatchingengine, a published pure-Python engine, at equal work.

The work is to sell time: asks and buys of nodes for windows of minutes. The other engine has no time: it keeps a book
per minute, and an order for a window is one in each of them, which is how one sells time with it. Both hold the same
asks; the takers have the same side, limit, size and window in the same order; after each one a new ask comes, outside
the clock, as large as a taker on average. What was traded is compared minute by minute and price by price, so unequal
work is an error and no figure. What the exchange does beside that (holds, fees, ledger lines, who owns which minute)
stays on its side of the clock. Windows are those of this cell's other figures, 1 to 24 hours of a week; with very short
ones (`_short`) the other engine has few books to touch and every taker is pieced together from scraps.

The last comparison gives the other engine what it is made for: every ask and every buy covers the same one hour, so
time decides nothing and one book is enough for it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from bench.figures import Figure, median, percentile, say
from nanopod.market.events import Mint, Open, Place
from nanopod.market.exchange import Exchange

BASE = 29_000_000
WINDOW = 60
HOUR = 60
WEEK = 7 * 24 * HOUR
MID = 40_000
LEVELS = 8000
FEW_LEVELS = 100
"""Distinct prices. Their engine looks at every price level for the best one, so its cost grows with their number."""
NODES_MAX = 8


class OurWindows:
    """The exchange with asks for windows."""

    def __init__(self) -> None:
        self.exchange = Exchange("isku_bench", BASE)
        self.number = 0
        for capacity in ("seller", "buyer"):
            self.exchange.apply(Open(capacity, capacity))
        self.exchange.apply(Mint("seller", ((BASE, BASE + WEEK, 100_000_000),)))

    def ask(self, rate: int, nodes: int, start: int, end: int) -> None:
        """A standing ask for nodes from one minute to another."""
        self.number += 1
        shape = ((BASE + start, BASE + end, nodes),)
        self.exchange.apply(Place(f"a{self.number}", "seller", "sell", rate, shape, True, True))

    def buy(self, rate: int, nodes: int, start: int, end: int) -> tuple[float, list[tuple[int, int, int, int]]]:
        """Seconds of one buy, and its trades as (rate, nodes, start, end)."""
        self.number += 1
        shape = ((BASE + start, BASE + end, nodes),)
        event = Place(f"b{self.number}", "buyer", "buy", rate, shape, False, True)
        begun = perf_counter()
        outcome = self.exchange.apply(event)
        took = perf_counter() - begun
        return took, [(one.rate, n, s - BASE, e - BASE) for one in outcome.fills for s, e, n in one.shape]


class TheirMinutes:
    """lightmatchingengine with one book per minute."""

    def __init__(self, module: Any) -> None:
        self.engine = module.LightMatchingEngine()
        self.side = module.Side
        self.books = [f"minute {number}" for number in range(WEEK)]

    def ask(self, rate: int, nodes: int, start: int, end: int) -> None:
        """A resting ask in each of the minutes."""
        for book in self.books[start:end]:
            self.engine.add_order(book, rate, nodes, self.side.SELL)

    def buy(self, rate: int, nodes: int, start: int, end: int) -> tuple[float, list[tuple[int, int, int, int]]]:
        """Seconds of one buy in each of the minutes, and the trades."""
        done: list[tuple[int, list[Any]]] = []
        begun = perf_counter()
        for minute in range(start, end):
            done.append((minute, self.engine.add_order(self.books[minute], rate, nodes, self.side.BUY)[1]))
        took = perf_counter() - begun
        return took, [
            (trade.trade_price, trade.trade_qty, minute, minute + 1)
            for minute, trades in done
            for trade in trades
            if trade.trade_side == self.side.SELL
        ]


def by_minute(trades: list[tuple[int, int, int, int]]) -> Counter[tuple[int, int]]:
    """Nodes traded per (minute, rate)."""
    sums: Counter[tuple[int, int]] = Counter()
    for rate, nodes, start, end in trades:
        for minute in range(start, end):
            sums[minute, rate] += nodes
    return sums


def compare_windows(
    module: Any, size: int, repeats: int, span: int, least: int, most: int
) -> tuple[list[float], list[float]]:
    """Seconds per taker of both engines in books of `size` asks for `least` to `most` minutes within `span`."""
    draw = random.Random(12)
    ours, theirs = OurWindows(), TheirMinutes(module)

    def window() -> tuple[int, int]:
        start = draw.randrange(span - most)
        return start, start + draw.randint(least, most)

    def offer() -> None:
        rate, nodes, at = MID + draw.randrange(LEVELS), draw.randint(1, NODES_MAX), window()
        for engine in (ours, theirs):
            engine.ask(rate, nodes, *at)

    for _ in range(size):
        offer()
    mine: list[float] = []
    other: list[float] = []
    for number in range(repeats):
        nodes, at, limit = draw.randint(1, NODES_MAX), window(), MID + LEVELS
        turns = (ours, theirs) if number % 2 else (theirs, ours)
        seen = {turn: turn.buy(limit, nodes, *at) for turn in turns}
        if by_minute(seen[ours][1]) != by_minute(seen[theirs][1]):
            raise AssertionError("the engines traded differently")
        mine.append(seen[ours][0])
        other.append(seen[theirs][0])
        offer()
    return mine, other


class Ours:
    """The exchange with asks that all cover one hour."""

    def __init__(self) -> None:
        self.exchange = Exchange("isku_bench", BASE)
        self.number = 0
        for capacity in ("seller", "buyer"):
            self.exchange.apply(Open(capacity, capacity))
        self.exchange.apply(Mint("seller", ((BASE, BASE + WINDOW, 100_000_000),)))

    def ask(self, rate: int, nodes: int) -> None:
        """A standing ask."""
        self.number += 1
        shape = ((BASE, BASE + WINDOW, nodes),)
        self.exchange.apply(Place(f"a{self.number}", "seller", "sell", rate, shape, True, True))

    def buy(self, rate: int, nodes: int) -> tuple[float, list[tuple[int, int]]]:
        """Seconds of one buy and its trades as (rate, nodes)."""
        self.number += 1
        event = Place(f"b{self.number}", "buyer", "buy", rate, ((BASE, BASE + WINDOW, nodes),), False, True)
        begun = perf_counter()
        outcome = self.exchange.apply(event)
        took = perf_counter() - begun
        return took, [(fill.rate, fill.shape[0][2]) for fill in outcome.fills]


class Theirs:
    """lightmatchingengine with the same asks."""

    def __init__(self, module: Any) -> None:
        self.engine = module.LightMatchingEngine()
        self.side = module.Side

    def ask(self, rate: int, nodes: int) -> None:
        """A resting ask."""
        self.engine.add_order("book", rate, nodes, self.side.SELL)

    def buy(self, rate: int, nodes: int) -> tuple[float, list[tuple[int, int]]]:
        """Seconds of one buy and its trades, one per maker, as (rate, nodes)."""
        begun = perf_counter()
        _, trades = self.engine.add_order("book", rate, nodes, self.side.BUY)
        took = perf_counter() - begun
        return took, [(trade.trade_price, trade.trade_qty) for trade in trades if trade.trade_side == self.side.SELL]


def compare(module: Any, size: int, levels: int, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds per taker of both engines in books of `size` asks, taking turns order by order."""
    draw = random.Random(11)
    ours, theirs = Ours(), Theirs(module)
    for _ in range(size):
        rate, nodes = MID + draw.randrange(levels), draw.randint(1, NODES_MAX)
        ours.ask(rate, nodes)
        theirs.ask(rate, nodes)
    mine: list[float] = []
    other: list[float] = []
    for number in range(repeats):
        nodes = draw.randint(1, NODES_MAX)
        limit = MID + levels
        turns = (ours, theirs) if number % 2 else (theirs, ours)
        seen = {turn: turn.buy(limit, nodes) for turn in turns}
        if seen[ours][1] != seen[theirs][1]:
            raise AssertionError(f"the engines traded differently: {seen[ours][1]} and {seen[theirs][1]}")
        mine.append(seen[ours][0])
        other.append(seen[theirs][0])
        for rate, taken in seen[ours][1]:
            ours.ask(rate, taken)
            theirs.ask(rate, taken)
    return mine, other


def run(*, quick: bool = False) -> Iterator[Figure]:
    """One figure per size; none where the other engine is not installed."""
    try:
        from lightmatchingengine import lightmatchingengine as module
    except ImportError:
        say("lightmatchingengine is not installed (pip install nanopod[bench]): no comparison")
        return
    repeats = 100 if quick else 300
    for name, size, span, least, most in (
        ("", 1_000, WEEK, HOUR, 24 * HOUR),
        ("_short", 1_000, 12 * HOUR, HOUR // 4, HOUR),
    ):
        mine, other = compare_windows(module, size, repeats, span, least, most)
        yield Figure(
            "market_vs_lightmatchingengine" + name,
            median(mine) / median(other),
            "x",
            "the same takers in lightmatchingengine with a book per minute, turn by turn",
            "" if name else "< 1",
            _detail(size, LEVELS, mine, other),
        )
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    for size, levels in (*((size, LEVELS) for size in sizes), (10_000, FEW_LEVELS)):
        mine, other = compare(module, size, levels, 300 if quick else 1500)
        name = "market_vs_lightmatchingengine_one_window_"
        yield Figure(
            name + ("few_prices" if levels == FEW_LEVELS else f"{size // 1000}k"),
            median(mine) / median(other),
            "x",
            "the same takers in lightmatchingengine, all for one hour, turn by turn",
            "",
            _detail(size, levels, mine, other),
        )


def _detail(size: int, levels: int, mine: list[float], other: list[float]) -> dict[str, Any]:
    return {
        "resting": size,
        "price_levels": levels,
        "us": round(1e6 * median(mine), 1),
        "their_us": round(1e6 * median(other), 1),
        "p99_us": round(1e6 * percentile(mine, 0.99), 1),
        "their_p99_us": round(1e6 * percentile(other, 0.99), 1),
    }
