"""The websocket codec: any split of the bytes gives the same messages, and whatever RFC 6455 forbids is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model import websocket as ws

MASK = b"\x12\x34\x56\x78"
payloads = st.binary(max_size=300) | st.integers(120, 130).map(lambda n: b"x" * n) | st.just(b"y" * 70_000)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(n % (len(data) + 1) for n in at)})
    return [data[a:b] for a, b in pairwise(marks)]


@given(
    st.lists(st.tuples(st.sampled_from([ws.BINARY, ws.PING, ws.PONG]), payloads), max_size=6),
    st.lists(st.integers(0, 10**6)),
)
def test_any_split_gives_the_same_messages_on_both_sides(messages: list[tuple[int, bytes]], at: list[int]) -> None:
    messages = [(kind, data if kind == ws.BINARY else data[:125]) for kind, data in messages]
    for server in (True, False):
        data = b"".join(ws.encode(kind, payload, MASK if server else None) for kind, payload in messages)
        parser = ws.Parser(server=server)
        assert [found for piece in cut(data, at) for found in parser.feed(piece)] == messages


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 200), max_size=5), st.booleans())
def test_fragments_are_joined_around_control_frames(data: bytes, at: list[int], text: bool) -> None:
    if text:
        data = data.hex().encode()
    kind = ws.TEXT if text else ws.BINARY
    pieces = cut(data, at)
    raw = b""
    for index, piece in enumerate(pieces):
        raw += ws.encode(kind if index == 0 else ws.CONTINUATION, piece, MASK, fin=index == len(pieces) - 1)
        raw += ws.encode(ws.PING, b"now", MASK)
    found = ws.Parser(server=True).feed(raw)
    assert [m for m in found if m[0] == kind] == [(kind, data)]
    assert found.count((ws.PING, b"now")) == len(pieces)


@given(st.binary(max_size=1000), st.binary(min_size=4, max_size=4))
def test_mask_is_its_own_inverse_and_as_the_rfc_says(data: bytes, mask: bytes) -> None:
    masked = ws.xor(data, mask)
    assert masked == bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
    assert ws.xor(masked, mask) == data


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    for server in (True, False):
        parser = ws.Parser(server=server, message_bytes_max=64)
        code, found = 1000, []
        try:
            found = parser.feed(data)
        except ws.ProtocolError as error:
            code = error.code
        assert code in (1000, 1002, 1007, 1009)
        for kind, payload in found:
            assert kind in (ws.TEXT, ws.BINARY, ws.CLOSE, ws.PING, ws.PONG)
            assert len(payload) <= 125


def bad(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes((first, second)) + rest


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (ws.encode(ws.BINARY, b"not masked"), 1002),
        (bad(0x80 | 0x40 | 2, 0x80, MASK), 1002),  # a reserved bit
        (bad(0x80 | 3, 0x80, MASK), 1002),  # a reserved data opcode
        (bad(0x80 | 11, 0x80, MASK), 1002),  # a reserved control opcode
        (bad(9, 0x80, MASK), 1002),  # a fragmented ping
        (bad(0x80 | 9, 0x80 | 126, b"\x00\x7e" + MASK + b"x" * 126), 1002),  # a long ping
        (bad(0x80 | 2, 0x80 | 126, b"\x00\x05" + MASK + b"hello"), 1002),  # a length not in its shortest form
        (bad(0x80 | 2, 0x80 | 127, b"\0" * 6 + b"\x00\x05" + MASK + b"hello"), 1002),
        (ws.encode(ws.CONTINUATION, b"x", MASK), 1002),  # nothing to continue
        (ws.encode(ws.BINARY, b"a", MASK, fin=False) + ws.encode(ws.BINARY, b"b", MASK), 1002),
        (ws.encode(ws.TEXT, b"\xff\xfe", MASK), 1007),
        (ws.encode(ws.CLOSE, b"\x03", MASK), 1002),
        (ws.encode(ws.CLOSE, (1005).to_bytes(2, "big"), MASK), 1002),
        (ws.encode(ws.CLOSE, (1000).to_bytes(2, "big") + b"\xff", MASK), 1007),
        (bad(0x80 | 2, 0x80 | 127, (1 << 40).to_bytes(8, "big")), 1009),  # refused before it is there
        (ws.encode(ws.BINARY, b"a" * 600, MASK, fin=False) + ws.encode(ws.CONTINUATION, b"b" * 600, MASK), 1009),
    ],
)
def test_what_the_rfc_forbids_is_refused_with_the_right_status(data: bytes, code: int) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        parser = ws.Parser(server=True, message_bytes_max=1000)
        with pytest.raises(ws.ProtocolError) as refused:
            list(map(parser.feed, pieces))
        assert refused.value.code == code


def test_client_refuses_masked_frames() -> None:
    with pytest.raises(ws.ProtocolError):
        ws.Parser(server=False).feed(ws.encode(ws.BINARY, b"x", MASK))


def test_nothing_is_read_after_a_close() -> None:
    parser = ws.Parser(server=True)
    data = ws.encode_close(1001, "bye", MASK) + ws.encode(ws.BINARY, b"late", MASK)
    assert [kind for kind, _ in parser.feed(data)] == [ws.CLOSE]
    assert parser.closed
    assert parser.feed(ws.encode(ws.BINARY, b"later", MASK)) == []
    assert ws.close_code(ws.encode_close(1001, "bye")[2:]) == (1001, "bye")
    assert ws.close_code(b"") == (1005, "")


def test_close_reason_is_cut_to_a_control_frame_on_a_character() -> None:
    frame = ws.encode_close(1000, "ü" * 100)
    assert len(frame) <= 2 + 125
    assert ws.close_code(frame[2:])[1] == "ü" * 61


def test_handshake_of_the_rfc() -> None:
    assert ws.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    key = ws.client_key(bytes(range(16)))
    assert ws.is_client_key(key)
    assert not ws.is_client_key("c2hvcnQ=")
    assert not ws.is_client_key("not base64!")
    request = ws.client_request("h:1", "/v1/link", key, "nanopod.1", {"Authorization": "Bearer x"})
    assert request.startswith(b"GET /v1/link HTTP/1.1\r\n")
    assert b"Authorization: Bearer x\r\n" in request
    answer = ws.server_response(key, "nanopod.1")
    ws.check_response(answer, key, "nanopod.1")
    for wrong in (
        answer.replace(b"101", b"200"),
        answer.replace(ws.accept_key(key).encode(), b"AAAA"),
        answer.replace(b"nanopod.1", b"nanopod.2"),
        answer.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        answer.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
    ):
        with pytest.raises(ws.ProtocolError):
            ws.check_response(wrong, key, "nanopod.1")
