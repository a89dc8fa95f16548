"""What an agent tells a worker of other models: all of them each time, and how far the files of each are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanopod.model.endpoint import EndpointSpec, InstanceSpec, LoadedModel, ModelSpec, StorageSpec
from nanopod.node import records, remodelled, updates
from nanopod.node.remodelled import Remodelled, is_change
from nanopod.node.storage.errors import GivenUp, StorageFailed

WAIT_S_MAX = 10.0


def spec(revision: str, *models: tuple[str, str], slots: int = 1) -> InstanceSpec:
    found = tuple(LoadedModel(name, "sklearn", StorageSpec(uri)) for name, uri in models)
    app = EndpointSpec("m", kind="model", model=ModelSpec("m", "server", slots=slots, models=found))
    return InstanceSpec("inst_1", 1, "wksp_1", "endp_1", revision, "node_1", app, 1, "token")


class Around:
    """A worker that hears, and files that come when the test says so."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.heard: list[tuple[str, dict[str, str]]] = []
        self.refuse: list[Exception] = []
        self.results: dict[str, asyncio.Future[Path]] = {}
        self.fetched: list[str] = []
        self.ended: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        monkeypatch.setattr(updates, "ask", self.ask)
        monkeypatch.setattr(remodelled, "PAUSE_S", 0.001)
        (directory / "storage/models").mkdir(parents=True)

    def begin(self, now: InstanceSpec) -> Remodelled:
        records.write_start(self.directory, records.Start(now, [], records.Launch([], {}, "")))
        return Remodelled(self.directory, now, self.fetch, self.spawn, self.give_up)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def ask(self, directory: Path, request: dict[str, Any]) -> dict[str, Any]:
        if self.refuse:
            raise self.refuse.pop()
        rows = {row["model"]["name"]: row["state"] + row.get("error", "") for row in request["models"]}
        self.heard.append((request["revision"], rows))
        return {"models": len(rows)}

    async def fetch(self, wanted: InstanceSpec, name: str, stop: threading.Event) -> Path:
        self.fetched.append(name)
        result = self.results.setdefault(name, asyncio.get_running_loop().create_future())
        while not result.done():
            if stop.is_set():
                raise GivenUp
            await asyncio.sleep(0.001)
        return result.result()

    async def give_up(self, why: str) -> None:
        self.ended.append(why)

    def recorded(self) -> str:
        found = records.read_start(self.directory)
        assert found is not None
        return found.instance.revision_id

    async def hears(self, revision: str, **rows: str) -> None:
        await until(lambda: bool(self.heard) and self.heard[-1] == (revision, rows))


async def until(test: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not test():
            await asyncio.sleep(0.001)


def test_what_counts_as_a_change() -> None:
    before = spec("r1", ("a", "s3://b/a"))
    assert is_change(before, spec("r2"))
    assert not is_change(before, spec("r1", ("a", "s3://b/a")))
    assert not is_change(before, spec("r2", slots=2)), "its worker is started anew"
    assert not is_change(before, replace(spec("r2"), epoch=2))


def test_files_come_first_and_the_worker_hears_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        around = Around(tmp_path, monkeypatch)
        (tmp_path / "storage/models/kept").mkdir()
        models = around.begin(spec("r1", ("kept", "s3://b/k"), ("old", "s3://b/o")))
        around.refuse = [ConnectionRefusedError("it is just starting")] * 2
        models.want(spec("r2", ("kept", "s3://b/k"), ("new", "s3://b/n"), ("bad", "s3://b/b")))
        await around.hears("r2", kept="there", new="fetching", bad="fetching")
        await until(lambda: sorted(around.fetched) == ["bad", "new"])
        assert around.recorded() == "r1", "an agent that is started anew has still to make the change"
        around.results["new"].set_result(tmp_path / "storage/models/new")
        await around.hears("r2", kept="there", new="there", bad="fetching")
        around.results["bad"].set_exception(StorageFailed("there is no such file"))
        await around.hears("r2", kept="there", new="there", bad="failedthere is no such file")
        await until(lambda: around.recorded() == "r2")
        around.results.clear()
        models.want(spec("r3", ("kept", "s3://b/k2"), ("bad", "s3://b/b")))
        await around.hears("r3", kept="fetching", bad="fetching")
        models.want(spec("r4", ("kept", "s3://b/k2")))
        around.results["kept"].set_result(tmp_path / "storage/models/kept")
        await around.hears("r4", kept="there")
        await until(lambda: around.recorded() == "r4" and not around.tasks)
        assert around.ended == []

    asyncio.run(main())


def test_the_network_is_tried_again_and_a_deaf_worker_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        around = Around(tmp_path, monkeypatch)
        models = around.begin(spec("r1"))
        models.want(spec("r2", ("far", "s3://b/f")))
        await until(lambda: "far" in around.results)
        around.results.pop("far").set_exception(StorageFailed("no answer", user_fault=False))
        await until(lambda: around.fetched == ["far", "far"])
        around.results["far"].set_result(tmp_path / "storage/models/far")
        await around.hears("r2", far="there")
        monkeypatch.setattr(remodelled, "TELL_S_MAX", 0.0)
        around.refuse = [ConnectionRefusedError("nobody listens")] * 100
        models.want(spec("r3"))
        await until(lambda: bool(around.ended))
        assert "nobody listens" in around.ended[0]

    asyncio.run(main())
