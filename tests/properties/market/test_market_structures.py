"""Shapes, steps, the grid and the ladder against the obvious dictionary of blocks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from plain_market import cells

from nanopod.market import shape as shapes
from nanopod.market.grid import WIDTHS
from nanopod.market.ladder import PAGE, bucket
from nanopod.market.resting import Resting
from nanopod.market.shape import Shape, normal
from nanopod.market.side import ANY, BookSide
from nanopod.market.steps import Steps
from nanopod.model.order import Side

runs = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 3)), max_size=8)


@st.composite
def some_shape(draw: st.DrawFn) -> Shape:
    out, at = [], 0
    for gap, length, nodes in draw(runs):
        out.append((at + gap, at + gap + length, nodes))
        at += gap + length
    return normal(out)


@settings(max_examples=150, deadline=None)
@given(some_shape(), some_shape())
def test_shapes_are_blockwise_arithmetic(a: Shape, b: Shape) -> None:
    x, y = Counter(cells(a)), Counter(cells(b))
    assert cells(shapes.meet(a, b)) == dict(x & y)
    assert cells(shapes.plus(a, b)) == dict(x + y) == cells(shapes.total([a, b]))
    assert cells(shapes.excess(a, b)) == dict(x - y)
    assert shapes.within(a, b) == (x <= y)
    both = shapes.plus(a, b)
    assert shapes.minus(both, b) == a
    if b:
        left, gone, new = shapes.carve(both, b)
        assert left == a and set(left) == (set(both) - set(gone)) | set(new)
    assert cells(shapes.cut(a, 4, 9)) == {k: n for k, n in x.items() if 4 <= k < 9}
    assert shapes.volume(a) == x.total() and shapes.peak(a) == max(x.values(), default=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(some_shape(), st.sampled_from([1, -1])), max_size=8), st.integers(0, 30))
def test_steps_are_a_dictionary_of_blocks(changes: list[tuple[Shape, int]], before: int) -> None:
    steps, plain = Steps(), Counter[int]()
    for shape, sign in changes:
        steps.add(shape, sign)
        for block, nodes in cells(shape).items():
            plain[block] += nodes * sign
    assert [steps.at(block) for block in range(-1, 90)] == [plain[block] for block in range(-1, 90)]
    assert steps.least(3, 20) == min(plain[block] for block in range(3, 20))
    assert cells(steps.shape()) == {block: n for block, n in plain.items() if n > 0}
    steps.forget(before)
    assert [steps.at(block) for block in range(90)] == [plain[b] if b >= before else 0 for b in range(90)]


def test_price_buckets_never_fall_and_are_fine() -> None:
    last = 0
    for rate in (*range(70_000), *(1 << k for k in range(17, 45))):
        here = bucket(rate)
        assert last <= here <= 8191
        last = here
    for rate in (300, 5_000, 40_000, 333_333):
        assert bucket(rate + rate // 120) > bucket(rate)


orders = st.lists(
    st.tuples(
        st.integers(1, 300),  # rate
        st.sampled_from([0, 5, 61, 1400, 1439, 4310, 4325, 9000, 70_000]),  # start
        st.sampled_from([1, 30, 64, 65, 1440, 5000, 400_000]),  # length
        st.integers(1, 5),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(orders, st.sampled_from(["buy", "sell"]), st.sampled_from([0, 3, 1500, 4400, 20_000]), st.integers(0, 11))
def test_grid_and_ladder_know_every_order_at_every_clock(
    wanted: list[tuple[int, int, int, int, bool]], side: Side, block: int, gone: int
) -> None:
    book = BookSide(0, bids=side == "buy")
    resting = []
    for seq, (rate, start, length, nodes, whole) in enumerate(wanted):
        order = Resting(
            order_id=str(seq), seq=seq, account_id="a", capacity_id="c", side=side, rate=rate,
            left=((start, start + length, nodes),), whole=whole,
        )  # fmt: skip
        book.add(order)
        resting.append(order)
    dropped = resting.pop(gone % len(resting))
    book.remove(dropped)
    if resting and not resting[0].whole:
        middle = (resting[0].start + resting[0].end) // 2
        taken = ((middle, middle + 1, 1),)
        if resting[0].left != taken:
            book.fill(resting[0], taken)
    for order in resting:
        book.clip(order, shapes.cut(order.left, block))
    book.advance(block)
    resting = sorted((one for one in resting if one.left), key=lambda one: (one.key, one.seq))
    assert list(book.walk()) == resting
    for start, end in ((block, block + 1), (block, block + 2000), (block + 4310, block + 6000)):
        near = [one for one in book.walk(start, end) if shapes.cut(one.left, start, end)]
        assert near == [one for one in resting if shapes.cut(one.left, start, end)]
    fine = (block // PAGE + 3) * PAGE
    for key in {one.key for one in resting} | {ANY}:
        there = shapes.total(one.left for one in resting if one.key <= key)
        assert book.ladder.reach(key, there) == there, "never denies what there is"
        sure = shapes.cut(shapes.total(o.left for o in resting if bucket(o.rate) <= bucket(max(0, key))), block, fine)
        more = tuple((start, end, nodes + 3) for start, end, nodes in sure)
        if side == "sell" and key < ANY and sure:
            assert book.ladder.reach(key, more) == sure, "near the clock it counts exactly, up to the bucket's edge"
    for order in resting:
        book.remove(order)
    assert not any(book.partial.tiers) and not any(book.whole.tiers)


def test_every_order_fits_a_tier() -> None:
    assert WIDTHS[-1] >= 3 * 365 * 1440
