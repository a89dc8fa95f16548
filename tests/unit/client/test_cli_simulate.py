"""`nanopod endpoints simulate`: what is read of a load file, what is sent, what people see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded_api import Recorded

from nanopod.client.cli.simulating import chart, read_load
from nanopod.model.errors import Invalid

Run = Callable[..., tuple[int, str, str]]
ANSWER = {
    "object": "simulation",
    "endpoint": "chat:main",
    "conditions": {"profile": "knative", "slots": 2, "provision_s": 30.0, "wake_s": 5.0, "bill_s": 60.0, "mu": None},
    "outcome": {
        "requests": 3, "worker_s": 90.0, "billed_s": 120.0, "peak_workers": 2, "starts": 2, "wakes": 1,
        "wait_mean": 10.0, "wait_p50": 0.5, "wait_p99": 30.0, "wait_max": 30.0, "late_share": 0.3, "timeouts": 0,
        "utilisation": 0.25, "evaluations": 9,
        "timeline": [
            {"at": 2, "ready": 0, "starting": 2, "cold": 0, "waiting": 3, "in_service": 0, "want": 2},
            {"at": 4, "ready": 2, "starting": 0, "cold": 0, "waiting": 0, "in_service": 2, "want": 2},
        ],
    },
}  # fmt: skip


def test_a_load_is_sent_with_what_is_to_be_tried_and_the_figures_are_shown(
    api: Recorded, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "day.csv"
    path.write_text("at,service_s,units\n1.5,2,50\n0.5,1,\n")
    api.answers["POST /v1/endpoints/chat/simulate"] = ANSWER
    code, out, _ = run(
        f"endpoints simulate chat --load {path} --profile knative --set stable_window=30 --mu 80 --slots 2"
    )
    assert code == 0
    assert api.sent("POST /v1/endpoints/chat/simulate") == {
        "requests": [[0.5, 1.0], [1.5, 2.0, 50.0]],
        "slots": 2,
        "mu": 80.0,
        "scale": {"profile": "knative", "tuning": {"stable_window_s": 30}},
    }
    for words in ("knative", "99 % 30 s", "2.0 billed", "1 of them by a wake", "25%", "     2 |"):
        assert words in out
    code, out, _ = run(f"endpoints simulate chat --load {path} --json")
    assert (code, json.loads(out)) == (0, ANSWER)
    assert "scale" not in api.sent("POST /v1/endpoints/chat/simulate")


def test_levels_and_json_lines_are_read(tmp_path: Path) -> None:
    levels = tmp_path / "levels.csv"
    levels.write_text("at, concurrency\n0,1.5\n60,4\n")
    assert read_load(levels) == {"concurrency": [[0.0, 1.5], [60.0, 4.0]]}
    lines = tmp_path / "load.jsonl"
    lines.write_text('{"at": 3, "service_s": 2}\n\n{"at": 1, "service_s": 4, "units": 7}\n')
    assert read_load(lines) == {"requests": [[1.0, 4.0, 7.0], [3.0, 2.0]]}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "line 1"),
        ("when,how\n1,2\n", "when, how"),
        ("at,service_s\n", "nothing in it"),
        ("at,service_s\n1,soon\n", "line 2: service_s='soon'"),
        ("at,service_s\n1,2\n-3,2\n", "line 3: at="),
        ("at,service_s\n1,\n", "line 2: service_s is missing"),
        ('{"at": 1}\n', "line 1: service_s is missing"),
        ('{"at": 1, "service_s": 1}\n{"at":\n', "line 2"),
        ('{"at": 1, "service_s": 1}\n7\n', "line 2: a JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(Invalid) as found:
        read_load(path)
    assert names in str(found.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="nowhere"):
        read_load(tmp_path / "nowhere.csv")


def point(at: int, ready: int, starting: int = 0, waiting: int = 0) -> dict[str, Any]:
    return {"at": at, "ready": ready, "starting": starting, "cold": 0, "waiting": waiting, "in_service": 0, "want": 0}


def test_the_chart_shows_ready_and_starting_workers_and_how_many_wait() -> None:
    lines = chart([point(0, 0, 2, 5), point(60, 1, 1, 1), point(120, 3), point(180, 0)]).splitlines()
    assert lines[1:5] == ["     3 |  #", "     2 |++#", "     1 |+##", "     0 +----"]
    assert lines[5].startswith("  wait  31")
    assert lines[6].split() == ["0", "s", "3", "min"]
    tall = chart([point(at, at) for at in range(200)]).splitlines()
    assert len(tall) <= 16
    assert all(len(line) <= 90 for line in tall)
