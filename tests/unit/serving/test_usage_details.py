"""What is added to the usage of engines that leave it out, whole or in a stream cut anywhere."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nanopod.node.engines.details import Details, with_details

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
EVENTS = (
    b'data: {"id":"1","choices":[{"delta":{"content":"\\"usage\\""}}]}\n\n: a comment\r\n\r\n'
    b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    b"data: [DONE]\n\n"
)


def test_only_what_is_missing_is_added() -> None:
    told = json.loads(with_details(json.dumps({"id": 1.0, "usage": USAGE, "x": [1e3]}).encode()))
    assert told == {"id": 1.0, "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 0}}, "x": [1e3]}
    audio = {**USAGE, "prompt_tokens_details": {"audio_tokens": 4}}
    found = json.loads(with_details(json.dumps({"usage": audio}).encode()))["usage"]["prompt_tokens_details"]
    assert found == {"audio_tokens": 4, "cached_tokens": 0}
    for same in (
        json.dumps({"usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 2}}}).encode(),
        b'{"usage": null}', b'{"usage": {}', b'"usage"', b"", b"\xff",
    ):  # fmt: skip
        assert with_details(same) == same


@given(st.lists(st.integers(0, len(EVENTS)), max_size=6))
def test_a_stream_cut_anywhere_is_the_same(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(EVENTS)]
    details = Details(streaming=True)
    shown = b"".join(details.feed(EVENTS[at:end]) for at, end in pairwise(places)) + details.rest()
    before, _, after = shown.partition(b'"usage":')
    assert before.startswith(EVENTS[:60])
    assert after.startswith(b'{"prompt_tokens":3')
    assert b'"cached_tokens":0' in after
    assert shown.endswith(b"data: [DONE]\n\n")


def test_a_stream_passes_line_by_line() -> None:
    details = Details(streaming=True)
    assert details.feed(b"data: {}\n\ndata: {") == b"data: {}\n\n"
    assert details.feed(b"}\n\n") == b"data: {}\n\n"


def test_a_whole_answer_is_held_until_its_end() -> None:
    details = Details(streaming=False)
    assert details.feed(b'{"usage": {"prompt_') == b""
    assert details.feed(b'tokens": 1}}') == b""
    assert json.loads(details.rest())["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
