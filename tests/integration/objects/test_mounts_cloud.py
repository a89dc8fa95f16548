"""Where workers find what they mount: absolute paths that a node's workers share, read-only mounts, buckets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

import nanopod
from nanopod import Volume

pytestmark = pytest.mark.integration
FILE = """
import os
from pathlib import Path
from nanopod import Deployment, Volume

app = Deployment(name={name!r})
image = app.image("").volume({path!r}, Volume("shared")).volume("models", Volume("fixed"), read_only=True)
image.bucket({bucket!r}, "things/bucket")
app.configure_autoscaling(min_scale={workers}, max_workers={workers}, min_load=0)


@app.remote
def look():
    there = Path({path!r})
    if not (there / "mine").exists():
        (there / "mine").write_text(os.environ["NANOPOD_INSTANCE"])
    return {{
        "who": os.environ["NANOPOD_INSTANCE"],
        "absolute": sorted(os.listdir(there)),
        "mine": (there / "mine").read_text(),
        "relative": sorted(os.listdir("models")),
        "bucket": Path("things/bucket/a").read_text(),
        "path": str(Volume("shared").path),
        "named": sorted(os.listdir(os.environ["NANOPOD_VOLUMES"] + "/shared")),
    }}
"""


def test_paths_of_mounts(deploy: Callable[..., Any], cloud: Cloud, tmp_path: Path) -> None:
    for name in ("shared", "fixed"):
        Volume(name).put_file(b"x", "deep/file")
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_text("from a bucket")
    at = str(tmp_path / "made" / "models")
    source = FILE.format(name="mounts", path=at, bucket=(tmp_path / "bucket").as_uri(), workers=2)
    app = deploy("mounts_two", source)
    cloud.wait_ready("mounts", 2)
    seen: dict[str, dict[str, Any]] = {}

    def both() -> bool:
        found = app.look.remote()
        seen[found["who"]] = found
        return len(seen) == 2

    cloud.wait_for(both, what="answers of both workers")
    for found in seen.values():
        assert found["relative"] == ["deep"] and found["bucket"] == "from a bucket"
        assert found["absolute"] == ["deep", "mine"]
    assert len({found["mine"] for found in seen.values()}) == 1, "an absolute path is the same for a node's workers"
    assert os.path.realpath(at).startswith(str(cloud.data_dir / "node" / "mounts"))
    cloud.api("DELETE", "/v1/endpoints/mounts")


def test_what_is_there_is_never_overwritten(deploy: Callable[..., Any], cloud: Cloud, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    (tmp_path / "a").write_text("x")
    source = FILE.format(name="taken", path=str(taken), bucket=tmp_path.as_uri(), workers=1)
    with pytest.raises(nanopod.DeploymentFailed, match=r"something is there already.*give a relative path") as failed:
        deploy("mounts_taken", source)
    assert failed.value.stage == "environment" and taken.read_text() == "precious"
    cloud.api("DELETE", "/v1/endpoints/taken")
