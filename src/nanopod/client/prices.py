"""Prices as they are typed, and what they become: whole steps of a rate, totals, holds; every rounding is said.

A rate is a whole number of micro-dollars per node and block. At a block of 60 s one unit is 0.000060 $/node-hour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Any, Final

from nanopod.model.errors import Invalid
from nanopod.model.money import MICRO, Money, Rate

_DOLLARS: Final = re.compile(r"\$?(\d[\d,]*)(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit price: `wire` is what is sent, `rate` what the market makes of it."""

    wire: str
    rate: Rate
    block_s: int = 60

    @property
    def echo(self) -> str:
        """The rate as the API echoes it, 6 decimals."""
        return self.rate.dollars_per_node_hour(self.block_s)

    @property
    def step(self) -> str:
        """The smallest difference between two prices."""
        return Rate(1).dollars_per_node_hour(self.block_s)

    def note(self) -> str:
        """What rounding did to the typed price, or "" when it did nothing."""
        typed, got = Decimal(self.wire), Decimal(self.echo)
        if typed == got:
            return ""
        up = "; rounded up" if got > typed else ""
        return f" (you typed {self.wire}; step {self.step}{up})"


def dollars(text: str, field: str) -> str:
    """A typed price in the wire's form: digits, a point, digits. Raises `Invalid`."""
    found = _DOLLARS.fullmatch(text.strip())
    if found is None:
        raise Invalid(f"--{field} {text!r} is no price; write dollars such as 2.50", field=field)
    return found[1].replace(",", "") + (found[2] or ".00")


def limit_of(text: str, *, block_s: int, field: str) -> Limit:
    """The limit of a typed price per node-hour: the nearest whole step, halves up."""
    wire = dollars(text, field)
    steps = (Decimal(wire) * MICRO / Rate.step(block_s)).to_integral_value(ROUND_HALF_UP)
    return Limit(wire, Rate(int(steps)), block_s)


def limit_of_total(text: str, node_blocks: int, *, block_s: int, field: str = "max-price") -> Limit:
    """The highest limit whose total for `node_blocks` cannot exceed a typed amount. Raises `Invalid` when it is 0."""
    total = Decimal(dollars(text, field)) * MICRO
    rate = Rate(int((total / node_blocks).to_integral_value(ROUND_FLOOR)))
    if rate.micro_per_block == 0:
        least = Money(node_blocks)
        raise Invalid(f"--{field} {text} is below one step per block; for this time the least is {least}", field=field)
    return Limit(rate.dollars_per_node_hour(block_s), rate, block_s)


def amount_of(wire: Any) -> Money:
    """An amount or price that the API sent as decimal dollars; 0 for nothing."""
    if isinstance(wire, Mapping):
        wire = wire.get("amount", wire.get("value"))
    try:
        return Money(int((Decimal(str(wire or 0)) * MICRO).to_integral_value(ROUND_HALF_UP)))
    except ArithmeticError:
        return Money()


def money_text(amount: Any) -> str:
    """`$1,919.998080`: all six decimals, so that nothing is rounded away."""
    micro = amount.micro if isinstance(amount, Money) else amount_of(amount).micro
    whole, rest = divmod(abs(micro), MICRO)
    return f"{'-' if micro < 0 else ''}${whole:,}.{rest:06d}"


def hours_text(node_seconds: float) -> str:
    """Node-hours without needless decimals: `96`, `1.5`, `0.016667`."""
    return f"{Decimal(node_seconds) / 3600:.6f}".rstrip("0").rstrip(".")


def node_seconds(schedule: Iterable[Mapping[str, Any]]) -> int:
    """Node-seconds of a schedule with ends."""
    return sum(
        int(entry["node_count"]) * (int(entry["end_at"]) - int(entry["start_at"]))
        for entry in schedule
        if entry.get("end_at") is not None
    )


def nodes_text(count: Any) -> str:
    """`1 node`, `4 nodes`, `1-4 nodes`."""
    return f"{count} node{'' if str(count) == '1' else 's'}"


def echo(*, side: str, nodes: int, duration: str, seconds: int, limit: Limit, fee: Money | None = None) -> str:
    """One line that shows size, rate, total and hold of an order before it is placed.

    `seconds` is the duration, `fee` what a seller pays at the limit (None when it is not known).
    """
    blocks = nodes * seconds // limit.block_s
    total = limit.rate.amount(blocks)
    line = (
        f"{nodes_text(nodes)} x {duration} = {hours_text(nodes * seconds)} node-hours, "
        f"limit {limit.echo} $/node-hour{limit.note()}"
    )
    if side == "buy":
        return f"{line}, total at most {money_text(total)}, hold {money_text(total)}, fee 0 (seller pays)"
    paid = "fee not known yet" if fee is None else f"fee {money_text(fee)} (you pay)"
    return f"{line}, total at least {money_text(total)}, hold 0, {paid}"
