"""`nanopod test-clock get|advance`: the clock of a cluster that was started for tests and demonstrations."""

from __future__ import annotations

from typing import Any, Final

from nanopod.client import times
from nanopod.client.cli import show
from nanopod.client.cli.nouns import commands
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

PATH: Final = "/v1/test_clock"
STEP_S_MAX: Final = 86_400
"""Time that one request lets pass: a minute of a busy market takes the server some milliseconds."""


def _show(session: Session, found: dict[str, Any]) -> int:
    if session.json:
        show.print_json(found)
        return 0
    session.shown_now = float(found.get("now_at") or 0)
    show.print_card([
        ("NOW", session.when(found.get("now_at"))), ("UNIX", found.get("now_at")),
        ("BLOCK", f"{found['block_s']} s" if found.get("block_s") else None),
    ])  # fmt: skip
    return 0


def get(session: Session) -> int:
    """What time it is there."""
    return _show(session, session.api.get(PATH))


def advance(session: Session) -> int:
    """Let time pass: to a moment, by a duration, or by blocks; everything that was due has happened then."""
    args = session.args
    if sum(value is not None for value in (args.to, args.by, args.blocks)) != 1:
        raise Invalid("give one of: --to TIME, --by DURATION, --blocks N, such as --by 1h", field="to")
    if args.blocks is not None:
        if args.blocks < 1:
            raise Invalid(f"--blocks {args.blocks} must be 1 or more", field="blocks")
        block_s = session.cluster.block_s
        return _go(session, (int(session.now) // block_s + args.blocks) * block_s)
    if args.by is not None:
        return _go(session, int(session.now) + times.parse_duration(args.by, field="by"))
    moment = session.time(args.to, "to")
    assert moment is not None, "one of the three was given"
    return _go(session, int(moment))


def _go(session: Session, to_at: int) -> int:
    """Far moments in several requests, so that none takes too long; the last one's answer is shown."""
    at = int(session.now)
    while True:
        at = min(to_at, at + STEP_S_MAX)
        found = session.api.post(PATH, {"to_at": at}, retry=False)
        if at >= to_at:
            return _show(session, found)


configure, run = commands(
    Verb("get", "show the cluster's time", get, (), ("nanopod test-clock get",)),
    Verb("advance", "let time pass", advance,
         (option("--to", metavar="TIME", help="up to this moment"),
          option("--by", metavar="D", help="by this much, such as 1h"),
          option("--blocks", type=int, metavar="N", help="by so many blocks")),
         ("nanopod test-clock advance --by 1h", "nanopod test-clock advance --blocks 1")),
)  # fmt: skip
