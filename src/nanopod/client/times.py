"""Times and durations as people type and read them. What is not understood is refused, never read as "now".

Times: `now`, `in 6h`, `in -1h`, `tomorrow`, `mar 15`, `mar 15 5pm`, ISO 8601, Unix seconds. Durations: `90m`, `1h`,
`7d`, `2w`, `1d12h`. A date without a zone is in the reader's zone; what is printed always names its zone.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Final

from nanopod.model.errors import Invalid

TIME_FORMS: Final = (
    "now", "in 6h", "in -1h", "tomorrow", "tomorrow 5pm", "mar 15", "mar 15 5pm", "2026-03-15T17:00:00Z", "1773594000",
)  # fmt: skip
DURATION_FORMS: Final = ("90m", "1h", "7d", "2w", "1d12h")
_UNITS: Final = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION: Final = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FULL: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH_DAY: Final = re.compile(r"([a-z]{3,9})\.? (\d{1,2})(?:,? (\S+))?")
_CLOCK: Final = re.compile(r"(\d{1,2})(?::(\d{2}))?(am|pm)?")
_UNIX: Final = re.compile(r"\d{9,11}")
_YEARS_SEARCHED: Final = 8
"""A 29th of February is at most 8 years away."""


@dataclass(frozen=True, slots=True)
class Zone:
    """The zone that bare dates are in and that times are shown in: the machine's own, or UTC."""

    utc: bool = False

    def at(self, seconds: float) -> datetime.datetime:
        """Unix seconds as a date that knows its zone."""
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        return moment if self.utc else moment.astimezone()

    def seconds(self, bare: datetime.datetime, typed: str, field: str) -> float:
        """Unix seconds of a date without a zone. Raises `Invalid` for an hour that the clocks skip."""
        if self.utc:
            return bare.replace(tzinfo=datetime.UTC).timestamp()
        seconds = bare.timestamp()
        if self.at(seconds).replace(tzinfo=None) != bare:
            raise Invalid(
                f"--{field} {typed!r} does not exist here: the clocks skip it; add a zone as in {TIME_FORMS[7]}",
                field=field,
            )
        return seconds


def parse_duration(text: str, *, field: str = "duration") -> int:
    """Seconds of a duration such as `1d12h`. Raises `Invalid` for anything else, and for nothing at all."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or not any(found.groups()):
        raise Invalid(f"--{field} {text!r} is no duration; write one of: {', '.join(DURATION_FORMS)}", field=field)
    seconds = sum(int(count) * size for count, size in zip(found.groups(), _UNITS.values(), strict=True) if count)
    if seconds == 0:
        raise Invalid(f"--{field} {text!r} is no time at all; write one of: {', '.join(DURATION_FORMS)}", field=field)
    return seconds


def parse_time(text: str, *, now: float, zone: Zone, field: str = "start", past: bool = False) -> float:
    """Unix seconds of a time.

    A day of the month is the next one from today on, or with `past` the latest one that has begun. Raises `Invalid`,
    with the accepted forms, for everything it does not know.
    """
    word = " ".join(text.strip().lower().split())
    if word == "now":
        return now
    if word.startswith("in "):
        back = word[3:].startswith("-")
        return now + (-1 if back else 1) * parse_duration(word[4:] if back else word[3:], field=field)
    if _UNIX.fullmatch(word):
        return float(word)
    today = zone.at(now).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    if word == "tomorrow" or word.startswith("tomorrow "):
        hour = _clock(word[9:], text, field)
        return zone.seconds(today + datetime.timedelta(days=1, hours=hour[0], minutes=hour[1]), text, field)
    named = _MONTH_DAY.fullmatch(word)
    if named and (named[1] in _MONTHS or named[1] in _FULL):
        month = 1 + (_MONTHS.index(named[1]) if named[1] in _MONTHS else _FULL.index(named[1]))
        hour = _clock(named[3] or "", text, field)
        day = _day_of_month(month, int(named[2]), today, past)
        if day is not None:
            return zone.seconds(day.replace(hour=hour[0], minute=hour[1]), text, field)
    elif re.match(r"\d{4}-?\d{2}-?\d{2}", word):
        try:
            found = datetime.datetime.fromisoformat(text.strip().upper())
        except ValueError:
            raise _refused(text, field) from None
        return found.timestamp() if found.tzinfo else zone.seconds(found, text, field)
    raise _refused(text, field)


def _day_of_month(month: int, day: int, today: datetime.datetime, past: bool) -> datetime.datetime | None:
    step = -1 if past else 1
    for years in range(_YEARS_SEARCHED + 1):
        try:
            found = today.replace(year=today.year + step * years, month=month, day=day)
        except ValueError:
            continue
        if (found <= today) if past else (found >= today):
            return found
    return None


def _clock(text: str, typed: str, field: str) -> tuple[int, int]:
    """(hour, minute) of `5pm`, `5:30pm`, `17:00`, or (0, 0) of nothing."""
    if not text:
        return 0, 0
    found = _CLOCK.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        raise _refused(typed, field)
    hour, minute = int(found[1]), int(found[2] or 0)
    if found[3]:
        if not 1 <= hour <= 12:
            raise _refused(typed, field)
        hour = hour % 12 + (12 if found[3] == "pm" else 0)
    if hour > 23 or minute > 59:
        raise _refused(typed, field)
    return hour, minute


def _refused(text: str, field: str) -> Invalid:
    return Invalid(f"--{field} {text!r} is no time; write one of: {', '.join(TIME_FORMS)}", field=field)


def aligned_up(seconds: float, block_s: int) -> int:
    """The first block boundary at or after a time."""
    return int(-(-seconds // block_s)) * block_s


def duration_text(seconds: float) -> str:
    """Seconds as they would be typed: `1d12h`, `90m` as `1h30m`, `0s` for nothing."""
    rest = round(abs(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return ("-" if seconds < 0 and parts else "") + ("".join(parts) or "0s")


def zone_name(moment: datetime.datetime) -> str:
    """`UTC`, or the zone's name and its distance: `PDT (UTC-7)`, `UTC+5:30` where it has no name of its own."""
    offset = moment.utcoffset() or datetime.timedelta()
    minutes = int(offset.total_seconds() // 60)
    name = moment.tzname() or ""
    if minutes == 0 and name in ("UTC", "", "Coordinated Universal Time"):
        return "UTC"
    hours, rest = divmod(abs(minutes), 60)
    distance = f"UTC{'-' if minutes < 0 else '+'}{hours}" + (f":{rest:02d}" if rest else "")
    return f"{name} ({distance})" if name and not name.startswith(("+", "-", "UTC")) else distance


def _day(moment: datetime.datetime, now: datetime.datetime) -> str:
    year = f" {moment.year}" if moment.year != now.year else ""
    return f"{_MONTHS[moment.month - 1].title()} {moment.day}{year}"


def _hour(moment: datetime.datetime) -> str:
    seconds = f":{moment.second:02d}" if moment.second else ""
    return f"{moment.hour % 12 or 12}:{moment.minute:02d}{seconds}{'am' if moment.hour < 12 else 'pm'}"


def time_text(seconds: float, *, now: float, zone: Zone) -> str:
    """`Mar 19, 5:00pm PDT (UTC-7)`; with its year unless that is this year."""
    moment = zone.at(int(seconds))
    return f"{_day(moment, zone.at(now))}, {_hour(moment)} {zone_name(moment)}"


def period_text(start_at: float, end_at: float | None, *, now: float, zone: Zone) -> str:
    """`Mar 19, 5:00pm -> 6:00pm PDT (UTC-7)`; the second day and the first zone only where they differ."""
    start = zone.at(int(start_at))
    today = zone.at(now)
    first = f"{_day(start, today)}, {_hour(start)}"
    if end_at is None:
        return f"{first} -> open {zone_name(start)}"
    end = zone.at(int(end_at))
    second = _hour(end) if start.date() == end.date() else f"{_day(end, today)}, {_hour(end)}"
    if zone_name(start) != zone_name(end):
        first += f" {zone_name(start)}"
    return f"{first} -> {second} {zone_name(end)}"
