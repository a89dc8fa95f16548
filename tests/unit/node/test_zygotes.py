"""What a fork server is asked for and refuses; one real process for the conversation with its agent."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanopod.node import zygote
from nanopod.node.zygotes import Server, Zygotes, libraries_of, may_fork

CODE = """
import os, json
import numpy as np
import torch.nn.functional
from starlette.responses import Response
from . import sibling
from nanopod import Deployment
import own_helper
os.environ["HF_HOME"] = "/x"
import transformers

def f():
    import late
"""


def until(done: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit, what
        time.sleep(0.01)


def test_libraries_are_found_without_importing_anything(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(CODE)
    (tmp_path / "own_helper.py").write_text("")
    assert libraries_of(tmp_path, "app") == ("numpy", "starlette.responses", "torch.nn.functional")
    assert libraries_of(tmp_path, "missing") == ()
    (tmp_path / "app.py").write_text("def (")
    assert libraries_of(tmp_path, "app") == ()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import msgspec, sys")
    assert libraries_of(tmp_path, "package") == ("msgspec",)


def test_what_only_a_new_interpreter_heeds_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    assert may_fork({"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2", "TZ": "UTC"})
    for name in ("PYTHONPATH", "LD_PRELOAD", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        assert not may_fork({name: "something"})


def test_a_process_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="of-a-library")
    thread.start()
    try:
        with pytest.raises(zygote.Trouble, match="threads run: "):
            zygote.check(1000)
    finally:
        stop.set()
        thread.join()
    # Other tests of this process may have left threads of Python's; here only those count that it does not know of.
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with pytest.raises(zygote.Trouble, match="threads of a library"):
        zygote.check(0)


def test_one_that_finds_threads_after_its_imports_refuses_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threading_library.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = Server(sys.executable, ("threading_library",))
    server.start()
    try:
        until(lambda: server.look(time.monotonic()) or bool(server.refused), "a refusal")
        assert "threads run" in server.refused
        assert server.send({}, ()) is None
        assert server.peer is None
    finally:
        server.end()


def test_one_with_libraries_is_made_later_and_a_dead_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOPOD_ZYGOTE", raising=False)
    servers = Zygotes()
    planned: list[Callable[[], None]] = []
    servers.expect(sys.executable, ("msgspec",), lambda _delay_s, make: planned.append(make))
    assert len(planned) == 2
    assert servers.start(sys.executable, ("msgspec",), {}, ()) is None
    try:
        planned[1]()
        (server,) = servers._servers.values()
        until(lambda: servers.tick(time.monotonic()) or server.ready, "ready")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        until(lambda: servers.tick(time.monotonic()) or not server.ready, "noticed")
        until(lambda: servers.tick(server.again_at + time.monotonic()) or server.ready, "ready again")
    finally:
        servers.close()
    assert server.process is None


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOPOD_ZYGOTE", "0")
    servers = Zygotes()
    servers.open()
    servers.expect(sys.executable, (), lambda *_: pytest.fail("nothing is planned"))
    assert servers._servers == {}
