"""Spawned calls on a whole cloud: made, fetched, shared, followed, cancelled, posted, refused."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spawning import OCTETS, Spawning, eventually

from nanopod.client.call import Call
from nanopod.model import calls, codec
from nanopod.server.calls import wire

pytestmark = pytest.mark.integration


def test_values_come_back_whatever_their_size(stage: Spawning) -> None:
    small = stage.app.once.spawn(3)
    large = stage.app.echo.spawn({"tuple": (1, 2), "bytes": b"x" * 3_000_000})
    items = stage.app.count.spawn(300)
    assert small.get(60) == 3
    assert large.get(60) == {"tuple": (1, 2), "bytes": b"x" * 3_000_000}
    assert items.get(60) == list(range(300))
    assert list((stage.cloud.data_dir / "calls").glob("??/*")), "large results are files"
    assert [one.get(60) for one in stage.app.once.spawn_map(range(200))] == list(range(200))


def test_json_is_enough(stage: Spawning) -> None:
    made = stage.post("echo", {"a": [1, None]})
    assert (made["object"], made["status"], made["endpoint"], made["origin"]) == (
        "call",
        "queued",
        "spawned:default",
        "api",
    )
    done = stage.ended(made["id"])
    assert done["status"] == "succeeded"
    assert done["expires_at"] - done["ended_at"] == pytest.approx(86_400, abs=1)
    assert done["worker"].startswith("inst_")
    assert done["run_us"] > 0
    result = stage.cloud.api("GET", f"/v1/calls/{made['id']}/result")
    assert (result["value"], result["items"], result["error"]) == ({"a": [1, None]}, None, None)
    items = stage.post("count", 3)
    assert stage.cloud.api("GET", f"/v1/calls/{items['id']}/result?wait_s=30")["items"] == [0, 1, 2]


def test_a_repeat_makes_no_second_call(stage: Spawning) -> None:
    header = calls.Call(hashlib.sha256(b"a repeat").digest()[:16], "spawned", "once")
    body = wire.prefixed([calls.encode(header, codec.encode((("repeat",), {})))])
    first = json.loads(stage.raw("POST", "/v1/calls", body, Content_Type=OCTETS)[1])
    second = json.loads(stage.raw("POST", "/v1/calls", body, Content_Type=OCTETS)[1])
    assert first["data"][0]["id"] == second["data"][0]["id"] == wire.text_of(header.id)
    wish = json.dumps({"endpoint": "spawned", "function": "once", "args": ["keyed"]}).encode()
    keyed = [
        json.loads(stage.raw("POST", "/v1/calls", wish, Content_Type="application/json", Idempotency_Key="k1")[1])["id"]
        for _ in range(2)
    ]
    assert keyed[0] == keyed[1]
    for call_id in (wire.text_of(header.id), keyed[0]):
        stage.ended(call_id)
    starts = [words[0] for words in stage.marks("once")]
    assert starts.count("repeat") == starts.count("keyed") == 1


def test_what_a_function_raises_is_the_calls_error(stage: Spawning) -> None:
    failed = stage.app.fail.spawn("too blue")
    with pytest.raises(ValueError, match="too blue"):
        failed.get(60)
    shown = stage.call(failed.id)
    assert shown["status"] == "failed"
    assert shown["error"]["type"].endswith("ValueError")
    assert "too blue" in shown["error"]["message"]


def test_a_share_token_shows_one_call(stage: Spawning) -> None:
    mine, other = stage.app.once.spawn("shared"), stage.app.once.spawn("private")
    token = mine.share()
    visitor = Call.from_id(mine.id, token, url=stage.cloud.url)
    assert visitor.get(60) == "shared"
    assert visitor.status()["status"] == "succeeded"
    assert stage.raw("GET", f"/v1/calls/{other.id}", key=token)[0] == 401
    assert stage.raw("GET", "/v1/calls", key=token)[0] == 401
    assert stage.raw("POST", f"/v1/calls/{mine.id}/cancel", b"{}", key=token)[0] == 401
    newer = mine.share()
    assert stage.raw("GET", f"/v1/calls/{mine.id}", key=token)[0] == 401, "a new token replaces the old one"
    assert stage.raw("GET", f"/v1/calls/{mine.id}", Nanopod_Call_Token=newer)[0] == 200


def test_logs_are_followed_while_the_call_runs(stage: Spawning, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = stage.app.gated.spawn(str(gate))
    lines = call.logs(follow=True)
    assert next(lines) == "waiting"
    eventually(lambda: stage.call(call.id)["status"] == "running")
    gate.touch()
    assert list(lines) == ["done"], "the stream ends with the call"
    assert list(call.logs()) == ["waiting", "done"]
    request = urllib.request.Request(
        f"{stage.cloud.url}/v1/calls/{call.id}/logs?follow=true",
        headers={"Authorization": f"Bearer {stage.cloud.key}", "Last-Event-ID": "1"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    assert "waiting" not in text
    assert "id: 2" in text


def test_a_call_is_cancelled_while_it_runs(stage: Spawning, tmp_path: Path) -> None:
    call = stage.app.gated.spawn(str(tmp_path / "never"))
    eventually(lambda: stage.call(call.id)["status"] == "running")
    assert call.cancel()["status"] in ("running", "cancelled")
    assert stage.ended(call.id)["status"] == "cancelled"
    assert call.cancel()["status"] == "cancelled"
    with pytest.raises(Exception, match="cancelled"):
        call.get(10)


def test_calls_are_listed(stage: Spawning) -> None:
    made = [stage.post("once", f"listed {number}") for number in range(3)]
    for one in made:
        stage.ended(one["id"])
    path = "/v1/calls?function=once&status=succeeded&endpoint=spawned"
    first = stage.cloud.api("GET", f"{path}&limit=2")
    assert [row["id"] for row in first["data"]] == [made[2]["id"], made[1]["id"]]
    assert first["has_more"]
    second = stage.cloud.api("GET", f"{path}&limit=1&starting_after={first['cursor']}")
    assert second["data"][0]["id"] == made[0]["id"]
    assert stage.cloud.api("GET", "/v1/calls?endpoint=endp_none")["data"] == []


def test_cost_is_what_the_plan_says(stage: Spawning) -> None:
    path = "/v1/workspaces/default/plan"
    stage.cloud.api("PUT", path, {"plan": "on-demand", "prices": {"per_request": "0.25"}})
    try:
        done = stage.ended(stage.post("echo", 1)["id"])
        assert done["cost"] == "0.250000"
        assert stage.ended(stage.post("fail", "free")["id"])["cost"] == "0.000000"
    finally:
        stage.cloud.api("DELETE", path)


# --- webhooks ---


class Receiver(http.server.BaseHTTPRequestHandler):
    """Refuses the first delivery of each call."""

    got: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        seen = [headers["Nanopod-Event-Id"] for headers, _ in self.got]
        self.got.append((dict(self.headers), body))
        self.send_response(200 if self.headers["Nanopod-Event-Id"] in seen else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    got: list[tuple[dict[str, str], bytes]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Receiver,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_the_signed_result_until_it_takes_it(
    stage: Spawning, receiver: tuple[str, list[tuple[dict[str, str], bytes]]]
) -> None:
    url, got = receiver
    good = stage.app.echo.with_options(webhook=url).spawn([1, 2])
    bad = stage.post("fail", "posted", webhook=url)
    secret = stage.cloud.api("GET", "/v1/calls/webhook_secret")["secret"]
    for call_id in (good.id, bad["id"]):
        told = eventually(
            lambda call_id=call_id: (found := stage.call(call_id)["webhook"])["state"] == "delivered" and found  # type: ignore[misc]
        )
        assert told["attempts"] == 2
    bodies = {}
    for headers, body in got:
        at, _, given = headers["Nanopod-Signature"].partition(",v1=")
        assert hmac.new(secret.encode(), at[2:].encode() + b"." + body, hashlib.sha256).hexdigest() == given
        bodies[headers["Nanopod-Event-Id"]] = json.loads(body)
    assert bodies[good.id]["type"] == "call.succeeded"
    assert bodies[good.id]["data"]["value"] == [1, 2]
    assert bodies[bad["id"]]["type"] == "call.failed"
    assert bodies[bad["id"]]["data"]["error"]["message"].endswith("posted")


# --- refusals ---


def test_refusals_name_the_field_and_the_fix(stage: Spawning) -> None:
    def wish(**more: Any) -> dict[str, Any]:
        return {"endpoint": "spawned", "function": "once", **more}

    for body, status, words in (
        (wish(endpoint="nobody"), 404, "there is no endpoint 'nobody' in this workspace (there are: spawned:default"),
        (wish(function="nothing"), 404, "has no function 'nothing'; it has count, echo"),
        (wish(options={"timeout": -5}), 422, "timeout"),
        (wish(options={"webhook": "ftp://x"}), 422, "begin it with http"),
        (wish(argz=[1]), 422, "did you mean 'args'?"),
    ):
        found, message = stage.refused("POST", "/v1/calls", body)
        assert (found, words in message) == (status, True), message
    assert stage.raw("POST", "/v1/calls", b"\0\0", Content_Type=OCTETS)[0] == 422
    assert stage.refused("GET", "/v1/calls/call_12")[0] == 404
    assert stage.refused("GET", f"/v1/calls/call_{'0' * 32}/result")[0] == 404
    assert stage.refused("GET", "/v1/calls?status=odd")[0] == 422
    waiting = stage.app.gated.spawn("/nowhere/at/all")
    assert stage.raw("GET", f"/v1/calls/{waiting.id}/result?wait_s=0.1")[0] == 202
    assert stage.refused("GET", f"/v1/calls/{waiting.id}/result?wait_s=x")[0] == 422
    waiting.cancel()


def test_a_key_for_other_endpoints_sees_nothing(stage: Spawning) -> None:
    mine = stage.post("once", "mine")
    key = stage.cloud.api("POST", "/v1/keys", {"name": "narrow", "scopes": ["call"], "endpoints": ["another"]})["key"]
    assert stage.refused("POST", "/v1/calls", {"endpoint": "spawned", "function": "once"}, key)[0] == 403
    assert stage.refused("GET", f"/v1/calls/{mine['id']}", key=key)[0] == 404
    assert stage.cloud.api("GET", "/v1/calls", key=key)["data"] == []
    assert stage.refused("GET", "/v1/calls/webhook_secret", key=key)[0] == 403


def test_faults_need_a_cloud_that_was_started_for_them(stage: Spawning) -> None:
    status, message = stage.refused("POST", "/v1/faults", {"kind": "kill"})
    assert (status, "nanopod up --faults" in message) == (403, True)


# --- its end: the last test, because the deployment is gone then ---


def test_schedules_follow_the_deployment(stage: Spawning) -> None:
    spec = stage.cloud.api("GET", "/v1/endpoints/spawned")
    status, message = stage.refused(
        "POST", "/v1/endpoints",
        {"name": "wrong", "bundle": "0" * 64,
         "functions": [{"name": "f", "schedule": {"cron": "0 0 31 2 *"}}]},
    )  # fmt: skip
    assert (status, "never comes" in message) == (422, True), message
    stage.cloud.api("DELETE", f"/v1/endpoints/{spec['id']}")
    eventually(lambda: not stage.cloud.api("GET", "/v1/schedules")["data"], "its schedule goes with it")
