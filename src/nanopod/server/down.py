"""`nanopod down`: stop the cloud of a data directory and wait until it is gone."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time

from nanopod.model.errors import NanopodError
from nanopod.model.layout import Layout
from nanopod.server import cloud


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod down`."""
    parser.add_argument("--data-dir", metavar="DIR", help="of the cloud to stop (default: as for `nanopod up`)")
    parser.add_argument("--force", action="store_true", help="kill at once instead of letting running requests finish")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="wait at most this long (default 60 s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def run(args: argparse.Namespace) -> int:
    """Signal the supervisor and wait. Stopping what does not run is success."""
    layout = Layout(cloud.data_directory(args.data_dir))
    state = cloud.read_state(layout)
    if not cloud.is_locked(layout) or state is None:
        _say(args.json, {"stopped": False}, f"no cloud runs in {layout.data}")
        return 0
    begin = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(state["pid"], signal.SIGKILL if args.force else signal.SIGTERM)
    while cloud.is_locked(layout):
        if time.monotonic() - begin > args.timeout:
            raise NanopodError(f"still draining after {args.timeout:.0f} s; `nanopod down --force` kills it")
        time.sleep(0.02)
    took_s = time.monotonic() - begin
    _say(args.json, {"stopped": True, "seconds": round(took_s, 2)}, f"nanopod is down ({took_s:.1f} s)")
    return 0


def _say(as_json: bool, facts: dict[str, object], text: str) -> None:
    print(json.dumps(facts) if as_json else text, file=sys.stdout)
