"""`nanopod dev`: a saved change answers at once, what is loaded stays loaded, mistakes hurt nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from devloop_stage import Terminal, eventually

from nanopod import Deployment

pytestmark = pytest.mark.e2e
LIGHT = """
import os
from nanopod import Deployment

app = Deployment(name="NAME")
app.image("")
app.configure_autoscaling(min_load=0, max_workers=2)

@app.context()
class Model:
    async def __aenter__(self):
        self.entered = os.getpid()
        print("the model is loaded")
        return self
    async def __aexit__(self, *about): pass

def factor():
    return FACTOR

@app.remote(concurrency=4)
async def scaled(x: int = 1):
    print("scaling")
    return [x * factor(), app.get_context(Model).entered, os.getpid()]
"""


def source(name: str, factor: object) -> str:
    return LIGHT.replace("NAME", name).replace("FACTOR", repr(factor))


def function_of(terminal: Terminal, name: str, tag: str) -> Callable[..., Any]:
    app = Deployment.from_name(name, tag, api_key=terminal.cloud.key, url=terminal.cloud.url)
    return app.function("scaled").remote


def until(call: Callable[..., Any], factor: object) -> tuple[list[Any], float]:
    """(answer, seconds) of the first call that is answered by the new code."""
    began = time.monotonic()
    found = eventually(lambda: (answer := call(1))[0] == factor and answer, f"an answer of {factor}")
    return found, time.monotonic() - began


def test_changes_answer_contexts_stay_and_mistakes_keep_the_old_code(
    terminal: Terminal, record_property: Callable[[str, object], None]
) -> None:
    path = terminal.write("light.py", source("devlight", 1))
    with terminal.started("dev", path, "--tag", "dev-test") as dev:
        dev.says("watching light.py")
        call = function_of(terminal, "devlight", "dev-test")
        (first, entered, pid), _ = until(call, 1)
        assert (first, entered) == (1, pid)
        took = []
        for factor in (2, 3, 4):
            terminal.write("light.py", source("devlight", factor))
            answer, took_s = until(call, factor)
            assert answer == [factor, entered, pid], "the worker and its context go on"
            took.append(round(took_s, 3))
        record_property("swap_s", took)
        dev.says("function bodies swapped")
        dev.says("scaling")

        terminal.write("light.py", "def (:\n")
        dev.says("SyntaxError")
        dev.says("the code before goes on")
        assert call(1) == [4, entered, pid]
        terminal.write("light.py", "import a_module_that_is_not_there\n" + source("devlight", 5))
        dev.says("ModuleNotFoundError")
        assert call(1) == [4, entered, pid]

        terminal.write("light.py", source("devlight", 6) + "\nLIMIT = 1\n")
        (_, entered_again, new_pid), took_s = until(call, 6)
        assert entered_again == new_pid != pid, "another statement needs another worker"
        record_property("restart_s", round(took_s, 3))
        dev.says("LIMIT was added")

        terminal.write("light.py", source("devlight", 7) + "\nLIMIT = 1\n")
        assert until(call, 7)[0] == [7, new_pid, new_pid]
        print(f"change to new answer: bodies {took} s, new worker {took_s:.3f} s")
        assert dev.interrupt() == 0
    names = [row["name"] for row in terminal.json("endpoints", "list")["data"]]
    assert "devlight" not in names, "Ctrl-C deletes what was deployed"


def test_a_worker_that_cannot_swap_is_started_anew(terminal: Terminal) -> None:
    hidden = """
def hide(function):
    def inner(*args):
        return -function(*args)
    return inner

@hide
def part(x):
    return x * FACTOR
"""
    text = source("devhidden", 1).replace("    return 1\n", "    return -part(1)\n") + hidden
    path = terminal.write("hidden.py", text.replace("FACTOR", "2"))
    with terminal.started("dev", path, "--tag", "dev-hidden") as dev:
        dev.says("watching hidden.py")
        call = function_of(terminal, "devhidden", "dev-hidden")
        pid = until(call, 2)[0][2]
        terminal.write("hidden.py", text.replace("FACTOR", "3"))
        assert until(call, 3)[0][2] != pid


def test_a_file_that_is_wrong_at_first_is_waited_for(terminal: Terminal) -> None:
    path = terminal.write("late.py", "raise ValueError('not yet')\n")
    with terminal.started("dev", path, "--tag", "dev-late") as dev:
        dev.says("ValueError: not yet")
        dev.says("waiting for a change")
        terminal.write("late.py", source("devlate", 1))
        dev.says("watching late.py")
        assert until(function_of(terminal, "devlate", "dev-late"), 1)[0][0] == 1
    refused = terminal.run("dev", terminal.write("bad.py", "raise ValueError('never')\n"), "--no-reload")
    assert refused.returncode == 3
    assert "ValueError: never" in refused.stderr
