"""Hands for the market's end-to-end tests: the command line as a subprocess, plain HTTP, the test clock, tenants."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.cloud import Cloud

COMMAND_S_MAX = 90
SECRET_NAMES = ("NANOPOD_API_KEY", "NANOPOD_TOKEN", "NANOPOD_URL")


class Refused(Exception):
    """An answer other than 2xx, with its status and error."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status}: {error}")
        self.status = status
        self.error = error


@dataclass
class Hand:
    """Somebody with a key on a cloud."""

    cloud: Cloud
    key: str

    # -- the command line

    def run(self, *words: str, code: int = 0) -> str:
        """A command as typed; its standard output. Fails unless it ends with `code`."""
        env = {name: value for name, value in self.cloud.env.items() if name not in SECRET_NAMES}
        env |= {"NANOPOD_URL": self.cloud.url, "NANOPOD_API_KEY": self.key, "TZ": "UTC", "NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "nanopod", *words],
            capture_output=True, text=True, timeout=COMMAND_S_MAX, env=env, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, f"nanopod {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.said = done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        """A command's `--json` answer."""
        return json.loads(self.run(*words, "--json"))

    # -- plain HTTP

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One call; raises `Refused` for anything but 2xx."""
        data = None if body is None else json.dumps(body).encode()
        names = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        names |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.cloud.url + path, data=data, method=method, headers=names)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.loads(error.read())["error"]) from None
        return json.loads(raw) if raw else None

    def get(self, path: str) -> Any:
        """GET."""
        return self.call("GET", path)

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """POST."""
        return self.call("POST", path, body, **headers)

    def patch(self, path: str, body: Any) -> Any:
        """PATCH."""
        return self.call("PATCH", path, body)

    def all(self, path: str) -> list[dict[str, Any]]:
        """Every row of a list, paged through, newest first."""
        rows: list[dict[str, Any]] = []
        after = ""
        mark = "&" if "?" in path else "?"
        while True:
            page = self.get(f"{path}{mark}limit=200{after}")
            rows += page["data"]
            if not page["has_more"]:
                return rows
            after = f"&starting_after={page['cursor']}"

    def buy(self, capacity: str, start_at: int, end_at: int, nodes: int, price: str, **more: Any) -> Any:
        """Place a buy."""
        return self.order("buy", capacity, start_at, end_at, nodes, price, **more)

    def sell(self, capacity: str, start_at: int, end_at: int, nodes: int, price: str, **more: Any) -> Any:
        """Place a sell."""
        return self.order("sell", capacity, start_at, end_at, nodes, price, **more)

    def order(self, side: str, capacity: str, start_at: int, end_at: int, nodes: int, price: str, **more: Any) -> Any:
        """Place an order over `[start_at, end_at)`."""
        body = {
            "side": side,
            "capacity": capacity,
            "instance_sku": more.pop("sku", None) or self.sku,
            "allocation_schedule_delta": [{"start_at": start_at, "end_at": end_at, "node_count": nodes}],
            "limit_price_dollars_per_node_hour": price,
            **more,
        }
        return self.post("/v1/orders", body)

    @property
    def sku(self) -> str:
        """The only SKU there is."""
        (only,) = self.get("/v1/instance_skus")["data"]
        return str(only["id"])

    def events(self, *types: str) -> list[dict[str, Any]]:
        """Events of these types, oldest first."""
        names = "&".join(f"type={name}" for name in types)
        return list(reversed(self.all(f"/v1/events?{names}")))

    # -- time

    def now(self) -> int:
        """The cluster's time."""
        return int(self.get("/v1/test_clock")["now_at"])

    def advance(self, to_at: int) -> None:
        """Let time pass up to `to_at`; the boundaries on the way are passed one by one."""
        while self.now() < to_at:
            step = min(to_at, self.now() + 6 * 3600)
            self.post("/v1/test_clock", {"to_at": step})

    def tenant(self, name: str, dollars: str = "") -> Hand:
        """A new workspace with an account of its own, some money and a key."""
        self.post("/v1/workspaces", {"name": name})
        if dollars:
            self.post(f"/v1/balances/{name}/top_up", {"amount": dollars, "reference": f"start of {name}"})
        made = self.post("/v1/keys", {"name": name, "workspace": name})
        return Hand(self.cloud, made["key"])


def until(test: Callable[[], Any], what: str, wait_s_max: float = 30.0) -> Any:
    """Poll until `test` is true; its value."""
    limit = time.monotonic() + wait_s_max
    while not (found := test()):
        if time.monotonic() > limit:
            raise AssertionError(f"not within {wait_s_max:.0f} s: {what}")
        time.sleep(0.05)
    return found
