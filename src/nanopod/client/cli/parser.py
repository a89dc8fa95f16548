"""Commands as data: options and verbs with their examples, and the argparse parser that is made of them.

One description serves parsing, `--help`, shell completion and `nanopod agents ctx`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser that knows examples, and may take everything after `--` as a command."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **settings)
        self.examples: tuple[str, ...] = ()
        self.takes_command = False
        self.alias_names: tuple[str, ...] = ()

    def show_examples(self, examples: Sequence[str]) -> None:
        """Examples below the help."""
        self.examples = tuple(examples)
        if examples:
            self.epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; after `--` everything is the command where one is taken."""
        if not self.takes_command:
            return super().parse_known_args(args, namespace)
        words = list(args or ())
        at = words.index("--") if "--" in words else len(words)
        parsed, extra = super().parse_known_args(words[:at], namespace)
        parsed.command = words[at + 1 :]
        return parsed, extra


@dataclass(frozen=True, slots=True)
class Option:
    """One option or argument, as argparse wants it; `completes` is the API path whose names may be its value."""

    flags: tuple[str, ...]
    settings: Mapping[str, Any]
    completes: str = ""

    def add_to(self, parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
        """Add it."""
        action = parser.add_argument(*self.flags, **self.settings)
        if self.completes:
            action.completes = self.completes  # type: ignore[attr-defined]


def option(*flags: str, completes: str = "", **settings: Any) -> Option:
    """An `Option`: flags and settings as for `add_argument`."""
    return Option(flags, settings, completes)


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of a noun: what it does, its options and examples; or, with `verbs`, a noun inside a noun."""

    name: str
    help: str
    run: Callable[[Any], int] | None = None
    """Gets the `Session`; returns the exit status."""
    options: Sequence[Option] = ()
    examples: Sequence[str] = ()
    aliases: tuple[str, ...] = ()
    waits: bool = False
    """It waits for a result unless told otherwise."""
    takes_command: bool = False
    verbs: Sequence[Verb] = field(default=())


SERVER: Sequence[Option] = (
    option("--url", metavar="URL", help="the server (default: NANOPOD_URL, else the cloud running here)"),
    option("--api-key", metavar="KEY", help="default: NANOPOD_API_KEY or NANOPOD_TOKEN, else that cloud's admin key"),
    option("--json", action="store_true", help="print exactly what the API answered, errors too (same as -o json)"),
    option("-o", "--output", choices=("wide", "json"), help="wide: all columns; json: as --json"),
)
PEOPLE: Sequence[Option] = (
    option("-y", "--yes", action="store_true", help="answer every question with yes"),
    option("--no-input", action="store_true", help="never ask; what is missing is an error"),
    option("--utc", action="store_true", help="read and show times in UTC"),
    option("-w", "--workspace", metavar="W", completes="/v1/workspaces", help="another workspace than the key's"),
)
WAITING: Sequence[Option] = (
    option("--wait", metavar="D", default="30s", help="how long to wait for the result (default: 30s)"),
    option("--no-wait", action="store_true", help="return at once"),
)
PAGING: Sequence[Option] = (
    option("--limit", type=int, metavar="N", help="rows, 1 to 200 (default: all for people, 50 as JSON)"),
    option("--starting-after", metavar="CURSOR", help="the page after this cursor"),
    option("--ending-before", metavar="CURSOR", help="the page before this cursor"),
)


def add_verb_parsers(parser: argparse.ArgumentParser, verbs: Sequence[Verb], *, dest: str = "action") -> None:
    """The verbs of a noun, each with its own options and those that all share. A verb must be given."""
    chosen = parser.add_subparsers(dest=dest, metavar="VERB", required=True, title="verbs")
    for verb in verbs:
        text = verb.help[0].upper() + verb.help[1:] + "."
        made = chosen.add_parser(verb.name, aliases=list(verb.aliases), help=verb.help, description=text)
        fill(made, verb)
        if verb.verbs:
            add_verb_parsers(made, verb.verbs, dest=f"{dest}_of_{verb.name}")


def fill(parser: argparse.ArgumentParser, verb: Verb) -> None:
    """The options, examples and handler of one verb."""
    if isinstance(parser, Parser):
        parser.show_examples(verb.examples)
        parser.takes_command = verb.takes_command
        parser.alias_names = verb.aliases
    if verb.run is None:
        return
    for each in (*verb.options, *(WAITING if verb.waits else ()), *SERVER, *PEOPLE):
        each.add_to(parser)
    parser.set_defaults(handler=verb.run)
