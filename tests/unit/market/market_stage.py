"""A small market to act on: two providers, three users, and one-line orders."""

from __future__ import annotations

from collections.abc import Iterator

from nanopod.market.audit import problems
from nanopod.market.events import Cancel, Clock, Configure, Mint, Open, Place, Transfer
from nanopod.market.exchange import Exchange
from nanopod.market.outcome import Outcome
from nanopod.market.shape import Shape


class Stage:
    """An exchange whose capacities are named after their accounts; `north` and `south` are providers."""

    def __init__(self, block: int = 0, *, minted: int = 0, group_purchase: bool = False) -> None:
        self.x = Exchange("isku_test", block)
        self.x.apply(Configure(group_purchase=group_purchase))
        for provider in ("north", "south"):
            self.x.apply(Open(provider, provider, "originating"))
        for user in ("ann", "bob", "cat"):
            self.x.apply(Open(user, user))
        self.number = 0
        if minted:
            self.mint("north", block, block + 600, minted)
            self.mint("south", block, block + 600, minted)

    def ids(self) -> Iterator[str]:
        while True:
            self.number += 1
            yield f"auto{self.number}"

    def mint(self, who: str, start: int, end: int, nodes: int) -> None:
        self.x.apply(Mint(who, ((start, end, nodes),)))

    def order(
        self,
        name: str,
        who: str,
        side: str,
        rate: int,
        start: int,
        end: int,
        nodes: int,
        *,
        standing: bool = False,
        partial: bool = False,
        owner: str = "",
        spending: int | None = None,
    ) -> Outcome:
        shape = ((start, end, nodes),)
        place = Place(name, who, side, rate, shape, standing, partial, owner, spending)  # type: ignore[arg-type]
        return self.done(self.x.apply(place))

    def ask(self, name: str, who: str, rate: int, start: int, end: int, nodes: int, *, partial: bool = True) -> Outcome:
        return self.order(name, who, "sell", rate, start, end, nodes, standing=True, partial=partial)

    def bid(self, name: str, who: str, rate: int, start: int, end: int, nodes: int, *, partial: bool = True) -> Outcome:
        return self.order(name, who, "buy", rate, start, end, nodes, standing=True, partial=partial)

    def buy(
        self, name: str, who: str, rate: int, start: int, end: int, nodes: int, *, partial: bool = False
    ) -> Outcome:
        return self.order(name, who, "buy", rate, start, end, nodes, partial=partial)

    def cancel(self, name: str) -> Outcome:
        return self.done(self.x.apply(Cancel(name)))

    def clock(self, block: int) -> Outcome:
        return self.done(self.x.apply(Clock(block)))

    def transfer(self, source: str, target: str, start: int, end: int, nodes: int) -> Outcome:
        return self.done(self.x.apply(Transfer(source, target, ((start, end, nodes),))))

    def done(self, outcome: Outcome) -> Outcome:
        assert problems(self.x) == []
        assert sum(line.micro for line in outcome.lines if line.kind in ("buy", "sell", "fee")) == 0
        return outcome

    def left(self, name: str) -> Shape:
        order = self.x.orders.get(name)
        return order.left if order else ()

    def owned(self, who: str) -> Shape:
        return self.x.holdings[who].owned(self.x.block)


def trades(outcome: Outcome) -> list[tuple[str, Shape, int]]:
    """(maker, shape, amount) of each fill."""
    return [(fill.maker_order, fill.shape, fill.amount) for fill in outcome.fills]


def money(outcome: Outcome, account: str, *kinds: str) -> int:
    """The sum of an account's lines of these kinds."""
    return sum(line.micro for line in outcome.lines if line.account_id == account and line.kind in kinds)


def last(outcome: Outcome) -> tuple[str, str | None]:
    """Status and reason of the order that was changed last: the taker."""
    return outcome.changes[-1].status, outcome.changes[-1].reason
