"""Why a decision is what it is, in words. Written only when somebody asks: thousands of endpoints decide every tick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, Decision, Measured, ScaleState

_UNITS: Final[Mapping[str, str]] = {
    "concurrency": "requests at once",
    "rps": "requests a second",
    "load": "units of load a second",
    "kv": "replicas' worth of KV cache",
    "tokens": "tokens a second",
    "cpu": "replicas' worth of CPU",
    "memory": "replicas' worth of memory",
}


def explain(spec: Autoscale, state: ScaleState, decision: Decision, now: float) -> tuple[str, ...]:
    """The reasons of `decision`, the last one that `state` saw, as of `now`: what was measured first, bounds last."""
    found = [_measured(one, spec) for one in decision.measured]
    if not decision.valid:
        found.append("nothing is known of its load, so the count stays as it is")
    for name in decision.dropped:
        found.append(_dropped(name, spec))
    if decision.backlog > 0:
        found.append(f"waiting requests add {decision.backlog:.4g} units a second until they are done")
    if state.panic_since is not None:
        left_s = max(0.0, state.panic_since + spec.stable_s - now)
        found.append(f"in a burst: at least {state.max_panic}, and none fewer for {left_s:.0f} s after its last moment")
    elif UNKNOWN != decision.recommended < decision.desired:
        found.append(f"{decision.desired} until fewer were enough for {spec.delay_s} s; now {decision.recommended} are")
    if decision.bounded:
        found.append(_bounded(spec, state, decision, now))
    elif decision.want == 0 and decision.desired == 0:
        found.append("0: nothing was asked of it for long enough")
    if decision.cold > 0:
        found.append(f"{decision.cold} hibernated besides: {_cold(spec, decision)}")
    return tuple(found)


def _measured(one: Measured, spec: Autoscale) -> str:
    what = _UNITS[one.name]
    each = f"{one.target:.4g} of {one.total:.4g} per replica"
    value = f"{one.stable:.4g}"
    if value == "1":
        what = what.replace("s ", " ", 1)  # one request, unit or token
    text = f"{value} {what} over {spec.stable_s} s, {each}: {one.desired_stable}"
    if one.desired_panic > one.desired_stable:
        text += f"; {one.panic:.4g} over {spec.panic_s} s: {one.desired_panic}"
    return text


def _dropped(name: str, spec: Autoscale) -> str:
    if name == "load":
        return "load: how much a replica does is not known yet, so requests at once decide"
    if name == "tokens":
        return "tokens: no benchmark says how many a replica does, or engines report none"
    return f"{name}: replicas have reported none for {spec.stable_s} s, so it does not count"


def _cold(spec: Autoscale, decision: Decision) -> str:
    if decision.want + decision.cold == spec.max_workers:
        return f"max_workers={spec.max_workers} in all"
    if decision.want + decision.cold == spec.cold_workers:
        return f"cold_workers={spec.cold_workers}"
    if spec.cold_mult * max(0, decision.want) > decision.want:
        return f"cold_mult={spec.cold_mult:g} times the hot ones in all"
    return f"min_cold_load={spec.min_cold_load:g}"


def _bounded(spec: Autoscale, state: ScaleState, decision: Decision, now: float) -> str:
    want = decision.want
    say: Mapping[str, Callable[[], str]] = {
        "min_scale": lambda: f"at least {want}: min_scale",
        "initial_scale": lambda: f"at least {want} until so many were ready once: initial_scale",
        "max_scale": lambda: f"at most {want}: max_scale",
        "max_workers": lambda: f"at most {want}: max_workers",
        "min_load": lambda: f"at least {want}: min_load={spec.min_load:g}",
        "waiting": lambda: "at least 1: somebody waits or is served",
        "enable_scale_to_zero": lambda: "at least 1: enable_scale_to_zero is off",
        "starting": lambda: "a replica is starting, and a start is not given up half-way",
        "progress_deadline": lambda: f"0: no replica was ready within {spec.progress_deadline_s:g} s",
        "stable_window": lambda: f"1 for {spec.stable_s} s after it became active",
        "deactivated": lambda: "it is taken out of service first, and ends after grace and retention",
        "idle": lambda: f"1 until it was idle for long enough{_at(decision, now)}",
        "inactivity_timeout": lambda: f"0: idle for inactivity_timeout={spec.inactivity_timeout_s:g} s",
        "retention": lambda: f"the last one is kept for {spec.retention_s:g} s: retention",
        "grace": lambda: f"the last one is kept for {spec.grace_s:g} s: grace period",
        "probe": lambda: "no probe has found the gateway in front yet",
        "unlinked": lambda: f"kept at {want}: no gateway is linked, so silence means nothing",
        "restarted": lambda: f"kept at {want}: what was seen during a restart of the control process is not here yet",
    }
    return say[decision.bounded]()


def _at(decision: Decision, now: float) -> str:
    return f", in {max(0.0, decision.zero_at - now):.0f} s" if decision.zero_at is not None else ""
