"""`nanopod up` as a person uses it: start, stop, start twice, kill any part or all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def nanopod(*words: str, env: dict[str, str] | None = None, wait_s_max: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the command line and wait."""
    return subprocess.run(
        [sys.executable, "-m", "nanopod", *words], capture_output=True, text=True, timeout=wait_s_max, env=env
    )


def test_the_first_call_within_ten_seconds_of_the_command(tmp_path: Path) -> None:
    took_s: list[float] = []
    # A machine that is busy with something else may need a second or third go.
    while not took_s or (took_s[-1] >= 10 and len(took_s) < 3):
        begin = time.monotonic()
        with Cloud(tmp_path / f"data{len(took_s)}") as cloud:
            done = subprocess.run(
                [sys.executable, str(ROOT / "examples" / "square.py")],
                capture_output=True,
                text=True,
                timeout=60,
                env=cloud.client_env(),
            )
            took_s.append(time.monotonic() - begin)
            assert done.stdout.strip().splitlines()[-1] == "square(5) = 25", done.stderr
    assert min(took_s) < 10


def test_local_mode_needs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    program = tmp_path / "square.py"
    program.write_text((ROOT / "examples" / "square.py").read_text())
    probe = Cloud(tmp_path / "unused")
    env = {
        **os.environ,
        "NANOPOD_TEST_MARK": probe.mark,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    env.pop("XDG_DATA_HOME", None)
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path
    )
    assert "square(5) = 25" in done.stdout, done.stderr
    probe.wait_for(lambda: not probe.processes(), 20, "no process left of the embedded cloud")


def test_a_second_up_on_the_same_directory_is_refused(cloud: Cloud) -> None:
    done = nanopod("up", "--data-dir", str(cloud.data_dir), "--port", "0")
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert "nanopod down" in done.stderr


def test_a_port_in_use_is_named_with_the_fix(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = nanopod("up", "--data-dir", str(tmp_path), "--port", str(port))
    assert done.returncode == 2
    assert f"--port {port + 1}" in done.stderr


def test_detach_status_logs_down(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    up = nanopod("up", "--detach", "--port", "0", "--json", *data)
    assert up.returncode == 0, up.stderr
    try:
        status = nanopod("status", "--json", *data)
        assert status.returncode == 0, status.stdout
        assert json.loads(status.stdout)["status"] == "ok"
        assert "server" in nanopod("status", *data).stdout
        assert nanopod("logs", "server", *data).stdout.startswith("server |")
        assert nanopod("logs", "nonsense", *data).returncode == 1
    finally:
        down = nanopod("down", "--json", *data)
    assert json.loads(down.stdout)["stopped"] is True
    assert nanopod("status", *data).returncode == 1
    assert json.loads(nanopod("down", "--json", *data).stdout)["stopped"] is False


def test_kill_9_of_everything_leaves_no_orphan_and_loses_nothing(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path / "data")
    cloud.start()
    cloud.serve("nanopod-tiny", scale={"cold_workers": 1, "max_workers": 1})
    cloud.wait_ready("nanopod-tiny")
    made = cloud.api("POST", "/v1/keys", {"name": "kept"})
    cloud.kill_all()
    cloud.wait_for(lambda: not cloud.processes(), 5, "every process is gone")
    cloud.start()
    try:
        assert made["id"] in {key["id"] for key in cloud.api("GET", "/v1/keys")["data"]}
        cloud.wait_ready("nanopod-tiny")
    finally:
        cloud.stop()
    assert not cloud.processes()


def test_killing_only_the_supervisor_takes_everything_along(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path / "data")
    cloud.start()
    cloud.serve("nanopod-tiny", scale={"cold_workers": 1, "max_workers": 1})
    cloud.wait_ready("nanopod-tiny")
    assert cloud.up is not None
    cloud.up.kill()
    cloud.up.wait(10)
    cloud.wait_for(lambda: not cloud.processes(), 5, "no process survives its supervisor")


@pytest.mark.parametrize("module", ["nanopod.server", "nanopod.gateway", "nanopod.node.agent"])
def test_a_crashed_process_comes_back(tmp_path: Path, module: str) -> None:
    with Cloud(tmp_path / "data") as cloud:
        killed = cloud.kill(module)
        cloud.wait_for(lambda: [p for p in cloud.pids(module) if p != killed], 10, f"{module} is restarted")
        nodes = cloud.wait_for(lambda: cloud.api("GET", "/v1/nodes")["data"], 20, "the API answers")
        assert nodes


def test_a_worker_survives_the_death_of_its_agent(tmp_path: Path) -> None:
    with Cloud(tmp_path / "data") as cloud:
        cloud.serve("nanopod-tiny", scale={"cold_workers": 1, "max_workers": 1})
        cloud.wait_ready("nanopod-tiny")
        workers = cloud.pids("nanopod.node.worker")
        cloud.kill("nanopod.node.agent")
        time.sleep(3)
        assert cloud.pids("nanopod.node.worker") == workers
        assert cloud.api("GET", "/v1/endpoints/nanopod-tiny")["ready_instance_count"] == 1


def test_scale_to_zero_and_wake_on_the_first_request(tmp_path: Path) -> None:
    with Cloud(tmp_path / "data") as cloud:
        scale = {"cold_workers": 0, "min_load": 0, "inactivity_timeout": 1, "max_workers": 1}
        cloud.serve("nanopod-tiny", scale=scale)
        chat = {"model": "nanopod-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        for _ in range(2):
            answer = cloud.api("POST", "/v1/chat/completions", chat)
            assert answer["choices"][0]["message"]["content"]
            cloud.wait_for(lambda: not cloud.pids("nanopod.node.worker"), 60, "asleep after idling")
            assert cloud.api("GET", "/v1/endpoints/nanopod-tiny")["status"] == "asleep"
