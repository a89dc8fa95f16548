"""Local mode against a stand-in for `nanopod up --embedded`: started, shared, replaced, ended with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanopod.client import local
from nanopod.model.errors import DeploymentFailed

pytestmark = pytest.mark.integration

STAND_IN = """#!{python}
import fcntl, http.server, json, os, sys, threading
assert sys.argv[1:5] == ["-m", "nanopod", "up", "--embedded"], sys.argv
options = dict(zip(sys.argv[5::2], sys.argv[6::2]))
data, ready = options["--data-dir"], int(options["--ready-fd"])
assert not os.environ.get("NANOPOD_API_KEY")
if os.path.exists(os.path.join(data, "broken")):
    print("the stand-in is broken"); sys.exit(4)
lock = open(os.path.join(data, "lock"), "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("a cloud already runs here"); sys.exit(1)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *rest): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Healthy)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = "http://127.0.0.1:%d" % server.server_port
open(os.path.join(data, "admin.key"), "w").write("sk_local")
state = {{"pid": os.getpid(), "url": url, "key_file": os.path.join(data, "admin.key")}}
open(os.path.join(data, "up.json"), "w").write(json.dumps(state))
os.write(ready, (json.dumps({{"url": url, "key": "sk_local", "pid": os.getpid()}}) + "\\n").encode())
sys.stdin.read()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    script = tmp_path / "python"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(local.sys, "executable", str(script))
    monkeypatch.setenv("NANOPOD_API_KEY", "sk_of_the_user")
    before = dict(local._clouds)
    local._clouds.clear()
    yield tmp_path
    for cloud in local._clouds.values():
        if cloud.child is not None:
            local._end(cloud.child)
    local._clouds.clear()
    local._clouds.update(before)


def test_it_is_started_once_and_again_when_it_died(stand_in: Path) -> None:
    cloud = local.cloud_for(stand_in)
    assert cloud.target.key == "sk_local" and cloud.directory == stand_in / ".nanopod" and cloud.is_alive()
    assert local.cloud_for(stand_in) is cloud
    os.kill(cloud.pid, signal.SIGKILL)
    assert cloud.child is not None
    cloud.child.wait(5)
    again = local.cloud_for(stand_in)
    assert again.pid != cloud.pid and again.is_alive()


def test_it_ends_with_the_pipe(stand_in: Path) -> None:
    cloud = local.cloud_for(stand_in)
    assert cloud.child is not None and cloud.child.stdin is not None
    cloud.child.stdin.close()
    assert cloud.child.wait(5) == 0 and not cloud.is_alive()


def test_a_second_program_shares_the_first_ones(stand_in: Path) -> None:
    first = local.cloud_for(stand_in)
    local._clouds.clear()
    second = local.cloud_for(stand_in)
    assert second.pid == first.pid and second.child is None and second.is_alive()
    assert first.child is not None
    local._end(first.child)
    assert not second.is_alive()


def test_a_directory_held_by_somebody_silent_is_left_alone(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(local, "JOIN_S_MAX", 0.2)
    data = stand_in / ".nanopod"
    data.mkdir()
    with (data / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cloud = local.cloud_for(stand_in)
        assert cloud.directory != data and cloud.is_alive()


def test_a_directory_that_cannot_be_written_is_replaced(stand_in: Path) -> None:
    (stand_in / ".nanopod").write_text("a file is in the way")
    assert local.cloud_for(stand_in).directory.parent == Path("/tmp")


def test_a_failed_start_shows_the_log(stand_in: Path) -> None:
    (stand_in / ".nanopod").mkdir()
    (stand_in / ".nanopod" / "broken").touch()
    with pytest.raises(DeploymentFailed, match="ended with status 4") as caught:
        local.cloud_for(stand_in)
    assert "the stand-in is broken" in caught.value.log_tail


def test_it_ends_when_its_parent_is_killed(stand_in: Path) -> None:
    program = stand_in / "parent.py"
    program.write_text(
        textwrap.dedent(f"""
        import json, sys, time
        from pathlib import Path
        from nanopod.client import local
        sys.executable = {str(stand_in / "python")!r}
        print(local.cloud_for(Path({str(stand_in)!r})).pid, flush=True)
        time.sleep(60)
        """)
    )
    real = Path(local.__file__).parents[2]
    interpreter = json.loads(json.dumps(sys.prefix)) + "/bin/python"
    parent = subprocess.Popen(
        [interpreter, str(program)], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(real), "PATH": ""}
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait(5)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "the cloud outlives its parent"
        time.sleep(0.02)
