"""Faults on purpose: only in a cloud that was started with `nanopod up --faults`."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Final, Literal, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.live import Live
from nanopod.model.chain import Instance, Key
from nanopod.model.errors import Conflict, Denied, Invalid, NotFound
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.instance_changes import stop
from nanopod.server.faults import Faults, kill_worker
from nanopod.store.transaction import Transaction

Kind = Literal["preempt", "kill", "slow", "drop_link", "fail_context", "clear"]
SECONDS_MAX: Final = 3600.0


class FaultWish(msgspec.Struct, frozen=True):
    """A fault. `preempt`, `kill`, `drop_link` hit `instance_id`, else one ready worker of `endpoint`, else any.

    `seconds`: the notice before a preemption, the delay of `slow`. `drop_link` with neither cuts callers' links.
    """

    kind: Kind
    instance_id: str = ""
    endpoint: str = ""
    context: str = ""
    seconds: float | None = None


class FaultAnswer(TypedDict):
    """What was broken."""

    object: Literal["fault"]
    kind: str
    instance_ids: list[str]


def _victim(read: Transaction, live: Live, key: Key, wish: FaultWish) -> Instance:
    """The instance that a fault hits. Raises `NotFound` or `Conflict`."""
    if wish.instance_id:
        found = read.instance(wish.instance_id)
        if found is None or found.workspace_id != key.workspace_id or found.ended_at is not None:
            raise NotFound(f"instance_id: there is no live instance {wish.instance_id!r} here", field="instance_id")
        return found
    endpoint_id = ""
    if wish.endpoint:
        endpoint = read.endpoint_named(key.workspace_id, wish.endpoint)
        if endpoint is None:
            raise NotFound(f"endpoint: there is no endpoint {wish.endpoint!r} in this workspace", field="endpoint")
        endpoint_id = endpoint.endpoint_id
    ready = [
        one for one in read.instances_live()
        if one.workspace_id == key.workspace_id and one.endpoint_id and one.intent == "run"
        and live.ready(one.instance_id, one.epoch) and endpoint_id in ("", one.endpoint_id)
    ]  # fmt: skip
    if not ready:
        raise Conflict("no worker is ready at present: wait for one, then break it")
    # One that is about to go is hit only when there is no other: nobody would notice.
    return min(ready, key=lambda one: (bool(one.warned), one.instance_id))


async def inject(context: Context, request: Request, key: Key) -> Response:
    """Break something."""
    faults = context.faults
    if faults is None:
        raise Denied(
            "faults can be injected only in a cloud that was started for them: nanopod up --faults (app.test() does)"
        )
    wish = await body_as(request, FaultWish)
    if wish.seconds is not None and not 0 <= wish.seconds <= SECONDS_MAX:
        raise Invalid(f"seconds: from 0 to {SECONDS_MAX:g}", field="seconds")
    hit: list[str] = []
    if wish.kind == "clear":
        faults.clear()
    elif wish.kind == "slow":
        faults.slow(wish.seconds or 0.0)
    elif wish.kind == "fail_context":
        if not wish.context:
            raise Invalid("context: name the class that is to fail", field="context")
        faults.fail_context(wish.context)
    elif wish.kind == "drop_link" and not wish.instance_id and not wish.endpoint:
        faults.drop_link("")
    else:
        hit = [await _hit(context, faults, key, wish)]
    return answer({"object": "fault", "kind": wish.kind, "instance_ids": hit})


async def _hit(context: Context, faults: Faults, key: Key, wish: FaultWish) -> str:
    found = await context.store.read(lambda read: _victim(read, context.live, key, wish))
    if wish.kind == "drop_link":
        faults.drop_link(found.instance_id)
    elif wish.kind == "kill":
        if found.pid is None or not kill_worker(found.pid):
            raise Conflict(f"the worker of {found.instance_id} does not run on the server's machine, or ended just now")
    else:
        notice_s = wish.seconds if wish.seconds is not None else 1.0
        at = math.ceil(time.time() + notice_s)
        # By whom: the market would take back at once what its schedule does not say.
        text = json.dumps({"at": at, "leads_s": [], "reason": "preempted (injected)", "by": "fault"})

        def warn(write: Transaction) -> None:
            again = write.instance(found.instance_id)
            if again is not None:
                write.set_instance(again, warned=text)
                write.hint("wanted")
                write.hint("tables")
                write.signal("endpoint", again.endpoint_id, time.time())
                write.signal("deployment", again.deployment_id, time.time())

        await context.store.write(warn)
        faults.keep(asyncio.create_task(_take(context, found.instance_id, notice_s)))
    return found.instance_id


async def _take(context: Context, instance_id: str, notice_s: float) -> None:
    """The notice is over: the instance goes, and whoever wants one makes another."""
    await asyncio.sleep(notice_s)

    def take(write: Transaction) -> None:
        found = write.instance(instance_id)
        if found is not None and found.ended_at is None and found.intent == "run":
            stop(write, found, "preempted (injected)", context.clock())

    await context.store.write(take)


OPERATIONS: Final = (
    Operation(
        "POST", "/v1/faults", inject, "Break something on purpose", body=FaultWish, answer=FaultAnswer,
        errors=(400, 404, 409), text="Only in a cloud that was started with `nanopod up --faults`, for tests.",
    ),
)  # fmt: skip
