"""Spawned calls and schedules outlive whoever made them, the server and the gateway; nothing starts twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from spawning import APP, Spawning, eventually

pytestmark = pytest.mark.integration

CALLER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from nanopod import Deployment
call = Deployment.from_name("spawned").function("gated").spawn(sys.argv[2])
print(call.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
FETCHER = """
import sys
from nanopod.client.call import Call
print(Call.from_id(sys.argv[1]).get(60))
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100, env=dict(os.environ))


def test_a_call_outlives_its_caller_and_the_server(stage: Spawning, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    said = python("-c", CALLER, str(APP.parent), str(gate))
    assert said.returncode == -9, said.stderr
    call_id = said.stdout.strip()
    eventually(lambda: [str(gate)] in stage.marks("gated"), "the call starts")
    stage.restart("nanopod.server")
    gate.touch()
    fetched = python("-c", FETCHER, call_id)
    assert fetched.stdout.strip() == str(gate), fetched.stderr
    shell = python("-m", "nanopod", "calls", "result", call_id, "--wait", "60s")
    assert json.loads(shell.stdout) == str(gate), shell.stderr
    assert stage.marks("gated").count([str(gate)]) == 1


def test_a_call_is_cancelled_although_the_server_was_killed(stage: Spawning, tmp_path: Path) -> None:
    call = stage.app.gated.spawn(str(tmp_path / "never"))
    eventually(lambda: stage.call(call.id)["status"] == "running")
    stage.restart("nanopod.server")
    eventually(lambda: call.cancel()["status"] == "cancelled")


def test_nothing_starts_twice_whatever_is_killed(stage: Spawning) -> None:
    made = stage.app.once.spawn_map([f"item{number}" for number in range(120)])
    slow = [stage.app.once.spawn(f"slow{number}", 0.2) for number in range(60)]
    for module in ("nanopod.server", "nanopod.gateway", "nanopod.server", "nanopod.gateway"):
        stage.restart(module)
    outcomes = Counter(stage.ended(call.id)["status"] for call in (*made, *slow))
    assert set(outcomes) == {"succeeded"}, "a worker that lives on has every answer"
    starts = Counter(words[0] for words in stage.marks("once") if words[0].startswith(("item", "slow")))
    assert len(starts) == 180
    assert set(starts.values()) == {1}
    ids = Counter(words[1] for words in stage.marks("once"))
    assert set(ids.values()) == {1}


def test_a_lost_worker_is_said_and_its_calls_are_not_run_again(stage: Spawning, tmp_path: Path) -> None:
    calls = {path: stage.app.gated.spawn(path) for path in (str(tmp_path / f"lost{number}") for number in range(3))}
    eventually(lambda: all(stage.call(call.id)["status"] == "running" for call in calls.values()))
    stage.cloud.kill("nanopod.node.worker")
    for path, call in calls.items():
        found = stage.ended(call.id)
        assert (found["status"], found["error"]["code"]) == ("failed", "worker_lost")
        assert stage.marks("gated").count([path]) == 1
    assert stage.app.echo.spawn("after").get(60) == "after"


def test_a_schedule_starts_once_per_tick_without_any_caller(stage: Spawning) -> None:
    def schedule() -> dict[str, Any]:
        return dict(stage.cloud.api("GET", "/v1/schedules?endpoint=spawned")["data"][0])

    def started() -> list[dict[str, Any]]:
        return list(stage.cloud.api("GET", f"/v1/calls?schedule={schedule()['id']}&limit=200")["data"])

    eventually(lambda: len(started()) >= 2, "two ticks")
    before = len(started())
    stage.restart("nanopod.server")
    eventually(lambda: len(started()) >= before + 2, "ticks after a restart")
    name = "spawned.tick"
    paused = stage.cloud.api("PATCH", f"/v1/schedules/{name}", {"paused": True})
    assert (paused["paused"], paused["next_at"], paused["period_s"]) == (True, None, 1.0)
    rows = started()
    assert all(row["origin"] == "schedule" for row in rows)
    seconds = [int(row["created_at"]) for row in rows]
    assert max(Counter(seconds).values()) <= 2, "a tick that was missed runs once, beside the next one"
    by_hand = stage.cloud.api("POST", f"/v1/schedules/{name}/run", {})
    assert stage.ended(by_hand["id"])["status"] == "succeeded"
    for row in rows:
        assert stage.ended(row["id"])["status"] == "succeeded"
    ticks = [words[0] for words in stage.marks("tick")]
    assert len(ticks) == len(set(ticks)) == len(rows) + 1
    assert len(started()) == len(rows) + 1, "nothing more starts while it is paused"
    resumed = stage.cloud.api("PATCH", f"/v1/schedules/{name}", {"paused": False})
    assert resumed["next_at"] > rows[0]["created_at"]
    eventually(lambda: len(started()) > len(rows) + 1, "a tick after it was resumed")
    assert stage.refused("GET", "/v1/schedules/nothing")[0] == 404
