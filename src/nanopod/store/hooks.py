"""Webhooks in a transaction: who wants which notices, how far each has come, and when it is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, delete, exists, select, update
from sqlalchemy.exc import StatementError

from nanopod.store.base import Base, to_json
from nanopod.store.market_schema import notice, webhook
from nanopod.store.schema import workspace

_types: Final = msgspec.json.Decoder(tuple[str, ...]).decode


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver of notices. Times of deliveries are wall time, those of its making the cluster's."""

    webhook_id: str
    workspace_id: str
    name: str
    url: str
    types: tuple[str, ...]
    enabled: bool
    secret: str = field(repr=False)
    cursor: int
    created_at: float
    updated_at: float
    message: str = ""
    failures: int = 0
    failed_since: float | None = None
    next_at: float = 0.0
    last_delivered_at: float | None = None
    generation: int = 0


class WebhookRows(Base):
    """Reads and writes of webhooks."""

    def add_webhook(self, made: Webhook) -> None:
        """A new webhook."""
        values = asdict(made) | {"types": to_json(made.types)}
        try:
            self._insert(webhook, id=values.pop("webhook_id"), **values)
        except StatementError as error:
            # Its text would hold the secret, and errors are logged.
            error.hide_parameters = True
            raise

    def webhook(self, webhook_id: str) -> Webhook | None:
        """One webhook."""
        row = self._row(webhook, id=webhook_id)
        return _webhook(row) if row else None

    def webhook_named(self, workspace_id: str, name: str) -> Webhook | None:
        """A webhook of a workspace by its name."""
        row = self._row(webhook, workspace_id=workspace_id, name=name)
        return _webhook(row) if row else None

    def webhooks(self, workspace_id: str | None = None) -> list[Webhook]:
        """Webhooks of a workspace (None: of all), newest first."""
        t = webhook.c
        statement: Select[Any] = select(webhook).order_by(t.created_at.desc(), t.id.desc())
        if workspace_id is not None:
            statement = statement.where(t.workspace_id == workspace_id)
        return [_webhook(row) for row in self._rows(statement)]

    def webhooks_due(self, now: float, limit: int, busy: Sequence[str] = ()) -> list[Webhook]:
        """Enabled webhooks but for the `busy` ones that have notices to look at and may be tried; longest due first."""
        self.flush()
        t = webhook.c
        news = exists().where(notice.c.workspace_id == t.workspace_id, notice.c.seq > t.cursor)
        statement = select(webhook).where(t.enabled.is_(True), t.next_at <= now, news)
        if busy:
            statement = statement.where(t.id.not_in(busy))
        return [_webhook(row) for row in self._rows(statement.order_by(t.next_at, t.cursor, t.id).limit(limit))]

    def set_webhook(self, seen: Webhook, **columns: Any) -> None:
        """Change a webhook that is still as it was seen. Raises `Conflict` otherwise."""
        if "types" in columns:
            columns["types"] = to_json(columns["types"])
        self._guarded(webhook, seen.webhook_id, seen.generation, **columns)

    def webhook_passed(self, webhook_id: str, seq: int, delivered_at: float | None = None) -> None:
        """Notices up to `seq` are done with; with `delivered_at`, the last one was delivered and all is well.

        The cursor never goes back.
        """
        values: dict[str, Any] = {"cursor": seq}
        if delivered_at is not None:
            values |= {
                "message": "", "failures": 0, "failed_since": None, "next_at": 0.0, "last_delivered_at": delivered_at,
            }  # fmt: skip
        self.connection.execute(update(webhook).where(webhook.c.id == webhook_id, webhook.c.cursor < seq), values)

    def webhook_failed(self, seen: Webhook, seq: int, message: str, failed_since: float, next_at: float) -> None:
        """An attempt failed; notices up to `seq` are done with. Nothing is written when it was changed meanwhile."""
        t = webhook.c
        self.connection.execute(
            update(webhook).where(t.id == seen.webhook_id, t.generation == seen.generation),
            {"cursor": seq, "message": message, "failures": seen.failures + 1, "failed_since": failed_since,
             "next_at": next_at},
        )  # fmt: skip

    def delete_webhook(self, webhook_id: str) -> None:
        """Forget a webhook."""
        self.connection.execute(delete(webhook).where(webhook.c.id == webhook_id))

    def sweep_webhooks(self) -> int:
        """Forget the webhooks of workspaces that are gone; how many."""
        gone = webhook.c.workspace_id.not_in(select(workspace.c.id))
        return self.connection.execute(delete(webhook).where(gone)).rowcount


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(
        row.id, row.workspace_id, row.name, row.url, _types(row.types), bool(row.enabled), row.secret, row.cursor,
        row.created_at, row.updated_at, row.message, row.failures, row.failed_since, row.next_at,
        row.last_delivered_at, row.generation,
    )  # fmt: skip
