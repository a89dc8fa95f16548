"""Commands inside instances over the API."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers import Answer
from things_stage import Cloud, eventually

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("execs") / "data").running() as running:
        yield running


@pytest.fixture(scope="module")
def up(cloud: Cloud) -> Answer:
    return cloud.runs()


def start(cloud: Cloud, up: Answer, *command: str, **more: Any) -> str:
    made = cloud.make(f"/v1/instances/{up['id']}/exec", {"command": list(command), **more})
    assert (made.status, made["object"], made["instance_id"]) == (201, "exec", up["id"])
    assert made["id"].startswith("exec_")
    return str(made["id"])


def drain(cloud: Cloud, exec_id: str, offset: int = 0) -> tuple[bytes, Answer]:
    """Everything from `offset` to the end, and the last answer."""
    data = b""
    for _ in range(1000):
        page = cloud.call("GET", f"/v1/execs/{exec_id}/output?offset={offset}&wait_s=10")
        assert page.status == 200, page.body
        data += b"".join(base64.b64decode(chunk["data"]) for chunk in page["chunks"])
        offset = page["next_offset"]
        if page["status"] != "running":
            return data, page
    raise AssertionError("it never ends")


def test_output_and_exit_code(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "echo", "hello", env={"A": "1"})
    data, last = drain(cloud, exec_id)
    assert (data, last["status"], last["exit_code"], last["truncated"]) == (b"hello A=1\n", "exited", 0, False)
    assert drain(cloud, exec_id, 6)[0] == b"A=1\n", "an answer that was lost is asked for again"
    shown = cloud.call("GET", f"/v1/execs/{exec_id}")
    assert (shown["status"], shown["exit_code"]) == ("exited", 0)
    assert exec_id in [row["id"] for row in cloud.call("GET", f"/v1/instances/{up['id']}/exec")["data"]]
    beyond = cloud.call("GET", f"/v1/execs/{exec_id}/output?offset=99")
    assert beyond.status == 422


def test_what_is_started_reaches_the_agent(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "wait", tty=True, rows=50, cols=132, cwd="/tmp", timeout_s=60)
    sent = eventually(lambda: cloud.agent.commands.get(exec_id), "the agent hears of it")
    assert (sent.tty, sent.rows, sent.cols, sent.cwd, sent.timeout_s) == (True, 50, 132, "/tmp", 60)
    cloud.call("POST", f"/v1/execs/{exec_id}/input", {"rows": 40, "cols": 100})
    cloud.call("POST", f"/v1/execs/{exec_id}/input", {"signal": "TERM"})
    assert drain(cloud, exec_id)[1]["exit_code"] == 143
    assert (40, 100) in cloud.agent.sizes


def test_input_wakes_who_waits(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "cat")
    began = time.monotonic()
    pages: list[Answer] = []
    waiting = threading.Thread(
        target=lambda: pages.append(cloud.call("GET", f"/v1/execs/{exec_id}/output?wait_s=20")), daemon=True
    )
    waiting.start()
    time.sleep(0.2)
    sent = cloud.call("POST", f"/v1/execs/{exec_id}/input", {"data": base64.b64encode(b"hi\x00").decode()})
    assert (sent.status, sent["status"]) == (200, "running")
    waiting.join(10)
    assert time.monotonic() - began < 10
    assert base64.b64decode(pages[0]["chunks"][0]["data"]) == b"hi\x00"
    assert (pages[0]["status"], pages[0]["next_offset"]) == ("running", 3)
    cloud.call("POST", f"/v1/execs/{exec_id}/input", {"eof": True})
    assert drain(cloud, exec_id)[1]["exit_code"] == 0
    over = cloud.call("POST", f"/v1/execs/{exec_id}/input", {"eof": True})
    assert (over.status, over.error["type"]) == (409, "conflict")


def test_a_wait_ends_by_itself(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "wait")
    began = time.monotonic()
    page = cloud.call("GET", f"/v1/execs/{exec_id}/output?wait_s=0.3")
    assert 0.25 < time.monotonic() - began < 5
    assert (page["chunks"], page["status"], page["next_offset"]) == ([], "running", 0)
    killed = cloud.call("DELETE", f"/v1/execs/{exec_id}")
    assert killed.status == 200
    assert drain(cloud, exec_id)[1]["exit_code"] == 137
    assert cloud.call("DELETE", f"/v1/execs/{exec_id}").status == 409


def test_more_output_than_is_kept_is_marked(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "flood", "200")
    deadline = time.monotonic() + 10
    while cloud.call("GET", f"/v1/execs/{exec_id}")["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first = cloud.call("GET", f"/v1/execs/{exec_id}/output?offset=0")
    assert first["truncated"] is True
    assert first["chunks"][0]["offset"] == 200 * (32 << 10) - (4 << 20)
    data, last = drain(cloud, exec_id)
    assert len(data) == 4 << 20
    assert (last["exit_code"], last["next_offset"]) == (3, 200 * (32 << 10))


def test_what_cannot_be_started_says_so(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "nothing")
    last = drain(cloud, exec_id)[1]
    assert (last["status"], last["error"]) == ("failed", "nothing: no such command")


@pytest.mark.parametrize(
    ("body", "status"),
    [({"command": []}, 422), ({"command": "ls"}, 422), ({"command": ["a\0"]}, 422), ({"command": ["a"], "rows": 0}, 422),
     ({"command": ["a"], "timeout_s": 0}, 422), ({"command": ["a"], "env": {"A=": ""}}, 422), ({}, 422)],
)  # fmt: skip
def test_wrong_commands_are_refused(cloud: Cloud, up: Answer, body: dict[str, Any], status: int) -> None:
    assert cloud.call("POST", f"/v1/instances/{up['id']}/exec", body).status == status


def test_wrong_input_is_refused(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "cat")
    for body, field in (({"data": "%"}, "data"), ({"rows": 3}, "cols"), ({"signal": "NOPE"}, "signal")):
        refused = cloud.call("POST", f"/v1/execs/{exec_id}/input", body)
        assert (refused.status, refused.error["details"][0]["field"]) == (422, field)
    assert cloud.call("GET", f"/v1/execs/{exec_id}/output?wait_s=31").status == 422
    cloud.call("DELETE", f"/v1/execs/{exec_id}")


def test_sessions_belong_to_their_workspace(cloud: Cloud, up: Answer) -> None:
    exec_id = start(cloud, up, "echo", "secret")
    _, key = cloud.workspace()
    for method, path in (("GET", f"/v1/execs/{exec_id}"), ("GET", f"/v1/execs/{exec_id}/output"),
                         ("DELETE", f"/v1/execs/{exec_id}")):  # fmt: skip
        assert cloud.call(method, path, key=key).status == 404
    assert cloud.call("POST", f"/v1/instances/{up['id']}/exec", {"command": ["ls"]}, key=key).status == 404
    reader = cloud.make("/v1/keys", {"name": "reader", "scopes": ["read"]})["key"]
    assert cloud.call("GET", f"/v1/execs/{exec_id}/output", key=reader).status == 403
    assert cloud.call("GET", "/v1/execs/exec_none").status == 404


def test_a_waiting_instance_runs_no_command(cloud: Cloud) -> None:
    name = cloud.name("place")
    cloud.make("/v1/capacities", {"name": name})
    cloud.make("/v1/instances", {"name": name, "capacity": name})
    refused = cloud.call("POST", f"/v1/instances/{name}/exec", {"command": ["ls"]})
    assert (refused.status, refused.error["type"]) == (409, "conflict")
