"""Load and its backlog, KV, tokens, measured speeds, the cold tier, missing data."""

from __future__ import annotations

import math

import msgspec
import pytest

from nanopod.scheduler.autoscale import load
from nanopod.scheduler.autoscale.engine import step
from nanopod.scheduler.autoscale.settings import PROFILES
from nanopod.scheduler.autoscale.values import UNKNOWN, Autoscale, Decision, Observed, ScaleState, Second, ServedState

T = 1_800_000_000
AUTO = PROFILES["auto"]


def changed(spec: Autoscale, **values: object) -> Autoscale:
    return msgspec.structs.replace(spec, **values)


ONE_SLOT = changed(AUTO, container_concurrency=1, concurrency_total=1.0)


def run(
    spec: Autoscale, until: int, units: float = 0.0, *, ready: int = 1, state: ScaleState | None = None, **seen: object
) -> Decision:
    """Ticks up to `until` with so many units in every second; the last decision."""
    state = state if state is not None else ScaleState()
    last = 0
    decision: Decision | None = None
    for at in range(0, until + 1, spec.tick_s):
        seconds = tuple(Second(T + second, units / 100.0, units / 100.0, units) for second in range(last, at))
        last = at
        told = {"ready": ready, "current": ready, **seen}
        decision = step(spec, state, Observed(seconds=seconds if units else (), **told), T + at)  # type: ignore[arg-type]
    assert decision is not None
    return decision


def test_kv_counts_the_fuller_of_cache_and_queue() -> None:
    assert load.kv_value([(0.8, 0), (0.4, 5), (0.0, 0)]) == 2.0
    assert load.kv_value([]) == 0.0


def test_a_backlog_is_what_will_have_piled_up_when_the_next_replica_is_ready() -> None:
    assert load.backlog(0.0, 900.0, 100.0, 0, 60.0, 60.0, 5.0) == 0.0, "nothing waits"
    assert load.backlog(100.0, 0.0, 100.0, 0, 60.0, 60.0, 5.0) == 100 / 30
    assert load.backlog(100.0, 150.0, 100.0, 1, 60.0, 60.0, 40.0) == (100 + 50 * 60) / 40
    assert load.backlog(100.0, 0.0, 100.0, 2, 60.0, 60.0, 5.0) == 0.0, "those that are there will be done before"
    assert load.backlog(100.0, 0.0, 100.0, 0, 0.0, 0.0, 0.0) == 100.0, "a limit of nothing counts as a second"
    # One request a second at 60 s of starting: 60 wait, and Knative's rule wants 71 replicas where a few suffice.
    value = load.load_value(100.0, load.backlog(6000.0, 100.0, 100.0, 1, 10.0, 60.0, 5.0), 0.0)
    assert value == 100.0 + 6000.0 / 30
    assert math.ceil(value / 85.0) == 4


def test_the_start_that_would_be_used_next() -> None:
    assert load.start_time(1, 3, 4.0, 60.0) == 0.0
    assert load.start_time(0, 3, 4.0, 60.0) == 4.0
    assert load.start_time(0, 0, 4.0, 60.0) == 60.0
    assert load.start_time(0, 0, None, None) == load.PROVISION_S
    assert load.start_time(0, 1, None, 2.0) == 2.0


def test_when_zero_is_allowed() -> None:
    assert load.zero_after_s(AUTO, 1.0) == 120.0
    assert load.zero_after_s(AUTO, 60.0) == 600.0
    assert load.zero_after_s(AUTO, 900.0) == 1800.0
    assert load.zero_after_s(PROFILES["vast"], 60.0) == 1800.0
    assert load.zero_after_s(changed(AUTO, inactivity_timeout_s=0.0), 60.0) == 0.0
    assert load.zero_after_s(changed(AUTO, inactivity_timeout_s=-1.0), 60.0) == math.inf
    assert load.zero_after_s(changed(AUTO, inactivity_timeout_s=7.0, retention_s=99.0), 60.0) == 7.0


@pytest.mark.parametrize(("units", "hot", "cold"), [(0.0, 2, 2), (700.0, 9, 1), (2000.0, 10, 0)])
def test_sample_settings_of_vast(units: float, hot: int, cold: int) -> None:
    spec = changed(
        PROFILES["vast"], cold_workers=2, max_workers=10, min_load=100.0, min_cold_load=50.0, load_util=0.8,
        cold_mult=2.0,
    )  # fmt: skip
    found = run(spec, 120, units, ready=hot, mu=100.0)
    assert (found.want, found.cold) == (hot, cold)


def test_the_cold_tier() -> None:
    assert load.cold_target(AUTO, 0, None) == 1, "the last replica is hibernated"
    assert load.cold_target(AUTO, 1, None) == 0
    assert load.cold_target(changed(AUTO, cold_workers=0), 0, None) == 0
    more = changed(AUTO, cold_workers=5, cold_mult=2.5, max_workers=20)
    assert [load.cold_target(more, hot, 100.0) for hot in (0, 1, 3, 10, 20)] == [5, 4, 5, 10, 0]
    assert load.cold_target(changed(AUTO, cold_mult=1.1), 10, None) == 1, "11, though 1.1 * 10 is a little more"
    assert load.cold_target(changed(AUTO, min_cold_load=400.0), 1, 100.0) == 4
    assert load.cold_target(changed(AUTO, min_cold_load=400.0), 0, None) == 1
    assert load.cold_target(PROFILES["coreweave"], 0, None) == 0


def test_a_speed_is_estimated_from_what_was_completed() -> None:
    served = ServedState()
    for second in range(19):
        load.add_served(served, T + second, (100.0, 0.5, 1), 0.3)
    assert load.estimated_mu(served, 1) is None and load.most_mu(served, 1) is None, "19 requests are too few"
    load.add_served(served, T + 19, (100.0, 0.5, 1), 6.0)
    assert load.estimated_mu(served, 1) == pytest.approx(200.0)
    assert load.estimated_mu(served, 4) == pytest.approx(800.0)
    assert load.estimated_mu(served, 0) == pytest.approx(1200.0)
    assert load.most_mu(served, 8) == pytest.approx(1600.0), "six at once so far, and eight may be"
    assert load.most_mu(served, 0) is None
    load.add_served(served, T + 605, (100.0, 2.0, 20), 0.1)
    assert load.estimated_mu(served, 8) == pytest.approx(6.0 * 11 * 100 / (10 * 0.5 + 2.0)), "ten minutes, by slots"
    load.add_served(served, T + 5, (1e9, 1.0, 1), 9.0)
    assert sum(served.units) == 1100.0, "what is older than that is dropped"
    load.add_served(served, T + 597, (50.0, 1.0, 1), 0.0)
    assert sum(served.units) == 1150.0 and len(served.slots) == 2, "a late second is counted in the next slot there is"


def test_until_a_speed_is_known_requests_at_once_decide_and_ask_for_no_more_than_there_were() -> None:
    lone = run(ONE_SLOT, 20, 100.0)
    assert lone.measured[0].name == "concurrency" and lone.dropped == ("load",)
    assert (lone.want, lone.mu) == (1, None), "one caller, however busy it keeps its replica"
    assert run(ONE_SLOT, 20, 300.0).want == 3
    explicit = changed(ONE_SLOT, metrics=("concurrency",))
    assert run(explicit, 20, 100.0).want == 2, "as Knative has it, where that metric was asked for"


def test_a_benchmark_counts_at_once_and_is_kept_for_its_hardware() -> None:
    state = ScaleState()
    assert run(ONE_SLOT, 2, 100.0, state=state, mu=50.0, hardware="A40").mu == 50.0
    assert step(ONE_SLOT, state, Observed(hardware="A40"), T + 4).mu == 50.0
    assert step(ONE_SLOT, state, Observed(hardware="H100"), T + 6).mu is None
    assert run(changed(ONE_SLOT, load_total=10.0), 2, 100.0, mu=50.0).mu == 10.0


def test_an_estimate_comes_with_the_requests() -> None:
    state = ScaleState()
    for at in range(0, 60, 2):
        seen = Observed(seconds=(Second(T + at, 0.5, 1.0, 100.0, served=(100.0, 0.5, 1)),), ready=1, current=1)
        decision = step(ONE_SLOT, state, seen, T + at + 2)
        assert (decision.mu is None) == (at < 38)
    assert decision.mu == pytest.approx(200.0)


def test_min_load_keeps_replicas_also_before_a_speed_is_known() -> None:
    spec = changed(AUTO, min_load=170.0)
    assert run(spec, 400).want == 1
    assert run(spec, 400, mu=100.0, ready=2).want == 2


def test_a_long_queue_asks_for_more_than_arrives() -> None:
    calm = run(AUTO, 60, 100.0, mu=100.0, ready=1)
    assert (calm.want, calm.backlog) == (2, 0.0)
    queued = run(AUTO, 60, 100.0, mu=100.0, ready=1, waiting=8, waiting_load=800.0, eta_s=10.0, provision_s=20.0)
    assert queued.backlog == pytest.approx(800.0 / 10.0)
    assert queued.want == math.ceil((100 + 80) / 85)
    unknown = run(AUTO, 60, 100.0, mu=100.0, ready=1, waiting=8, eta_s=10.0, provision_s=20.0)
    assert unknown.backlog == queued.backlog, "100 units each, where nobody says"


def test_gauges_that_fall_silent_drop_out_and_none_left_freezes() -> None:
    spec = changed(AUTO, metrics=("load", "kv"), delay_s=0)
    state = ScaleState()
    for at in range(0, 20, 2):
        seen = Observed(seconds=(Second(T + at, kv=2.5), Second(T + at + 1, kv=2.5)), ready=2, current=2, mu=100.0)
        found = step(spec, state, seen, T + at + 2)
    assert (found.want, found.measured[1].name) == (3, "kv")
    later = step(spec, state, Observed(ready=3, current=3, mu=100.0), T + 20 + 61)
    assert later.dropped == ("kv",) and later.valid
    alone = changed(AUTO, metrics=("kv",), delay_s=0)
    frozen = ScaleState()
    step(alone, frozen, Observed(seconds=(Second(T, kv=2.5),), ready=2, current=2), T + 1)
    assert step(alone, frozen, Observed(ready=3, current=3), T + 61).valid is False
    assert frozen.desired == 3


def test_tokens_need_a_benchmark() -> None:
    spec = changed(AUTO, metrics=("tokens",), delay_s=0)
    seen = Observed(seconds=(Second(T, tokens=900.0),), ready=1, current=1)
    assert step(spec, ScaleState(), seen, T + 1).dropped == ("tokens",)
    found = step(spec, ScaleState(), msgspec.structs.replace(seen, tokens_per_s=500.0), T + 1)
    assert (found.measured[0].desired_stable, found.want) == (3, 3)


def test_cpu_is_a_share_of_what_was_asked_for() -> None:
    spec = changed(AUTO, metrics=("cpu",), delay_s=0)
    seen = Observed(seconds=(Second(T, cpu=1.7),), ready=2, current=2)
    assert step(spec, ScaleState(), seen, T + 1).want == 3


def test_silence_is_zero_unless_it_freezes() -> None:
    frozen = run(changed(PROFILES["coreweave"], delay_s=0), 15)
    assert (frozen.valid, frozen.desired) == (False, UNKNOWN)
    assert run(changed(PROFILES["coreweave"], burst=-1.0), 15).valid
    assert run(changed(PROFILES["coreweave"], freeze=False), 15).valid
