"""A whole cloud as a subprocess, for benchmarks and end-to-end tests: start, ask, kill parts, prove it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

START_S_MAX = 60.0


def free_port() -> int:
    """A port that nobody uses, below those that the kernel hands out: it is still free when it is listened on."""
    least = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = 10_000 + secrets.randbelow(max(1_000, least - 10_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port on this machine")


class Cloud:
    """`nanopod up` in a directory of its own. Use as a context manager, or `start`, `stop`, `kill_all` by hand."""

    def __init__(
        self,
        data_dir: Path | None = None,
        port: int = 0,
        env: dict[str, str] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="np-") if data_dir is None else None
        self.data_dir = data_dir if data_dir is not None else Path(self._own.name if self._own else ".") / "data"
        self.port = port or free_port()
        self.flags = flags
        self.mark = secrets.token_hex(8)
        self.env = {**os.environ, "NANOPOD_TEST_MARK": self.mark, **(env or {})}
        self.env.pop("NANOPOD_URL", None)
        self.up: subprocess.Popen[str] | None = None
        self.url = ""
        self.key = ""

    def __enter__(self) -> Cloud:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._own:
            self._own.cleanup()

    def start(self) -> dict[str, Any]:
        """Start and wait until ready; returns what `up --json` printed. A restart reuses port and directory."""
        self.up = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nanopod",
                "up",
                "--json",
                "--port",
                str(self.port),
                "--data-dir",
                str(self.data_dir),
                *self.flags,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            process_group=0,  # Ctrl-C in a terminal is for whoever started this; they end it
        )
        assert self.up.stdout and self.up.stderr
        line = self.up.stdout.readline()
        if not line:
            raise RuntimeError(f"nanopod up failed: {self.up.stderr.read()}")
        facts: dict[str, Any] = json.loads(line)
        self.url = facts["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.key = Path(facts["key_file"]).read_text().strip()
        return facts

    def stop(self, wait_s_max: float = 60.0) -> None:
        """Drain and end; kills what is left after the limit."""
        if self.up is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.up.send_signal(signal.SIGTERM)
        try:
            self.up.wait(wait_s_max)
        except subprocess.TimeoutExpired:
            self.up.kill()
            self.up.wait(10)
        for stream in (self.up.stdout, self.up.stderr):
            if stream:
                stream.close()
        self.up = None

    def client_env(self) -> dict[str, str]:
        """Environment in which the SDK and the command line talk to this cloud."""
        return {**self.env, "NANOPOD_URL": self.url, "NANOPOD_API_KEY": self.key}

    # --- its processes ---

    def processes(self) -> dict[int, list[str]]:
        """{pid: argv} of every living process that inherited this cloud's mark, whoever its parent is now."""
        needle = f"NANOPOD_TEST_MARK={self.mark}".encode()
        found: dict[int, list[str]] = {}
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if needle in Path(entry.path, "environ").read_bytes():
                    argv = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                    if Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                        found[int(entry.name)] = [word.decode(errors="replace") for word in argv if word]
        return found

    def pids(self, module: str) -> list[int]:
        """Pids of the processes started as `python -m <module>`, such as `nanopod.node.worker`."""
        return [pid for pid, argv in self.processes().items() if module in argv]

    def kill(self, module: str) -> int | None:
        """SIGKILL one process of `module`; returns its pid, None when there is none."""
        pids = self.pids(module)
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
            return pids[0]
        return None

    def kill_all(self) -> None:
        """SIGKILL everything at once."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.up is not None:
            self.up.wait(10)
            self.up = None

    # --- its API ---

    def api(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        """One management call; raises `urllib.error.HTTPError` for a refusal."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def serve(self, model_id: str = "nanopod-tiny", **spec: Any) -> dict[str, Any]:
        """Create a model endpoint; `scale=`, `model=` override parts of the specification. Returns the endpoint."""
        model = {"model_id": model_id, "engine": "reference", "source": model_id, "slots": 8, **spec.pop("model", {})}
        name = spec.pop("name", model_id.rpartition("/")[2].lower())
        body = {"name": name, "kind": "model", "model": model, **spec}
        return dict(self.api("POST", "/v1/endpoints", body)["endpoint"])

    def wait_for(self, test: Callable[[], Any], wait_s_max: float = 60.0, what: str = "") -> Any:
        """Poll until `test` is true; its value. Raises `TimeoutError` naming `what`."""
        limit = time.monotonic() + wait_s_max
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if found := test():
                    return found
            if time.monotonic() > limit:
                raise TimeoutError(f"{what or test} did not come true within {wait_s_max:.0f} s")
            time.sleep(0.05)

    def wait_ready(self, name: str, count: int = 1, wait_s_max: float = 90.0) -> dict[str, Any]:
        """Wait until the endpoint has at least `count` ready instances."""

        def ready() -> dict[str, Any] | None:
            endpoint = dict(self.api("GET", f"/v1/endpoints/{name}"))
            if endpoint.get("status") == "failed":
                raise RuntimeError(f"{name} failed: {endpoint.get('failure')}")
            return endpoint if endpoint["ready_instance_count"] >= count else None

        return dict(self.wait_for(ready, wait_s_max, f"{name} with {count} ready instances"))

    def usage_records(self) -> list[dict[str, Any]]:
        """Every usage record, paged through."""
        records: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.api("GET", f"/v1/usage/records?limit=200{after}")
            records += page["data"]
            if not page["has_more"]:
                return records
            after = f"&starting_after={page['cursor']}"

    def tail(self, name: str, lines: int = 30) -> Iterator[str]:
        """The last lines of a process's log."""
        yield from (self.data_dir / "logs" / f"{name}.log").read_text(errors="replace").splitlines()[-lines:]
