"""Commands inside instances: one command, or a terminal, through the API; no network path to the node is needed.

Also `nanopod shell NAME`: a terminal in a worker of a deployment.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from nanopod.client.api import Api, segment
from nanopod.client.cli import show
from nanopod.client.cli.parser import Parser
from nanopod.model.errors import NanopodError, NoCapacity, NotFound, RemoteError

POLL_WAIT_S: Final = 20.0
"""How long the server may hold a request for output."""
INPUT_BYTES_MAX: Final = 32 << 10
LOOK_S: Final = 0.2
"""How often the input thread looks whether it shall end."""
KILLED: Final = 137
RUNNING: Final = "running"
SHELL: Final = "if command -v bash >/dev/null; then exec bash -i; else exec sh -i; fi"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod shell`."""
    place = parser.add_argument("name", metavar="NAME", help="a deployment, or an instance by id or name")
    place.completes = "/v1/endpoints"  # type: ignore[attr-defined]
    tty = parser.add_mutually_exclusive_group()
    tty.add_argument("--tty", "-t", action="store_true", default=None, help="a terminal for a command too")
    tty.add_argument("--no-tty", "-T", dest="tty", action="store_false", help="no terminal")
    show.add_server_options(parser)
    if isinstance(parser, Parser):
        parser.takes_command = True
        parser.show_examples(("nanopod shell square", "nanopod shell square -- nvidia-smi"))


def run(args: argparse.Namespace) -> int:
    """Open a terminal in a ready worker, or run the command after `--`; its exit status is ours."""
    from nanopod.client.cli.session import Session as Command

    session = Command(args)
    command = list(getattr(args, "command", ())) or ["/bin/sh", "-c", SHELL]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    tty = args.tty if args.tty is not None else (not getattr(args, "command", ()) and terminal)
    env = {"TERM": os.environ.get("TERM") or "xterm-256color"} if tty else {}
    return attached(session, worker_of(session.api, args.name), command, tty=tty, env=env)


def worker_of(api: Api, name: str) -> str:
    """The id of a deployment's ready worker; a name that is no deployment's is an instance's own."""
    try:
        found = api.get(f"/v1/endpoints/{segment(name)}")
    except NotFound:
        try:
            return str(api.get(f"/v1/instances/{segment(name)}")["id"])
        except NotFound:
            known = ", ".join(str(row.get("name")) for row in api.items("/v1/endpoints")) or "none yet"
            raise NotFound(
                f"there is no deployment or instance {name!r} (deployments: {known})", field="name"
            ) from None
    workers = [row for row in found.get("instances") or () if row.get("ended_at") is None]
    ready = [row for row in workers if row.get("ready")] or [row for row in workers if row.get("pid")]
    if not ready:
        why = "; ".join(map(str, found.get("reasons") or ())) or str(found.get("status"))
        raise NoCapacity(
            f"{name} has no worker to enter now ({why}); call it, or wait with: nanopod endpoints wait {name}"
        )
    return str(ready[0]["id"])


class Exec:
    """One command inside an instance."""

    def __init__(
        self, api: Api, instance: str, command: Sequence[str], *, tty: bool = False, rows: int = 24, cols: int = 80,
        env: Mapping[str, str] | None = None, cwd: str | None = None, timeout_s: float | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._api = api
        self._offset = 0
        self.exit_code: int | None = None
        body: dict[str, Any] = {"command": list(command), "tty": tty}
        body |= {"rows": rows, "cols": cols} if tty else {}
        body |= {"env": dict(env)} if env else {}
        body |= {"cwd": cwd} if cwd else {}
        body |= {"timeout_s": timeout_s} if timeout_s is not None else {}
        made = api.post(f"/v1/instances/{segment(instance)}/exec", body, retry=False, **(scope or {}))
        self._scope = dict(scope or {})
        self._path = f"/v1/execs/{segment(str(made['id']))}"

    def output(self) -> Iterator[tuple[int, bytes]]:
        """(1 or 2, bytes) as they come, until the command is over; then `exit_code` is set.

        Raises `RemoteError` when it could not be started, or what the API raises.
        """
        while True:
            page = self._api.get(f"{self._path}/output", **self._scope, offset=self._offset, wait_s=POLL_WAIT_S)
            if page.get("truncated"):
                yield 2, b"\n[nanopod: output was lost here: it came faster than it was read]\n"
            for chunk in page.get("chunks") or ():
                yield int(chunk.get("stream") or 1), base64.b64decode(chunk["data"])
            self._offset = max(self._offset, int(page.get("next_offset", self._offset)))
            code = page.get("exit_code")
            if code is not None or page.get("status") != RUNNING:  # told with the last output, not before it
                if page.get("error"):
                    raise RemoteError(str(page["error"]), type_name="exec")
                self.exit_code = KILLED if code is None else int(code)
                return

    def send(self, data: bytes = b"", **more: Any) -> None:
        """Input, or `eof=True`, `rows=` and `cols=`, `signal=`."""
        body = {"data": base64.b64encode(data).decode()} if data else {}
        self._api.post(f"{self._path}/input", {**body, **more}, retry=False, **self._scope)

    def kill(self) -> None:
        """End it; no error when it has ended already."""
        with contextlib.suppress(NanopodError):
            self._api.delete(self._path, **self._scope)


def attached(session: Any, instance: str, command: Sequence[str], *, tty: bool, env: Mapping[str, str]) -> int:
    """Run a command with this process's own input and output; its exit status, 128 + signal when it was killed."""
    size = shutil.get_terminal_size()
    running = Exec(
        session.api, instance, command, tty=tty, rows=size.lines, cols=size.columns, env=env, scope=session.scope
    )
    over = threading.Event()
    with _raw_terminal(tty), _resizing(running, tty):
        reader = threading.Thread(target=_feed, args=(running, over), name="input", daemon=True)
        reader.start()
        try:
            for stream, data in running.output():
                _write(2 if stream == 2 else 1, data)
        except (KeyboardInterrupt, BrokenPipeError):
            running.kill()
            return 130
        except BaseException:
            running.kill()
            raise
        finally:
            over.set()
    code = running.exit_code if running.exit_code is not None else KILLED
    return code if code >= 0 else 128 - code


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _feed(running: Exec, over: threading.Event) -> None:
    """Send what is typed (or piped) until it ends, or the command does."""
    descriptor = sys.stdin.fileno()
    try:
        while not over.is_set():
            if not select.select([descriptor], [], [], LOOK_S)[0]:
                continue
            data = os.read(descriptor, INPUT_BYTES_MAX)
            if not data:
                running.send(eof=True)
                return
            running.send(data)
    except (NoCapacity, OSError, ValueError):
        return  # the output tells what happened to the session
    except NanopodError:
        return


@contextlib.contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    """Every key goes to the other side, Ctrl-C as well; the terminal is as before afterwards."""
    if not wanted or not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizing(running: Exec, wanted: bool) -> Iterator[None]:
    """Tell the other side when this window changes its size."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return

    def changed(_signal: int, _frame: object) -> None:
        size = shutil.get_terminal_size()
        threading.Thread(target=_resize, args=(running, size.lines, size.columns), daemon=True).start()

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _resize(running: Exec, rows: int, cols: int) -> None:
    with contextlib.suppress(NanopodError):
        running.send(rows=rows, cols=cols)
