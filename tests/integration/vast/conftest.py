"""A cloud with Vast-shaped routes, and the genuine `vastai` package in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bench.peers import Unavailable, python_with

VERSION = "1.9.1"
SCRIPT_S_MAX = 100


@dataclass(frozen=True)
class Cloud:
    """A running cloud. `run` runs a script with the genuine package, pointed at it."""

    url: str
    key: str
    data: Path
    python: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NANOPOD_", "VAST_", "IS_"))}
        return {**kept, "VAST_API_KEY": self.key, "NP_URL": self.url, **more}

    def run(self, script: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.python), str(script), *args],
            capture_output=True, text=True, timeout=SCRIPT_S_MAX, env=self.environment(), cwd=script.parent,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done

    def answer(self, script: Path, *args: str) -> dict[str, object]:
        """What the script printed as its last line, as JSON."""
        lines = self.run(script, *args).stdout.strip().splitlines()
        found: dict[str, object] = json.loads(lines[-1])
        return found


@pytest.fixture(scope="session")
def vast_python() -> Path:
    """An interpreter that has the genuine package; installed once, skipped where the registry cannot be reached."""
    try:
        return python_with(f"vastai-{VERSION}", (f"vastai=={VERSION}",))
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory, vast_python: Path) -> Iterator[Cloud]:
    data = tmp_path_factory.mktemp("vast-cloud")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NANOPOD_", "VAST_", "IS_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanopod", "up", "--data-dir", str(data), "--port", "0", "--json", "--vast-routes"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        facts: dict[str, str] = {}
        for line in process.stdout:
            if line.startswith("{"):
                facts = json.loads(line)
                break
        assert facts, "the cloud said nothing"
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Cloud(facts["url"], Path(facts["key_file"]).read_text().strip(), data, vast_python)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
