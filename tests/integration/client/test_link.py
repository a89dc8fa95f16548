"""The link against a small real gateway: values, errors, generators, cuts, cancellation, large payloads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from stand_in_gateway import KEY, FakeGateway

from nanopod.client import background, link
from nanopod.client.link import Link, link_to
from nanopod.model import calls, codec
from nanopod.model.errors import (
    Cancelled,
    DeploymentFailed,
    Invalid,
    NoCapacity,
    NotFound,
    QueueTimeout,
    RemoteError,
    Unauthenticated,
    WorkerLost,
)

pytestmark = pytest.mark.integration


def run(scenario: Any, functions: dict[str, Any] | None = None) -> None:
    async def main() -> None:
        async with FakeGateway({"square": lambda x: x * x, "echo": lambda x: x, **(functions or {})}) as gateway:
            connection = Link(gateway.url, KEY)
            try:
                async with asyncio.timeout(30):
                    await scenario(gateway, connection)
            finally:
                connection.close()

    asyncio.run(main())


async def call(to: Link, function: str, *args: Any, **options: Any) -> Any:
    header = calls.Call(to.new_id(), endpoint="app", function=function, **options)
    return codec.decode(await to.call(header, codec.encode((args, {}))))


def items(to: Link, function: str, *args: Any) -> Any:
    return to.open_items(calls.Call(to.new_id(), endpoint="app", function=function), codec.encode((args, {})))


def test_many_calls_share_one_connection() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        values = await asyncio.gather(*(call(to, "square", n) for n in range(500)))
        assert values == [n * n for n in range(500)]
        assert gateway.connections == 1 and max(gateway.started.values()) == 1
        await asyncio.sleep(0.6)
        acked = [call_id for frame in gateway.frames if isinstance(frame, calls.Ack) for call_id in frame.ids]
        assert sorted(acked) == sorted(gateway.started)

    run(scenario)


def test_a_remote_exception_keeps_its_class_and_shows_the_remote_frames() -> None:
    def broken(x: int) -> int:
        raise ValueError("hello", x)

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        with pytest.raises(ValueError) as caught:
            await call(to, "broken", 3)
        assert caught.value.args == ("hello", 3)
        notes = "\n".join(caught.value.__notes__)
        assert "in broken" in notes and "last words" in notes

    run(scenario, {"broken": broken})


def test_a_worker_that_exits_does_not_end_the_caller() -> None:
    def leave() -> None:
        raise ExceptionGroup("g", [ValueError(1)])

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        with pytest.raises(ExceptionGroup):
            await call(to, "leave")
        header = calls.Error(b"1" * 16, code="x")
        found = link.error_of(header, codec.encode_exception(SystemExit(3)), "")
        assert isinstance(found, RemoteError) and found.type_name == "SystemExit"
        assert isinstance(link.error_of(header, codec.encode_exception(asyncio.CancelledError()), ""), Cancelled)

    run(scenario, {"leave": leave})


@pytest.mark.parametrize("megabytes", [0.5, 3, 20])
def test_large_values_travel_both_ways_and_small_calls_overtake_them(megabytes: float) -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        await call(to, "square", 1)
        data = os.urandom(int(megabytes * (1 << 20)))
        big = asyncio.create_task(call(to, "echo", data))
        await asyncio.sleep(0)
        assert await call(to, "square", 3) == 9
        assert megabytes < 3 or not big.done()
        assert await big == data

    run(scenario)


def test_arguments_above_the_limit_are_refused_before_sending() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        with pytest.raises(Invalid, match="at most 32 MiB"):
            await call(to, "echo", bytes(33 << 20))
        assert not gateway.started

    run(scenario)


def test_a_cut_link_resumes_every_call_and_starts_none_twice() -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(0.3)
        return x

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        running = [asyncio.create_task(call(to, "slow", n)) for n in range(50)]
        big = asyncio.create_task(call(to, "echo", bytes(8 << 20)))
        for _ in range(3):
            await asyncio.sleep(0.1)
            gateway.cut()
        assert await asyncio.gather(*running) == list(range(50))
        assert len(await big) == 8 << 20
        assert gateway.connections >= 2 and max(gateway.started.values()) == 1
        assert len(set(gateway.clients)) == 1

    run(scenario, {"slow": slow})


def test_a_gateway_that_comes_back_later_is_found_again() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        assert await call(to, "square", 2) == 4
        gateway.server.close()
        gateway.cut()
        waiting = asyncio.create_task(call(to, "square", 5))
        await asyncio.sleep(0.5)
        gateway.server = await asyncio.start_server(gateway._serve, "127.0.0.1", gateway.port)
        assert await waiting == 25

    run(scenario)


async def numbers(count: int) -> AsyncIterator[int]:
    for n in range(count):
        yield n


def test_a_generator_is_taken_with_back_pressure() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        pending = items(to, "numbers", 500)
        assert codec.decode(await pending.take()) == 0
        await asyncio.sleep(0.2)
        sent = sum(isinstance(calls.decode(frame)[0], calls.Item) for frame in gateway.answers[pending.id])
        assert sent <= calls.ITEM_WINDOW
        found = [codec.decode(await pending.take()) for _ in range(499)]
        assert found == list(range(1, 500))
        with pytest.raises(StopAsyncIteration):
            await pending.take()

    run(scenario, {"numbers": numbers})


def test_a_generator_survives_cuts_without_losing_or_doubling_items() -> None:
    async def slowly(count: int) -> AsyncIterator[int]:
        for n in range(count):
            await asyncio.sleep(0.002)
            yield n

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        pending = items(to, "slowly", 300)
        found = []
        for n in range(300):
            if n in (50, 150, 151):
                gateway.cut()
            found.append(codec.decode(await pending.take()))
        assert found == list(range(300))

    run(scenario, {"slowly": slowly})


def test_a_generator_that_raises_gives_its_items_first() -> None:
    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise KeyError("end")

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        pending = items(to, "breaks")
        assert codec.decode(await pending.take()) == 1
        with pytest.raises(KeyError):
            await pending.take()
        with pytest.raises(StopAsyncIteration):
            await pending.take()
        with pytest.raises(RemoteError, match="iterate"):
            await call(to, "breaks")
        with pytest.raises(RemoteError, match="await"):
            await items(to, "square", 2).take()

    run(scenario, {"breaks": breaks})


def test_cancelling_the_task_cancels_the_call_there() -> None:
    stopped = asyncio.Event()

    async def for_ever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        task = asyncio.create_task(call(to, "for_ever"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(stopped.wait(), 2)
        assert to.in_flight == 0

    run(scenario, {"for_ever": for_ever})


def test_a_cancellation_while_the_link_is_down_is_delivered_later() -> None:
    stopped = asyncio.Event()

    async def for_ever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        task = asyncio.create_task(call(to, "for_ever"))
        await asyncio.sleep(0.1)
        gateway.cut()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait_for(stopped.wait(), 5)

    run(scenario, {"for_ever": for_ever})


def test_errors_that_the_gateway_makes_have_their_classes() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        async def answered(**fields: Any) -> BaseException:
            gateway._start = lambda header, payload: gateway.send(  # type: ignore[method-assign]
                header.id, calls.encode(calls.Error(header.id, **fields))
            )
            with pytest.raises(BaseException) as caught:
                await call(to, "square", 1)
            return caught.value

        failed = await answered(code="deployment_failed", message="m", stage="context", log_tail="tail")
        assert isinstance(failed, DeploymentFailed) and failed.stage == "context" and "tail" in failed.__notes__[0]
        lost = await answered(code="worker_lost", message="gone", started=True)
        assert isinstance(lost, WorkerLost) and lost.started is True and len(lost.call_id) == 32
        full = await answered(code="service_unavailable", message="full", retry_after_s=2.5)
        assert isinstance(full, NoCapacity) and full.retry_after_s == 2.5
        assert isinstance(await answered(code="what", message="m"), RemoteError)

    run(scenario)


def test_an_endpoint_that_was_just_made_is_asked_for_again() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        begin, start = time.monotonic(), gateway._start

        def late(header: calls.Call, payload: bytes) -> None:
            if time.monotonic() - begin > 0.3:
                start(header, payload)
            else:
                gateway.send(header.id, calls.encode(calls.Error(header.id, code="not_found", started=False)))

        gateway._start = late  # type: ignore[method-assign]
        header = calls.Call(to.new_id(), endpoint="app", function="square")
        assert codec.decode(await to.call(header, codec.encode(((3,), {})), patience_s=5)) == 9
        begin = time.monotonic()
        with pytest.raises(NotFound):
            await call(to, "square", 3)

    run(scenario)


def test_a_refused_key_fails_at_once_and_a_busy_gateway_is_asked_again() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        body = b'{"error":{"message":"the key is wrong"}}'
        gateway.refuse = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        with pytest.raises(Unauthenticated, match="the key is wrong"):
            await asyncio.gather(call(to, "square", 1), call(to, "square", 2))
        gateway.refuse = b"HTTP/1.1 404 Not Found\r\n\r\n"
        with pytest.raises(RemoteError, match="status code 404"):
            await call(to, "square", 1)
        gateway.refuse = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
        waiting = asyncio.create_task(call(to, "square", 4))
        await asyncio.sleep(0.3)
        gateway.refuse = None
        assert await waiting == 16

    run(scenario)


def test_nobody_there_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "FIRST_CONNECT_S_MAX", 0.5)

    async def scenario() -> None:
        with pytest.raises(NoCapacity, match=r"cannot reach the nanopod server at http://127\.0\.0\.1:9"):
            await call(Link("http://127.0.0.1:9", KEY), "square", 1)

    asyncio.run(scenario())


def test_a_call_that_nobody_answers_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "DEADLINE_SLACK_S", 0.0)

    async def scenario(gateway: FakeGateway, to: Link) -> None:
        gateway._start = lambda header, payload: None  # type: ignore[method-assign]
        with pytest.raises(QueueTimeout):
            await call(to, "square", 1, timeout_s=0.2, queue_timeout_s=0.2)

    run(scenario)


def test_a_silent_gateway_is_noticed_and_replaced() -> None:
    async def scenario(gateway: FakeGateway, to: Link) -> None:
        assert await call(to, "square", 2) == 4
        connection = to._connection
        assert connection is not None
        connection.heard_at -= 100
        gateway_reads, gateway._frame = gateway._frame, lambda *rest: None  # type: ignore[method-assign]
        waiting = asyncio.create_task(call(to, "square", 3))
        await asyncio.sleep(0.1)
        gateway._frame = gateway_reads  # type: ignore[method-assign]
        connection.heard_at -= 100
        assert await waiting == 9

    run(scenario)


def test_sync_code_calls_over_the_background_loop_and_one_link_per_loop() -> None:
    ready, ports, stop = threading.Event(), [], threading.Event()

    def serve() -> None:
        async def main() -> None:
            async with FakeGateway({"square": lambda x: x * x}) as gateway:
                ports.append(gateway)
                ready.set()
                while not stop.is_set():
                    await asyncio.sleep(0.02)

        asyncio.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(5)
    try:

        async def once(x: int) -> int:
            return await call(link_to(ports[0].url, KEY), "square", x)

        assert [background.run(once(n)) for n in (2, 3)] == [4, 9]
        assert ports[0].connections == 1
        assert asyncio.run(once(4)) == 16
        assert ports[0].connections == 2

        async def blocking() -> None:
            background.run(once(1))

        with pytest.raises(background.BlockingCallInLoop, match="await"):
            asyncio.run(blocking())
    finally:
        stop.set()
        thread.join(5)
