"""What holds for a market whatever happens to it: minutes, money, limits, ownership, replay."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanopod.market.audit import problems
from nanopod.market.events import (
    Burn,
    Cancel,
    Clock,
    Configure,
    Event,
    Mint,
    Open,
    Place,
    Transfer,
    canonical,
    decode,
    encode,
)
from nanopod.market.exchange import Exchange
from nanopod.market.outcome import Outcome
from nanopod.market.procure import reconcile
from nanopod.market.shape import total, volume
from nanopod.model.errors import NanopodError
from nanopod.model.money import Rate
from nanopod.model.procurement import Procurement

USERS = ("ann", "bob", "cat")
CAPACITIES = {"north": "north", "ann": "ann", "ann2": "ann", "bob": "bob", "cat": "cat"}
STARTS = st.integers(0, 14)
LENGTHS = st.integers(1, 12)
NODES = st.integers(1, 4)
RATES = st.integers(0, 6)


class Market(RuleBasedStateMachine):
    """Random traffic on one SKU with a ledger beside it that only does what the outcomes say."""

    def __init__(self) -> None:
        super().__init__()
        self.names = (f"o{n}" for n in count())
        self.balance: dict[str, int] = defaultdict(int)
        self.holds: dict[str, int] = defaultdict(int)
        self.log: list[str] = []
        self.placed: dict[str, Place] = {}
        self.filled: dict[str, int] = defaultdict(int)
        self.closed: set[str] = set()

    @initialize(base=st.sampled_from([0, 1437, 4 * 1440 - 6, 29_000_000]), group=st.booleans(), fee=st.integers(0, 900))
    def start(self, base: int, group: bool, fee: int) -> None:
        self.base = base
        self.x = Exchange("isku_p", base)
        self.group = group
        self.do(Configure(fee_flat=fee % 3, fee_bps=fee, group_purchase=group))
        for capacity, account in CAPACITIES.items():
            self.do(Open(capacity, account, "originating" if capacity == "north" else "market"))
        self.do(Mint("north", ((base, base + 40, 9),)))

    def do(self, event: Event) -> Outcome:
        known = dict(self.x.orders)
        owned = total(holding.owned(self.x.block) for holding in self.x.holdings.values())
        outcome = self.x.apply(event)
        self.seen(event, outcome, {name: (one.whole, one.rate) for name, one in known.items()})
        if not isinstance(event, (Mint, Burn, Clock)):
            assert total(holding.owned(self.x.block) for holding in self.x.holdings.values()) == owned
        return outcome

    def seen(self, event: Event, outcome: Outcome, known: dict[str, tuple[bool, int]]) -> None:
        """Post to the ledger and check every fill."""
        self.log.append(encode(event))
        if isinstance(event, Place):
            self.placed[event.order_id] = event
        moved = 0
        for line in outcome.lines:
            if line.kind in ("hold", "release"):
                self.holds[line.account_id] += line.micro
            else:
                self.balance[line.account_id] += line.micro
                moved += line.micro
        assert moved == 0
        for fill in outcome.fills:
            buy, sell = self.placed[fill.buyer_order], self.placed[fill.seller_order]
            assert not {fill.buyer_order, fill.seller_order} & self.closed, "filled after its end"
            assert fill.buyer_account != fill.seller_account
            assert 0 <= fill.amount <= buy.rate * volume(fill.shape)
            if not self.group:
                assert sell.rate <= fill.rate <= buy.rate and fill.rate == self.placed[fill.maker_order].rate
                assert fill.amount == fill.rate * volume(fill.shape)
            for order_id in (fill.buyer_order, fill.seller_order):
                self.filled[order_id] += volume(fill.shape)
        for change in outcome.changes:
            placed = self.placed[change.order_id]
            assert change.filled == self.filled[change.order_id]
            if not placed.allow_partial:
                assert change.filled == 0 or change.status == "filled"
            if change.status in ("filled", "cancelled"):
                self.closed.add(change.order_id)
                assert change.hold == 0 and change.left == ()

    @rule(
        capacity=st.sampled_from(sorted(CAPACITIES)),
        sell=st.booleans(),
        rate=RATES,
        start=STARTS,
        length=LENGTHS,
        nodes=NODES,
        standing=st.booleans(),
        partial=st.booleans(),
        short=st.booleans(),
    )
    def place(
        self,
        capacity: str,
        sell: bool,
        rate: int,
        start: int,
        length: int,
        nodes: int,
        standing: bool,
        partial: bool,
        short: bool,
    ) -> None:
        begin = self.x.block + start
        shape = ((begin, begin + length, nodes),)
        spending = 50 if short else None
        event = Place(
            next(self.names), capacity, "sell" if sell else "buy", rate, shape, standing, partial, "", spending
        )
        before = self.x.digest()
        try:
            self.do(event)
        except NanopodError:
            assert self.x.digest() == before, "a refused order changed something"

    @precondition(lambda self: self.x.orders)
    @rule(pick=st.integers(0, 50))
    def cancel(self, pick: int) -> None:
        names = list(self.x.orders)
        self.do(Cancel(names[pick % len(names)]))

    @rule(by=st.sampled_from([1, 1, 2, 5]))
    def clock(self, by: int) -> None:
        block = self.x.block + by
        future = total(holding.owned(block) for holding in self.x.holdings.values())
        self.do(Clock(block))
        assert total(holding.owned(block) for holding in self.x.holdings.values()) == future

    @rule(source=st.sampled_from(sorted(CAPACITIES)), to=st.sampled_from(sorted(CAPACITIES)), start=STARTS, nodes=NODES)
    def transfer(self, source: str, to: str, start: int, nodes: int) -> None:
        before = self.x.digest()
        begin = self.x.block + start
        try:
            self.do(Transfer(source, to, ((begin, begin + 3, nodes),)))
        except NanopodError:
            assert self.x.digest() == before

    @rule(start=STARTS, length=LENGTHS, nodes=NODES, burn=st.booleans())
    def supply(self, start: int, length: int, nodes: int, burn: bool) -> None:
        shape = ((self.x.block + start, self.x.block + start + length, nodes),)
        try:
            self.do(Burn("north", shape) if burn else Mint("north", shape))
        except NanopodError:
            assert burn

    @rule(
        aim=st.integers(0, 5),
        window=st.integers(1, 15),
        protect=st.booleans(),
        buy=st.integers(1, 6),
        rich=st.booleans(),
    )
    def procure(self, aim: int, window: int, protect: bool, buy: int, rich: bool) -> None:
        wish = Procurement("proc", "bob", "isku_p", aim, Rate(buy), Rate(2), window, protect_manual=protect)
        manual = self.x.holdings["bob"].manual.shape(self.x.block)
        asked = self.x.holdings["bob"].asks_manual.shape(self.x.block)
        known: dict[str, tuple[bool, int]] = {}
        for attempt in range(2):
            done = reconcile(self.x, wish, 0, self.names, None if rich else 60)
            for event, outcome in zip(done.events, done.outcomes, strict=True):
                self.seen(event, outcome, known)
            if attempt and rich:
                assert not done.events, "a second reconciliation has nothing to do"
        if protect and not asked:
            assert self.x.holdings["bob"].manual.shape(self.x.block) == manual

    @precondition(lambda self: self.x.seq % 5 == 0)
    @rule()
    def restart(self) -> None:
        """The writer dies; the next one goes on from a snapshot that went through JSON."""
        again = Exchange.restore(json.loads(canonical(self.x.canonical())))
        assert again.digest() == self.x.digest()
        self.x = again

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "x"):
            return
        assert problems(self.x) == []
        held: dict[str, int] = defaultdict(int)
        for order in self.x.orders.values():
            held[order.account_id] += order.hold
        for user in USERS:
            assert self.holds[user] == held[user] >= 0
        assert sum(self.balance.values()) == 0

    def teardown(self) -> None:
        if hasattr(self, "x"):
            again = Exchange("isku_p", self.base).replay(decode(line) for line in self.log)
            assert again.digest() == self.x.digest()


TestMarket = Market.TestCase
TestMarket.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_the_audit_notices_a_planted_fault() -> None:
    x = Exchange("isku_p")
    x.apply(Open("north", "north", "originating"))
    x.apply(Open("bob", "bob"))
    x.apply(Mint("north", ((0, 10, 2),)))
    x.apply(Place("a", "north", "sell", 1, ((0, 10, 1),), True, True))
    assert problems(x) == []
    x.holdings["bob"].gain(((0, 1, 1),), auto=False)
    assert any("the supply is" in problem for problem in problems(x))
    x.supply.add(((0, 1, 1),))
    x.orders["a"].shrink(((0, 9, 1),))
    assert any("has reserved" in problem for problem in problems(x))


@pytest.mark.parametrize("seed", range(3))
def test_the_same_log_gives_the_same_bytes(seed: int) -> None:
    log: list[Event] = [Open("north", "north", "originating"), Open("bob", "bob"), Mint("north", ((0, 500, 50),))]
    for k in range(60):
        side = "sell" if (k + seed) % 2 else "buy"
        who = "north" if side == "sell" else "bob"
        start = 5 + (k * 7 + seed) % 60
        log.append(Place(f"o{k}", who, side, 10 + (k * 13) % 7, ((start, start + 9, 1 + k % 3),), True, k % 3 > 0))  # type: ignore[arg-type]
    log.append(Clock(20))
    first, second = Exchange("s").replay(log), Exchange("s").replay(decode(encode(event)) for event in log)
    assert first.canonical() == second.canonical() and first.digest() == second.digest()
