"""Sticky sessions, route keys, nested calls, and the keys of workers and of the server, through a real gateway."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import msgspec
import pytest
from stage import OTHER_KEY, SERVER_KEY, Caller, Stage, until
from test_gateway_calls import args, call, lines, records

from nanopod.model import calls
from nanopod.model.wire import WorkerRow

pytestmark = pytest.mark.integration


def open_session(caller: Caller, **fields: Any) -> calls.Header:
    """Ask for a session; the answer."""
    request = fields.pop("request", None) or os.urandom(16)
    payload = fields.pop("payload", b"")
    caller.send(calls.SessionOpen(request, "maths", **fields), payload)
    while True:
        header, _ = caller.next()
        if header.id == request:
            return header


def session(caller: Caller, **fields: Any) -> calls.SessionState:
    header = open_session(caller, **fields)
    assert isinstance(header, calls.SessionState), header
    return header


def where(caller: Caller, **fields: Any) -> str:
    """The instance that ran a call, or the code of its error."""
    header, payload = caller.answer(call(caller, "who", **fields))
    if isinstance(header, calls.Error):
        return header.code
    return str(msgspec.msgpack.decode(payload)[0])


@pytest.fixture
def pair(stage: Stage) -> Stage:
    """A gateway with two workers."""
    stage.start()
    stage.worker("endp_fn", "inst_1")
    stage.worker("endp_fn", "inst_2")
    return stage


def test_session_stays_with_its_worker_over_reconnections(pair: Stage) -> None:
    caller = Caller(pair)
    request = os.urandom(16)
    opened = session(caller, request=request)
    assert opened.worker in ("inst_1", "inst_2")
    assert {where(caller, session=opened.session) for _ in range(20)} == {opened.worker}
    caller.close()
    caller = Caller(pair)
    assert session(caller, request=request) == opened, "a request that is sent again finds its session"
    assert {where(caller, session=opened.session) for _ in range(5)} == {opened.worker}
    assert {where(caller) for _ in range(40)} == {"inst_1", "inst_2"}, "other calls go anywhere"
    stranger = Caller(pair, key=OTHER_KEY)
    header, _ = stranger.answer(call(stranger, "who", session=opened.session))
    assert isinstance(header, calls.Error)
    stranger.close()
    caller.send(calls.SessionClose(request, opened.session))
    assert caller.next()[0] == calls.SessionState(request, opened.session)
    assert where(caller, session=opened.session) == "session_lost"
    caller.close()


def test_workers_have_ten_sessions_and_an_eleventh_is_too_many(pair: Stage) -> None:
    caller = Caller(pair)
    opened = [session(caller) for _ in range(20)]
    assert sorted(s.worker for s in opened) == ["inst_1"] * 10 + ["inst_2"] * 10
    refused = open_session(caller)
    assert isinstance(refused, calls.Error)
    assert refused.code == "too_many_requests"
    assert "10 sessions" in refused.message
    caller.send(calls.SessionClose(os.urandom(16), opened[3].session))
    assert isinstance(caller.next()[0], calls.SessionState)
    assert session(caller).worker == opened[3].worker
    caller.close()


def test_session_ends_by_itself_and_its_last_call_runs_on_its_worker(stage: Stage) -> None:
    stage.start()
    noted = {name: lines(stage.worker("endp_fn", name)) for name in ("inst_1", "inst_2")}
    caller = Caller(stage)
    opened = session(caller, lifetime_s=0.5, on_close="sleep", payload=args(0.0))
    busy = call(caller, "sleep", 1.2, session=opened.session)
    assert isinstance(caller.answer(busy)[0], calls.Result), "a session with a running call does not end"
    own, other = noted[opened.worker], noted["inst_1" if opened.worker == "inst_2" else "inst_2"]
    until(lambda: len([n for n in own if n.startswith("start sleep")]) == 2, what="the call at its end")
    until(lambda: own.count("released") >= 1, what="its release: nobody waits for its answer")
    assert not other
    assert where(caller, session=opened.session) == "session_lost"
    until(lambda: len([r for r in stage.control.records if r.function == "sleep"]) == 2, what="both are metered")
    caller.close()


def test_calls_of_a_session_whose_worker_dies_are_lost_even_idempotent_ones(pair: Stage) -> None:
    caller = Caller(pair)
    opened = session(caller)
    victim = next(p for p in pair.processes if opened.worker in p.args)  # type: ignore[operator]
    running = [call(caller, "sleep", 30, session=opened.session, idempotent=True) for _ in range(4)]
    waiting = call(caller, "sleep", 30, session=opened.session)
    until(lambda: pair.health()["in_flight"] == 5, what="the calls")
    victim.kill()
    victim.wait(5)
    codes = {}
    while len(codes) < 5:
        header, _ = caller.next(30)
        if isinstance(header, calls.Error):
            codes[header.id] = (header.code, header.started)
    assert codes.pop(waiting) == ("session_lost", False)
    assert set(codes.values()) <= {("session_lost", True), ("session_lost", None)}
    assert set(codes) == set(running)
    assert where(caller) not in ("session_lost", opened.worker)
    caller.close()


def test_impossible_sessions_are_told_why(shared: Stage) -> None:
    caller = Caller(shared)
    for fields, text in (
        ({"lifetime_s": 0.0}, "lifetime"),
        ({"on_close": "nothing"}, "no function `nothing`"),
        ({"wait_s": -1.0}, "wait_s"),
    ):
        header = open_session(caller, **fields)
        assert isinstance(header, calls.Error)
        assert text in header.message
    caller.close()


def test_session_waits_for_a_worker_and_gives_up(stage: Stage) -> None:
    stage.start()
    caller = Caller(stage)
    header = open_session(caller, wait_s=0.3)
    assert isinstance(header, calls.Error)
    assert header.code == "wake_timeout"
    assert stage.control.demands, "it asked for a worker"
    request = os.urandom(16)
    caller.send(calls.SessionOpen(request, "maths", wait_s=60.0))
    stage.worker("endp_fn", "inst_1")
    header, _ = caller.next()
    assert isinstance(header, calls.SessionState)
    assert header.worker == "inst_1"
    caller.close()


def test_route_key_stays_where_it_was(pair: Stage) -> None:
    caller = Caller(pair)
    for key in ("lora-a", "lora-b", "lora-c"):
        first = where(caller, route_key=key)
        assert {where(caller, route_key=key) for _ in range(10)} == {first}
    caller.close()


def test_caller_inside_a_worker_lends_its_slot(stage: Stage) -> None:
    """A function that may run once at a time calls itself through the fleet, four deep."""
    stage.start()
    noted = lines(stage.worker("endp_fn", "inst_1", "--slots", "1"))
    outside = Caller(stage)
    inside = Caller(stage, key="token-inst_1", client_id=b"w" * 16)  # the join token of the worker is its key
    chain = [call(outside, "sleep", 30)]
    for depth in range(1, 5):
        until(lambda: f"start sleep {chain[-1].hex()}" in noted, what=f"call {len(chain)}")
        chain.append(call(inside, "sleep", 30 if depth < 4 else 0.0, parent=chain[-1], depth=depth))
    assert isinstance(inside.answer(chain[-1])[0], calls.Result)
    waiting = call(outside, "who")
    assert stage.health()["in_flight"] == 5
    for depth in (3, 2, 1):
        inside.send(calls.Cancel(chain[depth]))
        header, _ = inside.answer(chain[depth])
        assert isinstance(header, calls.Error)
    outside.send(calls.Cancel(chain[0]))
    outside.answer(chain[0])
    assert isinstance(outside.answer(waiting)[0], calls.Result), "the only slot is free again"
    record = until(lambda: records(stage, chain[-1]), what="the record")[0]
    assert (record.workspace_id, record.key_id) == ("wksp_a", "inst_1")
    until(lambda: stage.health()["in_flight"] == 0, what="nothing left")
    inside.close()
    outside.close()


def test_calls_may_be_nested_sixteen_deep_whatever_they_say_of_themselves(shared: Stage) -> None:
    caller = Caller(shared)
    inside = Caller(shared, key="token-inst_f", client_id=b"w" * 16)
    chain = [call(caller, "sleep", 30)]
    until(lambda: shared.health()["in_flight"] >= 1, what="the outermost call")
    for _ in range(calls.DEPTH_MAX):
        chain.append(call(inside, "sleep", 30, parent=chain[-1]))
    header, _ = inside.answer(call(inside, "square", 1, parent=chain[-1]))
    assert isinstance(header, calls.Error)
    assert (header.code, header.started) == ("unprocessable_entity", False)
    assert "16 deep" in header.message
    for call_id in reversed(chain[1:]):
        inside.send(calls.Cancel(call_id))
    caller.send(calls.Cancel(chain[0]))
    until(lambda: shared.health()["in_flight"] == 0, what="nothing left")
    inside.close()
    caller.close()


def test_worker_key_ends_with_its_instance(stage: Stage) -> None:
    stage.start()
    token = "join-me"
    stage.workers["inst_9"] = WorkerRow("inst_9", "endp_fn", "rev_1", 1, 4, hashlib.sha256(token.encode()).hexdigest())
    stage.push()
    until(lambda: stage.get("/v1/models", key=token)[0] == 200, what="the key")
    inside = Caller(stage, key=token)
    del stage.workers["inst_9"]
    stage.push()
    with pytest.raises(ConnectionError, match="not valid"):
        inside.next(10)
    assert stage.get("/v1/models", key=token)[0] == 401


def test_server_calls_on_behalf_of_others_and_may_be_away_for_longer(shared: Stage) -> None:
    server = Caller(shared, key=SERVER_KEY, client_id=b"s" * 16)
    behalf = call(server, "sleep", 11.5, on_behalf="abcdefgh")
    until(lambda: shared.health()["in_flight"] == 1, what="the call")
    server.close()
    caller = Caller(shared)
    plain = call(caller, "who", on_behalf="somebody")
    assert isinstance(caller.answer(plain)[0], calls.Result)
    record = until(lambda: records(shared, behalf), 30, "the end of a call whose client is away for more than 10 s")[0]
    assert (record.key_id, record.status) == ("abcdefgh", 200)
    assert records(shared, plain)[0].key_id == "abcdefgh", "only the server is believed"
    server = Caller(shared, key=SERVER_KEY, client_id=b"s" * 16)
    call(server, "sleep", 11.5, call_id=behalf)
    assert isinstance(server.answer(behalf)[0], calls.Result)
    server.close()
    caller.close()


def test_session_that_is_given_up_while_it_waits_or_lives_is_gone(stage: Stage) -> None:
    stage.start()
    caller = Caller(stage)
    request = os.urandom(16)
    caller.send(calls.SessionOpen(request, "maths", wait_s=60.0))
    until(lambda: stage.control.demands, what="its demand")
    caller.send(calls.Cancel(request))
    header, _ = caller.next()
    assert isinstance(header, calls.Error)
    assert (header.id, header.code) == (request, "cancelled")
    stage.worker("endp_fn", "inst_1")
    opened = session(caller)
    caller.send(calls.Cancel(opened.id))
    assert where(caller, session=opened.session) == "session_lost"
    until(lambda: stage.health()["in_flight"] == 0, what="nothing left")
    caller.close()


def test_worker_that_is_going_to_stop_still_gets_the_last_call_of_its_sessions(stage: Stage) -> None:
    from msgspec.structs import replace

    stage.start()
    noted = lines(stage.worker("endp_fn", "inst_1"))
    caller = Caller(stage)
    opened = session(caller, on_close="sleep", payload=args(0.0))
    stage.workers["inst_1"] = replace(stage.workers["inst_1"], draining=True)
    stage.push()
    until(lambda: any(line.startswith("start sleep") for line in noted), what="the call at the session's end")
    assert where(caller, session=opened.session) == "session_lost"
    caller.close()
