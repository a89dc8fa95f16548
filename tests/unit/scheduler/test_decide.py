"""The autoscaling rule, second by second with a clock of our own."""

from __future__ import annotations

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
