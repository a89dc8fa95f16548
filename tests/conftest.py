"""Shared fixtures. Nothing here talks to anything but this machine."""

from __future__ import annotations

import os

from hypothesis import settings

# A test must never meet a cloud, key or profile that the person running it uses for real work.
for name in [name for name in os.environ if name.startswith("NANOPOD_") and not name.startswith("NANOPOD_CHAOS")]:
    del os.environ[name]

# Machines are shared and slow at times: a property is about what is true, not about how long an example takes. A
# pipeline tries the same examples for the same tree; everybody else tries fresh ones on each run.
settings.register_profile("people", deadline=None)
settings.register_profile("pipeline", deadline=None, derandomize=True)
settings.load_profile("pipeline" if os.environ.get("CI") else "people")
