"""Heads, chunked bodies, foreign streams, call tags and waiting limits, without a socket."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.gateway import heads
from nanopod.gateway.asked import wait_limit_s
from nanopod.gateway.callframes import error_frame, tag_of
from nanopod.gateway.foreign import Events, with_usage
from nanopod.gateway.heads import BadRequest, Chunks
from nanopod.model import calls
from nanopod.model.errors import DeploymentFailed


def cut(data: bytes, at: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(n % (len(data) + 1) for n in at)})
    return [data[a:b] for a, b in pairwise(marks)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 10**6), max_size=12),
    st.binary(max_size=20),
)
def test_chunked_bodies_survive_any_split(parts: list[bytes], at: list[int], after: bytes) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nT: 1\r\n\r\n"
    chunks = Chunks()
    found, rest = b"", b""
    for piece in cut(data, at):
        found += b"".join(chunks.feed(piece))
    assert chunks.done
    assert found == b"".join(parts)
    assert chunks.total == len(found)
    whole = Chunks()
    whole.feed(data + after)
    rest = whole.rest
    assert rest == after


@pytest.mark.parametrize(
    "data",
    [
        b"g\r\n",
        b"-1\r\n",
        b"1 1\r\n",
        b"\r\n",
        b"3\r\nabcX\r\n",
        b"3\nabc",
        b"3\r\nabc\n0\r\n\r\n",
        b"f" * 16 + b"\r\n",
        b"1;" + b"x" * 5000,
    ],
)
def test_bad_chunks_are_refused_in_any_split(data: bytes) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        chunks = Chunks()
        with pytest.raises(BadRequest):
            list(map(chunks.feed, pieces))


@given(st.binary(max_size=300))
def test_heads_of_garbage_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    status, path = 200, "*"
    try:
        path = heads.parse(data + b"\r\n\r\n").path
    except BadRequest as error:
        status = error.status
    assert status in (200, 400, 413, 417, 431, 501, 505)
    assert path.startswith("/") or path == "*"


def test_head_fields() -> None:
    data = (
        b"POST /v1/x%20y?a=b HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\nX-A: 1\r\nx-a: 2\r\n"
        b"Expect: 100-Continue\r\nAuthorization: Bearer k\r\n\r\n"
    )
    head = heads.parse(data)
    assert (head.method, head.target, head.path) == ("POST", "/v1/x%20y?a=b", "/v1/x%20y")
    assert (head.length, head.chunked, head.expects, head.keep_alive) == (12, False, True, True)
    assert head.headers["x-a"] == "1, 2"
    assert head.authorization == "Bearer k"
    cache = heads.HeadCache()
    assert cache.parse(data) is cache.parse(bytes(bytearray(data)))
    assert heads.parse(b"GET http://h/p?q HTTP/1.1\r\nHost: h\r\n\r\n").target == "/p?q"


@pytest.mark.parametrize(
    ("lines", "route_s", "limit"),
    [
        ("", 600.0, 600.0),
        ("", 900.0, 600.0),
        ("", 30.0, 30.0),
        ("x-nanopod-wait-s: 5\r\n", 600.0, 5.0),
        ("x-nanopod-wait-s: 5000\r\n", 600.0, 600.0),
        ("x-nanopod-wait-s: nan\r\n", 600.0, 600.0),
        ("x-nanopod-wait-s: -1\r\n", 600.0, 600.0),
        ("x-stainless-read-timeout: 600\r\n", 600.0, 590.0),
        ("x-stainless-read-timeout: 20\r\n", 600.0, 10.0),
        ("x-stainless-read-timeout: 8\r\n", 600.0, 4.0),
    ],
)
def test_wait_limit(lines: str, route_s: float, limit: float) -> None:
    head = heads.parse(f"POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())
    assert wait_limit_s(head, route_s) == limit


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


@given(st.lists(st.integers(0, 10**6), max_size=12), st.booleans(), st.booleans())
def test_foreign_events_in_any_split(at: list[int], drop: bool, crlf: bool) -> None:
    texts = [chunk(choices=[{"delta": {"content": str(n)}}], usage=None) for n in range(3)]
    usage = chunk(
        choices=[], usage={"prompt_tokens": 4, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    )
    data = b"".join(texts) + usage + b"data: [DONE]\n\n"
    sent = data.replace(b"\n", b"\r\n") if crlf else data
    events = Events(drop_usage=drop)
    # A CRLF must not be cut in two for this parser's caller: engines write whole lines.
    pieces = [sent] if crlf else cut(sent, at)
    found = b"".join(event for piece in pieces for event in events.feed(piece))
    assert found == (data.replace(usage, b"") if drop else data)
    assert events.usage == (4, 3, 2)
    assert events.count == 3
    assert events.rest() == b""


def test_with_usage_keeps_everything_else() -> None:
    body = json.dumps({"model": "m", "stream": True, "stream_options": {"x": 1}, "top_k": 5}).encode()
    assert json.loads(with_usage(body)) == {
        "model": "m", "stream": True, "stream_options": {"x": 1, "include_usage": True}, "top_k": 5,
    }  # fmt: skip
    assert with_usage(b"{") == b"{"


@pytest.mark.parametrize(
    "header",
    [
        calls.Result(b"i" * 16, 5, calls.Usage(1, 2)), calls.Error(b"i" * 16, "x", "y" * 70_000), calls.Item(b"i" * 16, 3),
        calls.End(b"i" * 16), calls.Part(b"i" * 16), calls.State(b"i" * 16, "queued"), calls.Log(b"i" * 16, line="hello"),
    ],
)  # fmt: skip
def test_tag_of_every_frame_a_worker_sends(header: calls.Header) -> None:
    assert tag_of(calls.encode(header, b"payload")) == type(header).__struct_config__.tag


@given(st.binary(max_size=40))
def test_tag_of_garbage_is_a_value_error_or_some_text(data: bytes) -> None:
    try:
        assert isinstance(tag_of(data), str)
    except ValueError:
        pass


def test_error_frame_carries_the_failure() -> None:
    error = DeploymentFailed("no", stage="import", log_tail="x" * 10_000)
    header, _ = calls.decode(error_frame(b"i" * 16, error, False, 2))
    assert isinstance(header, calls.Error)
    assert (header.code, header.stage, header.started, header.attempt) == ("deployment_failed", "import", False, 2)
    assert len(header.log_tail) == 8192
