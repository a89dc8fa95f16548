"""What the workers of a deployment print, merged by time and followed over restarts and broken links."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from nanopod.client.api import Api, segment
from nanopod.client.cli import show
from nanopod.model.errors import NanopodError, NoCapacity, NotFound

POLL_S: Final = 0.15
LOOK_S: Final = 1.0
"""How often a follower asks which workers there are."""
PAGE: Final = 500
AWAY_S_MAX: Final = 300.0
"""How long a follower waits for a server that went away."""


@dataclass(frozen=True, slots=True)
class Line:
    """One piece of output. `at` is Unix seconds, `stream` 1 (out) or 2 (err)."""

    at: float
    worker: str
    stream: int
    text: str
    seq: int

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        stream = "stderr" if self.stream == 2 else "stdout"
        return {"at": self.at, "worker": self.worker, "stream": stream, "seqnum": self.seq, "line": self.text}


class Follower:
    """The output of all workers of one deployment, each line once."""

    def __init__(self, api: Api, endpoint: str) -> None:
        self._api = api
        self._path = f"/v1/endpoints/{segment(endpoint)}"
        self._next: dict[str, int] = {}
        self._over: set[str] = set()
        self._looked_at = 0.0
        self.endpoint: dict[str, Any] = {}
        """As it was seen last."""

    def look(self) -> dict[str, Any]:
        """See which workers there are. Raises `NotFound` for a deployment that is not there."""
        self.endpoint = self._api.get(self._path)
        self._looked_at = time.monotonic()
        return self.endpoint

    def tail(self, count: int, since: float | None) -> list[Line]:
        """The last lines of each worker, or all since a time (Unix seconds); later `more` goes on after them."""
        self.look()
        return self._taken(
            {"realtime_after": since, "sort_by": "seqnum", "limit": PAGE}
            if since is not None
            else {"sort_by": "-seqnum", "limit": max(1, count)}
        )  # fmt: skip

    def more(self) -> list[Line]:
        """What was added since the last time."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self.look()
        return self._taken({"sort_by": "seqnum", "limit": PAGE})

    def _taken(self, query: dict[str, Any]) -> list[Line]:
        found: list[Line] = []
        for instance in self.endpoint.get("instances") or ():
            name = str(instance["id"])
            if name in self._over or instance.get("node_id") is None:
                continue
            asked = query
            if name in self._next:
                asked = {"seqnum_after": self._next[name], "sort_by": "seqnum", "limit": PAGE}
            try:
                page = self._api.get(f"/v1/instances/{segment(name)}/logs", **asked)
            except NoCapacity:
                raise
            except NanopodError:
                continue  # it is gone, or its machine does not answer now
            rows = list(page.get("data") or ())
            found += [self._line(name, row) for row in rows]
            self._next[name] = max([self._next.get(name, 0), *(int(row["seqnum"]) + 1 for row in rows)])
            if instance.get("ended_at") is not None and not rows:
                self._over.add(name)
        return sorted(found, key=lambda line: (line.at, line.worker, line.seq))

    def _line(self, name: str, row: dict[str, Any]) -> Line:
        text = base64.b64decode(row.get("data") or "").decode(errors="replace").rstrip("\n")
        return Line(
            float(row.get("timestamp_realtime") or 0), name, int(row.get("stream") or 1), text, int(row["seqnum"])
        )

    def follow(self) -> Iterator[list[Line]]:
        """What is added, for ever; waits while the server is away. Raises `NotFound` once the deployment is gone."""
        silent_since: float | None = None
        while True:
            try:
                lines = self.more()
                silent_since = None
            except NotFound:
                raise
            except NanopodError:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > AWAY_S_MAX:
                    raise
                lines = []
            yield lines
            if not lines:
                time.sleep(POLL_S)


class Printer:
    """Prints lines; says which worker once there are several."""

    def __init__(self, *, as_json: bool = False, error_stream: bool = False) -> None:
        self._as_json = as_json
        self._workers: set[str] = set()
        self._error_stream = error_stream

    def show(self, lines: list[Line]) -> None:
        """Print them: errors to standard error where that was asked for."""
        for line in lines:
            self._workers.add(line.worker)
            if self._as_json:
                show.print_line(line.as_json())
                continue
            prefix = f"[{line.worker[-6:]}] " if len(self._workers) > 1 else ""
            out = sys.stderr if self._error_stream and line.stream == 2 else sys.stdout
            print(prefix + line.text, file=out, flush=True)


def deployment(api: Api, name: str, *, follow: bool, lines: int, since: float | None, as_json: bool) -> int:
    """Print the output of a deployment's workers, and with `follow` what is added until it is deleted."""
    follower, printer = Follower(api, name), Printer(as_json=as_json)
    printer.show(follower.tail(lines, since))
    if follow:
        try:
            for added in follower.follow():
                printer.show(added)
        except NotFound:
            return 0
    return 0


def call(api: Api, call_id: str, *, follow: bool, as_json: bool) -> int:
    """Print what one spawned call printed; with `follow` until it ends."""
    from nanopod.client.call import Call

    found = Call.from_id(call_id, api.target.key, url=api.target.url)
    for line in found.logs(follow=follow):
        if as_json:
            show.print_line({"call": found.id, "line": str(line)})
        else:
            print(line, flush=True)
    return 0
