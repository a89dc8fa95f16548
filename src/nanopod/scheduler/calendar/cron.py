"""Cron lines: five fields, and which local dates and times they mean.

| field | values | also |
| --- | --- | --- |
| minute, hour | 0-59, 0-23 | |
| day of the month | 1-31 | `?` as `*` |
| month | 1-12 | `jan` to `dec` |
| day of the week | 0-7, both ends Sunday | `sun` to `sat`, `?` as `*` |

A field is a list (`,`) of `*`, a value, a range `a-b`, each with an optional step (`*/5`, `10-50/10`; `7/10` means from
7 to the end). Where both day fields are restricted, a day that fits either of them counts; where one of them begins
with `*`, a day must fit both. `@hourly`, `@daily` (`@midnight`), `@weekly`, `@monthly`, `@yearly` (`@annually`) are
short for the usual lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

from nanopod.model.errors import Invalid

SHORT: Final = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final[tuple[tuple[str, int, int, dict[str, int]], ...]] = (
    ("minute", 0, 59, {}), ("hour", 0, 23, {}), ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)  # fmt: skip
_DAYS_IN: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron line that was read: sorted minutes and hours, and the dates it fits."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either: bool
    """Both day fields are restricted: a day that fits one of them counts."""
    every_hour: bool
    """The hour field begins with `*`: it means time that passes, also where the clock is set back."""

    def fits(self, day: date) -> bool:
        """Does this date count?"""
        if day.month not in self.months:
            return False
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_month or by_week if self.either else by_month and by_week


def parse(line: str) -> Cron:
    """Read a cron line. Raises `Invalid` naming the field, also for one that fits no date at all."""
    words = SHORT.get(line.strip().lower(), line).split()
    if len(words) != 5:
        short = ", ".join(SHORT)
        raise Invalid(
            f"cron: {line!r} has {len(words)} fields; write five (minute hour day month weekday), or one of {short}",
            field="cron",
        )
    values = [_field(word.lower(), *spec) for word, spec in zip(words, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = values
    starred = [word.startswith(("*", "?")) for word in words]
    found = Cron(
        tuple(sorted(minutes)), tuple(sorted(hours)), frozenset(days), frozenset(months),
        frozenset(day % 7 for day in weekdays), not starred[2] and not starred[4], starred[1],
    )  # fmt: skip
    if not found.either and not any(day <= _DAYS_IN[month - 1] for month in months for day in days):
        raise Invalid(f"cron: {line!r} never comes: no month that it names has such a day", field="cron")
    return found


def _field(text: str, name: str, low: int, high: int, words: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        found |= _part(part, text, name, low, high, words)
    return found


def _part(part: str, text: str, name: str, low: int, high: int, words: dict[str, int]) -> set[int]:
    body, slash, step_text = part.partition("/")
    step = 1
    if slash:
        if not step_text.isdigit() or int(step_text) < 1:
            raise _bad(text, name, f"the step {step_text!r} is no whole number above 0")
        step = int(step_text)
    if body == "*" or (body == "?" and name.startswith("day")):
        # Both 0 and 7 are Sunday: once is enough, or steps would meet it twice.
        return set(range(low, min(high, 6 if high == 7 else high) + 1, step))
    first_text, dash, last_text = body.partition("-")
    first = _value(first_text, text, name, low, high, words)
    last = _value(last_text, text, name, low, high, words) if dash else first
    if dash and first > last:
        if last == 0 and high == 7:
            last = 7  # `fri-sun`
        else:
            raise _bad(text, name, f"the range {body} goes backwards")
    if slash and not dash:
        last = high if high != 7 else max(first, 6)
    return set(range(first, last + 1, step))


def _value(word: str, text: str, name: str, low: int, high: int, words: dict[str, int]) -> int:
    if word in words:
        return words[word]
    if not word.isdigit() or not word.isascii() or not low <= int(word) <= high:
        known = f" or {next(iter(words))} to {list(words)[-1]}" if words else ""
        raise _bad(text, name, f"{word!r} is not a number from {low} to {high}{known}")
    return int(word)


def _bad(text: str, name: str, why: str) -> Invalid:
    return Invalid(f"cron: the {name} {text!r}: {why}", field="cron")
