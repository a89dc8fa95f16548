"""Chunks of prompts: the same beginning has the same chunks, for the same tenant and model."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.gateway import estimates
from nanopod.gateway.prefixes import CHUNK_CHARS, CHUNKS_MAX, KEPT_MAX, Seen, chunks_of


def body(text: str = "", model: str = "m", **more: Any) -> bytes:
    turns = [{"role": "user", "content": text}]
    return json.dumps({"stream": True, "model": model, "messages": turns, **more}).encode()


def common(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    count = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        count += 1
    return count


def test_chunks_are_shared_up_to_the_first_difference() -> None:
    system = {"role": "system", "content": "Be brief. " * 200}
    one = chunks_of(body(messages=[system, {"role": "user", "content": "a" * 999}]), "w")
    two = chunks_of(body(messages=[system, {"role": "user", "content": "b" * 999}], temperature=0.5, seed=7), "w")
    assert len(one) == len(two) == (len("system\n\nuser\n\n") + 2000 + 999) // CHUNK_CHARS
    assert common(one, two) == 2000 // CHUNK_CHARS
    assert one[-1] != two[-1], "a chunk covers all before it"


def test_tenants_and_adapters_share_nothing() -> None:
    text = "x" * 1000
    one = chunks_of(body(text), "w1")
    assert len(one) == 3
    assert chunks_of(body(text), "w1") == one
    for other in (chunks_of(body(text), "w2"), chunks_of(body(text, "m-lora"), "w1")):
        assert len(other) == 3
        assert not set(one) & set(other)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"prompt": "p" * 256}, 1),
        ({"prompt": "p" * 255}, 0),
        ({"prompt": ["p" * 300, "q" * 300]}, 2),
        ({"prompt": list(range(128))}, 2),
        ({"prompt": list(range(127))}, 1),
        ({"prompt": list(range(64 * 300))}, CHUNKS_MAX),
        ({"prompt": "p" * 256 * 300}, CHUNKS_MAX),
        ({"prompt": []}, 0),
        ({"prompt": None}, 0),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "t" * 300}]}]}, 1),
        ({"messages": [{"role": "user", "content": None}, "odd", 5]}, 0),
        ({"messages": "not a list"}, 0),
        ({"tools": [{"name": "f" * 600}], "messages": []}, 2),
    ],
)
def test_prompts_of_any_shape(fields: dict[str, Any], count: int) -> None:
    assert len(chunks_of(json.dumps({"model": "m", **fields}).encode(), "w")) == count


def test_what_cannot_be_read_has_no_chunks() -> None:
    for data in (b"", b"[1]", b"{", b"\xff\xfe", b"--form\r\n"):
        assert chunks_of(data, "w") == ()


def test_a_worker_remembers_the_newest_chunks_and_beginnings_longest() -> None:
    seen = Seen(limit=10)
    seen.add((1, 2, 3, 4))
    seen.add((1, 2, 30, 40))
    assert seen.share((1, 2, 3, 5)) == 0.75
    assert seen.share((2, 3)) == 1.0
    assert seen.share((9, 1)) == 0.0
    assert seen.share(()) == 0.0
    seen.add(tuple(range(100, 106)))
    assert len(seen) == 10
    assert seen.share((1, 2, 30, 40)) == 1.0
    assert seen.share((1, 2, 3, 4)) == 0.5, "the oldest went"
    seen.add((200, 201))
    assert seen.share((1, 2, 30, 40)) == 0.5, "its end first"


def test_memory_is_bounded() -> None:
    seen = Seen()
    for start in range(0, KEPT_MAX + 1000, 256):
        seen.add(tuple(range(start, start + 256)))
    assert len(seen) == KEPT_MAX == 31_250


@given(st.lists(st.text(max_size=300), max_size=6), st.integers(0, 1500))
def test_a_longer_conversation_keeps_its_chunks(turns: list[str], more: int) -> None:
    messages = [{"role": "user", "content": text} for text in turns]
    one = chunks_of(body(messages=messages), "w")
    two = chunks_of(body(messages=[*messages, {"role": "assistant", "content": "z" * more}]), "w")
    assert two[: len(one)] == one


def test_a_long_prompt_costs_little() -> None:
    data = body("word " * 100_000)
    chunks_of(data, "w")
    best = 1.0
    for _ in range(20):
        began = time.process_time()
        assert len(chunks_of(data, "w")) == CHUNKS_MAX
        best = min(best, time.process_time() - began)
    assert best < 0.02


@pytest.mark.parametrize(
    ("most", "median", "output"),
    [
        (None, 128.0, 128.0), (16, 128.0, 16.0), (4096, 200.0, 200.0), (0, 50.0, 0.0),
        ("9", 50.0, 50.0), (True, 50.0, 50.0), (-1, 50.0, 50.0), (1.5, 50.0, 50.0),
    ],
)  # fmt: skip
def test_load_is_the_prompt_and_no_more_output_than_is_usual(most: Any, median: float, output: float) -> None:
    data = b"x" * 400
    assert estimates.load_of(data, True, most, median) == 100.0 + output
    assert estimates.load_of(data, False, most, median) == 100.0


def test_pictures_in_a_body_are_not_read_as_words() -> None:
    picture = "data:image/png;base64," + "iVBORw0KGgo" * 100_000
    data = body(messages=[{"role": "user", "content": [{"image_url": {"url": picture}}]}])
    assert 1000 < estimates.load_of(data, False, None, 0.0) < 1100
