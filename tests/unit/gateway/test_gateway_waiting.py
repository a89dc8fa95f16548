"""Requests that wait for minutes, on a clock of the test's own: comments, limits, callers who leave."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pool_stage import Host, add, pool_with, tell

from nanopod.gateway.asked import Wishes
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.pool import Pool
from nanopod.gateway.process import Gateway
from nanopod.gateway.relay import Request
from nanopod.gateway.server import HttpConnection
from nanopod.gateway.wheel import Wheel
from nanopod.model import frames
from nanopod.model.wire import KeyRow


class Clocked(Host):
    """With what a whole request needs, and a clock that is turned by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.wheel = Wheel(self.now)
        self.meter = SimpleNamespace(pending=[])
        self.ids = 0

    def request_id(self) -> str:
        self.ids += 1
        return f"req_{self.ids:030x}"

    def wait(self, seconds: float) -> None:
        """Time goes by, in the ticks in which it does in a gateway."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.1)
            self.wheel.advance(self.now)


class Connection:
    """What a caller saw."""

    def __init__(self) -> None:
        self.exchange: Any = None
        self.paused = self.finished = self.close_after = False
        self.head = b""
        self.pieces: list[tuple[float, bytes]] = []
        self.failed: Failed | None = None
        self.host: Clocked | None = None

    def start_stream(self, head: bytes, *, chunked: bool) -> None:
        self.head = head

    def piece(self, data: bytes) -> None:
        assert self.host is not None
        self.pieces.append((self.host.now, data))

    def finish(self) -> None:
        self.finished = True

    def fail(self, failed: Failed, *, extra: str = "") -> None:
        self.failed = failed


def ask(host: Clocked, pool: Pool, *, stream: bool = True, wait_s: str = "") -> tuple[Request, Connection]:
    """A chat request comes in."""
    head = Head()
    head.path = "/v1/chat/completions"
    head.headers = {"x-nanopod-wait-s": wait_s} if wait_s else {}
    connection = Connection()
    connection.host = host
    body = json.dumps({"model": "n", "messages": [], "stream": stream}).encode()
    request = Request(
        cast(Gateway, host), cast(HttpConnection, connection), head, body, KeyRow("k", "w"), pool, "chat",
        Wishes(stream=stream), True,
    )  # fmt: skip
    request.start()
    return request, connection


def test_a_wake_of_eight_minutes_is_held_and_answered() -> None:
    host = Clocked()
    pool = pool_with(host, eta_s=480.0, phase_text="loading 1 worker")
    request, stream = ask(host, pool)
    _, plain = ask(host, pool, stream=False)
    began = host.now
    host.wait(14.8)
    assert not stream.head
    host.wait(464.2)
    assert [round(at - began) for at, _ in stream.pieces] == list(range(15, 479, 15))
    assert stream.pieces[0][1] == b": waking replica, about 465 s (loading 1 worker)\n\n"
    assert stream.head.startswith(b"HTTP/1.1 200 OK")
    assert not plain.pieces
    assert plain.failed is None
    link = add(pool, host, "i1")
    assert (link.in_flight, pool.waiting) == (2, 0)
    assert request.link is link
    link.close_stream(request)


@pytest.mark.parametrize(
    ("route", "waited_s", "status", "code"),
    [
        ({}, 600.0, 504, "wake_timeout"),
        ({"timeout_s": 1800.0}, 600.0, 504, "wake_timeout"),
        ({"timeout_s": 300.0, "profile": "vast"}, 300.0, 504, "wake_timeout"),
        ({"timeout_s": 300.0, "profile": "knative"}, 300.0, 503, "queue_timeout"),
    ],
)
def test_nobody_is_held_longer_than_the_request_may_take(
    route: dict[str, Any], waited_s: float, status: int, code: str
) -> None:
    host = Clocked()
    pool = pool_with(host, **route)
    _, plain = ask(host, pool, stream=False)
    _, stream = ask(host, pool)
    host.wait(waited_s - 0.5)
    assert plain.failed is None
    assert not stream.finished
    host.wait(1.0)
    assert plain.failed is not None
    assert (plain.failed.status, plain.failed.code) == (status, code)
    assert "retry-after: 1\r\n" in plain.failed.extra
    assert stream.failed is None, "its head went out with the first comment"
    assert stream.finished
    last = stream.pieces[-1][1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert not any(b"[DONE]" in piece for _, piece in stream.pieces)
    assert (pool.waiting, pool.total, len(host.wheel)) == (0, 0, 0), "nothing of them is left"


def test_a_caller_who_leaves_is_removed_at_once() -> None:
    host = Clocked()
    pool = pool_with(host)
    requests = [ask(host, pool)[0] for _ in range(100)]
    for request in requests[:99]:
        request.caller_gone()
    assert (pool.waiting, pool.total, len(host.wheel)) == (1, 1, 1)
    assert pool.waiting_for("") == (1, pytest.approx(requests[99].workload))


def test_comments_begin_again_for_a_request_that_was_handed_back() -> None:
    host = Clocked()
    pool = pool_with(host)
    link = add(pool, host, "i1")
    request, stream = ask(host, pool)
    assert request.link is link
    host.wait(40.0)
    tell(link, draining=True)
    request.on_frame(frames.RESET, 0, 1, frames.pack_reset(1, frames.REFUSED, "draining")[frames.HEADER.size :])
    assert request.link is None
    host.wait(14.0)
    assert not stream.pieces
    host.wait(2.0)
    assert len(stream.pieces) == 1
    other = add(pool, host, "i2")
    assert request.link is other
