"""Going on after a restart as if nothing had happened.

Gateways send again what was not acknowledged. Until they have, or until a whole panic window of fresh seconds is there,
the endpoint may grow but not shrink: seconds that are missing because this process was away are no zeros. Once they
have, the ticks that were missed are made up for one by one, so that windows, panic and delay are those of a process
that was never away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from nanopod.scheduler.autoscale.recommend import create
from nanopod.scheduler.autoscale.values import UNKNOWN, VERSION, Autoscale, Decision, Observed, ScaleState, Second

RESENT_S: Final = 600
"""Gateways keep so many seconds: ticks that are further back are not made up for."""
PENDING_MAX: Final = 10_000

Step = Callable[[Autoscale, ScaleState, Observed, float], Decision]

_decode = msgspec.json.Decoder(ScaleState).decode
_encode = msgspec.json.Encoder().encode


def dump(state: ScaleState) -> str:
    """As JSON, exact to the last bit of every number."""
    return _encode(state).decode()


def load(text: str | bytes) -> ScaleState:
    """Back from JSON. Raises `msgspec.ValidationError` for what is not a state of this version; then begin anew."""
    state = _decode(text)
    if state.version != VERSION:
        raise msgspec.ValidationError(f"version: {state.version} is not {VERSION}; begin anew")
    return state


def restore(spec: Autoscale, state: ScaleState, ready: int, now: float) -> ScaleState:
    """The stored state, to go on with. With `start: knative` it is ignored, and more than one ready is a panic."""
    if spec.start == "knative":
        fresh = ScaleState(created_at=now, request_at=now, active_since=now)
        # Conditions belong to the endpoint there, and outlive the autoscaler.
        fresh.active, fresh.active_since, fresh.active_reason = state.active, state.active_since, state.active_reason
        fresh.attained, fresh.proxied_since, fresh.proxy = state.attained, state.proxied_since, state.proxy
        fresh.want = state.want
        create(spec, fresh, ready, now, spec.rps_total if spec.metrics == ("rps",) else None)
        return fresh
    state = state.copy()
    if state.created_at is not None:
        state.held_at = now
    return state


def held(spec: Autoscale, state: ScaleState, seen: Observed, now: float, step: Step) -> Decision:
    """An evaluation after a restart: up to date again, or on trial and without a decrease."""
    assert state.held_at is not None
    state.pending.extend(seen.seconds)
    del state.pending[:-PENDING_MAX]
    if seen.linked and (seen.caught_up or now - state.held_at >= spec.panic_s):
        return _catch_up(spec, state, seen, now, step)
    trial = state.copy()
    trial.held_at = None
    decision = step(spec, trial, msgspec.structs.replace(seen, seconds=tuple(state.pending)), now)
    current = seen.current if seen.current != UNKNOWN else max(0, seen.ready) + seen.starting
    known = state.want if state.want != UNKNOWN else current
    if decision.want != UNKNOWN and decision.want < known:
        decision.want, decision.patch, decision.bounded = known, known > current, "restarted"
    decision.cold = max(decision.cold, state.cold) if decision.want == known else decision.cold
    decision.held = True
    if decision.want != UNKNOWN:
        state.want = decision.want
    decision.next_at = min(float((int(now) // spec.tick_s + 1) * spec.tick_s), state.held_at + spec.panic_s)
    if decision.next_at <= now:
        decision.next_at = now + 1.0
    return decision


def _catch_up(spec: Autoscale, state: ScaleState, seen: Observed, now: float, step: Step) -> Decision:
    """Make up for the ticks that were missed, each with the seconds that had been reported by then."""
    assert state.held_at is not None
    left: list[Second] = sorted(state.pending, key=lambda one: one.at)
    state.pending = []
    state.held_at = None
    tick = spec.tick_s
    at = (max(int(state.evaluated_at), int(now) - RESENT_S) // tick + 1) * tick
    taken = 0
    while at < now:
        begin = taken
        while taken < len(left) and left[taken].at < at:
            taken += 1
        if state.settled and begin == taken and all(recheck > at for recheck in state.rechecks):
            at += tick
            continue  # an endpoint at rest: nothing would have moved
        then = msgspec.structs.replace(
            seen,
            seconds=tuple(left[begin:taken]),
            waiting=0,
            in_service=0,
            waiting_load=0.0,
            oldest_wait_s=0.0,
            last_request_at=None,
        )
        step(spec, state, then, float(at))
        at += tick
    return step(spec, state, msgspec.structs.replace(seen, seconds=tuple(left[taken:])), now)
