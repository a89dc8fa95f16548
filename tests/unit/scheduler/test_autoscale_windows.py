"""Averages by the second and the delay window, by hand-made figures."""

from __future__ import annotations

import math

import pytest

from nanopod.scheduler.autoscale import windows
from nanopod.scheduler.autoscale.delay import highest, new_delay, rebucket, record_delay
from nanopod.scheduler.autoscale.values import UNKNOWN, WindowState

T = 1_800_000_000


def filled(window_s: int, *values: float) -> WindowState:
    window = windows.new_window(window_s)
    for second, value in enumerate(values):
        windows.record(window, T + second, value)
    return window


def test_one_second_of_data_is_believed_at_once() -> None:
    assert windows.average(filled(60, 5.0), T) == 5.0
    assert windows.average(filled(60, 5.0, 6.0), T + 1.9) == 5.5


def test_the_same_second_adds_up() -> None:
    window = filled(60, 1.0)
    windows.record(window, T + 0.9, 2.0)
    assert windows.average(window, T) == 3.0


def test_gaps_count_as_zero_and_old_seconds_fall_out() -> None:
    window = filled(5, 10.0)
    windows.record(window, T + 3, 2.0)
    assert windows.average(window, T + 3) == 3.0
    windows.record(window, T + 5, 4.0)
    assert windows.average(window, T + 5) == pytest.approx(6.0 / 5), "the first second is out"


def test_silence_is_left_out_until_the_window_is_over() -> None:
    window = filled(5, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert windows.average(window, T + 6) == 4.0, "(3 + 4 + 5) over the three seconds that are left"
    assert windows.average(window, T + 8) == 5.0
    assert windows.average(window, T + 9) == 0.0
    assert not windows.is_empty(window, T + 9), "at exactly the window it is not empty"
    assert windows.is_empty(window, T + 10)
    assert windows.is_empty(windows.new_window(5), T)


def test_a_write_after_a_silent_window_begins_anew() -> None:
    window = filled(5, 1.0, 9.0)
    windows.record(window, T + 6, 3.0)
    assert (window.first, window.last, window.total) == (T + 6, T + 6, 3.0)
    assert windows.average(window, T + 6) == 3.0


def test_late_seconds_are_taken_and_those_of_a_window_ago_are_not() -> None:
    window = filled(5, *[0.0] * 8)
    windows.record(window, T + 4, 5.0)
    assert windows.average(window, T + 7) == 1.0
    windows.record(window, T + 2, 500.0)
    assert windows.average(window, T + 7) == 1.0
    young = windows.new_window(5)
    windows.record(young, T + 3, 4.0)
    windows.record(young, T + 1, 2.0)
    assert (young.first, windows.average(young, T + 3)) == (T + 1, 2.0)


def test_rounding_is_half_away_from_zero() -> None:
    assert windows.average(filled(60, 0.0000005), T) == 0.000001
    assert round(0.0000005, 6) == 0.0, "which is why Python's own rounding is not used"
    assert windows.average(filled(60, 0.00000049), T) == 0.0
    assert windows.average(filled(60, -0.0000005), T) == -0.000001


def test_the_running_total_is_not_summed_anew() -> None:
    window = filled(3, 0.1, 0.2, 0.3, 0.4)
    assert window.total == 0.1 + 0.2 + 0.3 - 0.1 + 0.4
    assert window.total != 0.2 + 0.3 + 0.4, "its drift is kept"


def test_resizing_keeps_the_newest_seconds() -> None:
    window = filled(6, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    windows.resize(window, 3, T + 5)
    assert (window.total, window.first, window.last) == (15.0, T, T + 5)
    assert windows.average(window, T + 5) == 5.0
    windows.resize(window, 10, T + 6)
    assert (len(window.buckets), window.total, window.first) == (10, 15.0, T + 3)
    assert windows.average(window, T + 5) == 5.0
    windows.resize(window, 12, T + 16)
    assert (window.total, window.first) == (0.0, UNKNOWN), "silent for longer than it was"
    windows.record(window, T + 17, 4.0)
    assert windows.average(window, T + 17) == 4.0
    before = window.buckets
    windows.resize(window, 12, T + 90)
    assert window.buckets is before, "the same size changes nothing"


def test_weighted_averages_neither_round_nor_correct_a_partial_window() -> None:
    assert windows.weighted(filled(60, 1.0), T) == pytest.approx(0.2, abs=1e-12)
    share = windows.smoothing_of(5)
    assert share == pytest.approx(1 - 0.0001 ** (1 / 5))
    window = filled(5, 2.0, 3.0)
    rest = 1 - share
    assert windows.weighted(window, T + 1) == pytest.approx(3 * share + 2 * share * rest)
    assert windows.weighted(window, T + 3) == pytest.approx((3 * share + 2 * share * rest) * rest**2)
    assert windows.weighted(window, T + 6) == 0.0, "five silent seconds leave no bucket"
    assert windows.weighted(window, T + 7) == 0.0
    assert windows.read(window, T + 1, "weighted-exponential") == windows.weighted(window, T + 1)


def test_the_panic_window_is_in_whole_seconds_and_at_least_one() -> None:
    assert windows.panic_window_s(60, 10) == 6
    assert windows.panic_window_s(180, 13.0) == 23
    assert windows.panic_window_s(180, 24 / 180 * 100) == 24
    assert windows.panic_window_s(45, 10) == 5, "4.5 is rounded up"
    assert windows.panic_window_s(6, 1) == 1


def test_a_rate_counts_missing_seconds_as_zero() -> None:
    window = filled(10, *[50.0] * 5)
    assert windows.rate(window, T + 5) == 25.0
    full = filled(10, *[50.0] * 20)
    assert windows.rate(full, T + 19) == 50.0
    assert windows.rate(full, T + 20) == 50.0, "nobody can have reported the running second"
    assert windows.rate(full, T + 22) == 40.0
    assert windows.rate(full, T + 29) == 0.0
    assert windows.rate(windows.new_window(10), T) == 0.0


def test_stillness_is_for_ever() -> None:
    assert windows.is_still(filled(10, 0.0, 0.0), T + 1)
    window = filled(10, 0.0, 1.0)
    assert not windows.is_still(window, T + 10)
    assert windows.is_still(window, T + 11)
    windows.clear(window)
    assert windows.is_empty(window, T)


def test_the_delay_is_the_highest_of_the_last_ticks() -> None:
    window = new_delay(60, 15)
    assert window is not None and window.size == 4
    record_delay(window, T, 9)
    for step, expected in ((1, 9), (2, 9), (3, 9), (4, 3)):
        record_delay(window, T + 15 * step, 3)
        assert highest(window) == expected
    record_delay(window, T + 75, 5)
    assert (window.indices, window.counts) == ([(T + 75) // 15], [5])


def test_two_wishes_in_one_tick_keep_the_larger() -> None:
    window = new_delay(2, 2)
    assert window is not None and window.size == 1
    record_delay(window, T, 5)
    record_delay(window, T + 1.9, 3)
    assert highest(window) == 5
    record_delay(window, T + 2, 3)
    assert highest(window) == 3
    assert new_delay(0, 2) is None


def test_nothing_expires_without_a_record() -> None:
    window = new_delay(6, 2)
    assert window is not None
    record_delay(window, T, 8)
    record_delay(window, T + 2, 4)
    record_delay(window, T + 1000, 2)
    assert (window.counts, highest(window)) == ([2], 2)


def test_another_delay_or_tick_buckets_its_entries_anew() -> None:
    window = new_delay(60, 2)
    assert window is not None
    for offset, count in ((0, 9), (4, 7), (30, 3)):
        record_delay(window, T + offset, count)
    wider = rebucket(window, 120, 15)
    assert wider is not None
    assert (wider.size, wider.indices, wider.counts) == (8, [T // 15, T // 15 + 2], [9, 3])
    shorter = rebucket(window, 20, 2)
    assert shorter is not None and shorter.counts == [3]
    assert rebucket(window, 0, 2) is None
    assert rebucket(None, 4, 2) is not None


def test_ticks_are_multiples_since_the_epoch() -> None:
    window = new_delay(30, 15)
    assert window is not None
    record_delay(window, 14.9, 1)
    record_delay(window, 15.0, 1)
    assert window.indices == [1]
    assert window.size == math.ceil(30 / 15)
