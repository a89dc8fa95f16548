"""How many replicas an endpoint should have, hot and hibernated: one evaluation.

`decide` is pure: the state that it is given stays as it is. `step` is the same and changes its state in place, which
saves the copy. An evaluation records what was seen, asks `recommend` for a wish by each metric, and lets `settle` (the
rules of Knative) or `zero` (idle time) turn it into replicas. The same inputs give the same outcome.

Between two evaluations nothing needs to be done: `Decision.next_at` says when time alone may change the outcome, which
is the next tick while anything moves, and much later or never for an idle endpoint. What ticks would have done
meanwhile is made up for, so that an endpoint that was left alone and one that was ticked decide alike.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from nanopod.model.endpoint import Metric
from nanopod.scheduler.autoscale import load, restart, windows, zero
from nanopod.scheduler.autoscale.capacity import activators
from nanopod.scheduler.autoscale.delay import put, rebucket
from nanopod.scheduler.autoscale.recommend import Value, Wish, create, recommend
from nanopod.scheduler.autoscale.settle import Settled, activate, front, settle, threshold
from nanopod.scheduler.autoscale.target import target_of
from nanopod.scheduler.autoscale.values import (
    UNKNOWN,
    Autoscale,
    Decision,
    Measured,
    Observed,
    Pair,
    ScaleState,
    Second,
)

AHEAD_S_MAX: Final = 2
"""A second further ahead than this comes from a clock that is not ours and is dropped."""
PEAK_SLACK: Final = 0.02
"""A second's mean is measured: one caller at a time may come out a little above 1."""
_BY_SPEED: Final[frozenset[Metric]] = frozenset(("load", "kv", "tokens"))
_GAUGES: Final[frozenset[Metric]] = frozenset(("kv", "tokens", "cpu", "memory"))
_FIELD: Final[dict[str, str]] = {"rps": "requests"}
"""Of `Second`, where it is not called as its metric."""
_NEVER: Final = 1e12


def decide(spec: Autoscale, state: ScaleState, seen: Observed, now: float) -> tuple[ScaleState, Decision]:
    """One evaluation at `now`. `state` is left alone; `ScaleState()` begins an endpoint."""
    state = state.copy()
    return state, step(spec, state, seen, now)


def step(spec: Autoscale, state: ScaleState, seen: Observed, now: float) -> Decision:
    """One evaluation at `now` that changes `state` in place."""
    if state.created_at is None:
        _begin(spec, state, seen, now)
    if state.held_at is not None:
        return restart.held(spec, state, seen, now, step)
    if state.settled:
        _make_up(spec, state, now)
    fit(spec, state, now)
    return _evaluate(spec, state, seen, now)


def poked(spec: Autoscale, state: ScaleState, concurrency: float) -> bool:
    """Whether the first request of a quiet endpoint is evaluated at once, before the next tick."""
    if concurrency == 0:
        return False
    return state.desired == 0 if spec.exact else state.want <= 0


def overdue(spec: Autoscale, state: ScaleState, oldest_wait_s: float, now: float) -> bool:
    """Whether a request has waited so long that the endpoint is evaluated at once (at most once a second)."""
    return not spec.exact and oldest_wait_s > spec.target_queue_time_s and now - state.evaluated_at >= 1.0


def next_tick(spec: Autoscale, at: float, now: float) -> float:
    """The first multiple of the tick that is not before `at`, and after `now`."""
    tick = spec.tick_s
    found = math.ceil(at / tick) * tick
    return float(found) if found > now else float((math.floor(now / tick) + 1) * tick)


def fit(spec: Autoscale, state: ScaleState, now: float) -> None:
    """Bring the windows of `state` to the settings: resized, added, left out; the delay is bucketed anew."""
    kept = state.windows
    wanted = (*spec.metrics, "concurrency") if "concurrency" not in spec.metrics else spec.metrics
    if len(kept) != len(set(wanted)) or any(name not in kept for name in wanted):
        state.windows = kept = {
            name: kept.get(name) or windows.new_pair(spec.stable_s, spec.panic_s) for name in dict.fromkeys(wanted)
        }
    for pair in kept.values():
        if pair.stable.window_s != spec.stable_s:
            windows.resize(pair.stable, spec.stable_s, now)
        if pair.panic.window_s != spec.panic_s:
            windows.resize(pair.panic, spec.panic_s, now)
    if spec.start == "knative":
        return  # there a delay window stays as it was created
    delay = state.delay
    size = math.ceil(spec.delay_s / spec.tick_s)
    if (size != delay.size or spec.tick_s != delay.tick_s) if delay is not None else size > 0:
        state.delay = rebucket(delay, spec.delay_s, spec.tick_s)


def _evaluate(spec: Autoscale, state: ScaleState, seen: Observed, now: float) -> Decision:
    """The evaluation itself, with windows that fit and nothing to make up for."""
    if seen.seconds:
        _record(spec, state, seen, now)
    _learn(state, seen, now)
    mu = speed(spec, state, seen)
    start_s = load.start_time(seen.draining, seen.cold, state.wake_s, state.provision_s)
    values, extra = _values(spec, state, seen, now, mu, start_s)
    by_speed = not spec.exact and not _BY_SPEED.isdisjoint(spec.metrics)
    wish = recommend(
        spec,
        state,
        values,
        seen.ready,
        now,
        starting=seen.starting if by_speed else 0,
        reachable=seen.reachable,
        capacity=_capacity(spec, state, values, now),
    )
    current = seen.current if seen.current != UNKNOWN else max(0, seen.ready) + seen.starting
    if spec.exact:
        found = settle(spec, state, state.desired, current, now, reachable=seen.reachable, probed=seen.probed)
        zero_at = None
    else:
        found, zero_at = _by_idle(spec, state, seen, now, mu, start_s)
    found = _first_replicas(spec, state, found, current)
    found, held = _hold(state, seen, found, current)
    before, attained = (state.active, state.active_reason), state.attained
    activate(spec, state, found.want, max(0, seen.ready), now, seen.reachable)
    front(state, found.want, now)
    if found.want != UNKNOWN:
        state.want = found.want
    hot = found.want if found.want != UNKNOWN else current
    state.cold = load.cold_target(spec, hot, mu) if seen.reachable else 0
    state.evaluated_at = now
    moved = before != (state.active, state.active_reason) or attained != state.attained or held
    state.settled = not moved and _settled(spec, state, seen, wish, now)
    state.rechecks = [at for at in (found.recheck_at, zero_at) if at is not None and at > now and at < _NEVER]
    return _decision(spec, state, seen, now, wish, found, mu, extra, zero_at, held)


def speed(spec: Autoscale, state: ScaleState, seen: Observed) -> float | None:
    """Units of load per second of one replica: stated, benchmarked, or estimated; None: nobody knows."""
    found = spec.load_total or seen.mu or state.mu.get(seen.hardware)
    return found if found and found > 0 else None


def _begin(spec: Autoscale, state: ScaleState, seen: Observed, now: float) -> None:
    state.created_at = state.request_at = state.active_since = now
    create(spec, state, seen.ready, now, spec.rps_total if spec.metrics == ("rps",) else None)


def _record(spec: Autoscale, state: ScaleState, seen: Observed, now: float) -> None:
    """Put the seconds into the windows, and what was completed into the estimate of the speed."""
    latest = now + AHEAD_S_MAX
    known = [(_FIELD.get(name, name), pair.stable, pair.panic) for name, pair in state.windows.items()]
    record = windows.record
    learned = False
    for second in seen.seconds:
        at = second.at
        if at > latest:
            continue
        for field, stable, panic in known:
            value = getattr(second, field)
            if value is not None:
                record(stable, at, value)
                record(panic, at, value)
        if second.concurrency > 0 or second.requests > 0:
            state.request_at = max(state.request_at, min(at + 1.0, now))
            if not spec.exact:
                per_replica = second.concurrency
                if spec.container_concurrency == 0:
                    per_replica /= max(1, seen.ready)
                load.add_served(state.served, at, second.served, per_replica)
                learned = True
        elif second.served[2] and not spec.exact:
            load.add_served(state.served, at, second.served, 0.0)
            learned = True
    if learned and seen.mu is None:
        estimate = load.estimated_mu(state.served, spec.container_concurrency)
        if estimate is not None:
            state.mu[seen.hardware] = estimate


def _learn(state: ScaleState, seen: Observed, now: float) -> None:
    """Keep what was told besides the seconds."""
    if seen.mu is not None and seen.mu > 0:
        state.mu[seen.hardware] = seen.mu
    if seen.wake_s is not None:
        state.wake_s = seen.wake_s
    if seen.provision_s is not None:
        state.provision_s = seen.provision_s
    if seen.waiting or seen.in_service:
        state.request_at = now
    elif seen.last_request_at is not None and seen.last_request_at > state.request_at:
        state.request_at = min(seen.last_request_at, now)


def _values(
    spec: Autoscale, state: ScaleState, seen: Observed, now: float, mu: float | None, start_s: float
) -> tuple[list[Value], tuple[float, tuple[str, ...]]]:
    """What each metric reads; and (units per second of the backlog, metrics that have nothing to say)."""
    found: list[Value] = []
    dropped: tuple[str, ...] = ()
    added = 0.0
    for name in spec.metrics:
        pair = state.windows[name]
        if name == "concurrency" or name == "rps":
            if not (spec.freeze and spec.burst != -1 and windows.is_empty(pair.stable, now)):
                found.append(_by_gateway(spec, name, pair, now))
        elif name == "load":
            if mu is None:
                dropped += (name,)
                if "concurrency" not in spec.metrics:
                    found.append(_in_place_of_load(spec, state.windows["concurrency"], now))
            else:
                value, added = _by_load(spec, pair, seen, now, mu, start_s)
                found.append(value)
        else:
            total = 1.0 if name != "tokens" else spec.tokens_total or seen.tokens_per_s or 0.0
            if windows.is_empty(pair.stable, now) or total <= 0:
                dropped += (name,)
            else:
                found.append(_by_gauge(spec, name, pair, now, total))
    return found, (added, dropped)


def _by_gateway(spec: Autoscale, name: Literal["concurrency", "rps"], pair: Pair, now: float) -> Value:
    if name == "rps":
        total, util = spec.rps_total, spec.rps_util
    else:
        total, util = spec.concurrency_total, spec.concurrency_util
    how = spec.aggregation
    target = target_of(total, util)
    return Value(name, windows.read(pair.stable, now, how), windows.read(pair.panic, now, how), target, total)


def _in_place_of_load(spec: Autoscale, pair: Pair, now: float) -> Value:
    """Requests at once, while nobody knows how much a replica does: never more replicas than there were requests.

    A lone caller has one replica, however busy that is; only a known speed tells whether a second one would help.
    """
    value = _by_gateway(spec, "concurrency", pair, now)
    if value.stable == 0.0 and value.panic == 0.0:
        return value
    return value._replace(most=max(1, math.ceil(max(pair.stable.buckets) - PEAK_SLACK)))


def _by_gauge(spec: Autoscale, name: Metric, pair: Pair, now: float, total: float) -> Value:
    util = spec.kv_util if name == "kv" else spec.load_util if name == "tokens" else spec.resource_util
    how = spec.aggregation
    target = target_of(total, util)
    return Value(name, windows.read(pair.stable, now, how), windows.read(pair.panic, now, how), target, total)


def _by_load(
    spec: Autoscale, pair: Pair, seen: Observed, now: float, mu: float, start_s: float
) -> tuple[Value, float]:  # fmt: skip
    stable, panic = windows.rate(pair.stable, now), windows.rate(pair.panic, now)
    waiting = seen.waiting_load or seen.waiting * load.UNITS
    added = 0.0
    if waiting > 0:
        eta_s = seen.eta_s if seen.eta_s is not None else start_s
        added = load.backlog(waiting, panic, mu, max(0, seen.ready), eta_s, start_s, spec.target_queue_time_s)
    target = target_of(mu, spec.load_util)
    least = spec.min_load
    return Value("load", max(least, stable) + added, max(least, panic) + added, target, mu), added


def _capacity(
    spec: Autoscale, state: ScaleState, values: list[Value], now: float
) -> tuple[float, float] | None:  # fmt: skip
    """(total, panic value) that the excess burst capacity is counted with: those of concurrency, where it is there."""
    if spec.burst <= 0 or not values or values[0].name == "concurrency" or spec.metrics == ("rps",):
        return None
    return spec.concurrency_total, windows.read(state.windows["concurrency"].panic, now, spec.aggregation)


def _by_idle(
    spec: Autoscale, state: ScaleState, seen: Observed, now: float, mu: float | None, start_s: float
) -> tuple[Settled, float | None]:
    """The rules of zero by idle time, and when zero is reached if nothing happens."""
    low = load.floor_by_load(spec.min_load, mu, spec.load_util)
    cut_s = zero.cut_after_s(spec)
    after_s = load.zero_after_s(spec, start_s) if cut_s is None else cut_s
    zero_at: float | None = None
    if low == 0 and spec.enable_scale_to_zero and (spec.min_scale == 0 or not seen.reachable):
        if zero.cuts(spec, state, low, seen, now):
            if state.desired != 0 or state.want != 0:
                zero.forget(state)
            state.desired = 0
            current = seen.current if seen.current != UNKNOWN else max(0, seen.ready) + seen.starting
            return Settled(0, current != 0, bounded="" if current == 0 else "inactivity_timeout"), None
        if seen.ready > 0 or seen.starting > 0:
            at = zero.idle_since(spec, state) + after_s
            zero_at = at if at < _NEVER else None
    found = zero.settle_idle(spec, state, state.desired, low, seen, now, after_s)
    return found, zero_at


def _first_replicas(spec: Autoscale, state: ScaleState, found: Settled, current: int) -> Settled:
    """A new endpoint begins with its initial scale; afterwards starts go on by themselves."""
    if found.want != UNKNOWN or state.active != "unknown" or state.attained:
        return found
    first = threshold(spec, False)
    if spec.hot_max and not spec.exact:
        first = min(first, spec.hot_max)
    if current >= first:
        return found
    return Settled(first, True, found.recheck_at, bounded="initial_scale")


def _hold(state: ScaleState, seen: Observed, found: Settled, current: int) -> tuple[Settled, bool]:
    """Nothing is decreased while no gateway is linked: its silence says nothing then."""
    if seen.linked or found.want == UNKNOWN:
        return found, False
    known = state.want if state.want != UNKNOWN else current
    if found.want >= known:
        return found, False
    return Settled(known, known != current, found.recheck_at, bounded="unlinked"), True


def _settled(spec: Autoscale, state: ScaleState, seen: Observed, wish: Wish, now: float) -> bool:
    """Whether every tick until the next deadline would say what this one said, if nothing is heard."""
    if seen.waiting or seen.in_service or not seen.linked or seen.ready == UNKNOWN:
        return False
    for name, pair in state.windows.items():
        stable = pair.stable
        if not windows.is_still(stable, now):
            return False
        if (spec.freeze or name in _GAUGES) and name in spec.metrics and not windows.is_empty(stable, now):
            return False  # at the end of the window it falls silent, which differs from zero
    if not wish.valid:
        return True  # frozen, panic and all
    if state.panic_since is not None:
        return False
    return state.delay is None or (seen.reachable and len(state.delay.counts) <= 1 and wish.desired == wish.now)


def _make_up(spec: Autoscale, state: ScaleState, now: float) -> None:
    """What the ticks since the last evaluation would have left in the delay window: their wish, once."""
    state.settled = False
    delay = state.delay
    if delay is None or not delay.counts:
        return
    if spec.freeze and spec.burst != -1:
        pair = state.windows.get(spec.metrics[0])
        if pair is not None and windows.is_empty(pair.stable, now):
            return
    index = math.ceil(now / delay.tick_s) - 1
    if index > delay.indices[-1]:
        put(delay, index, delay.counts[-1])


def _decision(
    spec: Autoscale,
    state: ScaleState,
    seen: Observed,
    now: float,
    wish: Wish,
    found: Settled,
    mu: float | None,
    extra: tuple[float, tuple[str, ...]],
    zero_at: float | None,
    held: bool,
) -> Decision:
    if not state.settled:
        next_at: float | None = next_tick(spec, now, now)
    else:
        next_at = min((next_tick(spec, at, now) for at in state.rechecks), default=None)
    return Decision(
        valid=wish.valid,
        desired=state.desired,
        want=found.want,
        cold=state.cold,
        patch=found.patch,
        ebc=state.ebc,
        active=state.active,
        active_reason=state.active_reason,
        proxy=state.proxy,
        activators=activators(max(0, seen.ready), spec.concurrency_total, spec.burst, spec.activator_capacity),
        start_probe=found.start_probe,
        next_at=next_at,
        rechecks=tuple(state.rechecks),
        held=held,
        measured=tuple(
            Measured(
                name=value.name,
                stable=value.stable,
                panic=value.panic,
                target=value.target,
                total=value.total,
                desired_stable=by_stable,
                desired_panic=by_panic,
            )
            for value, by_stable, by_panic in wish.measured
        ),
        dropped=extra[1],
        recommended=wish.now,
        bounded=found.bounded,
        backlog=extra[0],
        mu=mu,
        zero_at=zero_at,
    )


def replay(
    spec: Autoscale, state: ScaleState, story: list[tuple[float, Observed]]
) -> tuple[ScaleState, list[Decision]]:  # fmt: skip
    """The decisions of a recorded stream of (time, what was seen): the same stream gives the same decisions."""
    state = state.copy()
    return state, [step(spec, state, seen, now) for now, seen in story]


__all__ = ["Second", "decide", "fit", "next_tick", "overdue", "poked", "replay", "speed", "step"]
