"""The genuine clients of KServe and Triton, each in an environment of its own, against a whole cloud."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench.peers import Unavailable, python_with
from model_stage import onnx_model, sklearn_model
from stage import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
SCRIPTS = Path(__file__).parent / "clients"


@dataclass(frozen=True)
class Cloud:
    """A running cloud that serves `flowers` (scikit-learn) and `sums` (ONNX)."""

    url: str
    key: str

    def api(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)

    def run(self, python: Path, script: str) -> dict[str, Any]:
        """What a client's script printed last."""
        env = {**os.environ, "NP_URL": self.url, "NP_KEY": self.key}
        done = subprocess.run(
            [str(python), str(SCRIPTS / script)], capture_output=True, text=True, timeout=120, env=env
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


def peer(package: str, version: str, extra: str = "") -> Path:
    """An interpreter that has a genuine package; skipped where the registry cannot be reached."""
    try:
        return python_with(f"{package}-{version}", (f"{package}{extra}=={version}",))
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxruntime")
    home = tmp_path_factory.mktemp("models")
    data = tmp_path_factory.mktemp("serving-cloud")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NANOPOD_")}
    argv = [sys.executable, "-m", "nanopod", "up", "--data-dir", str(data), "--port", "0", "--json"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept)
    try:
        assert process.stdout is not None
        facts = next((json.loads(line) for line in process.stdout if line.startswith("{")), {})
        assert facts, "the cloud said nothing"
        threading.Thread(target=process.stdout.read, daemon=True).start()
        made = Cloud(facts["url"], Path(facts["key_file"]).read_text().strip())
        for name, model_id, form, directory in (
            ("iris", "flowers", "sklearn", sklearn_model(home / "iris")),
            ("adder", "sums", "onnx", onnx_model(home / "sums")),
        ):
            model = {
                "model_id": model_id, "engine": "server", "source": str(directory), "format": form, "slots": 2,
                "protocols": ["v1", "v2"],
            }  # fmt: skip
            scale = {"cold_workers": 1, "min_load": 1, "max_workers": 1}
            made.api("POST", "/v1/endpoints", {"name": name, "kind": "model", "model": model, "scale": scale})
        until(lambda: made.api("GET", "/v2/models")["models"] == ["flowers", "sums"], 60.0, "both models")
        yield made
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def test_kserves_client(cloud: Cloud) -> None:
    found = cloud.run(peer("kserve", "0.21.0"), "by_kserve.py")
    assert (found["ready_v1"], found["live"], found["ready"], found["ready_v2"]) == (True, True, True, True)
    assert found["not_ready"] is False
    assert found["v1"] == [1, 0]
    assert found["json"] == found["binary"] == ["7", "flowers", [1, 0]]


def test_tritons_client(cloud: Cloud) -> None:
    found = cloud.run(peer("tritonclient", "2.73.0", "[http]"), "by_triton.py")
    assert (found["live"], found["ready"], found["model_ready"], found["nobody_ready"]) == (True, True, True, False)
    assert found["model"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    for how in ("json None", "json gzip", "binary None", "binary gzip"):
        assert found[how] == ["9", [[3.0], [7.0]]], how
    assert found["by prefix"] == [[3.0], [7.0]]
    assert found["everything"] == [[2.0, 4.0], [6.0, 8.0]]
    assert {name: status for name, (status, _) in found["refused"].items()} == dict.fromkeys(
        ("config", "stats", "index", "shape"), "404"
    )
    assert all(text and "<" not in text for _, text in found["refused"].values()), "readable words, not a page"
    assert (found["unloaded"], found["loaded"]) == (False, True)
