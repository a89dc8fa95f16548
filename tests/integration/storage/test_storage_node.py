"""A real agent that fetches files before a worker starts: what is told meanwhile, a kill, what the worker finds."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "node"), str(Path(__file__).parents[2] / "unit/storage")]
from node_instances import INSTANCE, eventually, inst, instance_spec, model_app  # noqa: E402
from node_stage import Node, on_a_node  # noqa: E402
from storage_sites import Site, site  # noqa: E402

from nanopod.model.endpoint import ImageSpec, InstanceSpec, ModelSpec, StorageSpec  # noqa: E402
from nanopod.model.layout import Layout  # noqa: E402
from nanopod.node import files  # noqa: E402
from nanopod.node.storage import furnishing  # noqa: E402

pytestmark = pytest.mark.integration
BIG = bytes(range(256)) * (16 << 10)  # 4 MiB
LOOK = """
import http.server, json, os, sys
with open("found.json", "w") as out:
    json.dump({"argv": sys.argv[2:], "env": dict(os.environ)}, out)
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        data = json.dumps({"data": [{"id": "m"}], "choices": [{"text": "x", "message": {"content": "x"}}]}).encode()
        self.send_response(200); self.send_header("content-length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nps-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def source() -> Iterator[Site]:
    with site() as made:
        yield made


def server(source: Site, path: str, *uris: str, instance_id: str = INSTANCE, **image: Any) -> InstanceSpec:
    """An instance whose command writes down what it was given."""
    options = {"STORAGE_EMULATOR_HOST": source.url}
    storage = tuple(StorageSpec(uri, path, options=options) for uri in uris)
    argv = (sys.executable, "-c", LOOK, "{port}", f"{path}/big", f"--model={path}", "/elsewhere")
    app = model_app(ModelSpec("m", "command", argv=argv, storage=storage))
    return instance_spec(replace(app, image=ImageSpec(**image)), instance_id)


def found(node: Node, instance_id: str = INSTANCE) -> Any:
    """What the command wrote down; None before."""
    path = node.layout.instances / instance_id / files.APP / "found.json"
    return json.loads(path.read_bytes()) if path.exists() and path.stat().st_size else None


def test_files_are_there_before_the_worker_and_progress_is_told(root: Path, source: Site) -> None:
    source.files, source.gate = {"b/m/big": BIG, "b/m/d/small": b"s"}, threading.Event()
    path = str(root / "mnt" / "models")

    async def story(node: Node) -> None:
        node.server.want(server(source, path, "gs://b/m", env={"WHERE": f"{path}/d"}))

        def told() -> str:
            seen = node.server.observed.get(INSTANCE)
            return seen.reason if seen is not None and seen.phase == "preparing" else ""

        await eventually(lambda: "fetching gs://b/m: " in told() and " of 4.2 MB" in told(), 60, "progress")
        source.gate.set()
        await eventually(lambda: found(node), 60, "the command")
        given = found(node)
        there = given["env"]["NANOPOD_MODEL_DIR"]
        assert Path(there).is_relative_to(node.layout.instances / INSTANCE)
        assert given["argv"] == [f"{there}/big", f"--model={there}", "/elsewhere"]
        assert given["env"]["WHERE"] == f"{there}/d" and Path(path, "d/small").read_bytes() == b"s"
        assert Path(there, "big").read_bytes() == BIG and Path(path).resolve() == Path(there).resolve()
        # A second worker copies nothing; the path is taken, and it is told where its files are.
        before, other = source.sent, inst("second")
        node.server.want(server(source, path, "gs://b/m"), server(source, path, "gs://b/m", instance_id=other))
        await eventually(lambda: found(node, other), 60, "the second command")
        assert source.sent == before
        again = found(node, other)["env"]["NANOPOD_MODEL_DIR"]
        assert again != there and Path(again, "big").stat().st_ino == Path(there, "big").stat().st_ino
        assert "cannot be made on this node" in (node.layout.instances / other / files.LOG).read_text()
        node.server.want()
        await eventually(lambda: not Path(path).is_symlink(), 60, "the end of the link")

    on_a_node(root, story)


def test_an_agent_that_is_killed_goes_on_from_the_last_byte(root: Path, source: Site) -> None:
    source.files, source.gate = {"b/m/big": BIG}, threading.Event()
    path = str(root / "mnt" / "models")

    async def story(node: Node) -> None:
        spec = server(source, path, "gs://b/m")
        node.server.want(spec)
        parts = node.layout.data / "cache/storage/parts"
        await eventually(lambda: any(p.stat().st_size >= 1 << 20 for p in parts.glob("*") if p.is_file()), 60, "bytes")
        await node.restart_agent()
        assert source.gate is not None
        source.gate.set()
        node.server.want(spec)
        await eventually(lambda: found(node), 60, "the command")
        ranges = [asked for path, asked in source.asked if path.endswith("/big")]
        assert ranges[0] == "" and ranges[-1].startswith("bytes=")
        assert Path(found(node)["env"]["NANOPOD_MODEL_DIR"], "big").read_bytes() == BIG

    on_a_node(root, story)


def test_no_links_are_made_in_the_system_nor_where_the_operator_wants_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, here, there = Layout(root / "data"), root / "data/node/instances/i", root / "data/x"
    there.mkdir(parents=True)
    here.mkdir(parents=True)
    for path in (Path("/etc/nanopod-test"), Path("/root/nanopod-test")):
        assert "cannot be made" in furnishing.reach(layout, here, path, there)[0] and not path.is_symlink()
    assert furnishing.reach(layout, here, tmp_path / "models", there) == [] and (tmp_path / "models").is_symlink()
    monkeypatch.setenv(furnishing.LINKED, "0")
    assert furnishing.reach(layout, here, tmp_path / "other", there) and not (tmp_path / "other").is_symlink()


def test_what_fails_is_said_and_whose_fault_it_is(root: Path, source: Site) -> None:
    source.files = {"b/m/big": BIG}
    path = str(root / "mnt" / "models")

    async def story(node: Node) -> None:
        cases = {
            "gone": ("gs://b/nothing", True, "holds no files"),
            "oci": ("oci://registry/model", True, "scheme not available here"),
            "file": ("file:///etc", True, "does not allow it"),
            "away": ("s3://b/m", False, "tries"),
        }
        specs = [server(source, path, uri, instance_id=inst(name)) for name, (uri, _, _) in cases.items()]
        away = specs[-1]
        assert away.app.model is not None
        nowhere = replace(away.app.model.storage[0], options={"S3_ENDPOINT": "http://127.0.0.1:9"})
        model = replace(away.app.model, storage=(nowhere,))
        specs[-1] = replace(away, app=replace(away.app, model=model))
        node.server.want(*specs)
        for name, (_, fault, words) in cases.items():
            failed = await node.server.phase("failed", inst(name))
            assert failed.failure is not None and failed.failure.stage == "storage"
            assert words in failed.failure.message and failed.failure.user_fault is fault, failed.failure

    on_a_node(root, story)
