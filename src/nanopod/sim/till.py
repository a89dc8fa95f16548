"""The money of a simulated market: balances, holds, and revenue that a provider earns as it delivers.

It does nothing but what the outcomes say, so that whatever does not add up is the market's fault. Amounts are
micro-dollars.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from nanopod.market.exchange import Exchange
from nanopod.market.offers import earned, refund
from nanopod.market.outcome import Fill, Line
from nanopod.market.shape import Shape, cut, meet, minus, volume


@dataclass(slots=True)
class Owed:
    """A contract that a provider still delivers: `left` is what was not refunded, `net` what it brings in all."""

    fill: Fill
    left: Shape
    net: int
    released: int = 0


class Till:
    """Cash and holds by account. The sum of all cash is what was paid in, always."""

    def __init__(self) -> None:
        self.cash: dict[str, int] = defaultdict(int)
        self.holds: dict[str, int] = defaultdict(int)
        self.paid_in = 0
        self.refunded = 0
        self.owed: list[Owed] = []
        """Newest last."""
        self._refunded_blocks: dict[int, int] = {}

    def top_up(self, account: str, micro: int) -> None:
        """Somebody pays in."""
        self.cash[account] += micro
        self.paid_in += micro

    def spending(self, account: str) -> int:
        """What an account may still commit."""
        return self.cash[account] - self.holds[account]

    def post(self, lines: Iterable[Line]) -> None:
        """The lines of one outcome."""
        for line in lines:
            if line.kind in ("hold", "release"):
                self.holds[line.account_id] += line.micro
            else:
                self.cash[line.account_id] += line.micro

    def owe(self, fill: Fill) -> None:
        """A provider sold: its revenue is held until the time has been delivered."""
        self.owed.append(Owed(fill, fill.shape, fill.amount - fill.fee))

    def deliver(self, block: int) -> None:
        """Every block before `block` has been delivered: its revenue is free."""
        still: list[Owed] = []
        for one in self.owed:
            blocks = volume(one.left)
            target = earned(one.net, blocks, volume(cut(one.left, 0, block))) if blocks else one.net
            self.holds[one.fill.seller_account] -= target - one.released
            one.released = target
            if one.left and one.left[-1][1] > block:
                still.append(one)
        self.owed = still

    def pay_back(self, lost: Shape, provider: str) -> Shape:
        """Refund lost node-blocks, contracts of `provider` and newer ones first; returns what no contract covers."""
        self.deliver(lost[0][0])
        ranked = sorted(self.owed, key=lambda one: (one.fill.seller_account != provider, -one.fill.number))
        for one in ranked:
            part = meet(one.left, lost)
            if not part:
                continue
            number = one.fill.number
            lines, _ = refund(part, [one.fill], self._refunded_blocks)
            self._refunded_blocks[number] = self._refunded_blocks.get(number, 0) + volume(part)
            self.post(lines)
            seller = sum(line.micro for line in lines if line.account_id == one.fill.seller_account)
            self.refunded += sum(line.micro for line in lines if line.account_id == one.fill.buyer_account)
            self.holds[one.fill.seller_account] += seller
            one.net += seller
            one.left = minus(one.left, part)
            lost = minus(lost, part)
            if not lost:
                break
        return lost

    def problems(self, exchange: Exchange) -> list[str]:
        """What does not add up, in words: cash against what was paid in, holds against open buys and undelivered."""
        found: list[str] = []
        if sum(self.cash.values()) != self.paid_in:
            found.append(f"accounts hold {sum(self.cash.values())}, {self.paid_in} was paid in")
        due: dict[str, int] = defaultdict(int)
        for order in exchange.orders.values():
            due[order.account_id] += order.hold
        for one in self.owed:
            due[one.fill.seller_account] += one.net - one.released
        for account in {*due, *self.holds}:
            if due[account] != self.holds[account]:
                found.append(f"{account} has {self.holds[account]} on hold, its orders and deliveries {due[account]}")
            if self.cash[account] < self.holds[account]:
                found.append(f"{account} holds {self.holds[account]} of {self.cash[account]}")
        return found
