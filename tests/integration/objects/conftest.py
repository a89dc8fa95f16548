"""One cloud for this directory, and deployments of a file that uses secrets, volumes, dictionaries and queues."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

FILE = """
import os, signal
from pathlib import Path
from nanopod import Deployment, Dict, Queue, Secret, Volume

app = Deployment(name="objects", tag={tag!r})
vol = Volume("models", size_gb=1)
shared, jobs = Dict.from_name("shared"), Queue.from_name("jobs")
app.image("").secret(Secret("hf"), Secret.from_dict({{"ALONG": "-".join(("along", {tag!r}, "value"))}})).volume("data", vol)
app.configure_autoscaling(cold_workers=1, max_workers=1, min_load=0)


@app.remote
def secrets():
    print("the token is", os.environ["HF_TOKEN"], flush=True)
    os.write(2, b"in pieces: hunter2-very"); os.write(2, b"-secret!\\n")
    return os.environ["HF_TOKEN"][::-1], os.environ["ALONG"][::-1], "NANOPOD_API_KEY" in os.environ


@app.remote
def fail():
    raise ValueError("bad token " + os.environ["HF_TOKEN"])


@app.remote
async def work(key):
    item = await jobs.get.aio(timeout=20)
    await shared.put.aio(key, {{"item": item, "by": {tag!r}}})
    return await shared.len.aio()


@app.remote
def wait_for_job():
    return jobs.get(timeout=20, partition="late")


@app.remote
def write(name, text):
    (Path("data") / name).write_text(text)
    return vol.commit()


@app.remote
def read(name, reload=True):
    if reload:
        vol.reload()
    path = Path("data") / name
    return path.read_text() if path.exists() else None


@app.remote
def die_while_committing():
    from nanopod.model import registry
    from nanopod.node import volumes
    volumes.LEASE_S = 0.5
    mount = registry.mounts._mounts["models"]
    (Path("data") / "half").write_text("half")
    ask = mount._cloud.ask
    def die(method, path, body=None):
        if path.endswith("/versions"):
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(method, path, body)
    mount._cloud.ask = die
    vol.commit()
"""


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    """A running cloud. Its own environment holds the secret, too, as that of a program in local mode does."""
    with Cloud(env={"HF_TOKEN": "hunter2-very-secret"}) as running:
        yield running


@pytest.fixture(scope="session")
def here(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for files that are deployed; this process is a client of the cloud meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOPOD_URL", cloud.url)
        patch.setenv("NANOPOD_API_KEY", cloud.key)
        yield tmp_path_factory.mktemp("apps")


@pytest.fixture(scope="session")
def deploy(here: Path) -> Callable[..., Any]:
    """Make a module of source text, deploy it and wait for its worker."""

    def run(name: str, source: str) -> Any:
        path = here / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        module.app.ensure_ready(wait=True, timeout=60)
        return module

    return run


@pytest.fixture(scope="session")
def apps(deploy: Callable[..., Any]) -> tuple[Any, Any]:
    """Two deployments of the same file, each with a worker of its own."""
    import nanopod

    nanopod.Secret.create("hf", {"HF_TOKEN": "hunter2-very-secret"})
    return deploy("objects_one", FILE.format(tag="one")), deploy("objects_two", FILE.format(tag="two"))
