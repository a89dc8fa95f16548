"""A real gateway process and real worker processes on nodes of the test's choice; server and agent are the test's."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import time
from typing import Any

from stage import Caller, Stage, until

from nanopod.model import calls, codec
from nanopod.model.endpoint import EndpointSpec, Fingerprints, FunctionSpec, InstanceSpec
from nanopod.model.wire import WorkerRow, WorkerState
from nanopod.node import files, records

CODE = """
import asyncio, os
from nanopod import Deployment
app = Deployment(name="fleet")
places = int(os.environ["PLACES"])
benchmarks = {"benchmark_dataset": [{"x": 1}]} if os.environ["BENCHMARK"] else {}
@app.remote(concurrency=places, **benchmarks)
async def steady(x):
    with open(os.environ["RUNS"], "a") as log:
        log.write("x")
    await asyncio.sleep(0.02)
    return os.environ["NANOPOD_INSTANCE"]
"""


class FleetStage(Stage):
    """A `Stage` whose function endpoints are served by real workers."""

    def __init__(self) -> None:
        super().__init__()
        self._ids = itertools.count(1)
        self._apps: dict[str, tuple[int, bool]] = {}
        self._serving: dict[str, subprocess.Popen[bytes]] = {}

    def app(self, endpoint_id: str, places: int, *, benchmark: bool) -> None:
        """An endpoint with the function `steady`, which sleeps for 20 ms."""
        functions = {"steady": FunctionSpec("steady", concurrency=places)}
        self.route(endpoint_id, kind="function", name=endpoint_id, functions=functions)
        self._apps[endpoint_id] = places, benchmark

    def serve(self, endpoint_id: str, instance: str, **node: Any) -> WorkerState:
        """Start a worker on a node that is as `records.Start` says; what it reported when it became ready."""
        places, benchmark = self._apps[endpoint_id]
        token = f"token-{instance}"
        digest = hashlib.sha256(token.encode()).hexdigest()
        self.workers[instance] = WorkerRow(instance, endpoint_id, "rev_1", 1, 16, digest)
        self.push()
        directory = self.data / "instances" / instance
        home = directory / files.APP
        home.mkdir(parents=True)
        (home / "fleet_app.py").write_text(CODE)
        app = EndpointSpec("fleet", module="fleet_app", fingerprints=Fingerprints(endpoint_id, "image"))
        spec = InstanceSpec(
            instance_id=instance, epoch=1, workspace_id="wksp_a", endpoint_id=endpoint_id, revision_id="rev_1",
            node_id="node_test", app=app, slots=16, join_token=token,
        )  # fmt: skip
        argv = [sys.executable, "-P", "-m", "nanopod.node.worker", str(directory)]
        how = records.Launch(argv, {}, str(home))
        start = records.Start(
            spec, [f"unix:{self.layout.gateway_socket}"], how, benchmarks_dir=str(self.layout.benchmarks), **node
        )
        records.write_start(directory, start)
        env = {
            **os.environ, "NANOPOD_MODE": "serve", "NANOPOD_INSTANCE": instance, "PLACES": str(places),
            "BENCHMARK": "1" if benchmark else "", "RUNS": str(self.runs(endpoint_id)),
        }  # fmt: skip
        with open(self.data / f"{instance}.log", "ab") as output:
            process = subprocess.Popen(argv, cwd=home, stdout=output, stderr=output, env=env)
        self.processes.append(process)  # type: ignore[arg-type]
        self._serving[instance] = process
        until(lambda: process.poll() is not None or self.states(instance), 60.0, f"worker {instance}")
        assert process.poll() is None, (self.data / f"{instance}.log").read_text()
        return self.states(instance)[0]

    def stop(self, instance: str) -> None:
        """End a worker; calls go to the others from now on."""
        self._serving[instance].kill()
        until(
            lambda: any(state.instance_id == instance and not state.linked for state in list(self.control.states)),
            what=f"the end of {instance}",
        )

    def states(self, instance: str) -> list[WorkerState]:
        """What a worker reported since it was ready."""
        return [state for state in list(self.control.states) if state.instance_id == instance and state.ready]

    def runs(self, endpoint_id: str) -> Any:
        """The file with a byte for each time that the function ran."""
        return self.data / f"{endpoint_id}.runs"

    def send(self, caller: Caller, endpoint_id: str, **wishes: Any) -> bytes:
        """Call `steady`; the call's id."""
        payload = codec.encode(((1,), {}))
        call_id = next(self._ids).to_bytes(16, "big")
        caller.send(calls.Call(call_id, endpoint_id, "steady", size=len(payload), **wishes), payload)
        return call_id

    def where(self, caller: Caller, endpoint_id: str, **wishes: Any) -> str:
        """The instance that a call ran on."""
        header, payload = caller.answer(self.send(caller, endpoint_id, **wishes))
        assert isinstance(header, calls.Result), header
        return str(codec.decode(payload))

    def sustained(self, caller: Caller, endpoint_id: str, places: int, windows: int = 9) -> float:
        """Units of load per second with all places taken all the time: the median over windows of 5 rounds."""
        sent = {self.send(caller, endpoint_id) for _ in range(places + 1)}

        def round_trip() -> None:
            while True:
                header, _ = caller.next()
                if isinstance(header, calls.Result) and header.id in sent:
                    sent.discard(header.id)
                    caller.send(calls.Ack(b"", [header.id]))
                    return

        rates = []
        for window in range(windows + 1):
            began = time.perf_counter()
            for _ in range(5 * places):
                round_trip()
                sent.add(self.send(caller, endpoint_id))
            if window:
                rates.append(5 * places * 100.0 / (time.perf_counter() - began))
        while sent:
            round_trip()
        return sorted(rates)[len(rates) // 2]
