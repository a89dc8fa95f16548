"""Blobs are whole or absent; wrong digests, sizes and disks are said clearly."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nanopod.model.errors import Invalid, NoCapacity
from nanopod.model.layout import Layout
from nanopod.store import blobs
from nanopod.store.blobs import BlobStore

DATA = b"hello blob" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


async def chunks(data: bytes, size: int = 999) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    layout = Layout(tmp_path)
    return BlobStore(layout.blobs, layout.blob)


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "blobs").rglob("*.part")]


def test_put_once(store: BlobStore, tmp_path: Path) -> None:
    assert asyncio.run(store.put(DIGEST, chunks(DATA))) is True
    assert Layout(tmp_path).blob(DIGEST).read_bytes() == DATA
    assert asyncio.run(store.put(DIGEST, chunks(b"not looked at"))) is False
    assert store.size(DIGEST) == len(DATA)
    assert left(tmp_path) == []


def test_a_wrong_digest_is_refused_and_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="send the file again"):
        asyncio.run(store.put(DIGEST, chunks(DATA[:-1])))
    assert not store.has(DIGEST)
    assert left(tmp_path) == []


@pytest.mark.parametrize("digest", ["../../etc/passwd", "ABC", DIGEST.upper(), "g" * 64])
def test_a_name_that_is_no_digest_is_refused(store: BlobStore, digest: str) -> None:
    with pytest.raises(Invalid, match="64 hexadecimal"):
        store.has(digest)


def test_too_many_bytes(store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BLOB_BYTES_MAX", 5000)
    with pytest.raises(Invalid, match="at most"):
        asyncio.run(store.put(DIGEST, chunks(DATA)))
    assert left(tmp_path) == []


def test_a_full_disk_is_said(store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoCapacity, match="free some space"):
        asyncio.run(store.put(DIGEST, chunks(DATA)))
    assert not store.has(DIGEST)
    assert left(tmp_path) == []


def test_two_uploads_of_the_same_blob(store: BlobStore) -> None:
    async def both() -> list[bool]:
        return list(await asyncio.gather(store.put(DIGEST, chunks(DATA)), store.put(DIGEST, chunks(DATA))))

    assert any(asyncio.run(both()))
    assert store.size(DIGEST) == len(DATA)


def test_what_interrupted_uploads_left_is_swept(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    old, young = tmp_path / "blobs" / "a.part", tmp_path / "blobs" / "b.part"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert store.sweep() == 1
    assert not old.exists()
    assert young.exists()
