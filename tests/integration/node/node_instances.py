"""Instances for tests: a directory as the agent makes it, and its shim, started the way the agent starts it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanopod.model.endpoint import EndpointSpec, FunctionSpec, InstanceSpec, ModelSpec
from nanopod.node import files, launch, procs, records

RUN = os.urandom(4).hex()
HEADER = """
from nanopod.model.registry import App, RegisteredContext, RegisteredFunction, apps, current
from nanopod.model.endpoint import FunctionSpec
import asyncio, os, sys, threading, time
app = apps["test"] = App("test")
def remote(kind="async", **spec):
    given = {name: spec.pop(name) for name in list(spec) if name in (
        "benchmark_dataset", "benchmark_generator", "benchmark_runs", "workload")}
    def register(function):
        name = function.__name__
        app.functions[name] = RegisteredFunction(FunctionSpec(name, kind, **spec), function, **given)
        return function
    return register
def context(*args, needs=(), **kwargs):
    def register(cls):
        app.contexts[cls] = RegisteredContext(cls, args, kwargs, tuple(needs))
        return cls
    return register
"""


def inst(name: str | int) -> str:
    """An instance's id that nobody else on this machine uses: what is killed is found by its id, in every process."""
    return f"inst_{name}_{RUN}"


INSTANCE = inst("test")
"""The one that tests with a single instance use."""


def function_app(*names: str, **fields: Any) -> EndpointSpec:
    """A function endpoint named `test` whose code is module `deployment`."""
    return EndpointSpec("test", functions=tuple(FunctionSpec(name) for name in names), **fields)


def model_app(model: ModelSpec) -> EndpointSpec:
    """A model endpoint."""
    return EndpointSpec("test", kind="model", model=model)


def instance_spec(app: EndpointSpec, instance_id: str = INSTANCE, **fields: Any) -> InstanceSpec:
    """An instance of `app`."""
    given = {"slots": 8, "grace_s": 5.0, "lease_s": 60.0, "epoch": 1, **fields}
    return InstanceSpec(
        instance_id=instance_id, workspace_id="wksp_test", endpoint_id="endp_test", revision_id="rev_test",
        node_id="node_test", app=app, join_token="secret-join-token", **given,
    )  # fmt: skip


def bundle_of(entries: dict[str, str]) -> tuple[bytes, str]:
    """(bytes of a bundle, its digest)."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path, text in {"config.json": '{"format":1,"name":"test","module":"deployment"}', **entries}.items():
            entry = tarfile.TarInfo(f"./{path}")
            data = text.encode()
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    data = gzip.compress(plain.getvalue(), mtime=0)
    return data, hashlib.sha256(data).hexdigest()


class Instance:
    """One instance directory and its shim. Use as a context manager: nothing of it survives the block."""

    def __init__(
        self, root: Path, gateway: Path, app: EndpointSpec, code: str = "", *, env: dict[str, str] | None = None,
        **fields: Any,
    ) -> None:  # fmt: skip
        self.spec = instance_spec(app, **fields)
        self.directory = root / self.spec.instance_id
        self.app = self.directory / files.APP
        self.app.mkdir(parents=True)
        (self.app / "deployment.py").write_text(HEADER + code)
        argv = [sys.executable, "-P", "-m", "nanopod.node.worker", str(self.directory)]
        how = records.Launch(
            argv, launch.environment_of(self.spec.instance_id, env or {}), str(self.app),
            self.spec.lease_s, self.spec.grace_s,
        )  # fmt: skip
        start = records.Start(
            self.spec, [f"unix:{gateway}"], how, str(root / "models"), snapshots_dir=str(root / "snapshots")
        )
        records.write_start(self.directory, start)
        self.running: records.Running | None = None
        self.started_at = 0.0

    def __enter__(self) -> Instance:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        left = launch.kill(self.spec.instance_id, self.running)
        assert not left, f"processes that cannot be killed: {left}"

    def start(self) -> None:
        self.started_at = time.monotonic()
        process: subprocess.Popen[bytes] = launch.start(self.directory, self.spec.instance_id)
        assert process.wait(10) == 0
        self.running = wait_for(lambda: records.read_running(self.directory), 5, "the shim")

    @property
    def worker_pid(self) -> int:
        assert self.running is not None
        shim = self.running.pid
        children = wait_for(lambda: procs.children_of(shim), 5, "the worker")
        return int(children[0])

    def terminate(self) -> None:
        assert self.running is not None
        os.kill(self.running.pid, signal.SIGTERM)

    async def verdict(self, wait_s_max: float = 15.0) -> records.Verdict:
        """How it ended, once it did."""
        found: records.Verdict = await eventually(lambda: records.read_verdict(self.directory), wait_s_max, "the end")
        running = self.running
        assert running is not None
        await eventually(lambda: procs.start_time(running.pid) is None, 5, "the end of the shim")
        return found

    @property
    def log(self) -> str:
        return (self.directory / files.LOG).read_text()

    def processes(self) -> list[int]:
        """Whatever lives of it."""
        return procs.members(0, launch.mark_of(self.spec.instance_id))


async def eventually(test: Callable[[], Any], wait_s_max: float = 10.0, what: str = "") -> Any:
    """As `wait_for`, while the event loop goes on."""
    limit = time.monotonic() + wait_s_max
    while True:
        with contextlib.suppress(OSError):
            if found := test():
                return found
        assert time.monotonic() < limit, f"{what or test} did not come within {wait_s_max} s"
        await asyncio.sleep(0.005)


def wait_for(test: Callable[[], Any], wait_s_max: float = 10.0, what: str = "") -> Any:
    """Poll until `test` is true; its value."""
    limit = time.monotonic() + wait_s_max
    while True:
        with contextlib.suppress(OSError):
            if found := test():
                return found
        assert time.monotonic() < limit, f"{what or test} did not come within {wait_s_max} s"
        time.sleep(0.005)
