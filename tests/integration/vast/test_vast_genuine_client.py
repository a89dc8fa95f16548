"""The genuine `vastai` client and command line against our server and our worker."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from bench.cloud import free_port

APPS = Path(__file__).parent / "apps"
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def test_its_deployment_file_deploys_and_answers(cloud) -> None:
    found = cloud.answer(APPS / "calls.py")
    assert found["square"] == 25
    assert found["many"] == [x * x for x in range(20)]
    assert found["mirror"] is True
    assert found["point"] == ["Point", 3, 4]
    assert found["count"] == [4, 5]
    assert found["error"] == "hello you"
    assert "hello you" in found["trace"]


def test_its_sessions_stay_on_one_worker_and_end(cloud) -> None:
    found = cloud.answer(APPS / "sessions.py")
    first = found["counts"][0]
    assert found["counts"] == [first, first + 1, first + 2]
    assert (found["open"], found["refused"]) == (True, True)
    assert found["workers"] >= 1


def test_endpoints_and_groups_are_made_by_hand(cloud) -> None:
    found = cloud.answer(APPS / "by_hand.py")
    assert found["group"] == found["found"] == found["id"]
    assert found["scale"] == [2, 3]
    assert (found["status"], found["gone"]) == ("WAITING", True)


def cli(cloud, *words: str) -> str:
    done = subprocess.run(
        [str(cloud.python.parent / "vastai"), *words, "--url", cloud.url, "--api-key", cloud.key],
        capture_output=True, text=True, timeout=60, env=cloud.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_command_line_shows_stops_starts_and_deletes(cloud) -> None:
    number = int(cloud.answer(APPS / "deploy_plain.py")["id"])
    rows = json.loads(cli(cloud, "show", "deployments", "--raw"))
    row = next(row for row in rows if row["id"] == number)
    assert (row["name"], row["tag"], row["image"]) == ("plain", "default", "any")
    assert str(number) in cli(cloud, "show", "deployments", "-q").split()
    assert json.loads(cli(cloud, "show", "deployment", str(number), "--raw"))["endpoint_state"] == "active"
    cli(cloud, "stop", "deployment", str(number))
    assert json.loads(cli(cloud, "show", "deployment", str(number), "--raw"))["endpoint_state"] == "stopped"
    cli(cloud, "start", "deployment", str(number))
    assert json.loads(cli(cloud, "show", "deployment", str(number), "--raw"))["endpoint_state"] == "active"
    assert str(number) in cli(cloud, "show", "deployment-versions", str(number))
    cli(cloud, "delete", "deployment", "--name", "plain")
    assert number not in [row["id"] for row in json.loads(cli(cloud, "show", "deployments", "--raw"))]


def test_its_message_reaches_its_own_client_when_the_class_is_ours(cloud) -> None:
    """A dead end of ours (no such function) is an error in its client, not an endless repetition."""
    number = int(cloud.answer(APPS / "deploy_plain.py")["id"])
    routed = post(cloud, "/route/", {"endpoint": "plain", "cost": 1})
    assert routed["url"].startswith(cloud.url)
    call = {"auth_data": routed, "session_id": None, "payload": {"kwargs": {"x": 1}}}
    status, _ = send(cloud, f"/vast/{number}/remote/nothing", call)
    assert status == 404
    status, body = send(cloud, f"/vast/{number}/remote/where", call)
    assert status == 401, body


def test_its_genuine_worker_serves_under_our_server(cloud, tmp_path: Path) -> None:
    number = int(cloud.answer(APPS / "deploy_plain.py")["id"])
    key = get(cloud, f"/api/v0/deployment/{number}/")["deployment"]["worker_key"]
    port = free_port()
    worker = subprocess.Popen(
        [str(cloud.python), "-m", "vastai.serverless.remote.serve_deployment"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=cloud.environment(
            DEPLOYMENT_ID=str(number), CONTAINER_API_KEY=key, CONTAINER_ID="4711", REPORT_ADDR=cloud.url,
            WORKER_PORT=str(port), WORKER_HTTP_PORT=str(free_port()), PUBLIC_IPADDR="127.0.0.1", MASTER_TOKEN=key,
            USE_SSL="false", IS_DEPLOYMENT="true", VAST_API_URL=cloud.url, **{f"VAST_TCP_PORT_{port}": str(port)},
        ),
    )  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while True:
            workers = post(cloud, "/get_endpoint_workers/", {"id": number})
            if any(row["id"] == 4711 and row["status"] == "idle" for row in workers):
                break
            assert worker.poll() is None, worker.stdout.read() if worker.stdout else ""
            assert time.monotonic() < limit, workers
            time.sleep(0.2)
        pid, who, answer = cloud.answer(APPS / "where.py")["answer"]
        assert (pid, who, answer) == (worker.pid, "4711", 2)
    finally:
        worker.kill()
        worker.wait(10)


@pytest.mark.parametrize("field", ["cost", "endpoint", "url", "request_idx"])
def test_a_changed_ticket_is_refused(cloud, field: str) -> None:
    number = int(cloud.answer(APPS / "deploy_plain.py")["id"])
    routed = post(cloud, "/route/", {"endpoint": "plain", "cost": 5})
    assert "ticket" in routed
    changed = {**routed, field: "other" if isinstance(routed[field], str) else routed[field] + 1}
    status, _ = send(cloud, f"/vast/{number}/remote/where", {"auth_data": changed, "payload": {"kwargs": {"x": 1}}})
    assert status == 401
    tampered = json.loads(json.dumps(routed))
    tampered["ticket"]["fields"][field] = changed[field]
    tampered[field] = changed[field]
    status, _ = send(cloud, f"/vast/{number}/remote/where", {"auth_data": tampered, "payload": {"kwargs": {"x": 1}}})
    assert status == 401


def test_the_key_is_in_no_log(cloud) -> None:
    post(cloud, f"/route/?api_key={cloud.key}", {"endpoint": "plain", "cost": 1})
    for path in (cloud.data / "logs").rglob("*"):
        if path.is_file():
            assert cloud.key not in path.read_text(errors="replace"), path


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/route/", 404),
        ("GET", "/api/v0/deployment/99999/", 404),
        ("POST", "/worker_status/", 401),
        ("POST", "/vast/99999/remote/f", 404),
        ("GET", "/vast/1/code/nonsense", 404),
    ],
)
def test_what_is_not_there_is_said(cloud, method: str, path: str, status: int) -> None:
    found, body = send(cloud, path, {"endpoint": "none such", "auth_data": {}} if method == "POST" else None)
    assert found == status, body


def send(cloud, path: str, body: object = None) -> tuple[int, object]:
    request = urllib.request.Request(
        cloud.url + path,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Authorization": f"Bearer {cloud.key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def get(cloud, path: str):
    status, body = send(cloud, path)
    assert status == 200, body
    return body


def post(cloud, path: str, body: object):
    status, answer = send(cloud, path, body)
    assert status == 200, answer
    return answer
