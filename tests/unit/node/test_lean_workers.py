"""A worker of a plain command loads nothing that it does not need: who waits at zero waits for every import."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import sys
from types import SimpleNamespace
from nanopod.model.endpoint import ModelSpec
from nanopod.node.runtime.hosting import make_engine
from nanopod.node.runtime.serving import Models
model = ModelSpec("m", engine="command", argv=("true",))
make_engine(SimpleNamespace(instance=SimpleNamespace(app=SimpleNamespace(model=model, name="m"))))
print(sorted(name for name in sys.modules if name in ("numpy", "yaml", "sqlalchemy", "starlette")))
"""


def test_a_command_is_served_without_what_model_servers_need() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
