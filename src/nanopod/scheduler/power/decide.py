"""Which accelerator gets how many watts of a circuit.

The invariant, at every instant and whatever fails: what all devices may take by the caps that were read back, and what
else is on the circuit, keeps within the envelope. So caps are lowered first and raised one at a time, each time only if
the read-back values leave room for it (`may_raise`). Safety never depends on being fast.

Caps are nearly free while an engine writes tokens and dear while it reads prompts, so watts go where the queue needs
them: all devices at their floor, the rest in steps to the device that gains most by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from nanopod.scheduler.power.values import (
    WORKS,
    Demand,
    Device,
    Envelope,
    Phase,
    PowerPlan,
    PowerState,
    Step,
    Work,
)

STEP_W: Final = 10.0
STALE_S: Final = 3.0
"""Telemetry that is older means nothing any more."""
HYSTERESIS_W: Final = 20.0
HYSTERESIS_S: Final = 5.0
SLACK_W: Final = 1e-6
"""Sums of floats are not exact."""


def committed_w(devices: Sequence[Device]) -> float:
    """What the devices may take together now."""
    return sum(device.committed_w for device in devices)


def holds(envelope: Envelope, devices: Sequence[Device]) -> bool:
    """Whether the invariant holds by what was read back."""
    return envelope.wall_w(committed_w(devices)) <= envelope.watts + SLACK_W


def may_raise(envelope: Envelope, devices: Sequence[Device], step: Step) -> bool:
    """Whether a `raise` or `unlock` keeps the invariant, by the read-back values of this moment."""
    others = sum(device.committed_w for device in devices if device.device_id != step.device_id)
    own = next((device for device in devices if device.device_id == step.device_id), None)
    if own is None:
        return False
    unlocked = own.max_w if own.enforced_w is None else max(own.enforced_w, own.asked_w or 0.0)
    wanted = max(own.committed_w, step.watts) if step.kind == "raise" else unlocked
    return envelope.wall_w(others + wanted) <= envelope.watts + SLACK_W


def plan(
    envelope: Envelope, devices: Sequence[Device], demand: Mapping[str, Demand], now: float, state: PowerState
) -> tuple[PowerState, PowerPlan]:
    """One look at a circuit. The same inputs give the same plan."""
    devices = sorted(devices, key=lambda device: device.device_id)
    working, shed, reasons = _working(envelope, devices, demand)
    budget = envelope.devices_w - sum(_shed_w(device) for device in devices if device.device_id in shed)
    phase: Phase
    blind = _blind(working, now)
    if blind:
        phase, caps = "equal", _equal(working, budget)
        reasons.append(f"equal shares: {blind}")
    else:
        phase, caps = "shared", _shared(working, demand, budget)
        equal = _equal(working, budget)
        if _throughput(working, demand, caps) < _throughput(working, demand, equal) - SLACK_W:
            caps = equal
            reasons.append("equal shares: no other split does more")
        else:
            reasons.append("by queue and gain per watt")
    if shed:
        phase = "shed"
    state, caps, held = _with_hysteresis(state, phase, caps, budget, now)
    if held:
        reasons.append(held)
    steps = _steps(devices, caps, shed)
    good = holds(envelope, devices)
    if not good:
        over = envelope.wall_w(committed_w(devices)) - envelope.watts
        reasons.append(f"nothing is admitted: what is enforced is {over:.0f} W above the envelope")
    return state, PowerPlan(phase, caps, tuple(steps), tuple(shed), good, tuple(reasons))


def fits(envelope: Envelope, floors_w: Sequence[float]) -> bool:
    """Whether devices with these floors can all work on a circuit."""
    return sum(floors_w) <= envelope.devices_w + SLACK_W


def _shed_w(device: Device) -> float:
    """What a device takes that is out of work: as little as its clocks, or its floor, allow."""
    return device.locked_w if device.locked_w is not None else device.floor_w


def _working(
    envelope: Envelope, devices: Sequence[Device], demand: Mapping[str, Demand]
) -> tuple[list[Device], list[str], list[str]]:
    """(devices that work, ids of those that are shed, why): those with the least to do go until the floors fit."""
    working = list(devices)
    shed: list[str] = []
    reasons: list[str] = []
    while working:
        out = sum(_shed_w(device) for device in devices if device.device_id in shed)
        floors = sum(device.floor_w for device in working)
        if floors + out <= envelope.devices_w + SLACK_W:
            break
        idlest = min(working, key=lambda device: (_weight(demand, device), -device.floor_w, device.device_id))
        working.remove(idlest)
        shed.append(idlest.device_id)
        reasons.append(
            f"power: {idlest.device_id} is taken out of work: the floors need {floors + out:.0f} W, "
            f"{max(0.0, envelope.devices_w):.0f} W are there"
        )
    return working, shed, reasons


def _weight(demand: Mapping[str, Demand], device: Device) -> float:
    own = demand.get(device.device_id, Demand())
    return _weights(own, device)["prefill"] + _weights(own, device)["decode"]


def _weights(own: Demand, device: Device) -> dict[Work, float]:
    """What each kind of work counts: prompts by the seconds that they take without a cap, sequences one by one."""
    curve = device.curves.get("prefill")
    fastest = curve.most if curve is not None and curve.most > 0 else 1000.0
    return {"prefill": own.prefill_tokens / fastest, "decode": own.decode_sequences}


def _blind(devices: Sequence[Device], now: float) -> str:
    """What is not known that sharing needs; "" for nothing."""
    for device in devices:
        if device.enforced_w is None:
            return f"the cap of {device.device_id} was not read"
        if device.read_at is None or now - device.read_at > STALE_S:
            return f"{device.device_id} said nothing for more than {STALE_S:g} s"
        if any(work not in device.curves for work in WORKS):
            return f"how {device.device_id} slows down under a cap is not known"
    return ""


def _equal(devices: Sequence[Device], budget: float) -> dict[str, float]:
    """The same for all, within each one's limits; what one cannot take, others do."""
    caps = {device.device_id: device.floor_w for device in devices}
    left = budget - sum(caps.values())
    open_ = [device for device in devices if device.max_w > device.floor_w]
    level_first = sorted(open_, key=lambda device: device.floor_w)
    # Raise the lowest together until the next one's floor, a limit, or the end of what is there.
    while left > SLACK_W and level_first:
        lowest = min(caps[device.device_id] for device in level_first)
        group = [device for device in level_first if caps[device.device_id] <= lowest + SLACK_W]
        above = [caps[device.device_id] for device in level_first if caps[device.device_id] > lowest + SLACK_W]
        limits = [device.max_w for device in group]
        level = min([lowest + left / len(group), *above, *limits])
        for device in group:
            caps[device.device_id] = level
        left -= (level - lowest) * len(group)
        level_first = [device for device in level_first if caps[device.device_id] < device.max_w - SLACK_W]
        if level <= lowest + SLACK_W and not above:
            break
    return caps


def _shared(devices: Sequence[Device], demand: Mapping[str, Demand], budget: float) -> dict[str, float]:
    """Floors first, then steps to whoever gains most per watt; the curves are concave, so that is the best split."""
    caps = {device.device_id: device.floor_w for device in devices}
    left = budget - sum(caps.values())
    by_id = {device.device_id: device for device in devices}
    gains = {key: _gain(device, demand, caps[key]) for key, device in by_id.items()}
    while left >= STEP_W and gains:
        key = max(sorted(gains), key=lambda one: gains[one])
        if gains[key] <= 0.0:
            break
        caps[key] += STEP_W
        left -= STEP_W
        if caps[key] + STEP_W > by_id[key].max_w + SLACK_W:
            del gains[key]
        else:
            gains[key] = _gain(by_id[key], demand, caps[key])
    return caps


def _gain(device: Device, demand: Mapping[str, Demand], watts: float) -> float:
    return _value(device, demand, watts + STEP_W) - _value(device, demand, watts)


def _value(device: Device, demand: Mapping[str, Demand], watts: float) -> float:
    """Weighted throughput of a device at a cap, as shares of what it does without one."""
    weights = _weights(demand.get(device.device_id, Demand()), device)
    total = 0.0
    for work, weight in weights.items():
        curve = device.curves.get(work)
        if curve is not None and curve.most > 0:
            total += weight * curve.rate(watts) / curve.most
    return total


def _throughput(devices: Sequence[Device], demand: Mapping[str, Demand], caps: Mapping[str, float]) -> float:
    return sum(_value(device, demand, caps[device.device_id]) for device in devices)


def _with_hysteresis(
    state: PowerState, phase: Phase, caps: dict[str, float], budget: float, now: float
) -> tuple[PowerState, dict[str, float], str]:
    """Small or hasty changes of a split that still fits are not made."""
    before = state.caps
    if phase == "shared" == state.phase and state.changed_at is not None and set(before) == set(caps):
        moved = max((abs(caps[key] - before[key]) for key in caps), default=0.0)
        fits_still = sum(before.values()) <= budget + SLACK_W
        if fits_still and moved > 0.0 and (moved < HYSTERESIS_W or now - state.changed_at < HYSTERESIS_S):
            return state, dict(before), f"kept: a change is worth at least {HYSTERESIS_W:g} W, every {HYSTERESIS_S:g} s"
    if dict(before) == caps and state.phase == phase:
        return state, caps, ""
    return PowerState(dict(caps), now, phase), caps, ""


def _steps(devices: Sequence[Device], caps: Mapping[str, float], shed: Sequence[str]) -> list[Step]:
    """Lower and lock first, then raise and unlock, the smallest raise first."""
    down: list[Step] = []
    up: list[Step] = []
    for device in devices:
        key = device.device_id
        if key in shed:
            if device.locked_w is not None and not device.is_locked:
                down.append(Step("lock", key))
            if device.enforced_w is None or device.enforced_w > device.floor_w + SLACK_W:
                down.append(Step("lower", key, device.floor_w))
            continue
        wanted = caps[key]
        if device.enforced_w is None:
            # Whatever its cap is, the floor is not above it.
            down.append(Step("lower", key, device.floor_w))
        elif device.enforced_w > wanted + SLACK_W:
            down.append(Step("lower", key, wanted))
        elif device.enforced_w < wanted - SLACK_W:
            up.append(Step("raise", key, wanted))
        if device.is_locked:
            up.append(Step("unlock", key))
    rises = {device.device_id: device.enforced_w or 0.0 for device in devices}
    return down + sorted(up, key=lambda step: (step.watts - rises[step.device_id], step.device_id))
