"""Buckets on a node: what is below a URL, copied into a directory that the workers of the node share, read-only.

| URL | what is copied |
| --- | --- |
| `s3://bucket/prefix` | every object below the prefix (needs `nanopod[s3]`) |
| `file:///directory` | every file below a directory of the node, or one file |
| `https://host/path/file`, `http://...` | that one file |

What did not change since the last time (by entity tag, or size and time) is not copied again. The secret of a bucket
may hold AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL, or AUTHORIZATION,
the header that is sent to a web server.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from nanopod.model import parts
from nanopod.node import files

PARALLEL: Final = 8
SILENCE_S_MAX: Final = 60.0
CHUNK_BYTES: Final = 1 << 20
_KEYS: Final = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "endpoint_url": "AWS_ENDPOINT_URL",
}


class BucketFailed(Exception):
    """A bucket cannot be copied. `user_fault`: trying again elsewhere does not help."""

    def __init__(self, message: str, *, user_fault: bool = True) -> None:
        super().__init__(message)
        self.user_fault = user_fault


@dataclass(frozen=True, slots=True)
class Thing:
    """One file of a bucket: where it goes, what tells its content apart, and how to get it into a new file."""

    path: str
    mark: str
    fetch: Callable[[Path], str | None]
    """Writes the file; what tells its content apart, if only known now. Raises `Unchanged`."""


class Unchanged(Exception):
    """What is here already is the newest."""


def sync(buckets: Path, url: str, pairs: Mapping[str, str]) -> Path:
    """The directory with the content of a bucket, brought up to date. Blocks. Raises `BucketFailed`."""
    who = pairs.get("AWS_ACCESS_KEY_ID", "") or hashlib.sha256(pairs.get("AUTHORIZATION", "").encode()).hexdigest()
    root = buckets / hashlib.sha256(f"{url}\0{who}".encode()).hexdigest()[:32]
    there = root / "files"
    there.mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marks = _marks(root)
        try:
            found = {thing.path: thing for thing in _things(url, pairs, marks)}
            with ThreadPoolExecutor(PARALLEL) as pool:
                running = [
                    pool.submit(_get, there, thing, marks)
                    for thing in found.values()
                    if marks.get(thing.path) != thing.mark or not thing.mark or not (there / thing.path).is_file()
                ]
                for one in running:
                    one.result()
        except OSError as error:
            raise BucketFailed(f"image.bucket: {url}: {error}", user_fault=False) from error
        finally:
            files.write_atomic(root / "state.json", json.dumps(marks).encode())
        for gone in marks.keys() - found.keys():
            (there / gone).unlink(missing_ok=True)
            del marks[gone]
        files.write_atomic(root / "state.json", json.dumps(marks).encode())
    return there


def _marks(root: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((root / "state.json").read_bytes())
        if isinstance(found, dict):
            return {str(path): str(mark) for path, mark in found.items()}
    return {}


def _get(there: Path, thing: Thing, marks: dict[str, str]) -> None:
    target = there / thing.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        mark = thing.fetch(part) or thing.mark
        os.chmod(part, 0o444)
        os.replace(part, target)
        marks[thing.path] = mark
    except Unchanged:
        pass
    finally:
        part.unlink(missing_ok=True)


def _things(url: str, pairs: Mapping[str, str], marks: Mapping[str, str]) -> Iterator[Thing]:
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return _of_directory(url)
    if scheme in ("http", "https"):
        return _of_web(url, pairs, marks)
    if scheme == "s3":
        return _of_s3(url, pairs)
    raise BucketFailed(f"image.bucket: {url} must begin with s3://, https://, http:// or file://")


def _of_directory(url: str) -> Iterator[Thing]:
    root = Path(unquote(urlsplit(url).path))
    if not root.exists():
        raise BucketFailed(f"image.bucket: {url}: there is no {root} on this node", user_fault=False)
    whole = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    for path in whole:
        seen = path.stat()

        def copy(part: Path, path: Path = path) -> None:
            shutil.copyfile(path, part)

        name = path.name if path == root else path.relative_to(root).as_posix()
        yield Thing(name, f"{seen.st_size} {seen.st_mtime_ns}", copy)


def _of_web(url: str, pairs: Mapping[str, str], marks: Mapping[str, str]) -> Iterator[Thing]:
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not name or name in (".", ".."):
        raise BucketFailed(f"image.bucket: {url} names no file; a web server's directories cannot be listed")

    def get(part: Path) -> str | None:
        asked = urllib.request.Request(url)
        if "AUTHORIZATION" in pairs:
            asked.add_header("Authorization", pairs["AUTHORIZATION"])
        if mark := marks.get(name):
            asked.add_header("If-None-Match", mark)
        try:
            with urllib.request.urlopen(asked, timeout=SILENCE_S_MAX) as answer, open(part, "xb") as file:
                shutil.copyfileobj(answer, file, CHUNK_BYTES)
                return str(answer.headers.get("ETag") or "")
        except urllib.error.HTTPError as error:
            if error.code == 304:
                raise Unchanged from None
            raise BucketFailed(
                f"image.bucket: {url} was answered with HTTP {error.code}", user_fault=error.code < 500
            ) from None

    yield Thing(name, "", get)


def _of_s3(url: str, pairs: Mapping[str, str]) -> Iterator[Thing]:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise BucketFailed(
            "image.bucket: s3:// needs boto3 on the node: pip install 'nanopod[s3]'", user_fault=False
        ) from None  # fmt: skip
    place = urlsplit(url)
    prefix = unquote(place.path).lstrip("/")
    options: dict[str, Any] = {name: pairs[key] for name, key in _KEYS.items() if pairs.get(key)}
    region = pairs.get("AWS_REGION") or pairs.get("AWS_DEFAULT_REGION")
    try:
        client = boto3.session.Session().client("s3", region_name=region, **options)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.netloc, Prefix=prefix)
        listed = [row for page in pages for row in page.get("Contents", ())]
    except (BotoCoreError, ClientError, ValueError) as error:
        raise BucketFailed(f"image.bucket: {url}: {error}; check the bucket's name and secret=") from None
    for row in listed:
        key = str(row["Key"])
        if key.endswith("/"):
            continue
        below = key[len(prefix) :] if prefix.endswith("/") or not prefix else key[len(prefix.rpartition("/")[0]) :]
        if prefix and not prefix.endswith("/") and key.startswith(f"{prefix}/"):
            below = key[len(prefix) :]
        try:
            name = parts.plain_path(below)
        except ValueError as error:
            raise BucketFailed(f"image.bucket: {url}: the object {key!r}: {error}") from None

        def download(part: Path, key: str = key) -> None:
            try:
                client.download_file(place.netloc, key, str(part))
            except (BotoCoreError, ClientError) as error:
                raise BucketFailed(f"image.bucket: {url}: {key}: {error}", user_fault=False) from None

        yield Thing(name, f"{row.get('ETag', '')} {row.get('Size', 0)}", download)
