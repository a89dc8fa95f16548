"""A real gateway process and real worker processes that run `web_site.py`; the server and the agent are the test's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from stage import HERE as GATEWAY_TESTS
from stage import Stage, digest, until

from nanopod.model.endpoint import EndpointSpec, InstanceSpec
from nanopod.model.wire import KeyRow, Tables, WorkerRow
from nanopod.node import files, records

SITE = Path(__file__).parent / "web_site.py"
assert GATEWAY_TESTS.name == "gateway"


def site_spec() -> EndpointSpec:
    """What deploying the site would send."""
    import web_site

    deployment = web_site.app
    functions = tuple(bound.spec(1) for bound in deployment._functions.values())
    return EndpointSpec("site", module="web_site", functions=functions, asgi=tuple(deployment._asgi.values()))


class WebStage(Stage):
    """A `Stage` whose endpoint `site` is served by real workers."""

    def __init__(self) -> None:
        super().__init__()
        self.site = site_spec()
        self.log = self.data / "site.log"
        self.log.touch()
        functions = {function.name: function for function in self.site.functions}
        self.route("endp_site", kind="function", name="site", functions=functions, asgi=self.site.asgi, timeout_s=30.0)
        self.route("endp_far", kind="function", name="far", functions=functions, workspace_id="wksp_b")

    def push(self) -> None:
        self.version += 1
        from stage import PEPPER

        self.control.push(
            Tables(self.version, PEPPER, dict(self.keys), dict(self.routes), dict(self.workers), "wksp_a")
        )

    def site_worker(self, instance: str = "inst_site", *, slots: int = 400, env: dict[str, str] | None = None) -> Any:
        """Start a worker process and wait until the gateway may use it."""
        token = f"token-{instance}"
        self.workers[instance] = WorkerRow(
            instance, "endp_site", "rev_1", 1, slots, hashlib.sha256(token.encode()).hexdigest()
        )
        self.keys[digest(token)] = KeyRow(instance, "wksp_a", ("call",))
        self.push()
        directory = self.data / "instances" / instance
        home = directory / files.APP
        home.mkdir(parents=True)
        shutil.copy(SITE, home / SITE.name)
        spec = InstanceSpec(
            instance_id=instance, epoch=1, workspace_id="wksp_a", endpoint_id="endp_site", revision_id="rev_1",
            node_id="node_test", app=self.site, slots=slots, join_token=token, grace_s=6.0,
        )  # fmt: skip
        argv = [sys.executable, "-P", "-m", "nanopod.node.worker", str(directory)]
        launch = records.Launch(argv, {}, str(home))
        records.write_start(directory, records.Start(spec, [f"unix:{self.layout.gateway_socket}"], launch))
        with open(self.data / f"{instance}.log", "ab") as output:
            process = subprocess.Popen(
                argv,
                cwd=home,
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    "NANOPOD_MODE": "serve",
                    "WEB_SITE_LOG": str(self.log),
                    "NANOPOD_API_KEY": token,
                    "NANOPOD_URL": f"http://127.0.0.1:{self.port}",
                    **(env or {}),
                },
            )
        self.processes.append(process)  # type: ignore[arg-type]
        until(
            lambda: process.poll() is not None or any(s.instance_id == instance and s.ready for s in self.control.states),
            60.0, f"worker {instance}",
        )  # fmt: skip
        assert process.poll() is None, (self.data / f"{instance}.log").read_text()
        return process

    def noted(self, line: str) -> bool:
        """True once the site has written this line."""
        return line in self.log.read_text().splitlines()

    def release(self, word: str) -> None:
        """Let the function `hold` return."""
        Path(f"{self.log}.{word}").touch()

    @property
    def url(self) -> str:
        """Where the site is, for callers without a key too."""
        return f"http://127.0.0.1:{self.port}/web/site"
