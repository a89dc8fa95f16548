"""The autoscaling rule, second by second with a clock of our own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest

from nanopod.model.endpoint import ScaleSpec
from nanopod.scheduler.autoscale.decide import (
    DELAY_S,
    PANIC_S,
    STABLE_S,
    ZERO_GRACE_S,
    Decision,
    Observed,
    ScaleState,
    decide,
    floor_of,
    per_worker_of,
    zero_after_s,
)

SLEEPY = ScaleSpec(cold_workers=0, min_load=0, inactivity_timeout=10, max_workers=20, target_util=1.0)
STEADY = ScaleSpec(cold_workers=1, min_load=0, max_workers=20, target_util=1.0)


@dataclass
class World:
    """An endpoint whose workers are ready at once."""

    spec: ScaleSpec
    slots: int = 1
    now: float = 1000.0
    state: ScaleState = field(default_factory=ScaleState)
    decision: Decision = field(default_factory=lambda: Decision(0, (), None))
    starts: bool = True

    def step(self, concurrency: float | None = None, **seen: object) -> int:
        """One evaluation; with `concurrency`, the sample of this second."""
        ready = max(0, self.state.target) if self.starts else 0
        samples = () if concurrency is None else ((int(self.now), concurrency),)
        observed = Observed(samples=samples, ready=ready, slots=self.slots, in_flight=int(bool(concurrency)))
        self.state, self.decision = decide(self.spec, self.state, replace(observed, **seen), self.now)
        return self.decision.target

    def run(self, seconds: int, concurrency: float | None) -> list[int]:
        """A sample each second."""
        found = []
        for _ in range(seconds):
            self.now += 1
            found.append(self.step(concurrency))
        return found


def test_a_new_endpoint_starts_one_worker_to_be_tried() -> None:
    assert World(SLEEPY).step() == 1
    assert World(STEADY).step() == 1
    assert World(replace(STEADY, cold_workers=3)).step() == 3


def test_demand_wakes_it_at_once() -> None:
    world = World(SLEEPY)
    world.step()
    world.run(30, 0.0)
    assert world.decision.target == 0
    assert world.step(waiting=1) == 1
    assert any("waiting" in reason for reason in world.decision.reasons)


def test_one_second_of_load_is_believed_at_once() -> None:
    world = World(STEADY)
    world.step()
    world.now += 1
    assert world.step(8.0) == 8


def test_a_burst_is_not_followed_down() -> None:
    world = World(STEADY)
    world.step()
    world.run(3, 10.0)
    assert world.decision.target == 10
    assert set(world.run(STABLE_S - 1, 1.0)) == {10}, "a burst holds for the stable window"


def test_a_decrease_waits_for_the_highest_wish_of_the_delay() -> None:
    world = World(STEADY)
    world.step()
    world.run(90, 6.0)
    assert world.decision.target == 6
    targets = world.run(180, 1.0)
    first_lower = next(n for n, target in enumerate(targets) if target < 6)
    assert first_lower >= DELAY_S - 1
    assert targets[-1] == 1
    assert sorted(targets, reverse=True) == targets, "it never swings"


def test_zero_comes_after_the_idle_time_without_the_delay() -> None:
    world = World(SLEEPY)
    world.step()
    world.run(20, 4.0)
    assert world.decision.target == 4
    world.now += 1
    world.step(0.0)
    idle = 1
    while world.decision.target:
        world.now += 1
        world.step(None)
        idle += 1
    assert 10 <= idle <= 12
    assert world.decision.reasons == ("0: idle for 10 s",)
    assert world.decision.recheck_s is None, "asleep, it is not looked at again by itself"


def test_a_start_is_not_given_up_half_way() -> None:
    world = World(SLEEPY, starts=False)
    world.step(waiting=1)
    world.now += 60
    assert world.step(starting=1) == 1
    assert world.step(ready=1) == 1, "and the idle time counts from when it became ready"
    world.now += 9
    assert world.step(ready=1) == 1
    world.now += 2
    assert world.step(ready=1) == 0


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SLEEPY, 10.0),
        (replace(SLEEPY, inactivity_timeout=0), ZERO_GRACE_S),
        (replace(SLEEPY, inactivity_timeout=None), None),
        (replace(SLEEPY, inactivity_timeout=-1), None),
        (replace(SLEEPY, cold_workers=1), None),
        (replace(SLEEPY, min_load=1), None),
    ],
)
def test_who_may_sleep(spec: ScaleSpec, expected: float | None) -> None:
    assert zero_after_s(spec) == expected


def test_floors() -> None:
    assert floor_of(replace(SLEEPY, inactivity_timeout=None), None)[0] == 1
    assert floor_of(replace(SLEEPY, min_load=1), None)[0] == 1
    assert floor_of(replace(SLEEPY, min_load=900, target_util=0.9), 100.0)[0] == 10
    assert floor_of(replace(STEADY, cold_workers=4), None) == (4, "at least 4: cold_workers=4")


def test_the_cap_holds_and_is_said() -> None:
    world = World(replace(STEADY, max_workers=3))
    world.step()
    world.now += 1
    assert world.step(50.0) == 3
    assert "at most 3: max_workers" in world.decision.reasons


def test_slots_and_utilisation_make_the_share_of_a_worker() -> None:
    assert per_worker_of(replace(STEADY, target_util=0.9), 8) == pytest.approx(7.2)
    assert per_worker_of(replace(STEADY, target_concurrency=2.5), 8) == 2.5
    world = World(replace(STEADY, target_util=0.5), slots=8)
    world.step()
    world.now += 1
    assert world.step(16.0) == 4


def test_an_exact_quotient_is_not_rounded_up() -> None:
    world = World(replace(STEADY, target_concurrency=0.1))
    world.step()
    world.now += 1
    assert world.step(0.3) == 3


def test_silence_without_a_gateway_means_nothing() -> None:
    world = World(SLEEPY)
    world.step()
    world.run(20, 5.0)
    for _ in range(100):
        world.now += 1
        assert world.step(None, reachable=False) == 5
    assert "no gateway" in world.decision.reasons[-1]


def test_a_second_sent_twice_counts_once() -> None:
    world = World(STEADY)
    world.step()
    world.now += 1
    world.step(4.0)
    assert world.step(4.0) == 4


def test_samples_of_another_age_are_left_out() -> None:
    world = World(STEADY)
    world.step()
    assert world.step(samples=((int(world.now) - 3600, 99.0), (int(world.now) + 3600, 99.0))) == 1


def test_panic_ends_after_a_calm_stable_window() -> None:
    world = World(STEADY)
    world.step()
    world.run(2, 10.0)
    assert world.state.panic_since is not None
    world.run(STABLE_S + PANIC_S + 2, 1.0)
    assert world.state.panic_since is None


def test_a_lone_caller_has_one_worker() -> None:
    world = World(replace(STEADY, target_util=0.9))
    world.step()
    assert set(world.run(90, 1.0)) == {1}, "1 / 0.9 is no reason for two"
    assert set(world.run(90, 1.01)) == {1}, "a measured second may come out a little above 1"
    assert world.run(40, 2.0)[-1] == 2, "two callers, two workers: no more workers than requests"
    assert world.run(40, 9.0)[-1] == 9


def test_a_known_speed_lets_the_load_ask_for_workers() -> None:
    world = World(replace(STEADY, target_util=0.8, max_workers=50), slots=100)
    world.step()

    def steps(units: float, **seen: object) -> int:
        found = 0
        for _ in range(40):
            world.now += 1
            load = tuple((int(world.now) - n, units) for n in range(STABLE_S))
            found = world.step(40.0, load=load, perf=100.0, **seen)
        return found

    assert steps(70.0) == 1
    assert steps(700.0) == 9, "700 / (100 * 0.8)"
    assert any("700 units of load a second" in reason for reason in world.decision.reasons)


def test_a_queue_longer_than_the_target_asks_for_more() -> None:
    spec = replace(STEADY, target_queue_time=10, max_workers=50)
    world = World(spec, slots=100)
    world.step()
    world.now += 1
    seen = {"perf": 100.0, "workload": 1000.0, "ready": 1}
    assert world.step(20.0, waiting=1, **seen) == 1, "exactly 10 s to wait is not too long"
    assert world.step(20.0, waiting=8, **seen) == 8, "8000 units in 10 s at 100 a second"
    assert any("above target_queue_time=10" in reason for reason in world.decision.reasons)
    assert world.state.panic_since == world.now, "80 s are above max_queue_time"
    assert world.step(20.0, waiting=500, **seen) == 20, "never more workers than requests"


def test_what_is_kept_cold_starts_one_by_one_after_what_the_load_needs() -> None:
    sample = ScaleSpec(
        cold_workers=2, max_workers=10, min_load=100, min_cold_load=50, target_util=0.8, cold_mult=2
    )  # fmt: skip

    def targets(units: float, steps: int) -> list[int]:
        state, found, ready = ScaleState(), [], 0
        for second in range(steps):
            now = 1000.0 + second
            load = tuple((int(now) - n, units) for n in range(STABLE_S)) if units else ()
            samples = ((int(now), 40.0 if units else 0.0),)
            seen = Observed(samples, ready=ready, slots=100, perf=100.0, load=load)
            state, decision = decide(sample, state, seen, now)
            found.append(decision.target)
            ready = decision.target if second % 2 else ready  # a start takes two seconds
        return found

    idle = targets(0.0, 30)
    assert idle[0] == 2, "what the least load needs comes first"
    assert idle[-1] == 4
    assert all(later - sooner <= 1 for sooner, later in itertools.pairwise(idle)), "one by one"
    assert targets(700.0, 60)[-1] == 10, "9 for the load, and the cap"
    assert targets(2000.0, 60)[-1] == 10


def test_a_floor_of_cold_load_keeps_it_awake() -> None:
    assert zero_after_s(replace(SLEEPY, min_cold_load=1)) is None
    assert floor_of(replace(SLEEPY, min_cold_load=450, target_util=0.9), 100.0) == (5, "at least 5: min_cold_load=450")
