"""The next instant of a schedule.

Cron lines mean local time of a zone. Where the clock is changed:
- a time that does not exist (the clock is set forward) comes at the instant of the change, once for all such times;
- a time that exists twice (the clock is set back) comes the first time only; where the hour field begins with `*`, both
  times, because such a line means time that passes.

Periods are whole multiples since 1970 UTC, so a deployment that is updated keeps its rhythm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final

from nanopod.model.endpoint import ScheduleSpec
from nanopod.model.errors import Invalid
from nanopod.scheduler.calendar.cron import Cron, parse

PERIOD_S_MIN: Final = 1.0
PERIOD_S_MAX: Final = 366 * 86_400.0
DAYS_MAX: Final = 366 * 30
"""How far ahead a tick is looked for: leap days on a given weekday come every 28 years, twelve over a plain century."""
_EPOCH: Final = datetime(1970, 1, 1)
_parse: Final = lru_cache(1024)(parse)


def check(spec: ScheduleSpec) -> None:
    """Raise `Invalid`, naming the field, for a schedule that cannot be."""
    if bool(spec.cron) == bool(spec.period_s):
        raise Invalid("schedule: give a cron line or a period of seconds, one of them", field="schedule")
    if spec.cron:
        _parse(spec.cron)
    elif not PERIOD_S_MIN <= spec.period_s <= PERIOD_S_MAX:
        raise Invalid(
            f"period: {spec.period_s:g} s; from {PERIOD_S_MIN:g} to {PERIOD_S_MAX:g} s", field="period"
        )  # fmt: skip


def next_tick(spec: ScheduleSpec, after: float, zone: tzinfo = UTC) -> float | None:
    """The first instant above `after` (Unix seconds) at which the schedule starts; None when none is in sight.

    `zone` is the one that `spec.tz` names. Raises `Invalid` for a schedule that cannot be.
    """
    if spec.cron:
        return _next_cron(_parse(spec.cron), after, zone)
    check(spec)
    count = math.floor(after / spec.period_s) + 1
    found = count * spec.period_s
    # A product may round down to where we are.
    return found if found > after else (count + 1) * spec.period_s


def _next_cron(cron: Cron, after: float, zone: tzinfo) -> float | None:
    # A day earlier, because a change of the clock may carry the end of a day into the next one.
    day = datetime.fromtimestamp(after, zone).date() - timedelta(days=1)
    for _ in range(DAYS_MAX):
        found = [at for at in ticks_of(cron, day, zone) if at > after]
        if found:
            following = day + timedelta(days=1)
            return min(*found, *(at for at in ticks_of(cron, following, zone) if at > after), math.inf)
        if day.year >= 9998:
            return None
        day += timedelta(days=1)
    return None


def ticks_of(cron: Cron, day: date, zone: tzinfo) -> Iterator[float]:
    """The instants of a local date, in no order where the clock is changed; times that do not exist come as the
    instant of the change."""
    if not cron.fits(day):
        return
    midnight = datetime(day.year, day.month, day.day)
    if _is_calm(midnight, zone):
        base = (midnight - _EPOCH).total_seconds() - _offset_s(midnight.replace(tzinfo=zone))
        for hour in cron.hours:
            for minute in cron.minutes:
                yield base + hour * 3600 + minute * 60
        return
    for hour in cron.hours:
        for minute in cron.minutes:
            yield from _instants(midnight + timedelta(hours=hour, minutes=minute), zone, twice=cron.every_hour)


def _is_calm(midnight: datetime, zone: tzinfo) -> bool:
    """True when the clock is not changed on this day."""
    # No zone ever changed its clock twice within six hours.
    moments = [(midnight + timedelta(hours=hour)).replace(tzinfo=zone) for hour in range(0, 25, 6)]
    first = moments[0].utcoffset()
    return all(one.utcoffset() == first == one.replace(fold=1).utcoffset() for one in moments)


def _offset_s(local: datetime) -> float:
    offset = local.utcoffset()
    assert offset is not None, "zones know their offset"
    return offset.total_seconds()


def _instants(local: datetime, zone: tzinfo, *, twice: bool) -> Iterator[float]:
    """The instants that a local time means: one, two where the clock is set back, or that of the change."""
    seconds = (local - _EPOCH).total_seconds()
    before = _offset_s(local.replace(tzinfo=zone, fold=0))
    later = _offset_s(local.replace(tzinfo=zone, fold=1))
    if before == later:
        yield seconds - before
    elif before > later:
        yield seconds - before
        if twice:
            yield seconds - later
    else:
        yield _change(seconds - later, seconds - before, zone)


def _change(low: float, high: float, zone: tzinfo) -> float:
    """The instant in (low, high] at which the zone's offset changes, to the second."""
    old = _offset_s(datetime.fromtimestamp(low, zone))
    while high - low > 1:
        middle = math.floor((low + high) / 2)
        if _offset_s(datetime.fromtimestamp(middle, zone)) == old:
            low = middle
        else:
            high = middle
    return high
