"""A server that dies, traders that do not give up, and what has to be on disk afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanopod.control.market.replay import load, replay_all
from nanopod.ledger.balance import balance
from nanopod.market.audit import problems
from nanopod.market.exchange import Exchange
from nanopod.market.shape import from_schedule
from nanopod.model.capacity import Sku
from nanopod.model.errors import Conflict
from nanopod.model.layout import Layout
from nanopod.store.open import open_store
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

START_S_MAX = 30.0
RETRY_S_MAX = 60.0
SKU = "isku_crash"
HOUR = 3600
NODES = 1024
FLOOR = "1.00"
NET_ERRORS = (OSError, http.client.HTTPException, ValueError)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, wait_s_max: float = 20.0) -> None:
        super().__init__("localhost", timeout=wait_s_max)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Answer:
    """What the API said."""

    status: int
    replayed: bool
    body: Any


@dataclass
class Server:
    """`python -m nanopod.server` with a test clock, killed and started again on the same data."""

    layout: Layout
    url: str | None = None
    process: subprocess.Popen[bytes] | None = None
    key: str = ""

    def start(self) -> None:
        """Start and wait until it answers."""
        self.layout.data.mkdir(parents=True, exist_ok=True)
        env = {name: value for name, value in os.environ.items() if name != "NANOPOD_DATABASE_URL"}
        if self.url:
            env["NANOPOD_DATABASE_URL"] = self.url
        with open(self.layout.data / "server.log", "ab") as log:
            words = [sys.executable, "-m", "nanopod.server", "--data-dir", str(self.layout.data), "--test-clock"]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=env)
        limit = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(*NET_ERRORS):
                self.key = self.layout.admin_key.read_text().strip()
                if self.once("GET", "/v1/status").status == 200:
                    return
            assert self.process.poll() is None and time.monotonic() < limit, f"the server did not start: {self.log()}"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def log(self) -> str:
        """The end of what it logged."""
        return (self.layout.data / "server.log").read_text(errors="replace")[-3000:]

    def once(
        self, method: str, path: str, body: Any = None, key: str = "", idempotency: str = "",
        connection: UnixConnection | None = None,
    ) -> Answer:  # fmt: skip
        """One request; raises one of `NET_ERRORS` when the server dies under it."""
        own = connection or UnixConnection(self.layout.server_socket)
        headers = {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"}
        if idempotency:
            headers["Idempotency-Key"] = idempotency
        try:
            own.request(method, path, None if body is None else json.dumps(body), headers)
            answer = own.getresponse()
            raw = answer.read()
            replayed = answer.getheader("Idempotency-Replayed") == "true"
            return Answer(answer.status, replayed, json.loads(raw) if raw else None)
        except NET_ERRORS:
            own.close()
            raise
        finally:
            if connection is None:
                own.close()

    def must(self, method: str, path: str, body: Any = None, key: str = "", idempotency: str = "") -> Any:
        """One request that has to work."""
        answer = self.once(method, path, body, key, idempotency)
        assert answer.status < 300, answer
        return answer.body

    def now(self) -> int:
        """The test clock."""
        return int(self.must("GET", "/v1/test_clock")["now_at"])


@dataclass
class Trader(threading.Thread):
    """Places orders with idempotency keys, one after another, and repeats each until it is answered."""

    server: Server
    name_: str
    key: str
    capacity: str
    count: int
    seed: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Order ids by idempotency key."""
    refused: int = 0
    repeats: int = 0
    cancelled: set[str] = field(default_factory=set)
    trouble: list[str] = field(default_factory=list)
    base: int = 0

    def __post_init__(self) -> None:
        threading.Thread.__init__(self, name=self.name_, daemon=True)
        self.draw = random.Random(self.seed)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        """All orders, or until something is wrong."""
        try:
            connection = UnixConnection(self.server.layout.server_socket)
            for number in range(self.count):
                self._one(f"{self.name_}-{number}", connection)
        except Exception as error:
            self.trouble.append(repr(error))

    def _one(self, idempotency: str, connection: UnixConnection) -> None:
        body = self._order()
        answer = self._insist("POST", "/v1/orders", body, idempotency, connection)
        if answer.status in (402, 422):
            self.refused += 1
            return
        if answer.status not in (200, 201):
            self.trouble.append(f"{idempotency}: {answer}")
            return
        self.acknowledged[idempotency] = answer.body["id"]
        chance = self.draw.random()
        if chance < 0.03:
            again = self._insist("POST", "/v1/orders", body, idempotency, connection)
            if not again.replayed or again.body["id"] != answer.body["id"]:
                self.trouble.append(f"{idempotency}: a repeat was answered with {again}")
        elif chance < 0.15 and answer.body["status"] in ("standing", "partially_filled"):
            gone = self._insist("DELETE", f"/v1/orders/{answer.body['id']}", None, "", connection)
            if gone.status == 200 and gone.body["status"] == "cancelled":
                self.cancelled.add(answer.body["id"])

    def _insist(self, method: str, path: str, body: Any, idempotency: str, connection: UnixConnection) -> Answer:
        """Repeat until the server answers."""
        limit = time.monotonic() + RETRY_S_MAX
        pause = 0.02
        while True:
            try:
                answer = self.server.once(method, path, body, self.key, idempotency, connection)
                if answer.status < 500:
                    self.repeats += answer.replayed
                    return answer
            except NET_ERRORS:
                pass
            assert time.monotonic() < limit, f"{method} {path} was not answered within {RETRY_S_MAX:.0f} s"
            time.sleep(pause * self.draw.uniform(0.5, 1.5))
            pause = min(0.5, pause * 2)

    def _order(self) -> dict[str, Any]:
        """Buys above the floor that fill, bids below it that stand, sells of what was bought."""
        draw = self.draw
        start = self.base + draw.randrange(1, 48) * HOUR
        end = start + draw.choice((1, 2, 4)) * HOUR
        kind = draw.random()
        side = "sell" if kind > 0.75 else "buy"
        cents = draw.randrange(100, 130) if kind < 0.4 else draw.randrange(20, 100)
        if side == "sell":
            cents = draw.randrange(90, 140)
        return {
            "capacity": self.capacity,
            "side": side,
            "instance_sku": SKU,
            "allocation_schedule_delta": [{"start_at": start, "end_at": end, "node_count": draw.randint(1, 2)}],
            "limit_price_dollars_per_node_hour": f"{cents // 100}.{cents % 100:02d}",
            "allow_standing": draw.random() < 0.6,
            "allow_partial": draw.random() < 0.7,
        }


def prepare(server: Server, traders: int, orders: int, seed: int) -> list[Trader]:
    """A cloud with one kind of node, a provider that sells it, and traders that can pay."""
    server.start()
    server.kill()
    on_disk(server, lambda write: write.put_sku(Sku(SKU, "crash-1x", num_vcpus=2)), write=True)
    server.start()
    server.must("POST", "/v1/providers", {"name": "fleet"})
    offer = {
        "provider": "fleet", "instance_sku": SKU, "floor_price_dollars_per_node_hour": FLOOR, "elastic": True,
        "max_nodes": NODES, "horizon_minutes": 7 * 1440,
    }  # fmt: skip
    server.must("POST", "/v1/offers", offer)
    base = (server.now() // HOUR + 1) * HOUR
    out = []
    for number in range(traders):
        name = f"trader-{number}"
        server.must("POST", "/v1/workspaces", {"name": name})
        server.must("POST", f"/v1/balances/{name}/top_up", {"amount": "900000.00"})
        key = server.must("POST", "/v1/keys", {"name": name, "workspace": name})["key"]
        capacity = server.must("POST", "/v1/capacities", {"name": "stock"}, key)["id"]
        share = orders // traders
        out.append(Trader(server, name, key, capacity, share, seed * 100 + number, base=base))
    return out


def on_disk(server: Server, look: Any, *, write: bool = False) -> Any:
    """Run a function of a transaction on the database of a dead server."""

    async def run() -> Any:
        store = await opened(server)
        try:
            return await (store.write(look) if write else store.read(look))
        finally:
            await store.close()

    return asyncio.run(run())


async def opened(server: Server) -> GroupStore:
    """The store; a killed server's session may hold the lock for a moment."""
    limit = time.monotonic() + 20
    while True:
        try:
            return open_store(server.layout.database, server.url)
        except Conflict:
            if time.monotonic() > limit:
                raise
            await asyncio.sleep(0.1)


@dataclass
class Found:
    """What an audit of a dead server's database saw."""

    orders: dict[str, str]
    """Status by order id."""
    twice: list[str]
    exchange: Exchange
    wrong: list[str]


def audit(server: Server) -> Found:
    """Everything that must hold in the database whenever the server died."""
    found: Found = on_disk(server, _audit)
    return found


def _audit(read: Transaction) -> Found:
    wrong = [f"ledger: {text}" for text in read.check_ledger()]
    row = read.market_book(SKU)
    assert row is not None, "the book was written with the first event"
    live, again = load(read, row), replay_all(read, row)
    if live.digest() != again.digest() or live.seq != row.seq:
        wrong.append(f"book: from the snapshot {live.digest()} at {live.seq}, from the first event {again.digest()}")
    wrong += problems(again)
    orders: dict[str, str] = {}
    twice: list[str] = []
    holds: dict[str, int] = {}
    contracts = {one.contract_id for one in read.contracts_page(None, limit=1_000_000)}
    after: str | None = None
    while True:
        page = read.orders_page(None, limit=5_000, after=after)
        for order in page:
            if order.order_id in orders:
                twice.append(order.order_id)
            orders[order.order_id] = order.status
            resting = again.orders.get(order.order_id)
            is_open = order.status in ("standing", "partially_filled")
            if is_open != (resting is not None):
                wrong.append(f"{order.order_id} is {order.status}, in the book it is {resting}")
            elif resting is not None and from_schedule(order.open) != resting.left:
                wrong.append(f"{order.order_id} has {order.open} open, in the book {resting.left}")
            if resting is not None:
                holds[order.workspace_id] = holds.get(order.workspace_id, 0) + resting.hold
        if len(page) < 5_000:
            break
        after = page[-1].order_id
    missing = set(again.orders) - set(orders)
    if missing:
        wrong.append(f"{len(missing)} orders of the book have no row")
    if len(contracts) != again.contracts:
        wrong.append(f"{len(contracts)} contracts are written, the book has made {again.contracts}")
    for workspace in read.workspaces_all():
        held = balance(workspace.workspace_id, read.ledger_account).holds
        if held != holds.get(workspace.workspace_id, 0):
            wrong.append(f"{workspace.name}: {held} is held, open buys need {holds.get(workspace.workspace_id, 0)}")
    return Found(orders, twice, again, wrong)


def fresh(directory: Path, url: str | None) -> Server:
    """A server on a directory with a short path, for its sockets."""
    return Server(Layout(directory / secrets.token_hex(3)), url)
