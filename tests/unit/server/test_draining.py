"""What is left of a refused request's body is read before it is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from nanopod.server.api import draining
from nanopod.server.api.draining import Drained


def asked(status: int, pieces: int, read: int) -> list[str]:
    """What happens, in order, to a request of so many pieces of which the application reads `read`."""
    seen: list[str] = []
    left = pieces

    async def receive() -> Message:
        nonlocal left
        left -= 1
        seen.append("read")
        return {"type": "http.request", "body": b"x" * 1000, "more_body": left > 0}

    async def send(message: Message) -> None:
        seen.append(message["type"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(read):
            await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})

    scope: dict[str, Any] = {"type": "http"}
    asyncio.run(Drained(app)(scope, receive, send))
    return seen


@pytest.mark.parametrize("read", [0, 1, 3])
def test_a_refusal_comes_after_the_body(read: int) -> None:
    assert asked(405, 3, read) == ["read"] * 3 + ["http.response.start"]


def test_an_answer_does_not_wait() -> None:
    assert asked(200, 3, 1) == ["read", "http.response.start"]


def test_a_body_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "DRAINED_BYTES_MAX", 5000)
    assert asked(413, 10**9, 2).count("read") == 7
