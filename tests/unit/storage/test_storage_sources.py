"""Real sources: S3 as moto speaks it, Git over TLS by its own CGI program, a service account that signs for a token."""

from __future__ import annotations

import base64
import datetime
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from storage_sites import Site, site
from test_storage_fetching import fetch

from nanopod.model.endpoint import StorageSpec
from nanopod.node.storage.errors import StorageFailed

BIG = bytes(range(256)) * (9 << 12)  # 9 MiB
KEYS = {"awsAccessKeyID": "test", "awsSecretAccessKey": "test"}


# --- S3 ---


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket `weights` with models; the address of its service."""
    moto = pytest.importorskip("moto.server", reason="pip install 'moto[s3,server]'")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket="weights")
    for key, data in {"m/big": BIG, "m/d/x": b"x", "m-2/y": b"y", "m/": b"", "odd/a b?c#d": b"odd"}.items():
        client.put_object(Bucket="weights", Key=key, Body=data)
    upload = client.create_multipart_upload(Bucket="weights", Key="parts/two")
    parts = []
    for number, size in ((1, 5 << 20), (2, 100)):
        made = client.upload_part(
            Bucket="weights", Key="parts/two", PartNumber=number, UploadId=upload["UploadId"], Body=BIG[:size]
        )
        parts.append({"ETag": made["ETag"], "PartNumber": number})
    client.complete_multipart_upload(
        Bucket="weights", Key="parts/two", UploadId=upload["UploadId"], MultipartUpload={"Parts": parts}
    )
    yield url
    server.stop()


def test_objects_below_a_prefix(tmp_path: Path, s3: str) -> None:
    options = {"S3_ENDPOINT": s3.partition("://")[2], "S3_USE_HTTPS": "0", "AWS_REGION": "us-east-1"}
    assert fetch(tmp_path, StorageSpec("s3://weights/m", options=options), **KEYS) == {"big": BIG, "d/x": b"x"}
    odd = StorageSpec("s3://weights/odd", options={"AWS_ENDPOINT_URL": s3, "S3_USER_VIRTUAL_BUCKET": "false"})
    assert fetch(tmp_path, odd, **KEYS) == {"a b?c#d": b"odd"}
    # The tag of an object in parts is no MD5 of its content.
    assert fetch(tmp_path, StorageSpec("s3://weights/parts", options=options), **KEYS) == {
        "two": BIG[: 5 << 20] + BIG[:100]
    }
    assert fetch(tmp_path, StorageSpec("s3://weights/m/d", options={**options, "awsAnonymousCredential": "true"})) == {
        "x": b"x"
    }


def test_an_object_goes_on_from_the_last_byte(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanopod.node.storage import buckets
    from nanopod.node.storage.errors import Broken

    read, asked = buckets._S3Body.read, []
    broken = iter((3 << 20, 6 << 20))

    class Count:
        have = 0

    def breaking(body: Any, amount: int = -1) -> bytes:
        data = read(body, amount)
        Count.have += len(data)
        asked.append(len(data))
        if Count.have > Count.limit:
            Count.limit = next(broken, 1 << 60)
            raise Broken("the connection was reset")
        return data

    Count.limit = next(broken)  # type: ignore[attr-defined]
    monkeypatch.setattr(buckets._S3Body, "read", breaking)
    spec = StorageSpec("s3://weights/m/big", options={"AWS_ENDPOINT_URL": s3})
    assert fetch(tmp_path, spec, **KEYS) == {"big": BIG}
    assert sum(asked) < len(BIG) + (3 << 20), "what had arrived was not fetched again"


def test_what_a_bucket_refuses(tmp_path: Path, s3: str) -> None:
    with pytest.raises(StorageFailed, match="does not exist") as caught:
        fetch(tmp_path, StorageSpec("s3://nowhere/m", options={"AWS_ENDPOINT_URL": s3}), **KEYS)
    assert caught.value.user_fault
    with pytest.raises(StorageFailed, match="tries") as away:
        fetch(tmp_path, StorageSpec("s3://weights/m", options={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}), **KEYS)
    assert not away.value.user_fault


# --- Git ---


class _Git(BaseHTTPRequestHandler):
    """Git's own CGI program behind TLS."""

    root = ""
    token = ""

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        if self.token and self.headers.get("Authorization") != self.token:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        parts = urlsplit(self.path)
        env = {
            **os.environ, "GIT_PROJECT_ROOT": self.root, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query, "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "REMOTE_ADDR": "127.0.0.1",
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }  # fmt: skip
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = subprocess.run(["git", "http-backend"], input=body, env=env, stdout=subprocess.PIPE, check=False).stdout
        head, _, data = found.partition(b"\r\n\r\n")
        fields = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _serve


def _certificate(directory: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "cert.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@contextmanager
def repository(root: Path, token: str = "") -> Iterator[tuple[str, Path, Path]]:
    """(host, certificate, working tree) of a repository `team/model.git` behind TLS."""
    bare, work = root / "team/model.git", root / "work"
    quiet = {"env": {**os.environ, "HOME": str(root)}, "check": True, "capture_output": True}
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], **quiet)
    subprocess.run(["git", "clone", "-q", str(bare), str(work)], **quiet)
    handler = type("Handler", (_Git,), {"root": str(root), "token": token})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    certificate = _certificate(root)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}", certificate, work
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def commit(work: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for argv in (
        ["checkout", "-q", "-B", "main"],
        ["add", "-A"],
        [*who, "commit", "-qm", "x"],
        ["push", "-q", "origin", "main"],
    ):
        subprocess.run(["git", *argv], cwd=work, check=True, capture_output=True, env={**os.environ, "HOME": str(work)})


@pytest.mark.skipif(shutil.which("git") is None, reason="apt install git")
def test_a_repository_is_cloned_and_a_new_commit_is_seen(tmp_path: Path) -> None:
    basic = "Basic " + base64.b64encode(b"x-access-token:t0ken").decode()
    (tmp_path / "site").mkdir()
    with repository(tmp_path / "site", token=basic) as (host, certificate, work):
        commit(work, {"config.json": "{}", "d/weights": "1"})
        spec = StorageSpec(f"https://{host}/team/model.git")
        given = {"GIT_SSL_CAINFO": str(certificate), "GIT_TOKEN": "t0ken"}
        assert fetch(tmp_path, spec, **given) == {"config.json": b"{}", "d/weights": b"1"}
        commit(work, {"d/weights": "2"})
        assert fetch(tmp_path, spec, **given)["d/weights"] == b"2"
        with pytest.raises(StorageFailed, match="no branch or tag 'nothing'") as caught:
            fetch(tmp_path, StorageSpec(f"{spec.uri}#nothing"), **given)
        assert caught.value.user_fault
        with pytest.raises(StorageFailed, match="GIT_TOKEN"):
            fetch(tmp_path / "other", spec, GIT_SSL_CAINFO=str(certificate))


# --- a service account ---


def test_a_service_account_signs_for_its_token(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    asked: list[dict[str, str]] = []

    class Tokens(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            head, body, signature = form["assertion"][0].split(".")
            pad = lambda text: base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))  # noqa: E731
            key.public_key().verify(pad(signature), f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
            asked.append(json.loads(pad(body)))
            data = json.dumps({"access_token": "ya29", "expires_in": 3600}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    tokens = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    threading.Thread(target=tokens.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    uri = f"http://127.0.0.1:{tokens.server_address[1]}/token"
    account = {"client_email": "a@example.org", "private_key": pem, "token_uri": uri}
    try:
        with site() as source:
            source.files, source.token = {"b/m/x": b"x", "b/m/y": b"y"}, "Bearer ya29"
            spec = StorageSpec("gs://b/m", options={"STORAGE_EMULATOR_HOST": source.url})
            found = fetch(tmp_path, spec, **{"gcloud-application-credentials.json": json.dumps(account)})
            assert found == {"x": b"x", "y": b"y"} and len(asked) == 1 and asked[0]["iss"] == "a@example.org"
            _bad_accounts(tmp_path, spec, account, source)
    finally:
        tokens.shutdown()
        tokens.server_close()


def _bad_accounts(root: Path, spec: StorageSpec, account: dict[str, str], source: Site) -> None:
    for text in ("no json", "{}", json.dumps({**account, "private_key": "nonsense"})):
        with pytest.raises(StorageFailed, match=r"storage\.secret") as caught:
            fetch(root / "other", spec, **{"gcloud-application-credentials.json": text})
        assert caught.value.user_fault and "nonsense" not in str(caught.value)
