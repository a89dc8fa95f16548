"""The agent, `python -m nanopod.node.agent --data-dir D`: makes this machine run what the server wants of it.

It dials the server, says what the machine is and runs, gets the whole wanted set, and converges. Instances are not its
children: while the server or the agent itself is away they go on, and the next agent finds them by what they wrote.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from nanopod import __version__
from nanopod.drivers.link.messages import LinkClosed, MessageLink, dial_for_ever
from nanopod.model.ids import make_id
from nanopod.model.layout import Layout
from nanopod.model.wire import (
    AgentHello,
    AgentWelcome,
    ExecInput,
    ExecOutput,
    ExecStart,
    Heartbeat,
    LogPage,
    LogQuery,
    Message,
    Observed,
    SecretValues,
    Wanted,
)
from nanopod.node import inventory, logs, procs, ssh
from nanopod.node.execs import Execs
from nanopod.node.fleet import Fleet
from nanopod.node.secrets import Asking

HEARTBEAT_S: Final = 5.0
TICK_S: Final = 0.25
OUTPUT_BYTES_PER_S: Final = 16 << 20
"""Of all commands together: the server has more to do, and keeps only the last MiBs of each."""
PACE_S: Final = 0.05
LOG_QUERIES_MAX: Final = 16
LOG_READERS: Final = 2
"""Pages of logs that are read at once, and that may wait."""
EXIT_USAGE: Final = 2
_log: Final = logging.getLogger("nanopod.node.agent")


class Machine(msgspec.Struct, frozen=True):
    """machine.json: who this machine is, made once."""

    machine_id: str
    node_id: str


def identity(path: Path) -> Machine:
    """The machine's ids, from the file or new. A damaged file is replaced: the machine is then a new one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Machine)
    except (OSError, msgspec.MsgspecError):
        machine = Machine(make_id("machine", os.urandom(21)), make_id("node", os.urandom(21)))
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(machine))
        part.replace(path)
        return machine


class Agent:
    """The link to the server, and time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._machine = identity(layout.instances.parent / "machine.json")
        self._inventory = inventory.look(layout.data)
        self._link: MessageLink | None = None
        self._generation = -1
        self._announcing = False
        self.fleet = Fleet(layout, self._machine.node_id, self._inventory, self._changed)
        self._secrets = Asking(self._send)
        self.fleet.ask = self._secrets.ask
        self._ssh = ssh.Front(self.fleet, layout.instances.parent)
        self._execs = Execs(self.fleet.running_directory, self._say)
        self._paced_at = 0.0
        self._queries: set[asyncio.Task[None]] = set()
        self._readers = asyncio.Semaphore(LOG_READERS)

    async def run(self) -> None:
        """Until cancelled. Instances go on without us."""
        self.fleet.zygotes.open()
        await asyncio.gather(self.fleet.recover(), self._ssh.start())
        _log.info(
            "machine=%s node=%s cpus=%d memory_gib=%d gpus=%d instances=%d",
            self._machine.machine_id, self._machine.node_id, self._inventory.cpus,
            self._inventory.memory >> 30, len(self._inventory.gpus), len(self.fleet.instances),
        )  # fmt: skip
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(dial_for_ever(self._layout.agent_socket, self._talk))
                group.create_task(self._beat())
        finally:
            self.fleet.zygotes.close()
            self._ssh.close()

    async def _talk(self, link: MessageLink) -> None:
        """One connection: everything is said anew, everything wanted is heard anew."""
        self._link = link
        self._generation = -1
        sku = self._inventory.sku()
        node = inventory.node_of(self._machine.node_id, self._machine.machine_id, self._inventory)
        link.send(
            AgentHello(
                self._machine.machine_id, procs.boot_id(), __version__, [node], [sku],
                self.fleet.observed(), self._facts(),
            )
        )  # fmt: skip
        _log.info("link=up")
        try:
            async for message in link:
                if isinstance(message, Wanted):
                    self._take(message)
                elif isinstance(message, ExecStart):
                    self._execs.start(message)
                elif isinstance(message, ExecInput):
                    self._execs.take(message)
                elif isinstance(message, SecretValues):
                    self._secrets.take(message)
                elif isinstance(message, LogQuery):
                    self._query(link, message)
                elif not isinstance(message, AgentWelcome):
                    _log.warning("message=%s ignored", type(message).__name__)
        finally:
            self._link = None
            await self._execs.close()
            _log.info("link=down: instances go on")

    def _facts(self) -> dict[str, Any]:
        """What is known of the machine beside its parts."""
        return {**self._inventory.facts, **({"ssh": self._ssh.facts} if self._ssh.facts else {})}

    def _take(self, wanted: Wanted) -> None:
        if wanted.generation < self._generation:
            _log.warning("wanted=refused generation=%d known=%d", wanted.generation, self._generation)
            return
        self._generation = wanted.generation
        self.fleet.converge(wanted.instances, wanted.gateways, wanted.notices, wanted.killed)

    async def _say(self, message: Message) -> None:
        """Send, no faster than the server takes it and than it can be kept. Raises `LinkClosed`."""
        if isinstance(message, ExecOutput):
            now = time.monotonic()
            self._paced_at = max(now, self._paced_at) + len(message.data) / OUTPUT_BYTES_PER_S
            if (early_s := self._paced_at - now) > PACE_S:
                await asyncio.sleep(early_s)
        link = self._link
        if link is None:
            raise LinkClosed("the server is away")
        link.send(message)
        await link.drain()

    def _send(self, message: Message) -> None:
        """Send at once. Raises `LinkClosed` while the server is away."""
        if self._link is None:
            raise LinkClosed("the server is away")
        self._link.send(message)

    def _query(self, link: MessageLink, query: LogQuery) -> None:
        if len(self._queries) >= LOG_QUERIES_MAX:
            link.send(LogPage(query.request_id, error="the machine's agent is busy: ask again in some seconds"))
            return
        task = asyncio.create_task(self._answer(link, query))
        self._queries.add(task)
        task.add_done_callback(self._queries.discard)

    async def _answer(self, link: MessageLink, query: LogQuery) -> None:
        name = query.instance_id
        if not name or "/" in name or name.startswith("."):
            page = LogPage(query.request_id, error=f"instance_id {name[:80]!r} is not an id")
        else:
            async with self._readers:
                page = await asyncio.to_thread(logs.page, self._layout.instances / name, query)
        with contextlib.suppress(LinkClosed):
            link.send(page)

    def _changed(self) -> None:
        """Something about an instance changed: tell the server with this turn of the loop."""
        if not self._announcing:
            self._announcing = True
            asyncio.get_running_loop().call_soon(self._announce)

    def _announce(self) -> None:
        self._announcing = False
        if self._link is not None:
            with contextlib.suppress(LinkClosed):
                self._link.send(Observed(self.fleet.observed()))

    async def _beat(self) -> None:
        beat_at = 0.0
        while True:
            now = time.monotonic()
            self.fleet.tick(now)
            if now >= beat_at:
                beat_at = now + HEARTBEAT_S
                self._announce()
                if self._link is not None:
                    with contextlib.suppress(LinkClosed):
                        self._link.send(Heartbeat(os.getloadavg()[0], inventory.memory_free()))
                self.fleet.ping()
            await asyncio.sleep(TICK_S)


def _lock(path: Path) -> IO[str] | None:
    """The lock that makes this the only agent of the data directory."""
    file = open(path, "a")  # noqa: SIM115 - held until the process ends
    limit = time.monotonic() + 2.0
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > limit:
                return None
            time.sleep(0.05)


async def _main(layout: Layout) -> None:
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(Agent(layout).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


def main(argv: list[str] | None = None) -> int:
    """Run the agent of a data directory until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m nanopod.node.agent", description="Run this machine as a node.")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="the cloud's data directory")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    layout = Layout(Path(args.data_dir).expanduser().absolute())
    try:
        layout.instances.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock(layout.instances.parent / "agent.lock")
    except OSError as error:
        print(f"cannot use {layout.data}: {error.strerror}; choose another with --data-dir", file=sys.stderr)
        return EXIT_USAGE
    if lock is None:
        print(f"another agent already runs in {layout.data}", file=sys.stderr)
        return 1
    with lock:
        asyncio.run(_main(layout))
    _log.info("agent=ended: instances go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
