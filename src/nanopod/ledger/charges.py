"""Charge models: how many units become how much money. Tiers count as Lago counts them.

Money is micro-dollars, results are exact fractions; `charge` rounds once, half to even.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import msgspec

from nanopod.ledger.rating import Price, rounded
from nanopod.model.errors import Invalid

FREE = Price(0)


class Tier(msgspec.Struct, frozen=True):
    """Units `start` to `end` (None: all above), each at `price`, and `flat` micro-dollars for entering the tier."""

    start: int
    end: int | None
    price: Price = FREE
    flat: int = 0


class Standard(msgspec.Struct, frozen=True, tag="standard"):
    """Every unit at one price."""

    price: Price


class Graduated(msgspec.Struct, frozen=True, tag="graduated"):
    """Each tier prices its own units."""

    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        _ordered(self.tiers)


class Volume(msgspec.Struct, frozen=True, tag="volume"):
    """The tier in which the total falls prices all units."""

    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        _ordered(self.tiers)


class Package(msgspec.Struct, frozen=True, tag="package"):
    """Begun packages of `size` units at `amount`, after `free` units."""

    amount: int
    size: int
    free: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise Invalid(f"size: a package has at least one unit, not {self.size}", field="size")


class Percentage(msgspec.Struct, frozen=True, tag="percentage"):
    """A share of money (units are micro-dollars) and `fixed` per event after `free_events`.

    1.5 % is 15 of 1,000.
    """

    rate: int
    of: int = 100
    fixed: int = 0
    free_events: int = 0

    def __post_init__(self) -> None:
        if self.of < 1:
            raise Invalid(f"of: {self.of} must be positive, such as 100", field="of")


class Market(msgspec.Struct, frozen=True, tag="market"):
    """What the market asked, minute by minute (units are micro-dollars), and a fee on top of it."""

    fee_bps: int = 0


ChargeModel = Standard | Graduated | Volume | Package | Percentage | Market


def exact(model: ChargeModel, units: Fraction | int, events: int = 0) -> Fraction:
    """Micro-dollars for `units` (and `events`, where they count). Raises `Invalid` for negative units."""
    u = Fraction(units)
    if u < 0:
        raise Invalid(f"units: {units} must not be negative", field="units")
    match model:
        case Standard():
            return u * model.price.exact
        case Graduated():
            return _graduated(model.tiers, u)
        case Volume():
            return _volume(model.tiers, u)
        case Package():
            return Fraction(math.ceil(max(Fraction(), u - model.free) / model.size) * model.amount)
        case Percentage():
            return u * Fraction(model.rate, model.of) + model.fixed * max(0, events - model.free_events)
        case Market():
            return u * Fraction(10_000 + model.fee_bps, 10_000)


def charge(model: ChargeModel, units: Fraction | int, events: int = 0) -> int:
    """`exact`, rounded once."""
    return rounded(exact(model, units, events))


def _graduated(tiers: Sequence[Tier], units: Fraction) -> Fraction:
    total = Fraction()
    before: Tier | None = None
    for tier in tiers:
        upto = units if tier.end is None else min(units, Fraction(tier.end))
        if tier.start == 0 or (before is not None and before.end == tier.start):
            inside = upto - tier.start
        else:
            # Tiers 0-10 and 11-100 leave no gap: unit number 11 is the first one of the second tier.
            inside = upto - tier.start + 1
        total += inside * tier.price.exact + tier.flat
        if tier.end is None or tier.end >= units:
            break
        before = tier
    return total


def _volume(tiers: Sequence[Tier], units: Fraction) -> Fraction:
    whole = math.ceil(units)
    for tier in tiers:
        if tier.start <= whole and (tier.end is None or units <= tier.end):
            return units * tier.price.exact + tier.flat
    return Fraction()


def _ordered(tiers: Sequence[Tier]) -> None:
    """Raises `Invalid` unless tiers start at 0, follow each other without a gap, and the last one is open."""
    if not tiers or tiers[0].start != 0:
        raise Invalid("tiers: the first one starts at 0", field="tiers")
    if tiers[-1].end is not None:
        raise Invalid("tiers: the last one has no end", field="tiers")
    for before, after in pairwise(tiers):
        if before.end is None or before.end < before.start or after.start not in (before.end, before.end + 1):
            raise Invalid(
                f"tiers: one that ends at {before.end} cannot be followed by one that starts at {after.start}",
                field="tiers",
            )
