"""`run`, `deploy`, `plan`, `logs`, `shell`, `ps`, `top`, `versions`, `rollback`, `bench` against a real cloud."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devloop_stage import WAIT_S_MAX, Terminal, eventually

pytestmark = pytest.mark.e2e
CODE = """
import sys
from nanopod import Deployment

app = Deployment(name="NAME")
app.image("")
app.configure_autoscaling(min_load=0, max_workers=1)

@app.remote(concurrency=4)
async def square(x: int, loud: bool = False) -> int:
    if loud:
        print("out of", x)
        print("err of", x, file=sys.stderr)
    if x < 0:
        raise ValueError("it is negative")
    return x * x

@app.remote
def count(n: int = 3):
    yield from range(n)
"""


def file_of(terminal: Terminal, name: str) -> Path:
    return terminal.write(f"{name}.py", CODE.replace("NAME", name))


def names(terminal: Terminal) -> list[str]:
    return [f"{row['name']}:{row['tag']}" for row in terminal.json("endpoints", "list")["data"]]


def test_run_prints_the_value_and_what_was_printed_and_leaves_nothing(terminal: Terminal) -> None:
    path = file_of(terminal, "runs")
    done = terminal.run("run", f"{path}::square", "--x", "5", "--loud")
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, ["out of 5", "25"], "err of 5\n")
    done = terminal.run("run", "--json", f"{path}::square", "6", "--loud")
    assert (json.loads(done.stdout), done.stderr) == (36, "out of 6\nerr of 6\n")
    terminal.env["NANOPOD_LOGS"] = "0"
    done = terminal.run("run", f"{path}::square", "7", "--loud")
    assert (done.stdout, done.stderr) == ("49\n", "")
    assert terminal.good("run", f"{path}::count", "--n", "2") == "0\n1\n"
    assert not [name for name in names(terminal) if name.startswith("runs")]


def test_exit_codes_of_run(terminal: Terminal) -> None:
    path = file_of(terminal, "codes")
    raised = terminal.run("run", f"{path}::square", "-3")
    assert raised.returncode == 1
    assert "ValueError: it is negative" in raised.stderr
    for words, told in ((("--y", "1"), "--y is no parameter"), ((), "missing a required argument: 'x'")):
        refused = terminal.run("run", f"{path}::square", *words)
        assert refused.returncode == 2
        assert told in refused.stderr
    assert terminal.run("run", f"{path}::missing").returncode == 2
    broken = terminal.write("broken.py", "import a_module_that_is_not_there\n")
    assert terminal.run("run", f"{broken}::square", "1").returncode == 3
    slow = terminal.write(
        "slow.py", CODE.replace("NAME", "slow").replace("    if loud:", "    import asyncio; print('begun', flush=True)\n    await asyncio.sleep(60)\n    if loud:")
    )  # fmt: skip
    with terminal.started("run", f"{slow}::square", "1") as running:
        running.says("begun")
        assert running.interrupt() == 130
    assert not [name for name in names(terminal) if name.startswith(("codes", "slow"))]


def test_plan_deploy_versions_rollback(terminal: Terminal) -> None:
    path = file_of(terminal, "plans")
    assert terminal.run("plan", path).returncode == 2
    assert "plans is ready" in terminal.good("deploy", path, "--wait", "--label", "first").replace(":default", "")
    same = terminal.run("plan", path, "--json")
    assert same.returncode in (0, 2)  # the label alone restarts nothing, and is no change of the code
    assert json.loads(same.stdout)["tier"] == 0
    terminal.write("plans.py", CODE.replace("NAME", "plans").replace("x * x", "x * x * x"))
    other = terminal.run("plan", path, "--json")
    assert other.returncode == 2
    plan = json.loads(other.stdout)
    assert (plan["tier"], len(plan["workers"])) == (2, 1)
    assert "x * x * x" in plan["differences"][0]
    terminal.good("deploy", path, "--wait", "--label", "second")
    rows = terminal.json("versions", "plans")["data"]
    assert [(row["number"], row["state"], row["version_label"]) for row in rows] == [
        (2, "current", "second"), (1, "old", "first"),
    ]  # fmt: skip
    assert "revision 1" in terminal.good("rollback", "plans")
    assert terminal.json("versions", "plans")["data"][0]["state"] == "rolled_back"
    assert terminal.run("rollback", "plans", "99").returncode == 3
    assert terminal.run("promote", "plans").returncode == 6
    terminal.good("endpoints", "delete", "plans")


def test_a_detached_call_and_the_logs_of_call_and_deployment(terminal: Terminal) -> None:
    path = file_of(terminal, "detached")
    call_id = terminal.good("run", "--detach", f"{path}::square", "9", "--loud").strip()
    assert call_id.startswith("call_")

    def ended() -> bool:
        return bool(terminal.json("calls", "get", call_id)["status"] == "succeeded")

    eventually(ended, "the call's end")
    assert terminal.good("logs", "--call", call_id, "-f").splitlines() == ["out of 9", "err of 9"]
    with terminal.started("logs", "detached", "-f", "--json") as follower:
        follower.says('"err of 9"')
        assert terminal.good("run", "--tag", "default", f"{path}::square", "11", "--loud").splitlines()[-1] == "121"
        follower.says('"out of 11"')
        rows = [json.loads(line) for line in follower.text.splitlines()]
        assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
        assert len({(row["worker"], row["seqnum"]) for row in rows}) == len(rows), "each line once"
    assert "out of 9" in terminal.good("logs", "detached", "--since", "in -10m")
    missing = terminal.run("logs", "nothing-of-that-name")
    assert missing.returncode == 3
    assert "there is no deployment" in missing.stderr
    terminal.good("endpoints", "delete", "detached")


def test_ps_top_bench_and_a_shell(terminal: Terminal) -> None:
    path = file_of(terminal, "watched")
    terminal.good("deploy", path, "--wait")
    facts = terminal.json("ps", "watched")
    assert [row["name"] for row in facts["deployments"]] == ["watched"]
    assert [(row["deployment"], row["phase"]) for row in facts["workers"]] == [("watched", "ready")]
    assert "WORKER" in terminal.good("ps")
    measured = json.loads(terminal.good("bench", "--json", "--seconds", "0.4", "-c", "2", "watched::square", "3"))
    assert (measured["errors"], measured["concurrency"]) == (0, 2)
    assert measured["calls"] > 0
    assert measured["echo"]["calls"] > 0
    assert measured["ratio"]["p50"] > 0

    def seen() -> bool:
        (row,) = terminal.json("top", "watched", "--once")["deployments"]
        assert (row["deployment"], row["ready"], row["queue"]) == ("watched", 1, 0)
        return bool(row["calls_per_s"] and row["p50_s"] and row["p99_s"] >= row["p50_s"])

    eventually(seen, "the calls in top")
    failing = terminal.run("bench", "--seconds", "0.2", "watched::square", "-1")
    assert failing.returncode == 1
    assert "it is negative" in failing.stderr
    assert terminal.run("ps", "unknown").returncode == 3
    assert (
        terminal.good("shell", "watched", "--", "sh", "-c", "echo $NANOPOD_INSTANCE").strip()
        == facts["workers"][0]["id"]
    )
    assert terminal.run("shell", "watched", "--", "sh", "-c", "exit 7").returncode == 7
    _a_terminal(terminal)
    terminal.good("endpoints", "delete", "watched")
    gone = terminal.run("shell", "watched")
    assert gone.returncode == 3


def _a_terminal(terminal: Terminal) -> None:
    """A shell on a pseudo-terminal, typed into as a person would."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nanopod", "shell", "watched"], stdin=theirs, stdout=theirs, stderr=theirs,
        env=terminal.env, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    limit = time.monotonic() + WAIT_S_MAX
    try:
        while not seen.rstrip().endswith((b"$", b"#")) and time.monotonic() < limit:
            seen += _read(ours)
        os.write(ours, b"tty; echo six=$((2*3)); exit 5\n")
        while b"six=6" not in seen and time.monotonic() < limit:
            seen += _read(ours)
        assert b"six=6" in seen, seen
        assert b"/dev/pts/" in seen
        while process.poll() is None and time.monotonic() < limit:
            _read(ours)
        assert process.wait(WAIT_S_MAX) == 5
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(descriptor: int) -> bytes:
    """What is there within a moment; nothing once the other side is gone."""
    if not select.select([descriptor], [], [], 0.2)[0]:
        return b""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
