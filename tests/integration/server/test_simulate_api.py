"""What an endpoint's scaling would do with a load, asked over the API: nothing of the endpoint changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from described import Document
from peers import ServerProcess, model

pytestmark = pytest.mark.integration
QUIET = {"min_load": 0, "cold_workers": 0, "inactivity_timeout": 60, "max_workers": 8}
CALLS = [[10.0 + index * 2.0, 3.0] for index in range(100)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("simulate") / "data").start()
    process.judge = Document(process.call("GET", "/openapi.json").body).check
    assert process.call("POST", "/v1/endpoints", model("chat", scale=QUIET)).status == 201
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.log(), process.log()[-4000:]


def simulate(server: ServerProcess, body: Any, **more: Any) -> Any:
    return server.call("POST", "/v1/endpoints/chat/simulate", body, **more)


def test_a_load_leads_to_figures_and_a_timeline(server: ServerProcess) -> None:
    before = server.call("GET", "/v1/endpoints/chat").body
    found = simulate(server, {"requests": CALLS, "provision_s": 20, "slots": 1})
    assert found.status == 200, found.body
    outcome = found["outcome"]
    assert outcome["requests"] == len(CALLS)
    assert outcome["wait_max"] <= 25
    assert 2 <= outcome["peak_workers"] <= 8
    assert outcome["timeline"][0]["at"] >= 0
    assert found["conditions"] == {
        "profile": "auto", "slots": 1, "provision_s": 20.0, "wake_s": 20.0, "bill_s": 60.0, "mu": None,
    }  # fmt: skip
    assert simulate(server, {"requests": CALLS, "provision_s": 20, "slots": 1}).body == found.body
    after = server.call("GET", "/v1/endpoints/chat").body
    assert {name: after[name] for name in ("scale", "revision_id", "target_instance_count")} == {
        name: before[name] for name in ("scale", "revision_id", "target_instance_count")
    }


def test_other_settings_are_tried_and_not_kept(server: ServerProcess) -> None:
    plain = simulate(server, {"requests": CALLS, "slots": 1, "mu": 33})
    knative = simulate(server, {"requests": CALLS, "slots": 1, "mu": 33, "scale": {"profile": "knative"}})
    assert knative["conditions"]["profile"] == "knative"
    assert knative["outcome"]["worker_s"] != plain["outcome"]["worker_s"]
    capped = simulate(server, {"requests": CALLS, "slots": 1, "scale": {"max_workers": 1}})
    assert capped["outcome"]["peak_workers"] == 1
    stable = {"tuning": {"min_scale": 3}}
    assert simulate(server, {"requests": CALLS, "slots": 1, "scale": stable})["outcome"]["peak_workers"] >= 3
    assert server.call("GET", "/v1/endpoints/chat")["scale"]["max_workers"] == 8


def test_levels_are_as_many_requests_at_once(server: ServerProcess) -> None:
    body = {"concurrency": [[0, 0.5], [100, 3], [160, 0]], "slots": 1, "provision_s": 1}
    outcome = simulate(server, body)["outcome"]
    assert outcome["requests"] == 50 + 180
    assert outcome["peak_workers"] >= 3


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "requests"),
        ({"requests": [[0, 1]], "concurrency": [[0, 1]]}, "requests"),
        ({"requests": [[5, 1], [4, 1]]}, "requests[1]"),
        ({"requests": [[5]]}, "requests[0]"),
        ({"requests": [[5, -1]]}, "requests[0]"),
        ({"requests": [[1e9, 1]]}, "requests[0]"),
        ({"concurrency": [[0, 1e9]]}, "concurrency[0]"),
        ({"concurrency": [[3, 1], [2, 1]]}, "concurrency[0]"),
        ({"requests": [[0, 1]], "provision_s": -1}, "provision_s"),
        ({"requests": [[0, 1]], "scale": {"profile": "other"}}, "scale.profile"),
        ({"requests": [[0, 1]], "scale": {"cold_workers": -1}}, "scale.cold_workers"),
        ({"requests": [[0, 1]], "speed": 1}, "speed"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_its_field(server: ServerProcess, body: Any, field: str) -> None:
    answer = simulate(server, body)
    assert answer.status == 422, answer.body
    assert answer.error["details"][0]["field"] == field


def test_who_may_read_may_simulate_and_nobody_else(server: ServerProcess) -> None:
    reader = server.call("POST", "/v1/keys", {"name": "reader", "scopes": ["read"]})["key"]
    caller = server.call("POST", "/v1/keys", {"name": "caller", "scopes": ["call"]})["key"]
    body = {"requests": [[0, 1]]}
    assert simulate(server, body, key=reader).status == 200
    assert simulate(server, body, key=caller).status == 403
    assert server.call("POST", "/v1/endpoints/nothing/simulate", body).status == 404
