"""A full disk: clear refusals while it lasts, nothing lost, and work goes on by itself once there is room."""

from __future__ import annotations

import json
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e
CHAT = {"model": "nanopod-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def refused(cloud: Cloud, method: str, path: str, body: Any) -> tuple[int, str]:
    """Status and text of a refusal, or (200, "")."""
    try:
        cloud.api(method, path, body)
    except urllib.error.HTTPError as error:
        return error.code, json.dumps(json.loads(error.read())["error"])
    return 200, ""


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as out:
        for size in (1 << 20, 4096, 1):
            while True:
                try:
                    out.write(b"\0" * size)
                except OSError:
                    break
    return ballast


@pytest.mark.timeout(200)
def test_a_full_disk_is_said_and_survived(small_disk: Path) -> None:
    with Cloud(small_disk / "data") as cloud:
        cloud.serve("nanopod-tiny", scale={"cold_workers": 1, "max_workers": 1})
        cloud.wait_ready("nanopod-tiny")
        cloud.api("POST", "/v1/chat/completions", CHAT)
        ballast = fill(small_disk)

        # A key larger than what is left in the last page of any file.
        status, said = refused(cloud, "POST", "/v1/keys", {"name": "k" * 200, "endpoints": ["e" * 100] * 60})
        assert status == 503, said
        assert "disk" in said or "space" in said

        def blocked() -> bool:
            status, said = refused(cloud, "POST", "/v1/chat/completions", CHAT)
            assert status in (200, 503), said
            return status == 503

        cloud.wait_for(blocked, 30, "new requests are refused rather than served unmetered")
        ballast.unlink()
        cloud.wait_for(lambda: refused(cloud, "POST", "/v1/chat/completions", CHAT)[0] == 200, 30, "served again")
        made = cloud.wait_for(lambda: refused(cloud, "POST", "/v1/keys", {"name": "after"})[0] == 200, 30, "keys again")
        assert made
        records = cloud.wait_for(cloud.usage_records, 20, "usage")
        assert len({record["record_id"] for record in records}) == len(records)


def test_starting_on_a_full_disk_is_one_sentence(small_disk: Path) -> None:
    fill(small_disk)
    (small_disk / "data").mkdir(exist_ok=True)
    with pytest.raises(RuntimeError) as caught:
        Cloud(small_disk / "data").start()
    said = str(caught.value)
    assert "space" in said or "disk" in said
    assert "Traceback" not in said
