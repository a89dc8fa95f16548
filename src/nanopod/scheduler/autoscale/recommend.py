"""How many replicas the load asks for: Knative's decision, with rates, panic and delay, for one metric or several.

Algorithm: `pkg/autoscaler/scaling` of Knative Serving. Bounds (`max_scale` and the like) come later, in `settle`, so
the wish and the panic of a capped service go on as long as the load does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nanopod.model.endpoint import Metric
from nanopod.scheduler.autoscale.delay import highest, new_delay, record_delay
from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, ScaleState

_EPSILON = 1e-9
"""Keeps an exact quotient of measured speeds from being rounded up by its last bit."""


class Value(NamedTuple):
    """What one metric reads now, and what one replica should and can have of it."""

    name: Metric
    stable: float
    panic: float
    target: float
    total: float
    most: int = 0
    """Replicas that it never asks for more of; 0: no such limit."""


class Wish(NamedTuple):
    """The outcome. `desired`: after the delay; `now`: of this moment, before it; `measured`: per metric, raw."""

    valid: bool
    desired: int
    now: int
    ebc: int
    measured: Sequence[tuple[Value, int, int]] = ()


def create(spec: Autoscale, state: ScaleState, ready: int, now: float, total: float | None = None) -> None:
    """Begin anew: more than one ready replica is a panic, so that nothing falls before a window is full.

    `total` is what one replica can have of the metric of the burst capacity; None: its concurrency.
    """
    ready = max(0, ready)
    state.panic_since = now if ready > 1 else None
    state.max_panic = ready
    state.desired = UNKNOWN
    state.delay = new_delay(spec.delay_s, spec.tick_s)
    per_replica = spec.concurrency_total if total is None else total
    state.ebc = int(spec.burst if spec.burst in (-1, 0) else spec.initial_scale * per_replica - spec.burst)


def raw(value: Value) -> tuple[int, int]:
    """Replicas that the stable and the panic value of a metric ask for, before any limit."""
    if value.name == "concurrency" or value.name == "rps":
        by_stable, by_panic = math.ceil(value.stable / value.target), math.ceil(value.panic / value.target)
        if value.most:
            return min(by_stable, value.most), min(by_panic, value.most)
        return by_stable, by_panic
    return math.ceil(value.stable / value.target - _EPSILON), math.ceil(value.panic / value.target - _EPSILON)


def recommend(
    spec: Autoscale,
    state: ScaleState,
    values: Sequence[Value],
    ready: int,
    now: float,
    *,
    starting: int = 0,
    reachable: bool = True,
    capacity: tuple[float, float] | None = None,
) -> Wish:
    """Move panic and delay on and return the wish. Without `values` (no data) or a count of replicas it is not valid.

    `starting` counts besides `ready` where a metric knows how much a replica does; pass 0 for concurrency and rps.
    `capacity`: (total of one replica, panic value) of the burst capacity; None: of the first metric.
    """
    if ready == UNKNOWN or not values:
        return Wish(False, state.desired, UNKNOWN, state.ebc)
    count = max(1, ready + starting)
    up = math.ceil(spec.max_scale_up_rate * count)
    down = math.floor(count / spec.max_scale_down_rate) if reachable else 0
    measured = [(value, *raw(value)) for value in values]
    if len(measured) == 1:
        _, by_stable, by_panic = measured[0]
    else:
        by_stable = max(one[1] for one in measured)
        by_panic = max(one[2] for one in measured)
    stable = min(max(by_stable, down), up)
    panic = min(max(by_panic, down), up)
    activation = spec.activation_scale
    if activation > 1:
        if by_stable > 0 and activation > stable:
            stable = activation
        if by_panic > 0 and activation > panic:
            panic = activation
    if by_panic / count >= spec.panic_threshold:
        state.panic_since = now
    elif state.panic_since is not None and state.panic_since + spec.stable_s < now:
        state.panic_since = None
        state.max_panic = 0
    wish = stable
    if state.panic_since is not None:
        wish = state.max_panic = max(stable, panic, state.max_panic)
    desired = wish
    if reachable and state.delay is not None:
        record_delay(state.delay, now, wish)
        desired = highest(state.delay)
    total, in_panic = capacity if capacity is not None else (values[0].total, values[0].panic)
    state.desired = desired
    state.ebc = excess_burst_capacity(spec.burst, ready, total, in_panic)
    return Wish(True, desired, wish, state.ebc, measured)


def excess_burst_capacity(burst: float, ready: int, total: float, panic: float) -> int:
    """Requests that ready replicas could take besides those they have and the burst that is allowed for.

    Below 0 the gateway stays in front; so it always does with a burst of -1.
    """
    if burst == 0:
        return 0
    return math.floor(ready * total - burst - panic) if burst > 0 else -1
