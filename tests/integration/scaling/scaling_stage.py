"""A cloud whose endpoint `naps` is called, watched and restarted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.cloud import Cloud

from nanopod.client.api import Api
from nanopod.client.config import Target
from nanopod.client.deploying import build, send
from nanopod.client.sdk import Deployment
from nanopod.model import registry

APP = """
import asyncio
from nanopod import Deployment

app = Deployment(name="naps")
app.image("python")
app.configure_autoscaling(SETTINGS)


@app.remote
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds
"""


class Scaled:
    """The cloud, its endpoint, and calls that are under way."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        self.pool = ThreadPoolExecutor(16)
        self.calling = threading.Event()
        self.sent: list[Future[Any]] = []

    def __enter__(self) -> Scaled:
        self.cloud.start()
        os.environ.update(NANOPOD_URL=self.cloud.url, NANOPOD_API_KEY=self.cloud.key, NANOPOD_MODE="deploy")
        return self

    def __exit__(self, *_: object) -> None:
        self.calling.clear()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.cloud.__exit__()
        for name in ("NANOPOD_URL", "NANOPOD_API_KEY", "NANOPOD_MODE"):
            os.environ.pop(name, None)

    def deploy(self, directory: Path, settings: str) -> None:
        """Deploy `naps` with these settings of the scaling."""
        path = directory / "naps.py"
        path.write_text(textwrap.dedent(APP.replace("SETTINGS", settings)))
        Deployment._known.clear()
        registry.apps.clear()
        spec = importlib.util.spec_from_file_location("naps", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["naps"] = module
        spec.loader.exec_module(module)
        made, bundle = build(module.app)
        send(Api(Target(self.cloud.url, self.cloud.key)), made, bundle)

    def load(self, at_once: int, seconds: float = 0.3) -> None:
        """Keep so many calls going until `rest`."""
        self.calling.set()
        nap = Deployment.from_name("naps").function("nap")

        def keep() -> int:
            done = 0
            while self.calling.is_set():
                assert nap.remote(seconds) == seconds
                done += 1
            return done

        self.sent += [self.pool.submit(keep) for _ in range(at_once)]

    def rest(self) -> int:
        """End the calls; how many were answered. Raises what any of them raised."""
        self.calling.clear()
        answered = sum(one.result(60) for one in self.sent)
        self.sent.clear()
        return answered

    def shown(self) -> dict[str, Any]:
        return dict(self.cloud.api("GET", "/v1/endpoints/naps"))

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`nanopod` with these words, on this cloud."""
        return subprocess.run(
            [sys.executable, "-m", "nanopod", *words],
            env=self.cloud.client_env(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def until(self, holds: Any, what: str, wait_s_max: float = 90.0) -> dict[str, Any]:
        """Wait until `holds(endpoint)` is true; the endpoint then."""

        def look() -> dict[str, Any] | None:
            shown = self.shown()
            return shown if holds(shown) else None

        return dict(self.cloud.wait_for(look, wait_s_max, what))
