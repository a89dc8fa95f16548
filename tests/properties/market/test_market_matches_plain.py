"""The matcher against the slow reading of the rules: same fills, same amounts, same open orders on random books."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_market import PlainMarket, PlainOrder, cells

from nanopod.market import exchange, match
from nanopod.market.events import Cancel, Clock, Configure, Mint, Open, Place
from nanopod.market.exchange import Exchange

ACCOUNTS = ("ann", "bob", "cat", "dan")
HOUR = 60

orders = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.sampled_from(["buy", "sell"]),
    st.integers(1, 5),  # rate
    st.integers(0, 9),  # start
    st.integers(1, 6),  # length
    st.integers(1, 3),  # nodes
    st.booleans(),  # standing
    st.booleans(),  # partial
)
steps = st.lists(
    st.one_of(
        orders.map(lambda order: ("place", order)),
        orders.map(lambda order: ("place", order)),
        orders.map(lambda order: ("place", order)),
        st.integers(0, 30).map(lambda pick: ("cancel", pick)),
        st.integers(1, 2).map(lambda by: ("clock", by)),
    ),
    max_size=40,
)


def compare(moves: list, scale: int, offset: int, group_purchase: bool) -> int:
    """Run both; `scale` and `offset` stretch time so that pages, cells and tiers are crossed. Returns the fills."""
    real = Exchange("isku_x", offset)
    plain = PlainMarket(group_purchase)
    real.apply(Configure(group_purchase=group_purchase))
    for account in ACCOUNTS:
        real.apply(Open(account, account))
        real.apply(Mint(account, ((offset, offset + 60 * scale, 500),)))
    seen = 0
    clock = 0
    for number, (kind, value) in enumerate(moves):
        if kind == "place":
            account, side, rate, start, length, nodes, standing, partial = value
            rate -= side == "sell"  # a sell may be free of charge
            start, end = clock + start, clock + start + length
            name = f"o{number}"
            shape = ((offset + start * scale, offset + end * scale, nodes),)
            out = real.apply(Place(name, account, side, rate * 1000, shape, standing, partial))
            order = PlainOrder(name, out.seq, account, side, rate * 1000, cells(((start, end, nodes),)), partial)
            wanted = plain.place(order, standing)
            got = [(f.buyer_order, f.seller_order, f.shape, f.amount) for f in out.fills]
            unscaled = [
                (b, s, cells(tuple(((x - offset) // scale, (y - offset) // scale, n) for x, y, n in shape)), a // scale)
                for b, s, shape, a in got
            ]
            assert sorted(map(repr, unscaled)) == sorted(
                map(repr, [(b, s, dict(sorted(c.items())), a) for b, s, c, a in wanted])
            )
            seen += len(got)
        elif kind == "cancel":
            open_ids = list(real.orders)
            if open_ids:
                name = open_ids[value % len(open_ids)]
                real.apply(Cancel(name))
                plain.cancel(name)
        else:
            clock += value
            real.apply(Clock(offset + clock * scale))
            plain.clock(clock)
        left = {
            o.order_id: cells(tuple(((x - offset) // scale, (y - offset) // scale, n) for x, y, n in o.left))
            for o in real.orders.values()
        }
        assert left == {o.order_id: o.left for o in plain.orders}
    return seen


@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([(1, 0), (1, 1435), (97, 4300), (720, 1440 * 20_000)]), st.booleans())
def test_same_fills_and_same_book(moves: list, frame: tuple[int, int], group_purchase: bool) -> None:
    compare(moves, frame[0], frame[1], group_purchase)


def traffic(seed: int) -> list:
    """Dense random moves: long runs with much crossing, which shrinking strategies rarely draw."""
    draw = random.Random(seed)
    moves: list = []
    for _ in range(60):
        kind = draw.random()
        if kind < 0.9:
            side = draw.choice(["buy", "sell"])
            times = (draw.randint(0, 7), draw.randint(1, 5), draw.randint(1, 3))
            order = (draw.choice(ACCOUNTS), side, draw.randint(1, 5), *times, draw.random() < 0.8, draw.random() < 0.5)
            moves.append(("place", order))
        elif kind < 0.96:
            moves.append(("cancel", draw.randint(0, 30)))
        else:
            moves.append(("clock", 1))
    return moves


def test_same_fills_in_dense_traffic_that_searches_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"search": 0, "group": 0}

    def counted(name: str, real):
        def call(*args):
            result = real(*args)
            found[name] += bool(result)
            return result

        return call

    monkeypatch.setattr(match, "search", counted("search", match.search))
    monkeypatch.setattr(exchange, "group", counted("group", match.group))
    fills = 0
    for seed in range(400):
        scale, offset = [(1, 0), (1, 1435), (97, 4300), (720, 1440 * 20_000)][seed % 4]
        fills += compare(traffic(seed), scale, offset, group_purchase=seed % 8 < 4)
    assert fills > 3_000
    assert min(found.values()) > 20, found
