"""Who is held, who is refused and when he shall come back; what the server hears of it, and hears again."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter

import pytest
from stage import Stage, until
from test_gateway_moves import Stream, whole

from nanopod.model.wire import WorkerRow

pytestmark = pytest.mark.integration


def ask(stage: Stage, model: str = "tiny", **headers: str) -> tuple[int, dict[str, str], str]:
    """(status, headers, code of the error) of a request that is not streamed."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"model": model, "messages": [], "max_tokens": 4}
    status, found, data = stage.get("/v1/chat/completions", method="POST", body=body, headers=given)
    return status, found, json.loads(data).get("error", {}).get("code", "")


def test_too_much_work_is_429_by_the_workers_speed_and_only_under_our_profiles(stage: Stage) -> None:
    for name, more in {"auto": {}, "vast": {"profile": "vast"}, "kn": {"profile": "knative"}}.items():
        stage.route(f"endp_{name}", kind="model", name=name, model_ids=(name,), max_queue_time_s=2.0, **more)
    stage.start()
    streams = []
    for name in ("auto", "vast", "kn"):
        worker = stage.worker(f"endp_{name}", f"inst_{name}", "--slots", "1", "--delay", "0.02")
        assert ask(stage, name)[0] == 200, "of an unknown speed nothing is predicted"
        stage.tell(worker, slots=1, perf=10.0)
        until(lambda n=name: any(s.instance_id == f"inst_{n}" and s.perf for s in stage.control.states), what="perf")
        assert ask(stage, name)[0] == 200, "the request itself does not count"
        streams.append(Stream(stage, model=name, seed=1, max_tokens=2000))
    until(lambda: all(stream.tokens for stream in streams), what="streams")
    for name in ("auto", "vast"):
        status, headers, code = ask(stage, name)
        assert (status, code) == (429, "queue_too_long")
        # About 20 tokens of prompt, and 4 to 128 of output by the median so far, at 10 units per second.
        assert 1 <= int(headers["retry-after"]) <= 14
    status, headers, code = ask(stage, "kn", x_nanopod_wait_s="0.3")
    assert (status, code) == (503, "queue_timeout")
    assert int(headers["retry-after"]) >= 1
    for stream in streams:
        stream.sock.shutdown(socket.SHUT_RDWR)


def test_nobody_ready_is_504_with_the_expected_time_or_503_by_profile(stage: Stage) -> None:
    stage.route("endp_eta", kind="model", name="slow", model_ids=("slow",), eta_s=1000.0)
    stage.route("endp_kn", kind="model", name="strict", model_ids=("strict",), profile="coreweave", eta_s=1000.0)
    stage.route("endp_brief", kind="model", name="brief", model_ids=("brief",), timeout_s=0.4)
    stage.start()
    status, headers, code = ask(stage, "slow", x_nanopod_wait_s="0.2")
    assert (status, code) == (504, "wake_timeout")
    assert 900 < int(headers["retry-after"]) <= 1000
    status, headers, code = ask(stage, "strict", x_nanopod_wait_s="0.2")
    assert (status, code) == (503, "queue_timeout")
    assert 900 < int(headers["retry-after"]) <= 1000
    status, headers, code = ask(stage, "brief")
    assert (status, code, headers["retry-after"]) == (504, "wake_timeout", "1"), (
        "the request's own limit counts as well"
    )


def test_busy_workers_are_another_reason_than_none(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1", "--slots", "1", "--delay", "0.02")
    stream = Stream(stage, seed=1, max_tokens=2000)
    until(lambda: stream.tokens, what="tokens")
    status, _, code = ask(stage, x_nanopod_wait_s="0.2")
    assert (status, code) == (504, "queue_timeout")
    stream.sock.shutdown(socket.SHUT_RDWR)


def test_container_concurrency_counts_not_the_slots(stage: Stage) -> None:
    stage.route("endp_two", kind="model", name="two", model_ids=("two",), concurrency=2)
    stage.route("endp_any", kind="model", name="any", model_ids=("any",), concurrency=0)
    stage.start()
    for name in ("two", "any"):
        stage.worker(f"endp_{name}", f"inst_{name}", "--slots", "1", "--delay", "0.02")
    streams = {n: [Stream(stage, model=n, seed=s, max_tokens=2000) for s in range(4)] for n in ("two", "any")}
    until(lambda: all(stream.tokens for stream in streams["any"]), what="four at once")
    until(lambda: sum(bool(stream.tokens) for stream in streams["two"]) == 2, what="two at once")
    assert ask(stage, "two", x_nanopod_wait_s="0.3")[0] == 504
    assert sum(bool(stream.tokens) for stream in streams["two"]) == 2
    for stream in (*streams["two"], *streams["any"]):
        stream.sock.shutdown(socket.SHUT_RDWR)


def test_full_engine_gets_nothing_until_it_has_room_and_its_load_is_told(stage: Stage) -> None:
    stage.start()
    worker = stage.worker("endp_model", "inst_1")
    stage.tell(worker, queued=6, kv_use=0.5)

    def told(queued: int, kv_use: float) -> bool:
        return any((s.queued, s.kv_use) == (queued, kv_use) for s in stage.control.states)

    until(lambda: told(6, 0.5), what="the engine's load at the server")
    assert ask(stage, x_nanopod_wait_s="0.3")[0] == 504
    waiting = Stream(stage, seed=4, max_tokens=3)
    until(lambda: stage.health()["in_flight"] == 1, what="it waits here, not there")
    stage.tell(worker, queued=5, kv_use=0.8)
    whole(waiting, 4, 3)
    stage.tell(worker, queued=0, kv_use=0.81)
    until(lambda: told(0, 0.81), what="the engine's load at the server")
    assert ask(stage, x_nanopod_wait_s="0.3")[0] == 504
    before = len(stage.control.states)
    for step in range(40):
        stage.tell(worker, queued=0, kv_use=step / 100)
    until(lambda: told(0, 0.39), what="the last one")
    assert len(stage.control.states) - before <= 4, "once a second, not with each change"


def test_samples_come_again_until_they_are_acknowledged(stage: Stage) -> None:
    control = stage.control
    control.acking_samples = False
    stage.start()
    stage.worker("endp_model", "inst_1")
    for _ in range(2):
        assert ask(stage)[0] == 200
        time.sleep(1.05)

    def seconds() -> Counter[int]:
        return Counter(int(s.at) for s in control.samples if s.endpoints and not s.poke)

    def cut() -> None:
        """A new link, and what comes by it before the tables are answered."""
        seen = control.seen
        control.cut()
        until(lambda: control.seen > seen, what="the new link")

    first = until(
        lambda: not control.samples[-1].endpoints[0].concurrency and len(found := seconds()) >= 2 and found,
        what="two samples",
    )
    cut()
    again = seconds()
    assert all(again[at] == 2 for at in first)
    for at in first:
        one, two = (s for s in control.samples if s.endpoints and not s.poke and int(s.at) == at)
        assert one == two, "a second that comes again says the same"
    control.acking_samples = True
    cut()
    assert all(seconds()[at] == 3 for at in first), "nobody had acknowledged them"
    control.samples.clear()
    cut()
    assert not set(seconds()) & set(again), "what was acknowledged does not come again"


def test_prompts_with_the_same_beginning_go_to_the_same_engine(stage: Stage) -> None:
    stage.start()
    for instance in ("inst_1", "inst_2", "inst_3"):
        stage.worker("endp_model", instance)
    stories = [f"{number} " * 400 for number in range(6)]
    for story in stories:
        for number in range(5):
            body = {"model": "tiny", "messages": [{"role": "user", "content": f"{story}{number}"}], "max_tokens": 1}
            assert stage.get("/v1/chat/completions", method="POST", body=body)[0] == 200
    records = until(
        lambda: (f := [r for r in stage.control.records if r.status == 200]) and len(f) == 30 and f, what="30"
    )
    records.sort(key=lambda record: record.t_arrival)
    homes = [{record.instance_id for record in records[at : at + 5]} for at in range(0, 30, 5)]
    assert all(len(home) == 1 for home in homes), homes


def test_first_request_from_zero_is_told_once_with_its_demand(stage: Stage) -> None:
    stage.start()
    stream = Stream(stage, seed=1)
    until(lambda: stage.control.demands, what="demand")
    poke = until(lambda: [s for s in stage.control.samples if s.poke], what="a poke")[0]
    assert (poke.endpoints[0].concurrency, poke.endpoints[0].requests) == (1.0, 1)
    sample = until(
        lambda: [e for s in stage.control.samples if not s.poke for e in s.endpoints if e.oldest_wait_s > 0.9],
        what="wait",
    )[0]
    assert sample.parked == 1
    assert sample.waiting_load > 0
    assert sum(e.requests for s in stage.control.samples for e in s.endpoints) == 1
    assert sum(s.poke for s in stage.control.samples) == 1
    stream.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: stage.health()["in_flight"] == 0, what="gone at once")


def test_draining_worker_ends_what_it_has_and_the_queue_goes_elsewhere(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1", "--slots", "2", "--delay", "0.02")
    running = [Stream(stage, seed=seed, max_tokens=150) for seed in range(2)]
    until(lambda: all(stream.tokens for stream in running), what="two streams")
    queued = [Stream(stage, seed=10 + seed, max_tokens=5) for seed in range(3)]
    until(lambda: stage.health()["in_flight"] == 5, what="three that wait")
    row = stage.workers["inst_1"]
    stage.workers["inst_1"] = WorkerRow(
        row.instance_id, row.endpoint_id, row.revision_id, row.epoch, row.slots, row.token_digest, draining=True
    )
    stage.push()
    stage.worker("endp_model", "inst_2")
    for seed, stream in enumerate(queued):
        whole(stream, 10 + seed, 5)
    for seed, stream in enumerate(running):
        whole(stream, seed, 150)
    records = until(
        lambda: (f := [r for r in stage.control.records if r.status == 200]) and len(f) == 5 and f, what="5"
    )
    assert Counter(r.instance_id for r in records) == {"inst_1": 2, "inst_2": 3}
    assert not any(r.moves for r in records)
