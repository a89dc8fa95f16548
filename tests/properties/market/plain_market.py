"""A slow market for comparison: the rules read literally, block by block, over a list of orders. No index, no shortcut."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, islice

Cells = dict[int, int]


def cells(shape: tuple[tuple[int, int, int], ...]) -> Cells:
    return {block: nodes for start, end, nodes in shape for block in range(start, end)}


def less(a: Cells, b: Cells) -> Cells:
    out = {block: nodes - b.get(block, 0) for block, nodes in a.items()}
    assert all(nodes >= 0 for nodes in out.values())
    return {block: nodes for block, nodes in out.items() if nodes}


@dataclass
class PlainOrder:
    order_id: str
    seq: int
    account: str
    side: str
    rate: int
    left: Cells
    partial: bool
    rank: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rank = (self.rate if self.side == "sell" else -self.rate, self.seq)


def greedy(want: Cells, makers: list[PlainOrder]) -> tuple[list[tuple[PlainOrder, Cells]], Cells]:
    plan = []
    for maker in makers:
        if not want:
            break
        if maker.partial:
            take = {b: min(n, want.get(b, 0)) for b, n in maker.left.items() if want.get(b, 0)}
            if not take:
                continue
        else:
            if any(n > want.get(b, 0) for b, n in maker.left.items()):
                continue
            take = dict(maker.left)
        plan.append((maker, take))
        want = less(want, take)
    return plan, want


class PlainMarket:
    def __init__(self, group_purchase: bool = False) -> None:
        self.orders: list[PlainOrder] = []
        self.seq = 0
        self.block = 0
        self.group_purchase = group_purchase

    def eligible(self, taker: PlainOrder) -> list[PlainOrder]:
        def crosses(maker: PlainOrder) -> bool:
            return maker.rate <= taker.rate if taker.side == "buy" else maker.rate >= taker.rate

        found = [m for m in self.orders if m.side != taker.side and m.account != taker.account and crosses(m)]
        return sorted(found, key=lambda m: m.rank)

    def search(self, taker: PlainOrder) -> list[tuple[PlainOrder, Cells]]:
        makers = self.eligible(taker)
        inside = [m for m in makers if not m.partial and all(n <= taker.left.get(b, 0) for b, n in m.left.items())]
        best = None
        subsets = (s for size in range(5) for s in combinations(inside[:12], size))
        for chosen in islice(subsets, 1000):
            want = dict(taker.left)
            try:
                for maker in chosen:
                    want = less({**dict.fromkeys(maker.left, 0), **want}, maker.left)
            except AssertionError:
                continue
            rest, left = greedy(want, [m for m in makers if m.partial])
            if left:
                continue
            cover = [(m, dict(m.left)) for m in chosen] + rest
            cost = sum(m.rank[0] * sum(take.values()) for m, take in cover)
            rank = (cost, len(chosen), sorted(m.seq for m in chosen))
            if best is None or rank < best[0]:
                best = (rank, cover)
        return best[1] if best else []

    def group(self, taker: PlainOrder):
        best = None
        for ask in sorted((m for m in self.orders if m.side == "sell" and not m.partial), key=lambda m: m.seq):
            contains = all(ask.left.get(b, 0) >= n for b, n in taker.left.items())
            if ask.account == taker.account or not contains or ask.left == taker.left:
                continue
            bids = [m for m in self.orders if m.side == "buy" and m.account != ask.account]
            plan, left = greedy(less(ask.left, taker.left), sorted(bids, key=lambda m: m.rank))
            if left:
                continue
            cost = ask.rate * sum(ask.left.values()) - sum(m.rate * sum(t.values()) for m, t in plan)
            cost = max(0, cost)
            if cost <= taker.rate * sum(taker.left.values()) and (best is None or cost < best[0]):
                best = (cost, ask, plan)
        return best

    def place(self, taker: PlainOrder, standing: bool) -> list[tuple[str, str, Cells, int]]:
        """(buyer order, seller order, cells, amount) of every fill."""
        self.seq += 1
        plan, left = greedy(taker.left, self.eligible(taker))
        fills = []
        if left and not taker.partial:
            plan = self.search(taker)
            if not plan and taker.side == "buy" and self.group_purchase:
                found = self.group(taker)
                if found:
                    cost, ask, bids = found
                    for maker, take in bids:
                        fills.append((maker.order_id, ask.order_id, take, maker.rate * sum(take.values())))
                        maker.left = less(maker.left, take)
                    fills.append((taker.order_id, ask.order_id, taker.left, cost))
                    ask.left, taker.left = {}, {}
                    plan = []
        for maker, take in plan:
            buy, sell = (taker, maker) if taker.side == "buy" else (maker, taker)
            fills.append((buy.order_id, sell.order_id, take, maker.rate * sum(take.values())))
            maker.left = less(maker.left, take)
            taker.left = less(taker.left, take)
        self.orders = [m for m in self.orders if m.left]
        if taker.left and standing:
            self.orders.append(taker)
        return fills

    def cancel(self, order_id: str) -> None:
        self.orders = [m for m in self.orders if m.order_id != order_id]

    def clock(self, block: int) -> None:
        self.block = block
        for order in self.orders:
            order.left = {b: n for b, n in order.left.items() if b >= block}
        self.orders = [m for m in self.orders if m.left]
