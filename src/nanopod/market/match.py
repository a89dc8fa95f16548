"""Who trades with whom: the greedy walk by price and time, the search, group purchase (R8-R14, R17).

Everything here reads a book side and returns a plan; nothing is changed. That makes a preview the same code as a trade.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Final

import numpy as np

from nanopod.market.resting import Resting
from nanopod.market.shape import Shape, meet, minus, plus, total, volume, within
from nanopod.market.side import ANY, BookSide

WHOLE_MAX: Final = 12
"""All-or-none makers that the search looks at, in priority order."""
TOGETHER_MAX: Final = 4
"""All-or-none makers that one combination may use."""
TRIALS_MAX: Final = 1000
"""Combinations that the search evaluates."""


@dataclass(frozen=True, slots=True)
class Take:
    """What a plan takes from one maker. `amount` in micro-dollars; for a group's own ask it is the taker's share."""

    maker: Resting
    shape: Shape
    amount: int


@dataclass(frozen=True, slots=True)
class Group:
    """R17: an ask sold whole to the taker and to resting bids, who pay their own limits for the remainder."""

    ask: Resting
    bids: tuple[Take, ...]
    amount: int
    """What the taker pays."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a taker would get. `left` is the part of its shape that stays open."""

    takes: tuple[Take, ...]
    left: Shape
    group: Group | None = None

    @property
    def amount(self) -> int:
        """Micro-dollars that the taker pays or is paid."""
        return self.group.amount if self.group else sum(take.amount for take in self.takes)


def greedy(
    want: Shape, makers: BookSide, limit: int, account_id: str, *, partial_only: bool = False
) -> tuple[list[tuple[Resting, Shape]], Shape]:
    """R10, R11: take from makers in order until nothing is wanted; returns what was taken and what is still wanted.

    Own orders are skipped; an all-or-none maker is used if it fits whole, else skipped.
    """
    taken: list[tuple[Resting, Shape]] = []
    if not want:
        return taken, want
    window = [want[0][0], want[-1][1]]
    for _, end, start, nodes, maker in makers.entries(window, limit, partial_only=partial_only):
        if maker.account_id == account_id:
            continue
        if maker.whole:
            if not within(maker.left, want):
                continue
            take = maker.left
        else:
            take = meet(want, ((start, end, nodes),))
            if not take:
                continue
        if taken and taken[-1][0] is maker:
            taken[-1] = (maker, plus(taken[-1][1], take))
        else:
            taken.append((maker, take))
        want = minus(want, take)
        if not want:
            break
        window[0], window[1] = want[0][0], want[-1][1]
    return taken, want


def propose(taker: Resting, makers: BookSide, *, key_max: int | None = None) -> Plan:
    """What this taker gets from the opposite side, R17 aside. `key_max` overrides its limit (a preview has none)."""
    limit = taker.key_max if key_max is None else key_max
    shape = taker.left
    reach = makers.ladder.reach(limit, shape)
    if not reach or (taker.whole and reach != shape):
        return Plan((), shape)
    if taker.whole:
        taken, open_ = greedy(shape, makers, limit, taker.account_id)
        if open_:
            taken = search(taker, makers, limit) or []
    else:
        # Where coverage falls short of the shape, each maker fits under it, so walking for `reach` alone takes the same
        # nodes as walking for the whole shape and stops once everything that can be had is had.
        taken, _ = greedy(reach, makers, limit, taker.account_id)
    takes = tuple(Take(maker, take, maker.rate * volume(take)) for maker, take in taken)
    return Plan(takes, minus(shape, total(take.shape for take in takes)) if takes else shape)


def search(taker: Resting, makers: BookSide, limit: int) -> list[tuple[Resting, Shape]] | None:
    """R12: whole all-or-none makers completed by partial ones; the cheapest cover found, or None. Bounded.

    What partial makers can give at all is summed once per block, so a combination that cannot work costs one
    comparison.
    """
    shape, account = taker.left, taker.account_id
    inside = (
        maker
        for maker in makers.walk_whole(taker.start, taker.end, limit)
        if maker.account_id != account and within(maker.left, shape)
    )
    wholes = list(islice(inside, WHOLE_MAX))
    if not wholes:
        return None  # the greedy walk has tried everything that is left
    start, size = taker.start, taker.end - taker.start
    supply = np.zeros(size, np.int64)
    for _, end, begin, nodes, maker in makers.entries([taker.start, taker.end], limit, partial_only=True):
        if maker.account_id != account:
            _lay(supply, ((begin, end, nodes),), start)
    demand = np.zeros(size, np.int64)
    _lay(demand, shape, start)
    laid = []
    for maker in wholes:
        row = np.zeros(size, np.int64)
        _lay(row, maker.left, start)
        laid.append(row)
    best: tuple[tuple[int, int, list[int]], list[tuple[Resting, Shape]]] | None = None
    for chosen in islice(_subsets(len(wholes)), TRIALS_MAX):
        given = sum((laid[k] for k in chosen), np.zeros(size, np.int64))
        if bool((given > demand).any()) or bool((demand - given > supply).any()):
            continue
        used = [(wholes[k], wholes[k].left) for k in chosen]
        rest = minus(shape, total(take for _, take in used)) if used else shape
        filled, open_ = greedy(rest, makers, limit, account, partial_only=True)
        assert not open_, "the summed supply covers the rest, and partial makers give any part of it"
        cover = used + filled
        cost = sum(maker.key * volume(take) for maker, take in cover)
        rank = (cost, len(chosen), sorted(wholes[k].seq for k in chosen))
        if best is None or rank < best[0]:
            best = (rank, cover)
    if best is None:
        return None
    return sorted(best[1], key=lambda pair: (pair[0].key, pair[0].seq))


def group(taker: Resting, asks: BookSide, bids: BookSide) -> Group | None:
    """R17: the all-or-none ask containing the taker's shape whose remainder resting bids can pay for, cheapest first.

    The bids must cover the remainder exactly, best price first; the taker pays the ask's total less theirs, never less
    than nothing, and only if its own limit total allows. Ties go to the earliest ask.
    """
    ceiling = taker.rate * volume(taker.left)
    best: tuple[tuple[int, int], Group] | None = None
    containing = (
        ask
        for ask in asks.walk_whole(taker.start, taker.end, ANY)
        if ask.account_id != taker.account_id and ask.left != taker.left and within(taker.left, ask.left)
    )
    for ask in islice(containing, TRIALS_MAX):
        rest = minus(ask.left, taker.left)
        if bids.ladder.reach(0, rest) != rest:
            continue
        taken, open_ = greedy(rest, bids, 0, ask.account_id)
        if open_:
            continue
        paid = tuple(Take(maker, take, maker.rate * volume(take)) for maker, take in taken)
        cost = max(0, ask.rate * volume(ask.left) - sum(take.amount for take in paid))
        if cost <= ceiling and (best is None or (cost, ask.seq) < best[0]):
            best = ((cost, ask.seq), Group(ask, paid, cost))
    return best[1] if best else None


def _subsets(count: int) -> Iterator[Sequence[int]]:
    for size in range(min(count, TOGETHER_MAX) + 1):
        yield from combinations(range(count), size)


def _lay(row: np.ndarray[tuple[int], np.dtype[np.int64]], shape: Shape, base: int) -> None:
    for start, end, nodes in shape:
        low, high = max(start - base, 0), min(end - base, len(row))
        if high > low:
            row[low:high] += nodes
