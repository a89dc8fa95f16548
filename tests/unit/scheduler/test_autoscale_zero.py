"""Bounds, zero and the Active condition: Knative's, and by idle time."""

from __future__ import annotations

import msgspec
import pytest

from nanopod.scheduler.autoscale.settings import PROFILES
from nanopod.scheduler.autoscale.settle import Settled, activate, bound, front, settle, threshold
from nanopod.scheduler.autoscale.values import UNKNOWN, Active, Autoscale, Observed, ScaleState
from nanopod.scheduler.autoscale.zero import settle_idle

T = 1_800_000_000.0
KNATIVE = PROFILES["knative"]


def changed(spec: Autoscale, **values: object) -> Autoscale:
    return msgspec.structs.replace(spec, **values)


def state(active: Active, since: float = T, **values: object) -> ScaleState:
    return ScaleState(active=active, active_since=since, attained=True, **values)  # type: ignore[arg-type]


def test_an_unknown_wish_does_nothing_unless_it_is_activating() -> None:
    assert settle(KNATIVE, state("true"), UNKNOWN, 3, T) == Settled(UNKNOWN, False)
    assert settle(KNATIVE, state("false"), UNKNOWN, 3, T) == Settled(UNKNOWN, False)
    spec = changed(KNATIVE, min_scale=2)
    assert settle(spec, state("unknown"), UNKNOWN, 0, T).want == 2


def test_bounds_and_the_initial_scale() -> None:
    spec = changed(KNATIVE, min_scale=2, max_scale=5, initial_scale=8)
    assert [bound(spec, d, attained=True, reachable=True)[0] for d in (0, 2, 4, 9)] == [2, 2, 4, 5]
    assert bound(spec, 3, attained=False, reachable=True) == (8, "initial_scale")
    assert bound(spec, 9, attained=False, reachable=True) == (5, "max_scale")
    assert bound(spec, 1, attained=False, reachable=False) == (1, ""), "neither bound holds for an unreachable one"
    assert bound(changed(KNATIVE, max_scale=0), 900, attained=True, reachable=True) == (900, "")
    assert bound(PROFILES["vast"], 900, attained=True, reachable=True) == (20, "max_workers")


def test_scale_to_zero_can_be_off() -> None:
    spec = changed(KNATIVE, enable_scale_to_zero=False)
    assert settle(spec, state("false", 0.0), 0, 3, T)[:2] == (1, True)


def test_a_start_is_given_up_after_its_deadline_and_a_buffer() -> None:
    early = settle(KNATIVE, state("unknown"), 0, 1, T + 630)
    assert (early.want, early.patch) == (UNKNOWN, False)
    assert early.recheck_at is not None and early.recheck_at > T + 630
    assert settle(KNATIVE, state("unknown"), 0, 1, T + 630.001)[:2] == (0, True)


def test_an_active_one_stays_for_a_stable_window_and_is_marked_first() -> None:
    young = settle(KNATIVE, state("true"), 0, 3, T + 59)
    assert young[:3] == (1, True, T + 60)
    old = settle(KNATIVE, state("true", proxy=False), 0, 3, T + 60)
    assert old[:3] == (0, False, None)
    assert settle(KNATIVE, state("true", proxy=True), 0, 3, T + 60).recheck_at == T + 63


def test_an_inactive_one_waits_for_grace_and_retention() -> None:
    spec = changed(KNATIVE, retention_s=100.0)
    assert settle(spec, state("false"), 0, 1, T + 99)[:3] == (0, False, T + 100)
    assert settle(spec, state("false"), 0, 1, T + 100)[:2] == (0, True)
    assert settle(spec, state("false"), 0, 1, T + 31, reachable=False)[:2] == (0, True), "no retention if unreachable"
    grace = settle(KNATIVE, state("false", proxied_since=T - 10), 0, 1, T + 5)
    assert grace[:3] == (0, False, T + 20)
    assert settle(KNATIVE, state("false", proxied_since=T - 30), 0, 1, T + 5)[:2] == (0, True), "proxied long enough"
    short = changed(KNATIVE, retention_s=10.0)
    assert settle(short, state("false"), 0, 1, T + 12)[:3] == (0, False, T + 42)


def test_a_probe_that_fails_is_tried_in_the_background_unless_the_gateway_always_stays() -> None:
    failed = settle(KNATIVE, state("false", 0.0), 0, 1, T, probed=False)
    assert (failed.want, failed.patch, failed.start_probe) == (0, False, True)
    always = changed(KNATIVE, burst=-1.0)
    assert settle(always, state("false", 0.0), 0, 1, T, probed=False)[:2] == (0, True)


def test_a_patch_only_where_the_count_differs() -> None:
    assert not settle(KNATIVE, state("true"), 3, 3, T).patch
    assert settle(KNATIVE, state("true"), 3, 2, T).patch
    assert not settle(KNATIVE, state("false", 0.0), 0, 0, T).patch


@pytest.mark.parametrize(
    ("want", "ready", "before", "after", "reason"),
    [
        (0, 5, "true", "false", "NoTraffic"),
        (0, 0, "unknown", "false", "TimedOut"),
        (2, 0, "false", "unknown", "Queued"),
        (2, 1, "true", "unknown", "Queued"),
        (2, 2, "unknown", "true", ""),
        (2, 2, "false", "true", ""),
        (UNKNOWN, 1, "false", "false", "NoTraffic"),
        (UNKNOWN, 1, "unknown", "unknown", "Queued"),
        (UNKNOWN, 1, "true", "unknown", "Queued"),
        (UNKNOWN, 2, "false", "false", "x"),
        (UNKNOWN, 2, "unknown", "true", ""),
        (UNKNOWN, 2, "true", "true", ""),
    ],
)
def test_the_active_condition(want: int, ready: int, before: Active, after: Active, reason: str) -> None:
    spec = changed(KNATIVE, min_scale=2)
    one = state(before, 5.0, active_reason="x")
    activate(spec, one, want, ready, T)
    assert (one.active, one.active_reason) == (after, reason)
    assert one.active_since == (5.0 if (after, reason) == (before, "x") else T)


def test_the_initial_scale_is_attained_once_and_zero_is_inactive() -> None:
    spec = changed(KNATIVE, initial_scale=3)
    one = ScaleState(active_since=T)
    activate(spec, one, 3, 2, T + 1)
    assert (one.attained, one.active) == (False, "unknown")
    activate(spec, one, 3, 3, T + 2)
    assert (one.attained, one.active, threshold(spec, True)) == (True, "true", 1)
    asleep = ScaleState(active_since=T)
    activate(changed(KNATIVE, initial_scale=0), asleep, UNKNOWN, 0, T)
    assert (asleep.active, asleep.active_reason, asleep.attained) == ("false", "NoTraffic", True)


def test_the_gateway_leaves_the_path_with_excess_capacity_alone() -> None:
    one = ScaleState(ebc=3)
    assert front(one, 2, T) is False
    assert front(one, 0, T + 1) is True and one.proxied_since == T + 1
    assert front(one, UNKNOWN, T + 2) is True and one.proxied_since == T + 1
    one.ebc = -1
    assert front(one, 2, T + 3) is True


AUTO = changed(PROFILES["auto"], stable_s=60)


def idle(one: ScaleState, seen: Observed, now: float, after_s: float = 100.0, **spec: object) -> Settled:
    return settle_idle(changed(AUTO, **spec), one, 0, 0, seen, now, after_s)


def test_zero_needs_the_idle_time() -> None:
    one = state("true", T - 500, request_at=T)
    seen = Observed(ready=1, current=1)
    assert idle(one, seen, T + 99.9)[:3] == (1, False, T + 100)
    assert idle(one, seen, T + 100)[:2] == (0, True)
    assert idle(one, Observed(current=0), T + 10).want == 0, "nothing is made just to be idle"
    assert idle(one, seen, T + 10_000, after_s=float("inf"))[:3] == (1, False, None), "never"
    assert idle(one, Observed(ready=1, current=1, reachable=False), T + 1)[:2] == (0, True)


def test_zero_spares_who_waits_who_is_young_and_who_starts() -> None:
    one = state("true", T - 5, request_at=T - 900)
    seen = Observed(ready=1, current=1)
    assert idle(one, seen, T)[:3] == (1, False, T + 55)
    assert idle(one, seen, T, zero_cuts_windows=True)[:3] == (1, False, T + 95), "its timeout, from becoming active on"
    assert idle(one, seen, T + 95, zero_cuts_windows=True).want == 0
    assert idle(one, Observed(current=0, waiting=1), T).want == 1
    assert idle(one, Observed(ready=1, current=1, in_service=1), T + 900).want == 1
    ready = state("unknown", T - 900, request_at=T - 900)
    assert idle(ready, seen, T)[:2] == (1, False), "ready at this moment"
    starting = Observed(starting=1, current=1)
    begun = state("unknown", T, request_at=T)
    assert idle(begun, starting, T + 630).want == UNKNOWN
    assert idle(begun, starting, T + 631)[:2] == (0, True)
    assert idle(begun, Observed(current=1), T + 1)[:2] == (0, True), "nothing was begun and nobody waits any more"


def test_what_must_be_there_is_there() -> None:
    one = state("true", T - 500, request_at=T - 900)
    seen = Observed(ready=1, current=1)
    assert settle_idle(AUTO, one, 0, 3, seen, T, 100.0)[:2] == (3, True)
    assert settle_idle(changed(AUTO, max_workers=2), one, 0, 3, seen, T, 100.0).want == 2
    assert idle(one, seen, T, min_scale=2).want == 2
    assert idle(one, seen, T, enable_scale_to_zero=False).want == 1
