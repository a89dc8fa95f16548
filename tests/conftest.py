"""Shared fixtures, and a watch over what tests start. Nothing here talks to anything but this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import settings

from sweeping import Sweeper

# A test must never meet a cloud, key or profile that the person running it uses for real work.
for name in [name for name in os.environ if name.startswith("NANOPOD_") and not name.startswith("NANOPOD_CHAOS")]:
    del os.environ[name]

# Machines are shared and slow at times: a property is about what is true, not about how long an example takes. A
# pipeline tries the same examples for the same tree; everybody else tries fresh ones on each run.
settings.register_profile("people", deadline=None)
settings.register_profile("pipeline", deadline=None, derandomize=True)
settings.load_profile("pipeline" if os.environ.get("CI") else "people")


def pytest_sessionstart() -> None:
    """From here on every process and directory of a test is known, and swept at the end."""
    # Who ends this run with SIGTERM means what Ctrl-C means: fixtures end what they started.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    Sweeper()


def _room(item: pytest.Item) -> tuple[str, ...]:
    """The directory whose tests share clouds and databases: `e2e`, `integration/node`."""
    parts = item.path.relative_to(Path(__file__).parent).parts
    return parts[:2] if parts[0] == "integration" else parts[:1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """What the tests of a directory share ends with the last of them, not with the run: nothing piles up or leaks."""
    if nextitem is None or _room(item) == _room(nextitem):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runtestprotocol(item, nextitem=None)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
