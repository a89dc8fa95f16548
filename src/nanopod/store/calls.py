"""Spawned calls in a transaction: what is to be called, how far it has come, what it answered, who is to be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Row, Select, delete, func, null, or_, select, update

from nanopod.store.app_schema import call
from nanopod.store.base import Base

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
STATUSES: Final[tuple[Status, ...]] = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
OPEN: Final[tuple[Status, ...]] = ("queued", "running")
IDS_MAX: Final = 500
"""Ids in one look-up: databases limit the parameters of a statement."""


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call to be made. `header` is an encoded `model.calls.Call`; its payload is inline, or in a blob."""

    call_id: str
    workspace_id: str
    endpoint_id: str
    function: str
    key_id: str
    origin: str
    header: bytes
    created_at: float
    payload: bytes | None = None
    payload_blob: str = ""
    schedule_id: str = ""
    webhook: str = ""


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call without its payload, result and log. Times are Unix seconds of wall time."""

    call_id: str
    workspace_id: str
    endpoint_id: str
    function: str
    key_id: str
    origin: str
    schedule_id: str
    status: Status
    attempt: int
    error_type: str
    error_code: str
    error_message: str
    worker: str
    run_us: int
    cost_micro: int
    webhook: str
    webhook_state: str
    share_digest: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    sent_at: float | None
    cancelled_at: float | None
    webhook_at: float | None

    @property
    def is_open(self) -> bool:
        """True while it has no answer."""
        return self.ended_at is None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call with what is sent to start it."""

    call_id: str
    workspace_id: str
    endpoint_id: str
    header: bytes
    payload: bytes | None
    payload_blob: str
    created_at: float
    started_at: float | None
    sent_at: float | None
    cancelled_at: float | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended. `result` holds the frames that answer it, inline or in a blob."""

    call_id: str
    status: Status
    ended_at: float
    expires_at: float
    attempt: int = 1
    result: bytes | None = None
    result_blob: str = ""
    error_type: str = ""
    error_code: str = ""
    error_message: str = ""
    worker: str = ""
    run_us: int = 0
    cost_micro: int = 0
    logs: str | None = None
    started_at: float | None = None


_SHOWN: Final = tuple(call.c[name] for name in StoredCall.__slots__ if name != "call_id")
_SENT: Final = tuple(call.c[name] for name in Outgoing.__slots__ if name != "call_id")
_NEW: Final = (
    "id", "workspace_id", "endpoint_id", "function", "key_id", "origin", "header", "created_at", "payload",
    "payload_blob", "schedule_id", "webhook",
)  # fmt: skip
_INSERT: Final = (
    f"INSERT INTO \"call\" ({', '.join(_NEW)}, status) VALUES ({', '.join('?' * len(_NEW))}, 'queued') "
    "ON CONFLICT (id) DO NOTHING"
)
_SEND: Final = 'UPDATE "call" SET sent_at = ? WHERE id = ?'
_START: Final = (
    "UPDATE \"call\" SET status = 'running', started_at = COALESCE(started_at, ?), worker = ?, attempt = ? "
    "WHERE id = ? AND ended_at IS NULL"
)
_ENDED: Final = (
    "status", "ended_at", "expires_at", "attempt", "result", "result_blob", "error_type", "error_code",
    "error_message", "run_us", "cost_micro",
)  # fmt: skip
_END: Final = (
    f"UPDATE \"call\" SET {', '.join(f'{name} = ?' for name in _ENDED)}, worker = CASE WHEN ? = '' THEN worker ELSE ? "
    "END, logs = COALESCE(?, logs), started_at = COALESCE(started_at, ?), payload = NULL, payload_blob = '', "
    "webhook_at = CASE WHEN webhook = '' THEN NULL ELSE ? END WHERE id = ? AND ended_at IS NULL"
)


def _call(row: Row[Any]) -> StoredCall:
    return StoredCall(*tuple(row))


def _outgoing(row: Row[Any]) -> Outgoing:
    values = list(row)
    values[3] = bytes(values[3])
    values[4] = bytes(values[4]) if values[4] is not None else None
    return Outgoing(*values)


class CallRows(Base):
    """Reads and writes of spawned calls."""

    # --- made ---

    def add_calls(self, made: Sequence[NewCall]) -> list[NewCall]:
        """Keep those that are not there yet, all queued; the others of `made`, which stay as they are."""
        known = set(self.calls_known([one.call_id for one in made]))
        fresh = {one.call_id: one for one in made if one.call_id not in known}
        self._raw_many(
            _INSERT,
            [
                (one.call_id, one.workspace_id, one.endpoint_id, one.function, one.key_id, one.origin, one.header,
                 one.created_at, one.payload, one.payload_blob, one.schedule_id, one.webhook)
                for one in fresh.values()
            ],
        )  # fmt: skip
        return [one for one in made if one.call_id in known]

    def calls_known(self, call_ids: Sequence[str]) -> dict[str, str]:
        """{id: workspace} of those that are there."""
        found: dict[str, str] = {}
        for at in range(0, len(call_ids), IDS_MAX):
            some = call_ids[at : at + IDS_MAX]
            marks = ", ".join("?" * len(some))
            rows = self._every(f'SELECT id, workspace_id FROM "call" WHERE id IN ({marks})', some)
            found.update((row[0], row[1]) for row in rows)
        return found

    # --- shown ---

    def call(self, call_id: str) -> StoredCall | None:
        """One call; None when there is none, or no longer."""
        row = self.connection.execute(select(call.c.id, *_SHOWN).where(call.c.id == call_id)).first()
        return _call(row) if row else None

    def calls_among(self, call_ids: Sequence[str]) -> dict[str, StoredCall]:
        """Calls by their ids."""
        found: dict[str, StoredCall] = {}
        for at in range(0, len(call_ids), IDS_MAX):
            some = call_ids[at : at + IDS_MAX]
            for row in self._rows(select(call.c.id, *_SHOWN).where(call.c.id.in_(some))):
                found[row.id] = _call(row)
        return found

    def calls_page(
        self, workspace_id: str, *, limit: int, after: str | None = None, before: str | None = None,
        endpoint_ids: Sequence[str] | None = None, function: str | None = None, statuses: Sequence[str] = (),
        schedule_id: str | None = None,
    ) -> list[StoredCall]:  # fmt: skip
        """Calls of a workspace, newest first. Raises `Invalid` for a cursor that is not in the list."""
        statement: Select[Any] = select(call.c.id, *_SHOWN).where(call.c.workspace_id == workspace_id)
        if endpoint_ids is not None:
            statement = statement.where(call.c.endpoint_id.in_(endpoint_ids))
        if function:
            statement = statement.where(call.c.function == function)
        if statuses:
            statement = statement.where(call.c.status.in_(statuses))
        if schedule_id:
            statement = statement.where(call.c.schedule_id == schedule_id)
        rows = self._page(statement, call.c.created_at, call.c.id, limit=limit, after=after, before=before)
        return [_call(row) for row in rows]

    def call_result(self, call_id: str) -> tuple[bytes | None, str]:
        """(frames that answer a call, blob that holds them)."""
        row = self.connection.execute(select(call.c.result, call.c.result_blob).where(call.c.id == call_id)).first()
        if row is None:
            return None, ""
        return (bytes(row.result) if row.result is not None else None), row.result_blob

    def call_logs(self, call_id: str) -> str:
        """What a call printed, as it is kept."""
        return str(self.connection.execute(select(call.c.logs).where(call.c.id == call_id)).scalar() or "")

    # --- sent ---

    def calls_waiting(self) -> list[tuple[str, str]]:
        """(workspace, endpoint) pairs with calls that were never sent."""
        statement = select(call.c.workspace_id, call.c.endpoint_id).where(
            call.c.ended_at.is_(None), call.c.sent_at.is_(None)
        )
        return [(row.workspace_id, row.endpoint_id) for row in self._rows(statement.distinct())]

    def calls_sent(self) -> list[Outgoing]:
        """Calls that were sent and have no answer, oldest first, without their payloads."""
        columns = [null().label("payload") if column is call.c.payload else column for column in _SENT]
        statement: Select[Any] = select(call.c.id, *columns).where(
            call.c.ended_at.is_(None), call.c.sent_at.is_not(None)
        )
        return [_outgoing(row) for row in self._rows(statement.order_by(call.c.created_at, call.c.id))]

    def calls_to_send(self, call_ids: Sequence[str]) -> list[Outgoing]:
        """What is sent for these calls; those with an answer are left out."""
        statement: Select[Any] = select(call.c.id, *_SENT).where(call.c.id.in_(call_ids), call.c.ended_at.is_(None))
        return [_outgoing(row) for row in self._rows(statement)]

    def claim_calls(self, endpoint_id: str, limit: int, now: float) -> list[Outgoing]:
        """The oldest calls to an endpoint that were never sent; from now on they count as sent."""
        statement: Select[Any] = (
            select(call.c.id, *_SENT)
            .where(call.c.endpoint_id == endpoint_id, call.c.ended_at.is_(None), call.c.sent_at.is_(None))
            .order_by(call.c.created_at, call.c.id)
            .limit(limit)
        )
        found = [_outgoing(row) for row in self._rows(statement)]
        self._raw_many(_SEND, [(now, one.call_id) for one in found])
        return found

    def start_calls(self, started: Iterable[tuple[float, str, int, str]]) -> None:
        """(when, worker, attempt, id) of calls that began to run."""
        self._raw_many(_START, list(started))

    def keep_logs(self, logs: Iterable[tuple[str, str]]) -> None:
        """(text, id) of calls that run."""
        self._raw_many('UPDATE "call" SET logs = ? WHERE id = ? AND ended_at IS NULL', list(logs))

    def withdraw_call(self, call_id: str, now: float) -> None:
        """Somebody gave this call up; it ends when its worker says so."""
        self.connection.execute(
            update(call).where(call.c.id == call_id, call.c.ended_at.is_(None), call.c.cancelled_at.is_(None)),
            {"cancelled_at": now},
        )

    def end_calls(self, ended: Sequence[Ended]) -> None:
        """Calls have their answers. One that has an answer already keeps it."""
        self._raw_many(
            _END,
            [
                (*(getattr(one, name) for name in _ENDED), one.worker, one.worker, one.logs, one.started_at,
                 one.ended_at, one.call_id)
                for one in ended
            ],
        )  # fmt: skip

    # --- told ---

    def share_call(self, call_id: str, digest: str) -> None:
        """Whoever has the token of this digest may look at a call; an earlier token is worth nothing now."""
        self.connection.execute(update(call).where(call.c.id == call_id), {"share_digest": digest})

    def hooks_due(self, now: float, limit: int) -> list[StoredCall]:
        """Calls whose webhook is to be tried, longest due first."""
        statement = select(call.c.id, *_SHOWN).where(call.c.webhook_at.is_not(None), call.c.webhook_at <= now)
        return [_call(row) for row in self._rows(statement.order_by(call.c.webhook_at).limit(limit))]

    def next_hook_at(self) -> float | None:
        """When a webhook is due next; None when none is."""
        at = self.connection.execute(select(func.min(call.c.webhook_at)).where(call.c.webhook_at.is_not(None))).scalar()
        return float(at) if at is not None else None

    def hook_tried(self, call_id: str, state: str, next_at: float | None) -> None:
        """How the delivery of a call's result stands."""
        self.connection.execute(
            update(call).where(call.c.id == call_id), {"webhook_state": state, "webhook_at": next_at}
        )

    # --- forgotten ---

    def expire_calls(self, now: float, kept_until: float, limit: int) -> int:
        """Drop the results whose time is over, and the calls that expired long ago; how many were touched.

        What is left of a call says that it expired, until `kept_until`.
        """
        due = select(call.c.id, call.c.status).where(call.c.expires_at <= now).order_by(call.c.expires_at).limit(limit)
        rows = self._rows(due)
        over = [row.id for row in rows if row.status == "expired"]
        fresh = [row.id for row in rows if row.status != "expired"]
        for at in range(0, len(over), IDS_MAX):
            self.connection.execute(delete(call).where(call.c.id.in_(over[at : at + IDS_MAX])))
        for at in range(0, len(fresh), IDS_MAX):
            self.connection.execute(
                update(call).where(call.c.id.in_(fresh[at : at + IDS_MAX])),
                {
                    "status": "expired", "result": None, "result_blob": "", "logs": "", "header": b"",
                    "share_digest": "", "webhook_at": None, "expires_at": kept_until,
                },
            )  # fmt: skip
        return len(rows)

    def call_blobs(self) -> set[str]:
        """Every blob that a call's payload or result is in."""
        statement = select(call.c.payload_blob, call.c.result_blob).where(
            or_(call.c.payload_blob != "", call.c.result_blob != "")
        )
        return {blob for row in self._rows(statement) for blob in row if blob}
