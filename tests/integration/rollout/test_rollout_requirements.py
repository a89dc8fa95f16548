"""Hardware that nobody has: told to callers by name, forgiven where nothing has an accelerator; no lone second worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.cloud import Cloud
from rollout_stage import Edited

from nanopod.client.sdk import Deployment
from nanopod.model.errors import NoCapacity

pytestmark = pytest.mark.integration

TEXT = """
from nanopod import Deployment
from nanopod.data.query import cpu_cores, gpu_name, num_gpus

app = Deployment(name="NAME")
app.image("python").require(QUERY)
app.configure_autoscaling(cold_workers=1, max_workers=1)


@app.remote
async def number() -> int:
    return 1
"""


@pytest.fixture
def file(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edited:
    return Edited(cloud, tmp_path, "needs", monkeypatch)


def text(query: str) -> str:
    return TEXT.replace("NAME", "needs").replace("QUERY", query)


def test_what_is_lacking_is_named(file: Edited, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    if cloud.api("GET", "/v1/instance_skus")["data"][0]["num_accelerators"]:
        pytest.skip("this machine has an accelerator")
    number = Deployment.from_name("needs").function("number")
    file.deploy(text('gpu_name == "H100 SXM"'))
    shown = file.settled()
    story = " ".join(line["message"] for line in cloud.api("GET", "/v1/endpoints/needs/events")["data"])
    assert "although it does not meet: gpu_name eq 'H100 SXM'" in story
    assert number.remote() == 1
    worker = shown["instances"][0]["id"]
    file.deploy(text("cpu_cores <= 100000"))
    assert [one["id"] for one in file.settled()["instances"]] == [worker], "it still fits, so it goes on"
    file.deploy(text("cpu_cores >= 100000"))
    cloud.wait_for(
        lambda: any("cpu_cores gte 100000" in reason for reason in file.endpoint()["reasons"]), 30.0, "what is lacking"
    )
    assert number.remote() == 1, "while nothing can take its place, the worker of before serves"
    cloud.api("DELETE", "/v1/endpoints/needs")
    monkeypatch.setenv("NANOPOD_LOCAL_STRICT", "1")
    file.deploy(text("num_gpus >= 1"))
    number = Deployment.from_name("needs").function("number")
    with pytest.raises(NoCapacity, match="num_gpus gte 1"):
        number.remote()
    monkeypatch.delenv("NANOPOD_LOCAL_STRICT")
    file.deploy(text("cpu_cores >= 1"))
    assert number.remote() == 1
    cloud.api("DELETE", "/v1/endpoints/needs")
