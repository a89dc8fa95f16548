"""Spawned calls and schedules come back as they were written, on both databases; an answer is kept once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nanopod.model.endpoint import ScheduleSpec
from nanopod.model.errors import Invalid
from nanopod.store.calls import Ended, NewCall
from nanopod.store.schedules import StoredSchedule
from nanopod.store.transaction import Transaction

InWrite = Callable[[Callable[[Transaction], Any]], Any]


def made(number: int, **more: Any) -> NewCall:
    values: dict[str, Any] = {
        "call_id": f"call_{number:032x}", "workspace_id": "w1", "endpoint_id": "e1", "function": "f", "key_id": "k1",
        "origin": "spawn", "header": b"\x00head", "created_at": float(number), "payload": b"\x00\xff", **more,
    }  # fmt: skip
    return NewCall(**values)


def ended(number: int, **more: Any) -> Ended:
    values: dict[str, Any] = {
        "call_id": f"call_{number:032x}", "status": "succeeded", "ended_at": 50.0, "expires_at": 90.0, "result": b"\x00r",
        "run_us": 7, "cost_micro": 3, **more,
    }  # fmt: skip
    return Ended(**values)


def test_a_call_from_its_making_to_its_end(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        first, second = made(1, webhook="https://h.example/"), made(2, payload=None, payload_blob="b" * 64)
        assert write.add_calls([first, second]) == []
        assert write.add_calls([first, made(3, workspace_id="w2", endpoint_id="e2")]) == [first], "the first one stays"
        assert write.calls_known([first.call_id, "call_0"]) == {first.call_id: "w1"}
        stored = write.call(first.call_id)
        assert stored is not None
        assert (stored.status, stored.attempt, stored.webhook, stored.is_open) == ("queued", 1, first.webhook, True)
        assert sorted(write.calls_waiting()) == [("w1", "e1"), ("w2", "e2")]
        claimed = write.claim_calls("e1", 10, 20.0)
        assert [(one.call_id, one.header, one.payload, one.payload_blob) for one in claimed] == [
            (first.call_id, b"\x00head", b"\x00\xff", ""), (second.call_id, b"\x00head", None, "b" * 64),
        ]  # fmt: skip
        assert write.claim_calls("e1", 10, 21.0) == []
        sent = write.calls_sent()
        assert [(one.call_id, one.payload, one.sent_at) for one in sent] == [
            (first.call_id, None, 20.0), (second.call_id, None, 20.0),
        ]  # fmt: skip
        assert write.calls_to_send([first.call_id])[0].payload == b"\x00\xff"
        write.start_calls([(30.0, "inst_1", 2, first.call_id)])
        write.keep_logs([("[]", first.call_id)])
        running = write.call(first.call_id)
        assert running is not None
        assert (running.status, running.started_at, running.worker, running.attempt) == ("running", 30.0, "inst_1", 2)
        write.end_calls([ended(1, attempt=2), ended(2, status="failed", error_code="x", logs="[1]", worker="inst_2")])
        write.end_calls([ended(1, status="failed")])
        done = write.call(first.call_id)
        assert done is not None
        assert (done.status, done.run_us, done.cost_micro, done.worker) == ("succeeded", 7, 3, "inst_1")
        assert write.call_result(first.call_id) == (b"\x00r", "")
        assert write.call_logs(first.call_id) == "[]"
        assert write.call_logs(second.call_id) == "[1]"
        assert write.calls_to_send([first.call_id]) == []
        assert write.calls_sent() == []
        assert write.call_blobs() == set(), "its payload is needed no more"

    in_write(test)


def test_pages_are_newest_first_and_narrowed(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.add_calls([made(n, function="g" if n % 2 else "f") for n in range(1, 6)])
        write.end_calls([ended(2)])

        def page(**more: Any) -> list[int]:
            return [int(one.call_id[5:], 16) for one in write.calls_page("w1", **{"limit": 10, **more})]

        assert page() == [5, 4, 3, 2, 1]
        assert page(limit=2, after=made(4).call_id) == [3, 2]
        assert page(limit=2, before=made(3).call_id) == [5, 4]
        assert page(statuses=("succeeded",)) == [2]
        assert page(function="g") == [5, 3, 1]
        assert page(endpoint_ids=[]) == []
        assert write.calls_page("w2", limit=10) == []
        with pytest.raises(Invalid):
            page(after="call_none")

    in_write(test)


def test_what_expired_is_dropped_and_later_forgotten(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.add_calls([made(1), made(2)])
        write.share_call(made(1).call_id, "digest")
        write.end_calls([ended(1, result=None, result_blob="r" * 64)])
        assert write.call_blobs() == {"r" * 64}
        assert write.expire_calls(89.0, 200.0, 10) == 0
        assert write.expire_calls(90.0, 200.0, 10) == 1
        over = write.call(made(1).call_id)
        assert over is not None
        assert (over.status, over.share_digest, over.expires_at) == ("expired", "", 200.0)
        assert write.call_result(over.call_id) == (None, "")
        assert write.expire_calls(200.0, 300.0, 10) == 1
        assert write.call(over.call_id) is None
        assert write.call(made(2).call_id) is not None, "one without an answer never expires"

    in_write(test)


def test_webhooks_are_due_once_their_call_ended(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.add_calls([made(1, webhook="https://h.example/"), made(2)])
        assert write.next_hook_at() is None
        write.end_calls([ended(1), ended(2)])
        assert [one.call_id for one in write.hooks_due(50.0, 10)] == [made(1).call_id]
        assert write.next_hook_at() == 50.0
        write.hook_tried(made(1).call_id, '{"state":"retrying"}', 60.0)
        assert write.hooks_due(55.0, 10) == []
        write.hook_tried(made(1).call_id, '{"state":"delivered"}', None)
        assert write.next_hook_at() is None
        told = write.call(made(1).call_id)
        assert told is not None
        assert told.webhook_state == '{"state":"delivered"}'

    in_write(test)


def test_a_withdrawal_is_remembered_until_the_end(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        write.add_calls([made(1)])
        write.withdraw_call(made(1).call_id, 5.0)
        write.withdraw_call(made(1).call_id, 6.0)
        assert write.claim_calls("e1", 1, 7.0)[0].cancelled_at == 5.0

    in_write(test)


def test_schedules_come_back_and_are_due(in_write: InWrite) -> None:
    def test(write: Transaction) -> None:
        spec = ScheduleSpec("0 * * * *", "Europe/Berlin", catch_up=False)
        one = StoredSchedule("schd_1", "w1", "e1", "f", spec, False, 10.0, None, "", 1.0, 1.0)
        two = StoredSchedule("schd_2", "w1", "e2", "f", ScheduleSpec(period_s=5.0), True, 5.0, 4.0, "call_1", 2.0, 2.0)
        write.add_schedule(one)
        write.add_schedule(two)
        assert write.schedule("schd_1") == one
        assert write.schedules("w1") == [two, one]
        assert write.schedules(endpoint_id="e1") == [one]
        assert write.schedules_due(9.0, 10) == []
        assert write.schedules_due(10.0, 10) == [one], "one that is paused is never due"
        assert write.next_schedule_at() == 10.0
        write.set_schedule("schd_2", paused=False, spec=spec, next_at=3.0)
        assert [row.schedule_id for row in write.schedules_due(10.0, 10)] == ["schd_2", "schd_1"]
        write.delete_schedule("schd_1")
        assert write.schedule("schd_1") is None

    in_write(test)
