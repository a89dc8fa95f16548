"""Deadlines of thousands of requests on one coarse timer wheel of 100 ms, instead of a loop timer for each."""

from __future__ import annotations

from typing import Final

TICK_S: Final = 0.1


class Timed:
    """Something with one deadline at a time. Deadlines may be set early: `on_timer` looks and sets the next one."""

    __slots__ = ("due_tick",)

    def __init__(self) -> None:
        self.due_tick = 0

    def on_timer(self, now: float) -> None:
        """Called at most 100 ms after the deadline (seconds of the loop's clock)."""
        raise AssertionError(f"{type(self).__name__} set a deadline but handles none")


class Wheel:
    """Buckets of 100 ms. Setting and clearing a deadline are one dict operation each."""

    __slots__ = ("_buckets", "_tick")

    def __init__(self, now: float) -> None:
        self._tick = int(now / TICK_S)
        self._buckets: dict[int, dict[Timed, None]] = {}

    def at(self, timed: Timed, when: float) -> None:
        """Set (or move) the deadline of `timed`; a past one fires with the next tick."""
        tick = int(when / TICK_S) + 1
        if tick <= self._tick:
            tick = self._tick + 1
        if timed.due_tick:
            if timed.due_tick == tick:
                return
            self.clear(timed)
        timed.due_tick = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {timed: None}
        else:
            bucket[timed] = None

    def by(self, timed: Timed, when: float) -> None:
        """Make sure that `timed` is looked at by `when`; an earlier deadline stays."""
        if not timed.due_tick or timed.due_tick > int(when / TICK_S) + 1:
            self.at(timed, when)

    def clear(self, timed: Timed) -> None:
        """Forget the deadline of `timed`, if it has one."""
        tick = timed.due_tick
        if tick:
            timed.due_tick = 0
            bucket = self._buckets[tick]
            del bucket[timed]
            if not bucket:
                del self._buckets[tick]

    def advance(self, now: float) -> None:
        """Fire every deadline up to `now`."""
        target = int(now / TICK_S)
        while self._tick < target:
            # A process that was stopped for minutes must not walk through every tick it missed.
            self._tick = min(min(self._buckets, default=target), target) if self._behind(target) else self._tick + 1
            due = self._buckets.pop(self._tick, None)
            if due is None:
                continue
            for timed in due:
                timed.due_tick = 0
            for timed in due:
                if not timed.due_tick:
                    timed.on_timer(now)

    def _behind(self, target: int) -> bool:
        return target - self._tick > 100

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())
