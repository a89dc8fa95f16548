"""Metrics that know how much a replica does: load with its backlog, KV use, tokens; and the cold tier they imply.

`mu` is the units of load per second of one replica. Units, seconds and shares as in `values`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from nanopod.scheduler.autoscale.values import Autoscale, ServedState

UNITS: Final = 100.0
"""What a request is worth where nothing else is known."""
KV_FULL: Final = 0.80
QUEUE_FULL: Final = 5.0
"""An engine is full at this share of its key-value cache, or with so many requests waiting in it."""
SERVED_SLOT_S: Final = 10
SERVED_S: Final = 600
SERVED_MIN: Final = 20
"""Requests that must have been completed before a speed is estimated from them."""
WAKE_S, PROVISION_S = 10.0, 30.0
"""What starts are taken to need before any was measured."""
ZERO_AFTER_STARTS: Final = 10.0
ZERO_AFTER_S: Final = (120.0, 1800.0)
_EPSILON: Final = 1e-9


def kv_value(replicas: Iterable[tuple[float, int]]) -> float:
    """How many replicas' worth of KV cache is in use: (share in use, requests waiting in the engine) of each."""
    return sum(max(use / KV_FULL, waiting / QUEUE_FULL) for use, waiting in replicas)


def load_value(arriving: float, backlog: float, min_load: float) -> float:
    """Units per second to provide for."""
    return max(min_load, arriving) + backlog


def backlog(
    waiting: float, arriving: float, mu: float, ready: int, eta_s: float, start_s: float, target_queue_time_s: float
) -> float:
    """Units per second that the `waiting` units add, so that they are done in time; 0 when none waits.

    It counts what will have piled up when the next replica is ready, `eta_s` from now, at the rate `arriving` of the
    panic window. A reply that waits behind one start does not need a replica of its own.
    """
    if waiting <= 0:
        return 0.0
    piled = waiting + (arriving - mu * ready) * eta_s
    within_s = max(target_queue_time_s, 0.5 * start_s)
    return max(0.0, piled) / (within_s if within_s > 0 else 1.0)


def start_time(draining: int, cold: int, wake_s: float | None, provision_s: float | None) -> float:
    """Seconds of the start that would be used next: taking back one that drains, a wake, or a new replica."""
    if draining > 0:
        return 0.0
    new_s = provision_s if provision_s is not None else PROVISION_S
    if cold > 0:
        return wake_s if wake_s is not None else min(WAKE_S, new_s)
    return new_s


def zero_after_s(spec: Autoscale, start_s: float) -> float:
    """Idle seconds before zero; infinite for never. `start_s`: median of the start that zero leads to."""
    timeout_s = spec.inactivity_timeout_s
    if timeout_s is not None:
        return timeout_s if timeout_s >= 0 else math.inf
    if spec.retention_s is not None:
        return spec.retention_s
    low, high = ZERO_AFTER_S
    return min(max(ZERO_AFTER_STARTS * start_s, low), high)


def floor_by_load(load: float, mu: float | None, util: float) -> int:
    """Replicas for a load that is to be met at any time; one while nobody knows how much a replica does."""
    if load <= 0:
        return 0
    return max(1, math.ceil(load / (mu * util) - _EPSILON)) if mu else 1


def cold_target(spec: Autoscale, hot: int, mu: float | None) -> int:
    """Hibernated replicas besides `hot` ones. `cold_mult` is what can be had quickly in all, as a multiple of hot."""
    if spec.exact:
        return 0
    least = floor_by_load(spec.min_cold_load, mu, spec.load_util)
    total = max(spec.cold_workers, least, math.ceil(spec.cold_mult * hot - _EPSILON))
    if spec.max_workers:
        total = min(spec.max_workers, total)
    return max(0, total - hot)


def add_served(
    served: ServedState, at: int, done: tuple[float, float, int], concurrency: float
) -> None:  # fmt: skip
    """Take in what was completed in the second `at`: (units, request-seconds, requests), and how many were there."""
    slot = at // SERVED_SLOT_S
    if served.slots and slot <= served.slots[-1] - SERVED_S // SERVED_SLOT_S:
        return
    if not served.slots or slot > served.slots[-1]:
        old = slot - SERVED_S // SERVED_SLOT_S
        while served.slots and served.slots[0] <= old:
            for column in (served.slots, served.units, served.seconds, served.requests, served.peaks):
                column.pop(0)
        served.slots.append(slot)
        served.units.append(0.0)
        served.seconds.append(0.0)
        served.requests.append(0)
        served.peaks.append(0.0)
        index = -1
    else:
        # What is sent again belongs where it was; a slot that nobody wrote is taken for the next one.
        index = next(i for i, known in enumerate(served.slots) if known >= slot)
    served.units[index] += done[0]
    served.seconds[index] += done[1]
    served.requests[index] += done[2]
    served.peaks[index] = max(served.peaks[index], concurrency)


def estimated_mu(
    served: ServedState, container_concurrency: int
) -> float | None:  # fmt: skip
    """Units per second of a replica from what was completed: units per request-second times requests at once.

    None before 20 requests were completed. Requests at once: the highest that was seen, at least one and at most the
    container's concurrency.
    """
    pace = _pace(served)
    if pace is None:
        return None
    at_once = max(1.0, max(served.peaks))
    if container_concurrency:
        at_once = min(float(container_concurrency), at_once)
    return pace * at_once


def most_mu(served: ServedState, container_concurrency: int) -> float | None:
    """As `estimated_mu`, if the replica had as many requests at once as it may; None where it may have any number.

    Nobody is to be refused because the replica has never been full so far.
    """
    pace = _pace(served)
    return pace * container_concurrency if pace is not None and container_concurrency else None


def _pace(served: ServedState) -> float | None:
    """Units that were completed per second of a request."""
    units, seconds = sum(served.units), sum(served.seconds)
    if sum(served.requests) < SERVED_MIN or seconds <= 0 or units <= 0:
        return None
    return units / seconds
