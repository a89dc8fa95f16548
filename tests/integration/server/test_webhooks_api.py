"""Webhooks over the API, and what a real receiver gets: signed, in order, again after failures, also over a kill."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from peers import ServerProcess
from things_stage import Cloud, eventually

pytestmark = pytest.mark.integration


class Receiver:
    """An HTTP server in a thread of its own; `answers` are used up first, then it answers 204."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.elsewhere = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    async def _take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        status = self.answers.pop(0) if self.answers else 204
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    async def _other(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        app.router.add_route("*", "/elsewhere", self._other)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        return runner

    def __enter__(self) -> Receiver:
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]

    def names(self) -> list[str]:
        return [event["data"]["name"] for event in self.events()]


def checked(headers: dict[str, str], body: bytes, secret: str) -> bool:
    parts = dict(part.split("=", 1) for part in headers["Nanopod-Signature"].split(","))
    assert abs(int(parts["t"]) - time.time()) < 60
    expected = hmac.new(secret.encode(), parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"])


def template(call: Callable[..., Any], name: str) -> None:
    assert call("POST", "/v1/instance_templates", {"name": name}).status == 201


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("webhooks") / "data").running() as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def test_made_shown_changed_deleted(cloud: Cloud) -> None:
    name = cloud.name("hook")
    made = cloud.make("/v1/webhooks", {"name": name, "url": "http://127.0.0.1:9/x", "types": ["order.*"]})
    assert made.status == 201
    assert made["secret"].startswith("whsec_")
    assert made["resource_path"] == f"np:webhook:local:default:{name}"
    assert (made["status"]["state"], made["failures"], made["last_delivered_at"]) == ("active", 0, None)
    for reference in (name, made["id"], made["resource_path"]):
        shown = cloud.call("GET", f"/v1/webhooks/{reference}")
        assert (shown["id"], "secret" in shown.body) == (made["id"], False)
    changed = cloud.call("PATCH", f"/v1/webhooks/{name}", {"enabled": False, "types": []})
    assert (changed["status"]["state"], changed["types"], changed["name"]) == ("disabled", [], name)
    listed = cloud.call("GET", "/v1/webhooks")
    assert [row["id"] for row in listed["data"]] == [made["id"]]
    assert made["secret"] not in json.dumps([listed.body, changed.body]) + cloud.server.log()
    assert cloud.call("DELETE", f"/v1/webhooks/{name}")["deleted"] is True
    assert cloud.call("GET", f"/v1/webhooks/{name}").status == 404


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"url": "ftp://example.com"}, 422, "url"),
        ({"url": "http://a:b@example.com"}, 422, "url"),
        ({"types": ["Order"]}, 422, "types[0]"),
        ({"name": "-"}, 422, "name"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
def test_wrong_webhooks_are_refused(cloud: Cloud, body: dict[str, Any], status: int, field: str) -> None:
    wish = {"name": cloud.name("hook"), "url": "http://127.0.0.1:9/", **body}
    refused = cloud.call("POST", "/v1/webhooks", wish)
    assert refused.status == status, refused.body
    assert refused.error["details"][0]["field"] == field


def test_other_workspaces_reach_public_addresses_only_and_have_twenty(cloud: Cloud) -> None:
    _, key = cloud.workspace()
    for url in ("http://127.0.0.1/", "http://localhost:80/", "http://[::1]/", "http://10.0.0.1/", "http://0x7f000001/"):
        refused = cloud.call("POST", "/v1/webhooks", {"name": "inner", "url": url}, key=key)
        assert (refused.status, refused.error["details"][0]["field"]) == (422, "url"), url
    for number in range(20):
        wish = {"name": f"hook-{number}", "url": "http://8.8.8.8/", "enabled": False}
        made = cloud.make("/v1/webhooks", wish, key=key)
    assert cloud.call("POST", "/v1/webhooks", {**wish, "name": "more"}, key=key).status == 422
    inner = {"url": "http://169.254.169.254/"}
    assert cloud.call("PATCH", f"/v1/webhooks/{made['id']}", inner, key=key).status == 422
    _, stranger = cloud.workspace()
    assert cloud.call("GET", f"/v1/webhooks/{made['id']}", key=stranger).status == 404
    assert cloud.call("DELETE", f"/v1/webhooks/{made['id']}", key=stranger).status == 404


def test_what_happens_is_sent_signed_in_order_and_again_after_failures(cloud: Cloud, receiver: Receiver) -> None:
    receiver.answers = [503, 302]
    wish = {"name": cloud.name("hook"), "url": receiver.url, "types": ["instance_template.created"]}
    made = cloud.make("/v1/webhooks", wish)
    names = [cloud.name("sent") for _ in range(5)]
    template(cloud.call, names[0])
    eventually(lambda: cloud.call("GET", f"/v1/webhooks/{made['id']}")["failures"] == 1, "the first attempt failed")
    status = cloud.call("GET", f"/v1/webhooks/{made['id']}")["status"]
    assert status == {"state": "retrying", "message": "it answered 503"}
    for name in names[1:]:
        template(cloud.call, name)
    eventually(lambda: len(receiver.got) == 7, "all are delivered")
    assert receiver.names() == [names[0], names[0], *names], "the first until it was taken, then each once"
    assert receiver.elsewhere == 0
    for headers, body in receiver.got:
        assert checked(headers, body, made["secret"])
        assert headers["Nanopod-Event-Id"] == json.loads(body)["id"]
    event = receiver.events()[-1]
    assert (event["type"], set(event)) == (
        "instance_template.created", {"id", "type", "created_at", "object_id", "workspace_id", "data"},
    )  # fmt: skip
    after = eventually(
        lambda: (row := cloud.call("GET", f"/v1/webhooks/{made['id']}"))["status"]["state"] == "active" and row
    )
    assert (after["failures"], after["last_delivered_at"] is not None) == (0, True)
    assert made["secret"] not in cloud.server.log()
    cloud.call("PATCH", f"/v1/webhooks/{made['id']}", {"enabled": False})
    template(cloud.call, cloud.name("unsent"))
    cloud.call("PATCH", f"/v1/webhooks/{made['id']}", {"enabled": True})
    last = cloud.name("sent")
    template(cloud.call, last)
    eventually(lambda: len(receiver.got) == 8, "it goes on")
    assert receiver.names()[-1] == last, "what happened while it was disabled is not sent"
    cloud.call("DELETE", f"/v1/webhooks/{made['id']}")


def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path, receiver: Receiver) -> None:
    server = ServerProcess(tmp_path / "data").start()
    try:
        wish = {"name": "ops", "url": receiver.url, "types": ["instance_template.*"]}
        secret = server.call("POST", "/v1/webhooks", wish)["secret"]
        template(server.call, "one")
        eventually(lambda: receiver.names() == ["one"], "the first is delivered")
        receiver.answers = [500]
        names = [f"more-{number}" for number in range(10)]
        for name in names:
            template(server.call, name)
        eventually(lambda: len(receiver.got) >= 2, "an attempt was made")
        server.kill()
        server.start()
        eventually(lambda: receiver.names()[-1] == "more-9", "the rest is delivered")
        assert list(dict.fromkeys(receiver.names())) == ["one", *names], "in order, none left out"
        assert all(checked(headers, body, secret) for headers, body in receiver.got)
    finally:
        assert server.stop() == 0
    assert secret not in server.log()
