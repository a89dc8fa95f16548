"""The market's matcher: cost per order at 1,000 to 100,000 resting orders, hopeless orders, a sold-out present, memory.

Yardstick: a book without time, two heaps of (price, sequence), the least that any engine does. A book holds
asks and bids of 1 to 24 hours spread over a week; a maker that was hit is replaced, so a book stays as deep as it was.
Times are medians of single calls, so a pause of the machine moves nothing.
"""

from __future__ import annotations

import heapq
import random
import tracemalloc
from collections.abc import Callable, Iterator
from time import perf_counter

from bench import market_engines, market_http
from bench.figures import Figure, median, percentile, say
from nanopod.market.events import Cancel, Clock, Mint, Open, Place
from nanopod.market.exchange import Exchange

WEEK = 7 * 1440
BASE = 29_000_000
"""Block 0 of the bench, a minute of 2025."""
MID = 40_000
ACCOUNTS = 50


class Plain:
    """Two heaps, one price per order, no time: an order matches the best opposite ones until it is filled."""

    def __init__(self) -> None:
        self.asks: list[list[int]] = []
        self.bids: list[list[int]] = []
        self.seq = 0

    def place(self, buy: bool, rate: int, nodes: int) -> int:
        """Match, then rest. Returns the nodes traded."""
        mine, theirs = (self.bids, self.asks) if buy else (self.asks, self.bids)
        done = 0
        while theirs and nodes and (theirs[0][0] <= rate if buy else -theirs[0][0] >= rate):
            best = theirs[0]
            take = min(best[2], nodes)
            best[2] -= take
            nodes -= take
            done += take
            if not best[2]:
                heapq.heappop(theirs)
        if nodes:
            self.seq += 1
            heapq.heappush(mine, [-rate if buy else rate, self.seq, nodes])
        return done


class Book:
    """An exchange with a given number of resting orders, half asks, half bids."""

    def __init__(self, resting: int, *, sold_out_hours: int = 0, seed: int = 1) -> None:
        self.draw = random.Random(seed)
        self.number = 0
        self.first = sold_out_hours * 60
        self.exchange = Exchange("isku_bench", BASE)
        for k in range(ACCOUNTS):
            self.exchange.apply(Open(f"cap{k}", f"acct{k}"))
            self.exchange.apply(Mint(f"cap{k}", ((BASE, BASE + WEEK + 3000, 1_000_000),)))
        for _ in range(resting // 2):
            self.exchange.apply(self.rest("sell"))
            self.exchange.apply(self.rest("buy"))
        assert len(self.exchange.orders) == resting, "nothing crosses while the book is built"

    def name(self) -> str:
        """A fresh order id."""
        self.number += 1
        return f"ordr_{self.number}"

    def rest(self, side: str) -> Place:
        """A standing order that does not cross."""
        draw = self.draw
        start = BASE + draw.randrange(self.first if side == "sell" else 0, WEEK)
        length = draw.choice((60, 120, 240, 480, 1440))
        away = draw.randrange(0, 8000)
        rate = MID + away if side == "sell" else MID - 1 - away
        shape = ((start, start + length, draw.randint(1, 8)),)
        return Place(self.name(), f"cap{draw.randrange(ACCOUNTS)}", side, rate, shape, True, True)  # type: ignore[arg-type]

    def taker(self, *, nodes: int, limit: int, whole: bool, length: int = 0) -> Place:
        """An immediate buy inside the week, or in its first day if that is sold out."""
        start = BASE + self.draw.randrange(0, 1440 if self.first else WEEK)
        length = length or self.draw.choice((30, 60, 120, 240))
        return Place(self.name(), "cap0", "buy", limit, ((start, start + length, nodes),), False, not whole)


def timed(book: Book, make: Callable[[], Place], restock: bool, repeats: int) -> list[float]:
    """Seconds of each call of `make`'s orders. Makers that were hit are replaced by fresh ones outside the clock."""
    out = []
    standing = {order.order_id: (order.capacity_id, order.rate, order.left) for order in book.exchange.orders.values()}
    for _ in range(repeats):
        event = make()
        begun = perf_counter()
        outcome = book.exchange.apply(event)
        out.append(perf_counter() - begun)
        if not restock:
            continue
        for change in outcome.changes:
            if change.order_id not in standing:
                continue
            capacity, rate, shape = standing.pop(change.order_id)
            if change.left:
                book.exchange.apply(Cancel(change.order_id))
            book.exchange.apply(Mint(capacity, shape))
            fresh = Place(book.name(), capacity, "sell", rate, shape, True, True)
            book.exchange.apply(fresh)
            standing[fresh.order_id] = (capacity, rate, shape)
    return out


def yardstick(repeats: int) -> float:
    """Median seconds of a taker in the plain book of 10,000."""
    draw = random.Random(3)
    plain = Plain()
    for _ in range(5000):
        plain.place(False, MID + draw.randrange(8000), draw.randint(1, 8))
        plain.place(True, MID - 1 - draw.randrange(8000), draw.randint(1, 8))
    out = []
    for _ in range(repeats):
        nodes = draw.randint(1, 8)
        begun = perf_counter()
        plain.place(True, MID + 9000, nodes)
        out.append(perf_counter() - begun)
        plain.place(False, MID + draw.randrange(8000), nodes)
    return median(out)


def measure(size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per order of each case in a book of `size` resting orders."""
    book = Book(size)
    draw = book.draw
    near = MID + size // 400 + 20
    cases: dict[str, tuple[Callable[[], Place], bool]] = {
        "partial": (lambda: book.taker(nodes=draw.randint(1, 8), limit=MID + 9000, whole=False), True),
        "whole": (lambda: book.taker(nodes=draw.randint(1, 8), limit=MID + 9000, whole=True), True),
        "hopeless": (lambda: book.taker(nodes=1024, limit=near, whole=True), False),
        "standing": (lambda: book.rest("sell"), False),
    }
    seen = {name: timed(book, make, restock, repeats) for name, (make, restock) in cases.items()}
    late = Book(size, sold_out_hours=26)
    seen["sold_out"] = timed(late, lambda: late.taker(nodes=1, limit=MID + 9000, whole=False), False, repeats)
    return seen


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Every figure of the cell."""
    repeats = 300 if quick else 1500
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    unit = yardstick(5 * repeats)
    seen: dict[tuple[str, int], list[float]] = {}
    for size in sizes:
        say(f"{size} resting orders")
        for name, times in measure(size, repeats).items():
            seen[name, size] = times
    yield from figures(seen, sizes, unit)
    yield from market_engines.run(quick=quick)
    yield from market_http.run(quick=quick)
    yield clock_figure(sizes[-1], unit)
    yield memory_figure(sizes[1])


def figures(seen: dict[tuple[str, int], list[float]], sizes: tuple[int, ...], unit: float) -> Iterator[Figure]:
    """Growth with the book, hopeless against normal, and each case in units of the plain book."""
    small, large = sizes[0], sizes[-1]
    for name, bar in (
        ("partial", "<= 2"),
        ("whole", "<= 2"),
        ("standing", "<= 2"),
        ("hopeless", "<= 2"),
        ("sold_out", ""),
    ):
        detail = {
            str(size): {
                "us": round(1e6 * median(seen[name, size]), 1),
                "p99_us": round(1e6 * percentile(seen[name, size], 0.99), 1),
            }
            for size in sizes
        }
        ratio = median(seen[name, large]) / median(seen[name, small])
        yield Figure(
            f"market_{name}_growth", ratio, "x", f"the same at {small} resting orders (this: {large})", bar, detail
        )
        plain = median(seen[name, large]) / unit
        yield Figure(
            f"market_{name}_cost",
            plain,
            "x",
            "a taker in a plain heap book without time",
            "",
            {"resting": large, "plain_us": round(1e6 * unit, 2)},
        )
    for size in sizes:
        times = seen["partial", size]
        yield Figure(
            f"market_order_{size // 1000}k",
            median(times) / unit,
            "x",
            "a taker in a plain heap book without time",
            "",
            {"resting": size, "us": round(1e6 * median(times), 1), "p99_us": round(1e6 * percentile(times, 0.99), 1)},
        )
        ratio = median(seen["hopeless", size]) / median(seen["whole", size])
        yield Figure(f"market_hopeless_at_{size}", ratio, "x", "an all-or-none order that fills, same book", "<= 2")


def clock_figure(size: int, unit: float) -> Figure:
    """One block of clock over a full book: every order that has begun is clipped."""
    book = Book(size)
    book.exchange.apply(Clock(BASE + 1441))
    times = []
    for block in range(1442, 1462):
        begun = perf_counter()
        changed = book.exchange.apply(Clock(BASE + block))
        times.append((perf_counter() - begun) / max(1, len(changed.changes)))
    return Figure(
        "market_clip_cost",
        median(times) / unit,
        "x",
        "a taker in a plain heap book",
        "",
        {"resting": size, "us_per_clipped_order": round(1e6 * median(times), 2)},
    )


def memory_figure(size: int) -> Figure:
    """Bytes per resting order, indexes included."""
    tracemalloc.start()
    book = Book(size)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Figure("market_bytes_per_order", used / len(book.exchange.orders), "bytes", "none", "", {"resting": size})
