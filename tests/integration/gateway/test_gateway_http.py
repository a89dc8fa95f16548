"""The HTTP surface over real sockets: framing, limits, errors, disconnects, slow readers, the openai client."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

import openai
import pytest
from emulator import text_of, token
from stage import KEY, OTHER_KEY, READ_KEY, Stage, until

pytestmark = pytest.mark.integration


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}


def expected(seed: int, count: int, choice: int = 0) -> str:
    return "".join(text_of(token(seed, choice, position)) for position in range(count))


def exchange(stage: Stage, data: bytes, *, half_close: bool = False) -> bytes:
    """Everything the gateway answers to raw bytes until it closes (or 3 s pass)."""
    with stage.raw() as sock:
        sock.settimeout(3)
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while more := sock.recv(65536):
                answer += more
        except TimeoutError:
            answer += b"<still open>"
        except ConnectionResetError:
            pass
        return answer


def post(body: bytes, *lines: str, path: str = "/v1/chat/completions") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def test_openai_client_streams_and_completes(shared: Stage) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{shared.port}/v1", api_key=KEY, max_retries=0)
    whole = client.chat.completions.create(model="tiny", messages=[], seed=5, max_tokens=12)
    assert whole.choices[0].message.content == expected(5, 12)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    stream = client.chat.completions.create(
        model="tiny", messages=[], seed=5, max_tokens=12, stream=True, n=2, stream_options={"include_usage": True}
    )
    texts, usage, ids = ["", ""], None, set()
    for chunk in stream:
        ids.add(chunk.id)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [expected(5, 12), expected(5, 12, 1)]
    assert usage is not None
    assert usage.completion_tokens == 24
    assert len(ids) == 1
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("huge")
    assert missing.value.code == "model_not_found"
    client.close()


def test_gateway_draws_a_seed_once_and_records_the_usage(shared: Stage) -> None:
    status, headers, body = shared.get("/v1/chat/completions", method="POST", body=chat(max_tokens=5))
    assert status == 200
    assert headers["x-nanopod-continuation"] == "exact"
    record_id = headers["x-request-id"]
    record = until(
        lambda: next((r for r in shared.control.records if r.record_id == record_id), None), what="its record"
    )
    assert (record.kind, record.status, record.prompt_tokens, record.completion_tokens) == ("chat", 200, 3, 5)
    assert record.key_id == "abcdefgh"
    other = shared.get("/v1/chat/completions", method="POST", body=chat(max_tokens=40))[2]
    assert json.loads(other)["choices"] != json.loads(body)["choices"]


def test_caller_request_id_is_repeated_but_does_not_name_the_record(shared: Stage) -> None:
    seen = []
    for _ in range(2):
        headers = shared.get("/v1/chat/completions", method="POST", body=chat(), headers={"x-request-id": "mine-1"})[1]
        seen.append(headers["x-request-id"])
    assert seen == ["mine-1", "mine-1"]
    found = until(lambda: [r for r in shared.control.records if r.request_id == "mine-1"][1:], what="both records")
    assert len({r.record_id for r in shared.control.records if r.request_id == "mine-1"}) == 2, found


@pytest.mark.parametrize(
    ("key", "body", "status", "code", "param"),
    [
        (None, chat(), 401, "invalid_api_key", None),
        ("sk_np_wrong", chat(), 401, "invalid_api_key", None),
        (READ_KEY, chat(), 403, "permission_denied", None),
        (KEY, chat(model="huge"), 404, "model_not_found", "model"),
        (OTHER_KEY, chat(), 404, "model_not_found", "model"),
        (KEY, b"{", 400, "invalid_json", None),
        (KEY, b"[1]", 400, "invalid_json", None),
        (KEY, {"messages": []}, 400, "missing_required_parameter", "model"),
        (KEY, chat(model=3), 400, "invalid_value", "model"),
        (KEY, chat(stream="yes"), 400, "invalid_value", "stream"),
        (KEY, chat(fail=429), 429, "planted", None),
        (KEY, chat(fail=503), 503, "planted", None),
    ],
)
def test_errors_have_the_openai_shape(
    shared: Stage, key: str | None, body: Any, status: int, code: str, param: str | None
) -> None:
    found, headers, answer = shared.get("/v1/chat/completions", key=key, method="POST", body=body)
    error = json.loads(answer)["error"]
    assert (found, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]
    assert KEY not in answer.decode()
    if status == 401:
        assert headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_unknown_and_wrong_method_urls(shared: Stage) -> None:
    assert json.loads(shared.get("/v1/threads")[2])["error"]["code"] == "unknown_url"
    status, headers, _ = shared.get("/v1/chat/completions")
    assert (status, headers["allow"]) == (405, "POST")
    status, headers, answer = shared.get("/v1/endpoints")
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(answer)["error"]["type"] == "service_unavailable"
    status, headers, answer = shared.get("/healthz", key=None, method="HEAD")
    assert (status, answer) == (200, b"")
    assert int(headers["content-length"]) > 10


BODY = json.dumps(chat(seed=1)).encode()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (post(b"0\r\n\r\n", f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"), b"400"),
        (post(BODY, f"Content-Length: {len(BODY)}", f"Content-Length: {len(BODY)}"), b"400"),
        (post(BODY, f"Content-Length: {len(BODY)}, {len(BODY)}"), b"400"),
        (post(BODY, f"Content-Length: +{len(BODY)}"), b"400"),
        (post(b"", "Transfer-Encoding: gzip, chunked"), b"501"),
        (post(b"", "Transfer-Encoding: xchunked"), b"400"),
        (post(BODY, "X-A: b", " folded", f"Content-Length: {len(BODY)}"), b"400"),
        (post(BODY, f"Content-Length : {len(BODY)}"), b"400"),
        (b"GET /healthz HTTP/1.1\nHost: x\n\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", b"505"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (post(b"zz\r\n", "Transfer-Encoding: chunked"), b"400"),
        (post(b"3\r\nabcd\r\n", "Transfer-Encoding: chunked"), b"400"),
        (post(b"3\nabc\r\n", "Transfer-Encoding: chunked"), b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", b"431"),
        (post(b"", f"Content-Length: {33 << 20}"), b"413"),
        (post(BODY, f"Content-Length: {len(BODY)}", "Expect: magic"), b"417"),
    ],
)
def test_whatever_could_be_read_in_two_ways_is_refused_and_closed(shared: Stage, data: bytes, status: bytes) -> None:
    # A second request follows each: it must never be answered.
    answer = exchange(shared, data + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert len(re.findall(rb"HTTP/1\.1 \d", answer)) == 1
    assert b"connection: close" in answer
    assert b"<still open>" not in answer


def test_bodies_in_any_framing_give_the_same_answer(shared: Stage) -> None:
    def content(answer: bytes) -> str:
        return json.loads(answer[answer.index(b"\r\n\r\n{") + 4 :])["choices"][0]["message"]["content"]

    whole = exchange(shared, post(BODY, f"Content-Length: {len(BODY)}", "Connection: close"))
    assert content(whole) == expected(1, 8)
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in (BODY[:1], BODY[1:20], BODY[20:]))
    chunked = exchange(
        shared, post(chunks + b"0\r\nTrailer: x\r\n\r\n", "Transfer-Encoding: chunked", "Connection: close")
    )
    assert content(chunked) == expected(1, 8)
    with shared.raw() as sock:
        sock.sendall(post(b"", f"Content-Length: {len(BODY)}", "Expect: 100-continue", "Connection: close"))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        answer = b""
        while more := sock.recv(65536):
            answer += more
    assert content(answer) == expected(1, 8)
    with shared.raw() as sock:  # one byte at a time
        for byte in post(BODY, f"Content-Length: {len(BODY)}", "Connection: close"):
            sock.sendall(bytes((byte,)))
        answer = b""
        while more := sock.recv(65536):
            answer += more
    assert content(answer) == expected(1, 8)


def test_pipelined_requests_are_answered_in_order(shared: Stage) -> None:
    data = b""
    for seed in range(6):
        body = json.dumps(chat(seed=seed)).encode()
        last = ["Connection: close"] if seed == 5 else []
        data += post(body, f"Content-Length: {len(body)}", *last)
        if seed == 2:
            data += b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = exchange(shared, data)
    assert answer.count(b"HTTP/1.1 200 OK") == 7
    at = [answer.index(json.dumps(expected(seed, 8)).encode()) for seed in range(6)]
    assert at == sorted(at)


def test_http_1_0_streams_until_the_close(shared: Stage) -> None:
    body = json.dumps(chat(seed=1, stream=True)).encode()
    data = post(body, f"Content-Length: {len(body)}").replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = exchange(shared, data)
    assert answer.endswith(b"data: [DONE]\n\n")
    assert b"chunked" not in answer


def test_early_disconnect_frees_the_worker_at_once(shared: Stage) -> None:
    stage = shared
    process = stage.worker("endp_model", "inst_slow", "--delay", "0.05")
    del stage.workers["inst_m"]
    stage.push()
    try:
        body = json.dumps(chat(seed=1, stream=True, max_tokens=400)).encode()
        sock = stage.raw()
        sock.sendall(post(body, f"Content-Length: {len(body)}"))
        data = b""
        while data.count(b"content") < 6:
            data += sock.recv(65536)
        left = time.monotonic()
        sock.close()
        assert process.stdout is not None
        assert process.stdout.readline() == "reset the caller left\n"
        assert time.monotonic() - left < 5, "long before its 20 s of tokens are over"
        request_id = data.split(b"x-request-id: ")[1].split(b"\r\n")[0].decode()
        record = until(
            lambda: next((r for r in stage.control.records if r.record_id == request_id and r.status == 499), None),
            what="the record of the part that was delivered",
        )
        assert 3 <= record.completion_tokens < 50
    finally:
        process.kill()
        stage.workers["inst_m"] = until(lambda: stage.routes and _row(stage))
        stage.push()


def _row(stage: Stage) -> Any:
    import hashlib

    from nanopod.model.wire import WorkerRow

    return WorkerRow("inst_m", "endp_model", "rev_1", 1, 64, hashlib.sha256(b"token-inst_m").hexdigest())


def test_slow_reader_gets_everything_and_holds_up_nobody(shared: Stage) -> None:
    body = json.dumps(chat(seed=3, stream=True, max_tokens=27_000)).encode()
    with shared.raw() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
        sock.sendall(post(body, f"Content-Length: {len(body)}", "Connection: close"))
        time.sleep(0.5)
        began = time.monotonic()
        assert shared.get("/v1/chat/completions", method="POST", body=chat(max_tokens=4))[0] == 200
        assert time.monotonic() - began < 20
        answer = bytearray()
        while more := sock.recv(1 << 20):
            answer += more
    assert answer.count(b'"delta": {"content": "') == 27_000
    assert bytes(answer).endswith(b"0\r\n\r\n")
    assert answer.count(b"data: [DONE]") == 1


def test_slow_head_is_cut_after_ten_seconds(shared: Stage) -> None:
    with shared.raw() as sock:
        sock.settimeout(15)
        sock.sendall(b"GET /healthz HTTP/1.1\r\n")
        began = time.monotonic()
        assert sock.recv(1000) == b""
        assert time.monotonic() - began >= 9


def test_revoked_key_is_refused_at_the_push(shared: Stage) -> None:
    from stage import digest

    row = shared.keys.pop(digest(KEY))
    try:
        shared.push()
        until(lambda: shared.get("/v1/models")[0] == 401, 1.0, "the 401")
    finally:
        shared.keys[digest(KEY)] = row
        shared.push()
        until(lambda: shared.get("/v1/models")[0] == 200, 1.0, "the key to be back")


def test_nodelay_is_set_on_accepted_sockets(shared: Stage) -> None:
    # Nagle with delayed acknowledgements shows as 40 ms gaps: small paced chunks must come as they are made.
    process = shared.worker("endp_model", "inst_paced", "--delay", "0.005")
    saved = shared.workers.pop("inst_m")
    shared.push()
    try:
        body = json.dumps(chat(seed=1, stream=True, max_tokens=60)).encode()
        with shared.raw() as sock:
            sock.sendall(post(body, f"Content-Length: {len(body)}", "Connection: close"))
            gaps, last = [], 0.0
            while sock.recv(65536):
                now = time.monotonic()
                gaps.append(now - last)
                last = now
        assert sorted(gaps[2:])[len(gaps) // 2] < 0.03
    finally:
        process.kill()
        shared.workers["inst_m"] = saved
        shared.push()
