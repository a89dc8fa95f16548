"""Buckets: directories, files of a web server, and S3 are copied once and brought up to date."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanopod.node import buckets
from nanopod.node.buckets import BucketFailed


def content(there: Path) -> dict[str, str]:
    return {str(path.relative_to(there)): path.read_text() for path in there.rglob("*") if path.is_file()}


def test_a_directory_is_followed(tmp_path: Path) -> None:
    source = tmp_path / "source dir"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a").write_text("a")
    (source / "b").write_text("b")
    url = source.as_uri()
    there = buckets.sync(tmp_path / "cache", url, {})
    assert content(there) == {"deep/a": "a", "b": "b"}
    inode = (there / "b").stat().st_ino
    (source / "deep" / "a").write_text("changed")
    (source / "c").write_text("c")
    assert buckets.sync(tmp_path / "cache", url, {}) == there
    assert content(there) == {"deep/a": "changed", "b": "b", "c": "c"} and (there / "b").stat().st_ino == inode
    (source / "b").unlink()
    buckets.sync(tmp_path / "cache", url, {})
    assert content(there) == {"deep/a": "changed", "c": "c"}
    assert content(buckets.sync(tmp_path / "cache", f"{url}/c", {})) == {"c": "c"}
    with pytest.raises(BucketFailed, match="there is no"):
        buckets.sync(tmp_path / "cache", f"{url}/nothing", {})


class Web(http.server.BaseHTTPRequestHandler):
    """One file behind a key."""

    body = b"one"
    seen: list[str] = []

    def do_GET(self) -> None:
        tag = f'"{len(self.body)}"'
        known = self.headers.get("If-None-Match") == tag
        status = 304 if known else 200 if self.headers.get("Authorization") == "Bearer k" else 403
        self.seen.append(str(status))
        self.send_response(status)
        self.send_header("ETag", tag)
        self.end_headers()
        if status == 200:
            self.wfile.write(self.body)

    def log_message(self, *rest: Any) -> None:
        return None


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/models/a%20file.bin"
        server.shutdown()
        thread.join()


def test_a_file_of_a_web_server_is_fetched_when_it_changed(web: str, tmp_path: Path) -> None:
    pairs = {"AUTHORIZATION": "Bearer k"}
    there = buckets.sync(tmp_path, web, pairs)
    assert content(there) == {"a file.bin": "one"}
    buckets.sync(tmp_path, web, pairs)
    Web.body = b"another"
    buckets.sync(tmp_path, web, pairs)
    assert content(there) == {"a file.bin": "another"} and Web.seen == ["200", "304", "200"]
    with pytest.raises(BucketFailed, match="HTTP 403") as refused:
        buckets.sync(tmp_path, web, {})
    assert refused.value.user_fault
    with pytest.raises(BucketFailed, match="names no file"):
        buckets.sync(tmp_path, "http://127.0.0.1:1/dir/", {})
    with pytest.raises(BucketFailed) as away:
        buckets.sync(tmp_path, "http://127.0.0.1:1/file", {})
    assert not away.value.user_fault, "another try may help"


def test_s3_objects_below_a_prefix_are_copied(tmp_path: Path) -> None:
    boto3 = pytest.importorskip("boto3", reason="pip install 'nanopod[s3]'")
    moto = pytest.importorskip("moto.server", reason="pip install 'moto[s3,server]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        pairs = {
            "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }  # fmt: skip
        s3 = boto3.client(
            "s3", endpoint_url=pairs["AWS_ENDPOINT_URL"], aws_access_key_id="k", aws_secret_access_key="s",
            region_name="us-east-1",
        )  # fmt: skip
        s3.create_bucket(Bucket="models")
        for key, body in {"m/a": "a", "m/deep/b": "b", "other": "o", "m/": ""}.items():
            s3.put_object(Bucket="models", Key=key, Body=body.encode())
        there = buckets.sync(tmp_path, "s3://models/m", pairs)
        assert content(there) == {"a": "a", "deep/b": "b"}
        assert content(buckets.sync(tmp_path, "s3://models/m/", pairs)) == {"a": "a", "deep/b": "b"}
        assert content(buckets.sync(tmp_path, "s3://models", pairs)) == {"m/a": "a", "m/deep/b": "b", "other": "o"}
        s3.put_object(Bucket="models", Key="m/a", Body=b"new")
        s3.delete_object(Bucket="models", Key="m/deep/b")
        assert content(buckets.sync(tmp_path, "s3://models/m", pairs)) == {"a": "new"}
        with pytest.raises(BucketFailed, match="check the bucket's name"):
            buckets.sync(tmp_path, "s3://nothing", pairs)
    finally:
        server.stop()


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BucketFailed, match="must begin with"):
        buckets.sync(tmp_path, "ftp://host/file", {})
