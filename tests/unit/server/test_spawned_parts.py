"""Parts of spawned calls: requests, answers that come in pieces, tails of logs, values as JSON, derived ids."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from nanopod.control.tables import internal_key, internal_rows
from nanopod.gateway.tables import Known, may_call
from nanopod.model import calls, codec
from nanopod.model.endpoint import EndpointSpec, FunctionSpec, ScheduleSpec
from nanopod.model.errors import Invalid, NotFound
from nanopod.model.wire import Tables
from nanopod.server.calls import plain, wire
from nanopod.server.calls.flights import Flight
from nanopod.server.calls.making import derived_id
from nanopod.server.calls.payloads import INLINE_BYTES_MAX, Payloads
from nanopod.server.calls.schedules import check_schedules
from nanopod.server.calls.tail import TAIL_BYTES_MAX, Tail, lines_of

ID = bytes(range(16))


@dataclass
class Point:
    x: int


def flight() -> Flight:
    return Flight(ID, "w1", "e1", Tail())


# --- requests ---


def test_a_request_holds_many_calls() -> None:
    body = wire.prefixed([calls.encode(calls.Call(ID, "e", "f"), b"abc"), calls.encode(calls.Call(ID[::-1], "e", "g"))])
    assert [(header.function, payload) for header, payload in wire.parsed(body)] == [("f", b"abc"), ("g", b"")]
    for broken, why in (
        (b"", "no call"), (body[:-1], "longer than the body"), (body[:2], "inside a length"),
        (wire.prefixed([b"xxxxxxxxxx"]), "call 0"), (wire.prefixed([calls.encode(calls.End(ID))]), "not a Call"),
        (wire.prefixed([calls.encode(calls.Call(b"short"))]), "5 bytes"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=why):
            wire.parsed(broken)


def test_ids_have_one_text() -> None:
    text = wire.text_of(ID)
    assert wire.bytes_of(text) == ID
    assert wire.check_id(text) == wire.check_id(text.removeprefix("call_")) == text
    for wrong in ("call_12", "x" * 32, text.upper(), f"{text}0"):
        with pytest.raises(NotFound):
            wire.check_id(wrong)


def test_a_large_payload_travels_in_parts() -> None:
    payload = bytes(2 * calls.PART_BYTES + 5)
    header = calls.encode(calls.Call(ID, "e", "f", size=len(payload)))
    frames = wire.frames_of(header, payload)
    assert len(frames) == 3
    assert all(len(frame) <= calls.FRAME_BYTES_MAX for frame in frames)
    first, got = calls.decode(frames[0])
    assert isinstance(first, calls.Call)
    assert got + b"".join(calls.decode(frame)[1] for frame in frames[1:]) == payload


def test_derived_ids_differ_by_every_word() -> None:
    assert derived_id("tick", "schd_1", "5.0") == derived_id("tick", "schd_1", "5.0")
    assert len({derived_id("a", "bc"), derived_id("ab", "c"), derived_id("abc")}) == 3


def test_internal_keys_are_known_to_gateways_by_their_digest_alone() -> None:
    pepper = b"p" * 32
    rows = internal_rows(pepper, ["w1", "w2"])
    key = internal_key(pepper, "w1")
    assert key not in rows
    known = Known(Tables(1, pepper, rows, {}, {}))
    found = known.authenticate(f"Bearer {key}")
    assert found is not None
    assert (found.workspace_id, "internal" in found.scopes, may_call(found)) == ("w1", True, True)


# --- answers ---


def test_a_result_in_parts_is_put_together_also_after_another_connection() -> None:
    one, value = flight(), bytes(100)
    assert one.take(calls.Result(ID, size=100), value[:40]) is None
    one.restart()
    assert one.take(calls.Part(ID), value[40:]) is None, "the rest of an answer that was cut off"
    assert one.take(calls.Result(ID, size=100), value[:40]) is None
    assert one.take(calls.Part(ID), value[40:]) is not None
    assert one.answer is not None
    header, payload = calls.decode(one.answer.frames[0])
    assert (one.answer.status, payload, isinstance(header, calls.Result)) == ("succeeded", value, True)
    one.take(calls.Error(ID, "late"), b"")
    assert one.answer.status == "succeeded", "the first answer counts"


def test_items_count_once_and_a_gap_fails() -> None:
    one = flight()
    for index in (0, 1, 1, 0, 2):
        one.take(calls.Item(ID, index), codec.encode(index))
    one.take(calls.End(ID, calls.Usage(run_us=5)), b"")
    assert one.answer is not None
    assert one.answer.run_us == 5
    assert plain.result_of(wire.prefixed(one.answer.frames)) == (None, [0, 1, 2])
    gap = flight()
    gap.take(calls.Item(ID, 1), b"")
    assert gap.answer is not None
    assert (gap.answer.status, gap.answer.error_code) == ("failed", "worker_lost")


def test_errors_say_what_and_cancellations_are_no_failures() -> None:
    failed, cancelled = flight(), flight()
    failed.take(calls.Error(ID, "remote_error", "no", attempt=3, types=["app.Bad", "ValueError"]), b"")
    cancelled.take(calls.Error(ID, "cancelled", "by the caller"), b"")
    assert failed.answer is not None
    assert cancelled.answer is not None
    assert (failed.answer.status, failed.answer.error_type, failed.answer.attempt) == ("failed", "app.Bad", 3)
    assert cancelled.answer.status == "cancelled"


# --- logs ---


def test_a_tail_keeps_the_newest_lines_with_their_numbers() -> None:
    tail = Tail()
    for number in range(400):
        tail.add(1.0, "stdout", f"{number} " + "x" * 1000)
    assert tail.size <= TAIL_BYTES_MAX
    assert tail.lines[-1].seq == tail.last == 400
    again = Tail.of(lines_of(tail.text()))
    assert list(again.lines) == list(tail.lines)
    again.add(2.0, "stderr", "next")
    assert [line.seq for line in again.after(399)] == [400, 401]
    assert lines_of("") == []


def test_a_follower_wakes_for_a_line_and_for_the_end() -> None:
    async def test() -> None:
        tail = Tail()
        waiting = asyncio.create_task(tail.wait(0, 30))
        await asyncio.sleep(0)
        tail.add(1.0, "stdout", "a")
        await asyncio.wait_for(waiting, 10)
        waiting = asyncio.create_task(tail.wait(1, 30))
        await asyncio.sleep(0)
        tail.end()
        await asyncio.wait_for(waiting, 10)

    asyncio.run(test())


# --- values ---


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, 2.5, None, True], 3: "x"}, {"a": [1, 2.5, None, True], "3": "x"}),
        ((1, (2,)), [1, [2]]),
        ({1}, [1]),
        (b"\x00", {"base64": "AA=="}),
        (1 << 70, 1 << 70),
        (Decimal("1.5"), "1.5"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (float("nan"), "nan"),
        ({(1, 2): "pair"}, {"[1, 2]": "pair"}),
        (Path("/a/b"), "/a/b"),
        (range(3), [0, 3, 1]),
        (1 + 2j, "(1+2j)"),
    ],
)
def test_values_are_shown_as_json(value: Any, shown: Any) -> None:
    assert plain.value_of(codec.encode(value)) == shown


def test_objects_are_shown_without_their_class() -> None:
    found = plain.value_of(codec.encode(Point(3)))
    assert found["class"].endswith("Point")
    assert found["state"] == {"x": 3}
    with pytest.raises(ValueError, match="cannot be shown"):
        plain.value_of(b"\xc1")


# --- files, schedules ---


def test_large_payloads_are_files_and_unused_ones_go(tmp_path: Path) -> None:
    async def test() -> None:
        payloads = Payloads(tmp_path)
        small, large = b"x" * INLINE_BYTES_MAX, b"y" * (INLINE_BYTES_MAX + 1)
        assert await payloads.keep(small) == (small, "")
        inline, blob = await payloads.keep(large)
        assert inline is None
        assert await payloads.keep(large) == (None, blob), "equal content is one file"
        assert await payloads.load(None, blob) == large
        assert payloads.sweep(set()) == 0, "a row may be about to name it"
        file = next(tmp_path.glob("??/*"))
        import os

        os.utime(file, (1.0, 1.0))
        assert payloads.sweep({blob}) == 0
        assert payloads.sweep(set()) == 1
        with pytest.raises(NotFound):
            await payloads.load(None, blob)

    asyncio.run(test())


def test_a_schedule_that_cannot_be_is_refused_by_name() -> None:
    def spec(schedule: ScheduleSpec) -> EndpointSpec:
        return EndpointSpec("app", functions=(FunctionSpec("nightly", schedule=schedule),))

    check_schedules(spec(ScheduleSpec("0 3 * * *", "Europe/Berlin")))
    for wrong, field in (
        (ScheduleSpec("0 3 * *"), "functions.nightly.schedule.cron"),
        (ScheduleSpec("0 3 * * *", "Mars/Base"), "functions.nightly.schedule.tz"),
        (ScheduleSpec(period_s=0.01), "functions.nightly.schedule.period"),
    ):
        with pytest.raises(Invalid) as refused:
            check_schedules(spec(wrong))
        assert refused.value.field == field
