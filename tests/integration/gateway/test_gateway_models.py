"""Several models of one server: a request goes to a worker that has its model, and waits for none that is lacking."""

from __future__ import annotations

import json
import threading

import pytest
from stage import Stage, until

pytestmark = pytest.mark.integration


def ask(stage: Stage, model: str, tokens: int = 1) -> tuple[int, str]:
    """(status, error) of a prediction."""
    body = {"model": model, "max_tokens": tokens}
    status, _, data = stage.get(f"/v1/models/{model}:predict", method="POST", body=body)
    return status, json.loads(data).get("error", "")


def served_by(stage: Stage, model: str, times: int) -> set[str]:
    """The workers that so many predictions went to."""
    before = len(stage.control.records)
    assert {ask(stage, model)[0] for _ in range(times)} == {200}
    until(lambda: len(stage.control.records) >= before + times, what="records")
    return {one.instance_id for one in stage.control.records[before:]}


def test_requests_go_where_their_model_is(stage: Stage) -> None:
    names = ("main", "a", "b")
    stage.route("endp_s", kind="model", name="several", model_ids=names, serves=names, protocols=("v1", "v2"))
    stage.start()
    one = stage.worker("endp_s", "inst_one")
    assert ask(stage, "a") == (200, ""), "a worker that says nothing of models has what its route names"
    stage.tell(one, models={"main": "", "a": ""})
    until(lambda: any(s.models for s in stage.control.states), what="models")
    assert ask(stage, "b") == (503, "the model b is loading")
    two = stage.worker("endp_s", "inst_two")
    stage.tell(two, models={"main": "", "a": "failed: it is broken", "b": "ready: failed: the newer one is broken"})
    until(lambda: any(s.models.get("b") for s in stage.control.states), what="models of both")
    assert served_by(stage, "a", 12) == {"inst_one"}
    assert served_by(stage, "b", 12) == {"inst_two"}
    assert served_by(stage, "main", 40) == {"inst_one", "inst_two"}
    one.kill()
    until(lambda: ask(stage, "a") == (503, "the model a is not ready (failed: it is broken)"), what="the reason")
    assert ask(stage, "main")[0] == 200


def test_one_that_waits_hears_why_the_worker_that_came_does_not_have_it(stage: Stage) -> None:
    names = ("main", "a")
    stage.route("endp_s", kind="model", name="several", model_ids=names, serves=names, protocols=("v1",))
    stage.start()
    found: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda name=name: found.append(ask(stage, name))) for name in names]
    for thread in threads:
        thread.start()
    until(lambda: stage.health().get("in_flight") == 2, what="both wait")
    worker = stage.worker("endp_s", "inst_one", "--late-ready", "3600", linked=False)
    until(lambda: any(s.linked for s in stage.control.states), what="the link")
    stage.tell(worker, models={"main": "", "a": "failed: no memory"})
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [(200, ""), (503, "the model a is not ready (failed: no memory)")]
