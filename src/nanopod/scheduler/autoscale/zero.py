"""Zero and the Active condition of endpoints that scale by load: idle time decides, and starts are never given up."""

from __future__ import annotations

from typing import Final

from nanopod.scheduler.autoscale.settle import ACTIVATION_BUFFER_S, LATER_S, Settled, bound
from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, Observed, ScaleState
from nanopod.scheduler.autoscale.windows import clear

CUT_S_MIN: Final = 2.0
"""Shortest idle time before zero: covers the second between a request and the sample that tells of it."""


def settle_idle(
    spec: Autoscale,
    state: ScaleState,
    desired: int,
    low: int,
    seen: Observed,
    now: float,
    zero_after_s: float,
) -> Settled:
    """Bounds and the rules of zero. `low`: replicas there are at least (`min_load`); `zero_after_s` may be infinite.

    The gateway is always in front, so idle time counts as grace.
    """
    current = _current(seen)
    if desired < 0 and state.active != "unknown":
        return Settled(desired, False)
    scale, bounded = bound(spec, desired, attained=state.attained, reachable=seen.reachable)
    if seen.reachable and scale < low:
        high = spec.hot_max
        scale, bounded = (min(low, high) if high else low), "min_load"
    if scale == 0 and (seen.waiting > 0 or seen.in_service > 0):
        scale, bounded = 1, "waiting"
    if scale != 0:
        return Settled(scale, scale != current, bounded=bounded)
    if not spec.enable_scale_to_zero:
        return Settled(1, current != 1, bounded="enable_scale_to_zero")
    there = seen.ready > 0 or seen.starting > 0
    if state.active == "unknown" and state.attained and not there:
        return Settled(0, current != 0)  # nobody waits any more, and nothing was begun
    if state.active == "unknown" and seen.ready <= 0:
        limit = spec.progress_deadline_s + ACTIVATION_BUFFER_S
        if now - state.active_since > limit:
            return Settled(0, current != 0, bounded="progress_deadline")
        return Settled(UNKNOWN, False, state.active_since + limit + LATER_S, bounded="starting")
    if state.active == "unknown":
        # Its first replica is ready at this moment: it becomes active by this evaluation.
        return Settled(1, current != 1, now + spec.stable_s, bounded="stable_window")
    return _by_idle(spec, state, seen, now, zero_after_s if seen.reachable else 0.0, there, current)


def _by_idle(
    spec: Autoscale, state: ScaleState, seen: Observed, now: float, zero_after_s: float, there: bool, current: int
) -> Settled:  # fmt: skip
    since = idle_since(spec, state)
    if now - since < zero_after_s:
        recheck = since + zero_after_s if there and zero_after_s < 1e12 else None
        return Settled(1 if there else 0, there and current != 1, recheck, bounded="idle" if there else "")
    young_s = now - state.active_since
    if state.active == "true" and young_s < spec.stable_s and not spec.zero_cuts_windows:
        return Settled(1, current != 1, state.active_since + spec.stable_s, bounded="stable_window")
    return Settled(0, current != 0)


def cut_after_s(spec: Autoscale) -> float | None:
    """Idle seconds after which a stated timeout overrides windows and delay; None: it does not."""
    if not spec.zero_cuts_windows or spec.inactivity_timeout_s is None or spec.inactivity_timeout_s < 0:
        return None
    return max(spec.inactivity_timeout_s, CUT_S_MIN)


def cuts(spec: Autoscale, state: ScaleState, low: int, seen: Observed, now: float) -> bool:
    """Whether it goes to zero at once, and what was before is to be forgotten."""
    after_s = cut_after_s(spec)
    if after_s is None or low > 0 or seen.waiting or seen.in_service or not spec.enable_scale_to_zero:
        return False
    if spec.min_scale > 0 and seen.reachable:
        return False
    # One whose first replica is ready at this moment becomes active by this evaluation: it was not idle before.
    return state.active != "unknown" and now - idle_since(spec, state) >= after_s


def idle_since(spec: Autoscale, state: ScaleState) -> float:
    """Since when nothing was asked. Under a stated timeout one that has just become active was not idle before."""
    if spec.zero_cuts_windows and state.active == "true":
        return max(state.request_at, state.active_since)
    return state.request_at


def forget(state: ScaleState) -> None:
    """Drop windows, panic and delay: what was before the rest must not raise the count again."""
    for pair in state.windows.values():
        clear(pair.stable)
        clear(pair.panic)
    state.panic_since = None
    state.max_panic = 0
    if state.delay is not None:
        state.delay.indices.clear()
        state.delay.counts.clear()


def _current(seen: Observed) -> int:
    return seen.current if seen.current != UNKNOWN else max(0, seen.ready) + seen.starting
