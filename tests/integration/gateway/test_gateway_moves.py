"""Workers die, stop, are reclaimed or never come: what the caller of a stream sees of it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from typing import Any

import openai
import pytest
from emulator import text_of, token
from stage import KEY, Stage, until

from nanopod.model.wire import WorkerRow

pytestmark = pytest.mark.integration


def expected(seed: int, count: int, choice: int = 0) -> str:
    return "".join(text_of(token(seed, choice, position)) for position in range(count))


class Stream(threading.Thread):
    """One streaming request, read in a thread."""

    def __init__(self, stage: Stage, *, headers: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(daemon=True)
        body = json.dumps({"model": "tiny", "messages": [], "stream": True, **fields}).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self.sock = stage.raw()
        self.sock.settimeout(60)
        self.sock.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{lines}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        self.data = b""
        self.times: list[float] = []
        self.start()

    def run(self) -> None:
        try:
            while more := self.sock.recv(65536):
                self.data += more
                self.times.append(time.monotonic())
        except OSError:
            pass

    @property
    def tokens(self) -> int:
        return (
            self.data.count(b'"delta": {"content": "')
            - self.data.count(b'"content": "", ')
            - self.data.count(b'"content": ""}')
        )

    def done(self, timeout_s: float = 30) -> Stream:
        self.join(timeout_s)
        assert not self.is_alive(), f"the stream did not end: {self.data[-300:]!r}"
        return self

    @property
    def head(self) -> bytes:
        return self.data.split(b"\r\n\r\n")[0]

    @property
    def events(self) -> list[Any]:
        """Decoded events; the chunked framing is checked on the way."""
        rest, body = self.data.split(b"\r\n\r\n", 1)[1], b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            count = int(size, 16)
            body += rest[:count]
            assert rest[count : count + 2] == b"\r\n"
            rest = rest[count + 2 :]
            if not count:
                assert not rest
                break
        else:
            raise AssertionError("the body has no last chunk")
        found = []
        for event in body.split(b"\n\n"):
            if event.startswith(b"data: "):
                found.append("[DONE]" if event == b"data: [DONE]" else json.loads(event[6:]))
            elif event:
                assert event.startswith(b":"), event
        return found

    def text(self, choice: int = 0) -> str:
        parts = [
            c["delta"].get("content", "")
            for e in self.events
            if e != "[DONE]"
            for c in e.get("choices", [])
            if c["index"] == choice
        ]
        return "".join(parts)


def whole(stream: Stream, seed: int, count: int, choices: int = 1) -> None:
    """The stream is what an unbroken one would have been."""
    events = stream.done().events
    assert stream.head.startswith(b"HTTP/1.1 200 OK")
    assert events.count("[DONE]") == 1
    assert events[-1] == "[DONE]"
    for choice in range(choices):
        assert stream.text(choice) == expected(seed, count, choice)
    chunks = [event for event in events if event != "[DONE]"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["created"] for chunk in chunks}) == 1
    roles = [c for chunk in chunks for c in chunk["choices"] if "role" in c["delta"]]
    assert len(roles) == choices
    ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert ends == ["length"] * choices


def two(stage: Stage, delay: float = 0.01) -> dict[str, subprocess.Popen[str]]:
    stage.start()
    return {name: stage.worker("endp_model", name, "--delay", str(delay)) for name in ("inst_1", "inst_2")}


def busy(stage: Stage, instance: str) -> bool:
    return any(s.instance_id == instance and s.in_flight for s in stage.control.states)


@pytest.mark.parametrize("at", [0, 1, 20, 39])
def test_killed_worker_is_not_seen_by_the_caller(stage: Stage, at: int) -> None:
    workers = two(stage, 0.03)
    streams = [Stream(stage, seed=seed, max_tokens=40, n=2) for seed in range(6)]
    # Near the end the first stream alone is waited for: the others may be over when the last of them is that far.
    waited = streams if at < 30 else streams[:1]
    until(lambda: all(s.data.count(b'"delta": {"content": "') >= 2 * at for s in waited), what="tokens")
    workers["inst_1"].kill()
    for seed, stream in enumerate(streams):
        whole(stream, seed, 40, 2)
    finals = until(
        lambda: (found := [r for r in stage.control.records if r.status == 200]) and len(found) == 6 and found,
        what="the records",
    )
    assert [r.completion_tokens for r in finals] == [80] * 6
    assert {r.moves for r in finals} <= {0, 1}
    if 0 < at < 30:
        # Every stream had tokens and none was near its end: those of the killed worker moved.
        assert {r.moves for r in finals} == {0, 1}


def test_three_moves_go_on_and_the_fourth_ends_with_an_error(stage: Stage) -> None:
    workers = two(stage, 0.02)
    stream = Stream(stage, seed=9, max_tokens=1000)
    for move in range(4):
        marks = stream.data.count(b'"delta"')
        until(lambda marks=marks: stream.data.count(b'"delta"') > marks + 5, what=f"tokens after {move} moves")
        request = stream.head.split(b"x-request-id: ")[1].split(b"\r\n")[0].decode()
        last = until(
            lambda request=request, move=move: [
                r for r in stage.control.records if r.record_id == request and r.moves == move
            ],
            what="progress",
        )
        holder = last[0].instance_id
        workers[holder].kill()
        workers[holder].wait(5)
        if move < 3:
            stage.control.states.clear()
            workers[holder] = stage.worker("endp_model", holder, "--delay", "0.02")
    events = stream.done().events
    assert events[-1]["error"]["code"] == "instance_interrupted"
    assert "[DONE]" not in events
    text = stream.text()
    assert expected(9, 1000).startswith(text)
    final = until(lambda: [r for r in stage.control.records if r.record_id == request and r.status], what="the record")[
        0
    ]
    assert final.moves == 3
    assert final.completion_tokens == sum(
        bool(c["delta"].get("content")) for e in events if "choices" in e for c in e["choices"]
    )


def test_stopped_worker_is_left_and_its_late_tokens_never_show(stage: Stage) -> None:
    workers = two(stage, 0.02)
    streams = [Stream(stage, seed=seed, max_tokens=100) for seed in range(4)]
    until(lambda: all(s.data.count(b'"delta"') > 5 for s in streams), what="tokens")
    workers["inst_2"].send_signal(signal.SIGSTOP)
    try:
        for stream in streams:
            stream.done(20)
    finally:
        workers["inst_2"].send_signal(signal.SIGCONT)
    time.sleep(0.3)
    for seed, stream in enumerate(streams):
        whole(stream, seed, 100)


def test_doomed_worker_is_left_before_it_goes(stage: Stage) -> None:
    two(stage, 0.05)
    streams = [Stream(stage, seed=seed, max_tokens=120) for seed in range(4)]
    until(lambda: all(s.data.count(b'"delta"') > 3 for s in streams), what="tokens")
    row = stage.workers["inst_1"]
    stage.workers["inst_1"] = WorkerRow(
        row.instance_id,
        row.endpoint_id,
        row.revision_id,
        row.epoch,
        row.slots,
        row.token_digest,
        doomed_at=time.time() + 2,
    )
    stage.push()
    for seed, stream in enumerate(streams):
        whole(stream, seed, 120)
    finals = until(
        lambda: (f := [r for r in stage.control.records if r.status == 200]) and len(f) == 4 and f, what="the records"
    )
    assert {r.instance_id for r in finals} == {"inst_2"}
    assert {r.moves for r in finals} == {0, 1}


def test_stream_without_a_worker_waits_for_the_next_one(stage: Stage) -> None:
    stage.start()
    worker = stage.worker("endp_model", "inst_1", "--delay", "0.02")
    stream = Stream(stage, seed=2, max_tokens=60)
    until(lambda: stream.data.count(b'"delta"') > 5, what="tokens")
    worker.kill()
    until(lambda: [d for d in stage.control.demands if d.endpoint_id == "endp_model"], what="demand")
    stage.worker("endp_model", "inst_2")
    whole(stream, 2, 60)


def test_engines_that_cannot_continue_end_with_an_honest_error(stage: Stage) -> None:
    stage.start()
    worker = stage.worker("endp_model", "inst_1", "--delay", "0.02", "--continuation", "none", "--engine", "command")
    stage.worker(
        "endp_model",
        "inst_2",
        "--slots",
        "1",
        "--continuation",
        "none",
        "--engine",
        "command",
        "--late-ready",
        "30",
        linked=False,
    )
    stream = Stream(stage, seed=2, max_tokens=200)
    until(lambda: stream.data.count(b'"delta"') > 5, what="tokens")
    assert b"x-nanopod-continuation: none" in stream.head
    worker.kill()
    assert b"[DONE]" not in stream.done().data


def test_parked_requests_leave_in_order_when_a_worker_comes(stage: Stage) -> None:
    stage.start()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key=KEY, max_retries=0)
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: answers.append(
                client.chat.completions.create(model="tiny", messages=[], seed=seed)
            ),
            daemon=True,
        )
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    demand = until(lambda: stage.control.demands[:1], 1.0, "demand")[0]
    assert demand.endpoint_id == "endp_model"
    until(lambda: stage.health()["in_flight"] == 8, what="all parked")
    sample = until(lambda: [e for s in stage.control.samples for e in s.endpoints if e.parked == 8], 3, "a sample")[0]
    assert sample.in_flight == 0
    stage.worker("endp_model", "inst_1", "--late-ready", "0.3")
    for thread in threads:
        thread.join(10)
    assert sorted(a.choices[0].message.content for a in answers) == sorted(expected(seed, 8) for seed in range(8))
    client.close()


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [({"x-nanopod-wait-s": "0.5"}, 0.4, 5.0), ({"x-stainless-read-timeout": "2"}, 0.9, 2.0)],
)
def test_wake_timeout_is_honest_and_in_time(stage: Stage, headers: dict[str, str], least: float, most: float) -> None:
    stage.start()
    for stream in (False, True):
        began = time.monotonic()
        status, found, body = stage.get(
            "/v1/chat/completions",
            method="POST",
            body={"model": "tiny", "messages": [], "stream": stream},
            headers=headers,
        )
        assert least <= time.monotonic() - began <= most
        assert status == 504
        assert found["x-should-retry"] == "false"
        assert json.loads(body)["error"]["code"] == "wake_timeout"
    assert not [r for r in stage.control.records if r.status]


def test_comments_keep_a_waiting_stream_and_the_timeout_is_an_event(stage: Stage) -> None:
    stage.route("endp_eta", kind="model", name="slow", model_ids=("slow",), eta_s=55.0)
    stage.route("endp_kn", kind="model", name="strict", model_ids=("strict",), profile="knative", phase_text="")
    stage.start()
    streams = {
        model: Stream(stage, headers={"x-nanopod-wait-s": "16.5"}, model=model) for model in ("tiny", "slow", "strict")
    }
    time.sleep(14)
    assert not any(stream.data for stream in streams.values()), "whoever waits less hears of a failure by its status"
    ends = {model: [e["error"]["code"] for e in stream.done(20).events] for model, stream in streams.items()}
    assert ends == {"tiny": ["wake_timeout"], "slow": ["wake_timeout"], "strict": ["queue_timeout"]}
    assert b": waking replica, starting 1 worker\n\n" in streams["tiny"].data
    assert re.search(rb": waking replica, about (3\d|40) s \(starting 1 worker\)\n\n", streams["slow"].data)
    assert b": waking replica, waiting for a worker\n\n" in streams["strict"].data
    for stream in streams.values():
        assert stream.head.startswith(b"HTTP/1.1 200 OK")
        assert b"[DONE]" not in stream.data


def test_failed_route_fails_parked_callers_at_once(stage: Stage) -> None:
    stage.start()
    stream = Stream(stage)
    until(lambda: stage.control.demands, what="demand")
    stage.fail_route("endp_model")
    began = time.monotonic()
    stream.done(5)
    assert time.monotonic() - began < 4
    assert stream.head.startswith(b"HTTP/1.1 502")
    error = json.loads(stream.data.split(b"\r\n\r\n")[1])["error"]
    assert error["code"] == "deployment_failed"
    assert "No module named 'nope'" in error["message"]


def test_caller_who_leaves_while_parked_is_forgotten(stage: Stage) -> None:
    stage.start()
    stream = Stream(stage)
    until(lambda: stage.health()["in_flight"] == 1, what="parked")
    stream.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: stage.health()["in_flight"] == 0, 1.0, "gone")


def test_foreign_engine_is_always_asked_for_usage_and_shows_it_on_request_only(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1", "--continuation", "none", "--engine", "command")
    plain = Stream(stage, seed=2, max_tokens=5).done()
    assert b'"usage"' not in plain.data
    asked = Stream(stage, seed=2, max_tokens=5, stream_options={"include_usage": True}).done()
    assert asked.events[-2]["usage"]["completion_tokens"] == 5
    records = until(
        lambda: (f := [r for r in stage.control.records if r.status == 200]) and len(f) == 2 and f, what="records"
    )
    assert [(r.prompt_tokens, r.completion_tokens) for r in records] == [(3, 5), (3, 5)]
