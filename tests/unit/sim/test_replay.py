"""The replay conserves requests and time, and shows what the rule is for."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nanopod.model.endpoint import Profile, ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.simulate import Arrival
from nanopod.sim.command import configure, fixed_fleet, parse_scale
from nanopod.sim.replay import again, replay
from nanopod.sim.traces import LOADS, azure_trace, load, synthetic_day

ZERO = ScaleSpec(cold_workers=0, min_load=0, inactivity_timeout=20, max_workers=8)
TRACE = Path(__file__).parents[4] / "shared/data/traces/requests/azure2023/AzureLLMInferenceTrace_conv.csv"


def test_one_request_wakes_one_worker_and_it_sleeps_again() -> None:
    late = Arrival(200.0, 1.0)
    outcome = replay(ZERO, [Arrival(5.0, 3.0), late], slots=4, wake_s=10)
    assert outcome.requests == 2
    assert outcome.starts == 2
    assert outcome.wait_p99 == pytest.approx(10, abs=1.1)
    assert outcome.worker_s < 80  # asleep between the two
    kept = replay(replace(ZERO, cold_workers=1), [Arrival(5.0, 3.0), late], slots=4, wake_s=2, provision_s=10)
    assert (kept.starts, kept.wakes) == (2, 1)
    assert kept.wait_mean < kept.wait_max <= 10, "one waited for a new worker, one for a wake"


def test_a_steady_load_gets_the_workers_it_needs() -> None:
    # 2 requests a second of 4 s each are 8 at once; at 0.9 * 2 slots that is 5 workers.
    arrivals = [Arrival(t / 2, 4.0) for t in range(1200)]
    outcome = replay(ScaleSpec(max_workers=16), arrivals, slots=2, wake_s=5)
    assert 4 <= outcome.timeline[-1].ready <= 7
    assert 4 <= outcome.peak_workers <= 16
    assert outcome.timeouts == 0
    assert outcome.late_share < 0.2


def test_the_cap_holds_and_every_request_is_answered() -> None:
    arrivals = [Arrival(0.0, 10.0) for _ in range(100)]
    outcome = replay(replace(ZERO, max_workers=2), arrivals, slots=5, wake_s=1)
    assert outcome.peak_workers == 2
    assert outcome.requests == 100


def test_it_is_deterministic_and_cheaper_than_a_fixed_fleet() -> None:
    day = list(synthetic_day(1, 0.3, 6, seed=4))
    scaled = replay(ZERO, day, slots=4, wake_s=20)
    assert scaled == replay(ZERO, day, slots=4, wake_s=20)
    fixed = replay(fixed_fleet(scaled.peak_workers), day, slots=4, wake_s=20)
    assert {point.ready for point in fixed.timeline[30:]} == {scaled.peak_workers}
    assert scaled.worker_s < fixed.worker_s
    assert scaled.requests == fixed.requests == len(day)


@pytest.mark.skipif(not TRACE.exists(), reason="the public Azure trace is not beside this checkout")
def test_a_real_hour_of_chat_requests() -> None:
    outcome = replay(ScaleSpec(max_workers=32), azure_trace(TRACE, 4000), slots=8, wake_s=30)
    assert outcome.requests == 4000
    assert outcome.timeouts == 0


def test_bad_traces_and_settings_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,1,2\nyesterday,1,2\n")
    with pytest.raises(Invalid, match="line 3"):
        list(azure_trace(bad))
    with pytest.raises(Invalid, match="max_workers"):
        settings("--set", "max_worker=3")
    assert settings().inactivity_timeout == 60
    found = settings("--set", "max_workers=3", "--idle", "7", "--profile", "knative", "--set", "stable_window=30")
    assert (found.max_workers, found.inactivity_timeout, found.profile) == (3, 7, "knative")
    assert found.tuning.stable_window_s == 30


def settings(*words: str) -> ScaleSpec:
    parser = argparse.ArgumentParser()
    configure(parser)
    return parse_scale(parser.parse_args(words))


def test_the_four_loads_have_the_rates_they_promise() -> None:
    for name, (highest, rate) in LOADS.items():
        arrivals = [arrival.at for arrival in load(name, 7)]
        expected = sum(rate(second) for second in range(5400))
        assert abs(len(arrivals) - expected) < 5 * expected**0.5, name
        assert arrivals == sorted(arrivals)
        assert max(rate(second) for second in range(5400)) <= highest
        assert arrivals == [arrival.at for arrival in load(name, 7)]
        assert arrivals != [arrival.at for arrival in load(name, 8)]


@pytest.mark.parametrize("profile", ["auto", "vast", "knative", "coreweave"])
def test_a_recording_leads_to_the_same_decisions_again(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "seen.jsonl"
    arrivals = list(synthetic_day(0.5, 1.0, 4, seed=3))
    replay(replace(ZERO, profile=profile), arrivals, slots=2, wake_s=15, record=path)
    evaluations = list(again(path))
    assert len(evaluations) > 100
    assert all(line.decided == decision for line, decision in evaluations)
    assert len({decision.want for _, decision in evaluations}) > 2


def test_a_recording_that_was_changed_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    replay(ZERO, list(synthetic_day(0.2, 1.0, 4, seed=3)), slots=2, wake_s=15, record=path)
    assert nanopod("sim", "replay", str(path), "--check").returncode == 0
    said = nanopod("sim", "replay", str(path))
    assert [json.loads(line)["want"] for line in said.stdout.splitlines()] == [one.want for _, one in again(path)]
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if n and json.loads(line)["decided"]["want"] > 1)
    line = json.loads(lines[number])
    line["decided"]["want"] += 1
    path.write_text("\n".join([*lines[:number], json.dumps(line), *lines[number + 1 :]]))
    done = nanopod("sim", "replay", str(path), "--check")
    assert done.returncode == 1
    assert f"evaluation {number} " in done.stderr
    path.write_text("\n".join([lines[0], "{"]))
    with pytest.raises(Invalid, match="line 2"):
        list(again(path))
    path.write_text(lines[1])
    with pytest.raises(Invalid, match="line 1"):
        list(again(path))


def nanopod(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nanopod", *words], capture_output=True, text=True, timeout=60)


def test_the_command_prints_json() -> None:
    done = nanopod("sim", "--hours", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scaled"]["requests"] > 0
