"""`nanopod calls` and `nanopod schedules` against recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from recorded_api import NOW, Recorded, listed

Run = Callable[..., tuple[int, str, str]]
ID = "call_" + "0" * 31 + "1"
CALL: dict[str, Any] = {
    "object": "call", "id": ID, "endpoint_id": "endp_1", "endpoint": "thumbs:default", "function": "make",
    "origin": "spawn", "status": "running", "attempt": 1, "created_at": NOW, "started_at": NOW, "ended_at": None,
    "run_us": 0, "cost": "0.000000", "error": None, "worker": "inst_1", "expires_at": None, "schedule_id": None,
    "webhook": None,
}  # fmt: skip
RESULT: dict[str, Any] = {
    "object": "call_result", "id": ID, "status": "succeeded", "value": [1, 2], "items": None, "error": None,
}  # fmt: skip
SCHEDULE: dict[str, Any] = {
    "object": "schedule", "id": "schd_1", "endpoint_id": "endp_1", "endpoint": "report:default", "function": "nightly",
    "cron": "0 3 * * *", "tz": "Europe/Berlin", "period_s": 0.0, "catch_up": True, "paused": False, "next_at": NOW,
    "last_at": None, "last_call_id": None, "created_at": NOW, "updated_at": NOW,
}  # fmt: skip


def test_calls_are_listed_and_narrowed(api: Recorded, run: Run) -> None:
    api.answers["GET /v1/calls"] = listed(CALL)
    code, out, err = run("calls list -e thumbs --status running --status queued -o wide --utc")
    assert code == 0, err
    assert "thumbs.make" in out
    assert "inst_1" in out
    query = api.query("GET /v1/calls")
    assert query["endpoint"] == ["thumbs"]
    assert query["status"] == ["running", "queued"]


def test_a_result_is_waited_for_and_printed_as_json(api: Recorded, run: Run) -> None:
    api.answers[f"GET /v1/calls/{ID}/result"] = [(202, CALL), RESULT]
    code, out, err = run(f"calls result {ID}")
    assert code == 0, err
    assert json.loads(out) == [1, 2]
    assert float(api.query(f"GET /v1/calls/{ID}/result")["wait_s"][0]) > 0


def test_a_failed_call_is_an_error_and_one_that_runs_a_timeout(api: Recorded, run: Run) -> None:
    error = {"type": "ValueError", "code": "remote_error", "message": "too blue"}
    api.answers[f"GET /v1/calls/{ID}/result"] = {**RESULT, "status": "failed", "value": None, "error": error}
    code, out, err = run(f"calls result {ID}")
    assert (code, out) == (1, "")
    assert "ValueError: too blue" in err
    api.answers[f"GET /v1/calls/{ID}/result"] = (202, CALL)
    code, _, err = run(f"calls result {ID} --no-wait")
    assert code != 0
    assert "has no result yet (running)" in err


def test_logs_cancel_share_and_secret(api: Recorded, run: Run) -> None:
    lines = [
        {"seq": 1, "at": NOW, "stream": "stdout", "line": "a"},
        {"seq": 2, "at": NOW, "stream": "stderr", "line": "b"},
    ]
    api.answers[f"GET /v1/calls/{ID}/logs"] = listed(*lines)
    assert run(f"calls logs {ID}") == (0, "a\n", "b\n")
    api.answers[f"POST /v1/calls/{ID}/cancel"] = {**CALL, "status": "cancelled"}
    assert "is cancelled" in run(f"calls cancel {ID}")[1]
    api.answers[f"POST /v1/calls/{ID}/share"] = {"object": "call_share", "id": ID, "token": "cst_1"}
    assert run(f"calls share {ID}")[1] == "cst_1\n"
    api.answers["GET /v1/calls/webhook_secret"] = {"object": "call_webhook_secret", "secret": "whsec_1"}
    assert run("calls webhook-secret")[1] == "whsec_1\n"


def test_schedules(api: Recorded, run: Run) -> None:
    api.answers["GET /v1/schedules"] = listed(SCHEDULE, {**SCHEDULE, "id": "schd_2", "cron": "", "period_s": 5.0})
    code, out, err = run("schedules list")
    assert code == 0, err
    assert "report.nightly" in out
    assert "0 3 * * * (Europe/Berlin)" in out
    assert "every 5 s" in out
    api.answers["PATCH /v1/schedules/report.nightly"] = {**SCHEDULE, "paused": True}
    assert "paused" in run("schedules pause report.nightly")[1]
    assert api.sent("PATCH /v1/schedules/report.nightly") == {"paused": True}
    run("schedules resume report.nightly")
    assert api.sent("PATCH /v1/schedules/report.nightly") == {"paused": False}
    api.answers["POST /v1/schedules/report.nightly/run"] = (201, CALL)
    assert run("schedules run report.nightly")[1] == f"{ID}\n"
