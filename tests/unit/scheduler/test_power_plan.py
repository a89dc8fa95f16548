"""Sharing the watts of a circuit: the arithmetic of an envelope, curves, splits, and the order of steps."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nanopod.scheduler.power.decide import committed_w, fits, holds, may_raise, plan
from nanopod.scheduler.power.values import Curve, Demand, Device, Envelope, PowerState, Step

CIRCUIT = Envelope(1440.0, cpu_cap_w=350.0, fixed_w=157.0)
DECODE = Curve(((100, 12.1), (150, 62.6), (200, 68.3), (250, 70.7), (350, 72.6)))
PREFILL = Curve(((150, 2549), (200, 5941), (250, 8436), (350, 9893)))
CURVES = {"prefill": PREFILL, "decode": DECODE}
NOW = 1_800_000_000.0


def card(name: str, enforced: float | None = 150.0, **more: object) -> Device:
    device = Device(name, 100.0, 350.0, enforced, 90.0, NOW, CURVES)  # type: ignore[arg-type]
    return replace(device, **more)  # type: ignore[arg-type]


def test_a_circuit_of_15_amperes() -> None:
    """Two cards beside 507 W: 409 to 423 W each without a reserve, less with it."""
    bare = replace(CIRCUIT, reserve_w=0.0)
    assert bare.devices_w / 2 == pytest.approx(408.9, abs=0.1)
    assert replace(bare, psu_efficiency=0.94).devices_w / 2 == pytest.approx(423.3, abs=0.1)
    assert bare.wall_w(2 * 450) == pytest.approx(1529, abs=1)
    assert bare.wall_w(2 * 575) == pytest.approx(1801, abs=1)
    assert bare.wall_w(2 * 400) == pytest.approx(1421, abs=1)
    assert not fits(CIRCUIT, [400, 400])
    assert fits(replace(CIRCUIT, cpu_cap_w=340.0), [400, 400])
    assert fits(replace(CIRCUIT, psu_efficiency=0.94), [400, 400])


def test_a_curve_is_read_as_its_concave_hull() -> None:
    assert DECODE.rate(150) == 62.6
    assert DECODE.rate(350) == DECODE.rate(500) == DECODE.most == 72.6
    assert DECODE.rate(100) == pytest.approx(62.6 * 100 / 150), "the cliff lies below the line from nothing to 150 W"
    assert DECODE.rate(225) == pytest.approx((68.3 + 70.7) / 2)
    gains = [DECODE.rate(w + 10) - DECODE.rate(w) for w in range(0, 400, 10)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(gains))
    assert Curve(()).rate(100) == 0.0


def test_watts_go_where_prompts_wait() -> None:
    tight = replace(CIRCUIT, watts=1000.0)
    demand = {"a": Demand(prefill_tokens=50_000), "b": Demand(decode_sequences=4)}
    state, made = plan(tight, [card("a"), card("b", 200.0)], demand, NOW, PowerState())
    assert made.phase == "shared"
    # Four sequences gain more by the first 50 W above the floor than the prompts do, and next to nothing after that.
    assert made.caps == {"a": 230.0, "b": 150.0}
    assert sum(made.caps.values()) <= tight.devices_w
    assert [step.kind for step in made.steps] == ["lower", "raise"]
    assert made.admits
    assert state.caps == made.caps


def test_nothing_known_means_equal_shares() -> None:
    for blind in (card("b", None), card("b", read_at=NOW - 3.5), card("b", read_at=None), card("b", curves={})):
        _, made = plan(replace(CIRCUIT, watts=1100.0), [card("a"), blind], {}, NOW, PowerState())
        assert made.phase == "equal"
        assert made.caps["a"] == pytest.approx(made.caps["b"])
        assert "equal shares: " in made.reasons[0]
    _, made = plan(CIRCUIT, [card("a", read_at=NOW - 3.0), card("b")], {}, NOW, PowerState())
    assert made.phase == "shared", "three seconds are not yet stale"


def test_equal_shares_keep_limits_and_use_everything() -> None:
    small = card("s", 100.0, floor_w=50.0, max_w=120.0, curves={})
    high = card("h", 300.0, floor_w=290.0, curves={})
    envelope = replace(CIRCUIT, watts=1270.0)
    _, made = plan(envelope, [small, high, card("m", curves={})], {}, NOW, PowerState())
    assert made.caps["s"] == 120.0
    assert made.caps["h"] == 290.0 or made.caps["h"] == pytest.approx(made.caps["m"])
    assert sum(made.caps.values()) == pytest.approx(min(envelope.devices_w, 120 + 350 + 350))


def test_an_unknown_cap_counts_as_none_and_stops_admission() -> None:
    devices = [card("a", None), card("b", None), card("c", None)]
    assert committed_w(devices) == 3 * 350.0
    _, made = plan(CIRCUIT, devices, {}, NOW, PowerState())
    assert not made.admits
    assert {step.kind for step in made.steps} == {"lower"}
    assert "nothing is admitted" in made.reasons[-1]


def test_floors_that_do_not_fit_shed_the_idlest() -> None:
    big = [card(name, 400.0, floor_w=400.0, max_w=575.0) for name in "ab"]
    busy = {"a": Demand(decode_sequences=8), "b": Demand(decode_sequences=1)}
    _, made = plan(CIRCUIT, big, busy, NOW, PowerState())
    assert (made.phase, made.shed) == ("shed", ("b", "a")), "one that cannot be locked still holds its floor"
    assert "power: b is taken out of work" in made.reasons[0]
    lockable = [replace(device, locked_w=120.0) for device in big]
    _, made = plan(CIRCUIT, lockable, busy, NOW, PowerState())
    assert (made.phase, made.shed) == ("shed", ("b",))
    assert made.steps[0] == Step("lock", "b")
    assert 400.0 <= made.caps["a"] <= 575.0


def test_small_and_hasty_changes_are_not_made() -> None:
    devices = [card("a"), card("b")]
    envelope = replace(CIRCUIT, watts=1000.0)
    heavy, light = {"a": Demand(50_000), "b": Demand(0, 4)}, {"b": Demand(50_000), "a": Demand(0, 4)}
    state, first = plan(envelope, devices, heavy, NOW, PowerState())
    fresh = [replace(device, read_at=NOW + 4) for device in devices]
    state, soon = plan(envelope, fresh, light, NOW + 4, state)
    assert soon.caps == first.caps
    assert "kept: " in soon.reasons[-1]
    fresh = [replace(device, read_at=NOW + 6) for device in devices]
    state, later = plan(envelope, fresh, light, NOW + 6, state)
    assert later.caps == {"a": first.caps["b"], "b": first.caps["a"]}
    # An envelope that shrinks is obeyed at once.
    smaller = replace(envelope, watts=900.0)
    _, at_once = plan(smaller, [replace(one, read_at=NOW + 7) for one in devices], light, NOW + 7, state)
    assert sum(at_once.caps.values()) <= smaller.devices_w


def test_a_raise_is_checked_by_what_was_read_back() -> None:
    envelope = replace(CIRCUIT, watts=1000.0)
    devices = [card("a", 200.0), card("b", 150.0)]
    assert holds(envelope, devices)
    room = envelope.devices_w - 150.0
    assert may_raise(envelope, devices, Step("raise", "a", room))
    assert not may_raise(envelope, devices, Step("raise", "a", room + 1))
    pending = [card("a", 200.0), card("b", 150.0, asked_w=300.0)]
    assert not may_raise(envelope, pending, Step("raise", "a", 201.0)), "b's raise may come into force at any time"
    assert not may_raise(envelope, devices, Step("raise", "nobody", 1.0))
    locked = [card("a", 350.0, is_locked=True, locked_w=80.0), card("b", 150.0)]
    assert not may_raise(envelope, locked, Step("unlock", "a"))
