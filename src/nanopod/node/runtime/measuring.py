"""How much load a worker takes, in units per second: from its benchmarks, and from the calls it really gets.

What counts is the throughput of a function with all its places taken. A call that ran with `n` others of `c` places
shows `n * workload / seconds`, by Little's law the throughput at that load; only calls with most places taken are
compared with a benchmark, which fills all of them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from nanopod.model.registry import RegisteredFunction

SAMPLES_MIN: Final = 20
SAMPLES_MAX: Final = 100
FULL: Final = 0.8
"""Share of the places that must be taken for a call to show what a full worker does."""
DRIFT: Final = 0.2
_log: Final = logging.getLogger(__name__)


class _Seen:
    """What the calls of one function showed."""

    __slots__ = ("any", "count", "full", "places", "reviewed")

    def __init__(self, places: int) -> None:
        self.places = places
        self.full: deque[float] = deque(maxlen=SAMPLES_MAX)
        self.any: deque[float] = deque(maxlen=SAMPLES_MAX)
        """As if all places were taken and none slowed another down."""
        self.count = 0
        self.reviewed = 0


class Perf:
    """The worker's perf, kept true while it serves. `note` may be called on any thread."""

    def __init__(
        self, functions: Mapping[str, RegisteredFunction], measured: Mapping[str, float], passive: bool | None = None
    ) -> None:
        """`measured`: what is known at first. `passive`: no benchmark filled all places, so any call tells more."""
        self._functions = functions
        self._measured = dict(measured)
        self._passive = not measured if passive is None else passive
        self._seen: dict[str, _Seen] = {}

    @property
    def measured(self) -> dict[str, float]:
        """Units per second, by function."""
        return dict(self._measured)

    @property
    def value(self) -> float | None:
        """Units per second, the weighted harmonic mean over what was measured; None: nothing is known yet."""
        if not self._measured:
            return None
        weights = {name: self._functions[name].benchmark_weight for name in self._measured}
        return sum(weights.values()) / sum(weights[name] / perf for name, perf in self._measured.items())

    def note(self, name: str, workload: float, run_us: int, at_once: int) -> None:
        """A call succeeded that ran beside `at_once - 1` others."""
        seen = self._seen.get(name)
        if seen is None:
            spec = self._functions[name].spec
            seen = self._seen[name] = _Seen(max(1, spec.concurrency // max(1, spec.batch_max)))
        rate = max(workload, 1e-9) * 1e6 / max(1, run_us)
        if at_once >= seen.places * FULL:
            seen.full.append(rate * min(at_once, seen.places))
        seen.any.append(rate * seen.places)
        seen.count += 1

    def review(self) -> bool:
        """Look at what came since; whether `value` changed."""
        changed = False
        for name, seen in list(self._seen.items()):
            if seen.count < seen.reviewed + SAMPLES_MIN:
                continue
            seen.reviewed = seen.count
            is_full = len(seen.full) >= SAMPLES_MIN
            known = self._measured.get(name)
            if not is_full and not self._passive:
                continue  # a worker that is half idle says nothing about a benchmark
            if known is None and not self._passive:
                continue
            live = median(list(seen.full if is_full else seen.any))
            if known is None or abs(live / known - 1) > DRIFT:
                _log.info("perf of %s is %.6g per second, measured over %d calls", name, live, seen.count)
                self._measured[name] = live
                changed = True
        return changed


def has_benchmark(function: RegisteredFunction) -> bool:
    """True for a function whose author says with which arguments it is to be measured."""
    return bool(function.benchmark_dataset) or function.benchmark_generator is not None


def median(values: Iterable[float]) -> float:
    """The middle one, or the mean of the two in the middle. (`statistics` takes long to import.)"""
    ranked = sorted(values)
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2
