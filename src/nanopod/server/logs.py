"""`nanopod logs`: what the cloud's processes wrote, what the workers of a deployment print, what a call printed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Final

from nanopod.model.errors import Invalid, NanopodError, NotFound
from nanopod.model.layout import Layout
from nanopod.server import cloud

TAIL_BYTES: Final = 1 << 20
POLL_S: Final = 0.2
PROCESSES: Final = ("server", "gateway", "agent", "up")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod logs`."""
    from nanopod.client.cli import show
    from nanopod.client.cli.parser import Parser

    name = parser.add_argument(
        "name", nargs="?", metavar="NAME",
        help="a deployment; or server, gateway, agent, up, or (part of) an instance id; default: all of this machine",
    )  # fmt: skip
    name.completes = "/v1/endpoints"  # type: ignore[attr-defined]
    parser.add_argument("--follow", "-f", action="store_true", help="keep printing what is added, until Ctrl-C")
    parser.add_argument("--call", metavar="ID", help="what one spawned call printed")
    parser.add_argument("--since", metavar="TIME", help='of a deployment: from then on, such as "in -10m" or 15:30')
    parser.add_argument(
        "--lines", "-n", type=int, default=50, metavar="N", help="lines from the end of each (default 50)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="of the cloud to look at (default: as for `nanopod up`)")
    show.add_server_options(parser)
    if isinstance(parser, Parser):
        parser.show_examples(
            (
                "nanopod logs",
                "nanopod logs gateway -n 100",
                "nanopod logs square -f",
                "nanopod logs --call call_6f... -f",
            )
        )


def run(args: argparse.Namespace) -> int:
    """Print the ends of the logs, then what is added if asked to follow."""
    from nanopod.client.cli import exits

    layout = Layout(cloud.data_directory(args.data_dir))
    sources = find(layout, args.name)
    try:
        if args.call:
            return _call(args)
        if args.name and args.name not in PROCESSES and args.data_dir is None and (done := _deployment(args, sources)):
            return done - 1
    except NanopodError as error:
        return exits.report(error, args)
    if not sources:
        known = ", ".join(find(layout, None)) or "none yet"
        raise NotFound(f"no log {args.name or ''} in {layout.data}; known: {known}".replace("  ", " "))
    return _files(args, layout, sources)


def _call(args: argparse.Namespace) -> int:
    from nanopod.client.cli import logs, show

    return logs.call(show.api_of(args), args.call, follow=args.follow, as_json=args.json)


def _deployment(args: argparse.Namespace, sources: dict[str, Path]) -> int:
    """1 + the exit status of a deployment's logs; 0 when the name means a log of this machine.

    Raises `NotFound` when it means neither.
    """
    from nanopod.client.cli import logs, show
    from nanopod.client.cli.session import Session

    session = Session(args)
    since = session.time(args.since, "since", past=True)
    try:
        return 1 + logs.deployment(
            show.api_of(args), args.name, follow=args.follow, lines=args.lines, since=since, as_json=args.json
        )
    except (NotFound, Invalid) as error:
        if sources:
            return 0
        if isinstance(error, Invalid):
            raise
        raise NotFound(
            f"there is no deployment {args.name!r}, and no log of that name on this machine: {error.message}",
            field="name",
        ) from None


def _files(args: argparse.Namespace, layout: Layout, sources: dict[str, Path]) -> int:
    width = max(len(name) for name in sources)
    offsets: dict[str, int] = {}
    for name, path in sources.items():
        lines, offsets[name] = tail(path, args.lines)
        _print(name, lines, width, args.json)
    while args.follow:
        time.sleep(POLL_S)
        for name, path in find(layout, args.name).items():
            lines, offsets[name] = added(path, offsets.get(name, 0))
            _print(name, lines, width, args.json)
    return 0


def find(layout: Layout, name: str | None) -> dict[str, Path]:
    """{short name: file} of the logs that match `name` (all for None)."""
    found = {path.stem: path for path in sorted(layout.logs.glob("*.log"))}
    found |= {path.parent.name: path for path in sorted(layout.instances.glob("*/log"))}
    return {known: path for known, path in found.items() if name is None or name in known}


def tail(path: Path, lines: int) -> tuple[list[str], int]:
    """The last `lines` lines, and the offset after them."""
    size = path.stat().st_size
    with open(path, "rb") as source:
        source.seek(max(0, size - TAIL_BYTES))
        text = source.read(TAIL_BYTES).decode(errors="replace")
    return text.splitlines()[-lines:] if lines > 0 else [], size


def added(path: Path, offset: int) -> tuple[list[str], int]:
    """Whole lines written since `offset` (from the start when the file was rotated), and the new offset."""
    try:
        if path.stat().st_size < offset:
            offset = 0
        with open(path, "rb") as source:
            source.seek(offset)
            data = source.read(TAIL_BYTES)
    except OSError:
        return [], 0
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode(errors="replace").splitlines(), offset + whole


def _print(name: str, lines: list[str], width: int, as_json: bool) -> None:
    for line in lines:
        print(json.dumps({"source": name, "line": line}) if as_json else f"{name:<{width}} | {line}")
    sys.stdout.flush()
