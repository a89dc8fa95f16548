"""The instances of this machine: brought from what is to what is wanted, each by its own life (`machine`)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nanopod.model.endpoint import Failure, InstanceSpec, ObservedInstance
from nanopod.model.layout import Layout
from nanopod.model.wire import SecretValues, ShutdownNotice
from nanopod.node import (
    bundle,
    environment,
    files,
    guests,
    launch,
    leftovers,
    preparing,
    records,
    remodelled,
    secrets,
    updates,
)
from nanopod.node.held import Held, NotRunning
from nanopod.node.inventory import Inventory
from nanopod.node.machine import (
    Admitted,
    Adopted,
    Event,
    Instruction,
    Life,
    Prepared,
    Started,
    Tick,
    Trouble,
    UnknownTransition,
    Unwanted,
)  # fmt: skip
from nanopod.node.notices import Notices
from nanopod.node.storage import furnishing
from nanopod.node.storage.errors import GivenUp, StorageFailed
from nanopod.node.storage.storage import Storage
from nanopod.node.zygotes import Fork, Zygotes

STARTS_MIN: Final = 4
FORGET_S: Final = 60.0
"""An ended instance that nobody wants is reported so long, then forgotten."""
SWEEP_S: Final = 60.0
INTRODUCE_S_MAX: Final = 1.0
ASK_TRIES: Final = 4
BOOT_S_MAX: Final = 2.0
"""A machine's start-up is looked at closely for so long, then as often as everything else."""
BUILDS_MAX: Final = 2
"""Instances that install packages or run commands before they start, at once."""
FETCHES_MAX: Final = 32
"""Instances that may wait for their files at once."""
_log: Final = logging.getLogger("nanopod.node.fleet")


class Fleet:
    """All instances of one node. Everything here runs on one event loop; slow work goes to threads."""

    def __init__(self, layout: Layout, node_id: str, machine: Inventory, on_change: Callable[[], None]) -> None:
        self.instances: dict[str, Held] = {}
        self._layout = layout
        self._node_id = node_id
        self._on_change = on_change
        self._gateways: tuple[str, ...] = (f"unix:{layout.gateway_socket}",)
        self._machine = machine
        self._room = asyncio.Semaphore(max(STARTS_MIN, machine.cpus))
        self._builds = asyncio.Semaphore(BUILDS_MAX)
        self._fetches = asyncio.Semaphore(FETCHES_MAX)
        self.storage = Storage(layout)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._local = os.environ.get("NANOPOD_LOCAL") == "1" and os.environ.get("NANOPOD_LOCAL_ISOLATE") != "1"
        self._sweep_at = 0.0
        self._notices = Notices()
        self.zygotes = Zygotes()
        self.ask: Callable[[str], Awaitable[SecretValues]] | None = None
        """Asks the server for the secrets of an instance."""
        self._announced: Mapping[str, ShutdownNotice] = {}
        self._heard = False
        """The server said what it wants since this agent runs; before that, what was announced stays."""

    def observed(self) -> list[ObservedInstance]:
        """The whole truth."""
        return [held.observed() for held in self.instances.values()]

    # --- after a restart ---

    async def recover(self) -> None:
        """Find out what became of the instances that an earlier agent started."""
        found = [path for path in self._layout.instances.iterdir() if path.is_dir()]
        await asyncio.gather(*(self._recover(path) for path in found))

    async def _recover(self, directory: Path) -> None:
        start = records.read_start(directory)
        if start is None:
            return
        held = self._hold(start.instance, wanted=False)
        epoch = start.instance.epoch
        if not (directory / files.LOCK).exists():
            return  # it was never started: it waits until the server wants it (again)
        running = await self._introduced(directory, epoch)
        if running is not None and await self._answers(directory, running):
            held.running, held.begun = running, True
            held.settled.set()
            held.boot.look(directory, epoch)
            _log.info("instance=%s epoch=%d adopted pid=%d", start.instance.instance_id, epoch, running.pid)
            self._event(held, Adopted(running.pid))
            return
        held.running = running
        await asyncio.to_thread(launch.kill, start.instance.instance_id, running)
        self._event(held, launch.exited(directory, epoch))

    async def _answers(self, directory: Path, running: records.Running) -> bool:
        """True when this very shim lives and talks; a busy machine gives it several chances."""
        for _ in range(ASK_TRIES):
            if not launch.is_alive(running):
                return False
            if await launch.ask(directory, "ping") is not None:
                return True
            await asyncio.sleep(0.05)
        return False

    async def _introduced(self, directory: Path, epoch: int) -> records.Running | None:
        """instance.json of this epoch; a shim that was just started has a moment to write it."""
        limit = time.monotonic() + INTRODUCE_S_MAX
        while True:
            running = records.read_running(directory)
            if running is not None and running.epoch == epoch:
                return running
            lock = launch.try_lock(directory)
            if lock is not None:
                os.close(lock)
                return None
            if time.monotonic() > limit:
                return None
            await asyncio.sleep(0.01)

    # --- what is wanted ---

    def converge(
        self,
        wanted: Sequence[InstanceSpec],
        gateways: tuple[str, ...],
        notices: Mapping[str, ShutdownNotice] | None = None,
        killed: Collection[str] = (),
    ) -> None:
        """Run exactly these: start what is missing, replace older epochs, stop the rest (the `killed` ones hard)."""
        if gateways:
            self._gateways = gateways
        self._announced, self._heard = notices or {}, True
        wanted = [spec for spec in wanted if spec.instance_id not in killed]
        names = {spec.instance_id for spec in wanted}
        for instance_id in killed:
            if (doomed := self.instances.get(instance_id)) is not None and not doomed.life.is_over:
                self._stop_hard(doomed)
        for instance_id, held in list(self.instances.items()):
            if instance_id not in names:
                held.next = None
                self._unwanted(held, "no longer wanted")
        for spec in wanted:
            self._want(spec)
        for instance_id, held in self.instances.items():
            if held.wanted:  # one that is being stopped is told nothing new
                self._notices.tell(instance_id, self._announced.get(instance_id))
        self._on_change()

    def _stop_hard(self, held: Held) -> None:
        """Its time is over: it gets no grace."""
        if held.doomed:
            return
        held.next, held.wanted, held.doomed = None, False, True
        if held.life.state != "stopping":
            self._event(held, Unwanted("its time is over"))
        elif held.running is not None:
            self._kill_doomed(held)  # it was told to end before, with grace

    def _kill_doomed(self, held: Held) -> None:
        _log.info("instance=%s killed: its time is over", held.spec.instance_id)
        with contextlib.suppress(OSError):
            # Should this agent end before the instance has, the next one finds that it was meant to.
            verdict = records.Verdict(held.spec.epoch, signal=9, asked=True, reason="its time is over", at=time.time())
            records.write_verdict(held.directory, verdict)
        self._spawn(asyncio.to_thread(launch.kill, held.spec.instance_id, held.running))

    def named(self, name: str) -> str:
        """The id of the running instance with this name or id. Raises `NotRunning`."""
        if name in self.instances:
            return name
        running = [held for held in self.instances.values() if held.life.state == "running"]
        found = [held.spec.instance_id for held in running if held.spec.name == name]
        if len(found) != 1:
            why = "several instances have that name: use an id" if found else "it does not run on this machine"
            raise NotRunning(f"instance {name}: {why}")
        return found[0]

    def running_directory(self, instance_id: str) -> Path:
        """Where an instance runs. Raises `NotRunning` for one that does not."""
        held = self.instances.get(instance_id)
        if held is None or held.running is None or held.life.state not in ("running", "stopping"):
            phase = held.life.phase if held is not None else "not known"
            raise NotRunning(f"instance {instance_id} does not run on this machine (it is {phase})")
        return held.directory

    def _want(self, spec: InstanceSpec) -> None:
        held = self.instances.get(spec.instance_id)
        if held is None:
            directory = self._directory(spec)
            ended = records.read_verdict(directory)
            held = self._hold(spec)
            if ended is not None and ended.epoch >= spec.epoch:
                # It ran and ended already; an epoch does not run twice.
                self._event(held, launch.exited(directory, spec.epoch))
                return
        elif spec.epoch > held.spec.epoch:
            held.next = spec
            self._unwanted(held, f"replaced by epoch {spec.epoch}")
            return
        elif spec.epoch < held.spec.epoch:
            _log.warning(
                "instance=%s epoch=%d refused: epoch %d is known", spec.instance_id, spec.epoch, held.spec.epoch
            )
            return
        elif updates.is_swap(held.spec, spec):
            held.coming = spec
            if not held.swapping:
                held.swapping = True
                self._spawn(self._swap(held))
        elif remodelled.is_change(held.spec, spec):
            held.coming = spec
            preparing.remodel(held, self.storage, self._layout, self.ask, self._spawn)
        held.wanted, held.forget_at = True, None
        if held.life.state == "queued" and not held.begun:
            held.begun = True
            self._spawn(self._begin(held))

    async def _swap(self, held: Held) -> None:
        """Have the worker take newer code; one that cannot is ended, and started anew with it by the server."""
        while (spec := held.coming) is not None and held.life.state == "running":
            held.coming = None
            why = await updates.swap(held.directory, spec, self._layout)
            held.spec = spec
            if why:
                _log.info("instance=%s new code needs a new worker: %s", spec.instance_id, why)
                await launch.ask(held.directory, "stop", reason=f"its new code needs a new worker: {why}")
        held.swapping = False

    def _unwanted(self, held: Held, reason: str) -> None:
        first, held.wanted = held.wanted, False
        if held.life.is_over:
            if held.next is not None:
                self._replace(held)
            elif first or held.forget_at is None:
                held.forget_at = time.monotonic() + FORGET_S
                self._event(held, Unwanted(reason))
        elif held.life.state != "stopping":
            self._event(held, Unwanted(reason))

    def _replace(self, held: Held) -> None:
        """The epoch is over and a newer one wanted: its directory is emptied, the log goes on."""
        spec = held.next
        assert spec is not None
        self.instances.pop(spec.instance_id, None)
        launch.strip(held.directory)
        for name in (files.EXIT, files.FAILURE):
            (held.directory / name).unlink(missing_ok=True)
        self._want(spec)

    def _hold(self, spec: InstanceSpec, *, wanted: bool = True) -> Held:
        held = Held(
            spec, self._directory(spec), Life(spec.instance_id, spec.epoch, spec.stop_s), since=time.time(),
            wanted=wanted,
        )  # fmt: skip
        self.instances[spec.instance_id] = held
        return held

    def _directory(self, spec: InstanceSpec) -> Path:
        name = spec.instance_id
        assert name and "/" not in name and not name.startswith("."), "ids are plain names"
        return self._layout.instances / name

    # --- one instance ---

    def _event(self, held: Held, event: Event) -> None:
        life = held.life
        before = life.state
        try:
            instructions = life.handle(event, time.monotonic())
        except UnknownTransition:
            _log.exception("instance=%s event=%s", life.instance_id, type(event).__name__)
            return
        if life.state != before:
            held.since = time.time()
            _log.info(
                "instance=%s epoch=%d %s -> %s%s",
                life.instance_id, life.epoch, before, life.state, f": {life.reason}" if life.reason else "",
            )  # fmt: skip
            self._on_change()
            if life.state == "running":
                self._spawn(self._attend(held))
                if held.coming is not None and held.spec.app.kind == "model":
                    preparing.remodel(held, self.storage, self._layout, self.ask, self._spawn)
            elif held.models is not None:
                held.models.end()
        if life.state not in ("queued", "preparing", "starting"):
            held.settled.set()
        for instruction in instructions:
            self._do(held, instruction)
        if life.is_over and life.state != before:
            self._notices.close(life.instance_id)
            held.forget_at = None if held.wanted else time.monotonic() + FORGET_S
            if held.next is not None:
                self._replace(held)
            elif not held.wanted:
                self._event(held, Unwanted(life.reason))

    def _do(self, held: Held, instruction: Instruction) -> None:
        if instruction is Instruction.PREPARE:
            self._spawn(self._prepare(held))
        elif instruction is Instruction.ABORT:
            held.stop.set()
        elif instruction is Instruction.START:
            self._spawn(self._start(held))
        elif instruction is Instruction.WATCH:
            self._watch(held)
        elif instruction is Instruction.TERMINATE:
            if held.running is not None and held.doomed:
                self._kill_doomed(held)
            elif held.running is not None:
                launch.terminate(held.running)
        elif instruction is Instruction.KILL:
            self._spawn(asyncio.to_thread(launch.kill, held.spec.instance_id, held.running))
        elif instruction is Instruction.CLEAN and held.directory.is_dir():
            launch.strip(held.directory)

    async def _begin(self, held: Held) -> None:
        """Take one of the places for starting, and keep it until the worker runs."""
        image = held.spec.app.image
        slow = not self._local and bool(image.pip_install or image.apt_get or image.runs or held.spec.image_sha256)
        # Those that install or fetch first have places of their own, so that nobody waits behind them who does not.
        async with self._fetches if furnishing.all_of(held.spec) else self._builds if slow else self._room:
            if held.life.state == "queued":
                self._event(held, Admitted())
                await held.settled.wait()

    async def _prepare(self, held: Held) -> None:
        failure: Failure | None
        around = preparing.Surroundings(self._layout, tuple(self._gateways), self._local, self._machine)
        spec = held.spec
        try:
            image, more = preparing.needs(spec)
            also = furnishing.secrets_of(spec, more)
            values = await secrets.values_of(image, spec.instance_id, self.ask, also)
            held.secrets = dict(values.env) if values is not None else {}
            pairs = values.mounts if values is not None else {}
            await preparing.bring(self.storage, held, around, pairs, self._on_change)
            await asyncio.to_thread(preparing.prepare, held, around, pairs)
        except GivenUp:
            failure = None
        except StorageFailed as error:
            failure = Failure("storage", str(error), user_fault=error.user_fault)
        except bundle.BundleError as error:
            failure = Failure("bundle", str(error), user_fault=error.user_fault)
        except (environment.EnvironmentFailed, guests.BootFailed) as error:
            failure = error.failure
        except OSError as error:
            failure = Failure("bundle", f"the instance's directory cannot be made: {error}", user_fault=False)
        else:
            self._event(held, Prepared())
            return
        if failure is None:
            self._event(held, Trouble(None))
        else:
            self._fail(held, failure)

    async def _attend(self, held: Held) -> None:
        """It runs now: answer its questions, tell it what was announced, see how a machine's start-up goes."""
        instance_id = held.spec.instance_id
        await self._notices.open(instance_id, held.directory, held.facts)
        if self._heard:
            self._notices.tell(instance_id, self._announced.get(instance_id))
        limit = time.monotonic() + BOOT_S_MAX
        while guests.is_machine(held.spec) and not held.boot.ready and time.monotonic() < limit:
            if held.life.state != "running":
                return
            self._look(held)
            await asyncio.sleep(0.01)

    def _look(self, held: Held) -> None:
        if held.boot.look(held.directory, held.spec.epoch):
            held.since = time.time()
            _log.info("instance=%s ready=%s %s", held.spec.instance_id, held.boot.ready, held.boot.note)
            self._on_change()

    async def _start(self, held: Held) -> None:
        directory, instance_id = held.directory, held.spec.instance_id
        try:
            held.running = await self._started(held)
        except launch.StartTrouble as error:
            await asyncio.to_thread(launch.kill, instance_id, records.read_running(directory))
            tail = files.tail_of(directory / files.LOG)
            self._fail(held, Failure("start", str(error), log_tail=tail, user_fault=False))
            return
        self._event(held, Started(held.running.pid))

    async def _started(self, held: Held) -> records.Running:
        """Start the shim, by a fork server where one can be asked. Raises `launch.StartTrouble`."""
        directory, instance_id, epoch = held.directory, held.spec.instance_id, held.spec.epoch
        python, libraries = held.python or sys.executable, held.libraries
        given, held.secrets = held.secrets, {}
        process = launch.start(directory, instance_id, functools.partial(self.zygotes.start, python, libraries), given)
        try:
            running = await launch.started(directory, epoch, process)
        except launch.StartTrouble:
            if not isinstance(process, Fork):
                raise
            _log.warning("instance=%s the fork server did not start it", instance_id)
            await asyncio.to_thread(launch.kill, instance_id, records.read_running(directory))
            return await launch.started(directory, epoch, launch.start(directory, instance_id, None, given))
        if held.python:
            self.zygotes.expect(python, libraries, asyncio.get_running_loop().call_later)
        return running

    def _fail(self, held: Held, failure: Failure) -> None:
        """Nothing of it runs: leave the same traces as one that ran, and report."""
        verdict = records.Verdict(held.spec.epoch, reason=failure.message, phase="preparing", at=time.time())
        with contextlib.suppress(OSError):
            records.write_failure(held.directory, failure)
            records.write_verdict(held.directory, verdict)
        self._event(held, Trouble(failure))

    def _watch(self, held: Held) -> None:
        """Hear at once when the shim ends, whoever its parent is."""
        assert held.running is not None
        loop = asyncio.get_running_loop()
        try:
            fd = os.pidfd_open(held.running.pid)
        except OSError:
            self._spawn(self._ended(held))
            return

        def on_exit() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._spawn(self._ended(held))

        loop.add_reader(fd, on_exit)
        if not launch.is_alive(held.running):
            on_exit()

    async def _ended(self, held: Held) -> None:
        if records.read_verdict(held.directory) is None:
            # The shim was killed and could not look after what its worker left.
            await asyncio.to_thread(launch.kill, held.spec.instance_id, held.running)
        self._event(held, launch.exited(held.directory, held.spec.epoch))

    # --- time ---

    def tick(self, now: float) -> None:
        """Let time pass for everything; a few times a second."""
        for instance_id, held in list(self.instances.items()):
            self._event(held, Tick())
            if held.life.state == "running" and guests.is_machine(held.spec):
                self._look(held)
            if held.forget_at is not None and now >= held.forget_at and held.life.is_over:
                del self.instances[instance_id]
                self._on_change()
        self._notices.tick(now)
        self.zygotes.tick(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._spawn(asyncio.to_thread(leftovers.sweep, self._layout.instances, frozenset(self.instances)))
            self._spawn(self.storage.sweep())

    def ping(self) -> None:
        """Renew the leases of all shims."""
        for held in self.instances.values():
            if held.life.state in ("running", "stopping") and held.running is not None:
                self._spawn(launch.ask(held.directory, "ping"))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a step failed", exc_info=task.exception())
