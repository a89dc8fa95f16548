"""A real gateway between a fake server and real workers that serve real models."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage import KEY, Stage, until

from nanopod.model.endpoint import EndpointSpec, InstanceSpec, ModelSpec
from nanopod.model.wire import WorkerRow
from nanopod.node import files, records

Answered = tuple[int, dict[str, str], bytes]


class ServingStage(Stage):
    """`serve` starts an endpoint with one worker."""

    def __init__(self) -> None:
        super().__init__()
        del self.routes["endp_model"]

    def serve(
        self, name: str, model: ModelSpec, *, more: str = "", revision: str = "rev_1", ready: bool = True, **route: Any
    ) -> Path:  # fmt: skip
        """An endpoint of a model, its worker started; waits until that is ready. Its instance's directory.

        `more`: a further worker of the endpoint, by the end of its name.
        """
        endpoint, instance = f"endp_{name}", f"inst_{name}{more}"
        self.route(
            endpoint, kind="model", name=name, model_ids=(model.model_id, *(one.name for one in model.models)),
            protocols=model.protocols, serves=(model.model_id, *(one.name for one in model.models)), **route,
        )  # fmt: skip
        token = f"token-{instance}"
        self.workers[instance] = WorkerRow(
            instance, endpoint, revision, 1, model.slots, hashlib.sha256(token.encode()).hexdigest()
        )
        self.push()
        directory = self.data / "instances" / instance
        (directory / files.APP).mkdir(parents=True)
        spec = InstanceSpec(
            instance_id=instance, epoch=1, workspace_id="wksp_a", endpoint_id=endpoint, revision_id=revision,
            node_id="node_1", app=EndpointSpec(name, kind="model", model=model), slots=model.slots, join_token=token,
            grace_s=3.0,
        )  # fmt: skip
        argv = [sys.executable, "-P", "-m", "nanopod.node.worker", str(directory)]
        how = records.Launch(argv, {}, str(directory / files.APP))
        start = records.Start(spec, [f"unix:{self.layout.gateway_socket}"], how, str(self.data / "models"))
        records.write_start(directory, start)
        with open(directory / files.LOG, "ab") as log:
            process = subprocess.Popen(
                argv, cwd=directory / files.APP, env=dict(os.environ), stdout=log, stderr=log, text=True
            )
        self.processes.append(process)
        if ready:

            def is_ready() -> bool:
                if process.poll() is not None:
                    raise AssertionError((directory / files.LOG).read_text()[-4000:])
                return any(s.instance_id == instance and s.ready for s in self.control.states)

            until(is_ready, 60.0, f"the worker of {name}")
        return directory

    def at(
        self, host: str, path: str, body: Any = None, *, method: str = "", headers: Mapping[str, str] | None = None,
        key: str | None = KEY,
    ) -> Answered:  # fmt: skip
        """A request with a Host of its own; POST when there is a body."""
        given = {"Host": host, **(headers or {})}
        return self.get(
            path, key=key, method=method or ("POST" if body is not None else "GET"), body=body, headers=given
        )

    def ask(self, path: str, body: Any = None, **more: Any) -> Answered:
        """A request without a host's name."""
        return self.at(f"127.0.0.1:{self.port}", path, body, **more)

    def json(self, path: str, body: Any = None, *, host: str = "", status: int = 200) -> Any:
        """A JSON answer of this status."""
        found = self.at(host or f"127.0.0.1:{self.port}", path, body)
        assert found[0] == status, found
        assert found[1]["content-type"].startswith("application/json"), found
        return json.loads(found[2])


def raw(port: int, data: bytes) -> bytes:
    """What a server answers to these bytes, until it closes or the answer is whole."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    assert connection.sock is not None
    connection.sock.sendall(data)
    answer = http.client.HTTPResponse(connection.sock)
    answer.begin()
    found = answer.read()
    connection.close()
    return found
