"""How much a buffer in front of replicas lets through, who gets which replicas, and what it counts.

Rules of `pkg/activator/net`, `pkg/queue` and `pkg/autoscaler/metrics` of Knative Serving, as pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeVar

QUEUE_DEPTH: Final = 10_000
"""Requests that may wait for a revision, and for each of its replicas, in the buffer."""
PROXY_QUEUE_PER_SLOT: Final = 10
"""In a replica's own proxy: so many times its concurrency."""
CAPACITY_MAX: Final = 2**31 - 1
ACTIVATORS_MIN: Final = 2
FIRST_FREE_MAX: Final = 3
SAMPLE: Final = 1.96 * 1.96 * 100.0 / (5.0 * 5.0)
"""Replicas to ask in an endless population: 95 % confidence, a margin of 5, a variance of 100."""

T = TypeVar("T")


def activators(ready: int, total: float, burst: float, capacity: float) -> int:
    """Buffers in front of `ready` replicas of `total` each, with a burst to allow for, at `capacity` per buffer."""
    if burst == 0:
        return ACTIVATORS_MIN
    cover = ready * total + max(burst, 0.0)
    return max(ACTIVATORS_MIN, math.ceil(cover / capacity))


def breaker_capacity(concurrency: int, own: int, backends: int, buffers: int) -> int:
    """Requests that one buffer lets through at a time.

    `own`: replicas that are its own; with none it shares `backends` with `buffers` in all. A concurrency of 0 is no
    limit.
    """
    if own > 0:
        found = concurrency * own
    else:
        found = concurrency * backends
        if found > 0:
            found = max(1, found // max(1, buffers))
    if backends > 0 and (concurrency == 0 or found > CAPACITY_MAX):
        return CAPACITY_MAX
    return found


def assigned(replicas: Sequence[T], index: int, buffers: int, concurrency: int = 1) -> Sequence[T]:
    """The replicas (sorted by address) of the buffer with this index (-1: not known) among `buffers`."""
    count = len(replicas)
    if concurrency == 0 or index == -1 or count <= 1 or buffers == 1:
        return replicas
    if buffers > count:
        return [replicas[index % count]]
    size, rest = divmod(count, buffers)
    found = list(replicas[index * size : (index + 1) * size])
    if rest > index:
        found.append(replicas[count - rest + index])
    return found


def queue_depth(concurrency: int, *, proxy: bool = False) -> int:
    """Requests that may wait: in the buffer, or in a replica's own proxy."""
    return PROXY_QUEUE_PER_SLOT * concurrency if proxy else QUEUE_DEPTH


Admission = Literal["run", "wait", "full"]


class Breaker:
    """Counts requests inside: up to the capacity run, others wait, beyond all slots they are refused (503)."""

    def __init__(self, depth: int, most: int, capacity: int = 0) -> None:
        """`depth` wait at most besides `most` that ever run; `capacity` run now. Raises ValueError for bad sizes."""
        if depth <= 0 or most < 0 or not 0 <= capacity <= most:
            raise ValueError(f"depth={depth} must be above 0 and capacity={capacity} from 0 to most={most}")
        self.slots = depth + most
        self.capacity = capacity
        self.running = 0
        self.waiting = 0

    @property
    def inside(self) -> int:
        """Requests that run or wait."""
        return self.running + self.waiting

    def enter(self) -> Admission:
        """A request comes in."""
        if self.inside == self.slots:
            return "full"
        if self.running < self.capacity:
            self.running += 1
            return "run"
        self.waiting += 1
        return "wait"

    def reserve(self) -> bool:
        """A request that does not wait: True when it runs."""
        if self.inside == self.slots or self.running >= self.capacity:
            return False
        self.running += 1
        return True

    def leave(self) -> int:
        """A request that ran is over; how many that waited run now."""
        if self.running <= 0:
            raise ValueError("nothing runs: each leave belongs to one enter that ran")
        self.running -= 1
        return self._admit()

    def give_up(self) -> None:
        """A request that waited goes away."""
        if self.waiting <= 0:
            raise ValueError("nothing waits")
        self.waiting -= 1

    def resize(self, capacity: int) -> int:
        """Another capacity; how many that waited run now. Those that run above it go on."""
        self.capacity = capacity
        return self._admit()

    def _admit(self) -> int:
        count = max(0, min(self.waiting, self.capacity - self.running))
        self.waiting -= count
        self.running += count
        return count


def policy(concurrency: int) -> Literal["random2", "first", "round_robin"]:
    """How a replica is chosen at a container concurrency."""
    if concurrency == 0:
        return "random2"
    return "first" if concurrency <= FIRST_FREE_MAX else "round_robin"


def first_free(free: Sequence[bool]) -> int | None:
    """The first replica, in address order, with a free slot."""
    return next((index for index, one in enumerate(free) if one), None)


def round_robin(free: Sequence[bool], start: int) -> tuple[int | None, int]:
    """(the next replica with a free slot, where to begin next time), after the last choice."""
    count = len(free)
    if start >= count:
        start = 0
    for step in range(count):
        index = (start + step) % count
        if free[index]:
            return index, index + 1
    return None, start


def random_two(weights: Sequence[int], first: int, second: int, coin: bool) -> int:
    """The one of two replicas with fewer requests in flight; equals are decided by a `coin`.

    `first` is drawn from all, `second` from all but one: one that is not below the first is moved up by one. With two
    replicas both are compared, with one there is no choice.
    """
    if len(weights) == 1:
        return 0
    if len(weights) == 2:
        first, second = 0, 1
    elif second >= first:
        second += 1
    if weights[first] == weights[second]:
        return second if coin else first
    return first if weights[first] < weights[second] else second


def sample_size(population: int) -> int:
    """Replicas to ask, of so many, for a mean of all."""
    if population <= 3:
        return max(population, 0)
    return math.ceil(population * SAMPLE / (population + SAMPLE - 1))


class Report(NamedTuple):
    """Averages and counts since the last report."""

    concurrency: float
    proxied_concurrency: float
    requests: float
    proxied_requests: float

    @property
    def value(self) -> float:
        """Concurrency of this side alone: a request that a buffer saw, too, counts there."""
        return self.concurrency - self.proxied_concurrency

    @property
    def rps(self) -> float:
        """Requests of this side alone."""
        return self.requests - self.proxied_requests


class RequestStats:
    """Requests at once over time, at a gateway or a replica. Times are seconds of any clock; steps back are ignored."""

    def __init__(self, now: float) -> None:
        self._last = now
        self._now_in = self._proxied_in = 0
        self._in_use = self._area = self._proxied_area = 0.0
        self._requests = self._proxied = 0

    def _move(self, now: float) -> None:
        if now > self._last:
            passed = now - self._last
            self._area += self._now_in * passed
            self._proxied_area += self._proxied_in * passed
            self._in_use += passed
            self._last = now

    def enter(self, now: float, *, proxied: bool = False) -> None:
        """A request came in; `proxied`: a buffer has it as well."""
        self._move(now)
        self._now_in += 1
        self._requests += 1
        if proxied:
            self._proxied_in += 1
            self._proxied += 1

    def leave(self, now: float, *, proxied: bool = False) -> None:
        """A request ended."""
        self._move(now)
        self._now_in -= 1
        if proxied:
            self._proxied_in -= 1

    def report(self, now: float) -> Report:
        """What was seen since the last report; the next period begins."""
        self._move(now)
        used = self._in_use
        found = Report(
            self._area / used if used > 0 else 0.0,
            self._proxied_area / used if used > 0 else 0.0,
            self._requests,
            self._proxied,
        )
        self._area = self._proxied_area = self._in_use = 0.0
        self._requests = self._proxied = 0
        return found


def sampled(reports: Sequence[Report | None], population: int) -> Report | None:
    """The sum over `population` replicas from samples of some; None when one of them failed or there is none."""
    good = [one for one in reports if one is not None]
    if not good or len(good) < len(reports):
        return None
    count = len(good)
    return Report(
        sum(one.concurrency for one in good) / count * population,
        sum(one.proxied_concurrency for one in good) / count * population,
        sum(one.requests for one in good) / count * population,
        sum(one.proxied_requests for one in good) / count * population,
    )
