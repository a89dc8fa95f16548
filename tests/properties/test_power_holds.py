"""A circuit with simulated accelerators: whatever they do, what we raise never carries it above its limit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from nanopod.scheduler.power.decide import may_raise, plan
from nanopod.scheduler.power.values import Curve, Demand, Device, Envelope, PowerState

CURVES = {
    "prefill": Curve(((150, 2549), (200, 5941), (250, 8436), (350, 9893))),
    "decode": Curve(((100, 12.1), (150, 62.6), (200, 68.3), (250, 70.7), (350, 72.6))),
}


@dataclass
class Card:
    """An accelerator that obeys late, or not at all, and forgets its cap when its driver is loaded anew."""

    name: str
    floor_w: float
    max_w: float
    rng: random.Random
    trouble: float
    cap_w: float = 0.0
    coming: list[tuple[int, float]] = field(default_factory=list)
    asked_w: float | None = None
    is_locked: bool = False
    reloaded_at: int = -10

    def __post_init__(self) -> None:
        self.cap_w = self.max_w

    def tick(self, at: int) -> None:
        """A second goes by."""
        for due, watts in [one for one in self.coming if one[0] <= at]:
            self.cap_w = watts
            self.coming.remove((due, watts))
        if self.rng.random() < self.trouble / 20:
            self.cap_w, self.is_locked, self.asked_w, self.reloaded_at = self.max_w, False, None, at
            self.coming.clear()

    def set_cap(self, at: int, watts: float) -> None:
        """Ask for a cap: at once, late, or in vain."""
        assert watts >= self.floor_w - 1e-6, "no cap below the floor is ever asked for"
        assert watts <= self.max_w + 1e-6
        self.asked_w = watts
        self.coming.clear()
        drawn = self.rng.random()
        if drawn >= self.trouble:
            self.cap_w = watts
        elif drawn < self.trouble / 2:
            self.coming.append((at + self.rng.randint(1, 3), watts))

    def read(self, at: int) -> Device:
        """Its telemetry, which may be missing or old."""
        if self.asked_w is not None and not self.coming and abs(self.cap_w - self.asked_w) < 1e-6:
            self.asked_w = None
        drawn = self.rng.random()
        known = drawn >= self.trouble / 4
        read_at = at - (self.rng.randint(0, 6) if drawn < self.trouble / 2 else 0)
        return Device(
            self.name, self.floor_w, self.max_w, self.cap_w if known else None, None, float(read_at), CURVES,
            locked_w=60.0, is_locked=self.is_locked and known, asked_w=self.asked_w,
        )  # fmt: skip

    @property
    def may_take_w(self) -> float:
        """What it may take physically."""
        return 60.0 if self.is_locked else self.cap_w


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 6),
    watts=st.sampled_from([900.0, 1200.0, 1440.0, 1800.0]),
    trouble=st.sampled_from([0.0, 0.1, 0.4]),
)
@settings(max_examples=60, deadline=None)
def test_what_we_raise_never_breaks_the_envelope(seed: int, count: int, watts: float, trouble: float) -> None:
    rng = random.Random(seed)
    envelope = Envelope(watts, cpu_cap_w=rng.uniform(100, 350), fixed_w=100.0)
    cards = [
        Card(f"gpu{number}", rng.choice([50.0, 100.0, 200.0, 400.0]), 450.0, rng, trouble) for number in range(count)
    ]
    state = PowerState()

    def wall() -> float:
        return envelope.wall_w(sum(card.may_take_w for card in cards))

    for at in range(120):
        for card in cards:
            card.tick(at)
        if rng.random() < 0.02:
            state = PowerState()  # the manager was started anew
        if rng.random() < 0.02:
            envelope = replace(envelope, watts=rng.choice([900.0, 1200.0, 1440.0, 1800.0]))
        demand = {
            card.name: Demand(rng.choice([0, 1e3, 1e5]), rng.choice([0, 1, 16])) for card in cards if rng.random() < 0.9
        }
        state, made = plan(envelope, [card.read(at) for card in cards], demand, float(at), state)
        assert made.reasons
        floors = {card.name: card.floor_w for card in cards}
        assert all(made.caps[name] >= floors[name] - 1e-6 for name in made.caps)
        assert set(made.caps) | set(made.shed) == set(floors)
        assert not set(made.caps) & set(made.shed)
        refused = False
        for step in made.steps:
            card = next(one for one in cards if one.name == step.device_id)
            if step.kind == "lock":
                card.is_locked = rng.random() >= trouble
                refused = refused or not card.is_locked
            elif step.kind == "lower":
                before = wall()
                card.set_cap(at, step.watts)
                refused = refused or abs(card.cap_w - step.watts) > 1e-6
                assert wall() <= before + 1e-6
            else:
                now = [one.read(at) for one in cards]
                if refused or not may_raise(envelope, now, step):
                    continue
                if step.kind == "raise":
                    card.set_cap(at, step.watts)
                else:
                    card.is_locked = False
                # What may still come into force counts as well.
                latest = sum(60.0 if one.is_locked else max(one.cap_w, one.asked_w or 0.0) for one in cards)
                assert envelope.wall_w(latest) <= envelope.watts + 1e-3, (at, step)
        if trouble == 0.0 and made.caps and all(card.reloaded_at < 0 for card in cards):
            assert wall() <= envelope.watts + 1e-3 or not made.admits


@given(
    tokens=st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 64)), min_size=1, max_size=6),
    watts=st.floats(700, 2500),
)
@settings(max_examples=150, deadline=None)
def test_sharing_never_does_less_than_equal_parts(tokens: list[tuple[float, int]], watts: float) -> None:
    envelope = Envelope(watts, cpu_cap_w=150.0, fixed_w=50.0)
    devices = [Device(f"d{n}", 100.0, 350.0, 100.0, 90.0, 0.0, CURVES) for n in range(len(tokens))]
    demand = {device.device_id: Demand(*one) for device, one in zip(devices, tokens, strict=True)}
    _, made = plan(envelope, devices, demand, 0.0, PowerState())
    blind = [replace(device, read_at=None) for device in devices]
    _, equal = plan(envelope, blind, demand, 0.0, PowerState())
    assert made.shed == equal.shed

    def done(caps: dict[str, float]) -> float:
        total = 0.0
        for device in devices:
            if device.device_id in caps:
                own, cap = demand[device.device_id], caps[device.device_id]
                total += own.prefill_tokens / 9893 * CURVES["prefill"].rate(cap) / 9893
                total += own.decode_sequences * CURVES["decode"].rate(cap) / 72.6
        return total

    assert done(dict(made.caps)) >= done(dict(equal.caps)) * (1 - 1e-9) - 1e-9
    assert sum(made.caps.values()) <= max(envelope.devices_w, sum(100.0 for _ in made.caps)) + 1e-6
