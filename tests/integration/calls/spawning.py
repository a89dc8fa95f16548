"""A cloud with a deployment whose calls are spawned, and what tests ask of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from bench.cloud import Cloud

T = TypeVar("T")
WAIT_S_MAX = 60.0
APP = Path(__file__).with_name("spawned_app.py")
OCTETS = "application/octet-stream"


def eventually(test: Callable[[], T], what: str = "", wait_s_max: float = WAIT_S_MAX) -> T:
    """Poll until `test` is true; its value. Answers that a killed server owes count as not yet."""
    limit = time.monotonic() + wait_s_max
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if found := test():
                return found
        assert time.monotonic() < limit, f"{what or test} did not come true within {wait_s_max} s"
        time.sleep(0.05)


class Spawning:
    """The cloud, the deployment's module, and the file in which its functions leave marks."""

    def __init__(self, cloud: Cloud, module: ModuleType, marks: Path) -> None:
        self.cloud = cloud
        self.app: Any = module
        self.marks_file = marks

    def marks(self, first: str) -> list[list[str]]:
        """The marks that begin with a word, without it."""
        lines = self.marks_file.read_text().splitlines() if self.marks_file.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(f"{first} ")]

    def post(self, function: str, *args: Any, key: str | None = None, **options: Any) -> dict[str, Any]:
        """Spawn a call as JSON."""
        body = {"endpoint": "spawned", "function": function, "args": list(args), "options": options}
        return dict(self.cloud.api("POST", "/v1/calls", body, key))

    def call(self, call_id: str) -> dict[str, Any]:
        """A call as the API shows it."""
        return dict(self.cloud.api("GET", f"/v1/calls/{call_id}"))

    def ended(self, call_id: str) -> dict[str, Any]:
        """A call once it has its answer."""
        return eventually(lambda: (found := self.call(call_id))["ended_at"] and found, f"{call_id} ends")

    def raw(
        self, method: str, path: str, data: bytes | None = None, *, key: str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """(status, body) of one request."""
        fields = {"Authorization": f"Bearer {key or self.cloud.key}"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.cloud.url + path, data=data, method=method, headers=fields)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def refused(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, str]:
        """(status, message) of a JSON request that must fail."""
        status, raw = self.raw(
            method, path, json.dumps(body).encode() if body is not None else None, key=key,
            Content_Type="application/json",
        )  # fmt: skip
        assert status >= 400, raw
        return status, json.loads(raw)["error"]["message"]

    def restart(self, module: str) -> None:
        """SIGKILL a part of the cloud; its supervisor starts another one."""
        before = eventually(lambda: self.cloud.pids(module), f"{module} runs")
        self.cloud.kill(module)
        eventually(lambda: set(self.cloud.pids(module)) - set(before), f"{module} is started again")


def load(marks: Path) -> ModuleType:
    """The deployment's module, imported anew so that it belongs to the cloud of the environment."""
    os.environ["MARKS"] = str(marks)
    spec = importlib.util.spec_from_file_location("spawned_app", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["spawned_app"] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def spawning(directory: Path) -> Iterator[Spawning]:
    """A cloud with the deployment, ready."""
    names = ("NANOPOD_URL", "NANOPOD_API_KEY", "MARKS")
    before = {name: os.environ.get(name) for name in names}
    with Cloud() as cloud:
        os.environ.update(NANOPOD_URL=cloud.url, NANOPOD_API_KEY=cloud.key)
        try:
            module = load(directory / "marks")
            module.app.ensure_ready(wait=True)
            yield Spawning(cloud, module, directory / "marks")
        finally:
            sys.modules.pop("spawned_app", None)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
