"""Going on after a restart."""

from __future__ import annotations

import msgspec
import pytest

from nanopod.scheduler.autoscale import restart
from nanopod.scheduler.autoscale.engine import step
from nanopod.scheduler.autoscale.settings import PROFILES
from nanopod.scheduler.autoscale.values import VERSION, Autoscale, Observed, ScaleState, Second

T = 1_800_000_000


def changed(spec: Autoscale, **values: object) -> Autoscale:
    return msgspec.structs.replace(spec, **values)


AUTO = changed(PROFILES["auto"], container_concurrency=1, concurrency_total=1.0, delay_s=0)


def busy(until: int = 120) -> ScaleState:
    """Six requests at once up to `until`, on six replicas."""
    state = ScaleState()
    for at in range(0, until, 2):
        seconds = (Second(T + at, 6.0, 6.0), Second(T + at + 1, 6.0, 6.0))
        step(AUTO, state, Observed(seconds=seconds, ready=6, current=6), float(T + at + 2))
    return state


def test_json_keeps_every_bit() -> None:
    state = busy()
    state.windows["concurrency"].stable.total = 0.1 + 0.2
    again = restart.load(restart.dump(state))
    assert again == state
    assert again.windows["concurrency"].stable.total == 0.30000000000000004


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="version"):
        restart.load(restart.dump(ScaleState(version=VERSION + 1)))
    with pytest.raises(msgspec.DecodeError):
        restart.load("{")


def test_what_is_missing_because_we_were_away_is_no_zero() -> None:
    state = restart.restore(AUTO, busy(), 6, T + 300.0)
    away = Observed(ready=6, current=6, caught_up=False)
    for at in range(300, 312):
        kept = step(AUTO, state, away, T + at)
        assert (kept.want, kept.held, kept.bounded, kept.patch) == (6, True, "restarted", False)
        assert kept.next_at is not None and T + at < kept.next_at <= T + 312
    free = step(AUTO, state, away, T + 312.0)
    assert free.want < 6 and state.held_at is None, "a whole panic window of fresh seconds is there"


def test_while_seconds_are_missing_it_may_grow() -> None:
    state = restart.restore(AUTO, busy(), 6, T + 130.0)
    more = Observed(seconds=(Second(T + 130, 200.0, 200.0),), ready=6, current=6, caught_up=False)
    grown = step(AUTO, state, more, T + 131.0)
    assert grown.want > 6 and grown.patch
    again = step(AUTO, state, Observed(ready=6, current=grown.want, caught_up=False), T + 132.0)
    assert again.want >= grown.want


def test_while_no_gateway_is_linked_the_window_does_not_begin() -> None:
    state = restart.restore(AUTO, busy(), 6, T + 130.0)
    for at in (140.0, 150.0, 400.0):
        assert step(AUTO, state, Observed(ready=6, current=6, caught_up=False, linked=False), T + at).want == 6
    assert state.held_at is not None


def test_ticks_that_were_missed_are_made_up_for() -> None:
    spec = changed(AUTO, delay_s=40)
    whole, stored = ScaleState(), ""
    for at in range(0, 200, 2):
        value = 9.0 if 120 <= at < 130 else 2.0
        seconds = (Second(T + at, value, value), Second(T + at + 1, value, value))
        expected = step(spec, whole, Observed(seconds=seconds, ready=3, current=3), float(T + at + 2))
        if at == 100:
            stored = restart.dump(whole)
        if at >= 140:
            break
    state = restart.restore(spec, restart.load(stored), 3, T + 142.0)
    resent = tuple(Second(T + at, *[9.0 if 120 <= at < 130 else 2.0] * 2) for at in range(102, 142))
    trial = step(spec, state, Observed(seconds=resent[:10], ready=3, current=3, caught_up=False), T + 141.0)
    assert trial.held
    found = step(spec, state, Observed(seconds=resent[10:], ready=3, current=3), T + 142.0)
    assert found == expected
    assert restart.dump(state) == restart.dump(whole), "delay, panic and windows of a process that was never away"


def test_long_absences_cost_no_more_than_what_gateways_keep() -> None:
    state = restart.restore(AUTO, busy(), 6, T + 10_000_000.0)
    found = step(AUTO, state, Observed(ready=6, current=6), T + 10_000_000.0)
    assert found.want == 3, "half of those that are ready, at most"
    assert state.evaluated_at == T + 10_000_000.0


def test_knatives_own_start_ignores_what_was_stored() -> None:
    spec = changed(PROFILES["coreweave"], start="knative")
    state = restart.restore(spec, busy(), 6, T + 300.0)
    assert (state.panic_since, state.max_panic, state.desired, state.windows) == (T + 300.0, 6, -1, {})
    assert state.attained
    assert step(spec, state, Observed(seconds=(Second(T + 300, 0.0),), ready=6, current=6), T + 301.0).desired == 6
    assert restart.restore(AUTO, ScaleState(), 0, T).held_at is None, "nothing was stored: it begins"
