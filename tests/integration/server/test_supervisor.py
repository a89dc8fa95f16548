"""The supervisor with small stand-ins for its children: restarts, back-off, refusal, order of stopping, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanopod.model.errors import Conflict, Invalid
from nanopod.model.layout import Layout
from nanopod.node.procs import children_of
from nanopod.server import cloud

pytestmark = pytest.mark.integration

DRIVER = """
import sys
from pathlib import Path
from nanopod.model.layout import Layout
from nanopod.server import cloud

layout = Layout(Path(sys.argv[1]))
lock = cloud.prepare(layout)
supervisor = cloud.Supervisor(layout, "127.0.0.1", 1)
programs = dict(zip(("server", "gateway", "agent"), sys.argv[2:5]))
for child in supervisor.children:
    child.argv = [sys.executable, "-c", programs[child.name], str(layout.data)]
supervisor.run(lambda: None)
"""
STAY = """
import pathlib, signal, sys, time, os
def bye(*_):
    with open(pathlib.Path(sys.argv[1]) / "order", "a") as order:
        order.write(NAME + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
pathlib.Path(sys.argv[1], NAME + ".pid").write_text(str(os.getpid()))
while True:
    time.sleep(1)
"""


def stay(name: str) -> str:
    """A child that stays until SIGTERM and then writes its name."""
    return f"NAME = {name!r}\n{STAY}"


def start(data: Path, **programs: str) -> subprocess.Popen[str]:
    """A supervisor in a process of its own."""
    chosen = [programs.get(name, stay(name)) for name in ("server", "gateway", "agent")]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(data), *chosen], stderr=subprocess.PIPE, text=True
    )


def until(test: Callable[[], object], wait_s_max: float = 10.0) -> None:
    """Poll until true."""
    limit = time.monotonic() + wait_s_max
    while not test():
        assert time.monotonic() < limit, "did not come true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Does the process run (and is no zombie)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_of(data: Path, name: str) -> int:
    """The pid that a child wrote."""
    path = data / f"{name}.pid"
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def test_children_are_restarted_and_stopped_in_order(tmp_path: Path) -> None:
    running = start(tmp_path)
    first = pid_of(tmp_path, "gateway")
    os.kill(first, signal.SIGKILL)
    until(lambda: pid_of(tmp_path, "gateway") != first)
    for name in ("server", "agent"):
        pid_of(tmp_path, name)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert (tmp_path / "order").read_text().split() == ["agent", "gateway", "server"]
    assert running.stderr is not None
    assert "restarting in 0.1 s" in running.stderr.read()


def test_a_child_that_keeps_crashing_is_restarted_ever_more_slowly(tmp_path: Path) -> None:
    crash = "import pathlib, sys; open(pathlib.Path(sys.argv[1]) / 'starts', 'a').write('x'); sys.exit(1)"
    running = start(tmp_path, gateway=crash)
    time.sleep(2.5)
    starts = len((tmp_path / "starts").read_text())
    running.send_signal(signal.SIGTERM)
    running.wait(20)
    assert 3 <= starts <= 6  # after 0.1, 0.2, 0.4, 0.8 and 1.6 s, not hundreds


def test_settings_that_cannot_work_end_it_with_the_childs_own_words(tmp_path: Path) -> None:
    refuse = "import sys; print('port 1 is in use: choose another', file=sys.stderr); sys.exit(2)"
    running = start(tmp_path, gateway=refuse)
    assert running.wait(20) != 0
    assert running.stderr is not None
    assert "port 1 is in use: choose another" in running.stderr.read()


def test_kill_9_of_the_supervisor_takes_its_children_along(tmp_path: Path) -> None:
    running = start(tmp_path)
    pids = [pid_of(tmp_path, name) for name in ("server", "gateway", "agent")]
    running.kill()
    running.wait(10)
    until(lambda: not any(alive(pid) for pid in pids), 3)


def test_adopted_processes_end_with_the_tree(tmp_path: Path) -> None:
    spawn = (
        "import subprocess, sys, pathlib, os\n"
        "if os.fork() == 0:\n"
        "    p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "    (pathlib.Path(sys.argv[1]) / 'adopted.pid').write_text(str(p.pid))\n"
        "    os._exit(0)\n"
    ) + stay("agent")
    running = start(tmp_path, agent=spawn)
    adopted = pid_of(tmp_path, "adopted")
    until(lambda: adopted in children_of(running.pid))
    running.send_signal(signal.SIGINT)
    running.wait(20)
    assert not alive(adopted)


def test_one_owner_per_directory(tmp_path: Path) -> None:
    lock = cloud.prepare(Layout(tmp_path))
    assert cloud.is_locked(Layout(tmp_path))
    with pytest.raises(Conflict, match="nanopod down"):
        cloud.prepare(Layout(tmp_path))
    lock.close()
    assert not cloud.is_locked(Layout(tmp_path))


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="--data-dir"):
        cloud.prepare(Layout(tmp_path / "file" / "below"))


def test_deep_directories_keep_their_sockets_short(tmp_path: Path) -> None:
    layout = Layout(tmp_path / ("d" * 90) / "data")
    assert len(str(layout.control_socket)) < 100
    assert layout.run != Layout(tmp_path / ("e" * 90) / "data").run
