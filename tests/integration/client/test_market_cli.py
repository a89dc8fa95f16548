"""The market from the command line, on a real cloud with a test clock: buy, sell, move, automate, run, enter, bill."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration
START_S_MAX = 60.0


class Shop:
    """A cloud with a clock that stands still, and the command line that talks to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {**os.environ, "TZ": "UTC", "XDG_CONFIG_HOME": str(directory / "config"), "PYTHONWARNINGS": "ignore"}
        for name in ("NANOPOD_URL", "NANOPOD_API_KEY", "NANOPOD_TOKEN", "NANOPOD_HOME"):
            self.env.pop(name, None)
        self._up = subprocess.Popen(
            [sys.executable, "-m", "nanopod", "up", "--json", "--port", "0", "--test-clock", "--data-dir",
             str(directory / "data")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env, cwd=directory,
        )  # fmt: skip
        assert self._up.stdout and self._up.stderr
        line = self._up.stdout.readline()
        if not line:
            raise RuntimeError(f"nanopod up failed: {self._up.stderr.read()}")
        facts = json.loads(line)
        self.env |= {"NANOPOD_URL": facts["url"], "NANOPOD_TOKEN": Path(facts["key_file"]).read_text().strip()}

    def run(self, line: str, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """One command."""
        return subprocess.run(
            [sys.executable, "-m", "nanopod", *shlex.split(line)],
            input=stdin, capture_output=True, text=True, timeout=90, env=self.env, cwd=self.directory,
        )  # fmt: skip

    def ok(self, line: str, **more: str) -> str:
        """Its output; it has to succeed."""
        done = self.run(line, **more)
        assert done.returncode == 0, f"nanopod {line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, line: str) -> Any:
        """What it prints with --json."""
        return json.loads(self.ok(f"{line} --json"))

    def until(self, look: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        """Wait for something that happens by itself."""
        end = time.monotonic() + seconds
        while not look():
            assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
            time.sleep(0.2)

    def stop(self) -> None:
        """End the cloud."""
        self._up.send_signal(signal.SIGTERM)
        try:
            self._up.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._up.kill()
            self._up.communicate(timeout=10)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("shop"))
    try:
        yield made
    finally:
        made.stop()


def test_what_is_for_sale(shop: Shop) -> None:
    shop.until(lambda: bool(shop.json("instance-skus list")["data"]), "a node joins")
    skus = shop.json("instance-skus list")["data"]
    assert len(skus) == 1 and "ACCELERATOR" in shop.ok("instance-skus list -v")
    shop.until(lambda: "UTC" in shop.ok("availability"), "the node is offered")
    quote = shop.json("orderbook quote --duration 1h")
    assert quote["best_ask"]["dollars_per_node_hour"] == "0.000000" and quote["best_bid"] is None
    assert "BEST ASK" in shop.ok("orderbook quote --start 'in 5h' --duration 1h")
    for verb in ("depth --depth 3", "windows", "fills"):
        shop.ok(f"orderbook {verb} --duration 2h")
    clock = shop.json("test-clock get")
    assert shop.ok("test-clock get").count("UTC") == 1 and clock["now_at"] > 0


def test_the_published_guide_runs_as_written(shop: Shop) -> None:
    (shop.directory / "startup.sh").write_text("#!/bin/sh\necho hello from $NANOPOD_INSTANCE_ID\nsleep 1000\n")
    (shop.directory / "rootfs").mkdir()
    with tarfile.open(shop.directory / "rootfs.tar", "w") as archive:
        archive.add(shop.directory / "rootfs", "etc")
    shop.ok("images upload -f rootfs.tar -n ubuntu-22.04.5-cuda-12.7 --concurrency 2")
    assert shop.json("images get ubuntu-22.04.5-cuda-12.7")["upload_status"] == "completed"
    shop.ok("capacities create --name inference")
    shop.ok(
        "instance-templates create --name inference-worker --image ubuntu-22.04.5-cuda-12.7 --cloud-init ./startup.sh"
    )
    shop.ok("deployments create --name inference --capacity inference --instance-template inference-worker "
            "--target-instance-count 4")  # fmt: skip
    listed = shop.ok("deployments list")
    assert listed.split("\n")[0].split() == ["NAME", "CAPACITY", "INSTANCES", "STATUS", "MESSAGE"]
    assert "0/4" in listed
    shop.ok("procurements create --name inference --capacity inference --target node_count --max-buy-price 20.00 "
            "--min-sell-price 10.00 --window 2h")  # fmt: skip
    found = shop.json("procurements get inference")
    assert found["target"] == "node_count" and found["managed_window_minutes"] == 120
    assert found["max_buy_price_dollars_per_node_hour"] == "19.999980"
    shop.ok("deployments set inference --target-instance-count 8")
    assert shop.json("deployments get inference")["target_instance_count"] == 8
    bought = shop.json("orders list --procurement inference")["data"]
    assert bought and {order["side"] for order in bought} == {"buy"}
    shop.ok("deployments set inference --target-instance-count 2")
    assert shop.json("deployments get inference")["target_instance_count"] == 2
    shop.ok("test-clock advance --blocks 1")  # the time that was bought begins
    shop.until(lambda: "2/2" in shop.ok("deployments list"), "two instances run")
    held = shop.json("capacities get inference")["allocation_schedule"]["total"]
    assert held and max(entry["node_count"] for entry in held) >= 2
    shop.ok("instances list")
    shop.ok("billing balance")


def test_orders_by_hand(shop: Shop) -> None:
    shop.ok("capacities create --name dev")
    line = "orders create --side buy --capacity dev --nodes 1 --start 'in 5h' --duration 24h --max-rate 20.00"
    out = shop.ok(line)
    assert "limit 19.999980 $/node-hour (you typed 20.00; step 0.000060)" in out and "hold $479.999520" in out
    assert "| STATUS        filled" in out and "UTC" in out
    order = shop.json(line.replace("5h", "48h"))
    assert order["status"] == "filled" and shop.json(f"orders get {order['id']}") == order
    assert order["id"] in shop.ok("orders list --capacity dev --side buy --status filled")
    assert shop.json("contracts list --capacity dev")["data"][0]["side"] == "buy"
    assert shop.ok("capacities list").splitlines()[0].split() == ["NAME", "NODES", "PERIOD"]
    verbose = shop.ok("capacities get dev --verbose")
    assert "TOTAL SCHEDULE" in verbose and "1 node  " in verbose
    standing = shop.json(
        "orders create --side sell --capacity dev --start 'in 48h' --duration 2h --min-rate 5.00 --allow-standing"
    )
    assert standing["status"] == "standing"
    assert "cancelled" in shop.ok(f"orders cancel {standing['id']}")
    unfilled = shop.run("orders create --side sell --capacity dev --start 'in 48h' --duration 2h --min-rate 5.00")
    assert unfilled.returncode == 7 and "cancelled (unfilled)" in unfilled.stdout
    owned = shop.run(
        "orders create --side sell --capacity dev --nodes 500 --start 'in 48h' --duration 2h --min-rate 5.00"
    )
    assert owned.returncode == 2, owned.stderr


def test_json_is_what_the_api_answers(shop: Shop) -> None:
    def raw(path: str) -> Any:
        head = {"Authorization": f"Bearer {shop.env['NANOPOD_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(shop.env["NANOPOD_URL"] + path, headers=head)) as answer:
            return json.load(answer)

    for noun in (
        "capacities", "instance-skus", "instance-templates", "images", "instances --all", "orders", "contracts",
        "procurements", "deployments", "workspaces", "keys", "providers", "offers", "nodes",
    ):  # fmt: skip
        word, *flags = noun.split()
        path = f"/v1/{word.replace('-', '_')}"
        page = shop.json(" ".join([word, "list", *flags]))
        assert page == raw(path), noun
        if word in ("keys", "nodes"):
            continue
        assert page["data"], f"there are some {noun} to compare"
        assert shop.json(f"{word} get {page['data'][0]['id']}") == raw(f"{path}/{page['data'][0]['id']}"), noun
    assert shop.json("billing balance") == raw("/v1/balances")
    assert shop.json("billing transactions") == raw("/v1/transactions")
    assert shop.json("events") == raw("/v1/events")


def test_buying_without_a_limit_shows_the_price_first(shop: Shop) -> None:
    assert "PREVIEW" in shop.ok("buy --capacity dev --duration 1h --start 'in 100h' --quote")
    refused = shop.run("buy --capacity dev --duration 1h --start 'in 100h'")
    assert refused.returncode == 2 and "-y" in refused.stderr and "PREVIEW" in refused.stdout
    assert "filled" in shop.ok("buy --capacity dev --duration 1h --start 'in 100h' -y")
    too_much = shop.run("buy --capacity dev --count 1000 --duration 1h --start 'in 100h' -y")
    assert too_much.returncode == 7 and "no_availability" in too_much.stderr


def test_transfers(shop: Shop) -> None:
    shop.ok("capacities create --name spare --tag team=x")
    made = shop.json("capacities transfers create --from dev --to spare --nodes 1 --start 'in 6h' --duration 4h")
    assert made["status"] == "executed" and made["to_capacity"]["name"] == "spare"
    rejected = shop.run("capacities transfers create --from dev --to spare --nodes 1 --start 'in 6h' --duration 4h")
    assert rejected.returncode == 6 and "rejected" in rejected.stdout
    assert made["id"] in shop.ok("pools transfers list")
    assert shop.json("capacities list --tag team=x")["data"][0]["name"] == "spare"
    assert shop.run("capacities delete spare").returncode == 2, "it still holds time"


def test_errors_have_their_exit_status_and_json(shop: Shop) -> None:
    for line, code in (
        ("capacities get nowhere", 3),
        ("capacities create --name dev", 2),
        ("orders create --side buy --capacity dev --duration 1h --start yesterday --max-rate 1.00", 2),
        ("orders create --side buy --capacity dev --duration 1h --start 'in -5h' --max-rate 1.00", 2),
        ("procurements create --name again --capacity inference --max-buy-price 1.00", 6),
        ("me --api-key sk_np_wrong", 4),
    ):
        done = shop.run(line)
        assert done.returncode == code, f"{line}: {done.returncode} {done.stderr}"
        assert done.stderr.splitlines()[-1].startswith("nanopod "), done.stderr
        answered = shop.run(f"{line} --json")
        error = json.loads(answered.stdout)["error"]
        assert answered.returncode == code and error["type"] and error["message"], line


def test_instances_inside_and_out(shop: Shop) -> None:
    shop.until(lambda: "ready" in shop.ok("instances list --capacity inference"), "an instance is ready")
    rows = [row for row in shop.json("instances list --capacity inference")["data"] if row["phase"] == "ready"]
    name = rows[0]["name"]
    assert "hello from" in shop.ok(f"instances logs {name}")
    done = shop.run(f"instances ssh {name} -- sh -c 'cat; echo err >&2; exit 5'", stdin="typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, "typed\n", "err\n")
    done = shop.run("instances run --deployment inference --timeout 30s -- sh -c 'echo from $NANOPOD_INSTANCE_ID'")
    assert done.returncode == 0 and done.stdout.count("| from inst_") == len(rows), done.stdout + done.stderr
    assert shop.run(f"instances run {name} -- false").returncode == 1
    assert shop.json(f"instances set {name} --priority preferred")["priority_level"] == "preferred"
    replaced = shop.json(f"instances replace {name} --cloud-init ./startup.sh")
    assert replaced["id"] != rows[0]["id"]
    assert shop.run(f"instances delete {replaced['id']}").returncode == 6
    assert "terminated" in shop.ok(f"instances terminate {replaced['id']}")


def test_money_keys_and_workspaces(shop: Shop) -> None:
    shop.ok("workspaces create --name research")
    assert "research" in shop.ok("workspaces list")
    topped = shop.json("billing top-up 25.00 --workspace research")
    assert topped["current"] == "25.000000"
    assert "$25.000000" in shop.ok("billing balance --workspace research")
    assert "top_up" in shop.ok("billing transactions --workspace research")
    assert shop.ok("billing statement --format html").lstrip().lower().startswith("<!doctype html")
    assert "25.0" in shop.ok("billing statement --workspace research --format csv")
    invoice = shop.json("billing invoices create")
    assert invoice["id"] in shop.ok("billing invoices list")
    shop.ok(f"billing invoices get {invoice['id']}")
    poor = shop.ok("tokens create --name poor --expires 90d --workspace research").strip()
    shop.ok(f"capacities create --name mine --api-key {poor}")
    broke = shop.run(
        f"orders create --side buy --capacity mine --nodes 2 --duration 7d --max-rate 20.00 --api-key {poor}"
    )
    assert broke.returncode == 5, broke.stderr
    assert shop.run(f"capacities get dev --api-key {poor}").returncode == 3
    shop.ok("keys revoke poor --workspace research")
    assert shop.run(f"me --api-key {poor}").returncode == 4
    assert shop.json("me")["workspace_id"]


def test_providers_offers_and_events(shop: Shop) -> None:
    assert "local-node" in shop.ok("providers list")
    assert "FLOOR" in shop.ok("providers get local-node")
    offers = shop.json("offers list")["data"]
    changed = shop.json(f"offers set {offers[0]['id']} --floor-price 1.20 --quiet-hours 22-6")
    assert changed["floor_price_dollars_per_node_hour"] == "1.200000"
    assert shop.json("orderbook quote --duration 1h --start 'in 140h'")["best_ask"] is not None
    shop.ok("providers set local-node --floor-price 0.00 --quiet-hours none")
    assert "order." in shop.ok("events --limit 200")
    following = subprocess.Popen(
        [sys.executable, "-m", "nanopod", "events", "-f", "--type", "capacity.created"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=shop.env,
    )  # fmt: skip
    try:
        assert following.stdout
        numbers = count()

        def seen() -> bool:
            # Nobody knows when it listens: one after another, until one is told.
            shop.ok(f"capacities create --name seen-{next(numbers)}")
            return bool(select.select([following.stdout], [], [], 0.5)[0])

        shop.until(seen, "a followed event", 60)
        assert "seen-" in following.stdout.readline()
    finally:
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=10)


def test_time_passes_when_told(shop: Shop) -> None:
    before = shop.json("test-clock get")["now_at"]
    shop.ok("test-clock advance --by 1h")
    after = shop.json("test-clock get")["now_at"]
    assert after - before == 3600
    shop.ok("test-clock advance --blocks 1")
    assert "2/2" in shop.ok("deployments list"), "the procurement has kept them running"
    shop.ok("deployments delete inference --cascade")
    shop.ok("procurements delete inference")


def test_login_keeps_server_and_key(shop: Shop) -> None:
    url, key = shop.env["NANOPOD_URL"], shop.env["NANOPOD_TOKEN"]
    plain = {name: value for name, value in shop.env.items() if name not in ("NANOPOD_URL", "NANOPOD_TOKEN")}
    done = subprocess.run(
        [sys.executable, "-m", "nanopod", "login", "--url", url, "--key", key],
        capture_output=True, text=True, timeout=60, env=plain,
    )  # fmt: skip
    assert done.returncode == 0 and key not in done.stdout + done.stderr
    kept = Path(plain["XDG_CONFIG_HOME"]) / "nanopod" / "api_key"
    assert kept.read_text().strip() == key and kept.stat().st_mode & 0o77 == 0
    done = subprocess.run(
        [sys.executable, "-m", "nanopod", "version"], capture_output=True, text=True, timeout=60, env=plain
    )
    assert url in done.stdout
