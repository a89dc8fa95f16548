"""Secrets, volumes, dictionaries and queues on a real cloud, from programs and from workers."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

import nanopod
from nanopod import Conflict, Dict, Invalid, NotFound, Queue, Secret, Volume

pytestmark = pytest.mark.integration
VALUES = (b"hunter2-very-secret", b"along-one-value", b"along-two-value")


def places_of(root: Path, values: tuple[bytes, ...]) -> list[str]:
    """Files below a directory that hold one of some values."""
    found = []
    for path in root.rglob("*"):
        try:
            if path.is_file() and any(value in path.read_bytes() for value in values):
                found.append(str(path))
        except OSError:
            pass  # a file that just went, or a socket
    return found


def test_a_worker_reads_its_secrets_and_no_file_or_log_does(apps: tuple[Any, Any], cloud: Cloud) -> None:
    one, two = apps
    assert one.secrets.remote() == ("terces-yrev-2retnuh", "eulav-eno-gnola", True)
    assert two.secrets.remote() == ("terces-yrev-2retnuh", "eulav-owt-gnola", True)
    with pytest.raises(ValueError, match=r"bad token \*{19}(\n|$)") as failed:
        one.fail.remote()
    assert "hunter2" not in "".join(getattr(failed.value, "__notes__", ()))

    def printed() -> str:
        logs = (cloud.data_dir / "node" / "instances").glob("*/log")
        return "".join(path.read_text(errors="replace") for path in logs)

    cloud.wait_for(lambda: printed().count("in pieces: [secret]!") == 2, what="the workers' output")
    assert printed().count("the token is [secret]") == 2
    assert places_of(cloud.data_dir, VALUES) == []
    assert places_of(cloud.data_dir, (b"HF_TOKEN",)), "names are no secret, and this look finds what is there"
    shown = json.dumps([cloud.api("GET", path) for path in ("/v1/secrets", "/v1/secrets/hf", "/v1/endpoints")])
    assert not any(value.decode() in shown for value in VALUES)


def test_two_workers_share_a_dict_and_a_queue(apps: tuple[Any, Any]) -> None:
    one, two = apps
    shared, jobs = Dict.from_name("shared"), Queue.from_name("jobs")
    shared.clear()

    async def both() -> list[int]:
        running = [asyncio.ensure_future(app.work.remote.aio(key)) for app, key in ((one, "a"), (two, "b"))]
        await jobs.put_many.aio([1, 2])
        return list(await asyncio.gather(*running))

    assert sorted(asyncio.run(both()))[-1] == 2
    assert sorted(value["item"] for value in shared.values()) == [1, 2]
    assert {shared["a"]["by"], shared["b"]["by"]} == {"one", "two"} and len(jobs) == 0


def test_a_worker_that_waits_is_woken(apps: tuple[Any, Any]) -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(apps[0].wait_for_job.remote()))
    thread.start()
    Queue.from_name("jobs").put({"late": True}, partition="late")
    thread.join(30)
    assert got == [{"late": True}]


def test_a_commit_of_one_worker_is_seen_by_another_after_reload(apps: tuple[Any, Any]) -> None:
    one, two = apps
    volume = Volume("models")
    version = one.write.remote("weights", "v1")
    assert two.read.remote("weights", False) is None
    assert two.read.remote("weights") == "v1" and volume.read_file("weights") == b"v1"
    assert two.write.remote("weights", "v2") == version + 1
    assert one.read.remote("weights", False) == "v1" and one.read.remote("weights") == "v2"
    volume.put_file(b"from outside", "deep/file")
    assert one.read.remote("deep/file") == "from outside"


def test_a_worker_that_dies_in_a_commit_leaves_the_old_version(apps: tuple[Any, Any], cloud: Cloud) -> None:
    one, two = apps
    before = one.write.remote("kept", "old")
    with pytest.raises(nanopod.WorkerLost):
        one.die_while_committing.remote()
    volume = cloud.api("GET", "/v1/volumes/models")
    assert volume["version"] == before
    assert two.read.remote("half") is None and two.read.remote("kept", False) == "old"
    assert two.write.remote("after", "after") == before + 1, "the dead writer's lease ends by itself"
    one.app.ensure_ready(wait=True, timeout=60)
    assert one.read.remote("after") == "after", "what replaces it starts with the newest version"


def test_what_is_used_is_not_deleted(apps: tuple[Any, Any]) -> None:
    with pytest.raises(Conflict, match=r"secret 'hf' is used by objects:one, objects:two"):
        Secret.delete("hf")
    with pytest.raises(Conflict, match=r"volume 'models' is mounted by objects:one, objects:two"):
        Volume.delete("models")


def test_a_new_version_of_a_secret_is_an_update_of_the_image(apps: tuple[Any, Any]) -> None:
    app = apps[0].app
    assert app.plan().tier == 0
    Secret.create("hf", {"HF_TOKEN": "hunter2-very-secret"})
    assert app.plan().tier == 0, "the same content is the same version"
    Secret.create("hf", {"HF_TOKEN": "hunter2-very-secret", "MORE": "x"})
    found = app.plan()
    assert found.tier == 3 and "secrets" in "".join(found.reasons)
    Secret.create("hf", {"HF_TOKEN": "hunter2-very-secret"})


def test_a_missing_secret_is_named_before_anything_starts(here: Path, cloud: Cloud) -> None:
    body = {
        "name": "lacks", "kind": "model", "image": {"secrets": [{"name": "nope"}]},
        "model": {"model_id": "lacks", "engine": "reference", "source": "nanopod-tiny"},
    }  # fmt: skip
    with pytest.raises(urllib.error.HTTPError) as refused:
        cloud.api("POST", "/v1/endpoints", body)
    error = json.loads(refused.value.read())["error"]
    assert refused.value.code == 422 and "no secret 'nope'" in error["message"]
    assert error["details"][0]["field"] == "image.secrets[0]"


def test_the_token_of_a_worker_opens_no_more_than_it_should(apps: tuple[Any, Any], cloud: Cloud) -> None:
    specs = [json.loads(path.read_bytes()) for path in (cloud.data_dir / "node/instances").glob("*/spec.json")]
    tokens = [spec["instance"]["join_token"] for spec in specs if spec["instance"]["endpoint_id"]]
    assert cloud.api("GET", "/v1/dicts/shared", key=tokens[0])["name"] == "shared"
    for method, path, body in (
        ("GET", "/v1/secrets", None),
        ("GET", "/v1/keys", None),
        ("PUT", "/v1/secrets/hf", {"values": {"A": "b"}}),
        ("DELETE", "/v1/volumes/models", None),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            cloud.api(method, path, body, key=tokens[0])
        assert refused.value.code == 403
    with pytest.raises(urllib.error.HTTPError) as refused:
        cloud.api("GET", "/v1/dicts/shared", key="x" * 32)
    assert refused.value.code == 401


def test_dicts(here: Path) -> None:
    d = Dict.from_name("plain")
    assert d.get("a") is None and d.get("a", 5) == 5 and "a" not in d and len(d) == 0
    d["a"] = {1, 2}
    d.update({("x", 1): None, 7: b"bytes"}, named=1.5)
    assert d["a"] == {1, 2} and d[("x", 1)] is None and d.get(7) == b"bytes" and d.contains("named")
    assert d.put_if_absent("a", 1) is False and d.put_if_absent("b", 1) is True
    assert dict(d.items()) == {"a": {1, 2}, ("x", 1): None, 7: b"bytes", "named": 1.5, "b": 1}
    assert set(d) == set(d.keys()) and len(list(d.values())) == len(d) == 5
    assert d.pop("b") == 1 and d.pop("b", None) is None
    with pytest.raises(KeyError):
        d.pop("b")
    with pytest.raises(KeyError):
        d["b"]
    del d["a"]
    with pytest.raises(Invalid, match="16 MiB"):
        d["big"] = b"x" * ((16 << 20) + 1)
    d["big"] = b"x" * (15 << 20)
    assert len(d["big"]) == 15 << 20
    assert "plain" in Dict.list() and d.clear() == 4
    Dict.delete("plain")
    assert "plain" not in Dict.list() and d.get("a") is None
    d["again"] = 1
    assert d["again"] == 1
    with pytest.raises(Invalid, match="letters, digits"):
        Dict("no/slash")


def test_dicts_in_an_event_loop_and_of_many_entries(here: Path) -> None:
    async def run() -> None:
        d = Dict.from_name("many")
        await d.update.aio({n: n * n for n in range(1700)})
        assert await d.len.aio() == 1700
        assert {key: value async for key, value in d.items()} == {n: n * n for n in range(1700)}
        assert await asyncio.gather(*(d.get.aio(n) for n in range(50))) == [n * n for n in range(50)]
        won = await asyncio.gather(*(d.put_if_absent.aio("lock", n) for n in range(20)))
        assert won.count(True) == 1
        taken = await asyncio.gather(*(d.pop.aio("lock", None) for _ in range(20)))
        assert [one for one in taken if one is not None] == [won.index(True)]

    asyncio.run(run())


def test_queues(here: Path) -> None:
    q = Queue.from_name("plain")
    with pytest.raises(queue.Empty):
        q.get(timeout=0)
    assert q.get_many(5) == []
    q.put_many([1, {"two"}, (3,)])
    q.put("p", partition="p")
    assert len(q) == 4 and q.len(partition="p") == 1 and q.len(partition="none") == 0
    assert q.get() == 1 and q.get_many(5) == [{"two"}, (3,)] and q.get(partition="p") == "p"
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)
    q.put("x")
    item = q.get(lease=30)
    assert item.value == "x" and item.deliveries == 1 and q.get_many(1) == [] and len(q) == 1
    assert item.nack() and not item.ack()
    again = q.get(timeout=5, lease=0.2)
    assert again.deliveries == 2
    third = q.get(timeout=20, lease=30)
    assert (third.value, third.deliveries) == ("x", 3) and not again.ack() and third.ack() and len(q) == 0
    q.put_many(range(5))
    assert q.clear() == 5
    Queue.delete("plain")
    with pytest.raises(NotFound):
        Queue.delete("plain")


def test_queues_in_an_event_loop(here: Path) -> None:
    async def run() -> None:
        q = Queue.from_name("loop")
        with pytest.raises(nanopod.BlockingCallInLoop, match="aio"):
            q.get(timeout=1)
        waiting = asyncio.ensure_future(q.get.aio())
        lost = asyncio.ensure_future(q.get.aio())
        await asyncio.sleep(0.2)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        assert not waiting.done()
        getters = [asyncio.ensure_future(q.get.aio(timeout=30)) for _ in range(20)]
        await q.put_many.aio(range(21))
        assert sorted(await asyncio.gather(waiting, *getters)) == list(range(21)), "who gave up got nothing"

    asyncio.run(run())


def test_volumes_from_outside(here: Path, tmp_path: Path) -> None:
    v = Volume.create("outside", size_gb=0.05)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(os.urandom(40 << 20))
    (tmp_path / "run").write_text("#!/bin/sh")
    (tmp_path / "run").chmod(0o755)
    seen: list[tuple[int, int]] = []
    assert v.put_directory(tmp_path, "all", progress=lambda done, total: seen.append((done, total))) == 1
    assert seen[-1][0] == seen[-1][1] == (40 << 20) + 9
    assert [str(one) if isinstance(one, str) else one.path for one in v.listdir("all")] == ["all/run", "deep/"]
    assert [one.path for one in v.listdir(recursive=True) if not isinstance(one, str)] == ["all/deep/a", "all/run"]
    v.get_file("all/deep/a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "deep" / "a").read_bytes()
    v.get_file("all/run", tmp_path)
    with pytest.raises(Invalid, match=r"above its limit of 0.05 GB"):
        v.put_file(os.urandom(11 << 20), "too-much")
    assert v.put_file(b"x", "small") == 2 and v.read_file("small") == b"x"
    with pytest.raises(Invalid, match="recursive=True"):
        v.remove("all")
    assert v.remove("all", recursive=True) == 3 and len(v.listdir()) == 1
    for wrong in ("nothing", "sm"):
        with pytest.raises(NotFound):
            v.read_file(wrong)
    with pytest.raises(Invalid, match="out of the volume"):
        v.put_file(b"", "../x")
    with pytest.raises(Invalid, match="not mounted here"):
        v.commit()
    Volume.delete("outside")


def test_the_command_line(cloud: Cloud, tmp_path: Path) -> None:
    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nanopod", *words], env={**cloud.client_env(), **env}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip

    (tmp_path / ".env").write_text("# comment\nexport A='one two'\nB=2\n")
    made = run("secrets", "create", "cli", "C=3", "--from-file", str(tmp_path / ".env"), "--from-env", "D", D="four")
    assert (made.returncode, made.stdout) == (0, "secret cli is at version 1 (A, B, C, D)\n"), made.stderr
    assert "version 1" in run("secrets", "create", "cli", "A=one two", "B=2", "C=3", "D=four").stdout
    shown = run("secrets", "get", "cli", "--json")
    assert json.loads(shown.stdout)["keys"] == ["A", "B", "C", "D"] and "four" not in shown.stdout
    assert run("secrets", "create", "cli", "--from-env", "NOT_SET").returncode == 2
    assert run("volumes", "create", "cli").returncode == 0
    assert run("volumes", "put", "cli", str(tmp_path), "files").returncode == 0
    assert "files/.env" in run("volumes", "ls", "cli", "-r").stdout
    assert run("volumes", "get-file", "cli", "files/.env", "-").stdout == (tmp_path / ".env").read_text()
    assert run("volumes", "rm", "cli", "files", "-r").returncode == 0
    for noun in ("volumes", "secrets"):
        assert "is deleted" in run(noun, "delete", "cli").stdout


def test_leases_end_while_somebody_waits(here: Path) -> None:
    q = Queue.from_name("leases")
    q.put("x")
    first = q.get(lease=0.3)
    began = time.monotonic()
    assert q.get(timeout=60) == "x" and not first.ack()
    assert time.monotonic() - began < 50, "whoever waits is woken by the end of the lease, not by his own"
