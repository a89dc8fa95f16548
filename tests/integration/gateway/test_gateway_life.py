"""The process itself: its port, its spool, its server's absence, its end; and the way through to the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from stage import Caller, Control, Stage, until

from nanopod.model import calls

pytestmark = pytest.mark.integration
CHAT = {"model": "tiny", "messages": [], "seed": 1}


def test_port_in_use_is_an_answer_not_a_traceback(stage: Stage) -> None:
    with stage.raw_listener() as taken:
        found = subprocess.run(
            [sys.executable, "-m", "nanopod.gateway", "--data-dir", str(stage.data), "--listen", f"127.0.0.1:{taken}"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    assert found.returncode == 2
    assert "in use" in found.stderr
    assert "--listen" in found.stderr
    assert "Traceback" not in found.stderr


def test_no_tables_is_503_and_not_401(stage: Stage) -> None:
    stage.control.stop()
    stage.control.tables = object()  # type: ignore[assignment]  # nothing is pushed
    stage.start(wait=False)
    until(stage.health, what="the gateway")
    assert stage.health()["table_age_s"] is None
    assert stage.get("/v1/models")[0] == 503
    stage.control = Control(stage.layout)


def test_killed_gateway_serves_at_once_without_its_server_and_bills_once(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1")
    stage.control.acking = False
    ids = [stage.get("/v1/chat/completions", method="POST", body=CHAT)[1]["x-request-id"] for _ in range(3)]
    time.sleep(0.5)
    stage.control.stop()
    stage.kill_gateway()
    stage.start(wait=False)
    until(lambda: stage.health().get("workers") == 1, what="the gateway and its worker")
    assert stage.health()["table_age_s"] > 0
    status, headers, _ = stage.get("/v1/chat/completions", method="POST", body=CHAT)
    assert status == 200
    ids.append(headers["x-request-id"])
    old = stage.control
    stage.control = Control(stage.layout)
    until(lambda: {r.record_id for r in stage.control.records} >= set(ids), what="every record at the new server")
    until(lambda: stage.health()["table_age_s"] == 0.0 or not stage.push(), what="the link")
    spool = stage.layout.gateway / "gw_local" / "spool"
    until(lambda: not list(spool.glob("*.seg")), what="an empty spool")
    assert len(stage.control.segments) == len(set(stage.control.segments))
    assert {r.record_id for r in old.records} <= set(ids)


def test_delivered_tokens_of_a_stream_are_billed_when_the_gateway_is_killed(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1", "--delay", "0.02")
    received: list[bytes] = []

    def read() -> None:
        body = json.dumps({**CHAT, "stream": True, "max_tokens": 1000}).encode()
        sock = stage.raw()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stage_key()}\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while more := sock.recv(65536):
            received.append(more)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    time.sleep(1.5)
    stage.kill_gateway()
    thread.join(5)
    data = b"".join(received)
    assert b"[DONE]" not in data
    delivered = data.count(b'"delta": {"content": "') - data.count(b'"content": ""')
    stage.start()
    record = until(lambda: max(stage.control.records, key=lambda r: r.t_end, default=None), what="progress")
    assert record.status == 0
    assert delivered - 15 <= record.completion_tokens <= delivered


def stage_key() -> str:
    from stage import KEY

    return KEY


def test_sigterm_finishes_what_runs_then_ends_with_0(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1", "--delay", "0.05")
    answers: list[int] = []
    thread = threading.Thread(
        target=lambda: answers.append(
            stage.get("/v1/chat/completions", method="POST", body={**CHAT, "max_tokens": 30})[0]
        )
    )
    thread.start()
    until(lambda: stage.health()["in_flight"] == 1, what="the request")
    assert stage.terminate_gateway() == 0
    thread.join(5)
    assert answers == [200]
    assert [r.status for r in stage.control.records if r.status] == [200]
    assert not stage.layout.gateway_socket.exists()


def test_samples_come_at_once_and_end_with_a_zero(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_fn", "inst_1")
    time.sleep(1.2)
    stage.control.samples.clear()
    caller = Caller(stage)
    payload = msgspec.msgpack.encode([[1.2], {}])
    caller.send(calls.Call(os.urandom(16), "maths", "sleep", size=len(payload), workload=7.0), payload)
    until(lambda: stage.control.samples, 0.5, "a sample at once")
    time.sleep(4)
    samples = [e for s in stage.control.samples for e in s.endpoints if e.endpoint_id == "endp_fn"]
    assert sum(e.requests for e in samples) == 1
    assert sum(e.workload for e in samples) == 7.0
    assert next(s.poke for s in stage.control.samples if s.endpoints), "the first request is told at once"
    assert (samples[0].concurrency, samples[0].requests, samples[0].workload) == (1.0, 1, 7.0)
    assert 1.1 < sum(e.concurrency for e in samples) < 2.3, "the first second leaves out the request that was told"
    assert sum(e.served[2] for e in samples) == 1
    assert sum(sum(e.latency.get("rev_1", ())[8:9]) for e in samples) == 1, "it took between 1 and 2.5 s"
    assert samples[-1].concurrency == samples[-1].requests == 0
    assert len(samples) <= 5
    caller.close()


def test_worker_links_are_checked(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1")
    for token, epoch, status in (
        ("wrong", 1, 403),
        ("token-inst_1", 0, 410),
        ("token-inst_1", 2, 403),
        ("token-inst_1", "x", 403),
    ):
        head = (
            f"GET /v1/worker-link HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: nanopod-worker/1\r\n"
            f"Authorization: Bearer {token}\r\nX-Nanopod-Instance: inst_1\r\nX-Nanopod-Epoch: {epoch}\r\n\r\n"
        )
        with stage.raw() as sock:
            sock.sendall(head.encode())
            assert sock.recv(1000).startswith(f"HTTP/1.1 {status}".encode())
    assert stage.health()["workers"] == 1


def test_garbage_on_a_worker_link_closes_that_link_only(stage: Stage) -> None:
    stage.start()
    stage.worker("endp_model", "inst_1")
    stage.worker("endp_model", "inst_2").kill()
    until(lambda: stage.health()["workers"] == 1, what="one link")
    head = (
        "GET /v1/worker-link HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: nanopod-worker/1\r\n"
        "Authorization: Bearer token-inst_2\r\nX-Nanopod-Instance: inst_2\r\nX-Nanopod-Epoch: 1\r\n\r\n"
    )
    with stage.raw() as sock:
        sock.sendall(head.encode() + os.urandom(4096).replace(b"\0", b"\xff"))
        answer = b""
        while more := sock.recv(4096):
            answer += more
        assert answer.startswith(b"HTTP/1.1 101")
    assert stage.get("/v1/chat/completions", method="POST", body=CHAT)[0] == 200
    assert "protocol error" in (stage.data / "gateway.log").read_text()


class Upstream(threading.Thread):
    """A tiny API server on the server's socket."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(daemon=True)
        self.path = str(stage.layout.server_socket)
        self.seen: list[bytes] = []
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.start()
        self.ready.wait(5)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(asyncio.start_unix_server(self.answer, self.path))
        self.ready.set()
        self.loop.run_forever()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen.append(head)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        body = b""
        if length:
            body = await reader.readexactly(int(length[1]))
        path = head.split(b" ")[1]
        if path.startswith(b"/v1/stream"):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/plain\r\n\r\n")
            for part in (b"one ", b"two ", b"three"):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(0.05)
            if not path.endswith(b"cut"):
                writer.write(b"0\r\n\r\n")
        elif head.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            text = json.dumps({"path": path.decode(), "body": len(body)}).encode()
            writer.write(b"HTTP/1.1 201 Created\r\nX-Own: yes\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
        await writer.drain()
        writer.close()


@pytest.fixture
def upstream(shared: Stage) -> Iterator[Upstream]:
    made = Upstream(shared)
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)
    shared.layout.server_socket.unlink(missing_ok=True)


def test_management_requests_go_through(shared: Stage, upstream: Upstream) -> None:
    status, headers, body = shared.get("/v1/endpoints/x?dry_run=1", method="POST", body={"a": 1})
    assert (status, headers["x-own"], json.loads(body)) == (
        201,
        "yes",
        {"path": "/v1/endpoints/x?dry_run=1", "body": 8},
    )
    assert b"Authorization: Bearer sk_np" in upstream.seen[-1]
    assert b"connection: close" in upstream.seen[-1]
    big = os.urandom(40 << 20)
    status, _, body = shared.get("/v1/blobs/" + "a" * 64, method="PUT", body=big)
    assert (status, json.loads(body)["body"]) == (201, len(big))
    assert (
        shared.get("/v1/endpoints", method="POST", body=b"x" * (33 << 20), headers={"Expect": "100-continue"})[0] == 413
    )
    assert shared.get("/v1/stream/whole")[2] == b"one two three"
    assert shared.get("/v1/blobs/" + "b" * 64, method="HEAD")[0] == 204
    with pytest.raises(Exception, match=r"IncompleteRead|reset|aborted"):
        shared.get("/v1/stream/cut")


def test_management_keeps_the_callers_connection(shared: Stage, upstream: Upstream) -> None:
    with shared.raw() as sock:
        for _ in range(3):
            sock.sendall(b"GET /v1/nodes HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 201")
