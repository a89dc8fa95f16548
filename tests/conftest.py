"""Shared fixtures. Nothing here talks to anything but this machine."""

from __future__ import annotations

import os

# A test must never meet a cloud, key or profile that the person running it uses for real work.
for name in [name for name in os.environ if name.startswith("NANOPOD_") and not name.startswith("NANOPOD_CHAOS")]:
    del os.environ[name]
