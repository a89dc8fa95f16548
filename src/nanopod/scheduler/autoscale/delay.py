"""The scale-down delay: the highest wish of the last ticks. Nothing expires without a record.

A falling sequence of (tick index, count): a new count removes every earlier one that is not above it. Algorithm: the
ascending minima method as in `pkg/autoscaler/aggregation/max` of Knative Serving.
"""

from __future__ import annotations

import math

from nanopod.scheduler.autoscale.values import DelayState


def new_delay(delay_s: float, tick_s: float) -> DelayState | None:
    """The window of a delay; None for a delay of 0, which differs from a window of one tick."""
    return DelayState(math.ceil(delay_s / tick_s), int(tick_s)) if delay_s > 0 else None


def record_delay(window: DelayState, now: float, count: int) -> None:
    """Take in the wish of `now`; two in one tick keep the larger."""
    put(window, int(now) // window.tick_s, count)


def put(window: DelayState, index: int, count: int) -> None:
    """Take in the wish of a tick, which is never before the last one."""
    indices, counts = window.indices, window.counts
    while counts and counts[-1] <= count:
        counts.pop()
        indices.pop()
    while indices and index - indices[0] >= window.size:
        counts.pop(0)
        indices.pop(0)
    if indices and indices[-1] == index:
        return  # what is left there is larger
    indices.append(index)
    counts.append(count)


def highest(window: DelayState) -> int:
    """The maximum. Raises IndexError when nothing was recorded."""
    return window.counts[0]


def rebucket(window: DelayState | None, delay_s: float, tick_s: float) -> DelayState | None:
    """The window under another delay or tick: its entries move to the ticks that hold their times."""
    new = new_delay(delay_s, tick_s)
    if new is None or window is None:
        return new
    for index, count in zip(window.indices, window.counts, strict=True):
        put(new, index * window.tick_s // new.tick_s, count)
    return new
