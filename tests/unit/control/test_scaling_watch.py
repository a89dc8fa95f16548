"""When endpoints are evaluated, what is stored of them and acknowledged, and that idle ones cost nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, SCALE, SPEC, deployment, endpoint, instance, revision

from nanopod.control.live import Live
from nanopod.control.scaling import STORE_S, Watch, restored
from nanopod.control.tables import route_row
from nanopod.model.endpoint import ScaleSpec, Tuning
from nanopod.model.wire import EndpointSample, WorkerState

SLEEPY = replace(SCALE, cold_workers=0, inactivity_timeout=10)
KEPT = replace(SCALE, min_load=1)
KNATIVE = ScaleSpec(profile="knative", max_workers=10)


class Stage:
    """A watch with one endpoint whose decisions are carried out at once: workers are ready as soon as asked for."""

    def __init__(self, scale: ScaleSpec = SCALE, target: int = 1, **more: Any) -> None:
        self.live = Live()
        self.live.gateway_up("g1", ())
        self.live.caught_up.add("g1")
        self.watch = Watch(self.live, NOW - 1000)
        self.endpoint = endpoint(scale=scale, target=target, **more)
        self.stored: list[float] = []

    def look(self, now: float) -> int:
        """What the reconciler does: look, decide, store; the target."""
        rows = [instance(f"i{n}") for n in range(max(0, self.endpoint.target))]
        for row in rows:
            self.live.worker("g1", WorkerState(row.instance_id, 1, True, True))
        watched = self.watch.look(self.endpoint, SPEC, 4, rows, "cpu", now)
        self.watch.decided("e1", now)
        target, cold = self.watch.wanted(watched)
        if (target, cold) != (self.endpoint.target, self.endpoint.cold) or self.watch.is_due("e1", now):
            kept = self.watch.memory("e1")
            self.endpoint = replace(self.endpoint, target=target, cold=cold, scale_state=kept.text)
            self.watch.stored("e1", kept, target, cold, now)
            self.stored.append(now)
            if target:
                self.watch.look(self.endpoint, SPEC, 4, rows, "cpu", now)
        return target

    def sample(self, at: float, concurrency: float = 0.0, *, poke: bool = False, **more: Any) -> bool:
        """A second at the gateway; true when the reconciler is asked to look."""
        requests = more.pop("requests", round(concurrency))
        seen = EndpointSample("e1", concurrency, requests, 0, round(concurrency), **more)
        fresh = self.live.sample("g1", at, seen, at)
        return fresh and self.watch.heard("e1", at, poke=poke)

    def pass_time(self, begin: float, end: float, step: float = 0.5) -> None:
        """The pulse: what is due is evaluated, and looked at where that matters."""
        at = begin
        while at < end:
            if self.watch.due(at):
                self.look(at)
            at += step


def test_an_idle_endpoint_is_parked_until_it_sleeps_and_then_for_good() -> None:
    s = Stage(SLEEPY)
    s.look(NOW)
    s.pass_time(NOW, NOW + 9)
    assert s.endpoint.target == 1
    s.pass_time(NOW + 9, NOW + 14)
    assert s.endpoint.target == 0
    s.pass_time(NOW + 14, NOW + 30)
    assert s.watch.next_at == float("inf"), "nothing looks at it any more"


def test_its_first_request_is_answered_at_once_and_not_a_tick_later() -> None:
    s = Stage(SLEEPY, target=0)
    s.look(NOW)
    s.pass_time(NOW, NOW + 30)
    assert s.sample(NOW + 30.7, 1.0, poke=True)
    assert s.look(NOW + 30.7) == 1


def test_a_demand_wakes_it_too() -> None:
    s = Stage(SLEEPY, target=0)
    s.look(NOW)
    s.live.demand("e1", 1, NOW + 5.3)
    assert s.watch.heard("e1", NOW + 5.3, poke=False)
    assert s.look(NOW + 5.3) == 1


def test_a_poke_does_nothing_where_workers_are_there() -> None:
    s = Stage()
    s.look(NOW)
    assert not s.sample(NOW + 0.5, 1.0, poke=True)


def test_samples_are_evaluated_on_the_tick() -> None:
    s = Stage()
    s.look(NOW)
    assert not s.sample(NOW + 1.2, 40.0)
    assert s.watch.next_at == NOW + 2, "a multiple of the tick since the epoch"
    assert s.watch.due(NOW + 2) == ["e1"]
    assert s.look(NOW + 2) > 1


def test_whoever_waits_too_long_is_looked_at_at_once_but_once_a_second() -> None:
    s = Stage(replace(SCALE, target_queue_time=5))
    s.look(NOW)
    before = s.watch.known["e1"].state.evaluated_at
    s.live.sample("g1", NOW + 7.1, EndpointSample("e1", 9.0, 9, 5, 4, oldest_wait_s=6.0, waiting_load=500.0), NOW + 7.1)
    s.watch.heard("e1", NOW + 7.1, poke=False)
    assert s.watch.known["e1"].state.evaluated_at == NOW + 7.1 > before
    s.watch.heard("e1", NOW + 7.5, poke=False)
    assert s.watch.known["e1"].state.evaluated_at == NOW + 7.1


def test_knatives_rules_are_evaluated_on_ticks_and_pokes_alone() -> None:
    s = Stage(KNATIVE)
    s.look(NOW)
    evaluated = s.watch.known["e1"].state.evaluated_at
    s.sample(NOW + 0.5, 9.0)
    s.look(NOW + 1)
    assert s.watch.known["e1"].state.evaluated_at == evaluated
    s.watch.due(NOW + 2)
    assert s.watch.known["e1"].state.evaluated_at == NOW + 2


def test_where_silence_would_freeze_the_count_zeros_are_said() -> None:
    s = Stage(replace(KNATIVE, tuning=Tuning(stable_window_s=6, grace_s=1)))
    s.look(NOW)
    for second in range(1, 5):
        s.sample(NOW + second, 1.0)
    s.pass_time(NOW, NOW + 60)
    assert s.endpoint.target == 0


def test_a_sample_counts_once_and_is_acknowledged_when_it_is_stored() -> None:
    s = Stage()
    s.look(NOW)
    assert s.live.sample("g1", NOW + 1, EndpointSample("e1", 2.0, 2, 0, 2), NOW + 1)
    assert not s.live.sample("g1", NOW + 1, EndpointSample("e1", 2.0, 2, 0, 2), NOW + 1)
    s.watch.heard("e1", NOW + 1, poke=False)
    assert [at < NOW + 1 for _, at in s.live.acks()] == [True], "not what is in no stored memory"
    s.pass_time(NOW + 1, NOW + 2 * STORE_S)
    assert s.live.acks() == [("g1", NOW + 1)]
    assert s.live.acks() == []


def test_the_memory_is_stored_now_and_then_under_steady_load() -> None:
    s = Stage()
    s.look(NOW)
    s.stored.clear()
    for second in range(1, 61):
        s.sample(NOW + second, 1.0)
        s.pass_time(NOW + second, NOW + second + 1)
    assert 4 <= len(s.stored) <= 8, s.stored


def test_a_restart_goes_on_with_what_was_stored_and_never_panics() -> None:
    s = Stage()
    s.look(NOW)
    for second in range(1, 41):
        s.sample(NOW + second, 14.0)
        s.pass_time(NOW + second, NOW + second + 1)
    assert s.endpoint.target == 4
    panic = s.watch.known["e1"].state.panic_since
    again = Stage(target=4, cold=s.endpoint.cold, scale_state=s.endpoint.scale_state)
    again.live.caught_up.clear()
    again.watch.began_at = NOW + 45
    # What is sent again before the memory was read waits for it.
    for second in range(30, 46):
        again.sample(NOW + second, 14.0)
    again.look(NOW + 45)
    assert again.endpoint.target == 4
    again.pass_time(NOW + 45, NOW + 50)
    assert again.endpoint.target == 4, "nothing is decreased before the gateways have caught up"
    again.live.caught_up.add("g1")
    for second in range(46, 60):
        again.sample(NOW + second, 14.0)
        again.pass_time(NOW + second, NOW + second + 1)
    watched = again.watch.known["e1"]
    assert (again.endpoint.target, watched.state.panic_since) == (4, panic), "the burst from before, and no other"
    assert watched.state.windows["concurrency"].stable.total == pytest.approx(14.0 * 59, rel=0.05)


def test_an_idle_one_goes_to_zero_after_a_restart_as_well() -> None:
    s = Stage(SLEEPY)
    s.look(NOW)
    s.sample(NOW + 1, 1.0)
    s.sample(NOW + 2, 0.0)
    s.pass_time(NOW, NOW + 8)
    assert s.endpoint.target == 1
    again = Stage(SLEEPY, target=1, scale_state=s.endpoint.scale_state)
    again.live.caught_up.clear()
    again.watch.began_at = NOW + 9
    again.look(NOW + 9)
    again.live.caught_up.add("g1")
    again.pass_time(NOW + 9, NOW + 30)
    assert again.endpoint.target == 0


def test_what_cannot_be_read_begins_anew() -> None:
    assert restored(endpoint(scale_state=b'{"target":1,"seconds":[]}')).version == 0
    assert restored(endpoint(scale_state=b"\xff")).version == 0


def test_changed_settings_hold_at_the_next_look() -> None:
    s = Stage()
    s.look(NOW)
    s.endpoint = replace(s.endpoint, scale=replace(SCALE, tuning=Tuning(min_scale=3)))
    assert s.look(NOW + 1) == 3


def test_one_that_rests_is_left_alone_and_its_samples_are_not_kept() -> None:
    s = Stage()
    s.look(NOW)
    s.watch.known["e1"].rests = True
    assert not s.sample(NOW + 1, 5.0, poke=True)
    s.live.demand("e1", 5, NOW)
    assert not s.watch.heard("e1", NOW, poke=False)
    assert s.watch.due(NOW + 100) == []
    assert not s.live.loads["e1"].fresh
    assert s.live.acks() == [("g1", NOW + 1)]


def test_a_thousand_idle_endpoints_are_not_looked_at() -> None:
    live = Live()
    live.gateway_up("g1", ())
    watch = Watch(live, NOW - 1000)
    for n in range(1000):
        key = f"e{n}"
        row = instance(f"i{n}", endpoint_id=key)
        live.worker("g1", WorkerState(row.instance_id, 1, True, True))
        watched = watch.look(endpoint(endpoint_id=key, scale=KEPT), SPEC, 4, [row], "cpu", NOW)
        watch.decided(key, NOW)
        watch.stored(key, watch.memory(key), *watch.wanted(watched), NOW)
    watch.due(NOW + 200)
    looked = 0
    for second in range(200, 400):
        before = {key: one.state.evaluated_at for key, one in watch.known.items()}
        watch.due(NOW + second)
        looked += sum(one.state.evaluated_at != before[key] for key, one in watch.known.items())
    assert (looked, watch.next_at) == (0, float("inf"))


def test_gateways_hear_how_fast_workers_are_and_again_only_when_that_changes_by_much() -> None:
    s = Stage(KEPT)
    told: list[float] = []
    s.watch.on_speed = lambda: told.append(s.live.units_per_s("e1"))
    s.look(NOW)
    for second in range(1, 21):
        assert told == []
        s.sample(NOW + second, 1.0, served=(100.0, 0.5, 1))
        s.look(NOW + second + 0.5)
    assert told == [pytest.approx(800.0)], "four at once, 100 units in half a second each"
    row = route_row(s.endpoint, deployment(), revision(), [instance()], s.live)
    assert row.units_per_s == told[0]
    s.sample(NOW + 21, 1.0, served=(300.0, 0.5, 1))
    s.look(NOW + 21.5)
    assert len(told) == 1, "9.5 % more"
    s.sample(NOW + 22, 1.0, served=(300.0, 0.5, 1))
    s.look(NOW + 22.5)
    assert told[1:] == [pytest.approx(2600 / 11 * 4)]
    s.live.worker("g1", WorkerState("i0", 1, True, True, perf=50.0))
    s.watch.evaluate("e1", NOW + 23)
    assert told[2:] == [50.0], "a benchmark says it better"


def test_gateways_by_the_rules_of_knative_need_no_speed() -> None:
    s = Stage(KNATIVE)
    s.watch.on_speed = lambda: pytest.fail("tables are not pushed for it")
    s.look(NOW)
    for second in range(1, 40):
        s.sample(NOW + second, 1.0, served=(100.0, 0.5, 1))
        s.look(NOW + second + 0.5)
    assert s.live.units_per_s("e1") == 0.0
