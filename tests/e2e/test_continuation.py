"""A stream whose worker is killed goes on, byte for byte, in the same response."""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from bench.cloud import Cloud

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODES: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 11},
    {"temperature": 0.9, "seed": 5, "frequency_penalty": 0.6, "presence_penalty": 0.3, "top_p": 0.95},
    {"temperature": 1.0, "seed": 2, "n": 2, "logprobs": True, "top_logprobs": 2},
]


@pytest.fixture(scope="module")
def one() -> Iterator[Cloud]:
    """One worker: whoever kills a worker kills the right one, and the stream waits for its successor."""
    with Cloud() as cloud:
        cloud.serve("nanopod-tiny", scale={"cold_workers": 1, "max_workers": 1})
        cloud.wait_ready("nanopod-tiny")
        yield cloud


def events(cloud: Cloud, options: dict[str, Any]) -> Iterator[str]:
    """SSE events of one chat stream, read from the raw response: what any client would see."""
    body = {
        "model": "nanopod-tiny",
        "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 80,
        "min_tokens": 60,
        **options,
    }
    request = urllib.request.Request(
        f"{cloud.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {cloud.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        assert answer.headers["x-nanopod-continuation"] == "exact"
        for raw in answer:
            line = raw.decode().rstrip("\r\n")
            if line.startswith("data: "):
                yield line


def anonymous(lines: list[str]) -> list[str]:
    """Without what names the one request: its id and time of creation."""
    kept = []
    for line in lines:
        if line != "data: [DONE]":
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            chunk.pop("id")
            chunk.pop("created")
            line = json.dumps(chunk)
        kept.append(line)
    return kept


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kills", [8, pytest.param(20, marks=pytest.mark.nightly), pytest.param(100, marks=pytest.mark.nightly)]
)
def test_as_many_identical_streams_as_kills(one: Cloud, kills: int) -> None:
    rng = random.Random(kills)
    earlier = {record["record_id"] for record in one.usage_records()}
    undisturbed = [anonymous(list(events(one, mode))) for mode in MODES]
    for kill in range(kills):
        mode = kill % len(MODES)
        one.wait_ready("nanopod-tiny")
        cut = rng.randrange(0, len(undisturbed[mode]) - 10)
        lines: list[str] = []
        for line in events(one, MODES[mode]):
            lines.append(line)
            if len(lines) == cut + 1:
                assert one.kill("nanopod.node.worker"), "there is a worker to kill"
        assert len({json.loads(line[6:])["id"] for line in lines if line != "data: [DONE]"}) == 1
        assert lines.count("data: [DONE]") == 1
        assert anonymous(lines) == undisturbed[mode], f"kill {kill} at event {cut} in mode {mode}"

    def complete() -> list[dict[str, Any]] | None:
        ended = [record for record in one.usage_records() if record["status"] == 200]
        found = [record for record in ended if record["record_id"] not in earlier]
        return found if len(found) >= kills + len(MODES) else None

    records = one.wait_for(complete, 20, "a record of every stream")
    ids = [record["record_id"] for record in records]
    assert len(ids) == len(set(ids)) == kills + len(MODES), "each is metered once"
    moved = [record for record in records if record["moves"] > 0]
    # A late kill can find the stream already complete in the caller's socket; most must have moved for real.
    assert len(moved) >= kills // 2
    whole = {record["completion_tokens"] for record in records if record["moves"] == 0}
    assert {record["completion_tokens"] for record in moved} <= whole


@pytest.mark.timeout(300)
def test_another_ready_worker_takes_over_at_once() -> None:
    with Cloud() as two:
        two.serve("nanopod-tiny", scale={"max_workers": 2, "tuning": {"min_scale": 2}})
        two.wait_ready("nanopod-tiny", 2)
        want = anonymous(list(events(two, MODES[1])))
        lines: list[str] = []
        for line in events(two, MODES[1]):
            lines.append(line)
            if len(lines) in (8, 30):  # whichever served, one of the two kills hit it or its successor
                two.kill("nanopod.node.worker")
        assert anonymous(lines) == want
