"""Times and durations as they are typed, and how they are printed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.client.times import (
    Zone,
    aligned_up,
    duration_text,
    parse_duration,
    parse_time,
    period_text,
    time_text,
)
from nanopod.model.errors import Invalid

NOW = 1_773_532_800.0  # Sat Mar 15 2026, 00:00 UTC is 1773532800
HERE, UTC = Zone(), Zone(utc=True)


@pytest.fixture
def pacific(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400),
        ("1h", 3600),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("1d12h", 129_600),
        ("30s", 30),
        ("1w2d3h", 788_400),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds == parse_duration(f" {text.upper()} ")


@pytest.mark.parametrize("text", ["", "5", "1.5h", "h", "-1h", "1h 30m", "1y", "12h1d", "one hour", "0m", "1hh", "now"])
def test_what_is_no_duration_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(Invalid, match="90m, 1h, 7d, 2w, 1d12h") as caught:
        parse_duration(text, field="window")
    assert caught.value.field == "window" and "--window" in caught.value.message


@given(st.integers(1, 10**8))
def test_a_duration_survives_being_printed(seconds: int) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", NOW),
        ("NOW ", NOW),
        ("in 6h", NOW + 21_600),
        ("in -1h", NOW - 3600),
        ("in 1d12h", NOW + 129_600),
        ("tomorrow", NOW + 86_400),
        ("tomorrow 5pm", NOW + 86_400 + 61_200),
        ("mar 15", NOW),
        ("Mar 15 5pm", NOW + 61_200),
        ("march 15 5:30pm", NOW + 63_000),
        ("mar 15 17:00", NOW + 61_200),
        ("mar 15 12am", NOW),
        ("mar 15 12pm", NOW + 43_200),
        ("mar 14", NOW + 364 * 86_400),
        ("feb 29", 1_835_395_200),
        ("2026-03-15", NOW),
        ("2026-03-15T17:00:00Z", NOW + 61_200),
        ("2026-03-15T17:00:00-07:00", NOW + 61_200 + 25_200),
        ("2026-03-15 17:00", NOW + 61_200),
        ("1773594000", 1_773_594_000),
    ],
)  # fmt: skip
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text, now=NOW, zone=UTC) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", "soon", "today", "5pm", "in", "in 6", "in h", "yesterday", "mar", "mar 32", "feb 30", "mar 15 5", "mar 15 13pm",
        "mar 15 0am", "mar 15 25:00", "15 mar", "2026-13-01", "2026-03-15T25:00", "1773594000000", "12345", "3/15/2026",
        "now now", "in -", "nowish", "tomorrow morning",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_and_never_now(text: str) -> None:
    with pytest.raises(Invalid, match="write one of: ") as caught:
        parse_time(text, now=NOW, zone=UTC)
    if "no time" in caught.value.message:
        assert "now, in 6h, in -1h, tomorrow" in caught.value.message


@given(st.text(st.sampled_from("now in6h-mar15pt:. /0TZ"), max_size=12))
def test_nothing_but_now_is_now(text: str) -> None:
    try:
        found = parse_time(text, now=NOW + 1.5, zone=UTC)
    except Invalid:
        return
    assert found != NOW + 1.5 or " ".join(text.lower().split()) == "now"


def test_a_day_that_is_over_is_next_year_or_with_past_the_latest() -> None:
    assert parse_time("jan 1", now=NOW, zone=UTC) == 1_798_761_600  # 2027
    assert parse_time("jan 1", now=NOW, zone=UTC, past=True) == 1_767_225_600  # 2026
    assert parse_time("dec 31", now=NOW, zone=UTC, past=True) == 1_767_139_200  # 2025


def test_a_bare_date_is_local_and_utc_says_otherwise(pacific: None) -> None:
    assert parse_time("mar 19 5pm", now=NOW, zone=HERE) == NOW + 4 * 86_400 + 61_200 + 7 * 3600
    assert parse_time("mar 19 5pm", now=NOW, zone=UTC) == NOW + 4 * 86_400 + 61_200
    assert parse_time("2026-03-19T17:00:00+00:00", now=NOW, zone=HERE) == NOW + 4 * 86_400 + 61_200


def test_an_hour_that_the_clocks_skip_is_refused(pacific: None) -> None:
    with pytest.raises(Invalid, match="the clocks skip it"):
        parse_time("2026-03-08T02:30", now=NOW, zone=HERE)
    assert parse_time("2026-03-08T02:30", now=NOW, zone=UTC) == 1_772_937_000


def test_periods_name_their_zone(pacific: None) -> None:
    start = NOW + 4 * 86_400 + 24 * 3600  # Mar 19 5pm PDT
    assert period_text(start, start + 3600, now=NOW, zone=HERE) == "Mar 19, 5:00pm -> 6:00pm PDT (UTC-7)"
    assert period_text(start, start + 86_400, now=NOW, zone=HERE) == "Mar 19, 5:00pm -> Mar 20, 5:00pm PDT (UTC-7)"
    assert period_text(start, start + 3600, now=NOW, zone=UTC) == "Mar 20, 12:00am -> 1:00am UTC"
    assert period_text(start, None, now=NOW, zone=HERE) == "Mar 19, 5:00pm -> open PDT (UTC-7)"
    assert time_text(start + 30, now=NOW, zone=HERE) == "Mar 19, 5:00:30pm PDT (UTC-7)"
    assert time_text(start + 366 * 86_400, now=NOW, zone=UTC) == "Mar 21 2027, 12:00am UTC"
    autumn = 1_793_516_400  # Nov 1 2026, 12:00am PDT; at 2am it becomes PST
    both = period_text(autumn, autumn + 86_400, now=NOW, zone=HERE)
    assert both == "Nov 1, 12:00am PDT (UTC-7) -> 11:00pm PST (UTC-8)"


def test_a_zone_without_a_name_is_its_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "<+0530>-5:30")
    time.tzset()
    try:
        assert time_text(NOW, now=NOW, zone=HERE) == "Mar 15, 5:30am UTC+5:30"
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.integers(0, 4 * 10**12), st.sampled_from([1, 15, 60]))
def test_alignment_goes_up_and_at_most_one_block(ms: int, block_s: int) -> None:
    seconds = ms / 1000
    found = aligned_up(seconds, block_s)
    assert found % block_s == 0 and 0 <= found - seconds < block_s
