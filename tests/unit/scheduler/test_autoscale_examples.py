"""Worked examples of whole runs, and what follows from Knative's rules in practice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest

from nanopod.scheduler.autoscale.engine import decide, next_tick, overdue, poked, step
from nanopod.scheduler.autoscale.reasons import explain
from nanopod.scheduler.autoscale.settings import PROFILES
from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, Decision, Observed, ScaleState, Second

T = 1_800_000_000
"""A multiple of 60."""


def changed(spec: Autoscale, **values: object) -> Autoscale:
    return msgspec.structs.replace(spec, **values)


COREWEAVE = changed(PROFILES["coreweave"], container_concurrency=1, concurrency_total=1.0)
AUTO = changed(PROFILES["auto"], container_concurrency=1, concurrency_total=1.0)


def run(
    spec: Autoscale,
    load: Callable[[int], float | None],
    until: int,
    ready: Callable[[int], int] | None = None,
    state: ScaleState | None = None,
) -> dict[int, Decision]:
    """One stat a second, one evaluation a tick; replicas are those that were asked for, or `ready`."""
    state = state if state is not None else ScaleState()
    found: dict[int, Decision] = {}
    last, count = -1, 1
    for at in range(0, until + 1, spec.tick_s):
        values = [(second, load(second)) for second in range(last + 1, at + 1)]
        seconds = tuple(Second(T + second, value, value) for second, value in values if value is not None)
        last = at
        count = ready(at) if ready is not None else count
        found[at] = step(spec, state, Observed(seconds=seconds, ready=count, current=count), T + at)
        if found[at].patch:
            count = found[at].want
    return found


def test_a_step_of_load() -> None:
    state = ScaleState()
    panics = {}

    def ready(at: int) -> int:
        panics[at - 15] = state.panic_since
        return 2 if at < 105 else 9 if at < 120 else 12

    found = run(COREWEAVE, lambda at: 1.0 if at < 60 else 10.0, 300, ready, state)
    assert [found[at].desired for at in (0, 15, 30, 45, 60)] == [2] * 5
    assert found[75].desired == 9
    assert {found[at].desired for at in range(90, 301, 15)} == {12}
    assert all(panics[at] is not None for at in range(75, 271, 15))
    assert panics[285] is None


@pytest.mark.parametrize(("retention_s", "zero"), [(1800.0, 2100), (600.0, 900)])
def test_from_the_last_request_to_zero(retention_s: float, zero: int) -> None:
    spec = changed(COREWEAVE, retention_s=retention_s)
    found = run(spec, lambda at: 1.0 if at <= 60 else 0.0, 2400, lambda at: 1)
    assert min(at for at, one in found.items() if one.desired == 0) == 300
    assert min(at for at, one in found.items() if one.patch and one.want == 0) == zero
    assert found[315].active == "false" and not found[315].patch


def test_one_request_in_flight_is_two_replicas() -> None:
    assert run(COREWEAVE, lambda at: 1.0, 0)[0].desired == 2
    assert run(COREWEAVE, lambda at: 0.85, 0)[0].desired == 1
    assert run(COREWEAVE, lambda at: 0.86, 0)[0].desired == 2


def test_ten_replicas_lose_about_one_a_minute() -> None:
    found = run(COREWEAVE, lambda at: 8.0 if at < 60 else 0.0, 1200)
    steps = [(at, before.want, after.want) for (_, before), (at, after) in pairwise(sorted(found.items()))]
    falls = [at for at, before, after in steps if after < before]
    assert len(falls) > 6
    assert all(after - before >= 60 for before, after in pairwise(falls))


def test_a_scale_without_stats_is_frozen_for_ever() -> None:
    found = run(COREWEAVE, lambda at: 5.0 if at < 30 else None, 3600)
    assert found[3600].desired == found[30].desired > 1
    assert not found[3600].valid


def test_the_first_second_from_zero_is_believed() -> None:
    state = ScaleState(created_at=T - 900.0, active="false", attained=True, desired=0)
    seen = Observed(seconds=(Second(T - 1, 17.0),))
    assert poked(COREWEAVE, state, 1.0)
    assert not poked(COREWEAVE, state, 0.0)
    assert step(COREWEAVE, state, seen, T).want == 20, "ceil(17 / 0.85)"
    assert not poked(COREWEAVE, state, 1.0), "it is no longer at zero"


def test_waiting_requests_inflate_concurrency() -> None:
    found = run(COREWEAVE, lambda at: min(60.0, at), 60, lambda at: 4)
    assert found[60].measured[0].desired_panic >= 57
    assert found[60].ebc == 4 - 211 - 49


def test_a_new_endpoint_begins_with_its_initial_scale() -> None:
    for spec in (COREWEAVE, AUTO):
        first = changed(spec, initial_scale=3)
        decision = step(first, ScaleState(), Observed(current=0), T)
        assert (decision.want, decision.patch, decision.bounded) == (3, True, "initial_scale")
        assert step(changed(spec, min_scale=2), ScaleState(), Observed(current=0), T).want == 2
    asleep = step(changed(AUTO, initial_scale=0), ScaleState(), Observed(current=0), T)
    assert (asleep.want, asleep.patch, asleep.active) == (UNKNOWN, False, "false")
    assert step(AUTO, ScaleState(), Observed(starting=1, current=1), T).want == UNKNOWN, "it is on its way"


def test_an_idle_endpoint_sleeps_after_its_timeout_however_long_the_windows_are() -> None:
    spec = changed(AUTO, inactivity_timeout_s=5.0, zero_cuts_windows=True, cold_workers=1)
    state = ScaleState()
    for at in range(0, 41, 2):
        step(spec, state, Observed(seconds=(Second(T + at, 4.0, 1.0),), ready=4, current=4, in_service=4), T + at)
    busy = step(spec, state, Observed(ready=4, current=4, last_request_at=T + 42.0), T + 44)
    assert (busy.want, busy.zero_at) == (4, T + 47)
    found = step(spec, state, Observed(ready=4, current=4), T + 48)
    assert (found.want, found.cold, found.patch, found.bounded) == (0, 1, True, "inactivity_timeout")
    again = step(spec, state, Observed(seconds=(Second(T + 60, 1.0, 1.0),), waiting=1, current=0), T + 61)
    assert again.want == 1, "what was before the rest does not count"


def test_the_shortest_timeout_covers_the_second_that_no_sample_tells_of_yet() -> None:
    spec = changed(AUTO, inactivity_timeout_s=0.0, zero_cuts_windows=True)
    state = ScaleState()
    step(spec, state, Observed(ready=1, current=1, in_service=1), T)
    assert step(spec, state, Observed(ready=1, current=1), T + 1).want == 1
    assert step(spec, state, Observed(ready=1, current=1), T + 2).want == 0
    never = changed(AUTO, inactivity_timeout_s=-1.0)
    assert step(never, ScaleState(request_at=1.0, created_at=1.0), Observed(ready=1, current=1), T).want == 1


def test_without_a_timeout_zero_follows_from_how_long_starts_take() -> None:
    found = run(changed(AUTO, delay_s=0), lambda at: 1.0 if at < 30 else None, 600)
    gone = min(at for at, one in found.items() if one.patch and one.want == 0)
    assert gone == 30 + 300, "ten times 30 s after the last request"


def test_a_start_is_never_given_up_half_way() -> None:
    state = ScaleState(created_at=T - 900.0, active="false", attained=True, desired=0, want=0)
    spec = changed(AUTO, inactivity_timeout_s=0.0, zero_cuts_windows=True)
    first = step(spec, state, Observed(seconds=(Second(T - 1, 1.0, 1.0),), waiting=1, current=0), T)
    assert (first.want, first.patch, first.active) == (1, True, "unknown")
    for at in range(2, 600, 2):
        kept = step(spec, state, Observed(starting=1, current=1), T + at)
        assert kept.want in (1, UNKNOWN) and not kept.patch
    late = step(spec, state, Observed(starting=1, current=1), T + 640)
    assert (late.want, late.patch, late.active_reason) == (0, True, "TimedOut")


def test_no_gateway_no_decrease() -> None:
    state = ScaleState()
    spec = changed(AUTO, delay_s=0)
    assert step(spec, state, Observed(seconds=(Second(T, 6.0, 6.0),), ready=6, current=6), T + 1).want == 6
    for at in (100, 200, 4000):
        kept = step(spec, state, Observed(ready=6, current=6, linked=False), T + at)
        assert (kept.want, kept.held, kept.bounded) == (6, True, "unlinked")
    assert step(spec, state, Observed(ready=6, current=6), T + 4002).want < 6


def test_other_settings_take_their_windows_along() -> None:
    state = ScaleState()
    for at in range(0, 120, 2):
        step(
            AUTO,
            state,
            Observed(seconds=(Second(T + at, 4.0), Second(T + at + 1, 4.0)), ready=4, current=4),
            T + at + 2,
        )
    other = changed(AUTO, stable_s=30, panic_s=6, delay_s=40, tick_s=4, metrics=("concurrency", "rps"))
    found = step(other, state, Observed(ready=4, current=4), T + 120)
    assert (found.measured[0].stable, found.measured[0].panic, found.desired) == (4.0, 4.0, 5)
    assert set(state.windows) == {"concurrency", "rps"}
    assert state.delay is not None and (state.delay.size, state.delay.tick_s) == (10, 4)
    step(changed(other, delay_s=0), state, Observed(ready=4, current=4), T + 122)
    assert state.delay is None


def test_seconds_of_a_clock_that_runs_ahead_are_dropped() -> None:
    state = ScaleState()
    step(AUTO, state, Observed(seconds=(Second(T + 500, 9.0),), ready=1, current=1), T)
    assert state.windows["concurrency"].stable.last == UNKNOWN


def test_evaluations_besides_the_tick() -> None:
    state = ScaleState(evaluated_at=float(T))
    assert overdue(AUTO, state, 5.1, T + 1.0)
    assert not overdue(AUTO, state, 5.0, T + 1.0)
    assert not overdue(AUTO, state, 9.0, T + 0.9), "at most once a second"
    assert not overdue(COREWEAVE, state, 90.0, T + 9.0)
    assert poked(AUTO, ScaleState(want=0), 1.0)
    assert not poked(AUTO, ScaleState(want=1), 1.0)
    assert next_tick(COREWEAVE, T + 0.0, T + 0.0) == T + 15
    assert next_tick(COREWEAVE, T + 16.0, T + 0.0) == T + 30
    assert next_tick(COREWEAVE, T + 30.0, T + 0.0) == T + 30


def test_an_idle_endpoint_is_left_alone() -> None:
    state = ScaleState()
    spec = changed(AUTO, min_load=1.0)
    for at in range(0, 20, 2):
        decision = step(spec, state, Observed(ready=1, current=1), T + at)
    assert (decision.next_at, state.settled, decision.want) == (None, True, 1)
    sleepy = changed(AUTO, delay_s=0)
    state = ScaleState()
    for at in range(0, 20, 2):
        decision = step(sleepy, state, Observed(ready=1, current=1), T + at)
    assert decision.next_at == T + 300 and decision.zero_at == T + 300


def test_decide_leaves_its_state_alone() -> None:
    state = ScaleState()
    after, _ = decide(AUTO, state, Observed(seconds=(Second(T, 3.0),), ready=1), T + 1)
    assert state == ScaleState()
    assert after.windows["concurrency"].stable.total == 3.0


def test_reasons_say_what_was_measured_and_what_bounds_it() -> None:
    state = ScaleState()
    spec = changed(AUTO, max_workers=4, cold_mult=2.0)
    seen = Observed(seconds=(Second(T, 9.0, 9.0, 900.0),), ready=1, current=1, mu=10.0, waiting=3, waiting_load=300.0)
    said = explain(spec, state, step(spec, state, seen, T + 1), T + 1)
    assert "units of load a second over 60 s, 8.5 of 10 per replica: " in said[0]
    assert any(one.startswith("waiting requests add") for one in said)
    assert any(one.startswith("in a burst: at least 20") for one in said)
    assert said[-1] == "at most 4: max_workers"


def test_reasons_of_rest_and_of_frozen_scales() -> None:
    spec, state = changed(AUTO, delay_s=0), ScaleState()
    count = 1
    for at in range(0, 700, 2):
        decision = step(spec, state, Observed(ready=count, current=count), T + at)
        count = decision.want if decision.patch else count
    assert explain(spec, state, decision, T + 700) == (
        "0 requests at once over 60 s, 0.85 of 1 per replica: 0",
        "load: how much a replica does is not known yet, so requests at once decide",
        "0: nothing was asked of it for long enough",
        "1 hibernated besides: cold_workers=1",
    )
    frozen = step(COREWEAVE, ScaleState(), Observed(ready=1, current=1), T)
    assert "nothing is known of its load, so the count stays as it is" in explain(COREWEAVE, ScaleState(), frozen, T)


BOUNDS = [
    "min_scale", "initial_scale", "max_scale", "max_workers", "min_load", "waiting", "enable_scale_to_zero", "starting",
    "progress_deadline", "stable_window", "deactivated", "idle", "inactivity_timeout", "retention", "grace", "probe",
    "unlinked", "restarted",
]  # fmt: skip


@pytest.mark.parametrize("bounded", BOUNDS)
def test_every_bound_has_its_words(bounded: str) -> None:
    state = ScaleState()
    spec = changed(AUTO, inactivity_timeout_s=5.0, retention_s=60.0)
    decision = step(spec, state, Observed(ready=1, current=1), T)
    decision.bounded = bounded
    said = explain(spec, state, decision, T)
    assert any(len(one) > 10 for one in said)
