"""Forked workers look like started ones, and nothing depends on the fork server."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud
from devloop_stage import Terminal, environment_of, eventually, fork_servers, words_of

pytestmark = pytest.mark.e2e
CODE = """
import os, signal, sys
from nanopod import Deployment

app = Deployment(name="looks")
app.image("").env(OWN="1")
app.configure_autoscaling(min_load=0, max_workers=3, min_scale=WORKERS, cold_mult=1)

@app.remote
def facts():
    import random, threading
    fds = sorted(os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return {
        "argv": len(sys.argv), "script": os.path.basename(sys.argv[0]), "main": sys.modules["__main__"].__spec__.name,
        "orig": sys.orig_argv[1:4], "env": sorted(os.environ), "own": os.environ["OWN"], "path": sys.path[1:],
        "cwd": os.path.basename(os.getcwd()), "flags": list(sys.flags), "umask": os.umask(0o022),
        "signals": {number.name: str(signal.getsignal(number)).split(" at ")[0] for number in signal.valid_signals()
                    if isinstance(number, signal.Signals)},
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "streams": [(s.encoding, s.errors, s.isatty(), s.fileno()) for s in (sys.stdout, sys.stderr)],
        "stdin": sys.stdin.read(), "same_session": os.getsid(0) == os.getsid(os.getppid()) != os.getpid(),
        "kinds": sorted({fd.partition(":")[0].rpartition("/")[2] if ":" in fd else fd.rpartition("/")[2]
                         for fd in fds if "/fd/" not in fd}),
        "threads": sorted({thread.name.rstrip("0123456789_-") for thread in threading.enumerate()}),
    }

@app.remote
def drawn():
    import random
    return [random.random(), os.getpid(), os.environ["NANOPOD_INSTANCE"]]
"""


def look(cloud: Cloud, directory: Path) -> tuple[dict[str, Any], Terminal]:
    terminal = Terminal(cloud, directory)
    path = terminal.write("looks.py", CODE.replace("WORKERS", "1"))
    terminal.good("deploy", path, "--wait")
    return json.loads(terminal.good("run", "--json", "--tag", "default", f"{path}::facts")), terminal


def test_a_forked_worker_looks_like_a_started_one(devloop_cloud: Cloud, tmp_path: Path) -> None:
    eventually(lambda: fork_servers(devloop_cloud), "a fork server")
    eventually(lambda: any("fork server ready" in line for line in devloop_cloud.tail("agent", 500)), "a ready one")
    forked, terminal = look(devloop_cloud, tmp_path)
    (worker,) = terminal.json("ps", "looks")["workers"]
    shim = worker["pid"]
    assert words_of(shim)[3] == "nanopod.node.run"
    assert environment_of(shim)["NANOPOD_INSTANCE"] == worker["id"]
    pid = json.loads(terminal.good("run", "--json", "--tag", "default", "looks.py::drawn"))[1]
    assert words_of(pid)[1:4] == ["-P", "-m", "nanopod.node.worker"]
    assert environment_of(pid)["NANOPOD_INSTANCE"] == worker["id"]
    terminal.good("endpoints", "delete", "looks")
    (tmp_path / "spawned").mkdir()
    with Cloud(tmp_path / "data", env={"NANOPOD_ZYGOTE": "0"}) as plain:
        started, other = look(plain, tmp_path / "spawned")
        assert fork_servers(plain) == []
        other.good("endpoints", "delete", "looks")
    assert {**forked, "env": None} == {**started, "env": None}
    assert set(forked["env"]) ^ set(started["env"]) <= {"NANOPOD_ZYGOTE"}


def test_forked_workers_draw_different_numbers(devloop_cloud: Cloud, tmp_path: Path) -> None:
    terminal = Terminal(devloop_cloud, tmp_path)
    path = terminal.write("looks.py", CODE.replace("WORKERS", "2").replace('"looks"', '"draws"'))
    terminal.good("deploy", path, "--wait")
    eventually(lambda: len([w for w in terminal.json("ps", "draws")["workers"] if w["ready"]]) >= 2, "two workers")
    found: dict[str, float] = {}

    def both() -> bool:
        value, _, name = json.loads(terminal.good("run", "--json", "--tag", "default", f"{path}::drawn"))
        found.setdefault(name, value)
        return len(found) > 1

    eventually(both, "an answer of each worker")
    assert len(set(found.values())) == len(found)
    terminal.good("endpoints", "delete", "draws")


def test_without_its_fork_server_everything_starts_as_ever(tmp_path: Path) -> None:
    with Cloud(tmp_path / "data") as cloud:
        terminal = Terminal(cloud, tmp_path)
        path = terminal.write("looks.py", CODE.replace("WORKERS", "1"))
        (server,) = eventually(lambda: fork_servers(cloud), "a fork server")
        os.kill(server, signal.SIGSTOP)  # it takes requests and answers none
        assert json.loads(terminal.good("run", "--json", f"{path}::drawn"))[1] > 0
        left = fork_servers(cloud)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert json.loads(terminal.good("run", "--json", f"{path}::drawn"))[1] > 0
        eventually(lambda: set(fork_servers(cloud)) - {server, *left}, "another fork server")
