"""The sender on a clock of the test's own: when it gives up, and where it sends nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nanopod.model.chain import Workspace
from nanopod.server.api.webhooks import status_of
from nanopod.server.feed import NewsFeed
from nanopod.server.webhooks import GIVE_UP_S, RETRY_S_MAX, WebhookSender
from nanopod.store.hooks import Webhook
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

WAIT_S_MAX = 10.0


@pytest.fixture
def url() -> str:
    """Where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/"


async def seen(store: SqliteStore, test: Callable[[Webhook], bool]) -> Webhook:
    """The webhook once it is as expected."""
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            hook = await store.read(lambda read: read.webhook("whook_1"))
            assert hook is not None
            if test(hook):
                return hook
            await asyncio.sleep(0.02)


async def stage(path: Path, workspace: str, url: str) -> SqliteStore:
    store = SqliteStore(path / "nanopod.db")

    def prepare(write: Transaction) -> None:
        write.add_workspace(Workspace("w1", workspace, "a1", 1.0))
        write.add_webhook(Webhook("whook_1", "w1", "ops", url, (), True, "whsec_1", 0, 1.0, 1.0))
        for number in range(3):
            write.add_notice(1.0, "w1", "order.filled", f"ordr_{number}", {})

    await store.write(prepare)
    return store


def test_after_a_day_of_failures_it_fails_and_goes_on(tmp_path: Path, url: str) -> None:
    async def test() -> None:
        store, now = await stage(tmp_path, "default", url), [1_000_000.0]
        running = asyncio.create_task(WebhookSender(store, NewsFeed(), lambda: now[0], lambda: 0.5).run())
        try:
            first = await seen(store, lambda hook: hook.failures == 1)
            assert (first.cursor, first.next_at, first.failed_since) == (0, now[0] + 1, now[0])
            now[0] += GIVE_UP_S - 1
            second = await seen(store, lambda hook: hook.failures == 2)
            assert second.cursor == 0, "a day is not over"
            assert status_of(second, now[0])["state"] == "retrying"
            for given_up in (1, 2):
                now[0] += RETRY_S_MAX
                later = await seen(store, lambda hook, n=given_up: hook.failures == 2 + n)  # type: ignore[misc]
                assert later.cursor == given_up
            assert status_of(later, now[0])["state"] == "failing"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await store.close()

    asyncio.run(test())


def test_a_private_address_is_refused_again_at_the_delivery(tmp_path: Path) -> None:
    async def test() -> None:
        reached = asyncio.Event()
        server = await asyncio.start_server(lambda *_: reached.set(), "127.0.0.1", 0)
        url = f"http://localhost:{server.sockets[0].getsockname()[1]}/"
        store = await stage(tmp_path, "research", url)
        running = asyncio.create_task(WebhookSender(store, NewsFeed(), lambda: 5.0).run())
        try:
            hook = await seen(store, lambda hook: hook.failures == 1)
            assert "private address" in hook.message
            assert not reached.is_set()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await store.close()
            server.close()

    asyncio.run(test())
