"""Deployments in user files, run as programs against a fake server: what travels, what is printed, what is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from stand_in_gateway import KEY, FakeGateway

pytestmark = pytest.mark.integration

HEAD = """
import asyncio, os
from nanopod import Deployment
app = Deployment(name="app"{options})
app.image("python").pip_install("left").env(MODE="x").copy("data.txt", "/data/in.txt")
app.configure_autoscaling(cold_workers=1, max_workers=2)
"""
SQUARE = """
@app.remote(workload_calculator=lambda x, y: x * 10)
async def square(x: int, y: int = 3) -> int:
    return x * x
"""
MAIN = """
async def main():
    await app.async_ensure_ready()
    print(await square(5), await square(x=6))
if __name__ == "__main__":
    asyncio.run(main())
    print(square.remote(7))
"""


def write(directory: Path, *parts: str, name: str = "prog.py", options: str = "") -> Path:
    (directory / "data.txt").write_text("hello")
    path = directory / name
    path.write_text("".join(textwrap.dedent(part) for part in parts).replace("{options}", options))
    return path


def run(gateway: FakeGateway, path: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    place = {"NANOPOD_URL": gateway.url, "NANOPOD_API_KEY": KEY, "HOME": str(path.parent), "PATH": os.environ["PATH"]}
    command = [sys.executable, str(path)] if not words else [sys.executable, "-m", "nanopod", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**place, **env}, cwd=path.parent)


@pytest.fixture
def two(gateway: FakeGateway) -> FakeGateway:
    gateway.functions["square"] = lambda x, y: x * x + y
    return gateway


def test_a_file_deploys_calls_and_says_nothing_else(two: FakeGateway, tmp_path: Path) -> None:
    done = run(two, write(tmp_path, HEAD, SQUARE, MAIN))
    assert (done.returncode, done.stdout, done.stderr) == (0, "28 39\n52\n", "")
    calls = sorted(header.workload for header in two.headers.values())
    assert calls == [50.0, 60.0, 70.0]
    assert {header.endpoint for header in two.headers.values()} == {"endp_app:default"}
    spec = two.specs["app:default"]
    assert spec["module"] == "prog" and spec["scale"]["max_workers"] == 2 and spec["bundle"] in two.blobs
    assert spec["functions"][0] | {"name": "square", "kind": "async"} == spec["functions"][0]
    with tarfile.open(fileobj=io.BytesIO(two.blobs[spec["bundle"]])) as bundle:
        assert sorted(bundle.getnames()) == ["./config.json", "./data/in.txt", "./prog.py"]
        assert {(m.mtime, m.uid, m.gid) for m in bundle.getmembers()} == {(0, 0, 0)}
        config = json.loads(bundle.extractfile("./config.json").read())  # type: ignore[union-attr]
    assert config["module"] == "prog" and config["entry"] == "prog.py" and config["pip_installs"] == ["left"]


def test_an_edit_has_the_tier_it_deserves_and_uploads_only_news(two: FakeGateway, tmp_path: Path) -> None:
    def plan(*parts: str, head: str = HEAD) -> tuple[int, dict[str, Any]]:
        done = run(two, write(tmp_path, head, *parts), "plan", "--json", "prog.py")
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    assert plan(SQUARE)[1]["tier"] == 4
    assert not two.specs
    assert run(two, write(tmp_path, HEAD, SQUARE, MAIN)).returncode == 0
    for parts, head, tier in [
        ((SQUARE, MAIN), HEAD, 0),
        (("# a comment\n", SQUARE, MAIN), HEAD, 0),
        ((SQUARE, MAIN), HEAD.replace("max_workers=2", "max_workers=9"), 1),
        ((SQUARE, MAIN), HEAD.replace("{options}", ", ttl=99"), 1),
        ((SQUARE, MAIN, "VERSION = 2  # nanopod: ignore-change\n"), HEAD, 0),
        ((SQUARE.replace("x * x", "x * x * x"), MAIN), HEAD, 2),
        ((SQUARE, MAIN), HEAD.replace('"left"', '"right"'), 2),
        ((SQUARE, MAIN), HEAD.replace('MODE="x"', 'MODE="y"'), 3),
        ((SQUARE, MAIN), HEAD.replace('"python"', '"other"'), 3),
        ((SQUARE, MAIN), HEAD.replace('name="app"', 'name="app2"'), 4),
    ]:
        status, found = plan(*parts, head=head)
        assert found["tier"] == tier, (head, found)
        assert status == (2 if tier else 0)
    before = len([1 for method, path, _ in two.requests if method == "PUT"])
    assert run(two, write(tmp_path, HEAD, SQUARE, MAIN)).returncode == 0
    assert len([1 for method, path, _ in two.requests if method == "PUT"]) == before == 1


def test_a_second_deploy_is_asked_again_when_the_blob_vanished(two: FakeGateway, tmp_path: Path) -> None:
    error = {
        "type": "conflict",
        "message": "gone",
        "details": [{"field": "bundle", "code": "blob_missing", "message": "gone"}],
    }
    two.failures = [(409, {"error": error})]
    assert run(two, write(tmp_path, HEAD, SQUARE, MAIN)).returncode == 0
    assert two.specs["app:default"]["bundle"] in two.blobs


def test_a_busy_server_is_asked_again_and_a_refusal_is_shown(two: FakeGateway, tmp_path: Path) -> None:
    two.failures = [(503, {"error": {"message": "busy"}}), (502, None)]
    assert run(two, write(tmp_path, HEAD, SQUARE, MAIN)).returncode == 0
    details = [{"field": "scale.max_worker", "code": "unknown", "message": "unknown field"}]
    two.failures = [
        (422, {"error": {"type": "unprocessable_entity", "message": "bad", "details": details}}),
    ]
    done = run(two, write(tmp_path, HEAD, SQUARE, MAIN))
    assert done.returncode == 1 and "Invalid: bad (scale.max_worker: unknown field)" in done.stderr
    two.failures = [(401, {"error": {"type": "authentication_error", "message": "wrong key"}})] * 2
    done = run(two, write(tmp_path, HEAD, SQUARE, MAIN))
    assert "Unauthenticated" in done.stderr and "NANOPOD_API_KEY" in done.stderr and KEY not in done.stderr


def test_calls_before_ready_wrong_arguments_and_values_that_cannot_travel(two: FakeGateway, tmp_path: Path) -> None:
    text = """
    import threading
    def said(make):
        try:
            asyncio.run(make())
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
    async def early(): await square(1)
    said(early)
    app.ensure_ready()
    async def missing(): await square()
    async def locked(): await square({"a": [0, threading.Lock()]})
    async def blocking(): square.remote(1)
    for case in (missing, locked, blocking): said(case)
    """
    done = run(two, write(tmp_path, HEAD, SQUARE.replace("lambda x, y: x * 10", "None"), text))
    lines = done.stdout.splitlines()
    assert lines[0] == "NotReady: Deployment is not ready. Call .ensure_ready() first!"
    assert lines[1] == "TypeError: square(): missing a required argument: 'x'"
    assert lines[2].startswith("SerializationError: args.x.a[1]: ")
    assert lines[3].startswith("BlockingCallInLoop: ") and "await square(...)" in lines[3]


def test_client_mode_connects_without_deploying(two: FakeGateway, tmp_path: Path) -> None:
    path = write(tmp_path, HEAD, SQUARE, MAIN)
    refused = run(two, path, NANOPOD_MODE="client")
    assert "NotFound" in refused.stderr and "nanopod deploy" in refused.stderr
    assert run(two, path).returncode == 0
    posts = [path for method, path, _ in two.requests if method == "POST"]
    assert run(two, path, NANOPOD_MODE="client").stdout == "28 39\n52\n"
    other = write(tmp_path, HEAD, SQUARE.replace("x * x", "x + x"), MAIN)
    assert "differs from what is deployed" in run(two, other, NANOPOD_MODE="client").stderr
    assert [path for method, path, _ in two.requests if method == "POST"] == posts
    text = """
    import asyncio
    from nanopod import Deployment
    print(asyncio.run(Deployment.from_name("app").function("square")(2, 5)))
    """
    assert run(two, write(tmp_path, text, name="caller.py")).stdout == "9\n"


def test_waiting_shows_the_workers_own_error(two: FakeGateway, tmp_path: Path) -> None:
    path = write(tmp_path, HEAD, SQUARE)
    two.ready_after = 4
    done = run(two, path, "deploy", "--wait", "prog.py")
    assert done.returncode == 0 and "app:default: created" in done.stdout and "is ready" in done.stdout
    two.looks, two.failure = 0, {
        "stage": "context", "type_name": "ValueError", "message": "weights are gone", "traceback": "in __aenter__",
        "log_tail": "loading",
    }  # fmt: skip
    done = run(two, path, "deploy", "--wait", "prog.py")
    assert done.returncode == 3
    for word in ("DeploymentFailed", "stage context", "weights are gone", "in __aenter__", "loading"):
        assert word in done.stderr


def test_run_calls_once_with_typed_arguments(two: FakeGateway, tmp_path: Path) -> None:
    path = write(tmp_path, HEAD, SQUARE)
    assert run(two, path, "run", "prog.py::square", "--x", "5").stdout == "28\n"
    assert run(two, path, "run", "--json", "prog.py", "5", "--y=1").stdout == "26\n"
    wrong = run(two, path, "run", "prog.py::square", "--z", "5")
    assert wrong.returncode == 2 and "there are x, y" in wrong.stderr
    assert run(two, path, "run", "prog.py::cube").returncode == 2

    def fails(x: int, y: int) -> None:
        raise KeyError("remote")

    two.functions["square"] = fails
    done = run(two, path, "run", "prog.py::square", "1")
    assert done.returncode == 1 and "KeyError" in done.stderr and "Remote traceback" in done.stderr


def test_a_file_that_does_not_import_shows_its_own_traceback(two: FakeGateway, tmp_path: Path) -> None:
    done = run(two, write(tmp_path, "import nowhere_at_all\n"), "deploy", "prog.py")
    assert done.returncode == 3 and "nowhere_at_all" in done.stderr and "nanopod/client" not in done.stderr


def test_a_package_is_bundled_whole_and_imported_by_its_name(two: FakeGateway, tmp_path: Path) -> None:
    package = tmp_path / "shop"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "prices.py").write_text("TAX = 2\n")
    (package / "__pycache__" / "x.pyc").write_bytes(b"")
    write(package, HEAD, "from shop.prices import TAX\n", SQUARE, MAIN)
    done = run(two, package / "prog.py", "deploy", "--json", "prog.py")
    assert done.returncode == 0, done.stderr
    spec = two.specs["app:default"]
    with tarfile.open(fileobj=io.BytesIO(two.blobs[spec["bundle"]])) as bundle:
        names = set(bundle.getnames())
    assert spec["module"] == "shop.prog" and {"./shop/__init__.py", "./shop/prices.py", "./shop/prog.py"} < names
    assert not [name for name in names if "pycache" in name]


def test_heartbeats_are_sent_for_a_ttl(two: FakeGateway, tmp_path: Path) -> None:
    text = "import time\napp.ensure_ready()\ntime.sleep(1.0)\n"
    assert run(two, write(tmp_path, HEAD, SQUARE, text, options=", ttl=0.5")).returncode == 0
    beats = [path for method, path, _ in two.requests if path.endswith("/heartbeat")]
    assert 2 <= len(beats) <= 6 and beats[0] == "/v1/endpoints/endp_app:default/heartbeat"


def test_in_a_worker_functions_are_themselves(tmp_path: Path) -> None:
    text = """
    from nanopod.model import registry
    print(asyncio.run(square(4)), list(registry.apps), registry.apps["app"].functions["square"].spec.kind)
    app.ensure_ready()
    print(type(square).__name__)
    """
    path = write(tmp_path, HEAD, SQUARE, text)
    for env in ({"NANOPOD_MODE": "serve"}, {"IS_DEPLOYMENT": "1"}):
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, timeout=30, env={**os.environ, **env}
        )
        assert done.stdout == "16 ['app'] async\nfunction\n", done.stderr


def test_lists_are_tables_for_people_and_json_for_programs(two: FakeGateway, tmp_path: Path) -> None:
    two.lists = {
        "/v1/keys": [
            {"id": f"k{n}", "name": f"name-{n}", "scopes": ["call"], "endpoints": None, "created_at": 1.7e9}
            for n in range(5)
        ],
        "/v1/nodes": [],
        "/v1/instances": [
            {"id": "inst_1", "endpoint": "app:default", "phase": "ready", "in_flight": 0, "reason": None}
        ],
    }
    done = run(two, tmp_path / "x", "keys", "list")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["ID", "NAME", "SCOPES", "ENDPOINTS"] and len(lines) == 6, done.stderr
    assert lines[5].split()[:4] == ["k4", "name-4", "call", "all"] and "Nov 14 2023" in lines[5]
    page = json.loads(run(two, tmp_path / "x", "keys", "list", "--json").stdout)
    assert page["has_more"] and [row["id"] for row in page["data"]] == ["k0", "k1"], "exactly what the server answers"
    assert "nanopod up" in run(two, tmp_path / "x", "nodes", "list").stdout
    assert "app:default" in run(two, tmp_path / "x", "instances", "list").stdout
    assert [path for _, path, _ in two.requests][-1] == "/v1/instances?limit=200&live=1"
    missing = run(two, tmp_path / "x", "endpoints", "get", "nothing")
    assert missing.returncode == 3 and missing.stderr == "nanopod endpoints get: no such endpoint\n"
    assert run(two, tmp_path / "x", "keys").returncode == 2
    nowhere = run(two, tmp_path / "x", "keys", "list", NANOPOD_URL="")
    assert nowhere.returncode == 2 and "nanopod up" in nowhere.stderr
