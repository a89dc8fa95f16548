"""`app.test()`: a private cloud where things break on purpose, and what becomes of calls then."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from spawning import eventually

from nanopod.model.errors import DeploymentFailed, Invalid

pytestmark = pytest.mark.integration


def load(marks: Path) -> ModuleType:
    os.environ["FAULTY_MARKS"] = str(marks)
    spec = importlib.util.spec_from_file_location("faulty_app", Path(__file__).with_name("faulty_app.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faulty_app"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trial") / "marks"


@pytest.fixture(scope="module")
def module(marks: Path) -> Iterator[Any]:
    yield load(marks)
    sys.modules.pop("faulty_app", None)
    os.environ.pop("FAULTY_MARKS", None)


@pytest.fixture(scope="module")
def t(module: Any) -> Iterator[Any]:
    with module.app.test() as running:
        yield running


def test_calls_work_and_the_environment_means_this_cloud(t: Any, module: Any) -> None:
    assert module.square.remote(5) == 25
    assert os.environ["NANOPOD_URL"] == t.url
    assert module.square.spawn(4).get(60) == 16
    assert len(t.workers()) == 1
    assert t.api.get("/v1/endpoints/faulty")["name"] == "faulty"


def test_a_preempted_worker_is_told_and_replaced(t: Any, module: Any, marks: Path) -> None:
    before, gone = module.pid.remote(), t.workers()
    assert t.preempt(notice=1.0) == gone[0]
    eventually(lambda: marks.exists() and "preempted (injected)" in marks.read_text(), "the hook is told")
    eventually(lambda: module.pid.remote() != before, "another worker answers")
    eventually(lambda: (now := t.workers()) and gone[0] not in now, "another worker is there, and it is not")


def test_a_killed_worker_comes_back(t: Any, module: Any) -> None:
    before = module.pid.remote()
    t.kill()
    eventually(lambda: module.pid.remote() != before, "another process answers")


def test_links_that_are_cut_lose_no_call(t: Any, module: Any) -> None:
    t.drop()
    assert module.square.remote(6) == 36
    t.drop("")
    assert module.square.remote(7) == 49


def test_what_is_slow_takes_longer(t: Any, module: Any) -> None:
    module.square.remote(1)

    def took_s() -> float:
        began = time.monotonic()
        module.square.remote(2)
        return time.monotonic() - began

    t.slow(0.4)
    eventually(lambda: took_s() >= 0.4, "the delay is there")
    t.slow(0)
    eventually(lambda: took_s() < 0.4, "the delay is gone")


def test_a_context_that_fails_is_said_to_the_caller(t: Any, module: Any) -> None:
    def called() -> str:
        try:
            module.square.remote(3)
        except DeploymentFailed as error:
            return str(error)
        return ""

    t.fail(module.Model)
    t.kill()
    assert "Model fails on purpose" in eventually(called, "the failure reaches the caller")
    t.heal()
    module.app.ensure_ready()
    module.app.ensure_ready(wait=True)
    assert module.square.remote(8) == 64


def test_faults_name_what_is_missing(t: Any) -> None:
    for body, words in (
        ({"kind": "fail_context"}, "name the class"),
        ({"kind": "slow", "seconds": -1}, "from 0"),
        ({"kind": "kill", "instance_id": "inst_none"}, "no live instance"),
    ):
        with pytest.raises(Exception, match=words):
            t.api.post("/v1/faults", body)


def test_nothing_is_left_and_it_is_a_fixture_as_well(module: Any) -> None:
    trial = module.app.test(start=False)
    with pytest.raises(Invalid, match="inside `with"):
        trial.kill()
    with trial as running:
        directory, pid = running._cloud.directory, running._cloud.pid
        assert directory.exists()
        with pytest.raises(Invalid, match="runs already"):
            trial.__enter__()
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert trial.fixture(scope="session") is not None
