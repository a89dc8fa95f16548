"""What one endpoint saw since it was asked last: concurrency, counts, completed work, latency. No IO, no clock.

Times are seconds of any clock that never goes back; `EndpointSample` of `model.wire` says what the figures mean.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from statistics import median
from typing import Final

from nanopod.model.wire import LATENCY_BUCKETS_S

MEDIAN_OF: Final = 101
"""So many of the newest outputs make the running median."""
OUTPUT_TOKENS: Final = 128.0
"""What an output is taken to be before one has been seen."""


class RequestStats:
    """Requests at once over time, as Knative's `RequestStats` counts them, without requests of a further proxy.

    Averages are over the time since the last report or, in the first one, since the first event. Who came first after
    a quiet time was reported at once (concurrency 1, count 1): `told` says so, and the next report leaves it out.
    """

    __slots__ = ("_area", "_at", "_since", "arrived", "live", "now_in", "told", "told_load", "workload")

    def __init__(self) -> None:
        self._area = 0.0
        self._at = self._since = 0.0
        self.now_in = 0
        """Requests at this moment, those that wait included."""
        self.arrived = 0
        """Requests since the last report."""
        self.workload = 0.0
        """Units of load that arrived since the last report."""
        self.live = False
        """False while nothing is to be reported: the next request is the first of a quiet endpoint."""
        self.told = 0
        self.told_load = 0.0

    def enter(self, now: float, workload: float) -> bool:
        """A request arrived; True when it is the first one after a quiet time."""
        if self.live:
            if now > self._at:
                self._area += self.now_in * (now - self._at)
                self._at = now
            first = False
        else:
            self.live = first = True
            self._area = 0.0
            self._at = self._since = now
        self.now_in += 1
        self.arrived += 1
        self.workload += workload
        return first

    def leave(self, now: float) -> None:
        """A request ended, or left."""
        if now > self._at:
            self._area += self.now_in * (now - self._at)
            self._at = now
        self.now_in -= 1

    def report(self, now: float) -> tuple[float, int, float]:
        """(mean requests at once, requests, units of load) since the last report; the next period begins."""
        if now > self._at:
            self._area += self.now_in * (now - self._at)
            self._at = now
        in_use = self._at - self._since
        mean = self._area / in_use if in_use > 0 else 0.0
        found = max(0.0, mean - self.told), max(0, self.arrived - self.told), max(0.0, self.workload - self.told_load)
        self._area, self._since = 0.0, self._at
        self.arrived = self.told = 0
        self.workload = self.told_load = 0.0
        self.live = mean > 0 or self.now_in > 0
        return found


class Ends:
    """What ended since the last report: outcomes and latency by revision, completed work, tokens."""

    __slots__ = ("_revisions", "any", "count", "outputs", "seconds", "tokens", "units")

    def __init__(self) -> None:
        self._revisions: dict[str, list[int]] = {}
        """{revision: [tries that ended, those that failed, then latency by bucket]}"""
        self.any = False
        self.outputs = Median()
        """Tokens of outputs."""
        self.units = self.seconds = 0.0
        self.count = self.tokens = 0

    def _of(self, revision_id: str) -> list[int]:
        counts = self._revisions[revision_id] = [0] * (len(LATENCY_BUCKETS_S) + 3)
        self.any = True
        return counts

    def ended(self, revision_id: str, failed: bool) -> None:
        """A try ended on a worker of this revision; `failed`: by the revision's fault, as far as one can tell."""
        counts = self._revisions.get(revision_id) or self._of(revision_id)
        counts[0] += 1
        counts[1] += failed

    def served(self, revision_id: str, units: float, seconds: float, prompt: int = 0, output: int = 0) -> None:
        """A try ended well: what the request was worth, how long its worker had it, tokens of prompt and output."""
        counts = self._revisions.get(revision_id) or self._of(revision_id)
        counts[0] += 1
        counts[2 + bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.units += units
        self.seconds += seconds
        self.count += 1
        if output:
            self.tokens += prompt + output
            self.outputs.newest.append(output)
        elif prompt:
            self.tokens += prompt

    def take(
        self,
    ) -> tuple[dict[str, tuple[int, int]], tuple[float, float, int], int, dict[str, tuple[int, ...]]]:
        """(outcomes by revision, (units, request-seconds, requests), tokens, latency); the next period begins."""
        found = (
            {revision: (counts[0], counts[1]) for revision, counts in self._revisions.items()},
            (self.units, self.seconds, self.count),
            self.tokens,
            {revision: tuple(counts[2:]) for revision, counts in self._revisions.items() if any(counts[2:])},
        )
        if self.any:
            self._revisions = {}
            self.units = self.seconds = 0.0
            self.count = self.tokens = 0
            self.any = False
            self.outputs.settle()
        return found


class Median:
    """The median of the newest values of a stream, as of the last `settle`."""

    __slots__ = ("newest", "value")

    def __init__(self) -> None:
        self.newest: deque[int] = deque(maxlen=MEDIAN_OF)
        self.value = OUTPUT_TOKENS
        """The middle value."""

    def settle(self) -> None:
        """Take in what came since the last time."""
        if self.newest:
            self.value = float(median(self.newest))
