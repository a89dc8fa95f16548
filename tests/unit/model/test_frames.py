"""Worker-link frames and call frames: any split gives the same frames, garbage is refused."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model import calls, frames

frame = st.tuples(
    st.integers(1, 14),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
    st.binary(max_size=100),
)


@given(st.lists(frame, max_size=10), st.lists(st.integers(0, 10**6), max_size=20))
def test_any_split_gives_the_same_frames(given_frames: list[frames.Frame], at: list[int]) -> None:
    data = b"".join(
        frames.pack(kind, stream, payload, flags, epoch) for kind, stream, flags, epoch, payload in given_frames
    )
    marks = sorted({0, len(data), *(n % (len(data) + 1) for n in at)})
    reader = frames.FrameReader()
    found = [f for a, b in pairwise(marks) for f in reader.feed(data[a:b])]
    assert found == given_frames


@given(
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**32 - 1), max_size=50),
    st.binary(max_size=50),
)
def test_tokens_round_trip(choice: int, first: int, ids: list[int], sse: bytes) -> None:
    ((kind, stream, _, epoch, payload),) = frames.FrameReader().feed(frames.pack_tokens(7, 3, choice, first, ids, sse))
    assert (kind, stream, epoch) == (frames.TOKENS, 7, 3)
    found = frames.unpack_tokens(payload)
    assert (found[0], found[1], list(found[2]), found[3]) == (choice, first, ids, sse)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_open_round_trip(head: bytes, body: bytes) -> None:
    ((_, _, flags, epoch, payload),) = frames.FrameReader().feed(frames.pack_open(1, head, body, end=False, epoch=9))
    assert frames.unpack_open(payload) == (head, body)
    assert (flags, epoch) == (0, 9)


def test_reset_round_trip_and_limits() -> None:
    ((_, _, _, _, payload),) = frames.FrameReader().feed(frames.pack_reset(1, frames.REFUSED, "füll"))
    assert frames.unpack_reset(payload) == (frames.REFUSED, "füll")
    with pytest.raises(frames.ProtocolError, match="limit"):
        frames.FrameReader().feed(frames.HEADER.pack(frames.FRAME_BYTES_MAX + 1, 1, 5, 0, 0))
    for short in (frames.unpack_open, frames.unpack_tokens, frames.unpack_reset):
        with pytest.raises(frames.ProtocolError):
            short(b"\0")
    with pytest.raises(frames.ProtocolError):
        frames.unpack_tokens(struct.pack(">BIH", 0, 0, 5) + b"\0" * 4)
    with pytest.raises(frames.ProtocolError):
        frames.unpack_open(b"\x00\x09{}")


@given(st.binary(max_size=64))
def test_call_frames_refuse_garbage_with_a_value_error(data: bytes) -> None:
    try:
        calls.decode(data)
    except ValueError:
        return
    assert len(data) >= 4


def test_large_payloads_are_split_into_frames_that_fit_and_join() -> None:
    payload = bytes(range(256)) * 9000
    parts = calls.split(calls.Result(b"i" * 16, len(payload)), payload)
    assert all(len(part) <= calls.FRAME_BYTES_MAX for part in parts)
    decoded = [calls.decode(part) for part in parts]
    assert isinstance(decoded[0][0], calls.Result)
    assert all(isinstance(header, calls.Part) for header, _ in decoded[1:])
    assert b"".join(part for _, part in decoded) == payload
