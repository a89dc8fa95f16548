"""Money and rates as integers. One dollar is 1,000,000 micro-dollars; a float never touches an amount."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, Self

from nanopod.model.errors import Invalid

MICRO: Final = 1_000_000
_PRICE: Final = re.compile(r"\d+\.\d+")


@dataclass(frozen=True, slots=True, order=True)
class Money:
    """An amount in integer micro-dollars (may be negative: a refund, a balance below zero)."""

    micro: int = 0

    def __post_init__(self) -> None:
        assert type(self.micro) is int, "money is an integer number of micro-dollars"

    def __add__(self, other: Money) -> Money:
        return Money(self.micro + other.micro)

    def __sub__(self, other: Money) -> Money:
        return Money(self.micro - other.micro)

    def __neg__(self) -> Money:
        return Money(-self.micro)

    def __str__(self) -> str:
        sign = "-" if self.micro < 0 else ""
        whole, rest = divmod(abs(self.micro), MICRO)
        return f"{sign}{whole}.{rest:06d}"

    @classmethod
    def parse(cls, text: str, field: str = "amount") -> Self:
        """Dollars as decimal text with at most 6 decimals, exactly. Raises `Invalid` naming `field`."""
        try:
            micro = Decimal(text) * MICRO
        except ArithmeticError as error:
            raise Invalid(f"{field}: {text!r} is not an amount of dollars such as 12.50", field=field) from error
        if not micro.is_finite() or micro != micro.to_integral_value():
            raise Invalid(f"{field}: {text!r} has more than 6 decimals; the smallest amount is 0.000001", field=field)
        return cls(int(micro))


@dataclass(frozen=True, slots=True, order=True)
class Rate:
    """A price in integer micro-dollars per node and block (a block is `block_s` seconds, normally one minute).

    Prices on the wire are dollars per node-hour; `step` micro-dollars per node-hour equal one unit of this rate.
    """

    micro_per_block: int = 0

    def __post_init__(self) -> None:
        assert type(self.micro_per_block) is int and self.micro_per_block >= 0, "a rate is a non-negative integer"

    @staticmethod
    def step(block_s: int = 60) -> int:
        """Micro-dollars per node-hour in one unit of a rate: 60 at the default block."""
        assert 3600 % block_s == 0, "a block divides the hour"
        return 3600 // block_s

    def amount(self, node_blocks: int) -> Money:
        """What `node_blocks` node-blocks cost, exactly."""
        return Money(self.micro_per_block * node_blocks)

    def dollars_per_node_hour(self, block_s: int = 60) -> str:
        """The wire form: decimal dollars per node-hour with 6 decimals."""
        return str(Money(self.micro_per_block * self.step(block_s)))

    @classmethod
    def parse(cls, text: str, block_s: int = 60, field: str = "price") -> Self:
        """From wire form (`\\d+\\.\\d+` dollars per node-hour), rounded half-even to a whole step."""
        if not _PRICE.fullmatch(text):
            raise Invalid(f"{field}: {text!r} must be dollars per node-hour with a point, such as 2.50", field=field)
        steps = Decimal(text) * MICRO / cls.step(block_s)
        return cls(int(steps.to_integral_value(ROUND_HALF_EVEN)))
