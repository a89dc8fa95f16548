"""Usage events into one number of units: count, sum, max, unique_count, weighted_sum, latest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal

import msgspec

from nanopod.model.errors import Invalid

Aggregation = Literal["count", "sum", "max", "unique_count", "weighted_sum", "latest"]
Rounding = Literal["none", "round", "ceil", "floor"]


class Event(msgspec.Struct, frozen=True):
    """One measurement. `key` and `removed` serve `unique_count`: what is counted, and whether it went away."""

    at_us: int
    quantity: int = 0
    key: str = ""
    removed: bool = False


def aggregate(how: Aggregation, events: Iterable[Event], start_us: int, end_us: int, *, before: int = 0) -> Fraction:
    """Units of the events with `start_us <= at < end_us`, exactly.

    `weighted_sum` treats quantities as changes of a level that was `before` at the start, and weighs each level by
    its share of the period: 100 GB for half of it are 50. Raises `Invalid` for an empty period.
    """
    if end_us <= start_us:
        raise Invalid("end_us: a period ends after it starts", field="end_us")
    seen = sorted((event for event in events if start_us <= event.at_us < end_us), key=lambda event: event.at_us)
    match how:
        case "count":
            return Fraction(len(seen))
        case "sum":
            return Fraction(sum(event.quantity for event in seen))
        case "max":
            return Fraction(max((event.quantity for event in seen), default=0))
        case "latest":
            return Fraction(seen[-1].quantity if seen else 0)
        case "unique_count":
            return Fraction(len(_present(seen)))
        case "weighted_sum":
            return _weighted(seen, start_us, end_us, before)


def rounding(units: Fraction, how: Rounding, decimals: int = 0) -> Fraction:
    """Units rounded to `decimals` places; `round` takes a half away from zero."""
    scale = Fraction(10) ** decimals
    match how:
        case "none":
            return units
        case "ceil":
            return math.ceil(units * scale) / scale
        case "floor":
            return math.floor(units * scale) / scale
        case "round":
            whole = math.floor(abs(units) * scale + Fraction(1, 2))
            return (-whole if units < 0 else whole) / scale


def _present(events: Sequence[Event]) -> set[str]:
    """What was there at some time of the period and was not removed again."""
    present: set[str] = set()
    for event in events:
        if event.removed:
            present.discard(event.key)
        else:
            present.add(event.key)
    return present


def _weighted(events: Sequence[Event], start_us: int, end_us: int, level: int) -> Fraction:
    area, since = 0, start_us
    for event in events:
        area += level * (event.at_us - since)
        level, since = level + event.quantity, event.at_us
    return Fraction(area + level * (end_us - since), end_us - start_us)
