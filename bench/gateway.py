"""The gateway against nginx in front of the same model server, in one run and on one machine.

nginx (one worker, keep-alive upstream, no access log, no buffering) runs before and after every cell; the mean of the
two is the divisor. The gateway runs as in production: keys, routes, limits, deadlines, continuation and metering are
on, and the run fails when the records that arrived are fewer than the answers that were counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Figure, median, pss_mib, say
from bench.load import cpu_ns
from bench.upstream import EVENTS, PATH, Secrets, request_body

ROOT = Path(__file__).parent.parent
NGINX_CONF = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  keepalive_requests 100000000;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
WRK_LUA = """
wrk.method = "POST"
wrk.body = [[{body}]]
wrk.headers["Authorization"] = "Bearer {key}"
wrk.headers["Content-Type"] = "application/json"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{{"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""
CLIENT_SHARE_MAX = 0.9
READY_S_MAX = 15.0


def nginx_path() -> str | None:
    """Debian keeps nginx where an ordinary user's PATH does not look."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Target:
    """One way to the model server, and the processes that are charged for it."""

    name: str
    port: int
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """One measurement. `events` counts server-sent events; `client_share` is the load's own share of a core."""

    requests: int
    events: int
    seconds: float
    cpu_s: float
    p50_s: float
    p99_s: float
    ttft_s: float
    client_share: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def request_us(self) -> float:
        """CPU time per request, microseconds."""
        return self.cpu_s / self.requests * 1e6

    @property
    def event_us(self) -> float:
        """CPU time per server-sent event, microseconds."""
        return self.cpu_s / self.events * 1e6


@dataclass(frozen=True)
class Round:
    """The gateway between two runs of nginx (absent: none), and a direct call where one was asked for."""

    gateway: Run
    nginx: tuple[Run, ...]
    direct: Run | None

    def ratio(self, of: Callable[[Run], float]) -> float:
        """The gateway's value over the mean of nginx before and after."""
        return of(self.gateway) / (sum(map(of, self.nginx)) / len(self.nginx))

    def added_ms(self, of: Callable[[Run], float]) -> float:
        """The gateway's value, seconds, above that of the direct call, in ms."""
        assert self.direct is not None, "this cell runs direct calls"
        return (of(self.gateway) - of(self.direct)) * 1000


def _die_with_parent() -> None:
    """A benchmark that is killed leaves nothing behind (Linux: PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Stage:
    """All processes of the run, in a directory of their own under the system's temporary directory."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="npb-")))
        self.secrets = Secrets(f"sk_np_bench_{secrets.token_hex(16)}", secrets.token_hex(16), secrets.token_hex(16))
        self.direct = self.gateway = Target("", 0)
        self.nginx: Target | None = None
        self.counted = 0
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stage:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.directory / "log").open("ab"))
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, preexec_fn=_die_with_parent)
        self._stack.callback(_end, process)
        return process

    def _role(self, role: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        process = self._spawn(sys.executable, "-m", "bench.upstream", role, str(self.directory))
        return process, self._line(process)

    def _line(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """The next line of JSON that a child prints."""
        assert process.stdout is not None, "children are started with a pipe"
        ready, _, _ = select.select([process.stdout], [], [], READY_S_MAX)
        line = process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"{process.args!r} did not get ready:\n{self.log()}")
        return dict(json.loads(line))

    def log(self) -> str:
        """The end of what the children said on stderr."""
        return "\n".join((self.directory / "log").read_text(errors="replace").splitlines()[-15:])

    def _start(self) -> None:
        self.secrets.save(self.directory)
        _, told = self._role("http")
        self.direct = Target("direct", int(told["port"]))
        self._server, _ = self._role("server")
        port = _free_port()
        argv = ("-m", "nanopod.gateway", "--data-dir", str(self.directory), "--listen", f"127.0.0.1:{port}")
        gateway = self._spawn(sys.executable, *argv)
        self.gateway = Target("gateway", port, (gateway.pid,))
        self._role("worker")
        self._wait(self.gateway)
        binary = nginx_path()
        if binary is not None:
            self.nginx = self._start_nginx(binary)

    def _start_nginx(self, binary: str) -> Target:
        port = _free_port()
        config = self.directory / "nginx.conf"
        config.write_text(NGINX_CONF.format(directory=self.directory, upstream=self.direct.port, port=port))
        process = self._spawn(binary, "-p", str(self.directory), "-c", str(config))
        self._wait(Target("nginx", port))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return Target("nginx", port, (process.pid, *map(int, children)))

    def _wait(self, target: Target) -> None:
        """Until a request is answered."""
        limit = time.monotonic() + READY_S_MAX
        while time.monotonic() < limit:
            with contextlib.suppress(OSError):
                if self._ask(target.port):
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{target.name} answers nothing within {READY_S_MAX:.0f} s:\n{self.log()}")

    def _ask(self, port: int) -> bool:
        body = request_body("plain")
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.secrets.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(head.encode() + body)
            return sock.recv(4096).startswith(b"HTTP/1.1 200")

    # --- measuring ---

    def measure(self, target: Target, cell: str, connections: int, warm_s: float, seconds: float) -> Run:
        """One closed loop against one target."""
        if cell == "plain" and shutil.which("wrk"):
            run = self._wrk(target, connections, warm_s, seconds)
        else:
            run = self._load(target, cell, connections, warm_s, seconds)
        if target is self.gateway:
            self.counted += run.requests
        return run

    def _load(self, target: Target, cell: str, connections: int, warm_s: float, seconds: float) -> Run:
        options = {
            "directory": self.directory, "port": target.port, "cell": cell, "connections": connections,
            "warm-s": warm_s, "seconds": seconds, "pids": ",".join(map(str, target.pids)),
        }  # fmt: skip
        argv = [sys.executable, "-m", "bench.load", *(f"--{name}={value}" for name, value in options.items())]
        return Run(**self._output(argv, warm_s + seconds, target))

    def _wrk(self, target: Target, connections: int, warm_s: float, seconds: float) -> Run:
        script = self.directory / "wrk.lua"
        if not script.exists():
            script.touch(0o600)
            script.write_text(WRK_LUA.format(body=request_body("plain").decode(), key=self.secrets.key))
        argv = ["wrk", "-t1", f"-c{connections}", "-s", str(script), f"http://127.0.0.1:{target.port}{PATH}"]
        self._output([*argv, f"-d{max(1, round(warm_s))}s"], warm_s, target)
        own, used = _children_s(), cpu_ns(list(target.pids))
        told = self._output([*argv, f"-d{max(1, round(seconds))}s"], seconds, target)
        used, own = cpu_ns(list(target.pids)) - used, _children_s() - own
        if told["errors"]:
            raise RuntimeError(f"{target.name}: {told['errors']} of {told['requests']} requests failed:\n{self.log()}")
        took = told["us"] / 1e6
        p50_s, p99_s = told["p50_us"] / 1e6, told["p99_us"] / 1e6
        return Run(told["requests"], 0, took, used / 1e9, p50_s, p99_s, 0.0, own / took)

    def _output(self, argv: list[str], seconds: float, target: Target) -> dict[str, Any]:
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 20, preexec_fn=_die_with_parent
        )
        line = done.stdout.strip().rpartition("\n")[2]
        if done.returncode or not line.startswith("{"):
            raise RuntimeError(f"load on {target.name}: {done.stderr or done.stdout}\n{self.log()}")
        return dict(json.loads(line))

    def rounds(
        self, cell: str, connections: int, repeats: int, warm_s: float, seconds: float, *, direct: bool = False
    ) -> list[Round]:
        """nginx, gateway, (direct,) nginx, gateway, (direct,) nginx, ..."""

        def once(target: Target) -> Run:
            return self.measure(target, cell, connections, warm_s, seconds)

        found = []
        before = once(self.nginx) if self.nginx else None
        for _ in range(repeats):
            gateway = once(self.gateway)
            straight = once(self.direct) if direct else None
            after = once(self.nginx) if self.nginx else None
            found.append(Round(gateway, (before, after) if before and after else (), straight))
            before = after
        return found

    @contextlib.contextmanager
    def one_core(self) -> Iterator[None]:
        """Keep every process on one core. A call at one connection is a chain of hand-overs, and waking another core
        that sleeps (tens of microseconds under a hypervisor) would be all that one sees."""
        before = os.sched_getaffinity(0)
        _pin({max(before)})
        try:
            yield
        finally:
            _pin(before)

    def metered(self) -> int:
        """End the control peer; how many answered requests the gateway reported to it for billing."""
        assert self._server is not None, "the stage is started"
        # The gateway seals its spool every 0.2 s; what was answered last must have time to arrive.
        time.sleep(0.6)
        self._server.send_signal(signal.SIGTERM)
        return int(self._line(self._server)["records"])


def _pin(cores: set[int]) -> None:
    """Bind all threads of this process and of its descendants to `cores`; processes started later inherit it."""
    pids = [os.getpid()]
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)
                pids += map(int, (task / "children").read_text().split())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    if process.stdout is not None:
        process.stdout.close()


def _detail(rounds: list[Round], of: Callable[[Run], float], unit: str) -> dict[str, Any]:
    """Absolutes behind a ratio, medians: they hold for this machine only."""
    nginx = [of(run) for found in rounds for run in found.nginx]
    share = max(found.gateway.client_share for found in rounds)
    facts = {f"gateway_{unit}": round(median([of(found.gateway) for found in rounds]), 3)}
    if nginx:
        facts |= {f"nginx_{unit}": round(median(nginx), 3)}
    return {**facts, "client_share": round(share, 2)}


def _judged(rounds: list[Round], of: Callable[[Run], float], name: str, unit: str, bar: str) -> Iterator[Figure]:
    if not rounds[0].nginx:
        return
    detail = _detail(rounds, of, unit)
    detail["repeats"] = [round(found.ratio(of), 3) for found in rounds]
    yield Figure(name, median(detail["repeats"]), "ratio", "nginx, 1 worker, before and after, same run", bar, detail)


def _rate(rounds: list[Round]) -> Iterator[Figure]:
    for figure in _judged(rounds, lambda run: run.rate, "gateway_rate_vs_nginx_c64", "per_s", ">= 0.25"):
        bound = max(run.client_share for found in rounds for run in (found.gateway, *found.nginx)) > CLIENT_SHARE_MAX
        yield Figure(**{**figure.__dict__, "bar": "not judged: client-bound" if bound else figure.bar})


def _added(rounds: list[Round], of: Callable[[Run], float], name: str, bar: str) -> Figure:
    repeats = [round(found.added_ms(of), 4) for found in rounds]
    detail: dict[str, Any] = {"repeats": repeats}
    for way, runs in (
        ("gateway", [found.gateway for found in rounds]),
        ("direct", [found.direct for found in rounds if found.direct]),
        ("nginx", [run for found in rounds for run in found.nginx]),
    ):
        if runs:
            detail[f"{way}_ms"] = round(median([of(run) * 1000 for run in runs]), 4)
    return Figure(name, median(repeats), "ms", "direct call, same run", bar, detail)


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Figures of this cell. Without nginx only those whose yardstick is a direct call."""
    repeats, warm_s, seconds = (1, 0.5, 1.0) if quick else (3, 1.0, 3.0)
    if nginx_path() is None:
        say("nginx is not here: only what needs no nginx is measured; `apt-get install nginx-light wrk` for the rest")
    with Stage() as stage:
        yield from _plain(stage, repeats, warm_s, seconds)
        if stage.nginx:
            say(f"burst: 16 connections, {EVENTS} events at once")
            burst = stage.rounds("burst", 16, repeats, warm_s, seconds)
            yield from _judged(burst, lambda r: r.request_us, "gateway_cpu_vs_nginx_burst", "us", "<= 2.5")
        say(f"paced: 64 connections, {EVENTS} events 5 ms apart")
        paced = stage.rounds("paced", 64, repeats, warm_s, seconds, direct=True)
        yield from _judged(paced, lambda r: r.event_us, "gateway_cpu_vs_nginx_chunk", "us", "<= 1.3")
        yield _added(paced, lambda r: r.ttft_s, "gateway_ttft_added_ms", "<= 5")
        yield Figure("gateway_memory_mib", pss_mib(stage.gateway.pids), "MiB", "none: PSS after the load", "<= 40")
        metered = stage.metered()
        say(f"metered: {metered} records for {stage.counted} counted answers (and those of the warm-ups)")
        if metered < stage.counted:
            raise RuntimeError(f"the gateway answered more requests than it metered:\n{stage.log()}")


def _plain(stage: Stage, repeats: int, warm_s: float, seconds: float) -> Iterator[Figure]:
    """The cells of whole answers: 1 connection for the added time, 64 for the cost (16 for a look)."""
    say("plain: 1 connection, everything on one core")
    with stage.one_core():
        one = stage.rounds("plain", 1, repeats, warm_s, seconds, direct=True)
    figure = _added(one, lambda r: r.p50_s, "gateway_added_p50_ms_c1", "<= 0.1")
    if repeats > 1:
        free = stage.rounds("plain", 1, 1, warm_s, seconds, direct=True)
        figure.detail["added_ms_unpinned"] = round(free[0].added_ms(lambda r: r.p50_s), 4)
    yield figure
    if stage.nginx:
        say("plain: 64 connections")
        many = stage.rounds("plain", 64, repeats, warm_s, seconds)
        for figure in _judged(many, lambda r: r.request_us, "gateway_cpu_vs_nginx_plain", "us", "<= 3.0"):
            figure.detail["c1"] = round(median([found.ratio(lambda r: r.request_us) for found in one]), 3)
            if repeats > 1:
                some = stage.rounds("plain", 16, 1, warm_s, seconds)
                figure.detail["c16"] = round(some[0].ratio(lambda r: r.request_us), 3)
            yield figure
        yield from _rate(many)
