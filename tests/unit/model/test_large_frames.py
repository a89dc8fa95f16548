"""Large payloads: masked with and without numpy to the same bytes, cut and put together again in reads of any size."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy
import pytest

from nanopod.model import calls, frames, websocket


@pytest.fixture
def wide() -> Iterator[None]:
    before = websocket._wide
    websocket.mask_with(numpy)
    yield
    websocket.mask_with(before)


@pytest.mark.parametrize("size", [websocket.WIDE_BYTES + more for more in (-1, 0, 1, 2, 3, 70_001)])
def test_numpy_masks_to_the_same_bytes(size: int, wide: None) -> None:
    rng = random.Random(size)
    payload, mask = rng.randbytes(size), rng.randbytes(4)
    plain = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    assert websocket.xor(payload, mask) == plain
    frame = websocket.encode(websocket.BINARY, payload, mask)
    assert frame.endswith(mask + plain)
    reader = websocket.Parser(server=True)
    found = [one for at in range(0, len(frame), 10_007) for one in reader.feed(frame[at : at + 10_007])]
    assert found == [(websocket.BINARY, payload)]
    assert websocket.Parser(server=True).feed(frame + frame) == [(websocket.BINARY, payload)] * 2


@pytest.mark.parametrize("step", [1, 7, 12, 13, 4096, 65_536, 1 << 20])
def test_frames_are_whole_whatever_the_reads_are(step: int) -> None:
    sizes = (0, 1, 11, 300) if step < 4096 else (0, 5, 70_000, frames.FRAME_BYTES_MAX, 3)
    sent = [frames.pack(frames.DATA, number, bytes([number]) * size, 0, 9) for number, size in enumerate(sizes)]
    stream, reader = b"".join(sent), frames.FrameReader()
    found = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
    assert [(number, len(payload)) for _, number, _, _, payload in found] == list(enumerate(sizes))
    assert all(payload == bytes([number]) * len(payload) for _, number, _, _, payload in found)


def test_a_frame_above_the_limit_is_refused_as_soon_as_its_length_is_known() -> None:
    reader = frames.FrameReader()
    head = frames.HEADER.pack(frames.FRAME_BYTES_MAX + 1, 1, frames.DATA, 0, 1)
    assert reader.feed(head[:5]) == []
    with pytest.raises(frames.ProtocolError, match="above the limit"):
        reader.feed(head[5:])


@pytest.mark.parametrize("size", [0, 10, calls.PART_BYTES, calls.PART_BYTES + 1, 3 * calls.PART_BYTES + 5])
def test_a_payload_is_split_into_frames_that_hold_all_of_it(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    made = calls.split(calls.Call(b"i" * 16, size=size), payload)
    assert all(len(frame) <= calls.FRAME_BYTES_MAX for frame in made)
    read = [calls.decode(frame) for frame in made]
    assert b"".join(part for _, part in read) == payload and all(header.id == b"i" * 16 for header, _ in read)
    header, start = calls.decode_head(made[0])
    assert header == read[0][0] and made[0][start:] == read[0][1]
