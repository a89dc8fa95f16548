"""A whole cloud keeps its truth in a PostgreSQL database: serve, crash the database, stop, start, serve again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[3]


def command(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command and wait."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100, env=env)


def square(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Deploy the smallest example, unless it is there, and call it."""
    return command(env, str(ROOT / "examples" / "square.py"))


@pytest.mark.timeout(240)
def test_a_cloud_lives_on_it(server: Any, tmp_path: Path) -> None:
    name = "whole_cloud"
    server.psql(f"CREATE DATABASE {name}")
    env = {
        **os.environ, "NANOPOD_HOME": str(tmp_path / "data"), "NANOPOD_DATABASE_URL": server.url(name),
        "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path),
    }  # fmt: skip
    up = ("-m", "nanopod", "up", "--detach", "--json", "--port", "0")
    try:
        began = command(env, *up)
        assert began.returncode == 0, began.stderr
        assert json.loads(began.stdout)["url"]
        assert "square(5) = 25" in square(env).stdout
        assert not (tmp_path / "data" / "nanopod.db").exists()
        server.stop("immediate")
        time.sleep(1.0)
        server.start()
        after = square(env)
        assert "square(5) = 25" in after.stdout, after.stderr
        assert command(env, "-m", "nanopod", "down").returncode == 0
        assert int(server.psql("SELECT COUNT(*) FROM endpoint", name)) == 1
        assert int(server.psql("SELECT COUNT(*) FROM contract", name)) >= 1, "its time was bought"
        assert command(env, *up).returncode == 0
        again = square(env)
        assert "square(5) = 25" in again.stdout, again.stderr
    finally:
        command(env, "-m", "nanopod", "down")
        server.psql(f"DROP DATABASE {name} WITH (FORCE)")
