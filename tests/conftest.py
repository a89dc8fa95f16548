"""Shared fixtures, and a watch over what tests start. Nothing here talks to anything but this machine."""

from __future__ import annotations

import os
import signal

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
