"""Bundles that nobody needs any more are removed, and nothing else is."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from nanopod.client.bundle import pack
from nanopod.model.layout import Layout
from nanopod.server.bundles import AGE_S_MIN, is_bundle, sweep
from nanopod.store.blobs import BlobStore


def test_only_old_bundles_without_a_revision_go(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    blobs = BlobStore(layout.blobs, layout.blob)
    now = time.time()

    def keep(data: bytes, age_s: float) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = layout.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (now - age_s, now - age_s))
        return digest

    def bundle(text: bytes) -> bytes:
        return pack({"app.py": text, "config.json": b'{"format": 1}'})

    old, used, young = keep(bundle(b"1"), 2e5), keep(bundle(b"2"), 2e5), keep(bundle(b"3"), AGE_S_MIN - 60)
    others = [
        keep(b"weights", 2e5),
        keep(b"\x1f\x8bnot an archive", 2e5),
        keep(pack({"a.txt": b"of a volume"}), 2e5),
        keep(pack({"config.json": b'{"name": "of somebody else"}'}), 2e5),
        keep(pack({"config.json": b"no json"}), 2e5),
    ]
    assert is_bundle(layout.blob(old))
    assert sweep(blobs, {used}, now) == 1
    assert [blobs.has(one) for one in (old, used, young, *others)] == [False, True, True, *[True] * len(others)]
    assert sweep(blobs, {used}, now) == 0
