"""A real server with a test clock, nodes that join it, and traders with keys of their own.

Every answer is checked against the OpenAPI document that the same server publishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from described import Document
from peers import Answer, FakeAgent, ServerProcess, UnixConnection

LIMIT = "limit_price_dollars_per_node_hour"
MAX_BUY = "max_buy_price_dollars_per_node_hour"
MIN_SELL = "min_sell_price_dollars_per_node_hour"
FLOOR = "floor_price_dollars_per_node_hour"
DELTA = "allocation_schedule_delta"
PRICE = "price_dollars_per_node_hour"


@dataclass
class Trader:
    """Somebody with a workspace, an account, a balance and a capacity."""

    market: Marketplace
    name: str
    workspace_id: str
    key: str
    capacity: str

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """One request with this trader's key."""
        return self.market.call(method, path, body, key=self.key, **more)

    def order(self, side: str, nodes: int, start: int, end: int, limit: str, **more: Any) -> Answer:
        """Place an order for minutes `[start, end)` of the market's base; `sku=` names another kind of node."""
        headers = more.pop("headers", None)
        body = {
            "capacity": self.capacity, "side": side, "instance_sku": more.pop("sku", self.market.sku), LIMIT: limit,
            DELTA: [self.market.entry(nodes, start, end)], **more,
        }  # fmt: skip
        return self.call("POST", "/v1/orders", body, headers=headers)

    def ask(self, nodes: int, start: int, end: int, limit: str, **more: Any) -> Answer:
        """A standing sell, partial unless told otherwise."""
        return self.order("sell", nodes, start, end, limit, **{"allow_standing": True, "allow_partial": True, **more})

    def bid(self, nodes: int, start: int, end: int, limit: str, **more: Any) -> Answer:
        """A standing buy, partial unless told otherwise."""
        return self.order("buy", nodes, start, end, limit, **{"allow_standing": True, "allow_partial": True, **more})

    def get(self, order: Answer | str) -> Answer:
        """An order as it is now."""
        return self.call("GET", f"/v1/orders/{order if isinstance(order, str) else order['id']}")

    def balance(self) -> dict[str, int]:
        """Micro-dollars: current, available, holds."""
        found = self.call("GET", f"/v1/balances/{self.workspace_id}").body
        return {name: micro(found[name]) for name in ("current", "available", "holds")}

    def owned(self, sku: str | None = None) -> list[tuple[int, int, int]]:
        """(start minute, end minute, nodes) that its capacity owns, counted from the market's base."""
        return self.market.owned(self, sku)


@dataclass
class Marketplace:
    """The server and everybody on it."""

    server: ServerProcess
    document: Document
    base: int = 0
    """The second from which tests count minutes: a whole hour ahead of the clock."""
    sku: str = "isku_cpu"
    _agents: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, raw: bytes | None = None,
        headers: Mapping[str, str] | None = None, query: Mapping[str, Any] | None = None,
    ) -> Answer:  # fmt: skip
        """One request, its answer judged by the document."""
        if query:
            path += "?" + urlencode({name: value for name, value in query.items() if value is not None}, doseq=True)
        connection = UnixConnection(self.server.layout.server_socket, 60.0)
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key != "none":
            sent["Authorization"] = f"Bearer {key or self.server.key}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent)
            found = connection.getresponse()
            content = found.read()
            fields = {name.lower(): value for name, value in found.getheaders()}
            answer = Answer(found.status, fields, json.loads(content) if content else None)
        finally:
            connection.close()
        self.document.check(method, path, answer.status, answer.body)
        return answer

    # --- time ---

    @property
    def now(self) -> int:
        """The cluster's time."""
        return int(self.call("GET", "/v1/test_clock")["now_at"])

    def advance(self, to_minute: int) -> None:
        """Let the clock pass to a minute of the base."""
        answer = self.call("POST", "/v1/test_clock", {"to_at": self.base + to_minute * 60})
        assert answer.status == 200, answer.body

    def rebase(self, ahead_minutes: int = 60) -> int:
        """A fresh base that far ahead, on a whole minute; returns it."""
        self.base = (self.now // 60 + ahead_minutes) * 60
        return self.base

    def entry(self, nodes: int, start: int, end: int) -> dict[str, int]:
        """A schedule entry for minutes of the base."""
        return {"start_at": self.base + start * 60, "end_at": self.base + end * 60, "node_count": nodes}

    def minutes(self, entries: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
        """A schedule in minutes of the base."""
        return [
            ((one["start_at"] - self.base) // 60, (one["end_at"] - self.base) // 60, one["node_count"])
            for one in entries
        ]  # fmt: skip

    # --- people and machines ---

    def trader(self, name: str, dollars: str = "1000.00") -> Trader:
        """A workspace with an account of its own, money and a key."""
        made = self.call("POST", "/v1/workspaces", {"name": name})
        assert made.status == 201, made.body
        if float(dollars):
            paid = self.call("POST", f"/v1/balances/{made['id']}/top_up", {"amount": dollars})
            assert paid.status == 201, paid.body
        key = self.call("POST", "/v1/keys", {"name": name, "workspace": made["id"]})
        assert key.status == 201, key.body
        trader = Trader(self, name, made["id"], key["key"], "")
        capacity = trader.call("POST", "/v1/capacities", {"name": "main"})
        assert capacity.status == 201, capacity.body
        trader.capacity = capacity["id"]
        return trader

    def machine(self, machine_id: str, slots: int, sku_id: str) -> FakeAgent:
        """A machine joins; it stays until the market closes."""
        agent = FakeAgent(self.server.layout, machine_id, slots, sku_id)
        self._agents.enter_context(joined(agent))
        return agent

    def endow(self, trader: Trader, nodes: int, start: int, end: int, sku: str | None = None) -> None:
        """Give a trader time: bought from the provider, which asks for nothing."""
        answer = trader.order("buy", nodes, start, end, "0.00006", sku=sku or self.sku)
        assert (answer.status, answer["status"]) == (201, "filled"), answer.body
        assert answer["total"] == "0.000000"

    def owned(self, trader: Trader, sku: str | None = None) -> list[tuple[int, int, int]]:
        """What a trader's capacity owns of a kind of node."""
        found = trader.call("GET", f"/v1/capacities/{trader.capacity}")
        return self.minutes(found["allocation_schedule"]["by_instance_sku"].get(sku or self.sku, []))

    def close(self) -> None:
        """Everybody leaves."""
        self._agents.close()


@contextlib.contextmanager
def joined(agent: FakeAgent) -> Iterator[FakeAgent]:
    """A fake agent in a thread of its own, linked for as long as the block lasts."""
    ready, done = threading.Event(), threading.Event()

    async def run() -> None:
        async with agent.linked():
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        assert ready.wait(20), "the server did not welcome the agent"
        yield agent
    finally:
        done.set()
        thread.join(10)


def micro(text: str) -> int:
    """Micro-dollars of decimal text."""
    sign = -1 if text.startswith("-") else 1
    whole, _, rest = text.lstrip("-").partition(".")
    return sign * (int(whole) * 1_000_000 + int(rest.ljust(6, "0")[:6] or 0))


def details(answer: Answer) -> tuple[int, str, str | None]:
    """(status, type, field) of a refusal."""
    return answer.status, answer.error["type"], answer.error["details"][0]["field"]


@contextlib.contextmanager
def opened(data: Path, *options: str) -> Iterator[Marketplace]:
    """A server with a test clock, while the block lasts; it must end without a traceback."""
    process = ServerProcess(data, "--test-clock", *options).start()
    market = Marketplace(process, Document(process.call("GET", "/openapi.json").body))
    try:
        yield market
    finally:
        market.close()
        status = process.stop()
    assert status == 0
    assert "Traceback" not in process.log(), process.log()[-4000:]


def stream(market: Marketplace, key: str | None = None, **headers: str) -> http.client.HTTPResponse:
    """An open stream of events."""
    connection = UnixConnection(market.server.layout.server_socket, 20.0)
    sent = {"Authorization": f"Bearer {key or market.server.key}", "Accept": "text/event-stream", **headers}
    connection.request("GET", "/v1/events", None, sent)
    return connection.getresponse()


def frames(answer: http.client.HTTPResponse, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    """The next `count` events of a stream: (id, type, event)."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    fields: dict[str, str] = {}
    while len(found) < count:
        line = answer.readline().decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
            fields = {}
        else:
            fields = {}
    return found
