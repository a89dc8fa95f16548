"""Runs Jobs: one machine per try, whose one command is the Job's; its end is seen, retried, and forgotten in time.

A try is an instance in the workspace's default capacity: it waits for time, is placed and ends like every other, and
its log is kept with it. What fails by itself is tried again after 10, 20, 40 ... 360 s, `backoffLimit` times; one that
lost its machine is tried again without being counted.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec

from nanopod.control.choosing import choose_sku, free_name
from nanopod.model.chain import Applied, Instance, Key
from nanopod.model.endpoint import EndpointSpec, ImageSpec
from nanopod.model.errors import NanopodError, NotFound
from nanopod.node.cloudinit import BYTES_MAX
from nanopod.server.api.context import Context
from nanopod.server.api.instance_changes import add, fresh_instance, stop
from nanopod.server.manifests.applying import release
from nanopod.server.manifests.jobs import State, condition, state_of, with_state
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

BACKOFF_S: Final = 10.0
BACKOFF_VARIABLE: Final = "NANOPOD_JOB_BACKOFF_S"
"""Environment of the server: seconds before the second try of a Job."""
BACKOFF_S_MAX: Final = 360.0
PERIOD_S: Final = 30.0
TROUBLE_S: Final = 5.0
TRIES_MAX: Final = 100
"""Of one Job, those that lost their machine included."""
CAPACITY: Final = "default"
Does = Literal["nothing", "start", "complete", "retry", "fail", "stop", "forget"]


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done about a Job. `due`: when to look again; None: when something changes."""

    does: Does
    reason: str = ""
    message: str = ""
    due: float | None = None
    counts: bool = True
    """The try counts against `backoffLimit`."""


def decide(state: State, instance: Instance | None, now: float) -> Step:
    """The next step of a Job whose last try is `instance`. Pure; `now` is the machine's clock."""
    if state.finished_at:
        if state.ttl_s is None:
            return Step("nothing")
        until = state.finished_at + state.ttl_s
        return Step("forget") if now >= until else Step("nothing", due=until)
    late = state.started_at + state.deadline_s if state.deadline_s is not None else None
    if late is not None and now >= late:
        return Step("stop", "DeadlineExceeded", f"it ran longer than activeDeadlineSeconds ({state.deadline_s:g})")
    if not state.instance:
        due = state.next_at if late is None else min(state.next_at, late)
        return Step("start") if now >= state.next_at else Step("nothing", due=due)
    if instance is not None and instance.ended_at is None:
        return Step("nothing", due=late)
    if instance is not None and instance.phase == "ended" and instance.exit_code == 0:
        return Step("complete")
    counts, why = _judge(instance)
    if (counts and state.failed + 1 > state.backoff_limit) or state.tries >= TRIES_MAX:
        return Step("fail", "BackoffLimitExceeded", f"it failed {state.failed + 1} times; the last time: {why}")
    return Step("retry", message=why, counts=counts)


def _judge(instance: Instance | None) -> tuple[bool, str]:
    """(whether a try that did not go well counts, why it did not)."""
    if instance is None:
        return False, "its instance is gone"
    if instance.out_of_time:
        return False, instance.reason
    if instance.failure is not None:
        return instance.failure.user_fault, instance.failure.message
    return True, instance.reason or "it was ended"


def backoff_s(fails: int, base_s: float = BACKOFF_S) -> float:
    """Seconds before the next try after so many failed ones."""
    return min(BACKOFF_S_MAX, base_s * 2.0 ** min(max(0, fails - 1), 10))


def cloud_init_of(state: State) -> str:
    """The start-up of a machine that runs the Job. Raises `ValueError` when it is too long."""
    run = msgspec.to_builtins(state.run)
    data = b"#cloud-config\n" + json.dumps({"nanopod": {"run": run}}).encode()
    if len(data) > BYTES_MAX:
        raise ValueError(f"its command, variables and small files have {len(data)} bytes, at most {BYTES_MAX}")
    return base64.b64encode(data).decode()


class JobRunner:
    """Looks after the Jobs of all workspaces. One per server."""

    def __init__(self, wall: Callable[[], float] = time.time, base_s: float | None = None) -> None:
        self._wall = wall
        self._base_s = float(os.environ.get(BACKOFF_VARIABLE) or BACKOFF_S) if base_s is None else base_s
        self._wake = asyncio.Event()
        self._released: set[str] = set()
        """Jobs that succeeded and that no service waits for; of an earlier process nothing is known: it is tried."""

    def changed(self) -> None:
        """A Job or an instance may have changed."""
        self._wake.set()

    async def run(self, context: Context) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            wait_s = PERIOD_S
            try:
                due = await self.once(context)
                wait_s = min(PERIOD_S, max(0.05, due - self._wall())) if due is not None else PERIOD_S
            except NanopodError as error:
                log.warning("jobs=not looked at reason=%s", error)
                wait_s = random.uniform(1.0, 2.0)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def once(self, context: Context) -> float | None:
        """One look at every Job; when the next one is due."""

        def look(read: Transaction) -> list[tuple[Applied, State, Instance | None]]:
            found = [(row, state) for row in read.applied_all(None, "Job") if (state := state_of(row)) is not None]
            return [(row, state, read.instance(state.instance) if state.instance else None) for row, state in found]

        due: list[float] = []
        for row, state, instance in await context.store.read(look):
            step = decide(state, instance, self._wall())
            if step.due is not None:
                due.append(step.due)
            try:
                if step.does != "nothing":
                    await self._do(context, row, step)
                    due.append(self._wall())
                elif state.succeeded and row.manifest_id not in self._released:
                    await release(context, _acting(row, self._wall()), row.name)
                    self._released.add(row.manifest_id)
            except NanopodError as error:
                log.warning("job=%s workspace=%s %s: %s", row.name, row.workspace_id, step.does, error)
                due.append(self._wall() + TROUBLE_S)
        return min(due, default=None)

    async def _do(self, context: Context, row: Applied, step: Step) -> None:
        now = self._wall()
        # An instance's id is decided outside the transaction, which may be tried twice.
        instance_id = context.new_id("instance")
        why = await context.store.write(lambda write: self._write(context, write, row, step, instance_id, now))
        if why:
            log.info("job=%s workspace=%s %s", row.name, row.workspace_id, why)
        # A Job that was changed and runs anew has services that wait for it once more.
        self._released.discard(row.manifest_id)

    def _write(
        self, context: Context, write: Transaction, row: Applied, step: Step, instance_id: str, now: float
    ) -> str:
        """Do the step if the Job is still as it was; what was done in words."""
        fresh = write.applied(row.workspace_id, "Job", row.name, row.namespace)
        state = state_of(fresh) if fresh is not None else None
        if fresh is None or state is None or fresh.status != row.status:
            return ""
        if step.does == "forget":
            for gone in state.instances:
                found = write.instance(gone)
                if found is not None and found.ended_at is not None:
                    write.delete_instance(gone)
            write.delete_applied(fresh.manifest_id)
            return "forgotten: ttlSecondsAfterFinished is over"
        native = fresh.native
        if step.does == "start":
            state, native = _start(context, write, fresh, state, instance_id, now)
        elif step.does == "complete":
            done = condition("Complete", "CompletionsReached", "its command ended well", now)
            state = _with(state, active=0, succeeded=1, finished_at=now, conditions=(done,), message="succeeded")
        elif step.does == "retry":
            failed = state.failed + (1 if step.counts else 0)
            wait_s = backoff_s(max(1, failed), self._base_s) * random.uniform(0.9, 1.1)
            state = _with(
                state, active=0, failed=failed, instance="", next_at=now + wait_s,
                message=f"tries again in {wait_s:.0f} s: {step.message}",
            )  # fmt: skip
        else:
            if step.does == "stop":
                _stop(context, write, fresh, state)
            failed = state.failed + (1 if step.does == "fail" else 0)
            what = condition("Failed", step.reason, step.message, now)
            state = _with(
                state, active=0, failed=failed, finished_at=now, conditions=(what,), message=step.message
            )  # fmt: skip
        write.put_applied(replace(with_state(fresh, state), native=native, updated_at=now))
        return f"{step.does}: {state.message}" if state.message else step.does


def _start(
    context: Context, write: Transaction, row: Applied, state: State, instance_id: str, now: float
) -> tuple[State, tuple[str, ...]]:
    """Make the instance of the next try."""
    try:
        cloud_init = cloud_init_of(state)
    except ValueError as error:
        what = condition("Failed", "InvalidJob", str(error), now)
        return _with(state, finished_at=now, conditions=(what,), message=str(error)), row.native
    capacity = write.capacity_named(row.workspace_id, CAPACITY)
    if capacity is None:
        raise NotFound(f"workspace {row.workspace_id} has no capacity {CAPACITY!r}: it is gone")
    at = context.clock()
    tries = state.tries + 1
    name = free_name(f"{row.name}-{tries}", lambda one: write.instance_named(row.workspace_id, one) is not None)
    with context.desk.session(write, at) as market:
        asked = EndpointSpec(row.name, kind="machine", image=ImageSpec(query=state.query))
        sku_id = choose_sku(market, write, asked).sku_id
        made = fresh_instance(
            write, instance_id, row.workspace_id, capacity.capacity_id, at, name=name, sku_id=sku_id,
            cloud_init=cloud_init, tags={"job": row.name},
        )  # fmt: skip
        add(write, made, at)
        if sku_id:
            market.ensure_procurement(capacity.capacity_id, sku_id)
        market.changed(capacity.capacity_id)
    instances = (*state.instances, instance_id)
    state = _with(state, active=1, instance=instance_id, tries=tries, instances=instances, message=f"runs as {name}")
    return state, (instance_id,)


def _stop(context: Context, write: Transaction, row: Applied, state: State) -> None:
    found = write.instance(state.instance) if state.instance else None
    if found is not None and found.ended_at is None and found.intent == "run":
        at = context.clock()
        with context.desk.session(write, at) as market:
            stop(write, found, f"Job {row.name} took too long", at)
            market.changed(found.capacity_id)


def _with(state: State, **fields: object) -> State:
    return msgspec.structs.replace(state, **fields)


def _acting(row: Applied, now: float) -> Key:
    """Who changes what follows from a Job: the workspace itself."""
    return Key(row.manifest_id, row.workspace_id, f"Job {row.name}", "", ("admin",), None, now, None, None, None)
