"""Spawned calls against a small real server: waiting, a server that is away, what is sent, what is refused."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nanopod import Call, Deployment, gather
from nanopod.client import asking, call
from nanopod.client.config import Target
from nanopod.client.function import RemoteFunction
from nanopod.client.sdk import Route
from nanopod.model import calls, codec, spill
from nanopod.model.errors import CallTimeout, Invalid, NotFound, RemoteError

pytestmark = pytest.mark.integration
Answer = tuple[int, bytes]


class Server:
    """Answers requests with what `answers` says of (method, path), waiting if that is asynchronous."""

    def __init__(self, answer: Callable[[str, str, bytes], Any]) -> None:
        self._answer = answer
        self.seen: list[tuple[str, str, bytes, str]] = []
        self.at_once = self.most_at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            method, path, _ = head.split("\r\n", 1)[0].split(" ")
            self.seen.append((method, path, body, fields["authorization"]))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            found = self._answer(method, path, body)
            status, raw = await found if asyncio.iscoroutine(found) else found
            self.at_once -= 1
            if status == 0:
                return
            if len(self.seen) % 2:  # both ways that a body may come
                parts = b"%x\r\n%s\r\n0\r\n\r\n" % (len(raw), raw) if raw else b"0\r\n\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + parts)
            else:
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Callable[[str, str, bytes], Any]) -> AsyncIterator[tuple[Server, Target]]:
    server = Server(answer)
    running = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024)
    async with running, asyncio.timeout(60):
        yield server, Target(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}", "the-key")


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


def result(value: Any) -> bytes:
    whole = codec.encode(value)
    return framed(*calls.split(calls.Result(b"i" * 16, len(whole)), whole))


def call_of(target: Target, number: int = 1) -> Call[Any]:
    return Call(f"call_{number:032x}", target)


def test_a_result_is_waited_for_through_a_server_that_is_away() -> None:
    answers: list[Answer] = [(202, b"{}"), (503, b"{}"), (0, b""), (202, b"{}"), (200, result({"a": (1, 2)}))]

    async def main() -> None:
        async with serving(lambda *_: answers.pop(0)) as (server, target):
            assert await call_of(target) == {"a": (1, 2)}
            assert not answers and {one[3] for one in server.seen} == {"bearer the-key"}
            assert all("wait_s=" in path for _, path, _, _ in server.seen)

    asyncio.run(main())


def test_large_results_items_and_errors_are_read_whole() -> None:
    big = bytes(range(256)) * 12_000
    error = codec.encode_exception(KeyError("far"), log_tail="last words")
    items = [codec.encode(n) for n in range(3)]
    bodies = {
        1: result(big),
        2: framed(*(calls.encode(calls.Item(b"i" * 16, n, len(p)), p) for n, p in enumerate(items)),
                  calls.encode(calls.End(b"i" * 16))),
        3: framed(calls.encode(calls.Error(b"i" * 16, "remote_error", size=len(error), attempt=3), error)),
        4: framed(calls.encode(calls.Error(b"i" * 16, "worker_lost", "gone", started=True, attempt=2))),
        5: b"",
    }  # fmt: skip

    def answer(method: str, path: str, body: bytes) -> Answer:
        return 200, bodies[int(path.split("/")[3].removeprefix("call_"), 16)]

    async def main() -> None:
        async with serving(answer) as (_, target):
            assert await call_of(target, 1) == big
            assert await call_of(target, 2) == [0, 1, 2]
            with pytest.raises(KeyError) as caught:
                await call_of(target, 3)
            assert "last words" in "".join(caught.value.__notes__)
            found = await gather(*(call_of(target, n) for n in (2, 4)), return_exceptions=True)
            assert found[0] == [0, 1, 2] and (found[1].started, found[1].attempts) == (True, 2)
            assert found[1].call_id == (b"i" * 16).hex()
            with pytest.raises(RemoteError, match="holds no result"):
                await call_of(target, 5)

    asyncio.run(main())


def test_a_time_limit_ends_the_wait_and_not_the_call() -> None:
    async def main() -> None:
        async with serving(lambda *_: (202, b"{}")) as (server, target):
            with pytest.raises(CallTimeout, match="it goes on"):
                await call_of(target).aget(0.05)
            assert {method for method, *_ in server.seen} == {"GET"}

    asyncio.run(main())


def test_refusals_are_raised_at_once() -> None:
    gone = json.dumps({"error": {"type": "not_found", "message": "expired"}}).encode()

    async def main() -> None:
        async with serving(lambda *_: (404, gone)) as (server, target):
            with pytest.raises(NotFound, match="expired"):
                await call_of(target)
            assert len(server.seen) == 1

    asyncio.run(main())


def test_many_waits_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "AT_ONCE_MAX", 8)

    async def main() -> None:
        async def answer(*_: Any) -> Answer:
            await asyncio.sleep(0)
            return 200, result(7)

        async with serving(answer) as (server, target):
            assert await gather(*(call_of(target, n) for n in range(100))) == [7] * 100
            assert server.most_at_once <= 8

    asyncio.run(main())


def remote(target: Target) -> RemoteFunction[..., Any]:
    app = Deployment.from_name("app")
    app._route = Route(target.url, target.key, "endp_1")
    return app.function("square")


def test_calls_are_sent_together_under_ids_of_their_own() -> None:
    async def main() -> None:
        async with serving(lambda *_: (201, b"{}")) as (server, target):
            square = remote(target)
            made = await square.with_options(webhook="https://example.org/x?y=1", priority=2).spawn_map.aio(range(5))
            one = await square.spawn.aio(9, y=1)
            (_, path, body, _), (_, plain, single, _) = server.seen
            assert path == "/v1/calls?webhook=https%3A%2F%2Fexample.org%2Fx%3Fy%3D1" and plain == "/v1/calls"
            frames = [calls.decode(frame) for frame in call.cut(body)]
            assert [f"call_{header.id.hex()}" for header, _ in frames] == [each.id for each in made]
            assert [codec.decode(payload) for _, payload in frames] == [((n,), {}) for n in range(5)]
            assert {(header.endpoint, header.function, header.priority) for header, _ in frames} == {
                ("endp_1", "square", 2)
            }  # type: ignore[union-attr]
            ((header, payload),) = (calls.decode(frame) for frame in call.cut(single))
            assert one.id == f"call_{header.id.hex()}" and codec.decode(payload) == ((9,), {"y": 1})

    asyncio.run(main())


def test_a_large_map_is_spawned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "SPAWN_CALLS_MAX", 10)

    async def main() -> None:
        async with serving(lambda *_: (201, b"{}")) as (server, target):
            assert len({each.id for each in await remote(target).spawn_map.aio(range(25))}) == 25
            assert [len(list(call.cut(body))) for _, _, body, _ in server.seen] == [10, 10, 5]
            before = len(server.seen)
            await remote(target).spawn.aio(bytes(33 << 20))
            (head, path, *_), (_, _, body, _) = server.seen[before:]
            (frame,) = call.cut(body)
            reference = spill.decode(calls.decode(frame)[1])
            assert reference is not None and reference.size > 33 << 20 and (head, path[-64:]) == (
                "HEAD", reference.sha256,
            )  # fmt: skip
            monkeypatch.setattr(spill, "SPILL_BYTES_MAX", 32 << 20)
            with pytest.raises(Invalid, match="33 MiB; at most 32 MiB"):
                await remote(target).spawn.aio(bytes(33 << 20))

    asyncio.run(main())


def test_a_webhook_makes_a_call_a_spawned_one() -> None:
    async def main() -> None:
        def answer(method: str, path: str, body: bytes) -> Answer:
            return (201, b"{}") if method == "POST" else (200, result(81))

        async with serving(answer) as (server, target):
            assert await remote(target).with_options(webhook="http://127.0.0.1:1/done")(9) == 81
            assert [method for method, *_ in server.seen] == ["POST", "GET"]

    asyncio.run(main())


@pytest.mark.parametrize("raw", [b"\0\0", b"\0\0\0\5abc"])
def test_an_answer_that_is_cut_off_is_not_a_result(raw: bytes) -> None:
    with pytest.raises(ValueError, match="cut off"):
        list(call.cut(raw))


def test_the_rest_of_a_call_is_asked_of_the_server() -> None:
    def answer(method: str, path: str, body: bytes) -> Answer:
        if path.endswith("/share"):
            return 200, b'{"token": "shown"}'
        if "/logs" in path:
            return 200, b'{"data": [{"line": "one"}, {"line": "two"}], "has_more": false}'
        return 200, json.dumps({"status": "cancelled" if "cancel" in path else "running", "cost": "0.000012"}).encode()

    async def main() -> None:
        async with serving(answer) as (_, target):
            spawned = call_of(target)
            assert (await spawned.astatus())["status"] == "running"
            assert (await spawned.acancel())["status"] == "cancelled"
            assert await spawned.acost() == "0.000012" and await spawned.ashare() == "shown"
            assert await asyncio.to_thread(lambda: list(spawned.logs())) == ["one", "two"]
            assert await asyncio.to_thread(spawned.status) == await spawned.astatus()

    asyncio.run(main())
