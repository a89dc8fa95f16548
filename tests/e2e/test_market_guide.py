"""The published guide, command by command: capacity, template, deployment, procurement, scale, a reserved block that
interrupts, the warnings before it and the replacement after it."""

from __future__ import annotations

import re
import shlex
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud
from market_desk import Hand, until

pytestmark = pytest.mark.e2e

IMAGE = "ubuntu-22.04.5-cuda-12.7"
SCRIPT = """#!/bin/sh
echo "up with $(cat "$NANOPOD_IMAGE_DIR/etc/guide")" > started.txt
exec sleep 100000
"""
HOUR = 3600
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny root file system."""
    path = tmp_path_factory.mktemp("image") / "rootfs.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("etc/guide")
        entry.size = 6
        archive.addfile(entry, BytesIO(b"guide\n"))
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What instances run."""
    path = tmp_path_factory.mktemp("script") / "cloud-init.sh"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def frozen() -> Iterator[Hand]:
    """The operator of a cloud with a test clock."""
    with Cloud(flags=["--test-clock"]) as cloud:
        yield Hand(cloud, cloud.key)


@pytest.fixture(scope="module")
def other(frozen: Hand) -> Hand:
    """Another account that can pay."""
    frozen.run("workspaces", "create", "--name", "rival")
    frozen.run("billing", "top-up", "20000.00", "-w", "rival", "-y")
    key = frozen.json("keys", "create", "--name", "rival", "-w", "rival")["key"]
    return Hand(frozen.cloud, key)


def instances(hand: Hand, status: str) -> list[dict[str, Any]]:
    """The deployment's instances in a state."""
    return [one for one in hand.json("instances", "list")["data"] if one["status"] == status]


def running(hand: Hand, count: int) -> list[dict[str, Any]]:
    """Wait until exactly `count` instances run and are ready."""

    def look() -> list[dict[str, Any]]:
        found = [one for one in instances(hand, "running") if one["phase"] == "ready"]
        return found if len(found) == count else []

    return list(until(look, f"{count} running instances"))


def test_01_an_image_a_capacity_a_template_and_a_deployment(frozen: Hand, image_file: Path, script: Path) -> None:
    image = frozen.json("images", "upload", "-f", str(image_file), "-n", IMAGE)
    assert image["upload_status"] == "completed" and image["name"] == IMAGE
    frozen.run("capacities", "create", "--name", "inference")
    frozen.run(
        "instance-templates", "create", "--name", "inference-worker", "--image", IMAGE, "--cloud-init", str(script)
    )
    made = frozen.json(
        "deployments", "create", "--name", "inference", "--capacity", "inference",
        "--instance-template", "inference-worker", "--target-instance-count", "4",
    )  # fmt: skip
    assert made["target_instance_count"] == 4
    assert len(instances(frozen, "awaiting_allocation")) == 4, "made at once, and nothing is bought for them yet"


def test_02_a_procurement_buys_their_time(frozen: Hand) -> None:
    made = frozen.json(
        "procurements", "create", "--name", "inference", "--capacity", "inference", "--target", "node_count",
        "--max-buy-price", "20.00", "--min-sell-price", "10.00", "--window", "2h", "-y",
    )  # fmt: skip
    assert made["target"] == "node_count" and made["managed_window_minutes"] == 120
    assert made["max_buy_price_dollars_per_node_hour"] == "19.999980", "rounded to the step, and said"
    assert "19.999980" in frozen.said and "you typed 20.00" in frozen.said
    now = frozen.now()
    capacity = frozen.json("capacities", "get", "inference")
    (entry,) = capacity["allocation_schedule"]["total"]
    assert entry == {"start_at": now + 60, "end_at": now + 60 + 2 * HOUR, "node_count": 4}
    waiting = instances(frozen, "awaiting_allocation")
    assert {one["expected_start_at"] for one in waiting} == {now + 60}
    frozen.run("test-clock", "advance", "--blocks", "1")
    running(frozen, 4)


def test_03_their_start_up_script_has_run(frozen: Hand) -> None:
    said = until(
        lambda: frozen.run("instances", "run", "--deployment", "inference", "--", "cat", "started.txt"),
        "the script wrote its file",
    )
    lines = [line for line in said.splitlines() if "| up with guide" in line]
    assert len(lines) == 4, said


def test_04_scaling_to_eight_buys(frozen: Hand) -> None:
    frozen.run("deployments", "set", "inference", "--target-instance-count", "8")
    schedule = frozen.json("capacities", "get", "inference")["allocation_schedule"]["total"]
    assert schedule[-1]["node_count"] == 8
    frozen.run("test-clock", "advance", "--blocks", "1")
    running(frozen, 8)
    status = frozen.json("procurements", "get", "inference")["status"]
    assert status["state"] == "info" and status["message"].startswith("running: 8 nodes")


def test_05_scaling_to_two_sells(frozen: Hand) -> None:
    frozen.run("deployments", "set", "inference", "--target-instance-count", "2")
    running(frozen, 2)
    levels = frozen.json("orderbook", "depth", "--start", "now", "--duration", "1h")["asks"]
    own = [level for level in levels if level["dollars_per_node_hour"] == "10.000020"]
    assert sum(entry["node_count"] for level in own for entry in level["allocation_schedule_delta"]) == 6
    mine = frozen.json("orders", "list", "--procurement", "inference", "--side", "sell")["data"]
    assert any(order["status"] == "standing" for order in mine)


def test_06_a_reserved_block_of_another_account_is_sold_first(frozen: Hand, other: Hand) -> None:
    nodes = sum(node["slots"] for node in frozen.get("/v1/nodes")["data"])
    other.run("capacities", "create", "--name", "block")
    order = other.json(
        "orders", "create", "--side", "buy", "--capacity", "block", "--nodes", str(nodes), "--start", "in 5h",
        "--duration", "24h", "--max-rate", "20.00", "-y",
    )  # fmt: skip
    assert order["status"] == "filled", order
    assert other.run("capacities", "get", "block", "--verbose").count(f"{nodes} nodes") == 2
    # It lies beyond the window of the first account, so nothing there has changed.
    (first, *_) = running(frozen, 2)
    assert first["expected_shutdown_at"] is not None
    assert not frozen.events("instance.shutdown_expected")


def test_07_warnings_come_before_the_interruption(frozen: Hand, other: Hand) -> None:
    (entry,) = other.json("capacities", "get", "block")["allocation_schedule"]["total"]
    start = entry["start_at"]
    frozen.advance(start - 700)
    live = {one["id"] for one in running(frozen, 2)}
    assert not frozen.events("instance.shutdown_expected"), "a rolling procurement that fills never warns"
    assert {one["expected_shutdown_at"] for one in running(frozen, 2)} == {start}
    assert frozen.json("procurements", "get", "inference")["status"]["message"].startswith(
        ("no_supply", "price_above_limit")
    )
    frozen.advance(start - 600)
    warned = frozen.events("instance.shutdown_expected")
    assert {event["object_id"] for event in warned} == live
    assert {(event["data"]["at"], event["data"]["lead_s"]) for event in warned} == {(start, 600)}
    frozen.advance(start - 240)
    warned = frozen.events("instance.shutdown_expected")
    assert sorted(event["data"]["lead_s"] for event in warned) == [300, 300, 600, 600]
    assert "instance.shutdown_expected" in frozen.run("events", "--limit", "50")
    frozen.advance(start)
    assert not instances(frozen, "running"), "they stopped when the block began"
    assert {event["object_id"] for event in frozen.events("instance.terminated")} >= live
    assert len(instances(frozen, "awaiting_allocation")) == 2, "the deployment has made new ones"


def test_08_replacements_run_when_the_block_is_over(frozen: Hand, other: Hand) -> None:
    (entry,) = other.json("capacities", "get", "block")["allocation_schedule"]["total"]
    end = entry["end_at"]
    waiting = {one["id"] for one in instances(frozen, "awaiting_allocation")}
    frozen.advance(end - 3 * HOUR)
    assert not instances(frozen, "running")
    frozen.advance(end)
    assert {one["id"] for one in running(frozen, 2)} == waiting


def test_09_a_ledger_without_gaps(frozen: Hand, other: Hand) -> None:
    balance = other.json("billing", "balance")
    shown = balance["data"][0] if "data" in balance else balance
    assert shown["holds"] == "0.000000"
    paid = sum(float(one["amount"]) for one in other.all("/v1/contracts"))
    assert float(shown["current"]) == pytest.approx(20_000 - paid, abs=1e-5)


def test_the_guide_on_the_wall_clock(image_file: Path, script: Path) -> None:
    with Cloud() as cloud:
        hand = Hand(cloud, cloud.key)
        hand.run("images", "upload", "-f", str(image_file), "-n", IMAGE)
        hand.run("capacities", "create", "--name", "inference")
        hand.run(
            "instance-templates", "create", "--name", "inference-worker", "--image", IMAGE, "--cloud-init", str(script)
        )
        hand.run(
            "procurements", "create", "--name", "inference", "--capacity", "inference", "--target", "node_count",
            "--max-buy-price", "20.00", "--min-sell-price", "10.00", "--window", "2h", "-y",
        )  # fmt: skip
        begun = time.monotonic()
        hand.run(
            "deployments", "create", "--name", "inference", "--capacity", "inference",
            "--instance-template", "inference-worker", "--target-instance-count", "4",
        )  # fmt: skip
        running(hand, 4)
        assert time.monotonic() - begun < 15, "nodes are idle, so nobody waits for the next minute"
        said = hand.run("instances", "run", "--deployment", "inference", "--", "cat", "started.txt")
        assert said.count("up with guide") == 4, said


@pytest.mark.parametrize("page", ["README.md", "docs/MARKET.md", "docs/CLI.md"])
def test_every_command_that_a_page_shows_is_understood(page: str) -> None:
    from nanopod.__main__ import make_parser, table

    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S)
    shown = [line for block in blocks for line in block.splitlines() if line.startswith("nanopod ")]
    assert len(shown) >= 5
    for line in shown:
        words = shlex.split(line, comments=True)[1:]
        words = words[: words.index("&&")] if "&&" in words else words
        make_parser(table(), words[0]).parse_args(words)
