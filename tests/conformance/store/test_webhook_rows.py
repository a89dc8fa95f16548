"""Webhooks come back as they were written, on both databases; cursors never go back, and guards hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from nanopod.model.chain import Workspace
from nanopod.model.errors import Conflict
from nanopod.store.hooks import Webhook
from nanopod.store.transaction import Transaction

InWrite = Callable[[Callable[[Transaction], Any]], Any]


def hook(number: int, **more: Any) -> Webhook:
    values: dict[str, Any] = {
        "webhook_id": f"whook_{number}", "workspace_id": "w1", "name": f"hook-{number}", "url": "https://h.example/",
        "types": ("order.*",), "enabled": True, "secret": "whsec_1", "cursor": 0, "created_at": float(number),
        "updated_at": float(number), **more,
    }  # fmt: skip
    return Webhook(**values)


def test_webhooks_come_back_and_change_under_a_guard(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        first, second = hook(1), hook(2, types=(), enabled=False, failed_since=3.5, last_delivered_at=2.5)
        write.add_webhook(first)
        write.add_webhook(second)
        write.add_webhook(hook(3, workspace_id="w2", name="hook-1"))
        assert write.webhook("whook_1") == first
        assert write.webhook("whook_9") is None
        assert write.webhook_named("w1", "hook-2") == second
        assert [h.webhook_id for h in write.webhooks("w1")] == ["whook_2", "whook_1"]
        assert len(write.webhooks()) == 3
        write.set_webhook(first, types=("a.b",), url="https://other.example/", updated_at=9.0)
        changed = replace(first, types=("a.b",), url="https://other.example/", updated_at=9.0, generation=1)
        assert write.webhook("whook_1") == changed
        with pytest.raises(Conflict):
            write.set_webhook(first, enabled=False)
        write.delete_webhook("whook_1")
        assert write.webhook("whook_1") is None

    in_write(test)


def test_due_are_those_with_news_that_may_be_tried(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        for number, more in enumerate(
            ({}, {"enabled": False}, {"next_at": 50.0}, {"workspace_id": "w2"}, {"cursor": 10_000}), 1
        ):
            write.add_webhook(hook(number, **more))

        def due(now: float, busy: tuple[str, ...] = ()) -> list[str]:
            return [h.webhook_id for h in write.webhooks_due(now, 10, busy)]

        assert due(10.0) == []
        write.add_notice(1.0, "w1", "order.filled", "ordr_1", {})
        assert due(10.0) == ["whook_1"]
        assert due(60.0) == ["whook_1", "whook_3"]
        assert due(60.0, ("whook_1",)) == ["whook_3"]
        assert len(write.webhooks_due(60.0, 1)) == 1

    in_write(test)


def test_deliveries_move_the_cursor_and_failures_keep_it(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        made = hook(1, cursor=5)
        write.add_webhook(made)
        write.webhook_failed(made, 5, "it answered 500", 100.0, 101.0)
        failed = replace(made, failures=1, message="it answered 500", failed_since=100.0, next_at=101.0)
        assert write.webhook("whook_1") == failed
        write.webhook_passed("whook_1", 6)
        assert write.webhook("whook_1") == replace(failed, cursor=6), "what is left out says nothing about the receiver"
        write.webhook_passed("whook_1", 7, 102.0)
        good = replace(made, cursor=7, last_delivered_at=102.0)
        assert write.webhook("whook_1") == good
        write.webhook_passed("whook_1", 6, 103.0)
        assert write.webhook("whook_1") == good, "a cursor never goes back"
        write.set_webhook(good, url="https://new.example/")
        write.webhook_failed(good, 8, "late", 1.0, 2.0)
        kept = write.webhook("whook_1")
        assert kept is not None
        assert (kept.cursor, kept.failures, kept.message) == (7, 0, ""), "it was changed meanwhile"

    in_write(test)


def test_an_error_of_the_database_does_not_tell_the_secret(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.add_webhook(hook(1))
        with pytest.raises(IntegrityError) as refused, write.part():
            write.add_webhook(hook(1, secret="whsec_hidden"))
        assert "hidden" not in str(refused.value).replace("parameters hidden", "")

    in_write(test)


def test_webhooks_go_with_their_workspace(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.add_workspace(Workspace("w1", "one", "a1", 1.0))
        write.add_webhook(hook(1))
        write.add_webhook(hook(2, workspace_id="gone"))
        assert write.sweep_webhooks() == 1
        assert [h.webhook_id for h in write.webhooks()] == ["whook_1"]

    in_write(test)
