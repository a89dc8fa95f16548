"""`nanopod logs`: what the cloud's processes and its instances wrote."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Final

from nanopod.model.errors import NotFound
from nanopod.model.layout import Layout
from nanopod.server import cloud

TAIL_BYTES: Final = 1 << 20
POLL_S: Final = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod logs`."""
    parser.add_argument("name", nargs="?", help="server, gateway, agent, up, or (part of) an instance id; default: all")
    parser.add_argument("--follow", "-f", action="store_true", help="keep printing what is added, until Ctrl-C")
    parser.add_argument(
        "--lines", "-n", type=int, default=50, metavar="N", help="lines from the end of each (default 50)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="of the cloud to look at (default: as for `nanopod up`)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Print the ends of the logs, then what is added if asked to follow."""
    layout = Layout(cloud.data_directory(args.data_dir))
    sources = find(layout, args.name)
    if not sources:
        known = ", ".join(find(layout, None)) or "none yet"
        raise NotFound(f"no log {args.name or ''} in {layout.data}; known: {known}".replace("  ", " "))
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
