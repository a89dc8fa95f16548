"""Remote calls through a real gateway: once and no more, whatever dies."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import msgspec
import pytest
from stage import KEY, READ_KEY, Caller, Stage, digest, until

from nanopod.model import calls

pytestmark = pytest.mark.integration


def args(*values: Any) -> bytes:
    return msgspec.msgpack.encode([list(values), {}])


def call(caller: Caller, function: str, *values: Any, endpoint: str = "maths", **fields: Any) -> bytes:
    """Send a call; its id."""
    call_id = fields.pop("call_id", None) or os.urandom(16)
    payload = fields.pop("payload", None) or args(*values)
    caller.send(calls.Call(call_id, endpoint, function, size=len(payload), **fields), payload)
    return call_id


def lines(process: Any) -> list[str]:
    """Collects what an emulator notes."""
    found: list[str] = []

    def read() -> None:
        for line in process.stdout:
            found.append(line.strip())

    threading.Thread(target=read, daemon=True).start()
    return found


def records(stage: Stage, call_id: bytes) -> list[Any]:
    return [r for r in stage.control.records if r.record_id == call_id.hex()]


def test_results_by_every_name_of_the_endpoint(shared: Stage) -> None:
    caller = Caller(shared)
    for name in ("maths", "maths:default", "endp_fn"):
        header, payload = caller.answer(call(caller, "square", 3, endpoint=name))
        assert isinstance(header, calls.Result)
        assert msgspec.msgpack.decode(payload) == 9
    caller.close()


def test_many_calls_at_once_each_get_their_own_answer_and_one_record(shared: Stage) -> None:
    caller = Caller(shared)
    wanted = {call(caller, "square", n): n * n for n in range(500)}
    got = {}
    while len(got) < 500:
        header, payload = caller.next()
        if isinstance(header, calls.Result):
            got[header.id] = msgspec.msgpack.decode(payload)
    assert got == wanted
    until(lambda: all(len(records(shared, i)) == 1 for i in wanted), what="a record for each")
    record = records(shared, next(iter(wanted)))[0]
    assert (record.kind, record.function, record.status, record.compute_us) == ("call", "square", 200, 1500)
    caller.send(calls.Ack(b"", list(wanted)))
    caller.close()


@pytest.mark.parametrize(
    ("fields", "code", "names"),
    [
        ({"function": "cube"}, "not_found", "square"),
        ({"function": "square", "endpoint": "physics"}, "not_found", "maths:default"),
        ({"function": "square", "call_id": b"short"}, "unprocessable_entity", "16 bytes"),
        ({"function": "square", "timeout_s": 0.0}, "unprocessable_entity", "timeout_s"),
    ],
)
def test_impossible_calls_are_told_why(shared: Stage, fields: dict[str, Any], code: str, names: str) -> None:
    caller = Caller(shared)
    call_id = call(caller, fields.pop("function"), 1, **fields)
    header, _ = caller.answer(call_id)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == (code, False)
    assert names in header.message
    caller.close()


def test_too_large_arguments_are_refused_with_the_limit(shared: Stage) -> None:
    caller = Caller(shared)
    call_id = os.urandom(16)
    caller.send(calls.Call(call_id, "maths", "size", size=calls.INLINE_BYTES_MAX + 1), b"x")
    header, _ = caller.answer(call_id)
    assert isinstance(header, calls.Error)
    assert "32 MiB" in header.message
    caller.close()


def test_large_arguments_and_results_travel_in_parts(shared: Stage) -> None:
    caller = Caller(shared)
    payload = os.urandom(5 << 20)
    big = call(caller, "size", payload=payload)
    small = call(caller, "square", 4)
    assert msgspec.msgpack.decode(caller.answer(small)[1]) == 16
    assert msgspec.msgpack.decode(caller.answer(big)[1]) == 5 << 20
    header, found = caller.answer(call(caller, "big", 6 << 20))
    assert isinstance(header, calls.Result)
    assert found == b"x" * (6 << 20)
    caller.close()


def test_generator_items_come_in_order(shared: Stage) -> None:
    caller = Caller(shared)
    call_id = call(caller, "count", 50)
    found = []
    while True:
        header, payload = caller.next()
        if isinstance(header, calls.Item):
            assert header.index == len(found)
            found.append(msgspec.msgpack.decode(payload))
            caller.send(calls.Credit(call_id, 1))
        elif isinstance(header, calls.End):
            break
    assert found == list(range(50))
    caller.close()


def test_handed_back_call_is_run_elsewhere_silently(shared: Stage) -> None:
    caller = Caller(shared)
    call_id = call(caller, "refuse_once", 1)
    states = []
    while isinstance((frame := caller.next())[0], calls.State):
        states.append(frame[0].state)
    assert isinstance(frame[0], calls.Result)
    assert frame[0].id == call_id
    assert states in (["requeued"], ["requeued", "started"])
    caller.close()


def test_limits_hold_per_function_and_do_not_hold_up_others(shared: Stage) -> None:
    caller = Caller(shared)
    began = time.monotonic()
    slow = [call(caller, "sleep", 0.5) for _ in range(8)]  # four at a time
    quick = call(caller, "square", 2)
    order = []
    while len(order) < 9:
        header, _ = caller.next()
        if isinstance(header, calls.Result):
            order.append(header.id)
    assert order[0] == quick
    assert set(order[1:5]) == set(slow[:4])
    assert time.monotonic() - began > 0.95
    caller.close()


def test_cancel_of_waiting_and_of_running_calls(shared: Stage) -> None:
    caller = Caller(shared)
    running = [call(caller, "sleep", 30) for _ in range(4)]
    waiting = call(caller, "sleep", 30)
    until(lambda: shared.health()["in_flight"] >= 5, what="the calls")
    caller.send(calls.Cancel(waiting))
    header, _ = caller.answer(waiting)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == ("cancelled", False)
    for call_id in running:
        caller.send(calls.Cancel(call_id))
    for _ in running:
        header, _ = caller.next()
        while isinstance(header, calls.State):
            header, _ = caller.next()
        assert isinstance(header, calls.Error)
        assert header.message == "cancelled by the worker"
    caller.close()


def test_timeouts_of_queue_and_call(shared: Stage) -> None:
    caller = Caller(shared)
    slow = [call(caller, "sleep", 3, timeout_s=1.0) for _ in range(4)]
    late = call(caller, "sleep", 1, queue_timeout_s=0.3)
    header, _ = caller.answer(late)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == ("queue_timeout", False)
    codes = set()
    for _ in slow:
        header, _ = caller.next()
        while isinstance(header, calls.State):
            header, _ = caller.next()
        assert isinstance(header, calls.Error)
        codes.add((header.code, header.started))
    assert codes == {("call_timeout", True)}
    until(lambda: shared.health()["in_flight"] == 0, what="free slots")
    caller.close()


def test_returning_client_gets_result_or_state_of_a_known_call(shared: Stage) -> None:
    caller = Caller(shared)
    running = call(caller, "sleep", 1.5)
    while not (isinstance(header := caller.next()[0], calls.State) and header.state == "started"):
        pass
    done = call(caller, "square", 6)
    caller.answer(done)
    caller.close()
    caller = Caller(shared)
    call(caller, "square", 1000, call_id=done)
    assert msgspec.msgpack.decode(caller.answer(done)[1]) == 36
    call(caller, "sleep", 1.5, call_id=running)
    header, _ = caller.next()
    assert isinstance(header, calls.State)
    assert header.state == "started"
    assert isinstance(caller.answer(running)[0], calls.Result)
    assert len(records(shared, running)) <= 1
    caller.close()


def test_revoked_and_read_only_keys(shared: Stage) -> None:
    with pytest.raises(ValueError, match="403"):
        Caller(shared, key=READ_KEY)
    with pytest.raises(ValueError, match="401"):
        Caller(shared, key="sk_np_nonsense")
    caller = Caller(shared)
    row = shared.keys.pop(digest(KEY))
    try:
        shared.push()
        with pytest.raises(ConnectionError, match="not valid"):
            caller.next(2)
    finally:
        shared.keys[digest(KEY)] = row
        shared.push()
    until(lambda: shared.get("/v1/models")[0] == 200, what="the key")


def test_lost_worker_fails_a_started_call_once_and_reruns_an_idempotent_one(stage: Stage) -> None:
    stage.start()
    worker = stage.worker("endp_fn", "inst_1")
    noted = lines(worker)
    caller = Caller(stage)
    once, again = call(caller, "sleep", 2), call(caller, "sleep", 2, idempotent=True)
    until(lambda: len([n for n in noted if n.startswith("start")]) == 2, what="both started")
    second = stage.worker("endp_fn", "inst_2")
    noted_second = lines(second)
    killed = time.monotonic()
    worker.kill()
    worker.wait(5)
    header, _ = caller.answer(once)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == ("worker_lost", True)
    assert time.monotonic() - killed > 4.5
    header, payload = caller.answer(again)
    assert isinstance(header, calls.Result)
    assert msgspec.msgpack.decode(payload) == "slept"
    assert [n for n in noted_second if n.startswith("start")] == [f"start sleep {again.hex()}"]
    caller.close()


def test_killed_gateway_adopts_running_calls_and_starts_none_twice(stage: Stage) -> None:
    stage.start()
    noted = lines(stage.worker("endp_fn", "inst_1"))
    caller = Caller(stage)
    running, done = call(caller, "sleep", 2), call(caller, "sleep", 0.1)
    until(lambda: len([n for n in noted if n.startswith("start")]) == 2, what="both started")
    stage.kill_gateway()
    time.sleep(0.3)
    stage.start()
    caller = Caller(stage)
    call(caller, "sleep", 2, call_id=running)
    call(caller, "sleep", 0.1, call_id=done)
    for _ in range(2):
        header, payload = caller.next()
        while isinstance(header, calls.State):
            header, payload = caller.next()
        assert isinstance(header, calls.Result)
        assert msgspec.msgpack.decode(payload) == "slept"
    assert len([n for n in noted if n.startswith("start")]) == 2
    assert len([n for n in noted if n.startswith("adopted")]) == 2
    caller.send(calls.Ack(b"", [running, done]))
    until(lambda: noted.count("released") == 2, what="releases")
    until(lambda: len(records(stage, running)) == 1 and len(records(stage, done)) == 1, what="one record each")
    caller.close()


def test_killed_gateway_and_worker_leave_the_call_lost_not_run_twice(stage: Stage) -> None:
    stage.start()
    worker = stage.worker("endp_fn", "inst_1")
    noted = lines(worker)
    caller = Caller(stage)
    call_id = call(caller, "sleep", 5)
    rerun = call(caller, "sleep", 0.2, idempotent=True)
    until(lambda: len([n for n in noted if n.startswith("start")]) == 2, what="the starts")
    stage.kill_gateway()
    worker.kill()
    worker.wait(5)
    stage.start()
    noted_second = lines(stage.worker("endp_fn", "inst_2"))
    caller = Caller(stage)
    call(caller, "sleep", 5, call_id=call_id)
    call(caller, "sleep", 0.2, call_id=rerun, idempotent=True)
    header, _ = caller.answer(call_id)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == ("worker_lost", None)
    assert isinstance(caller.answer(rerun)[0], calls.Result)
    assert [n for n in noted_second if n.startswith("start")] == [f"start sleep {rerun.hex()}"]
    caller.close()


def test_answers_that_nobody_acknowledged_are_no_load_for_the_next_gateway(stage: Stage) -> None:
    stage.start()
    worker = stage.worker("endp_fn", "inst_1")
    caller = Caller(stage)
    assert isinstance(caller.answer(call(caller, "square", 2))[0], calls.Result)
    caller.close()
    stage.kill_gateway()
    worker.kill()
    worker.wait(5)
    seen = len(stage.control.samples)
    stage.start()
    assert stage.health()["in_flight"] == 0
    stage.worker("endp_fn", "inst_2")
    caller = Caller(stage)
    assert isinstance(caller.answer(call(caller, "square", 3))[0], calls.Result)

    def told() -> list[Any]:
        return [one for message in stage.control.samples[seen:] for one in message.endpoints]

    until(lambda: any(one.served[2] for one in told()), what="the sample with the call")
    assert sum(one.requests for one in told()) == 1, "the call of before is not among them"
    caller.close()


def test_waiting_calls_wake_the_endpoint_and_fail_with_its_failure(stage: Stage) -> None:
    stage.start()
    caller = Caller(stage)
    call_id = call(caller, "square", 2)
    header, _ = caller.next()
    assert isinstance(header, calls.State)
    assert (header.state, header.reason) == ("waking", "starting 1 worker")
    assert until(lambda: stage.control.demands, what="demand")[0].endpoint_id == "endp_fn"
    stage.fail_route("endp_fn")
    header, _ = caller.answer(call_id)
    assert isinstance(header, calls.Error)
    assert (header.code, header.stage, header.log_tail) == ("deployment_failed", "import", "last words")
    assert "ModuleNotFoundError" in header.message
    caller.close()


def test_client_that_stays_away_has_its_calls_cancelled(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_fn", "inst_1")
    caller = Caller(stage)
    call(caller, "sleep", 60)
    until(lambda: stage.health()["in_flight"] == 1, what="the call")
    caller.close()
    time.sleep(8)
    assert stage.health()["in_flight"] == 1
    until(lambda: stage.health()["in_flight"] == 0, 20, "the cancellation")


@pytest.mark.parametrize("ended", ["done", "lost"])
def test_an_answer_the_client_never_acknowledged_is_not_made_again(stage: Stage, ended: str) -> None:
    """The gateway dies between a call's end and its client's acknowledgement; only another worker is left."""
    stage.start()
    first = stage.worker("endp_fn", "inst_1")
    noted = lines(first)
    caller = Caller(stage)
    call_id = call(caller, "sleep", 0.2 if ended == "done" else 30)
    until(lambda: [n for n in noted if n.startswith("start")], what="the start")
    if ended == "lost":
        first.kill()
        first.wait(5)
    caller.answer(call_id)
    caller.close()
    stage.kill_gateway()
    if ended == "done":
        first.kill()
        first.wait(5)
    stage.start()
    noted_second = lines(stage.worker("endp_fn", "inst_2"))
    caller = Caller(stage)
    call(caller, "sleep", 0.2, call_id=call_id)
    header, _ = caller.answer(call_id)
    assert isinstance(header, calls.Error)
    assert header.code == "worker_lost"
    assert not [n for n in noted_second if n.startswith("start")]
    caller.close()
