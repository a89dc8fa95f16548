"""One command being run: its server, its clock and zone, what it says, asks and waits for."""

from __future__ import annotations

import argparse
import functools
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nanopod.client import times
from nanopod.client.api import Api, segment
from nanopod.client.cli import show
from nanopod.model.errors import Cancelled, Denied, Invalid, NotFound

POLL_S: Final = (0.05, 1.0)
"""First and longest pause between two looks at a result."""
ROWS_MAX: Final = 2_000
PAGE_ROWS: Final = 200
CHOICES_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class Cluster:
    """The server's clock (frozen on a test cluster) and the length of its blocks."""

    now: float
    block_s: int
    frozen: bool


class Session:
    """What a verb needs. Facts go to standard output, notes and questions to standard error."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.json: bool = bool(getattr(args, "json", False)) or getattr(args, "output", None) == "json"
        self.wide: bool = getattr(args, "output", None) == "wide"
        self.zone = times.Zone(utc=bool(getattr(args, "utc", False)))

    # --- the server ---

    @functools.cached_property
    def api(self) -> Api:
        """The server that the options name. Raises `Invalid` when none is known."""
        return show.api_of(self.args)

    @functools.cached_property
    def cluster(self) -> Cluster:
        """The cluster's clock and block; this machine's where the key may not ask."""
        try:
            found = self.api.get("/v1/test_clock")
        except (NotFound, Denied):
            return Cluster(time.time(), 60, frozen=False)
        now = found.get("now_at")
        frozen = bool(found.get("frozen", True))
        return Cluster(float(now if now is not None else time.time()), int(found.get("block_s") or 60), frozen)

    @property
    def now(self) -> float:
        """Unix seconds by the cluster's clock."""
        return self.cluster.now

    @functools.cached_property
    def shown_now(self) -> float:
        """The moment that ages are counted from; no request is made for it unless the clock is known already."""
        return self.cluster.now if "cluster" in self.__dict__ else time.time()

    @property
    def scope(self) -> dict[str, Any]:
        """The query that names another workspace."""
        workspace = getattr(self.args, "workspace", None)
        return {"workspace": workspace} if workspace else {}

    def path(self, base: str, reference: str, *more: str) -> str:
        """`/v1/things/NAME/...`."""
        return "/".join((base, segment(reference), *more))

    def rows(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """All rows of a list, at most `ROWS_MAX`."""
        return list(self.pages(path, **query))

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Rows of a list over its pages."""
        after: str | None = None
        for _ in range(ROWS_MAX // PAGE_ROWS):
            page = self.api.get(path, **{**self.scope, "limit": PAGE_ROWS, **query, "starting_after": after})
            yield from page.get("data", [])
            following = page.get("cursor")
            if not page.get("has_more") or not following or following == after:
                return
            after = str(following)
        self.note(f"only the first {ROWS_MAX} are shown; narrow the list, or page with --limit and --starting-after")

    # --- words ---

    def note(self, text: str) -> None:
        """Something worth knowing that is not the answer."""
        print(text, file=sys.stderr, flush=True)

    def out(self, text: str) -> None:
        """A line for people; nothing where JSON was asked for."""
        if not self.json:
            print(text, flush=True)

    def when(self, seconds: Any) -> str:
        """A time with its zone, or `-`."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return "-"
        return times.time_text(seconds, now=self.shown_now, zone=self.zone)

    def period(self, start_at: float, end_at: float | None) -> str:
        """A window with its zone."""
        return times.period_text(start_at, end_at, now=self.shown_now, zone=self.zone)

    def time(self, text: str | None, field: str, *, past: bool = False) -> float | None:
        """A typed time as Unix seconds. Raises `Invalid`."""
        if text is None:
            return None
        # A time that is written out does not depend on the cluster's clock.
        now = time.time() if text.strip().isdigit() else self.now
        return times.parse_time(text, now=now, zone=self.zone, field=field, past=past)

    # --- questions ---

    @property
    def interactive(self) -> bool:
        """True when a person is there to be asked."""
        if self.json or getattr(self.args, "no_input", False) or getattr(self.args, "yes", False):
            return False
        return sys.stdin.isatty() and sys.stderr.isatty()

    def confirm(self, question: str, *, otherwise: str) -> None:
        """Go on only with a yes. Raises `Cancelled` after a no, `Invalid` (with `otherwise`) when nobody is there."""
        if getattr(self.args, "yes", False):
            return
        if not self.interactive:
            raise Invalid(otherwise)
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Cancelled("nothing was done")

    def pick(
        self, path: str, *, flag: str, label: Callable[[Mapping[str, Any]], str],
        wanted: Callable[[Mapping[str, Any]], bool] = lambda row: True, missing: str = "", **query: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """The object that an omitted option means: the only one there is, else what a person picks.

        Raises `Invalid` (with the names that would do) when there are several and nobody to ask, or none.
        """
        found = [row for row in self.rows(path, **query) if wanted(row)]
        noun = flag.replace("-", " ").replace("sku", "SKU")
        if not found:
            raise Invalid(f"--{flag} was not given and there is none to take{missing and '; ' + missing}", field=flag)
        if len(found) == 1:
            self.note(f"using the only {noun}: {label(found[0])}")
            return found[0]
        names = [label(row) for row in found]
        if not self.interactive or len(found) > CHOICES_MAX:
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise Invalid(f"--{flag} is needed: there are several ({shown})", field=flag)
        return found[_choose(f"Which {noun}?", names)]

    # --- waiting ---

    @functools.cached_property
    def wait_s(self) -> float:
        """How long the command may wait for a result, seconds; 0 with --no-wait."""
        if getattr(self.args, "no_wait", False):
            return 0.0
        return float(times.parse_duration(getattr(self.args, "wait", None) or "30s", field="wait"))

    def wait_until(
        self, look: Callable[[], dict[str, Any]], done: Callable[[Mapping[str, Any]], bool], first: dict[str, Any]
    ) -> dict[str, Any]:
        """`first`, or what `look` finds once it is `done`, or its newest state when the time to wait is over."""
        end = time.monotonic() + self.wait_s
        pause_s, longest_s = POLL_S
        found = first
        while not done(found) and (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, pause_s * (0.75 + secrets.randbelow(500) / 1000)))
            pause_s = min(longest_s, pause_s * 1.5)
            found = look()
        return found


def _choose(question: str, names: Sequence[str]) -> int:
    print(question, file=sys.stderr)
    for number, name in enumerate(names, 1):
        print(f"  {number}) {name}", file=sys.stderr)
    print(f"1-{len(names)}: ", end="", file=sys.stderr, flush=True)
    typed = sys.stdin.readline().strip()
    if typed in names:
        return names.index(typed)
    if typed.isdigit() and 1 <= int(typed) <= len(names):
        return int(typed) - 1
    raise Invalid(f"{typed!r} is none of 1 to {len(names)}")
