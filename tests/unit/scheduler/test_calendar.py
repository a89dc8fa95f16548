"""Schedules: what cron lines mean, what is refused, and every tick against a search through all minutes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model.endpoint import ScheduleSpec
from nanopod.model.errors import Invalid
from nanopod.scheduler.calendar.cron import parse
from nanopod.scheduler.calendar.ticks import check, next_tick

BERLIN = ZoneInfo("Europe/Berlin")
SYDNEY = ZoneInfo("Australia/Sydney")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
"""Sets its clock by half an hour."""


def ticks(line: str, start: datetime, count: int, zone: tzinfo = UTC) -> list[str]:
    """The next ticks after a moment, as local time with its offset."""
    found, at = [], start.timestamp()
    for _ in range(count):
        following = next_tick(ScheduleSpec(line), at, zone)
        assert following is not None
        assert following > at
        at = following
        found.append(datetime.fromtimestamp(at, zone).strftime("%m-%d %H:%M%z"))
    return found


def test_fields() -> None:
    cron = parse("*/15,7 0-6/3,22 1,15 jan-mar,12 mon-fri")
    assert cron.minutes == (0, 7, 15, 30, 45)
    assert cron.hours == (0, 3, 6, 22)
    assert cron.days == {1, 15}
    assert cron.months == {1, 2, 3, 12}
    assert cron.weekdays == {1, 2, 3, 4, 5}
    assert parse("0 0 * * 7").weekdays == parse("0 0 * * sun").weekdays == {0}
    assert parse("0 0 * * fri-sun").weekdays == {5, 6, 0}
    assert parse("10/20 5/10 ? * *").minutes == (10, 30, 50)
    assert parse("0 5/10 * * *").hours == (5, 15)
    assert parse("@hourly") == parse("0 * * * *")
    assert parse("@Weekly") == parse("0 0 * * 0")


def test_a_day_fits_either_field_unless_one_begins_with_a_star() -> None:
    either, both, starred = parse("0 0 13 * 5"), parse("0 0 * * 5"), parse("0 0 */2 * 5")
    friday, thirteenth, even_friday = date(2026, 11, 20), date(2026, 12, 13), date(2026, 11, 20)
    assert either.fits(friday)
    assert either.fits(thirteenth)
    assert both.fits(friday)
    assert not both.fits(thirteenth)
    assert not starred.fits(even_friday)
    assert starred.fits(date(2026, 11, 27))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("* * * *", "4 fields"),
        ("61 * * * *", "minute '61'"),
        ("* 24 * * *", "hour '24'"),
        ("* * 0 * *", "day of the month"),
        ("* * * foo *", "1 to 12 or jan to dec"),
        ("* * * * 8", "0 to 7 or sun to sat"),
        ("*/0 * * * *", "step '0'"),
        ("5-1 * * * *", "backwards"),
        ("? * * * *", "minute"),
        ("0 0 31 2 *", "never comes"),
        ("@sometimes", "1 fields"),
        ("0 0 L * *", "day of the month"),
    ],
)
def test_what_cannot_be_read_is_named(line: str, why: str) -> None:
    with pytest.raises(Invalid, match=why) as refused:
        parse(line)
    assert refused.value.field == "cron"


def test_a_schedule_is_a_line_or_a_period() -> None:
    check(ScheduleSpec("0 * * * *"))
    check(ScheduleSpec(period_s=1))
    for spec in (ScheduleSpec(), ScheduleSpec("0 * * * *", period_s=5), ScheduleSpec(period_s=0.5)):
        with pytest.raises(Invalid):
            check(spec)


def test_a_time_that_does_not_exist_comes_with_the_change_once() -> None:
    before = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
    assert ticks("30 2 * * *", before, 2, BERLIN) == ["03-29 03:00+0200", "03-30 02:30+0200"]
    assert ticks("*/20 2 * * *", before, 2, BERLIN) == ["03-29 03:00+0200", "03-30 02:00+0200"]
    assert ticks("0 * * * *", datetime(2026, 3, 29, 0, 30, tzinfo=BERLIN), 3, BERLIN) == [
        "03-29 01:00+0100", "03-29 03:00+0200", "03-29 04:00+0200",
    ]  # fmt: skip


def test_a_time_that_comes_twice_counts_once_unless_every_hour_counts() -> None:
    before = datetime(2026, 10, 25, 1, 45, tzinfo=BERLIN)
    assert ticks("30 2 * * *", before, 2, BERLIN) == ["10-25 02:30+0200", "10-26 02:30+0100"]
    assert ticks("30 * * * *", before, 3, BERLIN) == ["10-25 02:30+0200", "10-25 02:30+0100", "10-25 03:30+0100"]


def test_a_date_that_a_zone_skipped() -> None:
    apia = ZoneInfo("Pacific/Apia")
    assert ticks("0 12 30 12 *", datetime(2011, 12, 1, tzinfo=apia), 2, apia) == [
        "12-31 00:00+1400",
        "12-30 12:00+1400",
    ]


def test_leap_days() -> None:
    start = datetime(2097, 1, 1, tzinfo=UTC)
    assert next_tick(ScheduleSpec("0 0 29 2 *"), start.timestamp()) == datetime(2104, 2, 29, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("period_s", [1.0, 7.0, 1.1, 3600.0])
def test_periods_are_multiples(period_s: float) -> None:
    at = 1_700_000_000.3
    for _ in range(50):
        following = next_tick(ScheduleSpec(period_s=period_s), at)
        assert following is not None
        assert 0 < following - at <= period_s * 1.000001
        assert abs(following / period_s - round(following / period_s)) < 1e-5
        at = following


# --- against a search through all minutes ---


def plain(line: str, after: float, until: float, zone: tzinfo) -> list[float]:
    """Every tick in (after, until], found by looking at each minute of real time."""
    cron = parse(line)

    def local(at: float) -> datetime:
        return datetime.fromtimestamp(at, zone)

    def wanted(moment: datetime) -> bool:
        return cron.fits(moment.date()) and moment.hour in cron.hours and moment.minute in cron.minutes

    found = []
    at = (after // 60) * 60
    while (at := at + 60) <= until:
        now, before = local(at), local(at - 60)
        jump = now.utcoffset() - before.utcoffset()  # type: ignore[operator]
        minutes = int(jump / timedelta(minutes=1))
        skipped = [before.replace(tzinfo=None) + timedelta(minutes=n) for n in range(1, minutes + 1)]
        if any(wanted(one) for one in skipped) or (wanted(now) and (now.fold == 0 or cron.every_hour)):
            found.append(at)
    return found


fields = st.tuples(
    st.sampled_from(["*", "0", "*/15", "30", "5,35", "10-20/5"]),
    st.sampled_from(["*", "2", "*/2", "1-3", "0,23", "2,3"]),
    st.sampled_from(["*", "29", "1-7", "*/2", "25,28"]),
    st.sampled_from(["*", "3", "10", "3,4,10", "*/5"]),
    st.sampled_from(["*", "0", "sun", "1-5", "*/3"]),
)


@given(
    parts=fields,
    start=st.sampled_from(
        [
            (BERLIN, 2026, 3, 22),
            (BERLIN, 2026, 10, 18),
            (SYDNEY, 2026, 4, 1),
            (LORD_HOWE, 2026, 10, 1),
            (UTC, 2026, 2, 9),
        ]
    ),
    shift_s=st.integers(0, 14 * 86_400),
)
def test_ticks_are_those_that_a_search_finds(
    parts: tuple[str, ...], start: tuple[tzinfo, int, int, int], shift_s: int
) -> None:
    zone, year, month, day = start
    line = " ".join(parts)
    at = datetime(year, month, day, tzinfo=zone).timestamp() + shift_s
    until = at + 36 * 3600
    expected = plain(line, at, until, zone)
    found: list[float] = []
    following = next_tick(ScheduleSpec(line), at, zone)
    while following is not None and following <= until:
        found.append(following)
        following = next_tick(ScheduleSpec(line), following, zone)
    assert found == expected
