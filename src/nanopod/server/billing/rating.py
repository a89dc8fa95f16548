"""Rates usage: each final record becomes money once, by the plan of its workspace.

A line is everything of one (workspace, month, meter, attributes, plan) so far. Its price is computed from all of its
units and rounded once; what is charged is what that price rose by. So a thousand calls at a third of a micro-dollar
cost 333 of them, whenever they came. The cursor of what was rated moves in the same transaction as the money.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import msgspec

from nanopod.ledger import chart
from nanopod.ledger.charges import exact
from nanopod.ledger.plans import NOT_BILLED, Plan, Usage, find, usage_of
from nanopod.ledger.rating import rounded
from nanopod.ledger.statements import month_of
from nanopod.model.chain import Instance, Revision
from nanopod.model.errors import Invalid, NanopodError
from nanopod.model.wire import MeterRecord
from nanopod.server.billing.charging import Books, charge
from nanopod.store.charges import RatedLine

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH: Final = 250
"""Records that are rated in one transaction: about 25 ms of the writer, for which orders wait."""
OPEN_MAX: Final = 10_000
"""Records of running streams that are remembered; beyond, the oldest count as over."""
OPEN_S_MAX: Final = 24 * 3600.0
"""A stream whose record did not move for so long is over: its gateway is gone."""
MINUTE_S: Final = 60
MINUTES_MAX: Final = 1_440
"""Minutes of instances that are counted in one transaction."""
PERIOD_S: Final = 1.0
RETRY_S_MAX: Final = 30.0
CURSOR: Final = "rated_seq"
_PROGRESS: Final = 0
"""Status of a record that tells how far a running stream has come."""


class Rows(Books, Protocol):
    """What rating needs of a transaction."""

    def setting(self, name: str) -> str | None: ...
    def put_setting(self, name: str, value: str) -> None: ...
    def plans(self) -> dict[str, str]: ...
    def usage_after(self, seq: int, limit: int) -> list[tuple[int, MeterRecord]]: ...
    def usage_numbered(self, seqs: Sequence[int]) -> list[tuple[int, MeterRecord]]: ...
    def usage_last(self) -> int: ...
    def rated_line(self, workspace_id: str, month: str, meter: str, attributes: str, plan: str) -> RatedLine | None: ...
    def put_rated_line(self, line: RatedLine) -> None: ...
    def rated_lines(self, workspace_id: str, month: str) -> list[RatedLine]: ...
    def instance(self, instance_id: str) -> Instance | None: ...
    def revision(self, revision_id: str) -> Revision | None: ...
    def instances_granted(self, start_at: float, end_at: float) -> list[Instance]: ...


class Cursor(msgspec.Struct, frozen=True):
    """How far rating has come: the last usage number, the running ones before it, the last minute counted."""

    seq: int = 0
    open: tuple[int, ...] = ()
    minute: int = 0


def load_cursor(text: str | None) -> Cursor:
    """The cursor as its setting keeps it."""
    return msgspec.json.decode(text, type=Cursor) if text else Cursor()


def plan_key(plan: Plan) -> str:
    """What tells plans apart: usage under an older price list keeps its line, and its prices."""
    import hashlib

    return f"{plan.code}-{hashlib.blake2b(msgspec.json.encode(plan, order='sorted'), digest_size=6).hexdigest()}"


@dataclass
class Sheet:
    """Usage of one transaction, added up by workspace and line."""

    lines: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    """(workspace, meter, attributes as sorted JSON) -> [units, events]."""

    def add(self, workspace_id: str, used: Usage) -> None:
        """Add billable usage; everything else is measured and shown elsewhere."""
        if not used.billable or used.meter in NOT_BILLED or not used.units:
            return
        attributes = msgspec.json.encode(dict(used.attributes), order="sorted").decode()
        sums = self.lines.setdefault((workspace_id, used.meter, attributes), [0, 0])
        sums[0] += used.units
        sums[1] += used.events


def reference(workspace_id: str, meter: str, total: int, attributes: Mapping[str, str]) -> str:
    """The reference of a charge; `label` reads it back."""
    return f"{workspace_id}/{meter}/{total}/{attributes.get('sku', '')}/{attributes.get('model', '')}"


def rate_sheet(rows: Rows, sheet: Sheet, plans: Mapping[str, Plan], now_us: int) -> int:
    """Charge what the lines rose by; how many micro-dollars. A meter without a price in the plan costs nothing."""
    month = month_of(now_us)
    charged = 0
    for (workspace_id, meter, text), (units, events) in sheet.lines.items():
        plan = plans.get(workspace_id)
        if plan is None:
            continue
        attributes: dict[str, str] = msgspec.json.decode(text)
        try:
            model = find(plan, meter, attributes).model
        except Invalid:
            continue
        key = plan_key(plan)
        seen = rows.rated_line(workspace_id, month, meter, text, key)
        line = seen or RatedLine(workspace_id, month, meter, text, key, 0, 0, 0)
        units, events = line.units + units, line.events + events
        total = rounded(exact(model, units, events))
        due = total - line.posted
        if due > 0:
            before = sum(known.posted for known in rows.rated_lines(workspace_id, month) if known.plan == key)
            target = chart.revenue(attributes.get("sku") or attributes.get("model") or "inference")
            ref = reference(workspace_id, meter, total, attributes)
            charge(
                *(rows, workspace_id, plan, f"use/{month}/{key}/{ref}", due, target, ref),
                charged_before=before, now_us=now_us,
            )  # fmt: skip
            charged += due
        rows.put_rated_line(RatedLine(workspace_id, month, meter, text, key, units, events, max(total, line.posted)))
    return charged


def begin(rows: Rows, now: float) -> None:
    """The first plan is about to be set: what was used until now stays free."""
    if not rows.plans():
        rows.put_setting(
            CURSOR, msgspec.json.encode(Cursor(rows.usage_last(), (), math.floor(now / MINUTE_S))).decode()
        )


def rate_next(rows: Rows, plans: Mapping[str, Plan], now: float, wall: float) -> tuple[int, bool]:
    """Rate the next batch of records and minutes: (micro-dollars, True when more waits). `now` is the cluster's time,
    `wall` the time that records carry."""
    if not plans:
        return 0, False
    cursor = load_cursor(rows.setting(CURSOR))
    this_minute = math.floor(now / MINUTE_S)
    sheet = Sheet()
    fresh = rows.usage_after(cursor.seq, BATCH)
    running: list[int] = []
    served: dict[tuple[str, str], dict[str, str]] = {}
    for seq, record in [*rows.usage_numbered(cursor.open), *fresh]:
        if record.status == _PROGRESS and wall - record.t_end < OPEN_S_MAX:
            running.append(seq)
        elif record.workspace_id in plans:
            at = record.instance_id, record.revision_id
            if at not in served:  # many requests of few instances: the writer has better things to do
                served[at] = _attributes(rows, record)
            for used in usage_of(record, served[at]):
                sheet.add(record.workspace_id, used)
    first = cursor.minute or this_minute
    last = min(this_minute, first + MINUTES_MAX)
    for workspace_id, used in node_minutes(rows, plans, first, last):
        sheet.add(workspace_id, used)
    charged = rate_sheet(rows, sheet, plans, int(now * 1_000_000))
    done = Cursor(fresh[-1][0] if fresh else cursor.seq, tuple(sorted(running)[-OPEN_MAX:]), last)
    if done != cursor:
        rows.put_setting(CURSOR, msgspec.json.encode(done).decode())
    return charged, len(fresh) == BATCH or last < this_minute


def _attributes(rows: Rows, record: MeterRecord) -> dict[str, str]:
    """The kind of hardware and the model that served a request, where they are known."""
    instance = rows.instance(record.instance_id) if record.instance_id else None
    revision = rows.revision(record.revision_id) if record.revision_id else None
    sku = instance.sku_id if instance is not None else ""
    model = revision.spec.model.model_id if revision is not None and revision.spec.model is not None else ""
    return {name: value for name, value in (("sku", sku), ("model", model)) if value}


def node_minutes(rows: Rows, plans: Mapping[str, Plan], first: int, last: int) -> Iterable[tuple[str, Usage]]:
    """Whole minutes `[first, last)` that instances of endpoints held their nodes, where a plan prices them.

    A minute counts for who held the node when it began, so early starts and the last moments cost nothing. Instances
    that a user runs on time it bought itself were paid for by its orders.
    """
    if first >= last:
        return
    for instance in rows.instances_granted(first * MINUTE_S, last * MINUTE_S):
        if instance.workspace_id not in plans or instance.granted_at is None or not instance.endpoint_id:
            continue
        begin = max(first, math.ceil(instance.granted_at / MINUTE_S))
        end_at = instance.hibernated_at if instance.ended_at is None else instance.ended_at
        if instance.hibernated_at is not None and end_at is not None:
            end_at = min(end_at, instance.hibernated_at)  # asleep it holds no node
        until = last if end_at is None else min(last, math.ceil(end_at / MINUTE_S))
        if until > begin:
            attributes = {"sku": instance.sku_id} if instance.sku_id else {}
            yield instance.workspace_id, Usage("node_minutes", until - begin, 1, attributes)


class Store(Protocol):
    """Where transactions run."""

    async def write(self, fn: Callable[[Rows], T], *, durable: bool = True) -> T: ...
    async def read(self, fn: Callable[[Rows], T]) -> T: ...


async def settle(store: Store, clock: Callable[[], float]) -> int:
    """Rate everything that is final by now; micro-dollars charged. `clock` is the cluster's."""

    def waiting(rows: Rows) -> bool:
        """Cheap: is there anything to rate, or a minute to count?"""
        if not rows.plans():
            return False
        cursor = load_cursor(rows.setting(CURSOR))
        new = rows.usage_last() > cursor.seq or math.floor(clock() / MINUTE_S) > cursor.minute
        return new or bool(cursor.open)

    def rate(rows: Rows) -> tuple[int, bool]:
        plans = {workspace: msgspec.json.decode(text, type=Plan) for workspace, text in rows.plans().items()}
        return rate_next(rows, plans, clock(), time.time())

    charged, more = 0, True
    while more and await store.read(waiting):
        some, more = await store.write(rate)
        charged += some
    return charged


async def run(store: Store, clock: Callable[[], float]) -> None:
    """Rate about every second; wait longer while the store takes nothing."""
    wait_s = PERIOD_S
    while True:
        await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
        try:
            await settle(store, clock)
            wait_s = PERIOD_S
        except NanopodError as error:
            wait_s = min(RETRY_S_MAX, wait_s * 2)
            log.warning("rating=waits wait_s=%.0f reason=%s", wait_s, error)
