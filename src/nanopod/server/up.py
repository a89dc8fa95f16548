"""`nanopod up`: a whole cloud on this machine."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from nanopod.control.market.drafts import check_block_s
from nanopod.model.errors import Conflict, Invalid, NanopodError
from nanopod.model.layout import Layout
from nanopod.server import cloud
from nanopod.server.__main__ import DATABASE_VARIABLE
from nanopod.server.faults import VARIABLE as FAULTS_VARIABLE

DEFAULT_PORT: Final = 8900
READY_S_MAX: Final = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod up`."""
    parser.add_argument("--data-dir", metavar="DIR", help="where everything is kept (default: ~/.local/share/nanopod)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, help=f"port of the one front door (default: {DEFAULT_PORT}; 0: a free one)")
    parser.add_argument("--detach", "-d", action="store_true", help="return once it is ready; end it with nanopod down")
    parser.add_argument("--json", action="store_true", help="print one JSON line when ready")
    parser.add_argument(
        "--database",
        metavar="URL",
        help="postgresql://... instead of a file (default: NANOPOD_DATABASE_URL, or a file)",
    )
    parser.add_argument(
        "--test-clock", action="store_true", help="a new cluster whose clock stands still until it is advanced"
    )
    parser.add_argument(
        "--block-s", type=int, metavar="N", help="seconds of a block of time on a new cluster; divides 60 (default: 60)"
    )
    parser.add_argument(
        "--early-start",
        action=argparse.BooleanOptionalAction,
        help="start instances on idle nodes before their first block (default: yes, on a test clock no)",
    )
    parser.add_argument(
        "--vast-routes", action="store_true", help="serve the routes of Vast's Deployments API for its client as well"
    )
    parser.add_argument("--faults", action="store_true", help="let POST /v1/faults break things on purpose, for tests")
    parser.add_argument("--embedded", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Start the cloud; in the foreground until Ctrl-C, or detached."""
    if args.port is not None and not 0 <= args.port <= 65535:
        raise Invalid(f"--port {args.port} is not a port: give a number from 0 to 65535", field="port")
    check_block_s(args.block_s if args.block_s is not None else 60)
    layout = Layout(cloud.data_directory(args.data_dir))
    if args.database:
        # By the environment, because other users of this machine can read a command line.
        os.environ[DATABASE_VARIABLE] = args.database
    if args.detach:
        return _detach(args, layout)
    os.environ.pop(FAULTS_VARIABLE, None)
    if args.faults:
        os.environ[FAULTS_VARIABLE] = str(layout.faults)
    lock = cloud.prepare(layout)
    try:
        port = args.port if args.port is not None else (0 if args.embedded else DEFAULT_PORT)
        supervisor = cloud.Supervisor(
            layout,
            args.host,
            cloud.check_port(args.host, port),
            embedded=args.embedded,
            server_flags=server_flags(args),
        )
        announcer = Announcer(supervisor, as_json=args.json, ready_fd=args.ready_fd, quiet=args.embedded)
        if not (args.embedded or args.json):
            print(f"starting nanopod in {layout.data} ...", flush=True)
        supervisor.run(announcer.tick)
        if not (args.embedded or args.json):
            print("nanopod is down; nothing that was acknowledged is lost", flush=True)
        return 0
    finally:
        lock.close()


def server_flags(args: argparse.Namespace) -> list[str]:
    """The options of `nanopod up` that the server process gets, too."""
    flags = ["--test-clock"] if args.test_clock else []
    if args.block_s is not None:
        flags += ["--block-s", str(args.block_s)]
    if args.early_start is not None:
        flags.append("--early-start" if args.early_start else "--no-early-start")
    if args.vast_routes:
        flags.append("--vast-routes")
    if args.faults:
        flags.append("--faults")
    return flags


class Announcer:
    """Says once that the cloud is ready: to people, as JSON, or to the parent's descriptor."""

    def __init__(self, supervisor: cloud.Supervisor, *, as_json: bool, ready_fd: int | None, quiet: bool) -> None:
        self._cloud = supervisor
        self._as_json = as_json
        self._ready_fd = ready_fd
        self._quiet = quiet
        self._begin = time.monotonic()
        self._done = False

    def tick(self) -> None:
        """Look whether everything answers; announce it the first time. Raises when it takes too long."""
        if self._done:
            return
        waited_s = time.monotonic() - self._begin
        if not is_ready(self._cloud.host, self._cloud.port, self._cloud.layout):
            if waited_s > READY_S_MAX:
                tails = "\n".join(f"--- {c.name}\n{self._cloud.tail(c.name, 6)}" for c in self._cloud.children)
                raise NanopodError(f"the cloud was not ready after {READY_S_MAX:.0f} s:\n{tails}")
            return
        self._done = True
        facts = {
            "url": self._cloud.url,
            "key_file": str(self._cloud.layout.admin_key),
            "data_dir": str(self._cloud.layout.data),
            "pid": os.getpid(),
            "ready_s": round(waited_s, 2),
        }
        if self._ready_fd is not None:
            key = self._cloud.layout.admin_key.read_text().strip()
            with contextlib.suppress(OSError):
                os.write(self._ready_fd, (json.dumps({**facts, "key": key}) + "\n").encode())
                os.close(self._ready_fd)
        if self._as_json:
            print(json.dumps(facts), flush=True)
        elif not self._quiet:
            print(welcome(facts), flush=True)


def welcome(facts: dict[str, Any]) -> str:
    """What a person reads when the cloud is ready."""
    return (
        f"nanopod is up ({facts['ready_s']:.1f} s)\n"
        f"  URL    {facts['url']}   (OpenAI-compatible API at {facts['url']}/v1)\n"
        f"  key    {facts['key_file']}\n"
        f"  data   {facts['data_dir']}\n"
        "  next   nanopod serve nanopod-tiny        stream text from the model that ships inside\n"
        "         python examples/square.py         call a Python function on it\n"
        "         nanopod status | logs | down      Ctrl-C drains and stops"
    )


def is_ready(host: str, port: int, layout: Layout) -> bool:
    """True when the gateway has its tables, the server answers and a node is up."""
    try:
        key = layout.admin_key.read_text().strip()
    except OSError:
        return False
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    health = get_json(address, port, "/healthz")
    if not health or health.get("table_age_s") is None:
        return False
    nodes = get_json(address, port, "/v1/nodes", key)
    return bool(nodes) and any(node.get("state") == "up" for node in nodes.get("data", []))


def get_json(host: str, port: int, path: str, key: str | None = None) -> dict[str, Any]:
    """One short GET; an empty dict for any failure (the caller asks again)."""
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        found = json.loads(answer.read()) if answer.status == 200 else {}
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return found if isinstance(found, dict) else {}


def _detach(args: argparse.Namespace, layout: Layout) -> int:
    """Start the same command in a session of its own and wait until it is ready."""
    cloud.prepare(layout).close()  # refuses here, on the caller's terminal, what the child would refuse unseen
    port = cloud.check_port(args.host, DEFAULT_PORT if args.port is None else args.port)
    read_fd, write_fd = os.pipe()
    log = layout.logs / "up.log"
    with open(log, "ab") as output:
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "nanopod", "up", "--data-dir", str(layout.data)),
                *("--host", args.host, "--port", str(port), "--ready-fd", str(write_fd)),
                *server_flags(args),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write_fd],
            start_new_session=True,
        )
    os.close(write_fd)
    with os.fdopen(read_fd) as ready:
        line = ready.readline()
    if not line:
        child.wait(READY_S_MAX)
        raise Conflict(f"nanopod did not start:\n{_last_lines(log)}")
    facts = json.loads(line)
    facts.pop("key")
    print(json.dumps(facts) if args.json else welcome(facts))
    return 0


def _last_lines(path: Path, lines: int = 20) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
