"""Scaling on a real cloud: up with the load, down without hurting anybody, hibernated, woken; over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from scaling_stage import Scaled

pytestmark = pytest.mark.integration

QUICK = "tick=1, stable_window=6, panic_window=2, scale_down_delay=1, target_concurrency=1, max_workers=3"


def test_one_three_one_hibernated_and_woken(scaled: Scaled, tmp_path: Path) -> None:
    scaled.deploy(tmp_path, f"{QUICK}, min_load=0, inactivity_timeout=3, cold_workers=1")
    scaled.until(lambda one: one["ready_instance_count"] == 1, "its first worker")
    scaled.load(3)
    scaled.until(lambda one: one["ready_instance_count"] == 3, "a worker for each call")
    said = scaled.shown()["autoscaling"]
    assert said["metrics"][0]["name"] == "concurrency"
    assert (said["ready"], said["want"], said["profile"]) == (3, 3, "auto")
    assert said["start_s"]["provision"] > 0
    assert scaled.rest() > 0
    asleep = scaled.until(lambda one: [i["phase"] for i in one["instances"]] == ["hibernated"], "one is hibernated")
    (kept,) = asleep["instances"]
    assert asleep["status"] == "asleep"
    assert (kept["status"], kept["intent"], kept["pid"], kept["node_id"]) == ("hibernated", "hibernate", None, None)
    rows = scaled.cloud.api("GET", "/v1/instances?status=hibernated")["data"]
    assert [row["id"] for row in rows] == [kept["id"]]
    scaled.load(1)
    awake = scaled.until(lambda one: one["ready_instance_count"] == 1, "it is woken")
    (woken,) = [one for one in awake["instances"] if one["ready"]]
    assert (woken["id"], woken["epoch"]) == (kept["id"], kept["epoch"] + 1), "the same one, and not a new one"
    assert scaled.rest() > 0
    assert scaled.until(lambda one: one["autoscaling"]["start_s"]["wake"], "its wake was measured")


def test_a_killed_server_goes_on_without_panic_and_without_losing_a_call(scaled: Scaled, tmp_path: Path) -> None:
    scaled.deploy(tmp_path, QUICK.replace("stable_window=6", "stable_window=12").replace("delay=1", "delay=10"))
    scaled.until(lambda one: one["ready_instance_count"] == 1, "its first worker")
    scaled.load(2)
    before = scaled.until(
        lambda one: one["ready_instance_count"] == 2 and one["autoscaling"]["panic_since"] is None, "two, and calm"
    )
    ids = {one["id"] for one in before["instances"]}
    assert scaled.cloud.kill("nanopod.server") is not None
    after = scaled.until(
        lambda one: one["ready_instance_count"] == 2 and one["autoscaling"] and one["autoscaling"]["metrics"], "back"
    )
    assert after["autoscaling"]["panic_since"] is None
    assert {one["id"] for one in after["instances"]} == ids
    assert after["autoscaling"]["metrics"][0]["stable"] > 1.0, "the seconds from before count on"
    assert scaled.rest() > 0


def test_settings_are_changed_by_themselves_and_what_it_does_is_shown(scaled: Scaled, tmp_path: Path) -> None:
    scaled.deploy(tmp_path, f"{QUICK}, min_load=0, inactivity_timeout=2, cold_workers=0")
    scaled.until(lambda one: not one["instances"], "nothing is kept where nothing is asked to be")
    revision = scaled.shown()["revision_id"]
    ran = scaled.cli("endpoints", "scale", "naps", "--min", "1", "--set", "stable_window=12")
    assert ran.returncode == 0, ran.stderr
    shown = scaled.until(lambda one: one["ready_instance_count"] == 1, "as many as are kept running")
    assert shown["revision_id"] == revision
    assert shown["scale"]["tuning"]["min_scale"] == 1
    told = scaled.cli("endpoints", "get", "naps").stdout
    assert "min_scale=1" in told
    assert "stable_window_s=12" in told
    bad = scaled.cli("endpoints", "scale", "naps", "--set", "stable_window=2")
    assert bad.returncode != 0
    assert "stable_window is from 6 to 3600" in bad.stderr
