"""Which of the workers with room gets a request: the rules of Knative's buffer, and those by predicted wait.

Every function gets at least one worker, and only such as may take the request now.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nanopod.gateway.links import WorkerLink

FIRST_FREE_MAX: Final = 3
"""Up to this container concurrency the first worker with a free slot is taken, above it they take turns."""
QUEUE_FULL: Final = 5
"""An engine in which more requests than this wait gets no further one."""
KV_FULL: Final = 0.80
"""An engine that uses more than this share of its key-value cache gets no further request."""
PREFIX_WEIGHT, QUEUE_WEIGHT, KV_WEIGHT = 3.0, 2.0, 2.0


def saturated(kv_use: float, queued: int) -> bool:
    """True when an engine should finish what it has first."""
    return kv_use > KV_FULL or queued > QUEUE_FULL


def fewer_in_flight(links: Sequence[WorkerLink]) -> WorkerLink:
    """Two random workers, of which the one with fewer requests in flight wins."""
    if len(links) == 1:
        return links[0]
    one, two = random.sample(links, 2)
    return one if one.in_flight <= two.in_flight else two


class Turns:
    """Round robin by address: after the last choice, whoever has room next."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = ""

    def next(self, links: Sequence[WorkerLink]) -> WorkerLink:
        """The worker behind the last one; `links` is sorted by instance."""
        chosen = next((link for link in links if link.instance_id > self._last), links[0])
        self._last = chosen.instance_id
        return chosen


def by_knative(links: list[WorkerLink], concurrency: int, turns: Turns) -> WorkerLink:
    """The rule that belongs to a container concurrency (0: no limit): random, first free, or in turn."""
    if concurrency == 0:
        return fewer_in_flight(links)
    links.sort(key=lambda link: link.instance_id)
    return links[0] if concurrency <= FIRST_FREE_MAX else turns.next(links)


def speeds(links: Sequence[WorkerLink], told: float = 0.0) -> list[float]:
    """Units per second of each worker: as it measured, else as we are `told` (0: we are not), else the median of those
    that are known, 1 if none is."""
    found = [link.perf or told for link in links]
    if 0.0 in found:
        usual = median([speed for speed in found if speed] or [1.0])
        found = [speed or usual for speed in found]
    return found


def by_wait(links: list[WorkerLink], told: float = 0.0) -> WorkerLink:
    """The shortest predicted wait (units in service by units per second); two random choices among equals."""
    waits = [link.load / speed for link, speed in zip(links, speeds(links, told), strict=True)]
    least = min(waits)
    best = [link for link, wait in zip(links, waits, strict=True) if wait <= least]
    return best[0] if len(best) == 1 else _roomier(best)


def _roomier(links: Sequence[WorkerLink]) -> WorkerLink:
    one, two = random.sample(links, 2)
    return one if one.limit - one.in_flight >= two.limit - two.in_flight else two


def score(prefix: float, queued: int, kv_use: float) -> float:
    """How well an engine suits a prompt; `prefix` is the share of it that the engine has seen, 0 to 1."""
    queue = min(1.0, queued / QUEUE_FULL)
    return PREFIX_WEIGHT * prefix - QUEUE_WEIGHT * queue - KV_WEIGHT * max(0.0, kv_use)


def by_prefix(links: list[WorkerLink], shares: Sequence[float], told: float = 0.0) -> WorkerLink:
    """The best score; among equals the shortest predicted wait. `shares`: of the prompt, by worker."""
    scores = [score(share, link.queued, link.kv_use) for link, share in zip(links, shares, strict=True)]
    best = max(scores)
    return by_wait([link for link, one in zip(links, scores, strict=True) if one >= best], told)
