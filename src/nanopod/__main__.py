"""The `nanopod` command: a table of verbs. A room's commands are imported only when their verb is used."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Mapping, Sequence

CLOUD: dict[str, tuple[str, str]] = {
    "up": ("nanopod.server.up", "start a whole cloud on this machine"),
    "down": ("nanopod.server.down", "stop it; running requests finish first"),
    "status": ("nanopod.server.status", "what runs here, and is it well"),
    "logs": ("nanopod.server.logs", "what its processes and instances wrote"),
    "sim": ("nanopod.sim.command", "replay requests against the scaling rule on a simulated clock"),
}
"""Verbs of the cloud itself; those of its users come from `nanopod.client.cli.COMMANDS`."""


def table() -> Mapping[str, tuple[str, str]]:
    """{verb: (module with `configure` and `run`, help)} of every command."""
    from nanopod.client.cli import COMMANDS

    return {**CLOUD, **COMMANDS}


def make_parser(commands: Mapping[str, tuple[str, str]], chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen verb's options are known (all of them when `chosen` is None)."""
    from nanopod import __version__
    from nanopod.client.cli import ALIASES, EXAMPLES
    from nanopod.client.cli.parser import Parser

    parser = Parser(
        prog="nanopod",
        description="Spare and reclaimable accelerators as one dependable inference cloud.",
        epilog="Start with: nanopod up   then: nanopod serve nanopod-tiny   (docs: README.md)",
    )
    parser.add_argument("--version", action="version", version=f"nanopod {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands")
    for verb, (module, text) in commands.items():
        aliases = ALIASES.get(verb, ())
        sub = verbs.add_parser(verb, aliases=aliases, help=text, description=text[0].upper() + text[1:] + ".")
        if chosen is None or verb == chosen or chosen in aliases:
            importlib.import_module(module).configure(sub)
            sub.alias_names = aliases
            if verb in EXAMPLES:
                sub.examples = EXAMPLES[verb]
    return parser


def _canonical(verb: str) -> str:
    """The verb that an alias stands for."""
    from nanopod.client.cli import ALIASES

    return next((name for name, aliases in ALIASES.items() if verb in aliases), verb)


def _complete(commands: Mapping[str, tuple[str, str]]) -> None:
    """Serve shell completion when the shell asks for it (`eval "$(register-python-argcomplete nanopod)"`)."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(make_parser(commands, None))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: see `nanopod.client.cli.exits`; 3 also when an endpoint cannot be deployed."""
    import os

    words = list(sys.argv[1:] if argv is None else argv)
    commands = table()
    if "_ARGCOMPLETE" in os.environ:
        _complete(commands)
    chosen = next((word for word in words if not word.startswith("-")), "")
    parser = make_parser(commands, chosen)
    args = parser.parse_args(words)
    if not args.verb:
        parser.print_help()
        return 2
    from nanopod.model.errors import NanopodError

    verb = _canonical(args.verb)
    args.whole_parser = functools.partial(make_parser, commands, None)
    try:
        return int(importlib.import_module(commands[verb][0]).run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`nanopod ... | head`): that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NanopodError as error:
        if verb in CLOUD:
            print(f"nanopod {verb}: {error.message}", file=sys.stderr)
            return 2 if error.code == "unprocessable_entity" else 1
        from nanopod.client.cli import exits

        return exits.report(error, args)


if __name__ == "__main__":
    sys.exit(main())
