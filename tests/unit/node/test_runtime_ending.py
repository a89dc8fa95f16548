"""Announced ends, hooks, health checks; snapshots that contexts leave for the next worker."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from nanopod.model.endpoint import EndpointSpec, Fingerprints
from nanopod.model.registry import App, Notice, RegisteredContext
from nanopod.node.runtime import ending as ending_module
from nanopod.node.runtime import snapshots as snapshots_module
from nanopod.node.runtime.contexts import Contexts
from nanopod.node.runtime.ending import Ending, Hooks, Notices, close_all, watch_health
from nanopod.node.runtime.snapshots import Snapshots, key_of


def announce(path: Path, in_s: float, reason: str = "the price rose") -> float:
    at = time.time() + in_s
    path.write_text(json.dumps({"at": at, "lead_s": in_s, "reason": reason}))
    return at


def told_app(told: list[Any]) -> App:
    app = App("test")

    async def waits(notice: Notice) -> None:
        told.append(notice)

    def plain(notice: Notice) -> None:
        told.append(notice.reason)

    def broken(notice: Notice) -> None:
        raise OSError("no disk")

    app.on_preempt += [waits, broken, plain]
    return app


def test_an_announced_end_is_told_at_once_and_prepared_for_in_time(tmp_path: Path) -> None:
    async def story() -> None:
        told: list[Any] = []
        path = tmp_path / "shutdown.json"
        ending, hooks = Ending(), Hooks(told_app(told))
        notices = Notices(path, hooks, ending, grace_s=30.0)
        notices.look()
        assert notices.notice is None
        at = announce(path, 600)
        notices.look()
        await hooks.finish(10)
        assert told == [Notice(at, "the price rose"), "the price rose"]
        notices.look()
        await hooks.finish(10)
        assert len(told) == 2, "once"
        assert not ending.asked.is_set()

        announce(path, 31)
        notices.look()
        assert not ending.asked.is_set()
        at = announce(path, 29, "sooner")
        notices.look()
        assert ending.asked.is_set()
        assert ending.reason == "its time is over soon: sooner"
        assert ending.at == at
        assert 0 < ending.grace_s(30) <= 29
        assert ending.grace_s(5) == 5

        # Taken back: the next one is told anew.
        path.unlink()
        notices.look()
        announce(path, 600, "again")
        notices.look()
        await hooks.finish(10)
        assert told[-1] == "again"

    asyncio.run(story())


def test_a_moment_that_is_past_is_no_reason_to_end(tmp_path: Path) -> None:
    async def story() -> None:
        told: list[Any] = []
        path = tmp_path / "shutdown.json"
        ending, hooks = Ending(), Hooks(told_app(told))
        notices = Notices(path, hooks, ending, grace_s=30.0)
        announce(path, -1000)
        notices.look()
        await hooks.finish(10)
        assert len(told) == 2
        assert not ending.asked.is_set()
        path.write_text("not json")
        notices.look()
        assert notices.notice is None

    asyncio.run(story())


def test_after_everything_was_left_the_end_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending_module, "LINGER_S_MAX", 0.1)
    monkeypatch.setattr(ending_module, "NOTICE_LOOK_S", 0.01)

    async def story() -> None:
        path = tmp_path / "shutdown.json"
        ending = Ending()
        notices = Notices(path, Hooks(App("x")), ending, grace_s=30.0)
        at = announce(path, 600)
        ending.ask("soon", at=at)
        waiting = asyncio.create_task(notices.linger())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        ending.signalled("SIGTERM")
        assert await waiting == ""
        assert ending.reason == "soon", "the first reason counts"

        ending.told.clear()
        path.unlink()
        assert await notices.linger() == "its announced end was taken back"
        late = Ending()
        late.ask("soon", at=announce(path, 0.05))
        assert await Notices(path, Hooks(App("x")), late, 1).linger() == "its announced end did not come"

    asyncio.run(story())


def test_hooks_that_take_too_long_are_left(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        app = App("test")

        async def endless(notice: Notice) -> None:
            await asyncio.sleep(60)

        app.on_preempt.append(endless)
        hooks = Hooks(app)
        hooks.tell(Notice(0.0, "x"))
        await hooks.finish(0.02)
        assert "not done within" in caplog.text

    asyncio.run(story())


def test_two_failed_checks_in_a_row_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending_module, "HEALTH_S", 0.001)
    monkeypatch.setattr(ending_module, "HEALTH_S_MAX", 0.05)

    async def story() -> None:
        answers: list[Any] = [None, False, True, RuntimeError("cuda is gone"), None, False, ValueError("weights")]

        def check() -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        ending = Ending()
        await asyncio.wait_for(watch_health(check, ending), 20)
        assert answers == []
        assert ending.reason == "healthcheck failed 2 times: ValueError: weights"
        assert ending.failure is not None
        assert ending.failure.stage == "run"

        async def hangs() -> None:
            await asyncio.sleep(60)

        slow = Ending()
        await asyncio.wait_for(watch_health(hangs, slow), 20)
        assert "no answer within" in slow.reason

    asyncio.run(story())


def test_what_was_loaded_is_closed_whatever_happens() -> None:
    async def story() -> None:
        done: list[str] = []

        async def late() -> None:
            done.append("late")
            await asyncio.sleep(60)

        def broken() -> None:
            done.append("broken")
            raise OSError

        await close_all([late, broken, lambda: done.append("plain")], 0.05)
        assert sorted(done) == ["broken", "late", "plain"]

    asyncio.run(story())


# --- snapshots ---


class Weights:
    """A context that is quick to restore."""

    told: list[str] = []
    fails = ""

    def __init__(self) -> None:
        self.data = ""

    async def __aenter__(self) -> Weights:
        self.told.append("entered")
        self.data = "from the source"
        return self

    async def __aexit__(self, *about: object) -> None:
        self.told.append("left")

    async def __asnapshot__(self, directory: Path) -> None:
        if self.fails == "snapshot":
            raise OSError("no space")
        self.told.append("kept")
        (directory / "weights").write_text(self.data + ", kept")

    async def __arestore__(self, directory: Path) -> None:
        self.data = (directory / "weights").read_text()
        if self.fails == "restore":
            raise ValueError("torn")
        self.told.append("restored")


class Plain(Weights):
    """The same with ordinary methods, and a value of its own."""

    def __asnapshot__(self, directory: Path) -> None:
        (directory / "n").write_text("7")

    def __arestore__(self, directory: Path) -> Any:
        self.told.append("restored plain")
        return int((directory / "n").read_text())


def story_of(root: Path, key: str, *classes: type, keep: bool = True, limit_s: float = 20.0) -> dict[type, Any]:
    """One worker's life: what was entered."""
    Weights.told.clear()

    async def story() -> dict[type, Any]:
        app = App("test")
        for cls in classes:
            app.contexts[cls] = RegisteredContext(cls)
        contexts = Contexts(app, Snapshots(root, key))
        await contexts.enter()
        entered = dict(app.entered)
        if keep:
            entered[bool] = await contexts.snapshot(limit_s)
        await contexts.exit(None, 5.0)
        return entered

    return asyncio.run(story())


@pytest.fixture(autouse=True)
def whole() -> None:
    Weights.fails = ""


def test_the_next_worker_restores_what_the_last_one_kept(tmp_path: Path) -> None:
    root = tmp_path / "snapshots" / "endp_1"
    first = story_of(root, "k1", Weights, Plain)
    assert first[bool] is True
    assert sorted(Weights.told) == ["entered", "entered", "kept", "left", "left"]
    second = story_of(root, "k1", Weights, Plain)
    assert sorted(Weights.told) == ["kept", "left", "left", "restored", "restored plain"]
    assert second[Weights].data == "from the source, kept"
    assert second[Plain] == 7, "as `__aenter__`, it may return what the context is"
    third = story_of(root, "k1", Weights)
    assert third[Weights].data == "from the source, kept, kept", "the newest one counts"
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["k1"]


def test_another_key_is_no_snapshot_of_ours(tmp_path: Path) -> None:
    story_of(tmp_path, "k1", Weights)
    assert story_of(tmp_path, "k2", Weights)[Weights].data == "from the source"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["k2"], "the newest only"


def test_a_snapshot_that_cannot_be_restored_is_as_good_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    story_of(tmp_path, "k1", Weights)
    Weights.fails = "restore"
    found = story_of(tmp_path, "k1", Weights, keep=False)
    assert found[Weights].data == "from the source"
    assert Weights.told == ["entered", "left"]
    assert "could not be restored" in caplog.text


def test_a_snapshot_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    story_of(tmp_path, "k1", Weights)
    Weights.fails = "snapshot"
    assert story_of(tmp_path, "k1", Plain, Weights)[bool] is False
    assert "no space" in caplog.text
    Weights.fails = ""
    assert story_of(tmp_path, "k1", Weights, limit_s=0.0)[bool] is False
    monkeypatch.setattr(snapshots_module, "FREE_SHARE", 0.0)
    assert story_of(tmp_path, "k1", Weights)[bool] is False
    assert "is dropped" in caplog.text
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"k1", "lock"}, "the earlier one stays, nothing else"


def test_a_snapshot_that_is_read_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "LOCK_S_MAX", 0.02)
    story_of(tmp_path, "k1", Weights)
    store = Snapshots(tmp_path, "k1")
    with store.reading() as found:
        assert found is not None
        assert not store.commit(store.begin())
        assert (found / "Weights" / "weights").is_file()
    assert store.commit(store.begin())


def test_the_key_names_everything_that_must_be_the_same() -> None:
    app = EndpointSpec("a", bundle="b1", fingerprints=Fingerprints("code", "image"))
    same = EndpointSpec("other", bundle="b2", fingerprints=Fingerprints("code", "image", "scale"))
    assert key_of(app, ("H100 550",)) == key_of(same, ("H100 550",))
    others = [
        key_of(EndpointSpec("a", fingerprints=Fingerprints("code2", "image")), ("H100 550",)),
        key_of(EndpointSpec("a", fingerprints=Fingerprints("code", "image2")), ("H100 550",)),
        key_of(app, ("H100 551",)),
        key_of(app, ()),
    ]
    assert len({key_of(app, ("H100 550",)), *others}) == 5


def test_abandoned_snapshots_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "endp_old", tmp_path / "endp_new"
    story_of(old, "k", Weights)
    story_of(new, "k", Weights)
    assert old.is_dir()
    (new / ".new-4194399").mkdir()
    monkeypatch.setattr(snapshots_module, "KEEP_S", -10.0)
    story_of(new, "k", Weights)
    assert not old.exists()
    assert {path.name for path in new.iterdir()} == {"k", "lock"}
