"""Averages over a stable and a panic window, second by second, with Knative's arithmetic to the last digit.

A window is a ring of one-second sums and a running total of them. The total is kept by additions and subtractions and
never summed anew: its drift is part of the result, since a ceiling follows. A window that is not full yet is averaged
over its own length, so one second of data is believed at once. Algorithm: `pkg/autoscaler/aggregation` of Knative
Serving.
"""

from __future__ import annotations

import math
from typing import Final

from nanopod.scheduler.autoscale.values import UNKNOWN, Aggregation, Pair, WindowState

DIGITS: Final = 1e6
SMOOTHING_MIN: Final = 0.2
WEIGHT_OF_WINDOW: Final = 0.9999
"""Share of all weights that falls into the window, where the smoothing is not at its least."""


def new_window(window_s: float) -> WindowState:
    """An empty window of `window_s` seconds, rounded up to whole ones."""
    return WindowState(int(window_s) if window_s == int(window_s) else math.ceil(window_s), [0.0] * math.ceil(window_s))


def new_pair(stable_s: int, panic_s: int) -> Pair:
    """The two windows of a metric."""
    return Pair(new_window(stable_s), new_window(panic_s))


def panic_window_s(stable_s: float, percentage: float) -> int:
    """Length of the panic window: a share of the stable one in whole seconds, half rounded up, at least 1."""
    return max(1, int(_half_away(stable_s * percentage / 100.0)))


def record(window: WindowState, at: float, value: float) -> None:
    """Add `value` to the second `at`. What is a window older than the newest second is dropped."""
    second = int(at)
    last = window.last
    buckets = window.buckets
    size = len(buckets)
    if second != last:
        if last == UNKNOWN or second - last >= window.window_s:
            window.buckets = buckets = [0.0] * size
            window.total = 0.0
            window.first = window.last = second
        elif second > last:
            for index in range(last + 1, second + 1):
                slot = index % size
                window.total -= buckets[slot]
                buckets[slot] = 0.0
            window.last = second
            if window.first == UNKNOWN:
                window.first = second
        else:
            if second + window.window_s <= last:
                return
            if window.first == UNKNOWN or window.first > second:
                window.first = second
    buckets[second % size] += value
    window.total += value


def average(window: WindowState, now: float) -> float:
    """The mean of the window that ends at `now`, rounded to 6 digits, half away from zero; 0 when it was silent."""
    last = window.last
    silent = int(now) - last
    if last == UNKNOWN or silent >= window.window_s:
        return 0.0
    buckets = window.buckets
    size = len(buckets)
    total = window.total
    if silent > 0:
        for index in range(last + 1, last + silent + 1):
            total -= buckets[index % size]
        size -= silent
    if window.first != UNKNOWN and last - window.first + 1 < size:
        size = last - window.first + 1
    if total == 0.0:
        return 0.0
    return _half_away(total / size * DIGITS) / DIGITS


def weighted(window: WindowState, now: float) -> float:
    """The exponentially weighted mean: newest seconds count most. Not rounded, no correction of a partial window."""
    if is_empty(window, now):
        return 0.0
    buckets = window.buckets
    size = left = len(buckets)
    smoothing = smoothing_of(size)
    weight = smoothing
    silent = int(now) - window.last
    if silent > 0:
        weight *= math.pow(1.0 - smoothing, silent)
        left -= silent
    found = 0.0
    for index in range(window.last, window.last - left, -1):
        found += buckets[index % size] * weight
        weight *= 1.0 - smoothing
    return found


def smoothing_of(size: int) -> float:
    """Weight of the newest of `size` seconds."""
    return max(1.0 - math.pow(1.0 - WEIGHT_OF_WINDOW, 1.0 / size), SMOOTHING_MIN)


def read(window: WindowState, now: float, aggregation: Aggregation) -> float:
    """The mean by the algorithm that was chosen."""
    return average(window, now) if aggregation == "linear" else weighted(window, now)


def rate(window: WindowState, now: float) -> float:
    """Sum per second over the whole window, missing seconds as 0: no correction of a partial window.

    The running second is not missing while nobody can have reported it: a window that ends one second ago is full.
    """
    silent = int(now) - window.last
    if window.last == UNKNOWN or silent >= window.window_s:
        return 0.0
    total = window.total
    if silent > 1:
        buckets, size = window.buckets, len(window.buckets)
        for index in range(window.last + 1, window.last + silent):
            total -= buckets[index % size]
    return _half_away(total / window.window_s * DIGITS) / DIGITS


def is_empty(window: WindowState, now: float) -> bool:
    """True when nothing was written for more than the window; at exactly the window it is not empty and reads 0."""
    return window.last == UNKNOWN or int(now) - window.last > window.window_s


def is_still(window: WindowState, now: float) -> bool:
    """True when it reads 0 now and at any later time, if nothing is written."""
    return window.last == UNKNOWN or int(now) - window.last >= window.window_s or not any(window.buckets)


def resize(window: WindowState, window_s: int, now: float) -> None:
    """Make it `window_s` seconds long: the newest seconds stay, unless it has been silent for longer than it was."""
    if window_s == window.window_s:
        return
    old = window.buckets
    buckets = [0.0] * window_s
    total = 0.0
    if not is_empty(window, now):
        for index in range(window.last, window.last - min(window_s, len(old)), -1):
            value = old[index % len(old)]
            buckets[index % window_s] = value
            total += value
        window.first = window.last - (len(old) - 1)
    else:
        window.first = UNKNOWN
    window.window_s, window.buckets, window.total = window_s, buckets, total


def clear(window: WindowState) -> None:
    """Forget everything."""
    window.buckets = [0.0] * len(window.buckets)
    window.first = window.last = UNKNOWN
    window.total = 0.0


def _half_away(value: float) -> float:
    """To the nearest whole number, halves away from zero; `value - floor(value)` is exact."""
    if value < 0:
        return -_half_away(-value)
    whole = float(math.floor(value))
    return whole + 1.0 if value - whole >= 0.5 else whole
