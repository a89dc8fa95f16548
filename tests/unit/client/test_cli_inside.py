"""Instances from the command line: commands inside them, logs, images; and events as they happen."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded_api import NOW, Recorded, listed

from nanopod import __main__ as command
from nanopod.client.cli import images, shell

Run = Callable[..., tuple[int, str, str]]


def text64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def page(*chunks: tuple[int, str], offset: int, code: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "object": "exec_output", "chunks": [{"offset": 0, "stream": s, "data": text64(t)} for s, t in chunks],
        "next_offset": offset, "truncated": False, "status": "running" if code is None else "exited",
        "exit_code": code, "error": None, **more,
    }  # fmt: skip


def inside(api: Recorded, number: str, *pages: dict[str, Any]) -> None:
    """Instance `number` answers an exec with these pages."""
    api.answers[f"GET /v1/instances/{number}"] = {"id": f"inst_{number}", "name": f"web-{number}", "status": "running"}
    for name in (number, f"inst_{number}"):
        api.answers[f"POST /v1/instances/{name}/exec"] = (201, {"id": f"exec_{number}", "object": "exec"})
    api.answers[f"GET /v1/execs/exec_{number}/output"] = list(pages)
    api.answers[f"POST /v1/execs/exec_{number}/input"] = {"id": f"exec_{number}"}
    api.answers[f"DELETE /v1/execs/exec_{number}"] = {"id": f"exec_{number}"}


def test_one_command_inside_has_its_own_exit_status(
    api: Recorded, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    read, write = socket.socketpair()
    with read, write, read.makefile("rb", buffering=0) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        write.sendall(b"typed")
        write.shutdown(socket.SHUT_WR)
        ended = threading.Event()

        def last(_body: Any) -> dict[str, Any]:
            assert ended.wait(10), "the end of the input arrives before the command is over"
            return page((1, "more"), offset=12, code=7)

        inside(api, "1")
        api.answers["GET /v1/execs/exec_1/output"] = [page((1, "out\n"), (2, "err\n"), offset=8), last]
        api.answers["POST /v1/execs/exec_1/input"] = lambda body: ended.set() or {} if body.get("eof") else {}
        assert command.main(["instances", "ssh", "1", "--", "ls", "-l"]) == 7
    out, err = capfdbinary.readouterr()
    assert (out, err) == (b"out\nmore", b"err\n")
    assert api.sent("POST /v1/instances/1/exec") == {"command": ["ls", "-l"], "tty": False}
    sent = [body for word, _, body, _ in api.asked if word == "POST /v1/execs/exec_1/input"]
    assert sent == [{"data": text64("typed")}, {"eof": True}]
    assert [q["offset"] for w, q, _, _ in api.asked if w.endswith("/output")] == [["0"], ["8"]]


def test_output_that_was_lost_is_said_and_a_command_that_cannot_start_is_an_error(api: Recorded) -> None:
    from nanopod.client.api import Api
    from nanopod.client.config import Target
    from nanopod.model.errors import RemoteError

    inside(api, "1", page((1, "a"), offset=9, truncated=True), page(offset=9, code=0))
    running = shell.Exec(Api(Target(api.url, "k")), "1", ["x"], tty=True, rows=3, cols=5, timeout_s=4.0)
    assert [stream for stream, _ in running.output()] == [2, 1] and running.exit_code == 0
    assert api.sent("POST /v1/instances/1/exec") == {
        "command": ["x"], "tty": True, "rows": 3, "cols": 5, "timeout_s": 4.0,
    }  # fmt: skip
    inside(api, "1", page(offset=0, code=127, error="no such file: x"))
    with pytest.raises(RemoteError, match="no such file: x"):
        list(shell.Exec(Api(Target(api.url, "k")), "1", ["x"]).output())


def test_one_command_on_many_instances(api: Recorded, run: Run) -> None:
    inside(api, "1", page((1, "one\ntw"), offset=6), page((1, "o"), (2, "oops\n"), offset=9, code=0))
    inside(api, "2", page((1, "hi\n"), offset=3, code=3))
    api.answers["POST /v1/execs/exec_2/input"] = (409, {"error": {"type": "conflict", "message": "it is over"}})
    code, out, err = run("instances run 1 2 --timeout 1m -- uname -a")
    assert code == 1
    assert sorted(out.splitlines()) == ["web-1 | one", "web-1 | two", "web-2 | hi"]
    assert "web-1 | oops" in err and "1 of 2 ended with 0" in err and "web-2  exit   3" in err
    assert api.sent("POST /v1/instances/inst_1/exec") == {"command": ["uname", "-a"], "tty": False, "timeout_s": 60.0}
    inside(api, "1", page((1, "x"), offset=1), page(offset=1, code=0))
    api.answers["POST /v1/instances/inst_2/exec"] = (409, {"error": {"type": "conflict", "message": "it is ending"}})
    code, out, _ = run("instances run 1 2 --json -- uname")
    rows = json.loads(out)["data"]
    assert code == 1 and [(row["exit_code"], row["stdout"], row["error"]) for row in rows] == [
        (0, "x", None), (None, "", "it is ending"),
    ]  # fmt: skip


def test_instances_by_tag_and_by_deployment(api: Recorded, run: Run) -> None:
    rows = [
        {"id": "inst_1", "name": "web-1", "managed_by": {"object": "deployment", "id": "depl_1", "name": "web"}},
        {"id": "inst_2", "name": "job-1", "managed_by": None},
    ]
    api.answers["GET /v1/instances"] = listed(*rows)
    inside(api, "1", page(offset=0, code=0))
    assert run("instances run --deployment web --tag role=a=b -- true")[0] == 0
    assert api.query("GET /v1/instances") == {"limit": ["200"], "status": ["running"], "tag": ["role=a%3Db"]}
    assert run("instances run --deployment nothing -- true")[0] == 2
    for line in ("", "1 --deployment web", "1 --fan-out 0"):
        assert run(f"instances run {line} -- true")[0] == 2
    assert run("instances run 1 --")[0] == 2


def test_logs_are_printed_oldest_first_and_followed_to_the_end(api: Recorded, run: Run) -> None:
    def line(seq: int, text: str) -> dict[str, Any]:
        return {"seqnum": seq, "timestamp_realtime": NOW + seq, "data": text64(text)}

    api.answers["GET /v1/instances/dev/logs"] = listed(line(2, "b\n"), line(1, "a"))
    code, out, _ = run("instances logs dev --limit 2")
    assert (code, out) == (0, "a\nb\n")
    assert api.query("GET /v1/instances/dev/logs") == {"limit": ["2"], "sort_by": ["-seqnum"]}
    assert run("instances logs dev --timestamps --utc")[1].startswith("Mar 15, 12:00:01am UTC  a\n")
    api.answers["GET /v1/instances/dev/logs"] = [
        listed(line(1, "a")), listed(line(2, "b")), listed(), listed(line(3, "c")), listed(),
    ]  # fmt: skip
    api.answers["GET /v1/instances/dev"] = [{"status": "running"}, {"status": "terminated"}]
    assert run("instances logs dev -f --after 1")[:2] == (0, "a\nb\nc\n")
    assert api.query("GET /v1/instances/dev/logs")["seqnum_after"] == ["4"]


def test_an_image_is_uploaded_in_parts(
    api: Recorded, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PART_BYTES", 10)
    data = bytes(range(35))
    (tmp_path / "root.tar").write_bytes(data)
    api.answers["POST /v1/images"] = (201, {"id": "image_1", "name": "mine", "upload_status": "started"})
    for number in range(1, 5):
        api.answers[f"PUT /v1/images/image_1/parts/{number}"] = (201, {})
    api.answers["POST /v1/images/image_1/complete"] = {"id": "image_1", "name": "mine", "upload_status": "uploading"}
    api.answers["GET /v1/images/image_1"] = {"id": "image_1", "name": "mine", "upload_status": "completed", "size": 35}
    code, out, err = run(f"images upload -f {tmp_path}/root.tar -n mine --concurrency 2")
    assert code == 0 and "| STATUS  completed" in out, err
    parts = {word: (body, query) for word, query, body, _ in api.asked if word.startswith("PUT")}
    assert b"".join(parts[f"PUT /v1/images/image_1/parts/{n}"][0] for n in range(1, 5)) == data
    assert parts["PUT /v1/images/image_1/parts/4"][1]["sha256"] == [hashlib.sha256(data[30:]).hexdigest()]
    assert api.sent("POST /v1/images/image_1/complete") == {"sha256": hashlib.sha256(data).hexdigest(), "size": 35}
    api.answers["PUT /v1/images/image_1/parts/3"] = (413, {"error": {"type": "too_large", "message": "too long"}})
    code, _, err = run(f"images upload -f {tmp_path}/root.tar -n mine")
    assert code == 1 and "too long" in err and "nanopod images delete mine" in err
    for line in ("-f nowhere -n x", f"-f {tmp_path}/root.tar -n x --concurrency 99"):
        assert run(f"images upload {line}")[0] == 2


def test_several_priorities_are_set_in_one_request(api: Recorded, run: Run) -> None:
    api.answers["PATCH /v1/instances"] = listed({"id": "inst_1", "name": "a", "priority_level": "preferred"})
    assert run("instances set a b --priority preferred")[0] == 0
    assert api.sent("PATCH /v1/instances") == {
        "data": [{"id": "a", "priority_level": "preferred"}, {"id": "b", "priority_level": "preferred"}]
    }
    assert run("instances set a b --name c")[0] == 2 and run("instances set a")[0] == 2


def test_an_instance_that_has_to_wait_is_not_waited_for(api: Recorded, run: Run) -> None:
    waiting = {"id": "inst_1", "name": "dev-1", "status": "awaiting_allocation", "expected_start_at": NOW + 86_400}
    api.answers["POST /v1/instances"] = (201, waiting)
    code, out, err = run("instances create dev-1 --image host --utc")
    assert code == 0 and "starts Mar 16, 12:00am UTC" in out and "it waits for its time" in err
    api.answers["POST /v1/instances"] = (201, {**waiting, "expected_start_at": None})
    assert "buy some (nanopod buy)" in run("instances create dev-1 --image host")[2]
    api.answers["POST /v1/instances"] = (201, {**waiting, "expected_start_at": NOW + 5})
    api.answers["GET /v1/instances/inst_1"] = {**waiting, "status": "running"}
    assert "| STATUS  running" in run("instances create dev-1 --image host")[1]


def test_events_are_taken_up_again_after_the_last_one(api: Recorded, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that ends is opened again with the last id; Ctrl-C ends the command."""
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[str] = []

    def serve() -> None:
        for number in (1, 2):
            with listener.accept()[0] as peer:
                heads.append(peer.recv(65536).decode())
                event = json.dumps({"type": "order.filled", "object_id": f"ordr_{number}", "at": NOW, "data": {"n": 1}})
                text = f": alive\n\nid: {number}\nevent: order.filled\ndata: {event}\n\n"
                peer.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{text}".encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    monkeypatch.setenv("NANOPOD_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("nanopod.client.cli.events.time.sleep", nap)
    code, out, _ = run("events -f --type order.filled --utc")
    thread.join(5)
    listener.close()
    assert code == 130
    assert [line.split("  ")[1:] for line in out.splitlines()] == [
        ["order.filled", "ordr_1", "n=1"], ["order.filled", "ordr_2", "n=1"],
    ]  # fmt: skip
    assert "Last-Event-ID" not in heads[0] and "Last-Event-ID: 1" in heads[1] and "type=order.filled" in heads[0]


def test_a_terminal_inside_is_raw_follows_the_window_and_is_restored(api: Recorded) -> None:
    inside(api, "1")
    heard: list[dict[str, Any]] = []
    over = threading.Event()

    def input_(body: dict[str, Any]) -> dict[str, Any]:
        heard.append(body)
        if len(heard) == 2:
            over.set()
        return {}

    def output(_body: Any) -> dict[str, Any]:
        return page((1, "bye\r\n"), offset=5, code=3) if over.wait(10) else page(offset=0)

    api.answers["POST /v1/execs/exec_1/input"] = input_
    api.answers["GET /v1/execs/exec_1/output"] = output
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("LINES", "COLUMNS")}
    with subprocess.Popen(
        [sys.executable, "-m", "nanopod", "instances", "ssh", "1"], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**environment, "TERM": "xterm"}, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            end = time.monotonic() + 20
            while not any(word.endswith("/output") for word, *_ in api.asked) and time.monotonic() < end:
                time.sleep(0.02)
            os.write(ours, b"\x03")  # not a signal here: it belongs to the other side
            while not heard and time.monotonic() < end:
                time.sleep(0.02)
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
            process.send_signal(signal.SIGWINCH)
            assert process.wait(20) == 3
        finally:
            process.kill()
    assert b"bye" in os.read(ours, 4096)
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
    started = api.sent("POST /v1/instances/1/exec")
    assert (started["tty"], started["rows"], started["cols"]) == (True, 33, 99)
    assert started["env"] == {"TERM": "xterm"} and started["command"][0] == "/bin/sh"
    assert heard == [{"data": text64("\x03")}, {"rows": 40, "cols": 120}]
