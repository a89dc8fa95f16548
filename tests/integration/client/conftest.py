"""A fake gateway on a thread of its own, for tests whose client side blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from stand_in_gateway import FakeGateway


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    """A gateway that runs `square`, until the test ends."""
    ready, stop, made = threading.Event(), threading.Event(), []

    def serve() -> None:
        async def main() -> None:
            async with FakeGateway({"square": lambda x: x * x}) as running:
                made.append(running)
                ready.set()
                while not stop.is_set():
                    await asyncio.sleep(0.02)

        asyncio.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(5)
    yield made[0]
    stop.set()
    thread.join(5)
