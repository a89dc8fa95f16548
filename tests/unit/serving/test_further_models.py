"""Models that come and go in a running server: memory, order, what is loaded while it is not wanted any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nanopod.model.endpoint import LoadedModel, StorageSpec
from nanopod.node.engines.serving import formats
from nanopod.node.engines.serving.answers import Refused
from nanopod.node.engines.serving.formats import LoadFailed
from nanopod.node.engines.serving.further import Further
from nanopod.node.engines.serving.repository import Repository
from nanopod.node.storage.told import LACKING, Furnished

WAIT_S_MAX = 10.0


class Loader:
    """Stands in for `formats.load`: the directory's name says how it goes; `slow` waits for `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Event()

    def load(self, name: str, form: str, directory: Path, options: Mapping[str, str]) -> Any:
        if directory.name == "bad":
            raise LoadFailed(f"model {name}: it is broken")
        if directory.name == "slow":
            self.began.set()
            assert self.go.wait(WAIT_S_MAX)
        return f"{name} of {directory.name}"


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    made = Loader()
    monkeypatch.setattr(formats, "load", made.load)
    monkeypatch.delenv(LACKING, raising=False)
    monkeypatch.delenv("NANOPOD_MODEL_DIR", raising=False)
    return made


def model(name: str, memory: int = 0, version: str = "1") -> LoadedModel:
    return LoadedModel(name, "sklearn", StorageSpec(f"s3://models/{name}/{version}"), memory)


def there(name: str, directory: str = "good", memory: int = 0, version: str = "1") -> Furnished:
    return Furnished(model(name, memory, version), "there", f"/x/{directory}")


async def until(test: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not test():
            await asyncio.sleep(0.002)


class Server:
    """A repository of 100 bytes with its further models."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.repository = Repository(self.pool, 100)
        self.further = Further(self.repository)

    async def has(self, **states: str) -> None:
        """Wait until the models say this."""
        await until(lambda: self.repository.states() == states)

    def answers(self, name: str) -> str:
        return str(self.repository.predictor(name))


def test_models_come_change_and_go(loader: Loader) -> None:
    async def main() -> None:
        server = Server()
        await server.further.start(())
        server.further.want((Furnished(model("a"), "fetching"), there("b")))
        assert server.repository.states()["a"] == "loading"
        await server.has(a="loading", b="")
        with pytest.raises(Refused, match="not ready"):
            server.repository.predictor("a")
        server.further.want((there("a"), there("b")))
        await server.has(a="", b="")
        server.further.want((Furnished(model("a", version="2"), "fetching"), there("b")))
        assert server.repository.states() == {"a": "ready: loading", "b": ""}
        assert server.answers("a") == "a of good", "it answers until the other one is there"
        server.further.want((there("a", "better", version="2"), there("b")))
        await until(lambda: server.answers("a") == "a of better")
        server.further.want((there("a", "bad", version="3"), there("b")))
        await server.has(a="ready: model a: it is broken", b="")
        assert server.answers("a") == "a of better", "it goes on"
        server.further.want((there("b"),))
        assert server.repository.states() == {"b": ""}
        server.further.want((there("b"), Furnished(model("c"), "failed", error="there is no such file")))
        assert server.repository.states() == {"b": "", "c": "failed: there is no such file"}

    asyncio.run(main())


def test_memory_is_reserved_and_given_back(loader: Loader) -> None:
    async def main() -> None:
        server = Server()
        await server.further.start(())
        server.further.want((there("a", memory=60), there("b", memory=60)))
        await until(lambda: server.repository.states().get("b", "").startswith("failed"))
        assert "60 bytes, 40 of 100" in server.repository.states()["b"]
        server.further.want((there("a", "bad", 100, "2"),))
        await server.has(a="ready: model a: it is broken")
        server.further.want((there("c", memory=100),))
        await server.has(c="")
        server.further.want((there("c", "better", 100, "2"),))
        await until(lambda: server.answers("c") == "c of better")
        server.further.want((there("d", memory=100),))
        await server.has(d="")

    asyncio.run(main())


def test_what_is_removed_while_it_is_loaded_holds_nothing(loader: Loader) -> None:
    async def main() -> None:
        server = Server()
        await server.further.start(())
        server.further.want((there("a", "slow", 100),))
        await until(loader.began.is_set)
        server.further.want(())
        assert server.repository.states() == {}
        server.further.want((there("a", "good", 50, "2"), there("b", memory=50)))
        loader.go.set()
        await until(lambda: "loading" not in server.repository.states().values())
        # The one that was in the way has ended; what it kept from others is free again.
        server.further.want((there("a", "good", 50, "2"), there("b", memory=50, version="2")))
        await server.has(a="", b="")
        assert server.answers("a") == "a of good"

    asyncio.run(main())


def test_the_start_says_what_is_lacking_and_takes_what_came_meanwhile(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LACKING, '{"gone": "HTTP 404"}')

    async def main() -> None:
        server = Server()
        server.further.want((there("late"), Furnished(model("gone"), "failed", error="HTTP 404")))
        await server.further.start((model("gone"), model("bad")))
        await server.has(gone="failed: HTTP 404", late="")
        server.further.want((there("late"), there("gone")))
        await server.has(gone="", late="")

    asyncio.run(main())
