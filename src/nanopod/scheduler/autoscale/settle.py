"""From a wish to replicas: bounds, the rules of zero, the Active condition, whether the gateway stays in front.

Algorithm: the scaler and the condition of `pkg/reconciler/autoscaling/kpa` of Knative Serving.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, ScaleState

ACTIVATION_BUFFER_S: Final = 30.0
"""A start is given up so long after its progress deadline."""
LATER_S: Final = 0.001
"""What must be older than a limit is looked at again so long after it."""
PROXIED_RECHECK_S: Final = 3.0
PROBE_PERIOD_S: Final = 1.0
PROBE_S_MAX: Final = 45.0


class Settled(NamedTuple):
    """`want` replicas (`UNKNOWN`: as many as there are); `patch`: they are to be asked for now.

    `recheck_at`: when time alone may change the outcome; `bounded`: which rule set it, "" for none.
    """

    want: int
    patch: bool
    recheck_at: float | None = None
    start_probe: bool = False
    bounded: str = ""


def settle(
    spec: Autoscale,
    state: ScaleState,
    desired: int,
    current: int,
    now: float,
    *,
    reachable: bool = True,
    probed: bool = True,
) -> Settled:
    """Knative's `scale`: bounds, then the rules of zero. Changes nothing; `activate` moves the condition on."""
    if desired < 0 and state.active != "unknown":
        return Settled(desired, False)
    scale, bounded = bound(spec, desired, attained=state.attained, reachable=reachable)
    if scale != 0:
        return Settled(scale, scale != current, bounded=bounded)
    if not spec.enable_scale_to_zero:
        return Settled(1, current != 1, bounded="enable_scale_to_zero")
    age = now - state.active_since
    if state.active == "unknown":
        limit = spec.progress_deadline_s + ACTIVATION_BUFFER_S
        if age > limit:
            return Settled(0, current != 0, bounded="progress_deadline")
        return Settled(UNKNOWN, False, state.active_since + limit + LATER_S, bounded="starting")
    if state.active == "true":
        if age >= spec.stable_s:
            return Settled(0, False, now + PROXIED_RECHECK_S if state.proxy else None, bounded="deactivated")
        return Settled(1, current != 1, state.active_since + spec.stable_s, bounded="stable_window")
    return _inactive(spec, state, current, now, reachable, probed)


def _inactive(
    spec: Autoscale, state: ScaleState, current: int, now: float, reachable: bool, probed: bool
) -> Settled:  # fmt: skip
    """Zero for a service that was marked inactive: after the grace period behind the gateway and the retention."""
    if spec.burst != -1 and not probed:
        return Settled(0, False, start_probe=True, bounded="probe")
    age = now - state.active_since
    retention_s = (spec.retention_s or 0.0) if reachable else 0.0
    if age >= max(spec.grace_s, retention_s):
        return Settled(0, current != 0)
    if retention_s > 0 and age < retention_s:
        return Settled(0, False, state.active_since + retention_s, bounded="retention")
    proxied_s = now - state.proxied_since if state.proxied_since is not None else 0.0
    left_s = spec.grace_s - proxied_s
    if left_s <= 0:
        return Settled(0, current != 0)
    return Settled(0, False, now + left_s, bounded="grace")


def bound(spec: Autoscale, desired: int, *, attained: bool, reachable: bool) -> tuple[int, str]:
    """The wish within its bounds, and which one holds. An initial scale above the maximum wins until it is attained."""
    low, name = (spec.min_scale if reachable else 0), "min_scale"
    if spec.initial_scale > 1 and not attained and reachable and spec.initial_scale > low:
        low, name = spec.initial_scale, "initial_scale"
    if desired < low:
        return low, name
    high = spec.hot_max
    if high and desired > high:
        return high, "max_scale" if high == spec.max_scale else "max_workers"
    return desired, ""


def threshold(spec: Autoscale, attained: bool, reachable: bool = True) -> int:
    """Ready replicas from which a service is active."""
    low = spec.min_scale if reachable else 0
    return max(low, 1) if attained else max(low, spec.initial_scale)


def activate(
    spec: Autoscale, state: ScaleState, want: int, ready: int, now: float, reachable: bool = True
) -> None:  # fmt: skip
    """Move the Active condition on, by Knative's table. Its age begins anew with each change, of its reason as well."""
    least = threshold(spec, state.attained, reachable)
    if ready >= least:
        state.attained = True
    active, reason = state.active, state.active_reason
    if want == 0 or least == 0:
        reason = "TimedOut" if active == "unknown" and least > 0 else "NoTraffic"
        active = "false"
    elif ready < least:
        if want > 0 or active != "false":
            active, reason = "unknown", "Queued"
        else:
            active, reason = "false", "NoTraffic"
    elif want > 0 or active != "false":
        active, reason = "true", ""
    if active != state.active or reason != state.active_reason:
        state.active, state.active_reason, state.active_since = active, reason, now


def front(state: ScaleState, want: int, now: float) -> bool:
    """Whether the gateway stays in front (proxy mode), with the time since when."""
    state.proxy = not (want > 0 and state.ebc >= 0)
    if not state.proxy:
        state.proxied_since = None
    elif state.proxied_since is None:
        state.proxied_since = now
    return state.proxy
