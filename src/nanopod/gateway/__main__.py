"""`python -m nanopod.gateway`: one gateway process in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import re
import signal
import sys
from pathlib import Path
from typing import Final

from nanopod.drivers.link.messages import MessageLink, dial_for_ever
from nanopod.gateway.process import Gateway
from nanopod.model.errors import NanopodError
from nanopod.model.layout import Layout

KEPT_BYTES_MAX: Final = 64 << 20
"""Freed memory at the top of the heap beyond this goes back to the system."""
MAPPED_BYTES_MIN: Final = 16 << 20
"""Blocks from this size on are mapped, and unmapped when they are freed."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's loop where there is a wheel for the platform, asyncio's elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8900")
    return host.strip("[]"), int(port)


def _gateway_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise argparse.ArgumentTypeError("a gateway id is made of at most 64 letters, digits, `_` and `-`")
    return text


def _keep_freed_memory() -> None:
    """Let large payloads reuse memory that earlier ones had.

    glibc gives it back to the kernel after every MiB otherwise, and most of a large call's time goes into getting it
    again, page by page. What is kept is bounded by `KEPT_BYTES_MAX`.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)


async def _serve(layout: Layout, host: str, port: int, gateway_id: str) -> None:
    loop = asyncio.get_running_loop()
    gateway = Gateway(layout, gateway_id, loop)
    servers = await gateway.listen(host, port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def on_control(link: MessageLink) -> None:
        gateway.linked(link)
        try:
            async for message in link:
                gateway.on_message(message)
        finally:
            gateway.unlinked()

    tasks = [
        asyncio.create_task(dial_for_ever(layout.control_socket, on_control)),
        asyncio.create_task(gateway.ticking()),
        asyncio.create_task(gateway.draining()),
    ]
    # What lives as long as the process is not looked at again and again, and young garbage less often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    logging.info("gateway %s listens on %s", gateway_id, ", ".join(gateway.addresses))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        # One of the loops that the process lives by has failed: better restarted than half alive.
        stopping.cancel()
        for task in tasks:
            if task.done():
                task.result()
    for server in servers:
        server.close()
    tasks[2].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[2]
    await gateway.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    layout.gateway_socket.unlink(missing_ok=True)


def main() -> int:
    """Run until SIGTERM. Exit codes: 0 drained, 2 the settings cannot work."""
    parser = argparse.ArgumentParser(prog="python -m nanopod.gateway", description="The front door of a nanopod cloud.")
    parser.add_argument("--data-dir", required=True, type=Path, help="the cloud's data directory")
    parser.add_argument("--listen", default=("127.0.0.1", 8900), type=_address, help="HOST:PORT (127.0.0.1:8900)")
    parser.add_argument("--gateway-id", default="gw_local", type=_gateway_id, help="the same after a restart")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    host, port = args.listen
    _keep_freed_memory()
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_serve(Layout(args.data_dir.absolute()), host, port, args.gateway_id))
    except NanopodError as error:
        print(f"nanopod gateway: {error.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
