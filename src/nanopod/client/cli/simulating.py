"""`nanopod endpoints simulate`: a load file, what the endpoint's scaling makes of it, and a chart of the workers."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nanopod.client.api import Api, segment
from nanopod.client.cli import scaling, show
from nanopod.model.errors import Invalid

COLUMNS_MAX: Final = 72
ROWS_MAX: Final = 12
NAMES: Final = ("at", "service_s", "units", "concurrency")
FORM: Final = "at,service_s (and units, if you like) per request, or at,concurrency per second"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the verb, those of `scale` for settings that are to be tried."""
    parser.add_argument(
        "--load", type=Path, required=True, metavar="FILE", dest="load_file",
        help="CSV with a line of names, or JSON lines: at,service_s[,units] per request, or at,concurrency; in seconds",
    )  # fmt: skip
    parser.add_argument("--provision", type=float, metavar="S", help="seconds a new worker takes (default: measured)")
    parser.add_argument("--wake", type=float, metavar="S", help="seconds a wake takes (default: measured)")
    parser.add_argument("--slots", type=int, metavar="N", help="requests a worker takes (default: the endpoint's)")
    parser.add_argument("--mu", type=float, metavar="UNITS", help="load a worker does a second (default: measured)")
    scaling.add_options(parser)


def run(api: Api, args: argparse.Namespace) -> int:
    """Send the load, print the figures."""
    body: dict[str, Any] = read_load(args.load_file)
    for name, value in (("provision_s", args.provision), ("wake_s", args.wake), ("slots", args.slots), ("mu", args.mu)):
        if value is not None:
            body[name] = value
    if settings := scaling.settings_of(args):
        body["scale"] = scaling.scale_body(settings)
    found = api.post(f"/v1/endpoints/{segment(args.name)}/simulate", body)
    if args.json:
        show.print_json(found)
    else:
        describe(found)
    return 0


def describe(found: Mapping[str, Any]) -> None:
    """Figures and chart for people."""
    assumed, outcome = found["conditions"], found["outcome"]
    speed = "measured as it goes" if assumed["mu"] is None else f"{assumed['mu']:g} units of load a second"
    started = f"{outcome['starts']} times" + (f", {outcome['wakes']} of them by a wake" if outcome["wakes"] else "")
    waits = f"half at most {outcome['wait_p50']:g} s, 99 % {outcome['wait_p99']:g} s, all {outcome['wait_max']:g} s"
    show.print_facts(
        [
            ("endpoint", found["endpoint"]),
            ("profile", assumed["profile"]),
            ("worker", f"{assumed['slots'] or 'any number of'} requests at once, {speed}"),
            ("a start takes", f"{assumed['provision_s']:g} s, a wake {assumed['wake_s']:g} s"),
            ("requests", outcome["requests"]),
            ("waits", waits),
            ("timed out", outcome["timeouts"]),
            ("workers", f"{outcome['peak_workers']} at most, started {started}"),
            ("worker time", f"{outcome['worker_s'] / 60:.1f} minutes, {outcome['billed_s'] / 60:.1f} billed"),
            ("in use", f"{outcome['utilisation']:.0%}" if outcome["utilisation"] else ""),
        ]
    )
    timeline = outcome.get("timeline") or []
    if timeline:
        print()
        print(chart(timeline))


def chart(timeline: Sequence[Mapping[str, Any]]) -> str:
    """Workers over time: `#` ready, `+` starting; below, how many requests wait (their logarithm to the base of 2)."""
    first, last = timeline[0]["at"], timeline[-1]["at"]
    width = min(COLUMNS_MAX, len(timeline))
    ready, all_of, waiting = [0] * width, [0] * width, [0] * width
    for point in timeline:
        column = min(width - 1, int((point["at"] - first) / max(1, last - first) * width))
        ready[column] = max(ready[column], point["ready"])
        all_of[column] = max(all_of[column], point["ready"] + point["starting"])
        waiting[column] = max(waiting[column], point["waiting"])
    top = max(1, *all_of)
    step = math.ceil(top / ROWS_MAX)
    lines = ["workers (# ready, + starting)"]
    for level in range(math.ceil(top / step) * step, 0, -step):
        row = "".join(
            "#" if r > level - step else "+" if a > level - step else " " for r, a in zip(ready, all_of, strict=True)
        )
        lines.append(f"{level:>6} |{row.rstrip()}")
    lines.append(f"{0:>6} +{'-' * width}")
    if any(waiting):
        row = "".join(str(min(9, count.bit_length())) if count else " " for count in waiting)
        lines.append(f"{'wait':>6}  {row.rstrip()}  (1: one, 2: two or three, n: up to 2^n-1)")
    left, right = show.span(first), show.span(last)
    lines.append(f"{'':>8}{left}{right:>{max(len(right) + 1, width - len(left))}}")
    return "\n".join(lines)


def read_load(path: Path) -> dict[str, Any]:
    """A load file as the API takes it. Raises `Invalid` naming the file, the line and the fix."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"--load {path}: {error}", field="load") from None
    rows = list(_json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text))
    if not rows:
        raise Invalid(f"--load {path}: there is nothing in it; give {FORM}", field="load")
    levels = "concurrency" in rows[0][1]
    found = [_row(path, number, row, levels) for number, row in rows]
    found.sort(key=lambda row: row[0])
    return {"concurrency" if levels else "requests": found}


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Invalid(f"--load {path}, line {number}: {error}", field="load") from None
        if not isinstance(row, dict):
            raise Invalid(f"--load {path}, line {number}: a JSON object is needed, with {FORM}", field="load")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    names = [name.strip() for name in reader.fieldnames or ()]
    if "at" not in names or not {"service_s", "concurrency"} & set(names):
        raise Invalid(
            f"--load {path}, line 1: the names are {', '.join(names) or 'missing'}; give {FORM}", field="load"
        )
    reader.fieldnames = names
    for row in reader:
        yield reader.line_num, {name: value for name, value in row.items() if name in NAMES and value not in (None, "")}


def _row(path: Path, number: int, row: Mapping[str, Any], levels: bool) -> list[float]:
    wanted = ("at", "concurrency") if levels else ("at", "service_s", "units")
    found: list[float] = []
    for name in wanted:
        if name not in row:
            if name == "units":
                break
            raise Invalid(f"--load {path}, line {number}: {name} is missing; give {FORM}", field="load")
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise Invalid(f"--load {path}, line {number}: {name}={row[name]!r} is not a number from 0", field="load")
        found.append(value)
    return found
