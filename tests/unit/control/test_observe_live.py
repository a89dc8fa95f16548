"""What agents and gateways report, as it is written down and remembered."""

from __future__ import annotations

from typing import Any

import pytest
from chain_rows import NOW, instance

from nanopod.control.live import DEMAND_S, Live
from nanopod.control.observe import observe_machine
from nanopod.model.chain import Instance
from nanopod.model.endpoint import Failure, ObservedInstance
from nanopod.model.wire import EndpointSample, WorkerState


class Recorder:
    """Just enough of a transaction."""

    def __init__(self, *rows: Instance) -> None:
        self.rows = rows
        self.changes: dict[str, dict[str, Any]] = {}
        self.signals: list[tuple[str, str]] = []

    def instances_on(self, machine_id: str) -> list[Instance]:
        return list(self.rows)

    def set_instance(self, seen: Instance, **values: Any) -> None:
        self.changes[seen.instance_id] = values

    def signal(self, kind: str, key: str, now: float) -> None:
        self.signals.append((kind, key))

    def hint(self, topic: str) -> None:
        assert topic == "tables"


def observe(row: Instance, *seen: ObservedInstance) -> dict[str, Any] | None:
    recorder = Recorder(row)
    observe_machine(recorder, "m1", seen, NOW)  # type: ignore[arg-type]
    return recorder.changes.get(row.instance_id)


def test_a_new_phase_is_written_and_signalled() -> None:
    recorder = Recorder(instance("i1", phase="queued", pid=None))
    observe_machine(recorder, "m1", [ObservedInstance("i1", 1, "starting", pid=9)], NOW)  # type: ignore[arg-type]
    assert recorder.changes["i1"] == {"phase": "starting", "pid": 9}
    assert recorder.signals == [("instance", "i1"), ("endpoint", "e1")]


def test_the_same_again_changes_nothing() -> None:
    assert observe(instance("i1"), ObservedInstance("i1", 1, "loading", pid=7)) is None


def test_a_failure_comes_with_its_signal() -> None:
    failure = Failure("import", "no")
    changes = observe(instance("i1"), ObservedInstance("i1", 1, "failed", signal=9, reason="killed", failure=failure))
    assert changes == {"phase": "failed", "pid": None, "exit_code": -9, "reason": "killed", "failure": failure}


def test_an_old_epoch_is_of_no_interest() -> None:
    fresh = instance("i1", epoch=2, phase="queued")
    assert observe(fresh, ObservedInstance("i1", 1, "failed")) is None
    assert observe(instance("i1", epoch=1), ObservedInstance("i1", 2, "loading")) is None


@pytest.mark.parametrize(
    ("row", "phase"),
    [
        (instance("i1", phase="queued"), None),
        (instance("i1", phase="loading"), "failed"),
        (instance("i1", phase="loading", intent="stop"), "ended"),
        (instance("i1", phase="failed"), None),
    ],
)
def test_what_a_machine_no_longer_knows_is_over(row: Instance, phase: str | None) -> None:
    assert (observe(row) or {}).get("phase") == phase


def test_links_by_epoch() -> None:
    live = Live()
    live.gateway_up("g1", ())
    assert live.worker("g1", WorkerState("i1", 1, True, True, in_flight=3))
    assert live.ready("i1", 1)
    assert not live.ready("i1", 2)
    assert live.in_flight("i1", 1) == 3
    assert not live.worker("g1", WorkerState("i1", 1, True, True, in_flight=4)), "readiness did not change"
    assert live.worker("g1", WorkerState("i1", 2, True, True))
    live.worker("g1", WorkerState("i1", 1, False, False))
    assert live.ready("i1", 2), "the end of an older link does not end the newer one"
    assert live.gateway_down("g1") == ["i1"]
    assert not live.ready("i1", 2)
    assert not live.reachable


def test_samples_of_several_gateways_add_up_and_repeats_do_not() -> None:
    live = Live()
    load = live.restored("e1", {}, 0.0, NOW)
    for gateway, value in (("g1", 2.0), ("g2", 3.0), ("g1", 1.0)):
        live.sample(gateway, NOW, EndpointSample("e1", value, 1, 1, 1))
    ((second, tally),) = load.take()
    assert (second, tally.concurrency, tally.requests) == (int(NOW), 5.0, 2)
    assert (load.waiting(NOW), load.in_flight()) == (2, 2)
    assert load.take() == [], "each second is given once"


def test_samples_wait_for_the_memory_that_says_which_of_them_it_holds() -> None:
    live = Live()
    live.gateway_up("g1", ())
    for at in (NOW, NOW + 1, NOW + 2):
        live.sample("g1", at, EndpointSample("e1", 1.0, 1, 0, 1))
    assert [at < NOW for _, at in live.acks()] == [True], "none of them is stored yet"
    load = live.restored("e1", {"g1": NOW + 1}, NOW, NOW + 3)
    assert [second for second, _ in load.take()] == [int(NOW + 2)]
    live.stored("e1", {"g1": NOW + 2})
    assert live.acks() == [("g1", NOW + 2)]
    assert live.acks() == [], "said once"
    live.gateway_up("g1", ())
    assert live.acks() == [("g1", NOW + 2)], "and again to one that is linked anew"


def test_demand_lasts_until_it_is_not_repeated() -> None:
    live = Live()
    live.demand("e1", 2, NOW)

    def waiting(at: float) -> int:
        return live.loads["e1"].waiting(at)

    assert waiting(NOW + DEMAND_S - 0.1) == 2
    assert waiting(NOW + DEMAND_S) == 0
    live.demand("e1", 2, NOW)
    live.sample("g1", NOW, EndpointSample("e1", 0.0, 0, 0, 0))
    assert waiting(NOW) == 0


def test_a_gateway_whose_clock_was_far_ahead_is_heard_again() -> None:
    live = Live()
    live.gateway_up("gw", ())
    live.restored("e1", {}, 0.0, NOW)
    sample = EndpointSample("e1", 1.0, 1, 0, 1)
    assert live.sample("gw", NOW + 86_400, sample, NOW)
    assert live.acks() == [("gw", pytest.approx(NOW + 86_400))]
    for at in (NOW + 1, NOW + 2, NOW + 3):
        assert live.sample("gw", at, sample, at)
        assert not live.sample("gw", at, sample, at)
    live.stored("e1", {"gw": NOW + 3})
    assert not live.is_unsaved("e1")
    assert live.acks() == [("gw", NOW + 3)]


def test_what_is_no_number_counts_as_nothing() -> None:
    live = Live()
    load = live.restored("e1", {}, 0.0, NOW)
    nan, inf = float("nan"), float("inf")
    assert not live.sample("gw", nan, EndpointSample("e1", 1.0, 1, 0, 1), NOW)
    bad = EndpointSample(
        "e1", nan, -5, -1, -1, inf, waiting_load=nan, oldest_wait_s=-inf, served=(nan, -1.0, 2), tokens=-3
    )
    assert live.sample("gw", NOW, bad, NOW)
    assert live.sample("gw", NOW + 0.5, EndpointSample("e1", 2.0, 3, 0, 1, 4.0), NOW)
    ((_, tally),) = load.take()
    assert (tally.concurrency, tally.requests, tally.units, tally.tokens, tally.served) == (
        2.0,
        3,
        4.0,
        0,
        (0.0, 0.0, 2),
    )
    assert (load.waiting_load(), load.in_flight(), load.oldest_wait_s(NOW)) == (0.0, 1, 0.0)


def test_seconds_that_come_again_in_any_order_count_once() -> None:
    live = Live()
    load = live.restored("e1", {}, 0.0, NOW)
    for at in (1, 2, 3, 1, 3, 2, 4, 4, 1):
        live.sample("gw", NOW + at, EndpointSample("e1", 1.0, 1, 0, 0), NOW + 4)
    assert [tally.requests for _, tally in load.take()] == [1, 1, 1, 1]
