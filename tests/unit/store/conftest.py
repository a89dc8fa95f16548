"""A fresh store per test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nanopod.store.sqlite import SqliteStore


@pytest.fixture
def with_store(tmp_path: Path) -> Callable[[Callable[[SqliteStore], Awaitable[Any]]], Any]:
    """Run a coroutine function on a store."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[SqliteStore]:
        store = SqliteStore(tmp_path / "nanopod.db")
        try:
            yield store
        finally:
            await store.close()

    def run(test: Callable[[SqliteStore], Awaitable[Any]]) -> Any:
        async def inner() -> Any:
            async with opened() as store:
                return await test(store)

        return asyncio.run(inner())

    return run
