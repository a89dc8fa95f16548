"""A worker up to where the deployment is imported, `python -P -m bench.reloaded DIR`; see `bench/reloading.py`."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from nanopod.node import zygote


def main(argv: list[str]) -> int:
    """Import a worker's own modules and the deployment in DIR, write when that was done (monotonic clock)."""
    zygote.preload(())
    sys.path.insert(0, argv[1])
    importlib.import_module("deployed")
    Path(argv[1], "done").write_text(repr(time.monotonic()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
