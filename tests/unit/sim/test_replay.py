"""The replay conserves requests and time, and shows what the rule is for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nanopod.model.endpoint import ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.sim.command import parse_scale
from nanopod.sim.replay import Arrival, azure_trace, replay, synthetic_day

ZERO = ScaleSpec(cold_workers=0, min_load=0, inactivity_timeout=20, max_workers=8)
TRACE = Path(__file__).parents[4] / "shared/data/traces/requests/azure2023/AzureLLMInferenceTrace_conv.csv"


def test_one_request_wakes_one_worker_and_it_sleeps_again() -> None:
    late = Arrival(200.0, 1.0)
    outcome = replay(ZERO, [Arrival(5.0, 3.0), late], slots=4, wake_s=10)
    assert outcome.requests == 2
    assert outcome.wakes == 2
    assert outcome.wait_p99 == pytest.approx(10, abs=1.1)
    assert outcome.worker_s < 80  # asleep between the two


def test_a_steady_load_gets_the_workers_it_needs() -> None:
    # 2 requests a second of 4 s each are 8 at once; at 0.9 * 2 slots that is 5 workers.
    arrivals = [Arrival(t / 2, 4.0) for t in range(1200)]
    outcome = replay(ScaleSpec(max_workers=16), arrivals, slots=2, wake_s=5)
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
    peak = scaled.peak_workers
    fixed = replay(ScaleSpec(cold_workers=peak, max_workers=peak), day, slots=4, wake_s=20)
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
        parse_scale(["max_worker=3"])
    assert parse_scale(["max_workers=3", "inactivity_timeout=none"]).inactivity_timeout is None


def test_the_command_prints_json() -> None:
    words = ["sim", "--hours", "0.2", "--json"]
    done = subprocess.run([sys.executable, "-m", "nanopod", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scaled"]["requests"] > 0
