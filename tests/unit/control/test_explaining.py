"""What the API and `nanopod endpoints get` say of an endpoint's scaling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import NOW, SCALE, SPEC, endpoint, instance

from nanopod.client.cli.scaling import facts
from nanopod.control.live import Live
from nanopod.control.scaling import Watch
from nanopod.model.endpoint import ScaleSpec, Tuning
from nanopod.model.wire import EndpointSample, WorkerState


def said(scale: ScaleSpec = SCALE, provision: tuple[float, ...] = (), concurrency: float = 6.0) -> dict[str, Any]:
    """What is said of an endpoint with one ready worker of four slots, after a second of load."""
    live = Live()
    live.gateway_up("g1", ())
    watch = Watch(live, NOW - 1000)
    live.worker("g1", WorkerState("i1", 1, True, True))
    watched = watch.look(endpoint(scale=scale), SPEC, 4, [instance()], "cpu", NOW)
    watched.starts.provision += provision
    live.sample("g1", NOW + 1, EndpointSample("e1", concurrency, 6, 2, 4, oldest_wait_s=1.5), NOW + 1)
    assert live.explain("e1") is None, "nothing was decided yet"
    watch.evaluate("e1", NOW + 2)
    found = live.explain("e1")
    assert found is not None
    return found


def test_every_part_of_a_decision_is_named() -> None:
    found = said(replace(SCALE, target_concurrency=2.0, tuning=Tuning(min_scale=1)))
    (metric,) = found["metrics"]
    assert (metric["name"], metric["stable"], metric["target"]) == ("concurrency", 6.0, 2.0)
    assert (metric["desired_stable"], metric["utilization"]) == (3, 1.0)
    assert (found["ready"], found["starting"], found["cold"], found["desired"], found["want"]) == (1, 0, 0, 3, 3)
    assert found["panic_since"] == NOW + 2
    assert (found["bounds"]["min"], found["bounds"]["max"]) == (1, 10)
    assert found["bounds"]["reasons"] == ["min_scale=1", "max_workers=10"]
    assert found["delay"]["seconds"] == 120
    assert (found["waiting"], found["zero_after_s"], found["advice"]) == (2, None, "")
    assert found["active"]["status"] == "True"
    assert any("6 requests at once" in reason for reason in found["reasons"])


def test_slow_starts_bring_advice_with_the_time_that_was_measured() -> None:
    slow = said(provision=(80.0, 95.0, 100.0))
    assert "a provision takes 95 s" in slow["advice"]
    assert "min_load" in slow["advice"]
    assert "cold_mult" in slow["advice"]
    assert "min_scale" in said(ScaleSpec(profile="coreweave"), (95.0,))["advice"]
    assert said(provision=(8.0,))["advice"] == ""


@pytest.mark.parametrize(
    ("scale", "zero_after_s"),
    [
        (replace(SCALE, inactivity_timeout=45), 45),
        (replace(SCALE, inactivity_timeout=-1), None),
        (replace(SCALE, min_load=1), None),
        (ScaleSpec(profile="knative"), 30),
        (ScaleSpec(profile="coreweave"), 1860),
    ],
)
def test_when_it_goes_to_zero_is_said(scale: ScaleSpec, zero_after_s: float | None) -> None:
    assert said(scale)["zero_after_s"] == zero_after_s


def test_the_command_line_shows_it_for_people() -> None:
    lines = dict(facts({"autoscaling": said(provision=(95.0,))}))
    assert lines["profile"] == "auto"
    assert "requests" not in lines["scaling"]
    assert "1 ready" in lines["scaling"]
    assert lines["waiting"].startswith("2 requests")
    assert lines["bounds"].startswith("at least 0, at most 10")
    assert lines["starts take"] == "provision 95.0 s"
    assert "min_load" in lines["advice"]
    assert facts({"autoscaling": None}) == []
