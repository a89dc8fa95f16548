"""Retries, priorities, deadlines, cached results and canaries through a real gateway."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
import pytest
from stage import Caller, Stage, until
from test_gateway_calls import args, call, lines, records

from nanopod.model import calls
from nanopod.model.endpoint import RetrySpec, Traffic

pytestmark = pytest.mark.integration


def outcome(caller: Caller, call_id: bytes) -> tuple[calls.Header, Any, list[calls.State]]:
    """(last frame, its value, the states before it) of a call."""
    states = []
    while True:
        header, payload = caller.next(30)
        if header.id != call_id:
            continue
        if isinstance(header, calls.State):
            states.append(header)
        elif isinstance(header, (calls.Result, calls.Error)):
            return header, msgspec.msgpack.decode(payload) if payload else None, states


def test_listed_error_is_tried_again_and_its_caller_hears_of_each_try(shared: Stage) -> None:
    caller = Caller(shared)
    header, value, states = outcome(caller, call_id := call(caller, "flaky", 3))
    assert isinstance(header, calls.Result)
    assert value == ["inst_f", 3], "the worker knows which try it is"
    again = [state for state in states if state.state == "requeued"]
    assert [state.attempt for state in again if "Flaky" in state.reason] == [2, 3]
    record = until(lambda: records(shared, call_id), what="the record")[0]
    assert (record.status, record.moves, record.compute_us) == (200, 2, 3 * 1500)
    caller.close()


def test_error_after_the_last_try_says_how_many_there_were(shared: Stage) -> None:
    caller = Caller(shared)
    header, _, _ = outcome(caller, call(caller, "flaky", 9))
    assert isinstance(header, calls.Error)
    assert (header.code, header.message, header.attempt) == ("remote_error", "Flaky: not yet", 3)
    assert header.types[0] == "deployment.Flaky"
    for retries in (RetrySpec(max=0), RetrySpec(max=5, initial_s=0.01, on=("KeyError", "WorkerLost"))):
        header, _, _ = outcome(caller, call(caller, "flaky", 9, retries=retries))
        assert isinstance(header, calls.Error)
        assert header.attempt == 1, "the call's own policy replaces the function's"
    caller.close()


def test_waiting_for_the_next_try_can_be_cancelled(shared: Stage) -> None:
    caller = Caller(shared)
    policy = RetrySpec(max=3, initial_s=60, cap_s=60, jitter=False, on=("ValueError",))
    call_id = call(caller, "flaky", 9, retries=policy)
    while not (isinstance(header := caller.next()[0], calls.State) and header.state == "requeued"):
        pass
    caller.send(calls.Cancel(call_id))
    header, _ = caller.answer(call_id)
    assert isinstance(header, calls.Error)
    assert (header.code, header.attempt) == ("cancelled", 2)
    until(lambda: shared.health()["in_flight"] == 0, what="nothing left")
    caller.close()


def test_retry_that_would_come_after_the_deadline_is_not_made(shared: Stage) -> None:
    caller = Caller(shared)
    policy = RetrySpec(max=3, initial_s=60, cap_s=60, jitter=False, on=("ValueError",))
    header, _, _ = outcome(caller, call(caller, "flaky", 9, retries=policy, deadline_at=time.time() + 30))
    assert isinstance(header, calls.Error)
    assert (header.code, header.attempt) == ("remote_error", 1)
    caller.close()


def test_queue_timeout_and_deadline_have_their_own_errors(shared: Stage) -> None:
    caller = Caller(shared)
    slow = [call(caller, "sleep", 30) for _ in range(4)]
    until(lambda: shared.health()["in_flight"] >= 4, what="a full function")
    policy = RetrySpec(max=1, initial_s=0.05, on=("QueueTimeout",))
    waits = call(caller, "sleep", 1, queue_timeout_s=0.2, retries=policy)
    header, _, states = outcome(caller, waits)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started, header.attempt) == ("queue_timeout", False, 2)
    assert "requeued" in [state.state for state in states]
    late = call(caller, "sleep", 1, deadline_at=time.time() + 0.3)
    header, _, _ = outcome(caller, late)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == ("call_timeout", False)
    assert "deadline" in header.message
    over = call(caller, "square", 1, deadline_at=time.time() - 1)
    header, _, _ = outcome(caller, over)
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == ("call_timeout", False)
    for call_id in slow:
        caller.send(calls.Cancel(call_id))
    until(lambda: shared.health()["in_flight"] == 0, what="free slots")
    caller.close()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"retries": RetrySpec(max=1000)}, "retries"),
        ({"depth": 17}, "nested"),
        ({"deadline_at": -1.0}, "deadline_at"),
        ({"route_key": "k" * 300}, "route_key"),
        ({"workload": -1.0}, "workload"),
        ({"session": "sess_unknown"}, "session"),
    ],
)
def test_impossible_wishes_are_refused_with_their_name(shared: Stage, fields: dict[str, Any], field: str) -> None:
    caller = Caller(shared)
    header, _ = caller.answer(call(caller, "square", 1, **fields))
    assert isinstance(header, calls.Error)
    assert header.started is False
    assert field in header.message
    caller.close()


def test_higher_priority_leaves_the_queue_first(shared: Stage) -> None:
    caller = Caller(shared)
    blockers = [call(caller, "sleep", 30) for _ in range(4)]
    until(lambda: shared.health()["in_flight"] >= 4, what="a full function")
    names = {call(caller, "sleep", 0.0, priority=priority): priority for priority in (0, 5, -3, 9)}
    until(lambda: shared.health()["in_flight"] >= 8, what="the queue")
    caller.send(calls.Cancel(blockers[0]))
    order = []
    while len(order) < 4:
        header, _ = caller.next()
        if isinstance(header, calls.Result):
            order.append(names[header.id])
    assert order == [9, 5, 0, -3]
    for call_id in blockers[1:]:
        caller.send(calls.Cancel(call_id))
    until(lambda: shared.health()["in_flight"] == 0, what="free slots")
    caller.close()


def test_cached_result_needs_no_worker_and_is_metered(shared: Stage) -> None:
    caller = Caller(shared)
    token = os.urandom(8).hex()
    first = call(caller, "cached", token)
    header, value, _ = outcome(caller, first)
    assert isinstance(header, calls.Result)
    again = call(caller, "cached", token)
    assert outcome(caller, again)[1] == value
    other = call(caller, "cached", token + "x")
    assert isinstance(outcome(caller, other)[0], calls.Result)
    until(lambda: all(records(shared, i) for i in (first, again, other)), what="the records")
    facts = [(r.status, r.compute_us, r.instance_id) for i in (first, again, other) for r in records(shared, i)]
    assert facts == [(200, 1500, "inst_f"), (200, 0, ""), (200, 1500, "inst_f")]
    call(caller, "cached", token, call_id=again)
    assert outcome(caller, again)[1] == value, "a call that is sent again finds its answer, cached or not"
    caller.close()


def test_preempted_call_of_an_idempotent_function_is_run_again(shared: Stage) -> None:
    caller = Caller(shared)
    header, value, _ = outcome(caller, call(caller, "preempted"))
    assert isinstance(header, calls.Result)
    assert value == ["inst_f", 2]
    caller.close()


def test_cost_of_a_call_comes_with_its_answer(stage: Stage) -> None:
    stage.route("endp_fn", kind="function", name="maths", functions=stage.routes["endp_fn"].functions,
                price_micro_per_s=1_000_000.0)  # fmt: skip
    stage.start()
    stage.worker("endp_fn", "inst_1")
    caller = Caller(stage)
    header, value, _ = outcome(caller, call(caller, "who"))
    assert isinstance(header, calls.Result)
    assert value == ["inst_1", 1]
    assert header.usage is not None
    assert header.usage.cost_micro == 1500 // 4, "1.5 ms of one of the four slots that the function may have"
    caller.close()


def test_lost_worker_costs_a_try_where_retries_say_so(stage: Stage) -> None:
    stage.start()
    first = stage.worker("endp_fn", "inst_1")
    noted = lines(first)
    caller = Caller(stage)
    policy = RetrySpec(max=2, initial_s=0.1)
    retried, once = call(caller, "sleep", 30, retries=policy), call(caller, "sleep", 30)
    until(lambda: len([n for n in noted if n.startswith("start")]) == 2, what="both started")
    second = stage.worker("endp_fn", "inst_2")
    noted_second = lines(second)
    first.kill()
    first.wait(5)
    header, _ = caller.answer(once)
    assert isinstance(header, calls.Error)
    assert (header.code, header.attempt) == ("worker_lost", 1)
    until(lambda: [n for n in noted_second if n.startswith("start")], what="the second try")
    assert [n for n in noted_second if n.startswith("start")] == [f"start sleep {retried.hex()}"]
    # The gateway dies between: the third worker's try is known by the journal, and is the last one.
    stage.kill_gateway()
    second.kill()
    second.wait(5)
    stage.start()
    noted_third = lines(stage.worker("endp_fn", "inst_3"))
    caller = Caller(stage)
    call(caller, "sleep", 30, call_id=retried, retries=policy)
    until(lambda: [n for n in noted_third if n.startswith("start")], 20, "the third try")
    caller.send(calls.Cancel(retried))
    header, _ = caller.answer(retried)
    assert isinstance(header, calls.Error)
    assert header.code == "cancelled"
    caller.close()


def test_canary_takes_its_share_and_its_ends_are_told_apart(stage: Stage) -> None:
    functions = stage.routes["endp_fn"].functions
    traffic = (Traffic("rev_2", 30), Traffic("rev_1", 70))
    stage.route("endp_fn", kind="function", name="maths", functions=functions, traffic=traffic)
    stage.start()
    stage.worker("endp_fn", "inst_old")
    new = stage.worker("endp_fn", "inst_new", revision="rev_2")
    caller = Caller(stage)

    def share() -> float:
        mine = {call(caller, "who") for _ in range(300)}
        found = []
        while mine:
            header, payload = caller.next()
            if header.id in mine and isinstance(header, calls.Result):
                mine.discard(header.id)
                found.append(msgspec.msgpack.decode(payload)[0])
        return found.count("inst_new") / len(found)

    assert 0.15 < share() < 0.45
    outcome(caller, call(caller, "flaky", 9, retries=RetrySpec(max=0)))

    def seen() -> dict[str, list[int]]:
        sums: dict[str, list[int]] = {}
        for samples in stage.control.samples:
            for sample in samples.endpoints:
                for revision, (ended, failed) in sample.revisions.items():
                    have = sums.setdefault(revision, [0, 0])
                    have[0] += ended
                    have[1] += failed
        return sums

    counted = until(lambda: sum(n for n, _ in seen().values()) == 301 and seen(), what="the samples")
    assert set(counted) == {"rev_1", "rev_2"}
    assert sum(failed for _, failed in counted.values()) == 1
    new.kill()
    new.wait(5)
    assert share() == 0.0, "without a worker of the canary everything goes to the other revision"
    caller.close()


def test_parts_of_an_upload_that_broke_off_are_forgotten(shared: Stage) -> None:
    payload = os.urandom(3 << 20)
    call_id = os.urandom(16)
    caller = Caller(shared)
    frames = calls.split(calls.Call(call_id, "maths", "size", size=len(payload)), payload)
    from nanopod.model import websocket

    caller.sock.sendall(websocket.encode(websocket.BINARY, frames[0], os.urandom(4)))
    assert msgspec.msgpack.decode(caller.answer(call(caller, "square", 3))[1]) == 9
    caller.close()
    caller = Caller(shared)
    caller.send(calls.Call(call_id, "maths", "size", size=len(payload)), payload)
    header, found = caller.answer(call_id)
    assert isinstance(header, calls.Result)
    assert msgspec.msgpack.decode(found) == len(payload)
    assert args(1)
    caller.close()
