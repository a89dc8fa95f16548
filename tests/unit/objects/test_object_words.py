"""What a program says about secrets, volumes and buckets; who waits for queues; where workers reach their cloud."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nanopod.client.image import Image
from nanopod.client.secrets import Secret
from nanopod.client.twins import Both, Pages, twin
from nanopod.client.volumes import Volume
from nanopod.control.wanted import url_of
from nanopod.model import parts
from nanopod.model.endpoint import SecretRef, VolumeMount
from nanopod.model.errors import Invalid
from nanopod.server.waits import Waits


class Recorded:
    """An API that remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def put(self, path: str, body: Any) -> None:
        self.sent.append((path, body))


def test_an_image_names_what_it_needs_and_holds_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    image = Image().secret("hf", Secret("db")).secret(Secret.from_env(["HF_TOKEN"]), Secret.from_dict({"A": "hunter3"}))
    image.volume("/models", Volume("m", size_gb=2, region="eu"), read_only=True).volume("data", "n")
    image.bucket("s3://b/p", "/data", secret=Secret.from_dict({"AWS_ACCESS_KEY_ID": "hunter4"}))
    spec = image.spec("app.default")
    assert spec.secrets[:2] == (SecretRef("hf"), SecretRef("db"))
    assert all(ref.name.startswith("auto.app.default.") for ref in spec.secrets[2:])
    assert spec.volumes[:2] == (
        VolumeMount("/models", volume="m", read_only=True, size_gb=2.0, region="eu"), VolumeMount("data", volume="n"),
    )  # fmt: skip
    assert spec.volumes[2].bucket == "s3://b/p" and spec.volumes[2].secret.startswith("auto.app.default.")
    assert "hunter" not in repr(spec) + repr(image.bundle_config()) + repr(image.secrets)
    api = Recorded()
    image.provide(api, "app.default")  # type: ignore[arg-type]
    assert [body["values"] for _, body in api.sent] == [
        {"HF_TOKEN": "hunter2"}, {"A": "hunter3"}, {"AWS_ACCESS_KEY_ID": "hunter4"},
    ]  # fmt: skip
    names = [path.rpartition("/")[2] for path, _ in api.sent]
    assert names == [spec.secrets[2].name, spec.secrets[3].name, spec.volumes[2].secret]
    assert image.spec("other.default").secrets[2].name != spec.secrets[2].name, "each deployment has its own"


def test_a_variable_is_asked_for_only_when_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    secret = Secret.from_env(["HF_TOKEN"])
    with pytest.raises(Invalid, match="HF_TOKEN is not set") as refused:
        secret.values()
    assert refused.value.field == "HF_TOKEN"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (lambda: Secret("no/slash"), "name"),
        (lambda: Secret.from_dict({}), "values"),
        (lambda: Secret.from_dict({"A": 1}), "values"),  # type: ignore[dict-item]
        (lambda: Secret.from_env([]), "names"),
        (lambda: Volume("-"), "name"),
        (lambda: Volume("m", size_gb=-1), "size_gb"),
        (lambda: Image().secret(5), "secret"),  # type: ignore[arg-type]
        (lambda: Image().volume("a/../b", "m"), "path"),
        (lambda: Image().volume("/", "m"), "path"),
        (lambda: Image().volume("/m", 5), "volume"),  # type: ignore[arg-type]
        (lambda: Image().bucket("ftp://x/y", "/d"), "bucket"),
        (lambda: Image().bucket("s3://b", "/d", read_only=False), "read_only"),
        (lambda: Volume("m").commit(), "volume"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(wrong: Any, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        wrong()
    assert refused.value.field == field


def test_changes_say_what_was_seen() -> None:
    one, two = ("aa", 1, 0o644), ("bb", 2, 0o644)
    assert parts.changes({"a": one, "b": one, "c": one}, {"a": one, "b": two, "d": two}) == {
        "b": {"blob": "bb", "bytes": 2, "mode": 0o644, "was": "aa"},
        "d": {"blob": "bb", "bytes": 2, "mode": 0o644, "was": None},
        "c": {"gone": True, "was": "aa"},
    }
    assert [parts.plain_path(path) for path in ("", "/", "./a//b/", "/a")] == ["", "", "a/b", "a"]
    with pytest.raises(ValueError, match="leads out"):
        parts.plain_path("a/../b")
    assert (parts.mode_of(0o100750), parts.mode_of(0o100600)) == (0o755, 0o644)


@pytest.mark.parametrize(
    ("addresses", "url"),
    [
        ((), ""),
        (("unix:/run/gateway.sock",), ""),
        (("unix:/x", "tcp:127.0.0.1:8900", "tcp:10.0.0.1:1"), "http://127.0.0.1:8900"),
        (("tcp:0.0.0.0:8900",), "http://127.0.0.1:8900"),
        (("tcp::::8900",), "http://[::1]:8900"),
        (("tcp:fe80::1:8900",), "http://[fe80::1]:8900"),
    ],
)
def test_workers_reach_their_cloud_where_http_is_spoken(addresses: tuple[str, ...], url: str) -> None:
    assert url_of(addresses) == url


def test_waiters_are_woken_in_their_order_and_pass_on_what_they_do_not_take() -> None:
    async def run() -> None:
        waits, place, done = Waits(), ("q", ""), []

        async def wait(name: str, wait_s_max: float = 60.0) -> None:
            if await waits.wait(place, wait_s_max):
                done.append(name)

        tasks = [asyncio.ensure_future(wait(name)) for name in "abcd"]
        await asyncio.sleep(0)
        assert waits.count(place) == 4 and waits.count(("q", "p")) == 0
        waits.woken(place, 1)
        waits.woken(("q", "p"), 5)
        tasks[1].cancel()
        await asyncio.wait(tasks[:2])
        assert done == ["a"]
        waits.woken(place)  # c is woken, but is cancelled before it runs: d gets its turn
        tasks[2].cancel()
        await asyncio.wait(tasks)
        assert done == ["a", "d"] and waits.count(place) == 0
        await wait("e", 0.001)
        assert done == ["a", "d"] and waits.count(place) == 0

    asyncio.run(run())


class Counter:
    """Something with twins."""

    def __init__(self) -> None:
        self.count = 0

    @twin
    def add(self, more: int, *, times: int = 1) -> int:
        """Add."""
        self.count += more * times
        return self.count


def test_twins_block_or_are_awaited() -> None:
    async def run() -> int:
        return await counter.add.aio(1, times=3)

    counter = Counter()
    assert isinstance(counter.add, Both)
    assert (counter.add(2), asyncio.run(run())) == (2, 5)


def test_pages_are_fetched_as_they_are_needed() -> None:
    fetched: list[int] = []

    def fetch() -> Any:
        for number in range(3):
            fetched.append(number)
            yield [number, number]

    async def first(pages: Pages[int]) -> list[int]:
        found = []
        async for item in pages:
            found.append(item)
            if len(found) == 3:
                break
        return found

    assert list(Pages(fetch)) == [0, 0, 1, 1, 2, 2]
    fetched.clear()
    assert asyncio.run(first(Pages(fetch))) == [0, 0, 1] and fetched == [0, 1]
