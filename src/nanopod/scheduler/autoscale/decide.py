"""How many workers an endpoint should have now: a pure step from one state to the next, with its reasons.

The rule is Knative's concurrency rule reduced to its essentials: the mean number of requests at an endpoint over a
stable and over a panic window, divided by what one worker should have in flight, rounded up; a burst enters a panic
during which the count never falls; decreases wait for the highest wish of the last 30 s. Zero follows its own rule:
only after the endpoint was idle for its inactivity timeout, and back to one at once when somebody waits.

Where a worker's speed is known, the units of load that arrive ask for workers as well, and so does a queue that would
take longer than `target_queue_time`. No load asks for more workers than there are requests at once, so a lone caller
whose calls follow each other has one. What is wanted beyond that (`cold_mult`, `min_cold_load`) starts one by one, only
once the workers that the load needs are ready.

Waiting requests count as requests. Times are Unix seconds; samples are one per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from nanopod.model.endpoint import ScaleSpec

STABLE_S: Final = 30
PANIC_S: Final = 6
DELAY_S: Final = 30.0
"""A decrease waits this long after the last moment that wished for more."""
PANIC_RATIO: Final = 2.0
"""The panic window's wish, as a multiple of the ready workers, that begins a panic."""
ZERO_GRACE_S: Final = 2.0
"""Shortest idle time before zero: covers the second between a sample and the activity it does not show yet."""
PER_WORKER_MIN: Final = 0.01
PEAK_SLACK: Final = 0.02
"""A second's mean is measured: one caller at a time may come out a little above 1."""
EPSILON: Final = 1e-9
"""Keeps an exact quotient from being rounded up by its last bit."""


@dataclass(frozen=True, slots=True)
class ScaleState:
    """What the rule remembers of one endpoint; plain values, so that it can be stored as it is."""

    seconds: tuple[tuple[int, float], ...] = ()
    """(second, requests at once) of the stable window, oldest first; a second not named saw nothing."""
    first: int | None = None
    """Second in which the present run of samples began: younger windows are averaged over their own length."""
    panic_since: float | None = None
    panic_max: int = 0
    wishes: tuple[tuple[float, int], ...] = ()
    """(time, count) of the delay window, oldest first, counts falling: its first entry is its maximum."""
    active_at: float = 0.0
    """When somebody last waited or was served, or when a worker became ready first."""
    ready: int = 0
    target: int = -1
    """-1 before the first decision."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen since the last step. `samples`: (second, requests at once), a later one replaces an earlier."""

    samples: tuple[tuple[int, float], ...] = ()
    waiting: int = 0
    """Requests known to wait now, by a demand or the last sample."""
    in_flight: int = 0
    ready: int = 0
    starting: int = 0
    """Workers that were placed and are on their way to be ready for the first time."""
    slots: int = 1
    """Requests that one worker takes at once."""
    perf: float | None = None
    """Units of load per second of one worker, when measured."""
    load: tuple[tuple[int, float], ...] = ()
    """(second, units of load that arrived) of the stable window; a second not named saw none."""
    workload: float = 0.0
    """Mean units of load of one request; 0 when not known."""
    reachable: bool = True
    """False while no gateway is linked: silence then means nothing, and the count never falls."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`target` workers, why, and in how many seconds to look again if nothing happens (None: not by itself)."""

    target: int
    reasons: tuple[str, ...]
    recheck_s: float | None


def decide(spec: ScaleSpec, state: ScaleState, seen: Observed, now: float) -> tuple[ScaleState, Decision]:
    """One step. The same inputs give the same result; stepping through a stored copy of the state changes nothing."""
    state = _record(state, seen, now)
    per_worker = per_worker_of(spec, seen.slots)
    stable, panic = _mean(state, STABLE_S, now), _mean(state, PANIC_S, now)
    asks, hard, by_load = _by_load(spec, seen, now)
    wish, state, reasons = _wish(spec, state, (stable, panic), per_worker, (asks, hard), seen, now)
    reasons += by_load
    held = state.wishes[0][1]
    if held > wish:
        reasons.append(f"{held} until the last {DELAY_S:.0f} s have not wished for more than {wish}")
    low, low_reason = floor_of(spec, seen.perf)
    zero_s = zero_after_s(spec)
    target = max(held, low)
    if target > held:
        reasons.append(low_reason)
    target, filling = _with_cold(
        spec, state, seen, target, max(held, _floor_by_load(spec.min_load, spec, seen.perf)), reasons
    )
    if zero_s is not None:
        target = _around_zero(state, seen, zero_s, target, now, reasons)
    if target > spec.max_workers:
        target = spec.max_workers
        reasons.append(f"at most {spec.max_workers}: max_workers")
    if not seen.reachable and target < state.target:
        target = state.target
        reasons.append(f"kept at {target}: no gateway is linked, so silence means nothing")
    if target == 0:
        # What was before the rest must not raise the count again.
        state = replace(state, seconds=(), first=None, panic_since=None, panic_max=0, wishes=())
    state = replace(state, target=target)
    recheck_s = 1.0 if filling and target > 0 else _recheck(state, seen, target, zero_s, now)
    return state, Decision(target, tuple(reasons), recheck_s)


def per_worker_of(spec: ScaleSpec, slots: int) -> float:
    """Requests that one worker should have in flight."""
    wanted = spec.target_concurrency if spec.target_concurrency is not None else slots * spec.target_util
    return max(PER_WORKER_MIN, wanted)


def zero_after_s(spec: ScaleSpec) -> float | None:
    """Idle seconds after which there may be no worker at all; None when there must always be one."""
    timeout_s = spec.inactivity_timeout
    if timeout_s is None or timeout_s < 0 or spec.cold_workers > 0 or spec.min_load > 0 or spec.min_cold_load > 0:
        return None
    return max(timeout_s, ZERO_GRACE_S)


def floor_of(spec: ScaleSpec, perf: float | None) -> tuple[int, str]:
    """(workers there are at least, why), not counting the right to be at zero."""
    low, reason = _floor_by_load(spec.min_load, spec, perf), f"at least {{}}: min_load={spec.min_load:g}"
    if (cold := _floor_by_load(spec.min_cold_load, spec, perf)) > low:
        low, reason = cold, f"at least {{}}: min_cold_load={spec.min_cold_load:g}"
    reason = reason.format(low) if low else ""
    if spec.cold_workers > low:
        low, reason = spec.cold_workers, f"at least {spec.cold_workers}: cold_workers={spec.cold_workers}"
    if low == 0 and zero_after_s(spec) is None:
        low, reason = 1, "at least 1: inactivity_timeout is not set, so it never sleeps"
    return low, reason


def _floor_by_load(load: float, spec: ScaleSpec, perf: float | None) -> int:
    """Workers for a load that is to be met at any time; 1 while nobody knows how much a worker does."""
    if load <= 0:
        return 0
    return max(1, _ceil(load / (perf * spec.target_util))) if perf and perf > 0 else 1


def _by_load(spec: ScaleSpec, seen: Observed, now: float) -> tuple[int, bool, list[str]]:
    """(workers that the arriving load and the queue ask for, whether the queue is out of hand, why)."""
    if not seen.perf or seen.perf <= 0:
        return 0, False, []
    end = math.floor(now)
    units = sorted((second, value) for second, value in seen.load if end - STABLE_S < second <= end + 1)
    reasons: list[str] = []
    asks = 0
    if units:
        length = max(1, min(STABLE_S, max(end - 1, units[-1][0]) - units[0][0] + 1))
        arriving = sum(value for _, value in units) / length
        asks = _ceil(arriving / (seen.perf * spec.target_util))
        if asks > 1:
            reasons.append(f"{arriving:g} units of load a second, {seen.perf:g} per worker: {asks}")
    queued = seen.waiting * seen.workload
    wait_s = queued / (seen.perf * max(1, seen.ready))
    if wait_s > spec.target_queue_time:
        asks += _ceil(queued / (seen.perf * spec.target_queue_time))
        reasons.append(f"{wait_s:.0f} s to wait, above target_queue_time={spec.target_queue_time:g}: {asks}")
    return asks, wait_s > spec.max_queue_time, reasons


def _with_cold(
    spec: ScaleSpec, state: ScaleState, seen: Observed, target: int, hot: int, reasons: list[str]
) -> tuple[int, bool]:
    """(`target` with what `cold_mult` adds to `hot`, one worker at a time; whether that is still to be filled)."""
    total = min(spec.max_workers, _ceil(spec.cold_mult * hot))
    if hot < 1 or total <= target:
        return target, False
    if seen.ready >= target:
        target = max(target, min(total, max(seen.ready + (not seen.starting), state.target)))
    else:
        target = max(target, min(total, state.target))
    reasons.append(f"{target} of {total}: cold_mult={spec.cold_mult:g} times the {hot} that the load needs")
    return target, target < total or seen.ready < total


def _ceil(value: float) -> int:
    return math.ceil(value - EPSILON)


def _record(state: ScaleState, seen: Observed, now: float) -> ScaleState:
    """Take in the samples and what else shows activity."""
    seconds = dict(state.seconds)
    first, active_at = state.first, state.active_at
    newest = max(seconds, default=None)
    for second, value in sorted(seen.samples):
        if newest is not None and second - newest > STABLE_S:
            seconds, first = {}, None
        if second <= now - STABLE_S or second > now + 1:
            continue  # too old to count, or from a clock that is not ours
        seconds[second] = max(0.0, value)
        first = second if first is None else min(first, second)
        newest = second if newest is None else max(newest, second)
        if value > 0:
            active_at = max(active_at, float(second))
    if seen.waiting or seen.in_flight or (seen.ready and not state.ready) or state.target < 0:
        active_at = now
    oldest = math.floor(now) - STABLE_S
    kept = tuple(sorted((second, value) for second, value in seconds.items() if second > oldest))
    if not kept:
        first = None
    return replace(state, seconds=kept, first=first, active_at=active_at, ready=seen.ready)


def _mean(state: ScaleState, window_s: int, now: float) -> float:
    """Mean over a window, silent seconds as zero; a window that is not full yet is averaged over its own length."""
    if not state.seconds or state.first is None:
        return 0.0
    # The second that is running has no sample yet: it counts only once it has.
    end = max(state.seconds[-1][0], math.floor(now) - 1)
    begin = end - window_s
    length = min(window_s, end - state.first + 1)
    return sum(value for second, value in state.seconds if second > begin) / length


def _wish(
    spec: ScaleSpec,
    state: ScaleState,
    means: tuple[float, float],
    per_worker: float,
    load: tuple[int, bool],
    seen: Observed,
    now: float,
) -> tuple[int, ScaleState, list[str]]:
    """What the windows ask for now, with the panic and delay windows moved on.

    `means` are of the stable and the panic window, `load` what the load asks for and whether its queue is out of hand.
    """
    stable, panic = means
    by_stable, by_panic = _ceil(stable / per_worker), _ceil(panic / per_worker)
    asks, hard = load
    if spec.target_concurrency is None:
        # A request needs one worker, however busy that is: utilisation asks for no more workers than requests.
        peak = max([value for _, value in state.seconds], default=0.0)
        most = max(1, _ceil(peak - PEAK_SLACK))
        by_stable, by_panic, asks = min(by_stable, most), min(by_panic, most), min(asks, most)
    by_stable = max(by_stable, asks)
    ready = max(1, seen.ready)
    since, highest = state.panic_since, state.panic_max
    if by_panic >= PANIC_RATIO * ready or hard:
        since = now
    elif since is not None and since + STABLE_S < now:
        since, highest = None, 0
    wish = by_stable
    reasons: list[str] = []
    if stable > 0:
        reasons.append(f"{stable:.2f} requests at once over {STABLE_S} s, {per_worker:g} per worker: {by_stable}")
    if since is not None:
        highest = max(highest, by_stable, by_panic)
        wish = highest
        reasons.append(f"{panic:.2f} requests at once over {PANIC_S} s: in a burst, {wish} and never fewer")
    if seen.waiting and wish < 1:
        wish = 1
        reasons.append(f"{seen.waiting} waiting: at least 1")
    higher = ((at, count) for at, count in state.wishes if count > wish and now - at < DELAY_S)
    wishes = (*higher, (now, wish))
    return wish, replace(state, panic_since=since, panic_max=highest, wishes=wishes), reasons


def _around_zero(state: ScaleState, seen: Observed, zero_s: float, target: int, now: float, reasons: list[str]) -> int:
    """The rule of zero, for an endpoint that may sleep."""
    idle_s = now - state.active_at
    if seen.waiting or seen.in_flight or idle_s < zero_s:
        if target < 1 and (state.target != 0 or seen.waiting or seen.in_flight):
            reasons.append(f"at least 1 until it was idle for {zero_s:g} s")
            return 1
        return target
    if seen.starting and state.target > 0:
        reasons.append("1: a worker is starting, and a start is never given up half-way")
        return 1
    reasons[:] = [f"0: idle for {zero_s:g} s"]
    return 0


def _recheck(state: ScaleState, seen: Observed, target: int, zero_s: float | None, now: float) -> float | None:
    """Seconds until the decision may change by the passing of time alone."""
    moving = any(value for _, value in state.seconds) or state.panic_since is not None
    if moving or (state.wishes and state.wishes[0][1] > state.wishes[-1][1]):
        return 1.0
    if zero_s is not None and target > 0:
        return max(1.0, state.active_at + zero_s - now)
    return None
