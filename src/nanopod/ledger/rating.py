"""Quantities into money, exactly: integer quantities add up, fractions of a period add up, rounding happens once."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import msgspec

from nanopod.model.errors import Invalid


def half_even(numerator: int, denominator: int) -> int:
    """The nearest whole number of a fraction; a half goes to the even neighbour."""
    assert denominator > 0, "a fraction has a positive denominator"
    whole, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return whole + (twice > denominator or (twice == denominator and whole % 2 == 1))


def rounded(amount: Fraction) -> int:
    """`half_even` of a fraction."""
    return half_even(amount.numerator, amount.denominator)


class Price(msgspec.Struct, frozen=True):
    """`micro` micro-dollars per `per` units: $2.19 an hour, counted in milliseconds, is 2,190,000 per 3,600,000."""

    micro: int
    per: int = 1

    def __post_init__(self) -> None:
        if type(self.micro) is not int or type(self.per) is not int or self.micro < 0 or self.per < 1:
            raise Invalid(
                f"price: {self.micro!r} per {self.per!r} must be whole micro-dollars per a positive number of units",
                field="price",
            )

    @property
    def exact(self) -> Fraction:
        """Micro-dollars per unit."""
        return Fraction(self.micro, self.per)


class Metered(msgspec.Struct, frozen=True):
    """One line of a period: how many units were used at each version of its price."""

    quantities: Mapping[Price, int] = {}

    def plus(self, price: Price, quantity: int) -> Metered:
        """With `quantity` more units at `price` (fewer, for a correction)."""
        return Metered({**self.quantities, price: self.quantities.get(price, 0) + quantity})

    @property
    def units(self) -> int:
        """All units."""
        return sum(self.quantities.values())

    @property
    def total(self) -> int:
        """Micro-dollars for everything so far: the exact fractions are summed, then rounded once."""
        return rounded(sum((price.exact * n for price, n in self.quantities.items()), Fraction()))

    def due(self, posted: int) -> int:
        """What is to be charged now, after `posted` micro-dollars of this line (negative: given back)."""
        return self.total - posted
