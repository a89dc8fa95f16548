"""A user's file on a real cloud: edited, planned, deployed, and what its workers did meanwhile."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

from nanopod.client.api import Api
from nanopod.client.config import Target
from nanopod.client.deploying import build, send
from nanopod.client.sdk import Deployment
from nanopod.model import registry

_numbers = itertools.count()


def wheel(directory: Path, name: str) -> Path:
    """A wheel that installs without a network: one module called `name`."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{name}.py", "VALUE = 1\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@dataclass(frozen=True)
class Seen:
    """What a deployment left on the cloud: (id, epoch, pid) of each worker, environments that were built, uploads."""

    workers: frozenset[tuple[str, int, int]]
    environments: int
    bundles: int
    written: Any


class Edited:
    """A file `<name>.py` in a directory of its own, deployed to `cloud` as often as it is edited."""

    def __init__(self, cloud: Cloud, directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cloud = cloud
        self.path = directory / f"{name}.py"
        self.name = name
        monkeypatch.setenv("NANOPOD_URL", cloud.url)
        monkeypatch.setenv("NANOPOD_API_KEY", cloud.key)
        monkeypatch.setenv("NANOPOD_MODE", "deploy")

    def load(self, text: str) -> Deployment:
        """The deployment of the file as it is now, as if it had just been run."""
        self.path.write_text(text)
        Deployment._known.clear()
        registry.apps.clear()
        for stale in self.path.parent.glob("__pycache__/*"):
            stale.unlink()
        spec = importlib.util.spec_from_file_location(self.name, self.path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        spec.loader.exec_module(module)
        app = module.app
        assert isinstance(app, Deployment)
        return app

    def deploy(self, text: str) -> dict[str, Any]:
        """Deploy the file as `text`, as `nanopod deploy` does; the server's answer."""
        spec, bundle = build(self.load(text))
        return send(Api(Target(self.cloud.url, self.cloud.key)), spec, bundle)

    def endpoint(self, name: str | None = None) -> dict[str, Any]:
        return dict(self.cloud.api("GET", f"/v1/endpoints/{name or self.name}"))

    def seen(self, name: str | None = None) -> Seen:
        shown = self.endpoint(name)
        workers = frozenset((one["id"], one["epoch"], one["pid"]) for one in shown["instances"] if one["ready"])
        data = self.cloud.data_dir
        return Seen(
            workers,
            len(list(data.glob("cache/envs/*/complete.json"))),
            len([one for one in (data / "blobs").rglob("*") if one.is_file()]),
            (shown["updated_at"], shown["revision_id"], shown["scale"], shown["version_label"], shown["ttl_s"]),
        )

    def settled(self, name: str | None = None, ready: int = 1) -> dict[str, Any]:
        """Wait until exactly `ready` workers run, all of the newest revision."""

        def calm() -> dict[str, Any] | None:
            shown = self.endpoint(name)
            here = shown["instances"]
            good = len(here) == ready and all(
                one["ready"] and one["revision_id"] == shown["revision_id"] for one in here
            )
            return shown if good and shown["status"] == "ready" else None

        return dict(self.cloud.wait_for(calm, 60.0, f"{name or self.name} with {ready} ready workers and no others"))
