"""Every import contract holds, and each has teeth: a violation planted in a copy of the tree is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
PLANTED = [
    ("layers: a deciding room imports an adapter", "scheduler/planted.py", "import nanopod.store", "Rooms are layers"),
    ("layers: siblings know each other", "gateway/planted.py", "import nanopod.node", "Rooms are layers"),
    ("layers: a stray room", "misc/__init__.py", "", "Rooms are layers"),
    ("pure: a clock in the model", "model/planted.py", "import time", "Deciding rooms"),
    ("pure: randomness in a decision", "scheduler/planted.py", "import random", "Deciding rooms"),
    ("pure: a clock in the market", "market/planted.py", "import time", "Deciding rooms"),
    ("pure: a lock in the ledger", "ledger/planted.py", "import threading", "Deciding rooms"),
    ("ports: control sees an adapter", "control/planted.py", "import nanopod.store", "Control sees its own ports"),
    ("client: more than the model", "client/planted.py", "import nanopod.drivers.link.messages", "The client imports"),
    ("gateway: a database", "gateway/planted.py", "import sqlalchemy", "The request path"),
]


def lint(src: Path, config: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(src), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.egg-info")
    )
    return tmp_path / "src"


def test_the_tree_holds_its_contracts(copy: Path) -> None:
    code, said = lint(copy, ROOT / ".importlinter")
    assert code == 0, said


@pytest.mark.parametrize(("file", "line", "contract"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_planted_violation_is_refused(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / "nanopod" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'"""Planted."""\n{line}\n')
    code, said = lint(copy, ROOT / ".importlinter")
    assert code != 0
    broken = [text for text in said.splitlines() if text.strip().endswith("BROKEN")]
    assert any(contract in text for text in broken), said
