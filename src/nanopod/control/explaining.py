"""Why an endpoint has the workers it has, as the API and `nanopod endpoints get` say it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from nanopod.control.live import Load
from nanopod.control.starts import Starts
from nanopod.scheduler.autoscale.load import start_time, zero_after_s
from nanopod.scheduler.autoscale.reasons import explain
from nanopod.scheduler.autoscale.values import Autoscale, Decision, Measured, ScaleState

if TYPE_CHECKING:
    from nanopod.control.scaling import Watched

SLOW_S: Final = 60.0
"""Starts that take longer than this cannot be waited for: what helps is said."""
_STATUS: Final = {"unknown": "Unknown", "true": "True", "false": "False"}


def view(watched: Watched, load: Load, now: float) -> dict[str, Any] | None:
    """The object `autoscaling` of an endpoint; None before its first evaluation. Times are Unix seconds."""
    decision, state, spec = watched.decision, watched.state, watched.spec
    if decision is None:
        return None
    counts = watched.counts
    start_s = start_time(0, counts.cold, watched.starts.measured()["wake"], watched.starts.measured()["provision"])
    zero_s = zero_after_s(spec, start_s) if not spec.exact else (spec.retention_s or 0.0) + spec.grace_s
    return {
        "profile": spec.profile,
        "metrics": [_metric(one, spec) for one in decision.measured],
        "ready": counts.ready,
        "starting": counts.starting,
        "cold": counts.cold,
        "desired": decision.desired,
        "want": decision.want,
        "panic_since": state.panic_since,
        "bounds": _bounds(spec, decision),
        "delay": _delay(spec, state),
        "excess_burst_capacity": decision.ebc,
        "proxy": decision.proxy,
        "active": {
            "status": _STATUS[decision.active],
            "reason": decision.active_reason,
            "since": state.active_since or None,
        },
        "units_per_s": decision.mu,
        "start_s": watched.starts.measured(),
        "waiting": load.waiting(now),
        "oldest_wait_s": round(load.oldest_wait_s(now), 3),
        "zero_after_s": zero_s if math.isfinite(zero_s) and not _never_zero(spec) else None,
        "reasons": list(explain(spec, state, decision, now)),
        "advice": advice(spec, watched.starts),
    }


def _metric(one: Measured, spec: Autoscale) -> dict[str, Any]:
    return {
        "name": one.name,
        "stable": one.stable,
        "panic": one.panic,
        "target": one.target,
        "total": one.total,
        "utilization": round(one.target / one.total, 6) if one.total else 0.0,
        "desired_stable": one.desired_stable,
        "desired_panic": one.desired_panic,
    }


def _bounds(spec: Autoscale, decision: Decision) -> dict[str, Any]:
    reasons = [f"min_scale={spec.min_scale}"] if spec.min_scale else []
    if spec.min_load > 0 and not spec.exact:
        reasons.append(f"min_load={spec.min_load:g}")
    if spec.max_scale:
        reasons.append(f"max_scale={spec.max_scale}")
    if spec.max_workers and not spec.exact:
        reasons.append(f"max_workers={spec.max_workers}")
    if decision.bounded:
        reasons.append(f"bounded by {decision.bounded} now")
    low = max(spec.min_scale, 1 if spec.min_load > 0 and not spec.exact else 0)
    return {"min": low, "max": spec.hot_max, "reasons": reasons}


def _delay(spec: Autoscale, state: ScaleState) -> dict[str, Any]:
    counts = state.delay.counts if state.delay is not None else []
    return {"seconds": spec.delay_s, "holds": counts[0] if len(counts) > 1 else None}


def _never_zero(spec: Autoscale) -> bool:
    return spec.min_scale > 0 or not spec.enable_scale_to_zero or (spec.min_load > 0 and not spec.exact)


def advice(spec: Autoscale, starts: Starts) -> str:
    """What helps where starts take so long that scaling on demand comes too late; "" where they do not."""
    slow = {kind: value for kind, value in starts.measured().items() if value is not None and value > SLOW_S}
    if not slow:
        return ""
    said = " and ".join(f"a {kind} takes {value:.0f} s" for kind, value in slow.items())
    if spec.exact:
        return f"{said}: requests wait for that long; keep replicas running (min_scale), or choose the profile auto"
    ways = ["keep workers running for the load that is usual (min_load)"]
    if "wake" not in slow and "provision" in slow:
        ways.append("keep more of them hibernated (cold_mult, cold_workers)")
    return f"{said}, which requests wait for when the load rises: {', or '.join(ways)}"
