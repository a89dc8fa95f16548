"""From what was asked to rows: checks a spawned call before it is kept, so that what is kept can be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nanopod.model import calls, codec
from nanopod.model.chain import Endpoint, Key
from nanopod.model.endpoint import FunctionSpec
from nanopod.model.errors import Conflict, Denied, Invalid, NotFound
from nanopod.server.calls import wire
from nanopod.server.calls.payloads import Payloads
from nanopod.store.calls import NewCall
from nanopod.store.transaction import Transaction

TIMEOUT_S_MAX: Final = 7 * 86_400.0


class CallOptions(msgspec.Struct, frozen=True):
    """How a call is made; seconds. What is left out is as the function says. `webhook`: where its result is posted."""

    timeout: float | None = None
    queue_timeout: float | None = None
    priority: int | None = None
    deadline: float | None = None
    idempotent: bool = False
    workload: float | None = None
    model: str = ""
    webhook: str = ""
    gpu: list[str] = []
    region: str = ""


class CallWish(msgspec.Struct, frozen=True):
    """A call to be made: `endpoint` by id, `name` or `name:tag`; arguments as JSON."""

    endpoint: str
    function: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: CallOptions = CallOptions()


@dataclass(frozen=True, slots=True)
class Draft:
    """A call that was read from a request; `payload` is inline or in a blob already."""

    header: calls.Call
    size: int
    payload: bytes | None
    blob: str


def header_of(wish: CallWish, call_id: bytes, now: float) -> calls.Call:
    """The header of a call that was asked for as JSON. What the function says is filled in later."""
    options = wish.options
    for name, value in (("timeout", options.timeout), ("queue_timeout", options.queue_timeout)):
        if value is not None and not value > 0:
            raise Invalid(f"options.{name}: {value!r} is not a number of seconds above 0", field=f"options.{name}")
    return calls.Call(
        call_id, endpoint=wish.endpoint, function=wish.function,
        workload=100.0 if options.workload is None else options.workload,
        timeout_s=-1.0 if options.timeout is None else options.timeout,
        queue_timeout_s=-1.0 if options.queue_timeout is None else options.queue_timeout,
        idempotent=options.idempotent, priority=options.priority or 0,
        deadline_at=now + options.deadline if options.deadline is not None else 0.0, route_key=options.model,
        gpus=options.gpu, region=options.region,
    )  # fmt: skip


def arguments(wish: CallWish) -> bytes:
    """The payload of a call that was asked for as JSON."""
    return codec.encode((tuple(wish.args), wish.kwargs), path="args")


def derived_id(*words: str) -> bytes:
    """A call id that is the same each time it is asked for: of a repeated request, of a schedule's tick."""
    return hashlib.sha256("\0".join(words).encode()).digest()[: wire.ID_BYTES]


async def draft(payloads: Payloads, header: calls.Call, payload: bytes) -> Draft:
    """Keep a large payload in its blob. Raises `Invalid` when it is too large for a call."""
    if len(payload) > calls.INLINE_BYTES_MAX:
        limit = calls.INLINE_BYTES_MAX >> 20
        raise Invalid(
            f"the arguments of {header.function} take {len(payload) >> 20} MiB; at most {limit} MiB travel with a call",
            field="args",
        )
    inline, blob = await payloads.keep(payload)
    return Draft(header, len(payload), inline, blob)


@dataclass
class Maker:
    """Turns drafts into rows, in one transaction, for one key."""

    write: Transaction
    key: Key
    origin: str
    now: float
    schedule_id: str = ""
    _known: dict[tuple[str, str], tuple[Endpoint, FunctionSpec]] = field(default_factory=dict)

    def make(self, drafts: Sequence[Draft], webhook: str = "") -> list[NewCall]:
        """Keep the calls; those that were kept by an earlier request of this workspace stay as they are.

        Raises `NotFound`, `Denied` or `Invalid` naming the call, `Conflict` for an id of somebody else's.
        """
        made = [self._row(number, one, webhook) for number, one in enumerate(drafts)]
        known = self.write.add_calls(made)
        if known:
            owners = self.write.calls_known([one.call_id for one in known])
            if any(owner != self.key.workspace_id for owner in owners.values()):
                raise Conflict("a call id is taken; draw another one", field="id")
        return made

    def _row(self, number: int, one: Draft, webhook: str) -> NewCall:
        header = one.header
        endpoint, function = self._target(number, header.endpoint, header.function)
        ready = self._checked(number, header, endpoint, function, one.size)
        return NewCall(
            wire.text_of(header.id), endpoint.workspace_id, endpoint.endpoint_id, function.name, self.key.key_id,
            self.origin, calls.encode(ready), self.now, one.payload, one.blob, self.schedule_id, webhook,
        )  # fmt: skip

    def _target(self, number: int, endpoint: str, function: str) -> tuple[Endpoint, FunctionSpec]:
        found = self._known.get((endpoint, function))
        if found is None:
            found = self._known[endpoint, function] = self._look(number, endpoint, function)
        return found

    def _look(self, number: int, reference: str, name: str) -> tuple[Endpoint, FunctionSpec]:
        read, workspace_id = self.write, self.key.workspace_id
        found = read.endpoint_named(workspace_id, reference)
        if found is None:
            there = ", ".join(one.full_name for one in read.endpoints(workspace_id)[:20]) or "none yet"
            text = f"endpoint: there is no endpoint {reference!r} in this workspace (there are: {there})"
            raise NotFound(_where(number, text), field="endpoint")
        allowed = self.key.endpoints
        if allowed is not None and not {found.name, found.full_name} & set(allowed):
            raise Denied(_where(number, f"this key may not call the endpoint {found.name!r}"), field="endpoint")
        revision = read.revision(found.revision_id)
        functions = {one.name: one for one in revision.spec.functions} if revision is not None else {}
        if name not in functions:
            has = ", ".join(sorted(functions)[:20]) or "none"
            text = f"function: {found.full_name} has no function {name!r}; it has {has}"
            raise NotFound(_where(number, text), field="function")
        return found, functions[name]

    def _checked(
        self, number: int, header: calls.Call, endpoint: Endpoint, function: FunctionSpec, size: int
    ) -> calls.Call:
        timeout_s = function.timeout_s if header.timeout_s < 0 else header.timeout_s
        queue_s = function.queue_timeout_s if header.queue_timeout_s < 0 else header.queue_timeout_s
        if not 0 < timeout_s <= TIMEOUT_S_MAX:
            raise Invalid(_where(number, "timeout: above 0 and at most a week, in seconds"), field="timeout")
        if not 0 <= queue_s <= TIMEOUT_S_MAX:
            raise Invalid(_where(number, "queue_timeout: from 0 to a week, in seconds"), field="queue_timeout")
        if not 0 <= header.depth <= calls.DEPTH_MAX:
            text = f"calls within calls go {calls.DEPTH_MAX} deep at most; does a function spawn itself?"
            raise Invalid(_where(number, text), field="depth")
        if not header.workload >= 0:
            raise Invalid(_where(number, "workload: a number not below 0"), field="workload")
        return msgspec.structs.replace(
            header, endpoint=endpoint.endpoint_id, timeout_s=timeout_s, queue_timeout_s=queue_s,
            size=size if size > calls.PART_BYTES else 0, on_behalf=self.key.key_id, parent=b"", session="",
        )  # fmt: skip


def _where(number: int, text: str) -> str:
    return f"call {number}: {text}" if number else text
