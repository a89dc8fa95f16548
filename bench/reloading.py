"""How soon changed code answers: a fork of a loaded interpreter against a new one, and `nanopod dev` end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cloud import Cloud
from bench.figures import Figure, median, say
from bench.start import repeated, timed

ROOT = Path(__file__).parent.parent
WAIT_S_MAX = 60.0
LIBRARIES = (
    "aiohttp",
    "cryptography.hazmat.primitives.ciphers.aead",
    "numpy",
    "openai",
    "rich.console",
    "sqlalchemy.orm",
)
"""About a second of imports, as deployments have them; heavier ones (torch) make the ratio smaller."""
DEPLOYED = """
from nanopod import Deployment
{imports}
app = Deployment(name="bench-reload")

@app.remote
async def square(x: int) -> int:
    return x * x
"""
EDITED = """
import os
from nanopod import Deployment

app = Deployment(name="bench-dev")
app.image("")
app.configure_autoscaling(min_load=0, max_workers=2)
{more}
@app.remote(concurrency=4)
async def answer() -> list[int]:
    return [{number}, os.getpid()]
"""


def until(path: Path) -> None:
    """Wait for a file."""
    limit = time.monotonic() + WAIT_S_MAX
    while not path.exists():
        if time.monotonic() > limit:
            raise TimeoutError(f"{path.name} did not come within {WAIT_S_MAX:.0f} s")
        time.sleep(0.002)


def reload_vs_spawn(*, quick: bool = False) -> Iterator[Figure]:
    """From the agent's request until the deployment's module is imported in its worker."""
    from nanopod.node.zygotes import Server

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    loaded, plain = Server(sys.executable, LIBRARIES), Server(sys.executable, ())
    try:
        for server in (loaded, plain):
            server.start()
            limit = time.monotonic() + WAIT_S_MAX
            while not server.ready:
                server.look(time.monotonic())
                if server.refused or time.monotonic() > limit:
                    raise RuntimeError(f"the fork server is not ready: {server.refused}")
                time.sleep(0.01)
        rows = [
            (_started(loaded, LIBRARIES), _started(None, LIBRARIES), _started(plain, ()), _started(None, ()))
            for _ in range(3 if quick else 9)
        ]
    finally:
        for server in (loaded, plain):
            server.end()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    for at, name, text, bar in (
        (0, "reload_vs_spawn", "new interpreter and imports of about a second", "<= 0.05"),
        (2, "reload_vs_spawn_light", "new interpreter, no libraries", ""),
    ):
        detail = {
            "fork_ms": round(median([row[at] for row in rows]) * 1000, 2),
            "spawn_ms": round(median([row[at + 1] for row in rows]) * 1000, 1),
        }
        yield Figure(name, median([row[at] / row[at + 1] for row in rows]), "ratio", f"{text}, same run", bar, detail)


def _started(server: object, libraries: tuple[str, ...]) -> float:
    """Seconds of one start; by a fork server, or as a new interpreter."""
    from nanopod.node import files, launch
    from nanopod.node.zygotes import Server

    with tempfile.TemporaryDirectory(prefix="np-") as name:
        directory = Path(name)
        imports = "\n".join(f"import {library}" for library in libraries)
        (directory / "deployed.py").write_text(DEPLOYED.format(imports=imports))
        argv = [sys.executable, "-P", "-m", "bench.reloaded", name]
        env = {**os.environ, "NANOPOD_MODE": "serve", "NANOPOD_INSTANCE": "inst_bench"}
        asked = {"argv": argv, "env": env, "cwd": name, "lease_s": 60.0, "grace_s": 1.0, "fork": server is not None}
        (directory / files.SPEC).write_text(json.dumps({"instance": {"epoch": 1}, "launch": asked}))
        begin = time.monotonic()
        process = launch.start(directory, "inst_bench", server.send if isinstance(server, Server) else None)
        until(directory / files.EXIT)
        done = directory / "done"
        if not done.exists():
            raise RuntimeError(f"it ended before its time: {files.tail_of(directory / files.LOG)}")
        while process.poll() is None:
            time.sleep(0.002)
        return float(done.read_text()) - begin


def dev_reload(*, quick: bool = False) -> Iterator[Figure]:
    """From saving the file to the first answer of the new code, with `nanopod dev` watching it."""
    from nanopod import Deployment

    bare = repeated(lambda: timed([sys.executable, "-c", "pass"]), 9)
    swapped, restarted = [], []
    with Cloud() as cloud, tempfile.TemporaryDirectory(prefix="np-") as name:
        path = Path(name) / "edited.py"
        _write(path, 0, "")
        process = subprocess.Popen(
            [sys.executable, "-m", "nanopod", "dev", str(path), "--tag", "bench"], env=cloud.client_env(), cwd=name,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            while "watching" not in (line := process.stderr.readline()):
                if not line:
                    raise RuntimeError("nanopod dev ended")
            app = Deployment.from_name("bench-dev", "bench", api_key=cloud.key, url=cloud.url)
            call = app.function("answer").remote
            pid = _answer(call, 0)[1]
            for number in range(1, 3 if quick else 8):
                _write(path, number, "")
                took_s, found = _answer(call, number)
                swapped.append(took_s)
                if found != pid:
                    say("a worker was started anew for a function's body")
                pid = found
            for number in range(11, 13 if quick else 16):
                _write(path, number, f"LIMIT = {number}")
                took_s, found = _answer(call, number)
                if found == pid:
                    raise RuntimeError("another statement went into a running worker")
                restarted.append(took_s)
                pid = found
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()
    detail = {"python_ms": round(bare * 1000, 1)}
    yardstick = "python -c pass, same run: python_ms"
    for figure, times in (("dev_reload_ms", swapped), ("dev_reload_ms_new_worker", restarted)):
        spread = {"best_ms": round(min(times) * 1000, 1), "worst_ms": round(max(times) * 1000, 1)}
        yield Figure(figure, median(times) * 1000, "ms", yardstick, "", {**detail, **spread})


def _write(path: Path, number: int, more: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(EDITED.format(number=number, more=more))
    part.replace(path)


def _answer(call: object, number: int) -> tuple[float, int]:
    """(seconds, process) until the code with this number answers."""
    assert callable(call)
    begin = time.monotonic()
    while time.monotonic() - begin < WAIT_S_MAX:
        found, pid = call()
        if found == number:
            return time.monotonic() - begin, pid
        time.sleep(0.001)
    raise TimeoutError(f"the code with {number} did not answer within {WAIT_S_MAX:.0f} s")
