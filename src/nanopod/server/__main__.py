"""`python -m nanopod.server --data-dir D`: the server process in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

from nanopod.model.errors import NanopodError
from nanopod.model.layout import Layout

DATABASE_VARIABLE: Final = "NANOPOD_DATABASE_URL"
"""Where the database is, if not in the data directory. A URL may hold a password, so it is never an argument here."""


async def _run(args: argparse.Namespace) -> None:
    from nanopod.server.assemble import Options, Server

    options = Options(
        os.environ.get(DATABASE_VARIABLE) or None, args.test_clock, args.block_s, args.early_start,
        vast_routes=args.vast_routes, faults=args.faults,
    )  # fmt: skip
    server = Server(Layout(args.data_dir.absolute()), options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    # What is loaded now stays: keep the collector from walking it again and again.
    gc.collect()
    gc.freeze()
    await server.run()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's loop where there is a wheel for the platform, asyncio's elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 after a clean stop, 2 when its settings cannot work, 1 for anything else."""
    parser = argparse.ArgumentParser(prog="python -m nanopod.server", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the cloud's data directory")
    parser.add_argument("--test-clock", action="store_true", help="a clock that stands still until it is advanced")
    parser.add_argument("--block-s", type=int, help="seconds of a block of a new cluster; divides 60")
    parser.add_argument("--early-start", action=argparse.BooleanOptionalAction, help="run before the first own block")
    parser.add_argument("--vast-routes", action="store_true", help="serve the routes of Vast's Deployments API as well")
    parser.add_argument("--faults", action="store_true", help="let POST /v1/faults break things on purpose")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    args = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=args.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    os.umask(0o077)  # whatever this process makes is its owner's alone
    # Short pieces of work alternate between the loop and the store's threads; 5 ms (the default) of waiting for one
    # long read would be most of the time it takes to wake a worker.
    sys.setswitchinterval(0.0005)
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_run(args))
    except NanopodError as error:
        logging.getLogger("nanopod.server").critical("server=cannot start reason=%s", error.message)
        return 2 if error.status < 500 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
