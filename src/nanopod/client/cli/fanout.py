"""`nanopod instances run`: one command on many instances at once, with every line's origin and every exit status."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from nanopod.client import times
from nanopod.client.cli import show
from nanopod.client.cli.nouns import tag_filter
from nanopod.client.cli.session import Session
from nanopod.client.cli.shell import Exec
from nanopod.model.errors import Conflict, Invalid, NanopodError

FAN_OUT_MAX: Final = 256
TIMED_OUT: Final = 124
KEPT_BYTES_MAX: Final = 1 << 20
"""Of each instance's output with --json."""


@dataclass(slots=True)
class Outcome:
    """What became of one instance's command."""

    instance: str
    name: str
    exit_code: int | None = None
    seconds: float = 0.0
    error: str = ""
    texts: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "instance": self.instance, "name": self.name, "exit_code": self.exit_code, "error": self.error or None,
            "seconds": round(self.seconds, 3), "stdout": self.texts[1].decode("utf-8", "replace"),
            "stderr": self.texts[2].decode("utf-8", "replace"),
        }  # fmt: skip


class Printer:
    """Whole lines of many sources, each with its name in front."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lock = threading.Lock()
        self._rest: dict[tuple[str, int], bytes] = {}

    def add(self, name: str, stream: int, data: bytes) -> None:
        """Print the lines that are complete, keep the rest."""
        with self._lock:
            *lines, rest = (self._rest.pop((name, stream), b"") + data).split(b"\n")
            if rest:
                self._rest[name, stream] = rest
            for line in lines:
                self._print(name, stream, line)

    def end(self, name: str) -> None:
        """Print what a source left without an end of line."""
        with self._lock:
            for stream in (1, 2):
                if line := self._rest.pop((name, stream), b""):
                    self._print(name, stream, line)

    def _print(self, name: str, stream: int, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        print(f"{name.ljust(self._width)} | {text}", file=sys.stderr if stream == 2 else sys.stdout, flush=True)


def targets(session: Session) -> list[dict[str, Any]]:
    """The instances that the names, tags or deployment mean. Raises `Invalid` when there are none."""
    args = session.args
    if not (args.names or args.tag or args.tag_key or args.deployment):
        raise Invalid("say where: names of instances, --tag K=V or --deployment D", field="names")
    if args.names and (args.tag or args.tag_key or args.deployment):
        raise Invalid("give names, or --tag and --deployment, not both", field="names")
    if args.names:
        return [session.api.get(session.path("/v1/instances", name), **session.scope) for name in args.names]
    rows = session.rows("/v1/instances", **tag_filter(args), status="running")
    if args.deployment:
        rows = [row for row in rows if args.deployment in _owners(row)]
    if not rows:
        raise Invalid("no running instance is meant by that; see: nanopod instances list", field="names")
    return rows


def _owners(row: Mapping[str, Any]) -> set[Any]:
    owner = row.get("managed_by") or {}
    return {owner.get("id"), owner.get("name"), row.get("deployment_id"), row.get("deployment")} - {None}


def run(session: Session) -> int:
    """Run everywhere, print a summary; exit status 0 only when it was 0 everywhere."""
    args = session.args
    command: Sequence[str] = args.command
    if not command:
        raise Invalid("give the command after --: nanopod instances run --deployment D -- nvidia-smi", field="command")
    if not 1 <= args.fan_out <= FAN_OUT_MAX:
        raise Invalid(f"--fan-out {args.fan_out} must be from 1 to {FAN_OUT_MAX}", field="fan-out")
    timeout_s = float(times.parse_duration(args.timeout, field="timeout")) if args.timeout else None
    where = targets(session)
    names = [str(row.get("name") or row["id"]) for row in where]
    printer = Printer(max(map(len, names)))

    def one(row: Mapping[str, Any], name: str) -> Outcome:
        return _run_on(session, row, name, command, timeout_s, None if session.json else printer)

    with ThreadPoolExecutor(min(args.fan_out, len(where)), "run") as pool:
        outcomes = list(pool.map(one, where, names))
    if session.json:
        show.print_page([outcome.shown() for outcome in outcomes])
    else:
        _summary(outcomes)
    return 0 if all(outcome.exit_code == 0 for outcome in outcomes) else 1


def _run_on(
    session: Session, row: Mapping[str, Any], name: str, command: Sequence[str], timeout_s: float | None,
    printer: Printer | None,
) -> Outcome:  # fmt: skip
    outcome, begin = Outcome(str(row["id"]), name), time.monotonic()
    running: Exec | None = None
    try:
        running = Exec(session.api, outcome.instance, command, timeout_s=timeout_s, scope=session.scope)
        with contextlib.suppress(Conflict):  # it may be over already
            running.send(eof=True)
        for stream, data in running.output():
            if printer is not None:
                printer.add(name, stream, data)
            else:
                kept = outcome.texts[2 if stream == 2 else 1]
                kept += data[: KEPT_BYTES_MAX - len(kept)]
            if timeout_s is not None and time.monotonic() - begin > timeout_s + 30:
                outcome.exit_code = TIMED_OUT
                running.kill()
                break
        else:
            outcome.exit_code = running.exit_code
    except NanopodError as error:
        outcome.error = error.message
        if running is not None:
            running.kill()
    finally:
        if printer is not None:
            printer.end(name)
    outcome.seconds = time.monotonic() - begin
    return outcome


def _summary(outcomes: Sequence[Outcome]) -> None:
    width = max(len(outcome.name) for outcome in outcomes)
    good = sum(outcome.exit_code == 0 for outcome in outcomes)
    print(f"\n{good} of {len(outcomes)} ended with 0", file=sys.stderr)
    for outcome in outcomes:
        code = "-" if outcome.exit_code is None else str(outcome.exit_code)
        print(f"{outcome.name.ljust(width)}  exit {code:>3}  {outcome.seconds:.1f} s  {outcome.error}".rstrip(),
              file=sys.stderr)  # fmt: skip
