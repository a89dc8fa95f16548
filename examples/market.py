"""A day on the market in half a minute: a cloud with a test clock, two accounts, an interruption and its end.

`python examples/market.py` prints every command it runs, so the same can be typed by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = "#!/bin/sh\necho up > started.txt\nexec sleep 100000\n"


class Desk:
    """Runs `nanopod` commands against one cloud."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("NANOPOD_")}

    def run(self, *words: str, quiet: bool = False) -> str:
        """A command as typed, shown with what it printed."""
        if not quiet:
            print(f"\n$ nanopod {' '.join(repr(word) if ' ' in word else word for word in words)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "nanopod", *words], env=self.env, text=True, capture_output=True, timeout=120
        )
        if done.returncode:
            raise SystemExit(f"nanopod {words[0]} ended with {done.returncode}: {done.stderr.strip()}")
        if not quiet:
            print((done.stderr + done.stdout).strip(), flush=True)
        return done.stdout

    def up(self) -> None:
        """A cloud whose clock stands still."""
        facts = self.run("up", "--detach", "--json", "--port", "0", "--data-dir", str(self.data), "--test-clock")
        self.env["NANOPOD_URL"] = json.loads(facts)["url"]
        self.env["NANOPOD_API_KEY"] = (self.data / "admin.key").read_text().strip()

    def down(self) -> None:
        """End it."""
        self.run("down", "--data-dir", str(self.data), quiet=True)

    def seen(self, *words: str) -> Any:
        """A command's JSON, not shown."""
        return json.loads(self.run(*words, "--json", quiet=True))


def day(desk: Desk, script: Path) -> None:
    """Four instances, scaled to eight and to two; another account's reserved block; what comes after it."""
    desk.run("capacities", "create", "--name", "inference")
    desk.run(
        "instance-templates", "create", "--name", "worker", "--image", "host", "--cloud-init", str(script)
    )  # fmt: skip
    desk.run(
        "deployments", "create", "--name", "inference", "--capacity", "inference", "--instance-template", "worker",
        "--target-instance-count", "4",
    )  # fmt: skip
    desk.run(
        "procurements", "create", "--name", "inference", "--capacity", "inference", "--target", "node_count",
        "--max-buy-price", "20.00", "--min-sell-price", "10.00", "--window", "2h", "-y",
    )  # fmt: skip
    desk.run("test-clock", "advance", "--blocks", "1")
    for count in ("8", "2"):
        desk.run("deployments", "set", "inference", "--target-instance-count", count)
    desk.run("orderbook", "depth", "--start", "now", "--duration", "1h")

    desk.run("workspaces", "create", "--name", "rival")
    desk.run("billing", "top-up", "9000.00", "--workspace", "rival", "-y")
    places = sum(node["slots"] for node in desk.seen("nodes", "list")["data"])
    desk.run(
        "orders", "create", "--side", "buy", "--capacity", "default", "--workspace", "rival", "--nodes", str(places),
        "--start", "in 5h", "--duration", "2h", "--max-rate", "20.00", "-y",
    )  # fmt: skip
    desk.run("test-clock", "advance", "--by", "4h55m")
    desk.run("procurements", "get", "inference")
    desk.run("events", "--type", "instance.shutdown_expected")
    desk.run("test-clock", "advance", "--by", "10m")
    desk.run("instances", "list")
    desk.run("test-clock", "advance", "--by", "2h")
    desk.run("instances", "list")


def main() -> None:
    """Start the cloud, live the day, end the cloud."""
    with tempfile.TemporaryDirectory(prefix="np-market-") as directory:
        desk = Desk(Path(directory))
        script = Path(directory) / "startup.sh"
        script.write_text(SCRIPT)
        desk.up()
        try:
            day(desk, script)
        finally:
            desk.down()


if __name__ == "__main__":
    main()
