"""The simulated world: every request is answered once, time is paid as sellers bill it, starts take what they take."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.settings import PROFILES
from nanopod.scheduler.autoscale.simulate import EPOCH, POINTS_MAX, Arrival, Conditions, World, rank, simulate
from nanopod.scheduler.autoscale.values import Autoscale, Decision, Observed

AUTO = msgspec.structs.replace(
    PROFILES["auto"], container_concurrency=1, concurrency_total=1.0, cold_workers=0, inactivity_timeout_s=60.0,
    zero_cuts_windows=True, initial_scale=0,
)  # fmt: skip
COLD = msgspec.structs.replace(AUTO, cold_workers=1)
BOUNDLESS = msgspec.structs.replace(AUTO, container_concurrency=0, concurrency_total=100.0)
COREWEAVE = msgspec.structs.replace(PROFILES["coreweave"], container_concurrency=1, concurrency_total=1.0)


def test_a_lone_request_waits_for_one_start_and_its_worker_is_billed_from_then_on() -> None:
    found = simulate(AUTO, [Arrival(10.5, 2.0)], Conditions(provision_s=30, mu=100))
    assert (found.requests, found.timeouts) == (1, 0)
    assert found.wait_max == pytest.approx(30, abs=0.01)
    assert found.worker_s == pytest.approx(33, abs=1.1), "30 s of starting, 2 s of work, to the end of that second"
    assert found.billed_s == 60 * found.starts


def test_bills_are_whole_periods_or_by_the_moment() -> None:
    arrivals = [Arrival(1.0, 3.0)]
    by_moment = simulate(AUTO, arrivals, Conditions(provision_s=10, bill_s=0, until_s=300))
    by_minute = simulate(AUTO, arrivals, Conditions(provision_s=10, bill_s=60, until_s=300))
    assert by_moment.billed_s == by_moment.worker_s == by_minute.worker_s
    assert by_minute.billed_s >= by_minute.worker_s
    assert by_minute.billed_s % 60 == 0


def test_a_hibernated_worker_is_woken_in_the_time_of_a_wake_and_costs_nothing_meanwhile() -> None:
    arrivals = [Arrival(1.0, 1.0), Arrival(1000.0, 1.0)]
    conditions = Conditions(provision_s=40, wake_s=5, mu=100)
    cold = simulate(COLD, arrivals, conditions)
    gone = simulate(AUTO, arrivals, conditions)
    assert (cold.starts, cold.wakes) == (2, 1)
    assert (gone.starts, gone.wakes) == (2, 0)
    assert sorted(round(wait) for wait in (cold.wait_p50, cold.wait_max)) in ([5, 40], [40, 40])
    assert cold.worker_s < gone.worker_s < 300
    assert any(point.cold == 1 and point.ready == 0 for point in cold.timeline)


def test_slots_are_not_exceeded_and_no_limit_is_none() -> None:
    crowd = [Arrival(100.0, 10.0) for _ in range(40)]
    one_each = simulate(AUTO, crowd, Conditions(slots=1, provision_s=5))
    assert one_each.peak_workers > 1
    assert all(point.in_service <= point.ready + point.starting for point in one_each.timeline)
    everyone = simulate(BOUNDLESS, crowd, Conditions(slots=0, provision_s=5))
    assert everyone.wait_max == pytest.approx(5, abs=0.01)
    assert everyone.utilisation == 0.0


def test_who_waits_too_long_is_answered_with_a_time_out() -> None:
    found = simulate(AUTO, [Arrival(0.0, 1.0)], Conditions(provision_s=700))
    assert (found.requests, found.timeouts, found.late_share) == (1, 1, 1.0)


def test_knatives_profile_takes_the_first_by_address_and_asks_on_ticks_and_pokes_alone() -> None:
    asked: list[float] = []

    def keep(seen: Observed, at: float, decision: Decision) -> None:
        asked.append(at - EPOCH)

    arrivals = [Arrival(7.25 + index * 3.0, 1.0) for index in range(60)]
    simulate(COREWEAVE, arrivals, Conditions(provision_s=5), seen=keep)
    assert asked[0] == 7.25 or asked[0] == 0
    assert [at for at in asked if at % COREWEAVE.tick_s] in ([], [7.25])


def test_the_profile_auto_is_asked_at_once_when_a_worker_is_ready() -> None:
    asked: list[float] = []
    arrivals = [Arrival(7.25, 1.0), *(Arrival(7.3 + index * 0.1, 1.0) for index in range(100))]
    simulate(AUTO, arrivals, Conditions(provision_s=5), seen=lambda seen, at, decision: asked.append(at - EPOCH))
    assert asked[:4] == [2, 4, 6, 7.25], "the first request is not kept waiting for the tick"
    assert 13 in asked, "nor is what follows from a worker that is ready at 12.25"


def test_a_long_timeline_is_thinned() -> None:
    found = simulate(AUTO, [Arrival(0.0, 1.0), Arrival(10_000.0, 1.0)], Conditions(provision_s=1))
    assert POINTS_MAX / 4 < len(found.timeline) <= POINTS_MAX + 1
    times = [point.at for point in found.timeline]
    assert times == sorted(times)
    assert times[-1] > 9_900


def test_what_is_out_of_range_is_named() -> None:
    with pytest.raises(Invalid, match="times rise"):
        simulate(AUTO, [Arrival(5.0, 1.0), Arrival(4.0, 1.0)], Conditions())
    with pytest.raises(Invalid, match="times rise"):
        simulate(AUTO, [Arrival(5.0, -1.0)], Conditions())
    with pytest.raises(Invalid, match="provision_s=-1"):
        World(AUTO, Conditions(provision_s=-1))


def test_ranks_are_the_value_that_a_share_is_below() -> None:
    assert rank([], 0.5) == 0.0
    assert [rank([1.0, 2.0, 3.0, 4.0], share) for share in (0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]


class Thorough(World):
    """Looks for room every time, whether or not there can be any."""

    full = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 400), st.floats(0, 60)), min_size=1, max_size=40),
    st.sampled_from([AUTO, COLD, COREWEAVE, PROFILES["knative"], PROFILES["vast"]]),
    st.integers(1, 4),
    st.floats(0, 90),
)
def test_every_request_is_answered_once_and_equal_inputs_give_equal_outcomes(
    rows: list[tuple[float, float]], spec: Autoscale, slots: int, start_s: float
) -> None:
    arrivals = [Arrival(at, service) for at, service in sorted(rows)]
    conditions = Conditions(slots=slots, provision_s=start_s)
    found = simulate(spec, arrivals, conditions)
    assert found == simulate(spec, arrivals, conditions)
    thorough = Thorough(spec, conditions)
    thorough.play(arrivals, 0)
    while thorough.present():
        thorough.tick(thorough.now + 1)
    assert found == thorough.outcome(thorough.now)
    assert found.requests == len(arrivals)
    assert found.billed_s >= found.worker_s - 0.1
    assert 0 <= found.utilisation <= 1.0
    assert found.peak_workers >= 1
    work_s = sum(arrival.service_s for arrival in arrivals)
    if not found.timeouts:
        assert found.worker_s * slots >= work_s - 0.2
