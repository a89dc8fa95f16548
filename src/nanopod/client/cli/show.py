"""What all commands share: where the server is, and how rows and objects are printed for people and programs."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nanopod.client.api import Api
from nanopod.client.config import target
from nanopod.client.times import zone_name

Column = tuple[str, Callable[[Mapping[str, Any]], Any]]
"""A title and how to get the cell from a row."""


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """`--url`, `--api-key`, `--json`."""
    parser.add_argument("--url", metavar="URL", help="the server (default: NANOPOD_URL, else the cloud running here)")
    parser.add_argument("--api-key", metavar="KEY", help="default: NANOPOD_API_KEY, else that cloud's admin key")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-o", "--output", choices=("wide", "json"), action=_Output, help="json: the same as --json")


class _Output(argparse.Action):
    """`-o json` is `--json`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.output = values
        if values == "json":
            namespace.json = True


def add_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, str]) -> dict[str, argparse.ArgumentParser]:
    """Second words such as `list`; each knows the server options. A verb must be given."""
    chosen = parser.add_subparsers(dest="action", metavar="VERB", required=True, title="verbs")
    made = {}
    for verb, text in verbs.items():
        made[verb] = chosen.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        add_server_options(made[verb])
    return made


def api_of(args: argparse.Namespace) -> Api:
    """The API that the options name. Raises `Invalid` when no server is known."""
    return Api(target(args.url, args.api_key))


def print_json(value: Any) -> None:
    """Indented JSON."""
    print(json.dumps(value, indent=2, default=str))


def print_line(value: Any) -> None:
    """One line of JSON."""
    print(json.dumps(value, default=str), flush=True)


def print_page(rows: Sequence[Any]) -> None:
    """A whole list as the API's object for it."""
    print_json({"object": "list", "cursor": None, "has_more": False, "data": list(rows)})


def print_card(facts: Sequence[tuple[str, Any]]) -> None:
    """One object as a card: a rail on the left, a name and its value a line; empty values are left out."""
    shown = [(name, text(value)) for name, value in facts if value not in (None, "", [], {}, (), "-")]
    width = max((len(name) for name, _ in shown), default=0)
    rail = "\u2502" if for_people() and (sys.stdout.encoding or "").lower().startswith("utf") else "|"
    for name, value in shown:
        for number, line in enumerate(value.splitlines() or [""]):
            print(f"{rail} {(name if number == 0 else '').ljust(width)}  {line}".rstrip())


def for_people() -> bool:
    """True when a person reads standard output."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], *, empty: str) -> None:
    """A table; `empty` says what to do when there is nothing."""
    cells = [[text(value(row)) for _, value in columns] for row in rows]
    if not cells:
        print(empty)
        return
    titles = [title for title, _ in columns]
    if for_people():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SQUARE, header_style="bold")
        for title in titles:
            table.add_column(title, overflow="fold")  # an id that is cut cannot be copied
        for row in cells:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[index]) for row in [titles, *cells]) for index in range(len(titles))]
    for row in [titles, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: Sequence[tuple[str, Any]]) -> None:
    """Names and values, one a line; empty values are left out."""
    shown = [(name, text(value)) for name, value in facts if value not in (None, "", [], {}, ())]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  " + value.replace("\n", "\n" + " " * (width + 2)))


def text(value: Any) -> str:
    """A cell."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) or "-"
    return str(value)


def field(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """The value of a field."""
    return lambda row: row.get(name)


def moment(name: str) -> Callable[[Mapping[str, Any]], str]:
    """A field that holds Unix seconds, as exact local time and as age."""
    return lambda row: when(row.get(name))


def when(seconds: Any) -> str:
    """`2026-01-31 12:00:00 UTC (3 min ago)` for Unix seconds; other values as they are."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds:
        return text(seconds) if seconds else "-"
    moment = datetime.datetime.fromtimestamp(seconds).astimezone()
    exact = f"{moment:%Y-%m-%d %H:%M:%S} {zone_name(moment)}"
    ago_s = time.time() - seconds
    return f"{exact} ({span(ago_s)} ago)" if ago_s >= 0 else f"{exact} (in {span(-ago_s)})"


def span(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def size(count: Any) -> str:
    """Bytes in a binary unit."""
    if not isinstance(count, int | float) or not count:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return "-"


_STYLES = {
    "ready": "green", "up": "green", "failed": "bold red", "lost": "bold red", "asleep": "cyan", "waking": "yellow",
    "scaling": "yellow", "updating": "yellow", "starting": "yellow", "loading": "yellow", "draining": "magenta",
}  # fmt: skip
